"""Each format of feedback: what its rows become, and what is refused."""

import gzip
import json
import math

import pytest
from webui_feedback import webui

from jaxalign.cli import main
from jaxalign.data import load
from jaxalign.data.importers import ImportOptions, formats, import_feedback
from jaxalign.data.importers.registry import seconds
from jaxalign.errors import InputError


def ask(text):
    return {"role": "user", "content": text}


def tell(text):
    return {"role": "assistant", "content": text}


PROMPT = [{"role": "system", "content": "Be brief."}, ask("Hi")]
BASE = {"user": "u1", "prompt": PROMPT, "time": 1700000000.0, "group": "c1"}
UP = {**BASE, "source": "f1", "answer": "Hello.", "rating": 1.0, "scale": [-1, 1]}
PAIR = {**BASE, "source": "f1", "chosen": "Hello.", "rejected": "What?"}

CHAT = {
    "id": "c9", "user_id": "u2", "title": "A chat",
    "chat": {"history": {"messages": {
        "q": {"id": "q", "parentId": None, "role": "user", "content": "Hi"},
        "a": {"id": "a", "parentId": "q", "role": "assistant", "content": "No.", "childrenIds": []},
        "b": {"id": "b", "parentId": "q", "role": "assistant", "content": "Hello!",
              "childrenIds": ["q2"], "timestamp": 1700000001},
        "q2": {"id": "q2", "parentId": "b", "role": "user", "content": "Thanks"},
    }}},
}  # fmt: skip

SCORE = {"id": "s1", "traceId": "t1", "name": "useful", "dataType": "BOOLEAN", "value": 1,
         "timestamp": "2025-01-02T03:04:05Z"}  # fmt: skip
TRACE = {"id": "t1", "userId": "u3", "sessionId": "c3", "input": {"messages": [ask("Hi")]},
         "output": {"role": "assistant", "content": "Hello!"}}  # fmt: skip

LABEL_STUDIO = {
    "id": 4, "data": {"prompt": "Hi", "answer1": "Hello!", "answer2": "What?"},
    "annotations": [
        {"completed_by": 7, "was_cancelled": False, "created_at": "2025-01-02T03:04:05Z",
         "result": [{"type": "pairwise", "to_name": "txt-1,txt-2",
          "value": {"selected": "right"}}]},
        {"completed_by": {"id": 8, "email": "ann@example.org"}, "was_cancelled": True,
         "result": []},
    ],
}  # fmt: skip

ARGILLA = {
    "id": "r1", "prompt": "Hi", "a": "Hello!", "b": "What?", "c": "Hey",
    "best.responses": [["a", "c", "b"]], "best.responses.users": ["u4"],
    "best.responses.status": ["submitted"],
}  # fmt: skip
ARGILLA_RATING = {
    "id": "r2", "instruction": "Hi", "response": "Hello!", "quality.responses": [4, 2],
    "quality.responses.users": ["u4", "u5"], "quality.responses.status": ["submitted", "draft"],
}  # fmt: skip

BATTLE = {
    "question_id": "b1", "model_a": "x", "model_b": "y", "winner": "model_b",
     "judge": "arena_user_1",
    "conversation_a": [ask("Hi"), tell("What?")], "conversation_b": [ask("Hi"), tell("Hello!")],
    "turn": 1, "tstamp": 1682351591.2,
}  # fmt: skip
VOTE = {
    "tstamp": 1682351591.2, "type": "bothbad_vote", "models": ["x", "y"], "ip": "10.0.0.1",
    "states": [
        {"roles": ["USER", "ASSISTANT"], "offset": 0, "messages": [["USER", "Hi"], ["ASSISTANT",
         text]]}
        for text in ("What?", "Hello!")
    ],
}  # fmt: skip

TURN = {"first_turn_prompt": "Hi", "first_turn_preferred_response": "response_b",
        "first_turn_response_a": "What?", "first_turn_response_b": "Hello!",
        "first_turn_response_c": "Hey", "first_turn_response_d": None}  # fmt: skip
SECOND = {"second_turn_prompt": "Bye", "second_turn_preferred_response": "response_a",
          "second_turn_response_a": "See you.", "second_turn_response_b": "No."}  # fmt: skip

