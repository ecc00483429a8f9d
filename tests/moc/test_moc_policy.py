"""A policy: how it is given a preference, and how it is kept."""

from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import moc_world as world
import numpy as np
import pytest

from jaxalign import moc
from jaxalign.errors import InputError
from jaxalign.moc.policy import conditioned_inputs, prompt_token_ids, soft_token
from jaxalign.models.buckets import padded
from jaxalign.models.generate import generate
from jaxalign.models.peft import load_adapter
from jaxalign.models.sampling import Sampling
from jaxalign.rewards.reward_scale import RewardIds, fit_scale
from jaxalign.runs.artifact import save_artifact

SETTINGS = Sampling(max_tokens=4, min_tokens=1, stop_ids=(world.STOP,))
HALF = np.array([[0.5, 0.5], [1.0, 0.0]], np.float32)


def policy_of(conditioning="tags", scale=None):
    config = world.config(conditioning=conditioning)
    return moc.init_policy(jax.random.key(3), world.language_model(), world.NAMES, config, scale)


def moved(policy):
    """The same policy as if it had been trained."""
    keys = iter(range(100))

    def at(leaf):
        return leaf + 0.1 * jax.random.normal(jax.random.key(next(keys)), leaf.shape)

    return replace(policy, trained=jax.tree.map(at, policy.trained))


def read(policy, preferences=HALF):
    ids = prompt_token_ids(policy, ["a b", "c"], preferences)
    return padded(ids, (2, 8)), np.array([len(row) for row in ids], np.int32)


def inputs(policy, preferences=HALF):
    table = policy.model.params["embed"]["table"]
    return conditioned_inputs(policy.trained, table, policy.lora, jnp.asarray(preferences))


def answers(policy, preferences=HALF, seed=0):
    return generate(
        policy.model.config, policy.model.params, *read(policy, preferences), jax.random.key(seed),
        SETTINGS, **inputs(policy, preferences),
    )  # fmt: skip


def test_tags_stand_before_the_prompt():
    tokens, lengths = read(policy_of())
    words = [[world.VOCABULARY[i] for i in row[:n]] for row, n in zip(tokens, lengths, strict=True)]
    assert words[0] == ["<pref_red>", "0.5", "<pref_blue>", "0.5", "a", "b"]
    assert words[1] == ["<pref_red>", "1.0", "<pref_blue>", "0.0", "c"]
    plain, lengths = read(policy_of("none"))
    assert [world.VOCABULARY[i] for i in plain[0, : lengths[0]]] == ["a", "b"]


def test_a_fresh_policy_answers_as_its_model():
    policy = policy_of()
    tokens, lengths = read(policy)
    model = policy.model
    plain = generate(model.config, model.params, tokens, lengths, jax.random.key(0), SETTINGS)
    found = answers(policy)
    np.testing.assert_array_equal(found.tokens, plain.tokens)
    assert not np.allclose(answers(moved(policy)).logprobs, plain.logprobs, atol=1e-2)


def test_a_soft_token_is_as_long_as_words_are():
    policy = policy_of("token")
    table = policy.model.params["embed"]["table"]
    corners = jnp.concatenate([jnp.eye(2), jnp.full((1, 2), 0.5)])
    found = soft_token(policy.trained["token"], table, corners)
    chex.assert_shape(found, (3, 1, world.CONFIG.width))
    norms = np.linalg.norm(np.asarray(table), axis=1)
    np.testing.assert_allclose(np.linalg.norm(found[:, 0], axis=1), norms.mean(), rtol=1e-5)
    own = np.asarray(found[:, 0])
    unit = own / np.linalg.norm(own, axis=1, keepdims=True)
    assert (unit @ unit.T)[np.triu_indices(3, 1)].max() < 0.95  # told apart from the start
    given = inputs(policy)
    chex.assert_shape(given["prefix"], (2, 1, world.CONFIG.width))
    assert inputs(policy_of())["prefix"] is None


@pytest.mark.parametrize("conditioning", ["tags", "token"])
def test_a_policy_comes_back_from_its_folder(tmp_path, conditioning, monkeypatch):
    raw = np.random.default_rng(0).random((20, 2)) * [1.0, 5.0]
    policy = moved(policy_of(conditioning, fit_scale(raw, world.NAMES)))
    moc.save(tmp_path / "one", policy_of(conditioning))
    moc.save(tmp_path / "one", policy)  # over an older one
    back = moc.load(tmp_path / "one", policy.model)
    chex.assert_trees_all_equal(back.trained, policy.trained)
    assert (back.names, back.conditioning, back.decimals) == (world.NAMES, conditioning, 1)
    assert back.scale == policy.scale
    assert back.lora == replace(policy.lora, targets=back.lora.targets)
    assert set(back.lora.targets) == set(policy.lora.targets)
    config, adapter = load_adapter(tmp_path / "one", world.CONFIG)
    assert config == back.lora
    chex.assert_trees_all_equal(adapter, policy.trained["adapter"])
    np.testing.assert_array_equal(answers(back).tokens, answers(policy).tokens)
    # By the name in the folder, where no model is given.
    module = __import__("sys").modules["jaxalign.moc.files"]
    monkeypatch.setattr(module, "load_language_model", lambda name, dtype, shardings: policy.model)
    assert moc.load(tmp_path / "one").model is policy.model


def test_folders_that_are_no_policy(tmp_path):
    policy = policy_of("token")
    moc.save(tmp_path, policy)
    path = tmp_path / "policy.safetensors"
    with pytest.raises(InputError, match=r"weights 000000000000.*tiny with 111111111111"):
        moc.load(tmp_path, replace(policy.model, sha256="1" * 64))
    content = path.read_bytes()
    path.write_bytes(content[:-8] + b"\1" * 8)
    with pytest.raises(InputError, match="digest does not fit"):
        moc.load(tmp_path, policy.model)
    save_artifact(path, "value table", RewardIds(("red",), "0"), {"kl": np.zeros(1)})
    with pytest.raises(InputError, match="holds a value table; expected a MOC policy"):
        moc.load(tmp_path, policy.model)
    path.unlink()  # as in the older format: moc.json and heads.safetensors
    with pytest.raises(InputError, match="expected a MOC policy: train it with `jaxalign moc"):
        moc.load(tmp_path, policy.model)


def test_what_does_not_fit_is_refused():
    scale = fit_scale(np.random.default_rng(0).random((9, 2)), ("blue", "red"))
    with pytest.raises(InputError, match="the scale is of blue, red, the policy of red, blue"):
        policy_of(scale=scale)
    policy = policy_of()
    with pytest.raises(InputError, match=r"preferences of shape \(1, 2\) for 2 prompts"):
        prompt_token_ids(policy, ["a", "b"], [[0.5, 0.5]])
    with pytest.raises(InputError, match=r"sums to 0\.9"):
        prompt_token_ids(policy, ["a"], [[0.5, 0.4]])
    with pytest.raises(InputError, match=r"the context of tiny has 64"):
        prompt_token_ids(policy, ["a " * 70], [[0.5, 0.5]])
