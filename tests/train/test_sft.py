"""Supervised fine-tuning: against torch, to the same bits after a stop, on a mesh, and learning."""

import json
import math
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_lms
import torch

from jaxalign.data.completions import CompletionConfig, Completions, load_completions
from jaxalign.data.sequences import Sequences
from jaxalign.errors import InputError
from jaxalign.experiments.sft import hold_out, run
from jaxalign.experiments.training_run import TrainingRun
from jaxalign.models import families, lora
from jaxalign.models.language import layout, load_language_model
from jaxalign.models.lora import LoraConfig
from jaxalign.models.peft import load_adapter
from jaxalign.models.weights.load import load_params
from jaxalign.train import sft
from jaxalign.train.loop import LoopConfig, evaluate
from jaxalign.train.mesh import MeshConfig, make_mesh
from jaxalign.train.optimiser import OptimiserConfig
from jaxalign.train.sft import SftConfig
from jaxalign.train.step import make_step
from jaxalign.train.trunk import TrunkConfig, init_train_state

SMALL = {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 24}
LORA = LoraConfig(rank=3, alpha=6.0, targets=("query", "down"))
T = 24


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model's folder and a file of completions: what follows a word is a rule."""
    root = tmp_path_factory.mktemp("sft")
    tiny_lms.write(root / "model", "llama", **SMALL)
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefgh"), 3)) for _ in range(60)]
    rows = [
        {"prompt": word * (1 + number % 3), "completion": word[::-1]}
        for number, word in enumerate(words)
    ]
    (root / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def batch_of(rng, rows, vocab):
    """A batch [1, B, T] with ragged rows, and its arrays."""
    lengths = rng.integers(4, T + 1, rows).astype(np.int32)
    # Token 1 pads: transformers gives its embedding no gradient.
    tokens = rng.integers(2, vocab, (rows, T)).astype(np.int32)
    place = np.arange(T)[None]
    learned = (place < lengths[:, None]) & (place >= lengths[:, None] // 2)
    tokens = np.where(place < lengths[:, None], tokens, 0)
    return {"tokens": tokens, "lengths": lengths, "learned": learned}


class Adapted(torch.nn.Module):
    """A linear layer and an adapter beside it."""

    def __init__(self, linear, a, b, scale):
        super().__init__()
        self.linear, self.scale = linear, scale
        self.a, self.b = (torch.nn.Parameter(torch.tensor(np.array(part))) for part in (a, b))

    def forward(self, x):
        return self.linear(x) + self.scale * (x @ self.a @ self.b)


TORCH_NAMES = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "o_proj",
               "gate": "gate_proj", "up": "up_proj", "down": "down_proj"}  # fmt: skip


@pytest.mark.parametrize("method", ["lora", "full"])
def test_three_steps_are_those_of_torch(method):
    model = tiny_lms.hf_model("llama", **SMALL)
    config = families.config_from_hf(tiny_lms.hf_config("llama", **SMALL).to_dict())
    params = load_params(tiny_lms.in_memory(model), layout(config))
    adapter = lora.init(jax.random.key(1), LORA, params)
    adapter = jax.tree.map(lambda leaf: leaf + 0.05, adapter)  # b is 0 at first
    mesh = make_mesh(MeshConfig())
    # A large eps: Adam divides a gradient that is nothing but rounding by its own size.
    optimiser = OptimiserConfig(0.01, "linear", 0.3, weight_decay=0.1, eps=1e-3)
    trained, frozen = ({"adapter": adapter}, params) if method == "lora" else (
        {"model": jax.tree.map(jnp.copy, params)}, {})  # fmt: skip
    state = init_train_state(jax.random.key(0), trained, optimiser, mesh, config)

    def loss(*args):
        return sft.loss(config, LORA, mesh, *args)

    step = jax.jit(make_step(loss, optimiser, 6), donate_argnums=0)
    ours = adapt_torch(model, adapter) if method == "lora" else list(model.parameters())
    matrices = [p for p in ours if p.ndim > 1]
    norms = [{"params": [p for p in ours if p.ndim == 1], "weight_decay": 0.0}]
    theirs = torch.optim.AdamW([{"params": matrices}, *norms], eps=1e-3, weight_decay=0.1)
    rng = np.random.default_rng(2)
    for number in range(3):
        batch = batch_of(rng, 6, config.vocab_size)
        micros = {name: jnp.asarray(a.reshape(3, 2, *a.shape[1:])) for name, a in batch.items()}
        state, metrics = step(state, frozen, micros)
        expected = torch_loss(model, batch)
        theirs.zero_grad()
        expected.backward()
        torch.nn.utils.clip_grad_norm_(ours, 1.0)
        for group in theirs.param_groups:
            group["lr"] = float(metrics["rate"])
        theirs.step()
        # optax takes 1 - 0.999 in float32, which is good to 1e-5; float64 is in test_optimiser.
        np.testing.assert_allclose(metrics["loss"], expected.item(), rtol=1e-5)
        assert float(metrics["weight"]) == batch["learned"][:, 1:].sum(), number
    if method == "lora":
        compare_adapters(model, state.params["adapter"])
    else:
        back = load_params(tiny_lms.in_memory(model), layout(config))
        chex.assert_trees_all_close(state.params["model"], back, rtol=1e-5, atol=1e-5)


def torch_loss(model, batch):
    place = np.arange(T)[None] < batch["lengths"][:, None]
    tokens = torch.tensor(batch["tokens"]).long()
    labels = torch.where(torch.tensor(batch["learned"]), tokens, -100)
    output = model(tokens, attention_mask=torch.tensor(place).long()).logits[:, :-1]
    return torch.nn.functional.cross_entropy(output.flatten(0, 1), labels[:, 1:].flatten())


def adapt_torch(model, adapter):
    model.requires_grad_(False)
    found = []
    for block, theirs in (("attention", "self_attn"), ("mlp", "mlp")):
        for name, pair in adapter[block].items():
            for number, layer in enumerate(model.model.layers):
                owner = getattr(layer, theirs)
                inner = getattr(owner, TORCH_NAMES[name])
                adapted = Adapted(inner, pair["a"][number], pair["b"][number], LORA.scale)
                setattr(owner, TORCH_NAMES[name], adapted)
                found += [adapted.a, adapted.b]
    return found


def compare_adapters(model, adapter):
    for block, theirs in (("attention", "self_attn"), ("mlp", "mlp")):
        for name, pair in adapter[block].items():
            for number, layer in enumerate(model.model.layers):
                inner = getattr(getattr(layer, theirs), TORCH_NAMES[name])
                for part in ("a", "b"):
                    expected = getattr(inner, part).detach().numpy()
                    np.testing.assert_allclose(pair[part][number], expected, rtol=1e-5, atol=1e-5)


def settings(**changes):
    base = SftConfig(
        data=CompletionConfig(max_tokens=64, template="plain"),
        trunk=TrunkConfig(lora=LORA),
        loop=LoopConfig(epochs=2, batch_size=8, evaluate_every=4, checkpoint_every=3),
        optimiser=OptimiserConfig(rate=1e-2),
        validation_share=0.2,
    )
    return replace(base, **changes)


class Stop(Exception):
    """In place of Ctrl-C."""


@pytest.mark.parametrize("method", ["lora", pytest.param("full", marks=pytest.mark.slow)])
def test_a_stopped_run_ends_with_the_same_bits(world, tmp_path, method, monkeypatch):
    dropped = replace(LORA, dropout=0.2)
    config = settings(trunk=TrunkConfig(method=method, lora=dropped))
    args = config, str(world / "model"), str(world / "data.jsonl")
    report = run(*args, tmp_path / "whole", show=False)
    stops = {2: Stop, 5: KeyboardInterrupt}

    def stop_after(limit, kind):
        calls = []

        def judged_step(*inner, **named):
            calls.append(1)
            if len(calls) > limit and kind is Stop:
                raise Stop
            real(*inner, **named)
            if len(calls) == limit and kind is not Stop:
                signal.raise_signal(signal.SIGINT)

        return judged_step

    from jaxalign.runs.log import TIMING, MetricsLog

    real = MetricsLog.add
    for limit, kind in stops.items():
        monkeypatch.setattr(MetricsLog, "add", stop_after(limit, kind))
        with pytest.raises(kind):
            run(*args, tmp_path / "stopped", resume=kind is not Stop, show=False)
    monkeypatch.setattr(MetricsLog, "add", real)
    again = run(*args, tmp_path / "stopped", resume=True, show=False)
    assert again == report
    assert report["steps"] == 12
    files = sorted(path.name for path in (tmp_path / "whole" / "model").iterdir())
    weights = [name for name in files if name.endswith(".safetensors")]
    assert weights
    for name in weights:
        one, two = ((tmp_path / run / "model" / name).read_bytes() for run in ("whole", "stopped"))
        assert one == two
    one, two = ([{key: value for key, value in json.loads(line).items() if key not in TIMING}
                 for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
                for run in ("whole", "stopped"))  # fmt: skip
    assert one == two
    # The result is the model that validation liked best.
    judged = {line["step"]: line["validation_loss"] for line in one if "validation_loss" in line}
    assert sorted(judged) == [0, 4, 8, 12]
    assert report["validation"]["loss"] == min(v for step, v in judged.items() if step)
    saved_loss(world, tmp_path / "whole", config, report)


def saved_loss(world, out, config, report):
    """What was saved, loaded again, has the validation loss that the report says."""
    method = config.trunk.method
    model = load_language_model(str(out / "model" if method == "full" else world / "model"))
    trained, frozen = {"model": model.params}, {}
    if method == "lora":
        found, adapter = load_adapter(out / "model", model.config)
        assert found.scale == LORA.scale
        trained, frozen = {"adapter": adapter}, model.params
    completions = load_completions(world / "data.jsonl", model.tokenizer, config.data)
    held = hold_out(completions, config)[1]
    mesh = make_mesh(MeshConfig())

    def loss(*args):
        return sft.loss(model.config, LORA, mesh, *args)

    again = evaluate(loss, trained, frozen, sft.rows_of(held, model.config), 8)
    np.testing.assert_allclose(again["loss"], report["validation"]["loss"], rtol=1e-5)


def test_validation_never_holds_out_every_row():
    rows = Completions(Sequences.of([[1, 2]] * 10), np.ones(20, bool))
    training, held = hold_out(rows, SftConfig(validation_share=0.99))
    assert (len(training), len(held)) == (1, 9)
    assert hold_out(rows.take(np.arange(1)), SftConfig(validation_share=0.99))[1] is None


def test_one_compilation_a_bucket(world, tmp_path, monkeypatch):
    model = load_language_model(str(world / "model"))
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 64, 40)
    completions = random_completions(rng, lengths)
    traced = []
    real = sft.loss

    def counted(*args):
        traced.append(args[-2]["tokens"].shape[-1])
        return real(*args)

    monkeypatch.setattr(sft, "loss", counted)
    config = settings(loop=LoopConfig(epochs=2, batch_size=4, micro_batches=2))
    sft.train(model, completions, None, config, tmp_path)
    # Once for the shapes of its sums, once for its gradient.
    assert {width: traced.count(width) for width in traced} == {32: 2, 64: 2}


def random_completions(rng, lengths):
    rows = [rng.integers(4, 200, length).tolist() for length in lengths]
    learned = np.concatenate([np.arange(n) >= n // 2 for n in lengths])
    return Completions(Sequences.of(rows), learned)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_tiny_model_learns_a_mapping(world, method, tmp_path):
    """Each of 8 digits has its answer of three: at chance, log 200 a token at first."""
    model = load_language_model(str(world / "model"))
    adapter = LoraConfig(rank=8, alpha=32.0, targets=("value", "out", "up", "down"))
    rng = np.random.default_rng(3)
    answers = rng.integers(4, 200, (8, 3))
    rows = [[10 + number % 8, *answers[number % 8].tolist()] for number in range(64)]
    learned = np.tile(np.array([False, True, True, True]), 64)
    completions = Completions(Sequences.of(rows), learned)
    fitted = sft.train(
        model,
        completions,
        completions,
        settings(
            trunk=TrunkConfig(method=method, lora=adapter),
            loop=LoopConfig(epochs=40, batch_size=16, evaluate_every=80),
            optimiser=OptimiserConfig(rate=2e-2),
        ),
        tmp_path / "run",
    )
    chance = math.log(model.config.vocab_size)
    assert fitted.validation_before["loss"] > 0.8 * chance
    # An adapter leaves the unembedding as it is, which bounds how sure the model can be.
    assert fitted.validation["loss"] < {"full": 0.05, "lora": 0.6}[method] * chance
    tokens = jnp.asarray(rows[:8], jnp.int32)
    params = fitted.params.get("model", None)
    scaled = None
    if method == "lora":
        params = model.params
        scaled = lora.scaled(fitted.params["adapter"], adapter)
    hidden, _ = families.forward(model.config, params, tokens[:, :-1], adapters=scaled)
    right = jnp.argmax(families.logits(params, hidden), axis=-1) == tokens[:, 1:]
    assert float(right.mean()) > 0.8  # at chance .004


def test_settings_and_rows_that_cannot_be_used(world, tmp_path):
    model = load_language_model(str(world / "model"))
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match="a row has 200 tokens, more than the 128"):
        sft.train(model, random_completions(rng, [200]), None, settings(), tmp_path)
    completions = random_completions(rng, [9, 8])
    missing = settings(trunk=TrunkConfig(lora=LoraConfig(targets=("qkv",))))
    with pytest.raises(InputError, match="the model has no matrix 'qkv'"):
        sft.train(model, completions, None, missing, tmp_path)
    with pytest.raises(InputError, match="remat is 'nothing'"):
        TrunkConfig(remat="nothing")
    # It is an entry of `jax.checkpoint_policies`, but makes a policy of names that it is given.
    with pytest.raises(InputError, match=r"remat is .*one of everything_saveable, nothing_sav"):
        TrunkConfig(remat="save_only_these_names")
    with pytest.raises(InputError, match="does not split into 3"):
        LoopConfig(batch_size=8, micro_batches=3)
    with pytest.raises(InputError, match="epochs is 0"):
        LoopConfig(epochs=0)
    with pytest.raises(InputError, match="seed is -1"):
        LoopConfig(seed=-1)
    with pytest.raises(InputError, match="validation_share is 1"):
        settings(validation_share=1.0)


def test_what_takes_other_settings_is_refused_before_the_folder_is_opened(world, tmp_path):
    source = str(world / "model"), str(world / "data.jsonl")
    missing = settings(trunk=TrunkConfig(lora=LoraConfig(targets=("qkv",))))
    with pytest.raises(InputError, match="the model has no matrix 'qkv'"):
        run(missing, *source, tmp_path / "run", show=False)
    (tmp_path / "long.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b" * 200}))
    long = settings(data=CompletionConfig(max_tokens=500))
    with pytest.raises(InputError, match=r"lower data\.max_tokens"):
        run(long, source[0], str(tmp_path / "long.jsonl"), tmp_path / "run", show=False)
    assert not (tmp_path / "run" / "run.json").exists()


