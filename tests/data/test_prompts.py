"""Prompts from files and from the literature's data sets."""

import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxalign.data.messages import prompt_text
from jaxalign.data.prompts import (
    PromptConfig,
    Prompts,
    as_chats,
    filter_prompts,
    load_prompts,
    split_prompts,
)
from jaxalign.data.tables import read_rows
from jaxalign.errors import InputError

TALK = [{"role": "system", "content": "s"}, {"role": "user", "content": "one"},
        {"role": "assistant", "content": "A"}, {"role": "user", "content": "two"}]  # fmt: skip
HH = [
    {"chosen": "\n\nHuman: a?\n\nAssistant: b\n\nHuman: c\n\nAssistant: good",
     "rejected": "\n\nHuman: a?\n\nAssistant: b\n\nHuman: c\n\nAssistant: bad"},
    {"chosen": "\n\nHuman: d\n\nAssistant: x\n\ny", "rejected": "\n\nHuman: d\n\nAssistant: z"},
    {"chosen": "\n\nHuman: d\n\nAssistant: again", "rejected": "\n\nHuman: d\n\nAssistant: q"},
    {"chosen": "\n\nHuman: \n\nAssistant: nobody asked", "rejected": "-"},
]  # fmt: skip
POST = "My cat sits on\nmy keyboard. " * 5
FEEDBACK = [
    {"info": {"id": "1", "post": POST}, "summaries": [{"text": "s"}], "choice": 0},
    {"info": {"id": "1", "post": POST}, "summaries": [{"text": "t"}], "choice": 1},
    {"info": {"id": "2", "post": None, "article": "news"}, "summaries": [], "choice": 0},
    {"info": {"id": "3", "post": "short"}, "summaries": [], "choice": 0},
    {"info": {"id": "4", "post": "long " * 300}, "summaries": [], "choice": 0},
]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def refused(match, path, text=None):
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=match):
        load_prompts(path)


def test_lines_rows_and_parquet_give_the_same(tmp_path):
    rows = [{"prompt": "a b"}, {"prompt": "c"}, {"prompt": "a b"}, {"prompt": "d"}]
    (tmp_path / "p.txt").write_text("a b\n\nc\r\na b\nd\n", newline="")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    paths = [write(tmp_path / "p.jsonl", rows), tmp_path / "p.txt", tmp_path / "p.parquet"]
    for path in paths:
        found = load_prompts(path)
        assert (found.prompts, found.repeated) == (("a b", "c", "d"), 1)
        assert found.source == str(path)
    chat = as_chats(load_prompts(paths[0])).prompts
    assert chat[0] == ({"role": "user", "content": "a b"},)


def test_conversations_end_with_the_user(tmp_path):
    answered = [*TALK, {"role": "assistant", "content": "B"}]
    path = write(tmp_path / "p.jsonl", [{"messages": TALK}, {"messages": answered}])
    read = load_prompts(path)
    for found in (read, as_chats(read)):
        assert found.prompts == (tuple(TALK),)
        assert found.repeated == 1


def test_hh_rlhf_becomes_prompts_as_its_reward_models_read_them(tmp_path):
    path = write(tmp_path / "hh.jsonl", HH)
    found = load_prompts(path)
    first = "\n\nHuman: a?\n\nAssistant: b\n\nHuman: c \n\nAssistant:"
    assert found.prompts == (first, "\n\nHuman: d \n\nAssistant:")
    assert (found.repeated, found.dropped) == (1, 1)
    chat = as_chats(load_prompts(path)).prompts
    assert [(turn["role"], turn["content"]) for turn in chat[0]] == [
        ("user", "a?"), ("assistant", "b"), ("user", "c")
    ]  # fmt: skip
    assert prompt_text(chat[0]) == "a?\n\nb\n\nc"
    assert prompt_text(chat[1]) == "d"


def test_posts_to_summarise(tmp_path):
    found = load_prompts(write(tmp_path / "p.jsonl", FEEDBACK))
    (prompt,) = found.prompts
    assert prompt.startswith("### Instruction: Generate a one-sentence summary of this post. ")
    assert prompt.endswith("### Input: " + POST.replace("\n", " ") + " ### Response: ")
    assert (found.repeated, found.dropped) == (1, 3)


def test_a_data_set_by_name(monkeypatch):
    held = {"Anthropic/hh-rlhf": HH, "openai/summarize_from_feedback": FEEDBACK}
    asked = []

    def load_dataset(name, config=None, split=None):
        asked.append((name, config, split))
        return datasets.Dataset.from_list(held[name])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(load_prompts("Anthropic/hh-rlhf")) == 2
    assert len(load_prompts("openai/summarize_from_feedback/comparisons:validation")) == 1
    assert asked == [
        ("Anthropic/hh-rlhf", None, "train"),
        ("openai/summarize_from_feedback", "comparisons", "validation"),
    ]


