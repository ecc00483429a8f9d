"""Reward models from choices: the chosen answer's reward above the rejected one's."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxalign.config_fields import checks_fields
from jaxalign.data import Preferences
from jaxalign.data.bad_rows import OnBadRow
from jaxalign.data.files import choices_of, encode, read_choices
from jaxalign.data.messages import Conversation
from jaxalign.data.sequences import Sequences
from jaxalign.data.splits import hold_out_rows
from jaxalign.errors import InputError
from jaxalign.models import families
from jaxalign.models.classifier import Classifier, classify, tokenize
from jaxalign.models.heads import ValueHead, last_token
from jaxalign.models.language import LanguageModel
from jaxalign.models.lora import LoraConfig
from jaxalign.models.params import Params, PyTree
from jaxalign.progress import Progress, counted
from jaxalign.rewards.reward_model import reward_model
from jaxalign.train.failures import Streak
from jaxalign.train.loop import LoopConfig, LoopResult, Rows, check_batch, fit
from jaxalign.train.mesh import batch_sharding, make_mesh
from jaxalign.train.optimiser import OptimiserConfig
from jaxalign.train.step import Batch, Sums
from jaxalign.train.trunk import (
    TrainableParams,
    TrunkConfig,
    check_trunk,
    hidden_states,
    init_train_state,
    split_trainable,
)

_SAME = 1e-6  # of a loss of ln 2 in float32
Texts = list[str] | list[tuple[str, str]]  # alone, or each with its prompt


@dataclass(frozen=True)
@checks_fields
class RewardConfig:
    """A run of reward modelling.

    Attributes:
        max_tokens: most tokens of prompt and answer together in training and its validation, at
            least 1; longer ones lose their end. The finished model reads as many as its context
            has, and so does the report's accuracy.
        hold_out: what is held out whole to measure accuracy on: a `group` (conversation or topic)
            of a user, a `user`, or a `prompt`. Choose `user` to measure accuracy for new users.
        hold_out_share: share of the groups, users or prompts that is held out, in [0, 1).
        on_bad_row: `refuse` a file with a row that cannot be used, or `drop` such rows, say how
            many and why, and go on; a file most of whose rows are bad is refused all the same.
        trunk: which parameters of the model are trained, their precision and devices; the reward
            head is always trained.
        loop: epochs, batches and intervals.
        optimiser: learning rate and schedule.

    Example:
        >>> from jaxalign.rewards.bradley_terry import RewardConfig
        >>> RewardConfig(hold_out="user").loop.epochs
        1
    """

    max_tokens: int = 1024
    hold_out: Literal["group", "user", "prompt"] = "group"
    hold_out_share: float = 0.1
    on_bad_row: OnBadRow = "refuse"
    trunk: TrunkConfig = field(default_factory=TrunkConfig)
    loop: LoopConfig = field(default_factory=partial(LoopConfig, epochs=1))
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.hold_out_share < 1 or self.max_tokens < 1:
            raise InputError(
                f"hold_out_share is {self.hold_out_share} and max_tokens {self.max_tokens}; "
                "expected a share in [0, 1) and at least one token."
            )


@dataclass(frozen=True)
class ObjectiveChoices:
    """Choices and what each is about.

    Attributes:
        preferences: N rows.
        objective: [N] int32, the head that a row trains.
        labels: names of the heads; `("reward",)` where the choices have no objectives.
    """

    preferences: Preferences
    objective: np.ndarray
    labels: tuple[str, ...]

    def take(self, rows: np.ndarray) -> "ObjectiveChoices":
        """Some of the rows."""
        return replace(
            self, preferences=self.preferences.take(rows), objective=self.objective[rows]
        )


def load_choices(source: str, on_bad_row: OnBadRow = "refuse") -> ObjectiveChoices:
    """Read choices and, where there is such a column, the `objective` of each.

    Args:
        source: as `jaxalign.data.load` takes it; without `user`, all rows are of one.
        on_bad_row: as of `jaxalign.data.load`.

    Raises:
        InputError: the source cannot be read, or only some rows have an objective.
    """
    table, bad = read_choices(source, ("objective",), False, on_bad_row)
    preferences = choices_of(table, bad, require_user=False)
    if "objective" not in table.columns:
        return ObjectiveChoices(preferences, np.zeros(len(preferences), np.int32), ("reward",))
    objective, labels = encode(table.texts("objective"))
    return ObjectiveChoices(preferences, objective, labels)


def bradley_terry(difference: jax.Array, win: jax.Array) -> jax.Array:
    """Return the negative log-likelihood of a choice under the Bradley-Terry model.

    Args:
        difference: reward of the chosen less that of the rejected, at least float32.
        win: 1 for a choice, 1/2 for a tie (half a choice each way).

    Returns:
        win * softplus(-difference) + (1 - win) * softplus(difference).

    Source: Bradley and Terry 1952, Biometrika 39.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.rewards.bradley_terry import bradley_terry
        >>> [round(float(bradley_terry(margin, 1.0)), 3) for margin in jnp.array([0.0, 2.0])]
        [0.693, 0.127]
    """
    return jax.nn.softplus(-difference) + (1 - win) * difference


def loss(
    config: families.Config,
    adapter: LoraConfig,
    mesh: Mesh,
    trained: TrainableParams,
    frozen: Params,
    batch: Batch,
    key: jax.Array | None,
) -> Sums:
    """Bradley-Terry loss of a batch, summed; each row trains the head of its objective.

    Args:
        config: of the decoder; static.
        adapter: of LoRA; static.
        mesh: where parameters and rows lie.
        trained: as from `jaxalign.train.trunk.split_trainable`, and {"head": {"kernel": [D, R]}}.
        frozen: as from there.
        batch: `tokens` [B, 2, T] int32 of the chosen and the rejected, `lengths` [B, 2] int32,
            `objective` [B] int32, `win` and `weight` [B] float32.
        key: of dropout; None drops nothing.

    Returns:
        `loss` in nats, `accuracy` (half for equal rewards and for ties) and `weight`, all [] and
        summed over rows.
    """
    rows, _, width = batch["tokens"].shape
    tokens = batch["tokens"].reshape(2 * rows, width)
    lengths = batch["lengths"].reshape(2 * rows)
    hidden = hidden_states(config, adapter, mesh, trained, frozen, tokens, lengths, key)
    head = ValueHead(trained["head"]["kernel"].shape[1], bias=False)
    values: PyTree = head.apply({"params": trained["head"]}, last_token(hidden, lengths))
    own = batch["objective"][:, None, None]
    rewards = jnp.take_along_axis(values.reshape(rows, 2, -1), own, axis=2)[:, :, 0]
    difference = rewards[:, 0] - rewards[:, 1]
    weight, win = (batch[name].astype(difference.dtype) for name in ("weight", "win"))
    right = jnp.where(win == 0.5, 0.5, 0.5 * (1 + jnp.sign(difference)))
    return {
        "loss": jnp.sum(weight * bradley_terry(difference, win)),
        "accuracy": jnp.sum(weight * right),
        "weight": jnp.sum(weight),
    }


def rows_of(choices: ObjectiveChoices, texts: Sequences, widest: int) -> Rows:
    """Choices as the loop takes them; `texts` holds the tokens of each item."""
    table = choices.preferences
    sides = np.stack([table.chosen, table.rejected], axis=1)
    win = np.where(table.tie, 0.5, 1.0).astype(np.float32)

    def assemble(rows: np.ndarray, width: int) -> dict[str, np.ndarray]:
        there = rows >= 0
        items = np.where(there[:, None], sides[rows], -1)
        tokens, lengths = texts.padded(items.ravel(), width)
        return {
            "tokens": tokens.reshape(len(rows), 2, width),
            "lengths": lengths.reshape(len(rows), 2),
            "objective": np.where(there, choices.objective[rows], 0).astype(np.int32),
            "win": win[rows],
            "weight": there.astype(np.float32),
        }

    return Rows(texts.lengths[sides].max(axis=1), assemble, widest)


class AlikeWatch:
    """Warns while both answers of every choice of a step have the same reward."""

    def __init__(self, say: Callable[[str], None]) -> None:
        """Start to watch; `say` is called with a warning."""
        self._say, self._alike = say, Streak()

    def look(self, step: int, values: Mapping[str, float]) -> None:
        """Take the metrics of a step, as of `loss`, and warn where it is due.

        Args:
            step: its number.
            values: `loss` and `accuracy`; rewards that are all the same have ln 2 and a half.
        """
        same = values["accuracy"] == 0.5 and abs(values["loss"] - math.log(2)) < _SAME
        if self._alike.is_due(same):
            self._say(
                f"warning: step {step}: for {self._alike.length} steps both answers of every "
                "choice had the same reward, from which nothing is learned: raise max_tokens if it "
                "cuts off what tells them apart, or optimiser.rate if it is too low to start from, "
                "in a new folder"
            )


def check_distinct(choices: ObjectiveChoices, texts: Sequences) -> int:
    """Return how many choices have the same tokens on both sides, and refuse where all have.

    Args:
        choices: N.
        texts: of `tokenized_items`, for the items of their table.

    Raises:
        InputError: no choice has answers that differ.
    """
    table = choices.preferences
    pairs = zip(table.chosen.tolist(), table.rejected.tolist(), strict=True)
    same = sum(np.array_equal(texts.tokens_of(a), texts.tokens_of(b)) for a, b in pairs)
    if same == len(table.chosen):
        raise InputError(
            f"{table.source}: both answers of every choice have the same first "
            f"{texts.lengths.max()} tokens, from which nothing can be learned: raise max_tokens, "
            "or correct the choices."
        )
    return same


def check_run(
    base: LanguageModel,
    choices: ObjectiveChoices,
    texts: Sequences,
    config: RewardConfig,
    say: Callable[[str], None],
) -> None:
    """Refuse what takes other settings, before a run opens its folder.

    Args:
        base: the trunk.
        choices: what to learn.
        texts: of `tokenized_items`, for the items of the table.
        config: the run.
        say: called with a line on choices from which nothing is learned.

    Raises:
        InputError: a LoRA target that the model lacks, batches that do not divide over the
            devices, or as `check_distinct`.
    """
    check_trunk(config.trunk, base.params)
    check_batch(config.loop, batch_sharding(make_mesh(config.trunk.mesh)))
    if same := check_distinct(choices, texts):
        say(
            f"{counted(same, 'choice')} with the same tokens on both sides, from which nothing is "
            "learned: raise max_tokens if it cuts off what tells them apart"
        )


def hold_out(
    choices: ObjectiveChoices, by: str, share: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and to judge on; no group, user or prompt has rows in both.

    Raises:
        InputError: where there are too few to have some in each.
    """
    codes = getattr(choices.preferences, by)
    lone = codes < 0  # a row without a prompt is one of its own
    codes = np.where(lone, codes.max(initial=-1) + 1 + np.arange(len(codes)), codes)
    distinct = np.unique(codes)
    if not share:
        return np.arange(len(codes)), np.zeros(0, np.int64)
    if len(distinct) < 2:
        raise InputError(
            f"{choices.preferences.source} has one {by}, of which none can be held out; set "
            "hold_out to another, or hold_out_share to 0."
        )
    held = np.isin(codes, distinct[hold_out_rows(len(distinct), share, seed)[1]])
    return np.flatnonzero(~held), np.flatnonzero(held)


