"""token_logprob against torch in float64, and what it promises of memory, devices and traces."""

import os
import re
import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads

from jaxalign.kernels.token_logprob import token_logprob
from jaxalign.kernels.token_logprob.api import CHUNK_BYTES, default_chunk
from jaxalign.kernels.token_logprob.shapes import QWEN2_5_0_5B, SHAPES, SMOLLM2_135M

torch.set_num_threads(1)
GIB = 2**30
ROOT = Path(__file__).parents[2]
OPTIONS = [
    {},
    {"temperature": 0.6},
    {"soft_cap": 3.0},
    {"suppress": True},
    {"temperature": 1.7, "soft_cap": 2.0, "suppress": True},
]


def inputs(lead, vocab, width, scale=1.0, seed=0):
    """hidden, unembedding, targets, suppressed (every third id), two weights of the loss."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(*lead, width)).astype(np.float32)
    unembedding = (rng.normal(size=(vocab, width)) * scale).astype(np.float32)
    suppressed = np.arange(vocab) % 3 == 1
    targets = rng.choice(np.flatnonzero(~suppressed), lead).astype(np.int32)
    weights = rng.normal(size=(2, *lead)).astype(np.float32)
    return hidden, unembedding, targets, suppressed, weights


def theirs(hidden, unembedding, targets, suppressed, weights, options):
    """Values, entropy, and gradients of their weighted sum, materialised in float64."""
    hidden, unembedding = np.asarray(hidden, np.float64), np.asarray(unembedding, np.float64)
    h, w = torch.tensor(hidden, requires_grad=True), torch.tensor(unembedding, requires_grad=True)
    logits = h @ w.T
    if cap := options.get("soft_cap"):
        logits = cap * torch.tanh(logits / cap)
    logits = logits / options.get("temperature", 1.0)
    if options.get("suppress"):
        logits = logits.masked_fill(torch.tensor(suppressed), -torch.inf)
    logprobs = torch.log_softmax(logits, -1)
    logprob = logprobs.gather(-1, torch.tensor(targets).long()[..., None])[..., 0]
    p = torch.exp(logprobs)
    entropy = -(p * logprobs.masked_fill(p == 0, 0)).sum(-1)
    a, b = torch.tensor(weights).double()
    (a * logprob + b * entropy).sum().backward()
    return [x.detach().numpy() for x in (logprob, entropy)], [h.grad.numpy(), w.grad.numpy()]


def ours(hidden, unembedding, targets, suppressed, weights, options, **switches):
    options = {k: v for k, v in options.items() if k != "suppress"} | (
        {"suppressed": suppressed} if options.get("suppress") else {}
    )

    @jax.jit
    def run(hidden, unembedding):
        def loss(hidden, unembedding):
            found = token_logprob(hidden, unembedding, targets, **options, **switches)
            return jnp.sum(weights[0] * found[0] + weights[1] * found[1]), found

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(hidden, unembedding)

    gradients, found = run(hidden, unembedding)
    return found, gradients


def assert_close(found, expected, tolerance=1e-5):
    """Largest difference over the largest value (or 1)."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected)
    assert found.shape == expected.shape
    error = np.max(np.abs(found - expected)) / max(1.0, np.max(np.abs(expected)))
    assert error < tolerance, error


@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_values_and_gradients_agree_with_float64(options, backend):
    arrays = inputs((3, 13), 101, 16)
    found, gradients = ours(*arrays, options, backend=backend, chunk=8)
    expected = theirs(*arrays, options)
    assert found[0].dtype == found[1].dtype == jnp.float32
    for a, b in zip([*found, *gradients], [*expected[0], *expected[1]], strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.slow), "bfloat16"])
