"""Chat templates from the command line: named ones, and one that refuses, in every command."""

import json

import pytest
import tiny_lms
from cli_calls import call, refused, write_rows

NAMED = [
    {"name": "rag", "template": "{{ messages[0]['content'] }}!"},
    {"name": "tool_use", "template": "y"},
]
REFUSES = "{{ raise_exception('a system message is required') }}"


def with_template(folder, template):
    for path in folder.glob("*.jinja"):
        path.unlink()
    place = folder / "tokenizer_config.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | {"chat_template": template}))
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Tiny models with named templates and with one that refuses, and the same reward models."""
    root = tmp_path_factory.mktemp("templates")
    return {
        (kind, labels): with_template(
            tiny_lms.write(root / f"{kind}{labels}", "llama", labels=labels), template
        )
        for kind, template in (("named", NAMED), ("refuses", REFUSES))
        for labels in (None, 1)
    }


def test_a_named_template_is_chosen(models):
    options = ("--max-tokens", 2, "--model", models["named", None])
    refused(
        call("generate", "--prompt", "hi", "--chat", *options),
        "rag, tool_use and none called default", "--chat-template",
    )  # fmt: skip
    refused(call("generate", "--prompt", "hi", "--chat-template", "rga", *options), "rag, tool_use")
    named = call("generate", "--prompt", "hi", "--chat-template", "rag", *options)
    assert named.code == 0
    assert named.out == call("generate", "--prompt", "hi!", *options).out


@pytest.mark.parametrize(
    ("kind", "reason"), [("named", "none called default"), ("refuses", "a system message")]
)
def test_every_command_refuses_in_one_sentence(models, tmp_path, kind, reason):
    model, scorer = models[kind, None], models[kind, 1]
    answers = write_rows(tmp_path / "answers.jsonl", [{"prompt": "hi", "answer": "yo"}])
    rows = [{"prompt": "hi", "completion": "yo"}]
    completions = write_rows(tmp_path / "completions.jsonl", rows)
    chosen = [
        {"user": u, "prompt": f"p{i}", "chosen": f"yes {i}", "rejected": f"no {i}"}
        for u in "ab" for i in range(4)
    ]  # fmt: skip
    choices = write_rows(tmp_path / "choices.jsonl", chosen)
    prompts = write_rows(tmp_path / "p.jsonl", [{"messages": [{"role": "user", "content": "hi"}]}])
    config = tmp_path / "moc.yaml"
    config.write_text("rewards: [{name: brevity}, {name: simplicity}]\n")
    out = ("--out", tmp_path / "out")
    commands = [
        ("generate", "--model", model, "--prompts", prompts),
        ("sft", "--model", model, "--data", completions, *out),
        ("reward", "score", "--model", scorer, "--data", answers, "--out", tmp_path / "s.jsonl"),
        ("reward", "train", "--model", model, "--data", choices, *out),
        ("embed", "--model", model, "--data", choices, "--out", tmp_path / "e.npz"),
        ("moc", "train", "--model", model, "--data", prompts, "--config", config,
         "--moc.answer_tokens", "8", *out),
    ]  # fmt: skip
    for command in commands:
        refused(call(*command), reason)
    assert not (tmp_path / "out").exists()
