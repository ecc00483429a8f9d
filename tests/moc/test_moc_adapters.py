"""One adapter for each reward, mixed by the preference; and the baseline of the group."""

from dataclasses import replace
from functools import cache

import chex
import jax
import jax.numpy as jnp
import moc_world as world
import numpy as np
import peft
import pytest
import tiny_lms
import torch
from test_moc_policy import SETTINGS, moved

from jaxalign import cli, moc
from jaxalign.errors import InputError
from jaxalign.moc.experience import (
    RolloutScores,
    compute_group_experience,
    group_advantages,
)
from jaxalign.moc.policy import conditioned_inputs
from jaxalign.models import families, lora
from jaxalign.models.completions import (
    CompletionBatch,
    completion_logprobs,
    sampling_distribution,
)
from jaxalign.models.generate import generate
from jaxalign.models.language import LanguageModel, layout
from jaxalign.models.peft import load_adapter
from jaxalign.models.sampling import Sampling
from jaxalign.models.weights.load import load_params
from jaxalign.personalize.policies import Conditioned

NAMES = ("red", "blue", "green")
PREFERENCES = np.array([[0.2, 0.5, 0.3], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]], np.float32)
TOKENS = np.array([[20, 21, 22, 23], [24, 25, 26, 27], [28, 29, 30, 31]], np.int32)
PROMPT = 2


@cache
def trained_policy(names=NAMES):
    config = world.config(conditioning="adapters", advantage_baseline="group")
    policy = moc.init_policy(jax.random.key(3), world.language_model(), names, config)
    return moved(policy)


def logprobs(policy, preferences, tokens=TOKENS, trained=None, settings=SETTINGS):
    """Log-probabilities [B, M] of the last tokens of each row, under the policy."""
    own, model = policy.trained if trained is None else trained, policy.model
    given = conditioned_inputs(
        own, model.params["embed"]["table"], policy.lora, jnp.asarray(preferences)
    )
    full = np.full(len(tokens), PROMPT, np.int32)
    batch = CompletionBatch(tokens[:, :PROMPT], full, tokens[:, PROMPT:], full)
    distribution = sampling_distribution(settings, model.config.vocab_size)
    return completion_logprobs(model.config, model.params, batch, distribution, **given)[0]


def test_weighted_rows_are_a_loop_over_rows_and_adapters():
    rng = np.random.default_rng(0)
    inputs, a, b = (rng.normal(size=s).astype("f4") for s in ((3, 4, 5), (2, 5, 3), (2, 3, 6)))
    weights = rng.normal(size=(3, 2)).astype("f4")
    expected = np.zeros((3, 4, 6))
    for row in range(3):
        for number in range(2):
            expected[row] += weights[row, number] * (inputs[row] @ a[number] @ b[number])
    found = lora.delta(jnp.asarray(inputs), {"a": jnp.asarray(a), "b": jnp.asarray(b)},
                       jnp.asarray(weights))  # fmt: skip
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_rows_of_a_batch_are_as_each_alone_and_corners_are_single_adapters():
    policy = trained_policy()
    together = logprobs(policy, PREFERENCES)
    for row, preference in enumerate(PREFERENCES):
        alone = logprobs(policy, preference[None], TOKENS[row : row + 1])
        np.testing.assert_allclose(together[row], alone[0], atol=1e-5)
    one = jax.tree.map(lambda leaf: leaf[:, 0], policy.trained["adapter"])
    single = logprobs(policy, PREFERENCES[:1], TOKENS[1:2], {**policy.trained, "adapter": one})
    np.testing.assert_allclose(together[1], single[0], atol=1e-5)


def test_no_weight_is_the_reference_bit_for_bit():
    policy = trained_policy()
    none = {**policy.trained, "adapter": {}}
    found = logprobs(policy, np.zeros((3, 3), np.float32))
    np.testing.assert_array_equal(found, logprobs(policy, PREFERENCES, trained=none))


def test_at_a_corner_the_other_adapters_have_no_gradient():
    policy = trained_policy()
    corner = np.eye(3, dtype=np.float32)[[1, 1, 1]]

    def loss(trained):
        return jnp.sum(logprobs(policy, corner, trained=trained))

    found = jax.grad(loss)(policy.trained)["adapter"]
    chex.assert_tree_all_finite(found)
    for pair in lora.adapted_pairs(found).values():
        for factor in pair.values():
            chex.assert_trees_all_equal(factor[:, [0, 2]], jnp.zeros_like(factor[:, [0, 2]]))
            assert float(jnp.abs(factor[:, 1]).max()) > 0


def test_a_fresh_policy_is_its_model_and_the_tree_has_no_heads():
    config = world.config(conditioning="adapters", advantage_baseline="group")
    policy = moc.init_policy(jax.random.key(0), world.language_model(), NAMES, config)
    assert policy.trained["heads"] == {}
    for pair in lora.adapted_pairs(policy.trained["adapter"]).values():
        chex.assert_shape(pair["a"], (2, 3, None, world.LORA.rank))
        assert not np.allclose(pair["a"][:, 0], pair["a"][:, 1])
    found = logprobs(policy, PREFERENCES)
    none = {**policy.trained, "adapter": {}}
    np.testing.assert_array_equal(found, logprobs(policy, PREFERENCES, trained=none))


