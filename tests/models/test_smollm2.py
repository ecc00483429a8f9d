"""SmolLM2-135M-Instruct from its GGUF: transformers' logits, and an answer that is right."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from jaxalign.cli import main
from jaxalign.models import families, generate_texts, load_language_model
from jaxalign.models.sampling import Sampling

pytestmark = pytest.mark.slow
QUESTION = "What is the capital of France?"
CHAT = [{"role": "user", "content": QUESTION}]


@pytest.fixture(scope="module")
def model(smollm2):
    return load_language_model(str(smollm2))


def test_logits_are_those_of_transformers(smollm2, model):
    texts = ["The capital of France is", "def add(a, b):\n    return", "Once upon a time, 3 < 4!"]
    ids = [model.tokenizer(text)["input_ids"] for text in texts]
    lengths = np.asarray([len(row) for row in ids], np.int32)
    tokens = np.zeros((len(ids), lengths.max()), np.int32)
    for row, values in enumerate(ids):
        tokens[row, : len(values)] = values
    kept = np.arange(tokens.shape[1])[None, :] < lengths[:, None]

    @jax.jit
    def found(params, tokens, lengths):
        return families.logits(params, families.forward(model.config, params, tokens, lengths)[0])

    theirs = AutoModelForCausalLM.from_pretrained(
        smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32
    )
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens).long(), attention_mask=torch.tensor(kept).long())
    expected = expected.logits.numpy()[kept]
    difference = np.abs(np.asarray(found(model.params, tokens, lengths))[kept] - expected)
    assert difference.max() < 1e-3 * max(1.0, np.abs(expected).max())
    assert difference.max() < 1e-3


def test_it_knows_the_capital_of_france(model):
    settings = Sampling(max_tokens=16, temperature=0.0)
    chat, plain = generate_texts(
        model, [CHAT, "The capital of France is"], settings, jax.random.key(0)
    )
    assert "Paris" in chat.text
    assert "Paris" in plain.text


def test_the_command_answers_without_torch(smollm2):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from jaxalign.cli import main\n"
        f"sys.exit(main(['generate', '--model', {str(smollm2)!r}, "
        "'--prompt', 'The capital of France is', '--max-tokens', '16']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout


def test_a_file_of_prompts(smollm2, tmp_path, capsys):
    rows = [{"prompt": QUESTION}, {"messages": CHAT}]
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = ["--prompts", str(prompts), "--out", str(out), "--max-tokens", "12", "--chat"]
    assert main(["generate", "--model", str(smollm2), *files]) == 0
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    assert [answer["row"] for answer in answers] == [0, 1]
    # The same chat twice, by both ways of writing it.
    assert answers[0]["completion"] == answers[1]["completion"]
    assert "Paris" in answers[0]["completion"]
