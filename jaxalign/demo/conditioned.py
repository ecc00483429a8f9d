"""The demo's fourth stage: one policy conditioned on a preference between two rewards.

A small decoder, pretrained on the shipped answers to the known prompts, is trained by
`jaxalign.moc`: two adapters, mixed by the preference. It is judged on held-out prompts, under
preferences of which five were held out as well.
"""

from dataclasses import replace
from typing import TypedDict

import jax
import numpy as np

from jaxalign import moc
from jaxalign.demo.answers import DemoAnswers
from jaxalign.demo.study import Design, MeanInterval, resampled_mean
from jaxalign.demo.toy import count_parameters
from jaxalign.demo.writer import (
    ANSWER_TOKENS,
    PROMPT_TOKENS,
    SPECIAL,
    answer_pieces,
    make_writer,
    question,
)
from jaxalign.experiments.moc.baselines import conditioned
from jaxalign.experiments.moc.conflict import ConflictReport, conflict_report
from jaxalign.experiments.moc.evaluation import Evaluation
from jaxalign.experiments.moc.judge import evaluate_policy, judged_preferences
from jaxalign.experiments.moc.reference_baselines import ReferenceBaselines
from jaxalign.experiments.moc.statistics import MocEvaluationReport, evaluation_report
from jaxalign.models.lora import LoraConfig
from jaxalign.progress import Progress
from jaxalign.rewards import RewardScale, TextReward, compute_rewards, fit_scale, rule_rewards
from jaxalign.rewards.rules import TRAITS
from jaxalign.train.optimiser import OptimiserConfig
from jaxalign.train.trunk import TrunkConfig

REWARDS = ("warmth", "structure")
"""The two traits that conflict most in the shipped answers."""
MOC = moc.MocConfig(
    steps=50,
    groups=8,
    rows=8,
    prompt_tokens=PROMPT_TOKENS,
    answer_tokens=ANSWER_TOKENS,
    temperature=0.7,
    epochs=1,
    micro_batches=1,
    advantage_baseline="group",
    # Within 50 steps the coefficient has to follow the KL.
    kl=moc.KLConfig(coef=0.3, target=6.0, horizon=320.0),
    combine=moc.CombineConfig(rule="linear"),
    preferences=moc.PreferenceConfig(
        alpha=0.3, held_out=((0.1, 0.9), (0.3, 0.7), (0.5, 0.5), (0.7, 0.3), (0.9, 0.1))
    ),
    conditioning="adapters",
    trunk=TrunkConfig(
        lora=LoraConfig(rank=8, alpha=16.0), weights="float32", compute="float32", remat=None
    ),
    optimiser=OptimiserConfig(rate=1e-2, schedule="constant", warmup=0.0, clip_norm=0.5),
    samples_every=None,
)
SAMPLES = 2
"""Answers to each held-out prompt under each preference."""
DRAWS = 200
POLICY, REFERENCE = "MOC", "reference"
SHOWN = 4
"""Prompts whose answers are shown."""


class ShownAnswers(TypedDict):
    """Answers to one held-out prompt under the first, the even and the second preference."""

    prompt: str
    answers: list[str]


class Achieved(TypedDict):
    """What the policy achieves under one preference, in levels."""

    preference: list[float]
    rewards: dict[str, MeanInterval]


class ConditionedReport(TypedDict):
    """The `conditioned` part of report.json.

    `value` is the mean of p . r over the preferences p: of the policy under each of them (`own`),
    under the others in its place (`shuffled`), under the one that is best for all of them
    (`ignored`), of the reference and of the best of its answers. `gain` is what `own` has beyond
    the last four. `held_out_movement` is how much higher a reward is under the held-out preference
    that weighs it most than under the one that weighs it least.
    """

    decoder: dict[str, int]
    trained_parameters: int
    steps: int
    answers: int
    samples: int
    best_of: int
    conflict: ConflictReport
    evaluation: MocEvaluationReport
    value: dict[str, MeanInterval]
    gain: dict[str, MeanInterval]
    held_out_movement: dict[str, MeanInterval]
    achieved: list[Achieved]
    shown: list[ShownAnswers]