AT = {"user": "u4", "prompt": "Hi", "source": "r1"}
CASES = {
    "open-webui": (
        [webui("f1", 1, "a"), webui("f2", -1, "b")], [PAIR],
    ),
    "open-webui alone": (
        [webui("f1", 1, "a"), webui("f2", -1, "b", user="u2"), webui("f3", 1, "b")],
        [UP, {**UP, "source": "f3", "answer": "What?"},
         {**UP, "user": "u2", "source": "f2", "answer": "What?", "rating": -1.0}],
    ),
    "open-webui grade": (
        [webui("f1", 1, "a", details=8)], [{**UP, "rating": 8.0, "scale": [1, 10]}]
    ),
    "open-webui arena": (
        [webui("f1", -1, "a", arena=True)], [{**PAIR, "chosen": "What?", "rejected": "Hello."}]
    ),
    "open-webui-chats": (
        [CHAT],
        [{"user": "u2", "prompt": "Hi", "time": 1700000001.0, "group": "c9", "chosen": "Hello!",
          "rejected": "No.", "implicit": True}],
    ),
    "langfuse": (
        [TRACE, SCORE, {**SCORE, "id": "s2", "authorUserId": "boss", "value": 0}],
        [{"user": user, "prompt": "Hi", "time": "2025-01-02T03:04:05Z", "group": "c3",
          "source": source, "answer": "Hello!", "rating": rating, "scale": [0.0, 1.0]}
         for user, source, rating in (("u3", "s1", 1.0), ("boss", "s2", 0.0))],
    ),
    "label-studio": (
        [LABEL_STUDIO],
        [{"user": "7", "prompt": "Hi", "time": "2025-01-02T03:04:05Z", "source": "4",
          "chosen": "What?", "rejected": "Hello!"}],
    ),
    "argilla": (
        [ARGILLA],
        [{**AT, "chosen": "Hello!", "rejected": "Hey"}, {**AT, "chosen": "Hello!",
         "rejected": "What?"},
         {**AT, "chosen": "Hey", "rejected": "What?"}],
    ),
    "argilla rating": (
        [ARGILLA_RATING],
        [{**AT, "source": "r2", "answer": "Hello!", "rating": 4.0, "scale": [1.0, 5.0]}],
    ),
    "arena": (
        [BATTLE, {**BATTLE, "winner": "tie (bothbad)"}],
        [{"user": "arena_user_1", "prompt": "Hi", "time": 1682351591.2, "source": "b1",
          "chosen": "Hello!", "rejected": "What?"},
         {"user": "arena_user_1", "prompt": "Hi", "time": 1682351591.2, "source": "b1",
          "chosen": "What?", "rejected": "Hello!", "tie": True}],
    ),
    "fastchat": (
        [VOTE, {**VOTE, "type": "leftvote"}],
        [{"user": "10.0.0.1", "prompt": "Hi", "time": 1682351591.2, "chosen": "What?",
          "rejected": "Hello!", **tie} for tie in ({"tie": True}, {})],
    ),
    "openai": (
        [{"input": {"messages": PROMPT}, "preferred_output": [tell("Hello!")],
          "non_preferred_output": [tell("What?")]}],
        [{"user": "me", "prompt": PROMPT, "chosen": "Hello!", "rejected": "What?"}],
    ),
    "helpsteer3": (
        [{"context": [ask("Hi")], "response1": "What?", "response2": "Hello!",
          "overall_preference": score, "individual_preference": []} for score in (2, -1, 0)],
        [{"user": "me", "prompt": "Hi", "chosen": "Hello!", "rejected": "What?", "strength": 2.0},
         {"user": "me", "prompt": "Hi", "chosen": "What?", "rejected": "Hello!", "strength": 1.0},
         {"user": "me", "prompt": "Hi", "chosen": "What?", "rejected": "Hello!", "tie": True}],
    ),
    "community-alignment": (
        [{"conversation_id": 5, "annotator_id": 6, **TURN, **SECOND}],
        [{"user": "6", "group": "5", "prompt": "Hi", "chosen": "Hello!", "rejected": "What?"},
         {"user": "6", "group": "5", "prompt": "Hi", "chosen": "Hello!", "rejected": "Hey"},
         {"user": "6", "group": "5", "prompt": [ask("Hi"), tell("Hello!"), ask("Bye")],
          "chosen": "See you.", "rejected": "No."}],
    ),
    "hh-rlhf": (
        [{"chosen": "\n\nHuman: Hi\n\nAssistant: Hello!",
         "rejected": "\n\nHuman: Hi\n\nAssistant: Hm."}],
        [{"user": "me", "prompt": "Hi", "chosen": "Hello!", "rejected": "Hm."}],
    ),
    "jaxalign": (
        [{"user": 7, "prompt": [ask("Hi")], "chosen": "Hello!", "rejected": "What?", "tie": True,
          "group": 3, "time": "2025-01-02T03:04:05Z", "source": "b1"},
         {"user": "7", "chosen": "Hello!", "rejected": "What?", "strength": 2, "implicit": False,
          "weight": 0.5},
         UP],
        [{"user": "7", "prompt": "Hi", "time": "2025-01-02T03:04:05Z", "group": "3",
          "source": "b1", "chosen": "Hello!", "rejected": "What?", "tie": True},
         {"user": "7", "chosen": "Hello!", "rejected": "What?", "strength": 2.0,
          "implicit": False, "weight": 0.5}, UP],
    ),
    "trl": (
        [{"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"},
         {"chosen": [ask("Hi"), tell("Hello!")], "rejected": [ask("Hi"), tell("What?")]},
         {"prompt": [ask("Hi")], "chosen": [tell("Hello!")], "rejected": [tell("What?")]},
         {"prompt": "Hi", "chosen": [ask("Hi"), tell("Hello!")], "rejected": [ask("Hi"),
          tell("What?")]}],
        [{"user": "me", "prompt": "Hi", "chosen": "Hello!", "rejected": "What?"}] * 4,
    ),
    "trl unpaired": (
        [{"prompt": "Hi", "completion": "What?", "label": False}],
        [{"user": "me", "prompt": "Hi", "answer": "What?", "rating": -1.0, "scale": [-1, 1]}],
    ),
}  # fmt: skip
OPTIONS = {
    **{name: {"user": "me"} for name in ("openai", "helpsteer3", "hh-rlhf", "trl", "trl unpaired")},
    "argilla rating": {"scale": (1.0, 5.0)},
}


