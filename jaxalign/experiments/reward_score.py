"""Rewards of the answers in a file, beside all that the file says of them."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxalign.config_fields import checks_fields
from jaxalign.data.choices import flat_choice
from jaxalign.data.features import scale_file
from jaxalign.data.tables import ANSWERS, Row, read_rows
from jaxalign.errors import InputError
from jaxalign.files import write_json
from jaxalign.models.classifier import classify_tokens, tokenize
from jaxalign.progress import track
from jaxalign.rewards.registry import rule_rewards
from jaxalign.rewards.reward_model import load_reward_model
from jaxalign.rewards.reward_scale import (
    RewardScale,
    fit_scale,
    join_scales,
    load_scale,
    varies,
)
from jaxalign.rewards.vector import compute_rewards
from jaxalign.runs.row_file import open_row_file
from jaxalign.runs.run_dir import Identity
from jaxalign.train.mesh import inference_shardings

KIND = "reward score"
_SPAN = 2048  # rows between two writes of the output


class Scorer(NamedTuple):
    """What gives rewards to the rows of one file.

    Attributes:
        names: [R] of the rewards.
        id: what tells these rewards from others.
        score: from a range of rows to their rewards [B, R].
    """

    names: tuple[str, ...]
    id: str
    score: Callable[[range], np.ndarray]


@dataclass(frozen=True)
@checks_fields
class ScoreConfig:
    """The rewards of a run of `score_rows`.

    Attributes:
        rewards: their names.
    """

    rewards: tuple[str, ...]


class Scored(NamedTuple):
    """What `score_rows` has done.

    Attributes:
        answers: how many were scored.
        names: of their rewards.
        scale: of all rewards that every row has and that vary; None where there are none.
    """

    answers: int
    names: tuple[str, ...]
    scale: RewardScale | None


def score_rows(
    source: str,
    out: str | Path,
    model: str | None = None,
    rewards: Sequence[str] = (),
    *,
    names: Sequence[str] = (),
    scale_from: str | Path | None = None,
    resume: bool = False,
    show: bool = True,
) -> Scored:
    """Write the rows of a file again, each with `rewards`, an object of numbers by name.

    The scale of the rewards, by which weights on them are understood, is written beside the file
    (`jaxalign.data.features.scale_file`) before the file itself is there.

    Args:
        source: rows with `completion`, or `answer`, and, in every row or none, `prompt`; texts or
            conversations: a file or data set as `jaxalign.data.tables.read_rows` takes it. Other
            columns are kept, and rewards of other names too. Of rows with `chosen` and `rejected`,
            both answers are scored, each once, without other columns than the prompt.
        out: file of JSON lines to write.
        model: folder of a reward model, or a name; None takes `rewards`.
        rewards: names of registered rewards; empty, without a model, keeps the rewards that the
            rows have and puts them on the scale of `scale_from`.
        names: of the model's rewards, one each; empty takes the labels of the model.
        scale_from: run or scores whose scale the rewards are put on, as `load_scale` takes it; None
            for the scale that the source states, and an estimate on its rows for other rewards. The
            rewards of a row then stand in the order of that scale.
        resume: go on with the rows that a stopped run has left.
        show: a progress bar on standard error.

    Raises:
        InputError: a bad row or model, a name that no reward has, a scale of other rewards, or
            `out` is of another run.
    """
    rows = list(_each_answer(read_rows(source, ANSWERS[0])))
    kept = _common_names([row.values for row in rows])
    wanted = None if scale_from is None else load_scale(scale_from)
    prompts, answers = _texts(rows)
    if model is not None:
        scorer = _model_scorer(model, prompts, answers, [row.where for row in rows])
    elif rewards:
        scorer = _rule_scorer(rewards, prompts or [""] * len(answers), answers, rows)
    else:
        scorer = Scorer((), "kept", lambda span: np.zeros((len(span), 0)))
    scorer = scorer._replace(names=_checked_names(names or scorer.names, scorer.names, rows))
    if wanted is not None:
        _check_covered(wanted, scorer.names or kept, str(scale_from))
    known = _known_scales(source, kept, scorer.names, wanted)
    order = () if wanted is None else wanted.names
    data = [repr(sorted(row.values.items())) for row in rows]
    identity: dict[str, Identity] = {
        "reward model": scorer.id,
        "data": data,
        "scales of the rewards": [scale.digest for scale in known.values()],
        "order of the rewards": list(order),
    }
    file = open_row_file(out, KIND, ScoreConfig(scorer.names), identity, resume)
    if not file.finished:
        spans = _spans(file.kept(_SPAN), len(rows))
        total = len(rows)
        for span in track("scoring", spans, total, len, show):
            table = scorer.score(span).tolist()
            found = (dict(zip(scorer.names, values, strict=True)) for values in table)
            file.append(_scored(rows[row], next(found), order) for row in span)
        _write_scale(out, _scale(list(file.rows()), known))
        file.finish()
    beside = scale_file(out)
    scale = load_scale(beside) if beside.exists() else None
    return Scored(len(rows), scorer.names, scale)


_SIDES = ("chosen", "rejected")


def _each_answer(rows: Iterable[Row]) -> Iterator[Row]:
    """Rows of answers as they are; of choices, a row for each answer that has not come before."""
    known: set[str] = set()
    for row in rows:
        is_choice = any(name in row.values for name in _SIDES)
        if not is_choice or any(row.has(name) for name in ANSWERS):
            yield row
            continue
        for name in _SIDES:  # by its own name, which the row of its answer has no longer
            row.conversation(name, "assistant")
        prompt, chosen, rejected = map(row.values.get, ("prompt", *_SIDES))
        choice = flat_choice(prompt, chosen, rejected, row.where)
        for said in (choice.chosen, choice.rejected):
            key = json.dumps([choice.prompt, said])
            if key not in known:
                known.add(key)
                own = {} if choice.prompt is None else {"prompt": choice.prompt}
                yield row._replace(values={**own, ANSWERS[0]: said})


def _common_names(rows: Sequence[Mapping[str, object]]) -> tuple[str, ...]:
    """The rewards that all rows have, in the order of the first."""
    found = list(map(_rewards_of, rows))
    return tuple(name for name in (found[0] if found else ()) if all(name in one for one in found))


def _rewards_of(row: Mapping[str, object]) -> dict[str, float]:
    """The rewards of a row that are numbers."""
    rewards = row.get("rewards")
    if not isinstance(rewards, dict):
        return {}
    return {name: value for name, value in rewards.items() if isinstance(value, int | float)}


def _check_covered(wanted: RewardScale, names: Sequence[str], source: str) -> None:
    """Refuse a scale that says nothing of the rewards, before they are computed."""
    if not names:
        raise InputError(
            "--scale-from without --rewards or --model: found rows without `rewards`, expected "
            "some to put on the scale; score the answers: add --rewards or --model."
        )
    if unknown := [name for name in names if name not in wanted.names]:
        raise InputError(
            f"--scale-from {source}: found a scale of {', '.join(wanted.names)}, expected one of "
            f"{', '.join(unknown)}; leave the option out to estimate the scale on these answers, "
            "or rename the rewards of a model with --names."
        )


def _known_scales(
    source: str, kept: Sequence[str], names: Sequence[str], wanted: RewardScale | None
) -> dict[str, RewardScale]:
    """Scales of single rewards that are not estimated: the wanted ones, else the source's own."""
    beside = scale_file(source)
    own = load_scale(beside) if kept and beside.exists() else None
    found: dict[str, RewardScale] = {}
    for scale, rewards in ((own, kept), (wanted, (*kept, *names))):
        if scale is not None:
            found |= {name: scale.take([name]) for name in rewards if name in scale.names}
    return found


