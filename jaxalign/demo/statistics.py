"""Every figure of the demo's report, as plain numbers."""

from typing import Any

import numpy as np

from jaxalign.demo.answers import ENCODER, DemoAnswers
from jaxalign.demo.study import (
    QUERY,
    SHOTS,
    SUPPORT,
    TRAIN_CHOICES,
    DemoData,
    Design,
    Study,
    correlations,
    coverage,
    expected_accuracy,
    gap_interval,
    shot_curve,
)
from jaxalign.metrics import accuracy, calibration_error, nll, share_of_gap
from jaxalign.rewards.rules import TRAITS
from jaxalign.version import __version__

DemoReport = dict[str, Any]
"""The report, as in report.json: nested dicts of plain values."""
TARGETS = {"named": 0.70, "learned": 0.35}
"""Shares of the gap that the friendly population must show."""
TOP = 3


def assemble(
    answers: DemoAnswers,
    plan: Design,
    worlds: dict[str, DemoData],
    studies: dict[str, dict[str, Study]],
    seed: int,
    encoder_sha256: str,
) -> DemoReport:
    """The report, as in report.json."""
    populations = {name: _population(worlds[name], studies[name], plan, seed) for name in worlds}
    shares = {kind: populations["friendly"][kind]["share"] for kind in TARGETS}
    return {
        "format": 1,
        "demo": True,
        "finished": True,
        "version": __version__,
        "simulated": True,
        "seed": seed,
        "answers": {
            "written_by": str(answers.origin.get("model", "a language model")),
            "prompts": len(answers.prompts),
            "held_out_prompts": len(plan.held_out),
            "distinct": len(answers.texts),
        },
        "users": {role: len(getattr(plan, role)) for role in ("train", "validation", "test")},
        "choices": {"train": TRAIN_CHOICES, "adapt": SHOTS, "adapt_most": SUPPORT, "judge": QUERY},
        "rewards": {"names": list(TRAITS), "digest": answers.scale.digest},
        "encoder": {"name": ENCODER, "sha256": encoder_sha256},
        "targets": {
            kind: {"share": least, "reached": bool((shares[kind] or 0) >= least)}
            for kind, least in TARGETS.items()
        },
        "populations": populations,
        "opposites": opposites(worlds["friendly"], studies["friendly"]["named"], answers, plan),
    }


def _population(
    world: DemoData, studies: dict[str, Study], plan: Design, seed: int
) -> dict[str, Any]:
    crowd = world.people
    true = crowd.weights[plan.test]
    query = world.query["test"]
    truth = expected_accuracy(query.probability, query)
    mask = np.ones(query.chosen.shape, bool)
    result: dict[str, Any] = {
        "saturating": crowd.saturating,
        "lapses": crowd.lapses,
        "position_bias": crowd.bias,
        "true_accuracy": float(truth.mean()),
        "true_nll": nll(query.probability, mask),
        "disliked_share": float((true < 0).mean()),
    }
    best_floor = max(float(expected_accuracy(s.one_model, query).mean()) for s in studies.values())
    for kind, study in studies.items():
        floor = expected_accuracy(study.one_model, query)
        value = expected_accuracy(study.adapted, query)
        low, high = gap_interval(value, floor, truth, seed)
        spread = np.sqrt(np.diagonal(study.cov, axis1=1, axis2=2))
        result[kind] = {
            "setting": study.setting,
            "one_model": float(floor.mean()),
            "adapted": float(value.mean()),
            "true": float(truth.mean()),
            "share": _number(
                share_of_gap(float(value.mean()), float(floor.mean()), float(truth.mean()))
            ),
            "share_low": _number(low),
            "share_high": _number(high),
            # The same over the better of the two floors, whichever rewards it was fitted on.
            "share_over_best_floor": _number(
                share_of_gap(float(value.mean()), best_floor, float(truth.mean()))
            ),
            "harmed": float((value < floor).mean()),
            "accuracy_of_drawn_choices": {
                "one_model": accuracy(study.one_model, mask),
                "adapted": accuracy(study.adapted, mask),
                "true": accuracy(query.probability, mask),
            },
            "nll": nll(study.adapted, mask),
            "nll_one_model": nll(study.one_model, mask),
            "calibration_error": calibration_error(study.adapted, mask),
            "correlation": dict(
                zip([*TRAITS, "pooled"], correlations(study.mean, true), strict=True)
            ),
            "posterior_sd": float(spread.mean()),
            "coverage_95": coverage(study, true),
            "r_squared": float(study.explained.mean()),
            "curve": shot_curve(study.curve, query, seed),
        }
    return result


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def opposites(world: DemoData, study: Study, answers: DemoAnswers, plan: Design) -> dict[str, Any]:
    """Two test users of clearly different inferred taste, and how each ranks the same answers.

    They are the pair whose inferred weights point most against each other, both being among the
    surer half (long weights); of the held-out prompts it is the one they disagree on most.
    """
    length = np.linalg.norm(study.mean, axis=1)
    sure = np.flatnonzero(length >= np.median(length))
    unit = study.mean[sure] / np.maximum(length[sure], 1e-12)[:, None]
    pair = sure[list(np.unravel_index(np.argmin(unit @ unit.T), (len(sure), len(sure))))]
    prompts = [p for p in plan.held_out if (answers.prompt == p).sum() >= 2]
    scores = {p: study.scores[pair][:, answers.prompt == p] for p in prompts}
    prompt = min(prompts, key=lambda p: _agreement(scores[p]))
    rows = np.flatnonzero(answers.prompt == prompt)
    shown = []
    for user, score in zip(pair, scores[prompt], strict=True):
        order = rows[np.argsort(-score, kind="stable")]
        few = min(TOP, len(order) // 2)
        number = plan.test[user]
        shown.append(
            {
                "user": f"u{number:04d}",
                "true": _taste(world.people.weights[number]),
                "inferred": _taste(study.mean[user]),
                "top": [answers.texts[row] for row in order[:few]],
                "bottom": [answers.texts[row] for row in order[-few:]],
            }
        )
    return {
        "prompt": answers.prompts[prompt],
        "answers": len(rows),
        "correlation": _agreement(scores[prompt]),
        "users": shown,
    }


def _agreement(scores: np.ndarray) -> float:
    return float(np.corrcoef(scores)[0, 1]) if np.all(scores.std(axis=1) > 0) else 1.0


def _taste(weights: np.ndarray) -> dict[str, Any]:
    names = list(TRAITS)
    return {
        "likes": names[int(np.argmax(weights))],
        "dislikes": names[int(np.argmin(weights))] if weights.min() < 0 else None,
        "weights": dict(zip(names, map(float, weights), strict=True)),
    }