def imported(folder, rows, options=None, name="auto", **keywords):
    source, out = folder / "in.jsonl", folder / "out.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = import_feedback([source], out, name, ImportOptions(**(options or {})), **keywords)
    return summary, [json.loads(line) for line in out.read_text().splitlines()]


@pytest.mark.parametrize("case", CASES)
def test_rows_of_a_format_become_choices_and_ratings(case, tmp_path):
    rows, expected = CASES[case]
    summary, found = imported(tmp_path, rows, OPTIONS.get(case))
    assert summary.format == case.split()[0]
    assert found == expected
    assert summary.rows == len(rows)
    assert summary.choices + summary.ratings == len(expected)


def test_every_format_has_a_case():
    assert {one.name for one in formats()} == {name.split()[0] for name in CASES}


@pytest.mark.parametrize("case", CASES)
def test_an_array_with_a_mark_and_compressed_reads_alike(case, tmp_path):
    rows, expected = CASES[case]
    source, out = tmp_path / "in.json.gz", tmp_path / "out.jsonl"
    source.write_bytes(gzip.compress(b"\xef\xbb\xbf" + json.dumps(rows, indent=1).encode()))
    import_feedback([source], out, options=ImportOptions(**OPTIONS.get(case, {})))
    assert [json.loads(line) for line in out.read_text().splitlines()] == expected


@pytest.mark.parametrize("case", CASES)
def test_what_was_imported_is_imported_again_unchanged_and_read_by_training(case, tmp_path):
    rows, expected = CASES[case]
    imported(tmp_path, rows, OPTIONS.get(case))
    again = tmp_path / "again.jsonl"
    import_feedback([tmp_path / "out.jsonl"], again, "jaxalign")
    assert [json.loads(line) for line in again.read_text().splitlines()] == expected
    table = load(again, ratings=True)
    assert len(table) == len(expected)
    assert table.rating.tolist() == ["rating" in row for row in expected]


def changed(row, **fields):
    return {**row, **fields}