def test_a_real_vocabulary(dtype):
    hidden, unembedding, *rest = inputs((12,), *SMOLLM2_135M, scale=0.1)
    hidden, unembedding = (jnp.asarray(a, dtype) for a in (hidden, unembedding))
    found, gradients = ours(hidden, unembedding, *rest, {}, chunk=5)
    expected = theirs(hidden, unembedding, *rest, {})
    # bfloat16 states and weights multiply exactly in float32: only the gradients round.
    for a, b in zip(found, expected[0], strict=True):
        assert a.dtype == jnp.float32
        assert_close(a, b, 2e-6)
    for a, b in zip(gradients, expected[1], strict=True):
        assert a.dtype == dtype
        assert_close(a, b, 1e-5 if dtype == "float32" else 2e-2)


def test_float32_weights_get_a_float32_gradient_beside_bfloat16_states():
    hidden, unembedding, *rest = inputs((64,), 50, 8)
    hidden = jnp.asarray(hidden, jnp.bfloat16)
    _, (d_hidden, d_unembedding) = ours(hidden, unembedding, *rest, {}, chunk=8)
    assert (d_hidden.dtype, d_unembedding.dtype) == (jnp.bfloat16, jnp.float32)
    rounded = jnp.asarray(unembedding, jnp.bfloat16)
    _, (_, expected) = theirs(hidden, rounded, *rest, {})
    # Eight chunks added in bfloat16 would be off by more.
    assert_close(d_unembedding, expected, 3e-3)


def test_finite_differences(x64):
    hidden, unembedding, targets, suppressed, _ = inputs((5,), 11, 4)

    @jax.jit
    def values(hidden, unembedding):
        options = {"temperature": 0.7, "soft_cap": 2.0, "suppressed": suppressed, "chunk": 2}
        return token_logprob(hidden, unembedding, targets, **options)

    args = jnp.asarray(hidden, jnp.float64), jnp.asarray(unembedding, jnp.float64)
    assert values(*args)[0].dtype == jnp.float64
    check_grads(values, args, order=1, modes=["rev"], atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize(
    ("tokens", "chunk", "vocab"),
    [(1, 1, 5), (7, 7, 5), (9, 4, 5), (8, 4, 5), (5, 12, 5), (4, 3, 1)],
)
def test_chunks_change_nothing(tokens, chunk, vocab):
    hidden, unembedding, _, _, weights = inputs((tokens,), vocab + 1, 3)
    targets = np.arange(tokens, dtype=np.int32) % vocab
    arrays = hidden, unembedding[:vocab], targets, None, weights, {}
    expected = theirs(*arrays)
    found, gradients = ours(*arrays, chunk=chunk)
    for a, b in zip([*found, *gradients], [*expected[0], *expected[1]], strict=True):
        assert_close(a, b, 2e-6)


def test_probabilities_of_the_ids_left_add_to_one():
    hidden, unembedding, _, suppressed, _ = inputs((4,), 30, 8)
    hidden = np.repeat(hidden[:, None], 30, axis=1)
    ids = np.broadcast_to(np.arange(30), (4, 30))
    logprob, entropy = token_logprob(
        hidden, unembedding, ids, temperature=0.8, suppressed=suppressed, chunk=7
    )
    p = np.exp(logprob)
    np.testing.assert_array_equal(p[:, suppressed], 0)
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-5)
    expected = -np.sum(p[:, ~suppressed] * np.asarray(logprob)[:, ~suppressed], axis=1)
    np.testing.assert_allclose(entropy[:, 0], expected, rtol=1e-5)


