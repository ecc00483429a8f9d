"""Rows of real exports that are not like the others: what is left out, counted once, or refused."""

import json

import pytest
from webui_feedback import webui

from jaxalign.data import load
from jaxalign.data.importers import ImportOptions, import_feedback
from jaxalign.errors import InputError

TRACE = {"id": "t1", "userId": "ann", "sessionId": "c1", "input": "Hi", "output": "Hello!"}
SCORE = {"id": "s1", "traceId": "t1", "name": "useful", "dataType": "NUMERIC", "value": 0.5}
ARGILLA = {
    "id": "r1", "prompt": "Hi", "a": "Hello!", "b": "What?", "best.responses": [["a", "b"]],
    "best.responses.users": ["u1"], "best.responses.status": ["submitted"],
}  # fmt: skip


def imported(folder, rows, on_bad_row="refuse", **options):
    source, out = folder / "in.jsonl", folder / "out.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ImportOptions(**options)
    summary = import_feedback([source], out, "auto", options, on_bad_row=on_bad_row)
    load(out, ratings=True)  # whatever is written can be trained on
    return {why: count for why, (count, _) in summary.skipped.items()}, [
        json.loads(line) for line in out.read_text().splitlines()
    ]


TURNS = [{"role": "user", "content": "Hi"}]
STATE = {"offset": 0, "roles": ["u", "a"], "messages": [["u", "Hi"]]}
VOTE = {
    "type": "leftvote", "ip": "1", "tstamp": 1,
    "states": [{**STATE, "messages": [["u", "Hi"], ["a", answer]]} for answer in ("Yes.", "No.")],
}  # fmt: skip
TASK = {
    "id": 1, "data": {"prompt": "Hi", "answer1": "Yes.", "answer2": "No."},
    "annotations": [
        {"completed_by": 7, "result": [{"type": "pairwise", "value": {"selected": "left"}}]}
    ],
}  # fmt: skip
PAIR = {
    "input": {"messages": TURNS},
    "preferred_output": [{"role": "assistant", "content": "Yes."}],
    "non_preferred_output": [{"role": "assistant", "content": "No."}],
}
BAD = {
    "a rating between thumbs": (
        [TRACE, {**SCORE, "value": 1}, SCORE], {"scale": (-1.0, 1.0)}, "expected -1 or 1",
    ),
    "no strength": (
        [{"user": "u", "chosen": "a", "rejected": "b"},
         {"user": "u", "chosen": "a", "rejected": "b", "strength": 0}], {}, "strength",
    ),
    "an empty turn": (
        [{"chosen": f"\n\nHuman: Hi{asked}\n\nAssistant: a",
          "rejected": f"\n\nHuman: Hi{asked}\n\nAssistant: b"}
         for asked in ("", "\n\nAssistant: \n\nHuman: Well?")], {"user": "me"}, "is empty",
    ),
    "no choice": ([{"user": "u", "chosen": "a", "rejected": "b"}, {"user": "u"}], {}, "chosen"),
    "no vote": ([VOTE, {"ip": "2"}], {}, "`type` is missing"),
    "no states": ([VOTE, {"type": "leftvote", "ip": "1"}], {}, "`states` is missing"),
    "no data": ([webui("f1", 1, "a"), {"user_id": "u"}], {}, "`data` is missing"),
    "no annotations": ([TASK, {"id": 3}], {}, "`annotations` is missing"),
    "no input": ([PAIR, {"foo": 1}], {"user": "me"}, "`input` is missing"),
    "a scale without end": (
        [{"user": "u", "answer": "a", "rating": 1, "scale": [0, 1]},
         {"user": "u", "answer": "b", "rating": 0.5, "scale": [-1e308, 1e308]}], {}, "`scale` is",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_training_does_not_read_is_a_bad_row(case, tmp_path):
    rows, options, why = BAD[case]
    with pytest.raises(InputError, match=why):
        imported(tmp_path, rows, **options)
    skipped, found = imported(tmp_path, rows, "drop", **options)
    assert (sum(skipped.values()), len(found)) == (1, 1)


def test_a_turn_that_failed_is_no_part_of_the_prompt(tmp_path):
    row = webui("f1", 1, "a")
    messages = row["snapshot"]["chat"]["chat"]["history"]["messages"]
    messages["s"] |= {"role": "assistant", "content": ""}
    _, found = imported(tmp_path, [row])
    assert [one["prompt"] for one in found] == ["Hi"]


@pytest.mark.parametrize(
    ("ratings", "expected"),
    [((1, -1), ("Hello.", "What?", None)), ((-1, 1), ("What?", "Hello.", None)),
     ((1, 1), ("Hello.", "What?", True)), ((-1, -1), ("What?", "Hello.", True))],
)  # fmt: skip
def test_two_rated_answers_of_the_arena_are_one_choice(ratings, expected, tmp_path):
    rows = [
        webui(f"f{key}", rating, key, arena=True) for key, rating in zip("ab", ratings, strict=True)
    ]
    _, found = imported(tmp_path, rows)
    assert [(one["chosen"], one["rejected"], one.get("tie")) for one in found] == [expected]


def test_scores_that_no_person_gave_an_answer_are_left_out(tmp_path):
    rows = [
        TRACE, SCORE,
        {**SCORE, "source": "EVAL", "name": "hallucination", "value": 0.9},
        {**SCORE, "dataType": "CORRECTION", "value": 0},
        {**SCORE, "traceId": None, "sessionId": "c1"},
    ]  # fmt: skip
    skipped, found = imported(tmp_path, rows, scale=(0.0, 1.0))
    assert [(one["user"], one["rating"]) for one in found] == [("ann", 0.5)]
    assert sorted(skipped) == [
        "an evaluator, not a person, gave the score hallucination",
        "the score is a correction, not a number",
        "the score is of a session, not of a trace",
    ]
    _, found = imported(tmp_path, rows, scale=(0.0, 1.0), score="hallucination")
    assert [one["rating"] for one in found] == [0.9]  # who asks for it by name has it


def test_scores_in_csv_are_numbers_and_truths(tmp_path):
    scores, traces, out = (tmp_path / name for name in ("s.csv", "t.jsonl", "out.jsonl"))
    scores.write_text(
        "id,traceId,name,dataType,value\ns1,t1,useful,NUMERIC,0.5\ns2,t1,kind,BOOLEAN,True\n"
        "s3,t1,kind,BOOLEAN,0\n"
    )
    traces.write_text(json.dumps(TRACE))
    import_feedback([scores, traces], out, options=ImportOptions(scale=(0.0, 1.0)))
    assert [json.loads(line)["rating"] for line in out.read_text().splitlines()] == [0.5, 1.0, 0.0]
    scores.write_text("id,traceId,name,dataType,value\ns1,t1,useful,NUMERIC,good\n")
    with pytest.raises(InputError, match=r"line 2: `value` is 'good', expected a number"):
        import_feedback([scores, traces], out, options=ImportOptions(scale=(0.0, 1.0)))


@pytest.mark.parametrize("labels", [["x", "y"], [{"label": "x", "start": 0, "end": 2}], []])
def test_labels_of_a_record_are_no_ranking(labels, tmp_path):
    tags = {"tags.responses": [labels], "tags.responses.users": ["u1"]}
    skipped, found = imported(tmp_path, [{**ARGILLA, **tags}])
    assert len(found) == 1
    assert skipped == {"the response is neither a rating nor a ranking": 1}
    with pytest.raises(InputError, match="expected a ranking of fields of the record"):
        imported(tmp_path, [{**ARGILLA, "best.responses": [["a", "z"]]}])


def test_a_line_of_a_type_that_is_no_name_is_no_vote(tmp_path):
    skipped, found = imported(tmp_path, [VOTE, {"type": ["a"], "states": []}])
    assert (sum(skipped.values()), len(found)) == (1, 1)


@pytest.mark.parametrize(
    ("options", "users"),
    [({}, {"u1", "u2"}), ({"user": "me"}, {"me"}), ({"user_column": "team"}, {"T"})],
)
def test_whose_the_responses_of_argilla_are(tmp_path, options, users):
    row = {"prompt": "p", "answer": "good", "q.responses": [4, 5], "team": "T",
           "q.responses.users": ["u1", "u2"]}  # fmt: skip
    nothing = row | {"q.responses": None, "q.responses.users": None}
    skipped, found = imported(tmp_path, [row, nothing], scale=(1.0, 5.0), **options)
    assert {one["user"] for one in found} == users
    assert sum(skipped.values()) == 1
    with pytest.raises(InputError, match="`nope` is missing"):
        imported(tmp_path, [row], scale=(1.0, 5.0), user_column="nope")


def test_strengths_and_weights_at_the_ends_of_their_types(tmp_path):
    """A strength beyond an int32 is a large one, and a weight below a float32 is none."""
    path = tmp_path / "rows.jsonl"
    plain = {"user": "u", "chosen": "a", "rejected": "b"}
    more = ({"strength": 3e9}, {"strength": 1e300}, {"weight": 1e-60}, {})
    rows = [plain | each for each in more]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    loaded = load(path, ratings=True)
    assert loaded.details.level.tolist() == [2**31 - 1, 2**31 - 1, 0]
    assert loaded.details.weight.tolist() == [1, 1, 1]
