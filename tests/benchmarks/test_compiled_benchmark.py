"""Steps compiled without arrays: rows that are kept, bytes that can be counted by hand."""

import itertools
import json
from argparse import ArgumentParser
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import compiled, moc_memory, pplug, sizes
from jaxalign import palm
from jaxalign.kernels.scalarize.shapes import ROUTES

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "distributed.md"
RESULTS = ROOT / "benchmarks" / "results" / "h200_roofline"


def ran(out, *only):
    parser = ArgumentParser()
    compiled.add_arguments(parser)
    arguments = parser.parse_args(["--only", *only] if only else [])
    arguments.out = out
    assert compiled.run(arguments) == 0
    return json.loads((out / "result.json").read_text())


def test_arguments_and_results_are_as_counted_by_hand(tmp_path, capsys):
    result = ran(tmp_path, "logprob", "palm route", "pplug personas flat")
    assert (result["target"], result["failed"]) == ("cpu", [])
    forward, backward, route, flat = result["rows"]
    tiny = compiled.TINY
    (tokens,) = tiny.tokens
    states = 4 * tokens * tiny.width
    given = states + 4 * tiny.vocabulary * tiny.width + 4 * tokens
    assert forward["bytes"]["arguments"] == backward["bytes"]["arguments"] == given
    assert forward["bytes"]["outputs"] == 4
    assert backward["bytes"]["outputs"] == states
    shape = ROUTES[tiny.route]
    assert route["bytes"]["arguments"] == 4 * shape.rewards * (shape.users + shape.members)
    users, _, _, _, width = pplug.SIZES[tiny.personas]
    assert flat["bytes"]["outputs"] == 4 * users * width
    for row in result["rows"]:
        used = row["bytes"]
        held = used["arguments"] + used["outputs"] - used["aliased"]
        assert used["peak"] == held + used["temporary"]
        assert row["fits"]
        assert row["cudnn"] == []
    assert (tmp_path / "table.md").read_text() in capsys.readouterr().out


def test_a_training_step_gives_its_state_back_in_place(tmp_path):
    (row,) = ran(tmp_path, "train tiny LoRA batch 2")["rows"]
    config = sizes.SIZES["tiny"]
    matrices = {
        "query": (config.width, config.heads * config.head_width),
        "key": (config.width, config.kv_heads * config.head_width),
        "value": (config.width, config.kv_heads * config.head_width),
        "out": (config.heads * config.head_width, config.width),
        "gate": (config.width, config.hidden),
        "up": (config.width, config.hidden),
        "down": (config.hidden, config.width),
    }
    adapter = 16 * config.layers * sum(into + out for into, out in matrices.values())
    # Adapter, mean and mean of squares in float32; counters and the random key.
    assert 0 <= row["bytes"]["aliased"] - 3 * 4 * adapter < 100
    frozen = config.vocab_size * config.width + sizes.matrix_parameters(config)
    norms = (2 * config.layers + 1) * config.width
    tokens = 4 * 2 * (compiled.TINY.length + 1)
    assert (
        0
        <= row["bytes"]["arguments"] - row["bytes"]["aliased"] - tokens - 4 * (frozen + norms)
        < 100
    )


def test_the_least_work_of_decoding_is_that_of_its_two_phases():
    tiny, config = compiled.TINY, sizes.SIZES["tiny"]
    place = compiled.Place(moc_memory.place(None), False, tiny)
    program = compiled._programs(place)["decode tiny batch 2"]()
    assert program.trips == tiny.new - 1
    read = 4 * (sizes.matrix_parameters(config) + sizes.unembedding_parameters(config))
    context = tiny.prompt + tiny.new // 2
    assert program.least == (
        (read, sizes.forward_flops(config, 2, tiny.prompt, 1)),
        (program.trips * sizes.decode_bytes(config, 2, context, 4), 0.0),
    )
    assert dict(program.options) == {}