def _scale(
    rows: Sequence[Mapping[str, object]], known: Mapping[str, RewardScale]
) -> RewardScale | None:
    """The scale of the rewards that all rows have; those that never vary have none."""
    rewards = list(map(_rewards_of, rows))
    parts = []
    for name in _common_names(rows):
        values = np.array([[row[name]] for row in rewards], np.float64)
        if name in known:
            parts.append(known[name])
        elif len(rows) > 1 and varies(values[:, 0]):
            parts.append(fit_scale(values, (name,), None))
    return join_scales(parts) if parts else None


def _write_scale(out: str | Path, scale: RewardScale | None) -> None:
    beside = scale_file(out)
    if scale is None:
        beside.unlink(missing_ok=True)  # of an earlier file of this name
    else:
        write_json(beside, scale.to_json())


def _checked_names(
    names: Sequence[str], own: tuple[str, ...], rows: Sequence[Row]
) -> tuple[str, ...]:
    """The names, one for each reward and none that a row has already."""
    if len(names) != len(own) or len(set(names)) < len(names) or not all(names):
        raise InputError(
            f"--names: found {', '.join(names)}, expected {len(own)} different ones, for "
            f"{', '.join(own)}."
        )
    for row in rows:
        before = row.values.get("rewards")
        if isinstance(before, dict) and (twice := sorted(before.keys() & set(names))):
            raise InputError(
                f"{row.where}: `rewards` has {', '.join(twice)} already, which would be lost: name "
                "the rewards of the model with --names, or remove the old ones."
            )
    return tuple(names)


def _spans(first: int, total: int) -> Iterator[range]:
    for start in range(first, total, _SPAN):
        yield range(start, min(start + _SPAN, total))


def _rule_scorer(
    names: Sequence[str], prompts: list[str], answers: list[str], rows: Sequence[Row]
) -> Scorer:
    reward = rule_rewards(names)

    def score(span: range) -> np.ndarray:
        here = slice(span.start, span.stop)
        return compute_rewards(
            reward, prompts[here], answers[here], span.start, lambda row: rows[row].where
        )

    return Scorer(reward.names, reward.id, score)


def _model_scorer(
    name: str, prompts: list[str] | None, answers: list[str], places: Sequence[str]
) -> Scorer:
    """A reward model. All rows are tokenised first: a bad one is found before the work."""
    model = load_reward_model(name, shardings=inference_shardings())
    texts = answers if prompts is None else list(zip(prompts, answers, strict=True))
    ids, types = tokenize(model, texts, places)

    def score(span: range) -> np.ndarray:
        here = slice(span.start, span.stop)
        return classify_tokens(model, ids[here], types and types[here])

    return Scorer(tuple(model.labels), f"{model.sha256} {model.config.dtype}", score)


def _texts(rows: Sequence[Row]) -> tuple[list[str] | None, list[str]]:
    """Prompts, where there are some, and answers, as rewards read them."""
    answers = [row.answer() for row in rows]
    if not any(row.has("prompt") for row in rows):
        return None, answers
    return [row.conversation("prompt", "user") for row in rows], answers


def _scored(row: Row, found: Mapping[str, float], order: Sequence[str]) -> dict[str, object]:
    """A row with its rewards, those named in `order` first."""
    before = row.values.get("rewards")
    rewards = {**(before if isinstance(before, dict) else {}), **found}
    first = [name for name in order if name in rewards]
    return {**row.values, "rewards": {name: rewards[name] for name in (*first, *rewards)}}