def test_generation_takes_weights_by_row():
    policy = trained_policy()
    stacked = Conditioned(policy, np.eye(3)).stacked(PREFERENCES)
    lengths = np.full(3, 2, np.int32)

    def answers(arguments, tokens=TOKENS[:, :2], lengths=lengths):
        return generate(policy.model.config, policy.model.params, tokens, lengths,
                        jax.random.split(jax.random.key(0), 3)[: len(tokens)], SETTINGS,
                        **arguments)  # fmt: skip

    found = answers(stacked.arguments([0, 1, 2]))
    plain = answers({})
    np.testing.assert_array_equal(found.tokens[2], plain.tokens[2])
    np.testing.assert_array_equal(found.logprobs[2], plain.logprobs[2])
    assert not np.allclose(found.logprobs[0], plain.logprobs[0], atol=1e-3)
    reordered = stacked.arguments([0])
    chex.assert_shape(reordered["rows"], (1, 3))
    alone = answers(reordered, TOKENS[:1, :2], lengths[:1])
    np.testing.assert_array_equal(found.tokens[0], alone.tokens[0])
    adapters = reordered["adapters"]
    for rows, message in (
        (np.full((3, 3), np.nan, np.float32), "weigh adapters; expected finite floats"),
        (np.ones((3, 3), np.int32), "weigh adapters; expected finite floats"),
        (np.ones((3, 2), np.float32), r"rows has shape \(3, 2\); expected \(3,\) or \(3, 3\)"),
    ):
        with pytest.raises(InputError, match=message):
            answers({"adapters": adapters, "rows": rows})


def test_a_policy_comes_back_and_concatenation_is_undone(tmp_path):
    policy = trained_policy()
    moc.save(tmp_path, policy)
    back = moc.load(tmp_path, policy.model)
    chex.assert_trees_all_equal(back.trained, policy.trained)
    assert back.conditioning == "adapters"
    np.testing.assert_array_equal(logprobs(back, PREFERENCES), logprobs(policy, PREFERENCES))
    joined = lora.concatenate(policy.trained["adapter"])
    chex.assert_trees_all_equal(lora.split(joined, 3), policy.trained["adapter"])
    with pytest.raises(InputError, match="rank 24, expected a multiple of 5"):
        lora.split(joined, 5)


# Of the library peft, which asks its base for a name that is going away.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_a_preference_is_one_adapter_as_peft_makes_it(tmp_path):
    config = families.config_from_hf(tiny_lms.hf_config("llama").to_dict())
    tensors = tiny_lms.in_memory(tiny_lms.hf_model("llama"))
    params = load_params(tensors, layout(config))
    model = LanguageModel(config, params, None, {}, "tiny", "0" * 64)
    settings = world.config(conditioning="adapters", advantage_baseline="group")
    policy = moved(moc.init_policy(jax.random.key(3), model, NAMES, settings))
    weights = np.array([0.2, 0.5, 0.3], np.float32)
    moc.save_preference(tmp_path / "mixed", policy, weights)
    for number, name in enumerate(NAMES):
        moc.save_preference(tmp_path / name, policy, np.eye(3)[number])
    saved, own = load_adapter(tmp_path / "red", config)
    assert saved.rank == world.LORA.rank
    red = jax.tree.map(lambda leaf: leaf[:, 0], policy.trained["adapter"])
    chex.assert_trees_all_close(own, red, atol=1e-7)
    ids = torch.as_tensor(TOKENS.astype(np.int64))

    def scores(torch_model):
        with torch.no_grad():
            found = torch.log_softmax(torch_model(ids).logits[:, PROMPT - 1 : -1], -1)
        return found.gather(2, ids[:, PROMPT:, None])[..., 0].numpy()

    expected = logprobs(policy, np.tile(weights, (3, 1)), settings=Sampling(max_tokens=PROMPT))
    mixed = peft.PeftModel.from_pretrained(tiny_lms.hf_model("llama"), tmp_path / "mixed").eval()
    np.testing.assert_allclose(scores(mixed), expected, atol=1e-5)
    theirs = peft.PeftModel.from_pretrained(
        tiny_lms.hf_model("llama"), tmp_path / "red", adapter_name="red"
    )
    for name in NAMES[1:]:
        theirs.load_adapter(tmp_path / name, adapter_name=name)
    theirs.add_weighted_adapter(list(NAMES), weights.tolist(), "all", combination_type="cat")
    theirs.set_adapter("all")
    np.testing.assert_allclose(scores(theirs.eval()), expected, atol=1e-5)


