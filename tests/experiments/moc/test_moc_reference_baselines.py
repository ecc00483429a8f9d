"""The reference's best of n and its system prompts, against a search by hand."""

import chex
import jax
import numpy as np
import pytest
import tiny_policies as tiny

from jaxalign.errors import InputError
from jaxalign.experiments.moc.reference_baselines import (
    ReferenceBaselines,
    SystemPrompts,
    check_no_system_turn,
    read_system_prompts,
)
from jaxalign.experiments.moc.selection import best_of_n, best_of_n_kl, best_policy, chosen
from jaxalign.rollout import PolicyRollouts, ReferencePolicy, rollout_policies

PREFERENCES = np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]], np.float32)
KEY = jax.random.key(5)


def controls(samples=2):
    return ReferenceBaselines(
        tiny.language_model(), tiny.TEXT_REWARD, tiny.scale(), tiny.PROMPTS, tiny.SETTINGS,
        PREFERENCES, np.array([True, False, True]), KEY, samples, 40, progress=False,
    )  # fmt: skip


def sampled(policies, weights, samples):
    return rollout_policies(
        tiny.language_model(), policies, weights, tiny.PROMPTS, tiny.TEXT_REWARD, tiny.SETTINGS,
        KEY, samples=samples, batch_size=40, progress=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def best():
    return controls().best_of("best of 4", 4)


def test_the_best_of_n_is_the_best_of_each_n_completions(best):
    found = sampled(ReferencePolicy(), np.zeros((1, 0)), 8)
    levels = tiny.scale().levels(found.rewards.astype(np.float64))[0]
    expected = np.zeros((3, len(tiny.PROMPTS), 2))
    for row, preference in enumerate(PREFERENCES):
        for place, answers in enumerate(levels):
            sets = [
                max(part, key=lambda r, p=preference: p @ r) for part in (answers[:4], answers[4:])
            ]
            expected[row, place] = np.mean(sets, axis=0)
    chex.assert_trees_all_close(best.rewards, expected, atol=1e-6)
    assert best.samples == 2
    assert best.seen.tolist() == [True, False, True]
    # More than one of four can give: better than what is drawn, for every preference.
    mean = np.einsum("WXR,WR->W", best.rewards, PREFERENCES)
    assert (mean > levels.mean(axis=(0, 1)) @ PREFERENCES.T).all()


def test_its_kl_is_the_known_bound(best):
    chex.assert_trees_all_close(best.kl, np.full(best.kl.shape, np.log(4) - 3 / 4))
    # Exact where the n completions never tie: the best of n uniform numbers has density n u^(n-1).
    u = (np.arange(200_000) + 0.5) / 200_000
    density = 8 * u**7
    assert best_of_n_kl(8) == pytest.approx(np.mean(density * np.log(density)), abs=1e-4)
    assert best_of_n_kl(1) == 0


def test_a_system_prompt_is_chosen_on_the_other_half():
    rng = np.random.default_rng(0)
    levels = rng.normal(size=(3, 6, 2, 2))
    halves = np.array([0, 1, 0, 1, 0, 1])
    choice = best_policy(levels, PREFERENCES, halves)
    chex.assert_shape((choice.policy, choice.sample), (3, 6, 2))
    for row, preference in enumerate(PREFERENCES):
        for place in range(6):
            other = levels[:, halves != halves[place]].mean(axis=(1, 2)) @ preference
            assert (choice.policy[row, place] == other.argmax()).all()
    # What is judged does not choose: another value of a prompt leaves its own policy as it was.
    changed = levels.copy()
    changed[:, 2] += rng.normal(size=(3, 2, 2))
    again = best_policy(changed, PREFERENCES, halves).policy
    assert (again[:, halves == 0] == choice.policy[:, halves == 0]).all()


def test_system_prompts_are_read_and_priced():
    found = controls().system_prompts("2 system prompts", ("a a a", "f"))
    drawn = sampled(SystemPrompts(("a a a", "f")), np.eye(2), 2)
    levels = tiny.scale().levels(drawn.rewards.astype(np.float64))
    choice = best_policy(levels, PREFERENCES, np.arange(len(tiny.PROMPTS)) % 2)
    expected = chosen(drawn, choice)
    chex.assert_trees_all_close(
        found.rewards, tiny.scale().levels(expected.rewards.astype(np.float64)).mean(axis=2)
    )
    # The reference reads the plain prompt, so a system prompt has a KL to it.
    assert np.abs(found.kl).max() > 1e-4
    chex.assert_trees_all_close(found.kl, (expected.logprobs - expected.ref_logprobs).mean(axis=2))


def test_a_chat_gets_a_turn_of_the_system():
    one = SystemPrompts(("Be kind.", "Be brief."))
    chat = ({"role": "user", "content": "Hi"},)
    assert one.prompt(chat, [1.0, 0.0]) == ({"role": "system", "content": "Be kind."}, *chat)
    with pytest.raises(InputError, match=r"prompt 2 begins with a system turn; expected none"):
        check_no_system_turn(["Hi", one.prompt(chat, [1.0, 0.0])])
    check_no_system_turn(["Hi", chat])


def test_files_of_system_prompts(tmp_path):
    path = tmp_path / "system.txt"
    path.write_text("Be kind.\n\nBe brief.\nBe kind.\n")
    assert read_system_prompts(path) == ("Be kind.", "Be brief.")
    path.write_text("Be kind.\nBe kind.\n")
    with pytest.raises(InputError, match=r"found 1 text, expected two or more different system"):
        read_system_prompts(path)
    with pytest.raises(InputError, match=r"nowhere\.txt"):
        read_system_prompts(tmp_path / "nowhere.txt")


def test_rollouts_are_chosen_in_all_their_parts():
    shape = (2, 3, 4)
    found = PolicyRollouts(
        np.arange(48.0).reshape(*shape, 2), *(np.arange(24.0).reshape(shape) + n for n in (1, 2)),
        np.arange(24).reshape(shape), np.arange(24).astype(str).astype(object).reshape(shape),
    )  # fmt: skip
    levels = np.random.default_rng(1).normal(size=(1, 3, 4, 2))
    choice = best_of_n(levels, PREFERENCES, 2)
    only = replace_policy(choice, 1)
    got = chosen(found, only)
    for row, place, sample in np.ndindex(only.policy.shape):
        taken = 1, place, only.sample[row, place, sample]
        assert got.texts[row, place, sample] == found.texts[taken]
        assert got.logprobs[row, place, sample] == found.logprobs[taken]
        assert (got.rewards[row, place, sample] == found.rewards[taken]).all()
    chex.assert_shape(got.completion_lengths, (3, 3, 2))


def replace_policy(choice, number):
    return choice._replace(policy=np.full_like(choice.policy, number))