def test_rows_are_refused_before_the_weights_are_read(world, tmp_path, monkeypatch):
    monkeypatch.setattr(TrainingRun, "load_model", lambda *_: pytest.fail("the weights were read"))
    source = tmp_path / "bad.jsonl"
    source.write_text(json.dumps({"prompt": "a", "completion": 3}))
    with pytest.raises(InputError, match="completion"):
        run(settings(), str(world / "model"), str(source), tmp_path / "run", show=False)


def test_a_loss_that_is_no_number_stops_the_run(world, tmp_path):
    model = load_language_model(str(world / "model"))
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, model.params)
    completions = random_completions(np.random.default_rng(0), [9] * 8)
    with pytest.raises(InputError) as refused:
        sft.train(replace(model, params=broken), completions, None, settings(), tmp_path)
    said = str(refused.value)
    assert re.match(r"step 1: \w+ is nan; expected a finite number: lower optimiser\.rate", said)
    rows = re.search(r"\(training rows ([\d, ]+), counted from 0; no state is kept\)\.$", said)
    assert set(map(int, rows[1].split(", "))) <= set(range(8))
    assert not any(path.name.isdigit() for path in (tmp_path / "state").iterdir())


def test_trackers_of_the_config_are_used(world, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    model = load_language_model(str(world / "model"))
    completions = random_completions(np.random.default_rng(0), [9] * 8)
    config = settings(loop=LoopConfig(epochs=1, batch_size=8, trackers=("trackio",)))
    with pytest.raises(InputError, match="trackers names trackio, and trackio is not installed"):
        sft.train(model, completions, None, config, tmp_path)


def test_folders_that_are_taken(world, tmp_path):
    args = str(world / "model"), str(world / "data.jsonl")
    config = settings(loop=LoopConfig(epochs=1, batch_size=64), validation_share=0.0)
    out = tmp_path / "run"
    report = run(config, *args, out, show=False)
    assert (report["steps"], report["validation"]) == (1, {})
    with pytest.raises(InputError, match="holds a finished run of the same settings: add --resume"):
        run(config, *args, out, show=False)
    with pytest.raises(InputError, match="holds another run"):
        run(replace(config, validation_share=0.1), *args, out, resume=True, show=False)
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "x").touch()
    with pytest.raises(InputError, match="is not empty and holds no run"):
        run(config, *args, tmp_path / "else", show=False)