def test_only_policies_of_adapters_are_written_for_a_preference(tmp_path):
    config = world.config(conditioning="token")
    policy = moc.init_policy(jax.random.key(0), world.language_model(), world.NAMES, config)
    with pytest.raises(InputError, match="conditioned by 'token'; expected 'adapters'"):
        moc.save_preference(tmp_path / "x", policy, [0.5, 0.5])
    with pytest.raises(InputError, match=r"sums to 0\.9"):
        moc.save_preference(tmp_path / "x", trained_policy(), [0.2, 0.4, 0.3])
    assert not (tmp_path / "x").exists()


def test_the_groups_baseline_is_that_of_numpy(x64):
    rng = np.random.default_rng(1)
    groups, rows, slots, rewards_count = 3, 4, 5, 2
    rewards = rng.random((groups * rows, rewards_count))
    ends = rng.integers(1, slots + 1, groups * rows)
    mask = np.arange(slots)[None] < ends[:, None]
    old, ref = -rng.random((2, groups * rows, slots)) * mask
    scores = RolloutScores(*map(jnp.asarray, (old, ref, np.zeros((*mask.shape, 3)))))
    slope = rng.normal(size=rewards.shape)
    found = compute_group_experience(
        jnp.asarray(rewards), jnp.asarray(slope), scores, jnp.asarray(mask), 0.3, groups
    )
    raw = np.zeros_like(rewards)
    for row in range(groups * rows):
        others = [n for n in range(groups * rows) if n // rows == row // rows and n != row]
        raw[row] = rewards[row] - rewards[others].mean(0)
    tokens = raw[:, None, :] * mask[..., None]
    for stream in range(rewards_count):
        own = tokens[..., stream][mask]
        expected = (tokens[..., stream] - own.mean()) / np.sqrt(own.var(ddof=1) + 1e-8) * mask
        np.testing.assert_allclose(found.advantages[..., stream], expected, atol=1e-9)
        # Whatever its place, a token has the advantage of its completion.
        for row, end in enumerate(ends):
            assert np.ptp(np.asarray(found.advantages)[row, :end, stream]) == 0
    price = -0.3 * (old - ref)
    np.testing.assert_allclose(found.kl_advantages, (price - price[mask].mean()) * mask, atol=1e-9)
    chex.assert_trees_all_equal(found.returns, scores.values)
    with pytest.raises(InputError, match="found 1, whose group has no others"):
        world.config(rows=1, advantage_baseline="group", combine=moc.CombineConfig("linear"))
    assert np.allclose(group_advantages(jnp.asarray(rewards[:rows])).sum(0), 0)


def test_it_trains_and_resumes_to_the_same_policy(tmp_path):
    config = world.config(steps=3, epochs=1, conditioning="adapters", advantage_baseline="group",
                          checkpoint_every=1)  # fmt: skip
    policy = moc.init_policy(jax.random.key(1), world.language_model(), world.NAMES, config)
    whole = moc.train(policy, world.reward(), world.PROMPTS, config)
    assert whole.history[0]["first_drift"] < 1e-4
    assert whole.history[0]["value_loss"] == 0
    np.testing.assert_allclose(whole.history[0]["kl"], 0, atol=1e-4)
    moc.train(policy, world.reward(), world.PROMPTS, replace(config, steps=3), tmp_path / "a")
    again = moc.train(policy, world.reward(), world.PROMPTS, config, tmp_path / "a")
    chex.assert_trees_all_close(again.policy.trained, whole.policy.trained, atol=1e-6)
    first, last = (jax.tree.leaves(p.trained["adapter"])[1] for p in (policy, whole.policy))
    assert float(jnp.abs(first - last).max()) > 1e-4
    with pytest.raises(
        InputError, match="0 value heads, 'vector' with the advantage_baseline 'values'"
    ):
        moc.train(
            policy, world.reward(), world.PROMPTS, replace(config, advantage_baseline="values")
        )


def test_the_command_writes_an_adapter(tmp_path, monkeypatch, capsys):
    policy = trained_policy()
    moc.save(tmp_path / "run" / "model", policy)
    loader = "jaxalign.moc.files.load_language_model"
    monkeypatch.setattr(loader, lambda name, dtype, shardings: policy.model)
    arguments = ["moc", "export", "--model", str(tmp_path / "run"), "--out", str(tmp_path / "one")]
    assert cli.main([*arguments, "--preference", "red=0.5,green=0.5"]) == 0
    assert "rank 16 for tiny" in capsys.readouterr().out
    _, adapter = load_adapter(tmp_path / "one", policy.model.config)
    expected = logprobs(policy, np.array([[0.5, 0, 0.5]] * 3, np.float32))
    trained = {**policy.trained, "adapter": adapter}
    found = logprobs(replace(policy, conditioning="none"), PREFERENCES, trained=trained)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert cli.main([*arguments, "--preference", "red=0.5"]) == 2
    assert "sums to 0.5, expected 1; perhaps red=1,blue=0,green=0 is" in capsys.readouterr().err
    assert cli.main([*arguments, "--preference", "red=0,green=1"]) == 2
    said = capsys.readouterr().err
    assert "one is not empty; " in said
    assert "holds a LoRA adapter" in said