MALFORMED = {
    "null": (
        [{"user": "u", "prompt": "Hi", "chosen": None, "rejected": "b"}], {},
        "`chosen` is missing",
    ),
    "tie": (
        [{"user": "u", "chosen": "a", "rejected": "b", "tie": "yes"}], {},
        "`tie` is 'yes'.*expected true or false",
    ),
    "scale": (
        [{"user": "u", "answer": "a", "rating": 1, "scale": [1]}], {},
        r"`scale` is \[1\], expected \[lowest, highest\] rating",
    ),
    "thumb": ([webui("f1", 5, "a")], {}, "line 1: `data.rating` is 5, expected -1 or 1"),
    "side": (
        [changed(LABEL_STUDIO, annotations=[{"completed_by": 1, "result": [
            {"type": "pairwise", "value": {"selected": "middle"}}]}])],
        {}, "value.selected` is 'middle'.*expected left or right",
    ),
    "winner": ([changed(BATTLE, winner="x")], {}, "`winner` is 'x'.*expected one of model_a"),
    "session": (
        [changed(BATTLE, judge=None, evaluation_session_id="e")], {},
        "`evaluation_session_id` stands for a session, not a person.*--user-column",
    ),
    "score": (
        [{"context": [ask("Hi")], "response1": "a", "response2": "b", "overall_preference": 9}],
        {"user": "me"}, "`overall_preference` is 9, expected a whole number from -3 to 3",
    ),
    "no user": ([{"prompt": "Hi", "chosen": "a", "rejected": "b"}], {},
     "nothing says whose.*--user"),
    "no scale": ([ARGILLA_RATING], {}, "the rating 4 has no scale.*--scale LOW HIGH"),
    "off the scale": ([ARGILLA_RATING], {"scale": (0, 3)}, "the rating is 4, expected 0 to 3"),
    "response": (
        [{"conversation_id": 5, "annotator_id": 6, **TURN, "first_turn_preferred_response": "b"}],
        {}, "preferred_response` is 'b'.*expected one of response_a to response_d",
    ),
    "transcript": (
        [{"chosen": "\n\nHuman: Hi", "rejected": "\n\nHuman: Ho"}], {"user": "me"},
        "share no beginning up to an assistant's turn",
    ),
    "image": (
        [{"chosen": [ask([{"type": "image_url", "image_url": "x"}])], "rejected": [tell("a")]}],
        {"user": "me"}, "a part of type 'image_url', expected parts of text only",
    ),
    "surrogate": (
        [{"prompt": "\ud83d", "chosen": "a", "rejected": "b"}], {"user": "me"},
         "half of a surrogate",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_row_is_refused_with_its_line(case, tmp_path):
    rows, options, message = MALFORMED[case]
    with pytest.raises(InputError, match=message) as caught:
        imported(tmp_path, rows, options)
    assert "in.jsonl, line 1" in str(caught.value)
    assert not (tmp_path / "out.jsonl").exists()


def test_bad_rows_can_be_dropped_and_counted(tmp_path):
    rows = [*MALFORMED["surrogate"][0], CASES["trl"][0][0], *MALFORMED["image"][0]]
    summary, found = imported(tmp_path, rows, {"user": "me"}, on_bad_row="drop")
    assert found == CASES["trl"][1][:1]
    assert summary.skipped == {
        "`prompt` holds half of a surrogate pair": (1, f"{tmp_path}/in.jsonl, line 1"),
        "a content part is no text": (1, f"{tmp_path}/in.jsonl, line 3"),
    }


def test_a_first_row_that_cannot_be_read_can_be_dropped(tmp_path):
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("{\n" + json.dumps(BATTLE))
    with pytest.raises(InputError, match="line 1: not readable as JSON"):
        import_feedback([source], out)
    summary = import_feedback([source], out, on_bad_row="drop")
    assert (summary.format, summary.rows, summary.choices) == ("arena", 2, 1)
    assert [count for count, _ in summary.skipped.values()] == [1]


def test_a_conversation_that_goes_on_from_the_other_keeps_an_answer_on_both_sides(tmp_path):
    short = [ask("Hi"), tell("Hello!")]
    row = {"chosen": short, "rejected": [*short, ask("Why?"), tell("Hm.")]}
    _, found = imported(tmp_path, [row], {"user": "me"})
    rest = [tell("Hello!"), ask("Why?"), tell("Hm.")]
    assert found == [{"user": "me", "prompt": "Hi", "chosen": "Hello!", "rejected": rest}]


def test_what_is_left_out_is_counted_by_reason(tmp_path):
    summary, found = imported(tmp_path, [*CASES["fastchat"][0], {**VOTE, "type": "chat"}])
    assert len(found) == 2
    assert summary.skipped == {
        "a line of type 'chat' is no vote": (1, f"{tmp_path}/in.jsonl, line 3")
    }
    assert summary.lines()[1].startswith("skipped 1: a line of type 'chat' is no vote (first: ")


def test_a_file_of_which_nothing_remains_is_refused(tmp_path):
    with pytest.raises(InputError, match="none of the 1 rows of label-studio says anything"):
        imported(tmp_path, [changed(LABEL_STUDIO, annotations=LABEL_STUDIO["annotations"][1:])])
    assert not (tmp_path / "out.jsonl").exists()


def test_a_file_of_another_format_is_named(tmp_path):
    with pytest.raises(InputError, match="expected helpsteer3; the file looks like arena"):
        imported(tmp_path, [BATTLE], name="helpsteer3")
    with pytest.raises(
        InputError, match="found the fields `a`, which are those of no known format"
    ):
        imported(tmp_path, [{"a": 1}])
    with pytest.raises(InputError, match="format 'csv' is unknown, expected auto or arena"):
        imported(tmp_path, [BATTLE], name="csv")


def test_scores_and_traces_may_be_two_files(tmp_path):
    for name, row in (("scores", SCORE), ("traces", TRACE)):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row))
    paths = [tmp_path / "scores.jsonl", tmp_path / "traces.jsonl"]
    assert import_feedback(paths, tmp_path / "out.jsonl").ratings == 1