MESHES = """
import sys, json
from pathlib import Path
import numpy as np
from dataclasses import replace
import jax
sys.path.insert(0, sys.argv[1])
from test_sft import settings, random_completions, LORA
from jaxalign.models.language import load_language_model
from jaxalign.train import sft
from jaxalign.train.loop import LoopConfig
from jaxalign.train.mesh import MeshConfig
from jaxalign.train.trunk import TrunkConfig

out = {}
for method in ("lora", "full"):
    for name, mesh in {"data": (4, 1, 1), "fsdp": (1, 4, 1), "tensor": (1, 2, 2)}.items():
        model = load_language_model(sys.argv[2])
        rng = np.random.default_rng(0)
        completions = random_completions(rng, rng.integers(3, 60, 24))
        config = settings(
            trunk=TrunkConfig(method=method, lora=LORA, mesh=MeshConfig(*mesh)),
            loop=LoopConfig(epochs=1, batch_size=8, micro_batches=2),
        )
        fit = sft.train(model, completions, None, config, Path(sys.argv[3]) / f"{method}-{name}")
        leaves = jax.device_get(jax.tree.leaves(fit.params))
        out |= {f"{method}/{name}/{i}": leaf for i, leaf in enumerate(leaves)}
np.savez(Path(sys.argv[3]) / "out.npz", **out)
"""


@pytest.mark.slow
def test_a_mesh_of_four_devices_trains_as_one(world, tmp_path):
    here = Path(__file__).parent
    path = os.pathsep.join([str(here.parent / "models"), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4",
        "PYTHONPATH": path,
    }
    arguments = [str(here), str(world / "model"), str(tmp_path)]
    subprocess.run([sys.executable, "-c", MESHES, *arguments], env=environment, check=True)
    found = np.load(tmp_path / "out.npz")
    for method in ("lora", "full"):
        model = load_language_model(str(world / "model"))
        rng = np.random.default_rng(0)
        completions = random_completions(rng, rng.integers(3, 60, 24))
        config = settings(
            trunk=TrunkConfig(method=method, lora=LORA),
            loop=LoopConfig(epochs=1, batch_size=8, micro_batches=2),
        )
        fit = sft.train(model, completions, None, config, tmp_path / f"{method}-one")
        for name in ("data", "fsdp", "tensor"):
            for number, leaf in enumerate(jax.tree.leaves(fit.params)):
                other = found[f"{method}/{name}/{number}"]
                np.testing.assert_allclose(other, leaf, rtol=1e-3, atol=2e-4)
