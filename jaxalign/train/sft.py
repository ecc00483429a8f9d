"""Supervised fine-tuning: the log-probability of completions, raised."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxalign.config_fields import checks_fields
from jaxalign.data.completions import CompletionConfig, Completions
from jaxalign.data.sequences import pad_flat
from jaxalign.errors import InputError
from jaxalign.kernels.token_logprob import token_logprob
from jaxalign.models import families
from jaxalign.models.decoder import unembedding
from jaxalign.models.language import LanguageModel
from jaxalign.models.lora import LoraConfig
from jaxalign.models.params import PyTree
from jaxalign.progress import Progress
from jaxalign.train.loop import LoopConfig, LoopResult, Rows, check_batch, fit
from jaxalign.train.mesh import batch_sharding, gathered, make_mesh
from jaxalign.train.optimiser import OptimiserConfig
from jaxalign.train.step import Batch, Sums
from jaxalign.train.trunk import (
    TrunkConfig,
    check_trunk,
    hidden_states,
    init_train_state,
    split_trainable,
)


@dataclass(frozen=True)
@checks_fields
class SftConfig:
    """A run of supervised fine-tuning.

    Attributes:
        data: how texts become tokens.
        trunk: which parameters are trained, their precision and devices.
        loop: epochs, batches and intervals.
        optimiser: learning rate and schedule.
        validation_share: share of the rows, in [0, 1), that is held out to validate on if no file
            of validation rows is given. 0 trains on all rows and keeps the last step.

    Example:
        >>> from jaxalign.train.sft import SftConfig
        >>> SftConfig(validation_share=0.1).data.max_tokens
        1024
    """

    data: CompletionConfig = field(default_factory=CompletionConfig)
    trunk: TrunkConfig = field(default_factory=TrunkConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    validation_share: float = 0.05

    def __post_init__(self) -> None:
        if not 0 <= self.validation_share < 1:
            raise InputError(
                f"validation_share is {self.validation_share}; expected a share in [0, 1)."
            )


def loss(
    config: families.Config,
    adapter: LoraConfig,
    mesh: Mesh,
    trained: PyTree,
    frozen: PyTree,
    batch: Batch,
    key: jax.Array | None,
) -> Sums:
    """Negative log-probability of the learned tokens of a batch, summed.

    Args:
        config: of the decoder; static.
        adapter: of LoRA; static.
        mesh: where parameters and rows lie.
        trained, frozen: as from `jaxalign.train.trunk.split_trainable`.
        batch: `tokens` [B, T] int32, `lengths` [B] int32, `learned` [B, T] bool.
        key: of dropout; None drops nothing.

    Returns:
        `loss` in nats and `weight`, the learned tokens, both [] and at least float32.
    """
    tokens, learned = batch["tokens"], batch["learned"]
    hidden = hidden_states(config, adapter, mesh, trained, frozen, tokens, batch["lengths"], key)
    # Cut by fsdp, it would be gathered again for every chunk of tokens.
    table = gathered(unembedding(trained.get("model", frozen)), mesh)
    # A roll keeps T tokens a row, which the kernel cuts into whole chunks; the first comes round
    # to the end and counts for nothing.
    logprob, _ = token_logprob(hidden, table, jnp.roll(tokens, -1, axis=1))
    counts = jnp.roll(learned.at[:, 0].set(False), -1, axis=1)
    return {
        "loss": -jnp.sum(jnp.where(counts, logprob, 0)),
        "weight": jnp.sum(counts, dtype=logprob.dtype),
    }


def check_run(model: LanguageModel, completions: Sequence[Completions], config: SftConfig) -> None:
    """Refuse what takes other settings, before a run opens its folder.

    Args:
        model: where to begin.
        completions: what to learn and what to judge by.
        config: the run.

    Raises:
        InputError: as `train`, but for a loss that is not finite.
    """
    check_trunk(config.trunk, model.params)
    check_batch(config.loop, batch_sharding(make_mesh(config.trunk.mesh)))
    for part in completions:
        check_lengths(part, model.config)


def check_lengths(completions: Completions, config: families.Config) -> None:
    """Refuse a row longer than the model can read.

    Raises:
        InputError: there is one.
    """
    lengths = completions.sequences.lengths
    if lengths.max() > config.positions:
        raise InputError(
            f"{completions.source}: a row has {lengths.max()} tokens, more than the "
            f"{config.positions} that the model reads; lower data.max_tokens."
        )


def rows_of(completions: Completions, config: families.Config) -> Rows:
    """Completions as the loop takes them.

    Raises:
        InputError: as `check_lengths`.
    """
    check_lengths(completions, config)

    def assemble(rows: np.ndarray, width: int) -> dict[str, np.ndarray]:
        tokens, own = completions.sequences.padded(rows, width)
        learned = pad_flat(completions.learned, completions.sequences.starts, rows, width)
        return {"tokens": tokens, "lengths": own, "learned": learned}

    return Rows(completions.sequences.lengths, assemble, config.positions)


def train(
    model: LanguageModel,
    completions: Completions,
    validation: Completions | None,
    config: SftConfig,
    folder: Path,
    progress: Progress | None = None,
) -> LoopResult:
    """Fine-tune a model, going on from the newest state in the folder.

    Args:
        model: where to begin; full fine-tuning uses up its parameters.
        completions: what to learn.
        validation: what to judge by, None for nothing.
        config: the run.
        folder: for metrics and states.
        progress: where it is shown; None shows nothing.

    Returns:
        `params` is {"adapter": tree}, not scaled, or {"model": parameters}.

    Raises:
        InputError: a row longer than the model reads, a LoRA target that the model lacks, a mesh
            that does not fit the devices, or a loss that is not finite.
    """
    mesh = make_mesh(config.trunk.mesh)
    decoder = config.trunk.decoder(model.config, mesh)
    fresh, run = jax.random.split(jax.random.key(config.loop.seed))
    trained, frozen = split_trainable(fresh, model.params, config.trunk, mesh, decoder)
    return fit(
        init_train_state(run, trained, config.optimiser, mesh, decoder),
        frozen,
        partial(loss, decoder, config.trunk.lora, mesh),
        rows_of(completions, decoder),
        None if validation is None else rows_of(validation, decoder),
        config.loop,
        config.optimiser,
        folder,
        (progress or Progress(False)).say,
        batch_sharding(mesh),
    )