def test_pseudonyms_depend_on_the_secret_alone(tmp_path):
    rows, secret = CASES["arena"][0], tmp_path / "secret"
    first = imported(tmp_path, rows, salt=secret)[1]
    again = imported(tmp_path, rows, salt=secret)[1]
    other = imported(tmp_path, rows, salt=tmp_path / "other")[1]
    assert first == again
    assert first[0]["user"] == first[1]["user"] != other[0]["user"]
    assert len(first[0]["user"]) == 16
    assert "arena_user_1" not in json.dumps(first)
    assert secret.stat().st_mode & 0o077 == 0
    with pytest.raises(InputError, match="expected a person"):
        imported(tmp_path, [changed(BATTLE, judge=None)], salt=tmp_path / "unused")
    assert not (tmp_path / "unused").exists()
    (tmp_path / "short").write_text("pw")
    with pytest.raises(InputError, match="found 2 characters, expected a secret of 16 or more"):
        imported(tmp_path, rows, salt=tmp_path / "short")


def test_the_command_says_what_it_did(tmp_path, capsys):
    source, out = tmp_path / "in.jsonl", tmp_path / "new" / "out.jsonl"
    source.write_text(json.dumps(BATTLE))
    assert main(["import", "auto", str(source), "--out", str(out)]) == 0
    assert "arena: 1 row read; 1 choice and 0 ratings of 1 user" in capsys.readouterr().out
    assert json.loads(out.read_text())["chosen"] == "Hello!"
    assert main(["import", "arena", str(source), "--out", str(source)]) == 2
    assert main(["import", "auto", str(tmp_path / "none.jsonl"), "--out", str(out)]) == 2
    with pytest.raises(SystemExit):
        main(["import", "--formats"])
    assert "open-webui-chats     open-webui chat export" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["auto", "trl"])
def test_a_tie_stays_a_tie_in_every_format_of_the_file(name, tmp_path):
    one, two, out = tmp_path / "one.csv", tmp_path / "two.jsonl", tmp_path / "out.jsonl"
    one.write_text("user,prompt,chosen,rejected,tie\n7,Hi,Hello!,What?,TRUE\n7,Hi,Hm.,What?,\n")
    row = {"user": 7, "prompt": [ask("Hi")], "chosen": [tell("Hello!")], "rejected": [tell("Hm.")]}
    two.write_text(json.dumps(row | {"tie": True}) + "\n")
    import_feedback([one, two], out, name)
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row.get("tie", False) for row in found] == [True, False, True]


