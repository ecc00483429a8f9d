"""Each format of feedback all the way: its file, `import`, `mrm train`, `mrm adapt`, `mrm rank`."""

import json
import shlex

import numpy as np
import pytest
from cli_calls import call, write_rows
from test_feedback_formats import TRACE, ask, tell

from jaxalign.data.importers import formats

USERS, ROWS = 10, 6
ANSWERS = [f"answer {number}" for number in range(6)]
ARENA = {"question_id": "b", "model_a": "x", "model_b": "y", "winner": "model_a", "turn": 1}
SETTINGS = """
methods: [bayes]
select: bayes
seeds: 1
shots: [0]
draws: 20
split: {item_folds: 0, validation_share: 0.3, min_support: 1, min_query: 1}
adaptation: {folds: 0}
bayes: {em_steps: 1, pseudo_users: [10.0], strengths: [1.0], temperatures: [1.0]}
"""


def said_by(text):
    return [ask("Hi"), tell(text)]


def transcript(text):
    return f"\n\nHuman: Hi\n\nAssistant: {text}"


def vote(user, good, bad):
    states = [
        {"roles": ["USER", "ASSISTANT"], "offset": 0,
         "messages": [["USER", "Hi"], ["ASSISTANT", text]]}
        for text in (good, bad)
    ]  # fmt: skip
    return {"tstamp": 1.0, "type": "leftvote", "models": ["x", "y"], "ip": user, "states": states}


def chat(user, good, bad, number):
    """A chat in which an answer was drawn again, and the second one continued."""
    node = {"parentId": "q", "role": "assistant"}
    messages = {
        "q": {"id": "q", "parentId": None, "role": "user", "content": "Hi"},
        "a": {**node, "id": "a", "content": bad, "childrenIds": []},
        "b": {**node, "id": "b", "content": good, "childrenIds": ["r"]},
        "r": {"id": "r", "parentId": "b", "role": "user", "content": "Thanks"},
    }
    return {"id": f"c{number}", "user_id": user, "chat": {"history": {"messages": messages}}}


def battle(user, good, bad, number):
    """A row of open-webui's arena, in which the rated answer wins against the other."""
    chat_of = chat(user, bad, good, number)["chat"]
    return {
        "id": f"f{number}", "user_id": user, "type": "rating", "created_at": 1700000000,
        "data": {"rating": 1, "model_id": "m", "details": {"rating": None}},
        "meta": {"arena": True, "chat_id": f"c{number}", "message_id": "a"},
        "snapshot": {"chat": {"chat": chat_of}},
    }  # fmt: skip


def langfuse(user, good, bad, number):
    """Two traces and a thumb for each."""
    for name, text, value in (("up", good, 1), ("down", bad, 0)):
        trace = f"{name}{number}"
        yield {**TRACE, "id": trace, "userId": user, "output": tell(text)}
        yield {"id": f"s{trace}", "traceId": trace, "name": "useful", "dataType": "BOOLEAN",
               "value": value}  # fmt: skip


def label_studio(user, good, bad, number):
    selected = [{"type": "pairwise", "to_name": "txt-1,txt-2", "value": {"selected": "left"}}]
    done = {"completed_by": user, "was_cancelled": False, "result": selected}
    data = {"prompt": "Hi", "answer1": good, "answer2": bad}
    return {"id": number, "data": data, "annotations": [done]}