def train(
    base: LanguageModel,
    texts: Sequences,
    choices: ObjectiveChoices,
    held: ObjectiveChoices | None,
    config: RewardConfig,
    folder: Path,
    progress: Progress | None = None,
) -> LoopResult:
    """Train a reward model, going on from the newest state in the folder.

    Args:
        base: the trunk; full training uses up its parameters.
        texts: of `tokenized_items`, for the items of the table.
        choices: what to learn.
        held: what to judge by, of the same table, None for nothing.
        config: the run.
        folder: for metrics and states.
        progress: where it is shown; None shows nothing.

    Returns:
        `params` is {"head": {"kernel": [D, R]}} with {"adapter": tree}, not scaled, or with
        {"model": parameters}.

    Raises:
        InputError: as `jaxalign.train.sft.train`.
    """
    mesh = make_mesh(config.trunk.mesh)
    decoder = replace(config.trunk.decoder(base.config, mesh), tied=True)
    fresh, head_key, run = jax.random.split(jax.random.key(config.loop.seed), 3)
    trunk = {name: value for name, value in base.params.items() if name != "unembed"}
    trained, frozen = split_trainable(fresh, trunk, config.trunk, mesh, decoder)
    head = ValueHead(len(choices.labels), bias=False)
    last = jnp.zeros((1, decoder.width), jnp.float32)
    trained["head"] = dict(head.init(head_key, last)["params"])
    limit = min(config.max_tokens, decoder.positions)
    say = (progress or Progress(False)).say
    return fit(
        init_train_state(run, trained, config.optimiser, mesh, decoder),
        frozen,
        partial(loss, decoder, config.trunk.lora, mesh),
        rows_of(choices, texts, limit),
        None if held is None else rows_of(held, texts, limit),
        config.loop,
        config.optimiser,
        folder,
        say,
        batch_sharding(mesh),
        check=AlikeWatch(say).look,
    )


