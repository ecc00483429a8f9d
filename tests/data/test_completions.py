"""Prompts and conversations as tokens: what is learned, what is cut, what is refused."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from jaxalign.data.completions import CompletionConfig, load_completions
from jaxalign.data.sequences import Sequences, pad_flat
from jaxalign.errors import InputError

CHAT = (
    "{% for m in messages %}{% if m['role'] == 'tool' %}{{ raise_exception('no tools') }}"
    "{% endif %}<{{ m['role'] }}>{{ m['content'] }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
# Earlier answers lose what stands in brackets, as reasoning does in some models.
FORGETFUL = CHAT.replace(
    "m['content']", "(m['content'] if loop.last else m['content'].split(']')[-1])"
)


@pytest.fixture
def tokenizer():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<end>", "<user>", "<assistant>", "<system>"]
    pieces = [*special, *alphabet, "ab"]
    inner = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [("a", "b")]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(special)
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>")


@pytest.fixture
def spaced():
    """A tokenizer that writes a space before every text, as those of Llama 2 and Mistral do."""
    special = ["<unk>", "<s>", "</s>"]
    letters = [chr(code) for code in range(33, 127)]
    pieces = [*special, *letters, "\n", "▁", "▁▁", "ye", "yes", "▁yes"]
    merges = [("▁", "▁"), ("y", "e"), ("ye", "s"), ("▁", "yes")]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    inner = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True))
    inner.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    inner.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in special]
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def texts(tokenizer, loaded):
    """Each row's whole text and the text that is learned."""
    found = []
    for start, end in zip(loaded.sequences.starts, loaded.sequences.starts[1:], strict=False):
        ids, learned = loaded.sequences.tokens[start:end], loaded.learned[start:end]
        found.append((tokenizer.decode(ids), tokenizer.decode(ids[learned])))
    return found


def test_plain_rows_learn_the_completion_and_its_end(tmp_path, tokenizer):
    path = write(tmp_path / "a.jsonl", [{"prompt": "xa", "completion": "b!", "other": 1}])
    loaded = load_completions(path, tokenizer)
    assert texts(tokenizer, loaded) == [("xab!<end>", "b!<end>")]
    # The prompt's tokens are those it has alone: "a" and "b" are not merged across the border.
    prompt = tokenizer("xa")["input_ids"]
    assert loaded.sequences.tokens[: len(prompt)].tolist() == prompt


def test_a_template_makes_turns_of_prompt_and_completion(tmp_path, tokenizer):
    tokenizer.chat_template = CHAT
    path = write(tmp_path / "a.jsonl", [{"prompt": "hi", "completion": "yes"}])
    expected = ("<user>hi<end>\n<assistant>yes<end>\n", "yes<end>\n")
    assert texts(tokenizer, load_completions(path, tokenizer)) == [expected]
    plain = load_completions(path, tokenizer, CompletionConfig(template="plain"))
    assert texts(tokenizer, plain) == [("hiyes<end>", "yes<end>")]


@pytest.mark.parametrize(("first", "begin"), [(None, "<end>"), ("<user>", "<user>")])
def test_an_answer_to_an_empty_prompt_is_learned_from_its_first_token(
    tmp_path, tokenizer, first, begin
):
    tokenizer.bos_token = first
    path = write(tmp_path / "a.jsonl", [{"prompt": "", "completion": "yes"}])
    loaded = load_completions(path, tokenizer)
    assert texts(tokenizer, loaded) == [(f"{begin}yes<end>", "yes<end>")]
    assert loaded.learned.tolist() == [False, True, True, True, True]


def learned_pieces(tokenizer, loaded):
    """The tokens that are learned, in all rows."""
    return tokenizer.convert_ids_to_tokens(loaded.sequences.tokens[loaded.learned])