# What a choice of a user is in a file of each format: one row, or several.
FORMATS = {
    "jaxalign": lambda user, good, bad, _: {"user": user, "chosen": good, "rejected": bad},
    "open-webui": battle,
    "open-webui-chats": chat,
    "langfuse": langfuse,
    "label-studio": label_studio,
    "argilla": lambda user, good, bad, number: {
        "id": f"r{number}", "prompt": "Hi", "a": good, "b": bad, "best.responses": [["a", "b"]],
        "best.responses.users": [user], "best.responses.status": ["submitted"]},
    "arena": lambda user, good, bad, _: {
        **ARENA, "judge": user, "conversation_a": said_by(good), "conversation_b": said_by(bad)},
    "fastchat": lambda user, good, bad, _: vote(user, good, bad),
    "openai": lambda user, good, bad, _: {
        "who": user, "input": {"messages": [ask("Hi")]}, "preferred_output": [tell(good)],
        "non_preferred_output": [tell(bad)]},
    "helpsteer3": lambda user, good, bad, _: {
        "who": user, "context": [ask("Hi")], "response1": bad, "response2": good,
        "overall_preference": 2, "individual_preference": []},
    "community-alignment": lambda user, good, bad, number: {
        "conversation_id": number, "annotator_id": user, "first_turn_prompt": "Hi",
        "first_turn_response_a": good, "first_turn_response_b": bad,
        "first_turn_preferred_response": "response_a"},
    "hh-rlhf": lambda user, good, bad, _: {
        "who": user, "chosen": transcript(good), "rejected": transcript(bad)},
    "trl": lambda user, good, bad, _: {
        "who": user, "prompt": "Hi", "chosen": good, "rejected": bad},
}  # fmt: skip
OPTIONS = dict.fromkeys(("openai", "helpsteer3", "hh-rlhf", "trl"), "--user-column who")
# Users are judged on choices between two answers: these files train beside a file of choices.
RATINGS_ALONE = ("langfuse",)


def test_every_format_has_a_run():
    assert set(FORMATS) == {one.name for one in formats()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Features of the answers, their texts, and the settings of a small run."""
    path = tmp_path_factory.mktemp("formats")
    values = np.random.default_rng(0).standard_normal((len(ANSWERS), 3)).astype(np.float32)
    np.savez(path / "features.npz", features=values, ids=np.array(ANSWERS))
    (path / "answers.txt").write_text("".join(f"{text}\n" for text in ANSWERS))
    (path / "config.yaml").write_text(SETTINGS)
    return path


def file_of(name, path):
    """A file of a format in which users prefer answers of low numbers, most of the time."""
    rng, rows = np.random.default_rng(1), []
    for user in range(USERS):
        for number in range(ROWS):
            pair = sorted(rng.choice(len(ANSWERS), 2, replace=False))
            good, bad = (ANSWERS[one] for one in (pair if rng.random() < 0.9 else pair[::-1]))
            found = FORMATS[name](f"user{user}", good, bad, ROWS * user + number)
            rows += [found] if isinstance(found, dict) else list(found)
    return write_rows(path, rows)


@pytest.mark.slow  # 3 s each
@pytest.mark.parametrize("name", FORMATS)
def test_a_file_becomes_a_ranking(name, folder, tmp_path):
    source, out, run = (
        file_of(name, tmp_path / "in.jsonl"),
        tmp_path / "out.jsonl",
        tmp_path / "run",
    )
    features = folder / "features.npz"
    result = call(*shlex.split(f"import auto {source} --out {out} {OPTIONS.get(name, '')}"))
    assert result.code == 0, result.err
    if name in RATINGS_ALONE:
        with out.open("a") as file:
            file.write(file_of("jaxalign", tmp_path / "choices.jsonl").read_text())
    commands = [
        f"mrm train --config {folder}/config.yaml --data {out} --features.path {features} "
        f"--out {run}",
        f"mrm adapt --model {run} --data {out} --features {features} --skip-accuracy",
        f"mrm rank --model {run} --user user1 --texts {folder}/answers.txt --features {features} "
        "--json",
    ]
    for command in commands:
        result = call(*shlex.split(command))
        assert result.code == 0, result.err
    ranked = [json.loads(line) for line in result.out.splitlines()]
    assert sorted(row["text"] for row in ranked) == ANSWERS
    scores = [row["score"] for row in ranked]
    assert scores == sorted(scores, reverse=True)
    assert np.ptp(scores) > 0
