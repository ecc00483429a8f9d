"""`jaxalign generate`: a prompt, a file, adapters, an interrupted file, and what it refuses."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
import tiny_lms

from jaxalign import moc
from jaxalign.cli import main
from jaxalign.models import LoraConfig, load_adapter, load_language_model, lora, save_adapter
from jaxalign.train.trunk import TrunkConfig


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny model and two adapters, of other matrices, that change what it says."""
    root = tmp_path_factory.mktemp("generate")
    model = load_language_model(str(tiny_lms.write(root / "model", "llama")))
    made = {"warm": LoraConfig(2, 4.0, targets=("query", "up")),
            "cold": LoraConfig(3, 6.0, targets=("down", "query"))}  # fmt: skip
    for number, (folder, settings) in enumerate(made.items()):
        tree = lora.init(jax.random.key(number), settings, model.params)
        draw = np.random.default_rng(number).standard_normal
        tree = {
            part: {
                name: {leaf: draw(value.shape, np.float32) for leaf, value in pair.items()}
                for name, pair in matrices.items()
            }
            for part, matrices in tree.items()
        }
        save_adapter(root / folder, tree, settings, "tiny", model.config)
    return root


@pytest.fixture
def run(world, capsys):
    def call(*arguments):
        command = ["generate", "--model", world / "model", "--max-tokens", 6, *arguments]
        code = main([str(word) for word in command])
        found = capsys.readouterr()
        return code, found.out, found.err

    return call


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_one_prompt_and_a_file_say_the_same(run, tmp_path):
    code, said, _ = run("--prompt", "hello there")
    assert code == 0
    path = write(tmp_path / "p.jsonl", {"prompt": "hello there"}, {"prompt": "and you"})
    code, lines, _ = run("--prompts", path)
    assert code == 0
    first, second = (json.loads(line) for line in lines.splitlines())
    assert first["completion"] == said.removesuffix("\n")
    assert (first["row"], second["row"]) == (0, 1)
    assert 1 <= first["tokens"] <= 6
    assert first["logprob"] < 0


def test_a_policy_of_one_weighting_answers_as_its_adapter(run, world, tmp_path):
    model = load_language_model(str(world / "model"))
    settings, tree = load_adapter(world / "warm", model.config)
    plain = moc.MocConfig(conditioning="none", trunk=TrunkConfig(lora=settings))
    policy = moc.init_policy(jax.random.key(0), model, ("kind", "brief"), plain)
    moc.save(tmp_path / "run" / "model", replace(policy, trained={"adapter": tree, "heads": {}}))
    asked = "--prompt", "hello"
    assert run(*asked, "--model", tmp_path / "run") == run(*asked, "--adapter", world / "warm")
    code, _, said = run(*asked, "--model", tmp_path / "run", "--preference", "kind=1")
    assert code == 2
    assert "leave --preference out" in " ".join(said.split())
    code, _, said = run(*asked, "--model", tmp_path / "run", "--adapter", world / "cold")
    assert code == 2
    assert "found --adapter as well" in " ".join(said.split())
    other = replace(policy, model=replace(model, sha256="0" * 64))
    moc.save(tmp_path / "other", replace(other, trained={"adapter": tree, "heads": {}}))
    code, _, said = run(*asked, "--model", tmp_path / "other")
    assert code == 2
    assert "the policy was trained on" in " ".join(said.split())


def test_a_policy_of_one_weighting_has_the_answer_length_of_its_run(run, world, tmp_path, capsys):
    model = load_language_model(str(world / "model"))
    settings = moc.MocConfig(conditioning="none", trunk=TrunkConfig(lora=LoraConfig(rank=2)))
    policy = moc.init_policy(jax.random.key(0), model, ("brevity", "simplicity"), settings)
    moc.save(tmp_path / "run" / "model", policy)
    rewards = [{"name": name} for name in policy.names]
    trained = {"rewards": rewards, "moc": {"answer_tokens": 6}}
    (tmp_path / "run" / "config.yaml").write_text(json.dumps(trained))
    asked = ["--model", str(tmp_path / "run"), "--prompt", "hello", "--dtype", "float32"]
    _, six, _ = run(*asked)
    assert main(["generate", *asked]) == 0
    assert capsys.readouterr().out == six


def test_each_row_has_its_adapter(run, world, tmp_path):
    adapters = ["--adapter", world / "warm", world / "cold"]
    rows = [{"prompt": "hello", "adapter": name} for name in ("warm", "cold")]
    _, lines, _ = run("--prompts", write(tmp_path / "p.jsonl", *rows), *adapters)
    together = [json.loads(line)["completion"] for line in lines.splitlines()]
    alone = []
    for name in ("warm", "cold"):
        code, said, _ = run("--prompt", "hello", "--adapter", world / name)
        assert code == 0
        alone.append(said.removesuffix("\n"))
    assert together == alone
    assert together[0] != together[1]
    code, said, _ = run("--prompt", "hello", *adapters)
    assert said == f"[warm]\n{alone[0]}\n[cold]\n{alone[1]}\n"


