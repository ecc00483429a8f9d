"""The demo's fourth stage: a policy of a small decoder, conditioned on a preference."""

from itertools import combinations

import numpy as np
import pytest

from jaxalign.demo import answers as A
from jaxalign.demo import conditioned as C
from jaxalign.demo import conditioned_page as P
from jaxalign.demo import writer as W
from jaxalign.demo.study import design
from jaxalign.demo.toy import STOP, init_params, word_model
from jaxalign.experiments.moc.evaluation import Evaluation
from jaxalign.experiments.moc.judge import judged_preferences
from jaxalign.experiments.moc.statistics import evaluation_report
from jaxalign.progress import Progress
from jaxalign.rewards import fit_scale, rule_rewards
from jaxalign.rewards.rules import TRAITS, structure, warmth

TEXTS = ("- Thank you!\n- Don't be sad.", "Be kind, and be glad.", "Be so kind. 12 times")


def some_model(words=20):
    """A decoder that is never run, with the words of TEXTS."""
    tokenizer = W._tokenizer(TEXTS)
    config = W.DecoderConfig("llama", words, 8, 1, 1, 1, 8, 8, positions=W.CONFIG.positions)
    return word_model(config, init_params(config, 0), tokenizer, "tiny")


def some_evaluation(policy="MOC", follows=1.0, seed=0):
    """A policy whose levels are the preferences as far as it follows, on six prompts."""
    points, seen = judged_preferences(C.REWARDS, C.MOC.preferences)
    points = points.astype(np.float64).round(7)
    noise = np.random.default_rng(seed).normal(0, 0.05, (len(points), 6, 2))
    rewards = 0.5 + follows * (points[:, None] - 0.5) + noise
    flat = np.zeros(len(points))
    scale = fit_scale(np.array([[0.0, 0.0], [1.0, 1.0]]), C.REWARDS)
    return Evaluation(
        policy, scale, points, seen, rewards, np.zeros((len(points), 6)), flat,
        flat, tuple(f"Why {number}?\n" for number in range(6)),
        tuple(tuple(f"{row}-{number}" for number in range(6)) for row in range(len(points))),
        samples=1, temperature=1.0,
    )  # fmt: skip


def test_words_come_back_as_the_text_they_were():
    model = some_model()
    for text in TEXTS:
        ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert model.tokenizer.decode(ids, skip_special_tokens=True) == text
        assert W.UNKNOWN not in ids
    assert model.tokenizer.eos_token_id == STOP


def test_rare_words_are_read_and_never_learned_and_long_answers_do_not_end():
    model = some_model()
    long = "Be kind." * W.ANSWER_TOKENS
    learned = W._completions(model, ["Be so?\n"] * 2, ["Be zealous.", long])
    short, cut = (learned.sequences.tokens_of(row).tolist() for row in range(2))
    prompt = model.tokenizer("Be so?\n")["input_ids"]
    assert short[: len(prompt)] == cut[: len(prompt)] == prompt
    assert short[-1] == STOP
    assert STOP not in cut
    assert len(cut) == len(prompt) + W.ANSWER_TOKENS
    flags = learned.learned[: len(short)]
    assert not flags[: len(prompt)].any()
    answer = np.array(short[len(prompt) :])
    np.testing.assert_array_equal(flags[len(prompt) :], answer != W.UNKNOWN)
    assert (answer == W.UNKNOWN).sum() == 1


def test_equally_frequent_words_have_one_order():
    first, again = (W._tokenizer(texts).get_vocab() for texts in (TEXTS, TEXTS[::-1]))
    assert first == again


def test_every_shipped_prompt_fits_and_the_rewards_conflict_most():
    answers = A.read_answers()
    words = W._tokenizer(answers.texts)
    lengths = [len(words.encode(W.question(prompt)).ids) for prompt in answers.prompts]
    assert max(lengths) == W.PROMPT_TOKENS
    shares = {
        pair: C.shipped_conflict(answers, pair)["single_share"]
        for pair in combinations(tuple(TRAITS), 2)
    }
    assert min(shares, key=shares.get) == tuple(n for n in TRAITS if n in C.REWARDS)