def test_wrong_rows_are_named(tmp_path):
    path = tmp_path / "p.jsonl"
    refused("line 2: `prompt` is missing .*expected text", path, '{"prompt": "a"}\n{"x": 1}\n')
    refused("line 1: `prompt` is empty, expected text", path, '{"prompt": " "}\n')
    refused("line 1: `prompt` is 3", path, '{"prompt": 3}\n')
    refused("half of a surrogate", path, '{"prompt": "\\ud800"}\n')
    refused("line 1: found no column of prompts", path, '{"text": "a"}\n')
    refused("line 1: `messages` is 'a'", path, '{"messages": "a"}\n')
    refused("no turn of the user", path, '{"messages": [{"role": "system", "content": "a"}]}\n')
    refused(r"messages\[0\].content` is missing", path, '{"messages": [{"role": "user"}]}\n')
    refused("`chosen` has no `Assistant:`", path, '{"chosen": "a"}\n')
    refused("`info` is 'a'", path, '{"info": "a"}\n')
    refused("no row holds a usable prompt", path, '{"info": {"post": "short"}}\n')
    refused("is empty", tmp_path / "p.txt", "\n \n")
    refused("does not exist", tmp_path / "away.txt")
    (tmp_path / "p.txt").write_bytes(b"\xff\xfe\x00")
    refused("line 1: not UTF-8 text", tmp_path / "p.txt")


def many(count):
    return Prompts(tuple("x" * length for length in range(1, count + 1)), source="p.jsonl")


def test_prompts_that_fit():
    found = filter_prompts(many(9), len, 7, PromptConfig(min_tokens=3))
    assert [len(prompt) for prompt in found.prompts] == [3, 4, 5, 6, 7]
    assert found.dropped == 4
    some = filter_prompts(many(90), len, 70, PromptConfig(limit=10), seed=1)
    lengths = [len(prompt) for prompt in some.prompts]
    assert len(lengths) == 10
    assert lengths == sorted(lengths)
    assert max(lengths) <= 70
    assert some == filter_prompts(many(90), len, 70, PromptConfig(limit=10), seed=1)
    assert some.prompts != filter_prompts(many(90), len, 70, PromptConfig(limit=10), seed=2).prompts
    assert len(filter_prompts(many(9), len, 7, PromptConfig(limit=100))) == 7


def test_prompts_that_do_not_fit_are_told_their_lengths_and_the_setting():
    """Someone who reads 22 tokens has to learn that the model reads 70, and what limits them."""
    most = (
        r"p\.jsonl: found 9 prompts of 1 to 9 tokens as the model reads them, expected 10 to 12; "
    )
    with pytest.raises(InputError, match=f"{most}lower prompts.min_tokens"):
        filter_prompts(many(9), len, 12, PromptConfig(min_tokens=10))
    with pytest.raises(InputError, match=r"expected 8 to 7; raise moc\.p, or lower prompts\.min"):
        filter_prompts(many(9), len, 7, PromptConfig(min_tokens=8), remedy="raise moc.p")
    long = many(9).take([7, 8])
    with pytest.raises(InputError, match=r"found 2 prompts of 8 to 9 .* 1 to 7; raise moc\.p\."):
        filter_prompts(long, len, 7, remedy="raise moc.p")


def test_no_prompt_is_in_both_parts():
    train, held = split_prompts(many(200), 0.2, seed=3)
    assert (len(train), len(held)) == (160, 40)
    assert set(train.prompts) | set(held.prompts) == set(many(200).prompts)
    assert (train, held) == split_prompts(many(200), 0.2, seed=3)
    assert held.prompts != split_prompts(many(200), 0.2, seed=4)[1].prompts
    assert [len(part) for part in split_prompts(many(2), 0.01)] == [1, 1]
    assert [len(part) for part in split_prompts(many(2), 0.99)] == [1, 1]
    assert [len(part) for part in split_prompts(many(2), 0)] == [2, 0]
    with pytest.raises(InputError, match="has one prompt"):
        split_prompts(many(1), 0.5)


def test_rewards_read_one_text_of_a_prompt_in_every_command(tmp_path):
    said = ["as it is", TALK[1:2], TALK[:2], TALK]
    path = write(tmp_path / "p.jsonl", [{"prompt": prompt} for prompt in said])
    scored = [row.conversation("prompt", "user") for row in read_rows(path, "prompt")]
    drawn = [prompt_text(prompt) for prompt in as_chats(load_prompts(path)).prompts]
    assert scored == drawn == ["as it is", "one", "s\n\none", "s\n\none\n\nA\n\ntwo"]
    assert drawn[-1].messages == tuple(TALK)  # for the chat template of a classifier


@pytest.mark.parametrize(
    "settings", [{"min_tokens": 0}, {"hold_out_share": 1}, {"hold_out_share": -0.1}, {"limit": 0}]
)
def test_wrong_settings_are_refused(settings):
    with pytest.raises(InputError, match="expected at least 1"):
        PromptConfig(**settings)