@pytest.mark.parametrize(
    ("prompt", "completion", "expected"),
    [
        ("Q: A:", " yes", ["▁yes", "</s>"]),
        ("Q: A:\n", "yes", ["yes", "</s>"]),
        # Both spaces make one token, with which generation cannot go on behind "Q: ".
        ("Q: ", " yes", ["▁▁", "yes", "</s>"]),
        ("", "yes", ["▁yes", "</s>"]),
    ],
)
def test_no_space_is_learned_that_was_not_written(tmp_path, spaced, prompt, completion, expected):
    path = write(tmp_path / "a.jsonl", [{"prompt": prompt, "completion": completion}])
    loaded = load_completions(path, spaced)
    assert learned_pieces(spaced, loaded) == expected
    alone = spaced(prompt)["input_ids"] or [spaced.bos_token_id]
    assert loaded.sequences.tokens[: len(alone)].tolist() == alone


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        # Llama 2 writes a space before an answer, TinyLlama a line break and text behind it.
        (
            "{% for m in messages %}{% if m['role'] == 'user' %}<s>[I] {{ m['content'] }} [/I]"
            "{% else %} {{ m['content'] }} </s>{% endif %}{% endfor %}",
            ["▁yes", "▁", "</s>", "▁yes", "▁", "</s>"],
        ),
        (
            "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}</s>\n{% endfor %}"
            "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
            ["yes", "</s>", "▁", "\n", "yes", "</s>", "▁", "\n"],
        ),
    ],
)
def test_turns_have_the_tokens_of_the_whole_conversation(tmp_path, spaced, template, expected):
    spaced.chat_template = template
    talk = turns(("user", "a"), ("assistant", "yes"), ("user", "b"), ("assistant", "yes"))
    path = write(tmp_path / "a.jsonl", [talk])
    loaded = load_completions(path, spaced, CompletionConfig(turns="all"))
    assert learned_pieces(spaced, loaded) == expected
    whole = spaced.apply_chat_template(talk["messages"], tokenize=False)
    assert loaded.sequences.tokens.tolist() == spaced(whole, add_special_tokens=False)["input_ids"]


def turns(*pairs):
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}


TALK = turns(("system", "s"), ("user", "one"), ("assistant", "[x]A"), ("user", "two"),
             ("assistant", "B"))  # fmt: skip


def test_last_or_all_turns_of_the_assistant(tmp_path, tokenizer):
    tokenizer.chat_template = CHAT
    path = write(tmp_path / "a.jsonl", [TALK])
    whole = "<system>s<end>\n<user>one<end>\n<assistant>[x]A<end>\n<user>two<end>\n"
    whole += "<assistant>B<end>\n"
    last = load_completions(path, tokenizer)
    assert texts(tokenizer, last) == [(whole, "B<end>\n")]
    every = load_completions(path, tokenizer, CompletionConfig(turns="all"))
    assert texts(tokenizer, every) == [(whole, "[x]A<end>\nB<end>\n")]


def test_a_template_that_rewrites_earlier_turns(tmp_path, tokenizer):
    tokenizer.chat_template = FORGETFUL
    path = write(tmp_path / "a.jsonl", [TALK])
    (found,) = texts(tokenizer, load_completions(path, tokenizer))
    assert found[1] == "B<end>\n"
    assert "[x]" not in found[0]
    first, second = texts(
        tokenizer, load_completions(path, tokenizer, CompletionConfig(turns="all"))
    )
    assert first[0] == "<system>s<end>\n<user>one<end>\n<assistant>[x]A<end>\n"
    assert first[1] == "[x]A<end>\n"
    assert second == found


def test_parquet_is_read_as_json_lines_are(tmp_path, tokenizer):
    tokenizer.chat_template = CHAT
    rows = [TALK, turns(("user", "u"), ("assistant", "v"))]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    one = load_completions(tmp_path / "a.parquet", tokenizer)
    two = load_completions(write(tmp_path / "a.jsonl", rows), tokenizer)
    np.testing.assert_array_equal(one.sequences.tokens, two.sequences.tokens)
    np.testing.assert_array_equal(one.learned, two.learned)


def test_long_rows_are_cut_left_out_or_refused(tmp_path, tokenizer):
    rows = [
        {"prompt": "xyz", "completion": "12"},  # 6 tokens with the end
        {"prompt": "xyz", "completion": "123456"},
        {"prompt": "xyzxyz", "completion": "1"},
    ]
    path = write(tmp_path / "a.jsonl", rows)
    loaded = load_completions(path, tokenizer, CompletionConfig(max_tokens=6))
    assert (loaded.truncated, loaded.dropped) == (1, 1)
    assert texts(tokenizer, loaded) == [("xyz12<end>", "12<end>"), ("xyz123", "123")]
    with pytest.raises(InputError, match=r"line 2: the row has 10 tokens \(and 1 more"):
        load_completions(path, tokenizer, CompletionConfig(max_tokens=6, overlong="refuse"))
    with pytest.raises(InputError, match="no row has a completion within 3 tokens"):
        load_completions(path, tokenizer, CompletionConfig(max_tokens=3))