def test_extreme_logits_stay_finite_and_right():
    # Products of whole numbers: the logits, up to 1e4 in size, are exact.
    rng = np.random.default_rng(0)
    hidden = rng.integers(-100, 101, (12, 2)).astype(np.float32)
    hidden[0] = 100, 0
    unembedding = rng.integers(-50, 51, (40, 2)).astype(np.float32)
    unembedding[:3] = [100, 0], [-100, 0], [100, 0]
    targets = np.arange(12, dtype=np.int32)
    weights = rng.normal(size=(2, 12)).astype(np.float32)
    # Narrow ids are widened before they are compared with V.
    arrays = hidden, unembedding, targets.astype(np.int8), np.zeros(40, bool), weights
    assert np.abs(hidden @ unembedding.T).max() == 1e4
    arrays[3][-1] = True
    for options in ({}, {"soft_cap": 30.0, "suppress": True}):
        found, gradients = ours(*arrays, options, chunk=5)
        expected = theirs(*arrays, options)
        for a, b in zip([*found, *gradients], [*expected[0], *expected[1]], strict=True):
            assert np.isfinite(a).all()
            assert_close(a, b)


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_a_target_outside_the_vocabulary_is_nan_and_nothing_else_is(backend):
    hidden, unembedding, targets, suppressed, weights = inputs((6,), 20, 4)
    wrong = targets.copy()
    wrong[[0, 2, 5]] = -1, 20, -100
    found, gradients = ours(hidden, unembedding, wrong, suppressed, weights, {}, backend=backend)
    bad = np.isin(np.arange(6), [0, 2, 5])
    np.testing.assert_array_equal(np.isnan(found[0]), bad)
    right, _ = ours(hidden, unembedding, targets, suppressed, weights, {}, backend=backend)
    np.testing.assert_array_equal(found[0][~bad], right[0][~bad])
    np.testing.assert_array_equal(found[1], right[1])
    weights[0, bad] = 0
    _, expected = theirs(hidden, unembedding, targets, suppressed, weights, {})
    for a, b in zip(gradients, expected, strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_a_suppressed_target_is_minus_infinity_with_finite_gradients(backend):
    hidden, unembedding, targets, suppressed, weights = inputs((6,), 20, 4)
    targets[3] = np.flatnonzero(suppressed)[0]
    options = {"suppress": True}
    found, gradients = ours(
        hidden, unembedding, targets, suppressed, weights, options, backend=backend
    )
    assert np.isneginf(found[0][3])
    assert np.isfinite(np.delete(found[0], 3)).all()
    assert all(np.isfinite(g).all() for g in gradients)
    np.testing.assert_array_equal(gradients[1][suppressed], 0)
    numbers = suppressed.astype(np.float32)
    again, _ = ours(hidden, unembedding, targets, numbers, weights, options, backend=backend)
    chex.assert_trees_all_equal(again, found)


def test_one_id_left_is_certain():
    hidden, unembedding, _, _, _ = inputs((3,), 9, 4)
    targets = np.full(3, 5, np.int32)
    found = token_logprob(hidden, unembedding, targets, suppressed=np.arange(9) != 5)
    np.testing.assert_array_equal(found, 0)


def test_no_tokens_and_one_token_without_axes():
    hidden, unembedding, targets, _, _ = inputs((2,), 9, 4)
    found = token_logprob(hidden[:0], unembedding, targets[:0])
    chex.assert_shape(found, (0,))
    one = token_logprob(jnp.asarray(hidden[1]), unembedding, jnp.asarray(targets[1]))
    chex.assert_trees_all_close(
        one, jax.tree.map(lambda a: a[1], token_logprob(hidden, unembedding, targets)), rtol=1e-5
    )


def test_a_traced_temperature_compiles_once_and_gets_no_gradient():
    hidden, unembedding, targets, _, _ = inputs((6,), 20, 4)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def loss(temperature, hidden):
        return token_logprob(hidden, unembedding, targets, temperature=temperature)[0].sum()

    found = [loss(jnp.float32(t), hidden) for t in (0.5, 1.0, 2.0)]
    assert len(set(map(float, found))) == 3
    plain = token_logprob(hidden, unembedding, targets, temperature=2.0)[0].sum()
    np.testing.assert_allclose(found[-1], plain, rtol=1e-6)
    for backend in ("reference", "chunked"):

        def again(temperature, backend=backend):
            options = {"temperature": temperature, "backend": backend}
            return token_logprob(hidden, unembedding, targets, **options)[0].sum()

        assert jax.grad(again)(jnp.float32(0.7)) == 0


def lowered(tokens, vocab, width, argnums, **switches):
    def loss(hidden, unembedding, targets):
        logprob, entropy = token_logprob(hidden, unembedding, targets, **switches)
        return jnp.sum(logprob) + jnp.sum(entropy)

    spec = jax.ShapeDtypeStruct
    shapes = spec((tokens, width), jnp.float32), spec((vocab, width), jnp.float32)
    return jax.jit(jax.grad(loss, argnums)).lower(*shapes, spec((tokens,), jnp.int32))


@pytest.mark.parametrize("argnums", [0, (0, 1)])
def test_memory_does_not_grow_with_the_tokens(argnums):
    def temporary(tokens):
        compiled = lowered(tokens, *QWEN2_5_0_5B, argnums).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    few, many = temporary(4096), temporary(131_072)
    assert many < 1.2 * GIB
    # Four float32 numbers a token are kept: 2 MiB here, where the logits would be 74 GiB.
    assert many - few <= 4 * 4 * 131_072


def test_a_frozen_unembedding_costs_no_gradient():
    def cost(argnums, chunk):
        text = lowered(64, 1009, 24, argnums, chunk=chunk).as_text()
        return text.count("stablehlo.dot_general"), "tensor<1x1009x24xf32>" in text

    # Forward, its repetition, the gradient of hidden; and that of the unembedding with its sum.
    assert cost((0, 1), chunk=16) == (4, True)
    assert cost(0, chunk=16) == (3, False)
    # Logits that fit one chunk are not computed again.
    assert cost((0, 1), chunk=64) == (3, True)
    assert cost(0, chunk=64) == (2, False)


def test_an_entropy_that_no_loss_takes_is_not_computed():
    hidden, unembedding, targets, _, _ = inputs((64,), 1009, 24)

    def passes(entropy):
        def loss(hidden):
            found = token_logprob(hidden, unembedding, targets)
            return jnp.sum(found[0]) + (jnp.sum(found[1]) if entropy else 0)

        text = jax.jit(jax.grad(loss)).lower(hidden).compile().as_text()
        _, program = text.split("\nENTRY")
        return len(re.findall(r"= f32\[(?:1,)?64,1009\]\S* (?:dot|fusion)", program))

    # The logits and their gradient; not the products of the odds and the logits.
    assert passes(entropy=False) == 2
    assert passes(entropy=True) > 2


def test_logits_that_are_kept_take_no_more_memory_than_logits_that_are_computed_again():
    def temporary(tokens, chunk):
        compiled = lowered(tokens, 10_007, 32, 0, chunk=chunk).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(64, 64) <= temporary(128, 64) + 4 * 64 * 32


@given(vocab=st.one_of(st.sampled_from([s.vocab for s in SHAPES.values()]), st.integers(1, 10**9)))
def test_default_chunks_fit_their_budget(vocab):
    chunk, most = default_chunk(vocab), CHUNK_BYTES / (4 * vocab)
    assert most / 2 < chunk <= max(1, most)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"unembedding": np.ones((4, 9), np.float32)}, r"\[V, D\]: transpose"),
        ({"targets": np.zeros(3, np.int32)}, r"targets are \[3\].*\[2\]"),
        ({"targets": np.zeros(2, np.float32)}, "float32; expected integers"),
        ({"hidden": np.ones((2, 4), np.int32)}, "hidden is int32"),
        ({"suppressed": np.zeros(4, bool)}, r"suppressed is \[4\].*9 rows"),
        ({"temperature": 0}, "temperature is 0;"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": np.ones(2, np.float32)}, r"temperature is \[2\]"),
        ({"soft_cap": -1.0}, "soft_cap is -1"),
        ({"chunk": 0}, "chunk is 0"),
        ({"shards": 3}, r"shards is 3.*\[2\]"),
        ({"backend": "triton"}, "backend is 'triton'.*chunked"),
    ],
)
def test_wrong_arguments_are_refused(change, match):
    hidden, unembedding, targets, _, _ = inputs((2,), 9, 4)
    arguments = {"hidden": hidden, "unembedding": unembedding, "targets": targets} | change
    with pytest.raises(ValueError, match=match):
        token_logprob(**arguments)