def run_conditioned(
    answers: DemoAnswers, plan: Design, seed: int, progress: Progress
) -> ConditionedReport:
    """Pretrain a decoder, train one policy of it for every preference, and judge that.

    Args:
        answers: What the decoder learns to write.
        plan: Which prompts are known, and which are held out to judge on.
        seed: Seed of the decoder, of the training and of the judging.
        progress: Where both trainings are shown.
    """
    model = make_writer(answers, plan.known, seed, progress)
    config, reward = replace(MOC, seed=seed), rule_rewards(REWARDS)
    known, held_out = (
        [question(answers.prompts[prompt]) for prompt in prompts]
        for prompts in (plan.known, plan.held_out)
    )
    scale = shipped_scale(answers, reward)
    fresh = moc.init_policy(jax.random.key(seed), model, REWARDS, config, scale)
    policy = moc.train(fresh, reward, known, config, progress=progress).policy
    points, seen = judged_preferences(REWARDS, config.preferences)
    sampling, key, batch = config.sampling(()), jax.random.key(seed), SAMPLES * len(held_out)
    judged = evaluate_policy(
        conditioned(policy, POLICY, points, seen), reward, scale, held_out, sampling, key, SAMPLES,
        batch, progress.show,
    )  # fmt: skip
    untrained = ReferenceBaselines(
        model, reward, scale, held_out, sampling, points, seen, key, SAMPLES, batch, progress.show
    )
    # As many answers as the policy was trained on.
    best_of = max(config.steps * config.batch // batch, 1)
    best = untrained.best_of(f"best of {best_of} of the reference", best_of)
    reference = untrained.best_of(REFERENCE, 1)
    values = preference_values(judged, reference, best)
    return {
        "decoder": {
            "layers": model.config.layers,
            "width": model.config.width,
            "words": len(model.tokenizer) - len(SPECIAL),
            "parameters": count_parameters(model.params),
        },
        "trained_parameters": count_parameters(policy.trained),
        "steps": config.steps,
        "answers": config.steps * config.batch,
        "samples": SAMPLES,
        "best_of": best_of,
        "conflict": shipped_conflict(answers, REWARDS),
        "evaluation": evaluation_report([judged, reference, best], draws=DRAWS, seed=seed),
        "value": {name: resampled_mean(seed, value) for name, value in values.items()},
        "gain": {
            name: resampled_mean(seed, values["own"] - value)
            for name, value in values.items()
            if name != "own"
        },
        "held_out_movement": _movement(judged, seed),
        "achieved": [_achieved(judged, row, seed) for row in _shown_rows(points)],
        "shown": [
            {
                "prompt": judged.prompts[place].strip(),
                "answers": [judged.completions[row][place] for row in _shown_rows(points)],
            }
            for place in range(min(SHOWN, len(held_out)))
        ],
    }


def shipped_scale(answers: DemoAnswers, reward: TextReward) -> RewardScale:
    """Return the scale of rewards on the shipped answers, cut as the decoder's own are.

    It is the same for every seed, where a decoder may happen to write no list at all.
    """
    texts = ["".join(pieces) for pieces in answer_pieces(answers.texts)]
    prompts = [answers.prompts[prompt] for prompt in answers.prompt]
    return fit_scale(compute_rewards(reward, prompts, texts), reward.names)


def shipped_conflict(answers: DemoAnswers, names: tuple[str, ...]) -> ConflictReport:
    """Return how far some traits conflict in as many shipped answers to each prompt as all have."""
    fewest = int(np.bincount(answers.prompt).min())
    rows = [np.flatnonzero(answers.prompt == p)[:fewest] for p in range(len(answers.prompts))]
    columns = [list(TRAITS).index(name) for name in names]
    return conflict_report(names, answers.traits[np.stack(rows)][:, :, columns])


def preference_values(
    judged: Evaluation, reference: Evaluation, best: Evaluation
) -> dict[str, np.ndarray]:
    """Return p . r of each prompt, mean over the preferences p: see `ConditionedReport`.

    Args:
        judged: The policy, under W preferences.
        reference: The same of the reference.
        best: The same of the best of its answers.

    Returns:
        [X] of each name.
    """
    preferences = judged.preferences
    # Of answers under one preference (V), what another (W) gives for them.
    across = np.einsum("WR,VXR->WVX", preferences, judged.rewards)
    count = len(preferences)
    own = np.diagonal(across).T.mean(axis=0)
    for_all = across.mean(axis=0)

    def direct(one: Evaluation) -> np.ndarray:
        return np.einsum("WR,WXR->X", preferences, one.rewards) / count

    return {
        "own": own,
        "shuffled": (for_all.sum(axis=0) - own) / (count - 1),
        "ignored": for_all[for_all.mean(axis=1).argmax()],
        "reference": direct(reference),
        "best_of": direct(best),
    }


def _movement(judged: Evaluation, seed: int) -> dict[str, MeanInterval]:
    rows = np.flatnonzero(~judged.seen)
    moved = {}
    for column, name in enumerate(judged.names):
        shares = judged.preferences[rows, column]
        most, least = judged.rewards[rows[[shares.argmax(), shares.argmin()]], :, column]
        moved[name] = resampled_mean(seed, most - least)
    return moved


def _achieved(judged: Evaluation, row: int, seed: int) -> Achieved:
    rewards = zip(judged.names, judged.rewards[row].T, strict=True)
    return {
        "preference": judged.preferences[row].tolist(),
        "rewards": {name: resampled_mean(seed, values) for name, values in rewards},
    }


def _shown_rows(points: np.ndarray) -> list[int]:
    """The first reward alone, both evenly, the second alone."""
    return [int(np.abs(points[:, 0] - share).argmin()) for share in (1.0, 0.5, 0.0)]