GOOD = {"prompt": "p", "completion": "c"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([GOOD, {"prompt": "p"}], "line 2: `completion` is missing, expected text"),
        ([GOOD, {"prompt": 3, "completion": "c"}], r"line 2: `prompt` is 3 \(int\), expected text"),
        ([{"prompt": "p", "completion": " \n"}], "line 1: `completion` is empty"),
        ([{"prompt": "p", "completion": "\ud800"}], "line 1: `completion` holds half"),
        ([{"question": "p"}], "no column `prompt`, expected `prompt` and `completion`, or"),
        ([GOOD | TALK], "has `messages` and `completion`, expected one of the two"),
        ([{"messages": "text"}], "line 1: `messages` is 'text', expected a list of turns"),
        ([{"messages": []}], "line 1: `messages` is"),
        ([{"messages": [{"role": 1, "content": "x"}]}], r"`messages\[0\]` is"),
        ([turns(("user", "u"), ("assistant", " "))], r"`messages\[1\].content` is"),
        ([TALK, turns(("user", "u"))], "line 2: the last of `messages` is of the user"),
        ([turns(("tool", "t"), ("assistant", "a"))], "the chat template refuses these turns"),
    ],
)
def test_bad_rows_are_named(tmp_path, tokenizer, rows, message):
    tokenizer.chat_template = CHAT
    with pytest.raises(InputError, match=message):
        load_completions(write(tmp_path / "a.jsonl", rows), tokenizer)


def test_bad_sources(tmp_path, tokenizer):
    with pytest.raises(InputError, match="the tokenizer has no chat template"):
        load_completions(write(tmp_path / "a.jsonl", [TALK]), tokenizer)
    (tmp_path / "b.jsonl").write_text('{"prompt": "p", "completion": "c"}\n{"prompt"\n')
    with pytest.raises(InputError, match="line 2: not readable as JSON"):
        load_completions(tmp_path / "b.jsonl", tokenizer)
    (tmp_path / "c.parquet").write_text("no")
    with pytest.raises(InputError, match="not a readable Parquet file"):
        load_completions(tmp_path / "c.parquet", tokenizer)
    for name in ("d.jsonl", "d.parquet"):
        with pytest.raises(InputError, match="does not exist"):
            load_completions(tmp_path / name, tokenizer)
    with pytest.raises(InputError, match="neither a file"):
        load_completions(str(tmp_path / "d.yaml"), tokenizer)
    with pytest.raises(InputError, match="max_tokens is 1"):
        CompletionConfig(max_tokens=1)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(1, 99), max_size=6), min_size=1, max_size=8), st.data())
def test_padded_rows_hold_what_went_in(rows, data):
    sequences = Sequences.of(rows)
    picked = np.array(data.draw(st.lists(st.integers(-1, len(rows) - 1), min_size=1, max_size=6)))
    tokens, lengths = sequences.padded(picked, 6)
    marks = pad_flat(sequences.tokens > 50, sequences.starts, picked, 6)
    for row, line, length, mark in zip(picked, tokens, lengths, marks, strict=True):
        expected = rows[row] if row >= 0 else []
        assert line.tolist() == expected + [0] * (6 - len(expected))
        assert mark.tolist() == [token > 50 for token in line.tolist()]
        assert length == (len(expected) if row >= 0 else 1)
    with pytest.raises(ValueError, match="more than the width"):
        Sequences.of([[1, 2, 3]]).padded(np.array([0]), 2)


def test_prompt_and_completion_may_be_conversations(tmp_path, tokenizer):
    tokenizer.chat_template = CHAT
    user, answer = turns(("user", "hi"))["messages"], turns(("assistant", "ho"))["messages"]
    forms = [
        {"messages": [*user, *answer]},
        {"prompt": user, "completion": answer},
        {"prompt": user, "completion": "ho"},
        {"prompt": "hi", "completion": answer},
    ]
    for template in ("auto", "plain"):
        found = [
            load_completions(
                write(tmp_path / "a.jsonl", [form]), tokenizer, CompletionConfig(template=template)
            )
            for form in forms
        ]
        for other in found[1:]:
            np.testing.assert_array_equal(other.sequences.tokens, found[0].sequences.tokens)
            np.testing.assert_array_equal(other.learned, found[0].learned)
    with pytest.raises(InputError, match="line 1: the last of `completion` is of the user"):
        load_completions(
            write(tmp_path / "a.jsonl", [{"prompt": user, "completion": user}]), tokenizer
        )


def test_bad_rows_are_dropped_and_counted(tmp_path, tokenizer):
    rows = [GOOD, {"prompt": "p"}, GOOD, {"prompt": "p", "completion": 3}]
    path = write(tmp_path / "a.jsonl", rows)
    found = load_completions(path, tokenizer, CompletionConfig(on_bad_row="drop"))
    assert (len(found), found.dropped) == (2, 2)
    assert found.notes == (
        f"2 of 4 rows dropped: `completion` is missing (1, first: {path}, line 2); `completion` is "
        f"not text (1, first: {path}, line 4)",
    )
    with pytest.raises(InputError, match="2 of 3 rows are bad"):
        load_completions(write(path, rows[1:]), tokenizer, CompletionConfig(on_bad_row="drop"))