def test_levels_are_those_of_the_shipped_answers_as_the_decoder_cuts_them():
    long = "- You are so good. " + "Be as kind as you can be. " * 9
    rows = [{"id": "a", "prompt": "Why?", "answers": [{"text": t} for t in (*TEXTS, long)]}]
    answers = A.from_rows({}, rows)
    scale = C.shipped_scale(answers, rule_rewards(C.REWARDS))
    cut = [*TEXTS, "- You are so good. Be as kind as you can be. Be as kind as"]
    assert ["".join(pieces) for pieces in W.answer_pieces(answers.texts)] == cut
    raw = np.array([[warmth(text), structure(text)] for text in cut])
    np.testing.assert_allclose(scale.low, np.quantile(raw, 0.05, axis=0), atol=1e-6)
    np.testing.assert_allclose(scale.high, np.quantile(raw, 0.95, axis=0), atol=1e-6)


def test_values_are_those_of_a_loop():
    judged, other = some_evaluation(), some_evaluation("reference", 0.0, 1)
    found = C.preference_values(judged, other, judged)
    points = judged.preferences
    for prompt in range(6):
        own = [points[w] @ judged.rewards[w, prompt] for w in range(11)]
        wrong = [
            points[w] @ judged.rewards[v, prompt] for w in range(11) for v in range(11) if v != w
        ]
        plain = [points[w] @ other.rewards[w, prompt] for w in range(11)]
        assert found["own"][prompt] == pytest.approx(np.mean(own))
        assert found["shuffled"][prompt] == pytest.approx(np.mean(wrong))
        assert found["reference"][prompt] == pytest.approx(np.mean(plain))
        assert found["best_of"][prompt] == found["own"][prompt]
    single = [np.mean(points @ judged.rewards[v].mean(axis=0)) for v in range(11)]
    assert found["ignored"].mean() == pytest.approx(max(single))


@pytest.mark.parametrize("follows", [0.0, 1.0])
def test_the_controls_expose_a_policy_that_does_not_follow(follows):
    judged = some_evaluation(follows=follows)
    found = {name: value.mean() for name, value in C.preference_values(*[judged] * 3).items()}
    moved = C._movement(judged, 0)
    if follows:
        assert found["own"] > found["ignored"] + 0.05 > found["shuffled"]
        assert all(one["low"] > 0.6 for one in moved.values())
    else:
        assert abs(found["own"] - found["shuffled"]) < 0.02
        assert found["own"] < found["ignored"] + 0.02
        assert all(abs(one["mean"]) < 0.1 for one in moved.values())


def some_report():
    judged = [some_evaluation(), some_evaluation("reference", 0.0, 1), some_evaluation("best")]
    values = C.preference_values(*judged)
    means = {name: C.resampled_mean(0, value) for name, value in values.items()}
    return {
        "best_of": 4,
        "evaluation": evaluation_report(judged, draws=5),
        "value": means,
        "gain": {name: one for name, one in means.items() if name != "own"},
        "held_out_movement": C._movement(judged[0], 0),
        "achieved": [C._achieved(judged[0], row, 0) for row in (10, 5, 0)],
        "shown": [{"prompt": "Why?", "answers": ["- a\n- b", "c", "d"]}],
    }


def test_the_page_shows_answers_rewards_and_controls():
    found = some_report()
    values = P.page_values(found)
    assert "| Why? | - a / - b | c | d |" in values["preference_answers"]
    assert "warmth 0.5, structure 0.5" in values["preference_achieved"]
    assert (values["preference_points"], values["preference_held"]) == (11, 5)
    for words in ("| MOC |", "shuffled", "ignored", "before the training", "best of 4"):
        assert words in values["preference_table"]
    assert "best of 4" in P.summary(found)


@pytest.mark.slow
def test_the_policy_follows_the_preference():
    answers, seed = A.read_answers(), 1
    plan = design(600, len(answers.prompts), seed)
    found = C.run_conditioned(answers, plan, seed, Progress(False))
    parts = found["evaluation"]["policies"]["MOC"]["parts"]
    assert all(one["low"] >= 0.4 for one in parts["seen"]["movement"].values())
    assert all(one["value"] >= 0.8 for one in parts["held_out"]["tau"].values())
    assert all(one["low"] > 0.4 for one in found["held_out_movement"].values())
    assert found["gain"]["shuffled"]["low"] > 0
    assert found["gain"]["ignored"]["low"] > 0
    assert parts["seen"]["kl"] < 10