def test_all_weight_on_one_adapter_is_that_adapter(run, world):
    adapters = ["--adapter", world / "warm", world / "cold"]
    _, mixed, _ = run("--prompt", "hello", *adapters, "--weights", 0, 1)
    _, alone, _ = run("--prompt", "hello", "--adapter", world / "cold")
    assert mixed == alone


def test_a_chat_goes_through_the_template(run, tmp_path):
    rows = [{"messages": [{"role": "user", "content": "hello"}]}]
    _, lines, _ = run("--prompts", write(tmp_path / "p.jsonl", *rows))
    code, said, _ = run("--prompt", "hello", "--chat")
    assert code == 0
    assert json.loads(lines)["completion"] == said.removesuffix("\n")
    assert json.loads(lines)["prompt_tokens"] > 5
    assert run("--prompt", "hello", "--system", "be kind")[0] == 0


def test_samples_are_rows_with_all_that_their_prompt_has(run, world, tmp_path):
    adapters = ["--adapter", world / "warm", world / "cold"]
    turns = [{"role": "user", "content": "hello"}]
    path = write(
        tmp_path / "p.jsonl",
        {"prompt": "hello", "user": 7, "adapter": "warm", "tokens": "own"},
        {"messages": turns, "adapter": str(world / "cold")},
    )
    out = tmp_path / "new" / "answers.jsonl"
    options = ["--prompts", path, *adapters, "--temperature", 1, "--seed", 3]
    assert run(*options, "--samples", 3, "--out", out)[0] == 0
    found = rows_of(out)
    assert [(row["row"], row["sample"]) for row in found] == [
        (r, s) for r in (0, 1) for s in range(3)
    ]
    assert [row["prompt"] for row in found] == ["hello"] * 3 + [turns] * 3
    assert [row["adapter"] for row in found] == ["warm"] * 3 + ["cold"] * 3
    assert [row.get("user") for row in found] == ["7"] * 3 + [None] * 3
    assert len({row["completion"] for row in found[:3]}) > 1
    assert all(isinstance(row["tokens"], int) for row in found)
    # The first sample is what one sample is, in a file of any batch size and on the terminal.
    _, lines, _ = run(*options, "--batch-size", 1)
    firsts = [json.loads(line) for line in lines.splitlines()]
    assert [row["completion"] for row in firsts] == [row["completion"] for row in found[::3]]
    warm = ["--adapter", world / "warm", "--temperature", 1, "--seed", 3]
    assert run("--prompt", "hello", *warm)[1] == found[0]["completion"] + "\n"


def test_bad_input_is_one_sentence(run, world, tmp_path):
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"prompt": "a"}\n{"text": "b"}\n')
    unnamed = write(tmp_path / "unnamed.jsonl", {"prompt": "a"})
    other = write(tmp_path / "other.jsonl", {"prompt": "a", "adapter": "hot"})
    late = write(tmp_path / "late.jsonl", *[{"prompt": "a"}] * 20, {"prompt": "word " * 400})
    both = ["--adapter", world / "warm", world / "cold"]
    binary = tmp_path / "binary.jsonl"
    binary.write_bytes(b"\xff\xfe")
    number = write(tmp_path / "number.jsonl", {"prompt": "a"}, {"prompt": 3})
    silent = write(tmp_path / "silent.jsonl", {"messages": [{"role": "user"}]})
    cases = {
        ("--prompts", binary): ("binary.jsonl", "not UTF-8 text"),
        ("--prompts", number): ("number.jsonl, line 2", "`prompt` is 3 (int), expected text"),
        ("--prompts", silent): ("silent.jsonl, line 1", "`messages[0].content` is missing"),
        ("--prompts", broken): ("broken.jsonl, line 2", "prompt or messages"),
        ("--prompts", tmp_path / "none.jsonl"): ("does not exist",),
        ("--prompts", unnamed, *both): ("unnamed.jsonl, line 1: no adapter", "--weights"),
        ("--prompts", late, *both, "--weights", 1, 1): ("late.jsonl, line 21 has", "context"),
        ("--prompt", "a", "--resume"): ("--out",),
        ("--prompt", "a", "--samples", 2): ("temperature",),
        ("--prompt", "a", "--samples", 0, "--temperature", 1): ("samples is 0",),
        ("--prompts", other, *both): ("'hot'", "warm, cold"),
        ("--prompt", "a", "--adapter", tmp_path): ("adapter_config.json",),
        ("--prompt", "a", "--weights", 1): ("--weights has 1",),
        ("--prompt", "a", "--temperature", -1): ("temperature",),
        ("--prompt", "a", "--batch-size", 0): ("--batch-size",),
        ("--prompt", "word " * 400): ("context",),
        ("--prompt", "a", "--model", tmp_path / "nowhere"): ("nowhere",),
    }
    for arguments, words in cases.items():
        code, out, err = run(*arguments)
        assert code == 2, arguments
        assert out == ""
        assert err.count("\n") == 1, err
        assert err.startswith("jaxalign: ")
        for word in words:
            assert word in err, err
