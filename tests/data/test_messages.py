"""Rows in the conversational form of TRL and the Hub: as data, and as language models read them."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxalign import data
from jaxalign.data import Conversation
from jaxalign.data.messages import as_messages, as_text, check_messages
from jaxalign.data.prompts import load_prompts
from jaxalign.errors import InputError


def said(*turns):
    """Turns of the user and the assistant, by turns; a pair names its role."""
    names = ("user", "assistant") * len(turns)
    pairs = [t if isinstance(t, tuple) else (names[i], t) for i, t in enumerate(turns)]
    return [{"role": role, "content": content} for role, content in pairs]


def write(path, rows):
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


ANSWERS = [("assistant", "a")], [("assistant", "b")]
FORMS = {
    "plain": {"prompt": "q", "chosen": "a", "rejected": "b"},
    "implicit": {"chosen": said("q", "a"), "rejected": said("q", "b")},
    "explicit": {"prompt": said("q"), "chosen": said(*ANSWERS[0]), "rejected": said(*ANSWERS[1])},
    "prompt as text": {"prompt": "q", "chosen": said("q", "a"), "rejected": said("q", "b")},
    "answers as text": {"prompt": said("q"), "chosen": "a", "rejected": "b"},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_every_form_of_a_choice_is_the_same_choice(tmp_path, form, ending):
    table = data.load(write(tmp_path / f"a.{ending}", [{"user": "u"} | FORMS[form]]))
    assert (table.items, table.texts) == (("a", "b"), ("q\n\na", "q\n\nb"))
    assert [text.turns for text in table.texts] == [("q", "a"), ("q", "b")]
    assert table.prompt.tolist() == [0]


def test_the_shared_beginning_is_the_prompt_and_keeps_its_turns(tmp_path):
    before = said(("system", "be kind"), ("user", "q"), ("assistant", "w"), ("user", "r"))
    end = said(("assistant", "b"), ("user", "s"), ("assistant", "c"))
    row = {"user": 1, "chosen": before + said(("assistant", "a")), "rejected": before + end}
    table = data.load(write(tmp_path / "a.jsonl", [row, row]))
    assert table.items == ("a", "b\n\ns\n\nc")
    assert [*table.texts[1].messages] == before + end
    assert table.texts[0] == "be kind\n\nq\n\nw\n\nr\n\na"
    np.testing.assert_array_equal(table.prompt, [0, 0])


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"chosen": said("q", "a"), "rejected": said("r", "b")}, "`chosen` goes on with a turn of"),
        ({"chosen": said("q", " "), "rejected": said("q", "b")}, r"`chosen\[1\].content` is empty"),
        ({"chosen": said("q", None), "rejected": "b"}, r"`chosen\[1\].content` is missing"),
        ({"chosen": [{"content": "a"}], "rejected": "b"}, r"`chosen\[0\]` is {'content': 'a'}"),
        (
            {"chosen": said("q", "a"), "rejected": said("q", "a")},
            "`chosen` and `rejected` are the same text",
        ),
        ({"chosen": [], "rejected": "b"}, r"`chosen` is \[\] \(list\), expected text"),
    ],
)
def test_a_bad_conversation_is_named(tmp_path, row, fault):
    good = {"user": "u", "chosen": said("q", "a"), "rejected": said("q", "b")}
    with pytest.raises(InputError, match=f"a.jsonl, line 2: {fault}"):
        data.load(write(tmp_path / "a.jsonl", [good, {"user": "u"} | row]))


def test_parts_of_text_are_joined_and_images_are_refused():
    parts = [{"type": "text", "text": "a "}, "b", {"text": "c"}]
    (turn,) = check_messages([{"role": "user", "content": parts}], "messages", "here")
    assert turn == {"role": "user", "content": "a bc"}
    thought = {"role": "assistant", "content": "a", "reasoning_content": "why", "name": "x"}
    (turn,) = check_messages([thought], "messages", "here")
    assert turn == {"role": "assistant", "content": "a", "reasoning_content": "why"}
    for part in ({"type": "image"}, {"type": "image_url", "image_url": {"url": "x"}}):
        with pytest.raises(InputError, match=r"here: `messages\[0\].content` has a part of type"):
            check_messages([{"role": "user", "content": [part]}], "messages", "here")
    for part in (3, {"type": "text"}, {"type": "text", "text": None}):
        with pytest.raises(InputError, match="expected parts of text only"):
            check_messages([{"role": "user", "content": [part]}], "messages", "here")


def test_text_and_messages_are_one_value():
    turns = said("q", "a", "r")
    assert as_text(said("q"), "user") == "q"
    assert not isinstance(as_text(said("q"), "user"), Conversation)
    assert as_text(said("q"), "assistant").messages == tuple(said("q"))
    assert as_text(turns, "user").messages == tuple(turns)
    assert as_messages("q", "user") == tuple(said("q"))
    assert as_messages(Conversation(("q", "a")), "user") == tuple(said("q", "a"))


def test_prompts_of_every_form_are_the_same_prompts(tmp_path):
    talk = said("q", "a", "r")
    for number, row in enumerate(
        ({"prompt": talk}, {"messages": talk}, {"messages": talk + said("x", "b")[1:]})
    ):
        (found,) = load_prompts(write(tmp_path / f"{number}.jsonl", [row])).prompts
        assert [*found] == talk
    pair = {"chosen": [*talk, *said("x", "b")[1:]], "rejected": [*talk, *said("x", "c")[1:]]}
    assert [*load_prompts(write(tmp_path / "c.jsonl", [pair])).prompts[0]] == talk
    assert load_prompts(write(tmp_path / "p.jsonl", [{"prompt": said("q")}])).prompts == (
        ({"role": "user", "content": "q"},),
    )


def test_rewards_need_no_user(tmp_path):
    from jaxalign.rewards.bradley_terry import load_choices

    rows = [FORMS["implicit"], FORMS["explicit"] | {"rejected": said(("assistant", "c"))}]
    choices = load_choices(write(tmp_path / "a.jsonl", rows)).preferences
    assert (choices.users, choices.items) == (("anyone",), ("a", "b", "c"))
    with pytest.raises(InputError, match=r"has no column `user`.*import --user-column COLUMN"):
        data.load(tmp_path / "a.jsonl")