def test_rows_are_kept_in_order_and_a_failure_is_named(tmp_path, monkeypatch, capsys):
    before = ran(tmp_path, "logprob 64, forward + backward", "palm route")
    right = compiled.compiled

    def failing(program, described):
        if program.function.__wrapped__ is palm.best_member:
            raise RuntimeError("no kernel for this\nat line 3")
        return right(program, described)

    monkeypatch.setattr(compiled, "compiled", failing)
    result = ran(tmp_path, "palm route", "logprob 64")
    assert [row["name"] for row in result["rows"]] == [
        "logprob 64, forward",
        "logprob 64, forward + backward",
    ]
    why = "RuntimeError: no kernel for this"
    assert result["failed"] == [{"name": "palm route", "why": why}]
    assert result["rows"][1]["bytes"] == before["rows"][0]["bytes"]
    assert result["earlier"] == [before["machine"]]
    assert f"palm route failed: {why}" in capsys.readouterr().out
    monkeypatch.setattr(compiled, "compiled", right)
    assert ran(tmp_path, "palm route")["failed"] == []
    path = tmp_path / "result.json"
    path.write_text(json.dumps({**result, "target": "H200, described"}))
    assert [row["name"] for row in ran(tmp_path, "palm route")["rows"]] == ["palm route"]
    with pytest.raises(SystemExit, match="no such row"):
        ran(tmp_path, "of another kind")


def test_cudnn_is_seen_in_calls_and_not_in_names_of_files():
    text = """
      %a = f32[2] custom-call(%b), custom_call_target="__cudnn$fmhaSoftmax"
      %c = f32[2] add(%a, %a), metadata={source_file="cudnn/fused_attention.py"}"""

    class Found:
        def as_text(self):
            return self.text

        def memory_analysis(self):
            names = ("argument", "output", "temp", "alias")
            return SimpleNamespace(**{f"{name}_size_in_bytes": 2**37 for name in names})

    class Function:
        def lower(self, *arguments):
            return self

        def compile(self, compiler_options):
            self.options = compiler_options
            return found

    found, function = Found(), Function()
    found.text = text
    row = compiled.compiled(compiled.Program(function, ()), described=True)
    assert row["cudnn"] == ["__cudnn$fmhaSoftmax"]
    assert not row["fits"]
    assert function.options == {"xla_gpu_autotune_level": 0}
    found.text = text.splitlines()[2]
    assert compiled.compiled(compiled.Program(function, ()), described=False)["cudnn"] == []
    assert function.options is None


@pytest.mark.slow
def test_every_row_compiles(tmp_path):
    result = ran(tmp_path)
    assert result["failed"] == []
    assert len(result["rows"]) == 17
    assert all(row["bytes"]["peak"] > 0 for row in result["rows"])


STEPS = {
    "LoRA, batch 4 x 512 tokens": "train {} LoRA batch 4",
    "LoRA, batch 16 x 512 tokens": "train {} LoRA batch 16",
    "all parameters, batch 16 x 512 tokens": "train {} full batch 16",
    "generation of 128 tokens, 64 prompts of 512": "decode {} batch 64",
    "generation of 128 tokens, 256 prompts of 512": "decode {} batch 256",
}


def seconds(text):
    number, unit = text.split()
    return float(number) * {"s": 1, "ms": 1e-3}[unit]


def test_the_page_of_several_devices_states_what_was_compiled():
    result = json.loads((RESULTS / "result.json").read_text())
    rows = {row["name"]: row for row in result["rows"]}
    tables = PAGE.read_text().split("## Memory and time per model size")[1].split("lower bounds")
    for (label, name), table in itertools.product(STEPS.items(), tables):
        (line,) = (line for line in table.splitlines() if line.startswith(f"| {label} |"))
        for size, cell in zip(("135M", "1B", "8B"), line.split("|")[2:5], strict=True):
            row = rows.get(name.format(size))
            assert bool(cell.strip()) == (row is not None)
            if row and "GiB" in cell:
                assert cell.strip() == f"{row['bytes']['peak'] / moc_memory.GIB:.1f} GiB"
            elif row:
                assert seconds(cell) == pytest.approx(row["roofline"]["seconds"], rel=5e-3)