DEVICES = """
import re
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from jaxalign.kernels.token_logprob import token_logprob

B, T, D, V = 8, 24, 48, 517
rng = np.random.default_rng(0)
hidden = rng.normal(size=(B, T, D)).astype(np.float32)
unembedding = rng.normal(size=(V, D)).astype(np.float32)
targets = rng.integers(0, V, (B, T))
mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))

def loss(hidden, unembedding, targets, **switches):
    logprob, entropy = token_logprob(hidden, unembedding, targets, chunk=20, **switches)
    return jnp.mean(logprob) + jnp.mean(entropy)

def put(array, *axes):
    return jax.device_put(array, NamedSharding(mesh, P(*axes)))

def check(name, flat):
    h, t = (a.reshape(B * T, *a.shape[2:]) if flat else a for a in (hidden, targets))
    args = put(h, "data"), put(unembedding), put(t, "data")
    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    compiled = step.lower(*args).compile()
    text = compiled.as_text()
    value, (d_hidden, d_unembedding) = compiled(*args)
    expected = jax.value_and_grad(loss, argnums=(0, 1))(h, unembedding, t, shards=1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7),
                 (value, (d_hidden, d_unembedding)), expected)
    assert d_hidden.sharding.spec[0] == "data", d_hidden.sharding
    assert not re.search("all-gather|all-to-all|collective-permute", text), name
    moved = [line for line in text.splitlines() if re.search(r" all-reduce(-start)?\\(", line)]
    assert moved, name
    # The gradient of the unembedding is added over devices once, after the loop.
    assert not any("while" in line for line in moved), moved
    per_device = compiled.memory_analysis().temp_size_in_bytes
    assert per_device < 4 * (3 * 20 * V + 3 * V * D) + 50_000, per_device

for flat in (False, True):
    check(f"flat={flat}", flat)
print("fine")
"""