def test_a_rating_of_a_file_of_choices_without_a_scale_asks_for_one(tmp_path):
    rows = [{"user": "u", "answer": "a", "rating": 4}]
    with pytest.raises(InputError, match=r"has no scale.*--scale LOW HIGH"):
        imported(tmp_path, rows)
    _, found = imported(tmp_path, rows, {"scale": (1.0, 5.0)})
    assert found == [{"user": "u", "answer": "a", "rating": 4.0, "scale": [1.0, 5.0]}]


def test_a_scale_that_a_row_states_stays_beside_one_that_is_given(tmp_path):
    rows = [
        {"user": "u", "answer": "a", "rating": 9, "scale": [1, 10]},
        {"user": "u", "answer": "b", "rating": 4},
    ]
    _, found = imported(tmp_path, rows, {"scale": (1.0, 5.0)})
    assert [row["scale"] for row in found] == [[1.0, 10.0], [1.0, 5.0]]
    numbers = {**SCORE, "id": "s2", "dataType": "NUMERIC", "value": 4}
    _, found = imported(tmp_path, [TRACE, SCORE, numbers], {"scale": (1.0, 5.0)})
    assert [row["scale"] for row in found] == [[0.0, 1.0], [1.0, 5.0]]
    with pytest.raises(InputError, match=r"the rating is 11, expected 1 to 10; correct the row\.$"):
        imported(tmp_path, [{**rows[0], "rating": 11}], {"scale": (0.0, 20.0)})


def same_answers(case):
    """The first row of a format with the second answer in place of the first."""
    text = json.dumps(CASES[case][0][0])
    return json.loads(text.replace("Hello!", "What?").replace("Hm.", "What?"))


CHOICE_FORMATS = [
    "label-studio", "argilla", "arena", "fastchat", "openai", "helpsteer3", "community-alignment",
    "hh-rlhf", "jaxalign", "trl",
]  # fmt: skip


@pytest.mark.parametrize("case", CHOICE_FORMATS)
def test_equal_answers_are_left_out_and_what_is_written_can_be_trained_on(case, tmp_path):
    rows, options = [same_answers(case), CASES[case][0][0]], OPTIONS.get(case)
    summary, found = imported(tmp_path, rows, options)
    assert all(row["chosen"] != row["rejected"] for row in found)
    # A turn of community-alignment has other answers, which are compared all the same.
    assert ("both answers are the same" in summary.skipped) == (case != "community-alignment")
    assert len(load(tmp_path / "out.jsonl")) == len(found)


@pytest.mark.parametrize("on_bad_row", ["refuse", "drop"])
def test_an_empty_answer_of_a_transcript_is_a_bad_row(on_bad_row, tmp_path):
    good = CASES["hh-rlhf"][0][0]
    rows = [good, {**good, "rejected": "\n\nHuman: Hi\n\nAssistant: "}]
    options, reason = {"user": "me"}, "`rejected` is empty"
    if on_bad_row == "refuse":
        with pytest.raises(InputError, match=f"in.jsonl, line 2: {reason}"):
            imported(tmp_path, rows, options)
        return
    summary, found = imported(tmp_path, rows, options, on_bad_row="drop")
    assert (len(found), summary.skipped[reason][0]) == (1, 1)


def test_an_empty_answer_beside_the_rated_one_is_a_bad_row(tmp_path):
    rows = [webui("f1", 1, "a", arena=True)]
    messages = rows[0]["snapshot"]["chat"]["chat"]["history"]["messages"]
    for node in messages.values():
        if node["role"] == "assistant" and node["content"] != "Hello.":
            node["content"] = " "
    with pytest.raises(InputError, match="`rejected` is empty"):
        imported(tmp_path, rows)


def test_a_file_of_ratings_in_csv_is_read_as_training_reads_it(tmp_path):
    rows, out = tmp_path / "rows.csv", tmp_path / "out.jsonl"
    rows.write_text(
        "user,answer,rating,scale,chosen,rejected\n"
        'u,a,4,"[1, 5]",,\n'
        "u,,3,,b,c\n"
    )  # fmt: skip
    import_feedback([rows], out)
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert found == [
        {"user": "u", "answer": "a", "rating": 4.0, "scale": [1.0, 5.0]},
        {"user": "u", "chosen": "b", "rejected": "c"},
    ]
    assert load(rows, ratings=True).rating.tolist() == [True, False]


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 0, 10**400, None, True])
def test_what_is_no_time_is_left_out(value):
    assert seconds(value) is None
