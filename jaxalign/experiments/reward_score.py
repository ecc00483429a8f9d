"""Rewards of the answers in a file, beside all that the file says of them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxalign.data.tables import ANSWERS, Row, read_rows
from jaxalign.errors import InputError
from jaxalign.models.classifier import classify_tokens, tokenize
from jaxalign.progress import track
from jaxalign.rewards.registry import rule_rewards
from jaxalign.rewards.reward_model import load_reward_model
from jaxalign.rewards.vector import compute_rewards
from jaxalign.runs.row_file import open_row_file

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
class ScoreConfig:
    """The rewards of a run of `score_rows`.

    Attributes:
        rewards: their names.
    """

    rewards: tuple[str, ...]


def score_rows(
    source: str,
    out: str | Path,
    model: str | None = None,
    rewards: Sequence[str] = (),
    *,
    names: Sequence[str] = (),
    resume: bool = False,
    show: bool = True,
) -> tuple[int, tuple[str, ...]]:
    """Write the rows of a file again, each with `rewards`, an object of numbers by name.

    Args:
        source: rows with `completion`, or `answer`, and, in every row or none, `prompt`; texts or
            conversations: a file or data set as `jaxalign.data.tables.read_rows` takes it. Other
            columns are kept, and rewards of other names too.
        out: file of JSON lines to write.
        model: folder of a reward model, or a name; None takes `rewards`.
        rewards: names of registered rewards.
        names: of the model's rewards, one each; empty takes the labels of the model.
        resume: go on with the rows that a stopped run has left.
        show: a progress bar on standard error.

    Returns:
        How many answers were scored, and the names of their rewards.

    Raises:
        InputError: a bad row or model, a name that no reward has, or `out` is of another run.
    """
    rows = list(read_rows(source, ANSWERS[0]))
    prompts, answers = _texts(rows)
    if model is None:
        scorer = _rule_scorer(rewards, prompts or [""] * len(answers), answers, rows)
    else:
        scorer = _model_scorer(model, prompts, answers, [row.where for row in rows])
    scorer = scorer._replace(names=_checked_names(names or scorer.names, scorer.names, rows))
    data = [repr(sorted(row.values.items())) for row in rows]
    identity = {"reward model": scorer.id, "data": data}
    file = open_row_file(out, KIND, ScoreConfig(scorer.names), identity, resume)
    if not file.finished:
        spans = _spans(file.kept(_SPAN), len(rows))
        total = len(rows)
        for span in track("scoring", spans, total, len, show):
            table = scorer.score(span)
            file.append(_scored(rows[row], scorer.names, table[row - span.start]) for row in span)
        file.finish()
    return len(rows), scorer.names


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
    model = load_reward_model(name)
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


def _scored(row: Row, names: Sequence[str], values: np.ndarray) -> dict[str, object]:
    before = row.values.get("rewards")
    kept = before if isinstance(before, dict) else {}
    return {**row.values, "rewards": {**kept, **dict(zip(names, map(float, values), strict=True))}}