def run_python(python, code, **environment):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    command = [python, "-c", code]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_tokens_laid_out_over_devices_stay_there():
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"
    assert "fine" in run_python(sys.executable, DEVICES, XLA_FLAGS=flags, JAX_PLATFORMS="cpu")


H200 = """
import sys
import jax, jax.numpy as jnp
from h200_topology import h200_mesh
from jaxalign.kernels.token_logprob import token_logprob
from jaxalign.kernels.token_logprob.shapes import QWEN3_8B

V, D = QWEN3_8B
_, whole = h200_mesh()
spec = lambda shape, dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=whole)

def loss(hidden, unembedding, targets):
    logprob, entropy = token_logprob(hidden, unembedding, targets)
    return jnp.sum(logprob) + jnp.sum(entropy)

def temporary(tokens, step):
    shapes = spec((tokens, D), jnp.bfloat16), spec((V, D), jnp.bfloat16), spec((tokens,), jnp.int32)
    options = {"xla_gpu_autotune_level": 0}
    compiled = jax.jit(step).lower(*shapes).compile(compiler_options=options)
    return compiled.memory_analysis().temp_size_in_bytes / 2**30

for name, step, besides in [
    ("forward", token_logprob, 0),
    ("backward, frozen unembedding", jax.grad(loss), 0),
    ("backward", jax.grad(loss, argnums=(0, 1)), V * D * 4 / 2**30),
]:
    few, many = temporary(4096, step), temporary(32_768, step)
    print(f"{name}: {few:.3f} GiB at 4,096 tokens, {many:.3f} at 32,768")
    # Besides: the float32 sum that the bfloat16 gradient is made of.
    assert many - besides < 1.2 and many - few < 0.01, name
"""


@pytest.mark.slow
def test_memory_on_an_h200():
    """H200_PYTHON names a Python with jax[cuda13]; no card is needed."""
    python, tools = os.environ.get("H200_PYTHON"), ROOT.parent / "shared" / "tools"
    if python is None or not (tools / "h200_topology.py").exists():
        pytest.skip("H200_PYTHON or the tool is not there")
    path = f"{ROOT}{os.pathsep}{tools}"
    print(run_python(python, H200, PYTHONPATH=path, JAX_SKIP_CUDA_CONSTRAINTS_CHECK="1"))