def tokenized_items(base: LanguageModel, table: Preferences, config: RewardConfig) -> Sequences:
    """Return the tokens of every item, as scoring will read them.

    Raises:
        InputError: the chat template refuses an item, or it has no tokens.
    """
    empty = jnp.zeros((base.config.width, 1), jnp.float32)
    limit = min(config.max_tokens, base.config.positions)
    reader = replace(reward_model(base, ("reward",), empty, base.params), max_length=limit)
    ids: list[list[int]] = [[] for _ in table.items]
    for rows, texts in _inputs(table, np.arange(len(table.items))):
        found, _ = tokenize(reader, texts)
        for row, tokens in zip(rows, found, strict=True):
            ids[row] = tokens
    return Sequences.of(ids)


def pairwise_accuracy(model: Classifier, choices: ObjectiveChoices) -> dict[str, float]:
    """Share of the choices, ties left out, whose chosen answer has the higher reward.

    Args:
        model: with the labels of the choices.
        choices: unseen ones.

    Returns:
        For each label its accuracy (equal rewards count half), and `all`; a label without
        choices is absent.
    """
    strict = choices.take(np.flatnonzero(~choices.preferences.tie))
    table = strict.preferences
    used = np.unique(np.concatenate([table.chosen, table.rejected]))
    rewards = np.zeros((len(table.items), len(model.labels)))
    for rows, texts in _inputs(table, used):
        rewards[rows] = classify(model, texts)
    own = strict.objective
    right = 0.5 * (1 + np.sign(rewards[table.chosen, own] - rewards[table.rejected, own]))
    judged = {
        label: float(right[own == number].mean())
        for number, label in enumerate(choices.labels)
        if (own == number).any()
    }
    return judged | ({"all": float(right.mean())} if len(right) else {})


def _inputs(table: Preferences, items: np.ndarray) -> list[tuple[np.ndarray, Texts]]:
    """Items with a prompt as pairs, conversations of their own form, and the others as texts."""
    talks: dict[int, str] = {}
    pairs: dict[int, tuple[str, str]] = {}
    lone: dict[int, str] = {}
    for item in items.tolist():
        text, prompt = table.texts[item], _prompt(table.items[item], table.texts[item])
        if isinstance(text, Conversation) and text.roles:
            talks[item] = text
        elif prompt is not None:
            pairs[item] = (prompt, table.items[item])
        else:
            lone[item] = text
    parts = [(np.array([*part], int), [*part.values()]) for part in (talks, pairs, lone)]
    return [(rows, texts) for rows, texts in parts if texts]


def _prompt(answer: str, text: str) -> str | None:
    """What stands before an answer in a table's text of the two."""
    ending = f"\n\n{answer}"
    return text.removesuffix(ending) if text.endswith(ending) else None
