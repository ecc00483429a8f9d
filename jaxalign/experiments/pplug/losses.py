"""The loss of the right answers: next-token cross-entropy behind soft prefixes."""

from collections.abc import Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jaxalign.data.histories import Histories
from jaxalign.errors import InputError
from jaxalign.kernels.token_logprob import token_logprob
from jaxalign.models import families
from jaxalign.models.buckets import bucket_length
from jaxalign.models.completions import CompletionBatch, completion_states
from jaxalign.models.decoder import unembedding
from jaxalign.models.language import LanguageModel
from jaxalign.pplug.config import TextConfig
from jaxalign.pplug.rows import tokenize_samples
from jaxalign.progress import track


def answer_losses(
    model: LanguageModel,
    text: TextConfig,
    histories: Histories,
    questions: Sequence[str],
    prefixes: np.ndarray | None = None,
    batch_size: int = 16,
    progress: bool = True,
) -> NDArray[np.float64]:
    """Return the next-token loss of the right answer to each question, stop token included.

    Args:
        model: The language model.
        text: Template and length limits.
        histories: N samples with outputs.
        questions: N texts to ask, such as the samples' inputs.
        prefixes: [N, Q, D] soft tokens before the prompts, or None.
        batch_size: Number of rows per batch.
        progress: Show a bar on standard error if it takes more than a few seconds.

    Returns:
        [N] mean loss per token of each answer, in nats.

    Raises:
        InputError: As `tokenize_samples`, or a loss is not finite.
    """
    prompts, targets = tokenize_samples(model, text, histories, questions)
    order = np.argsort(-prompts.lengths, kind="stable")
    parts = [order[first : first + batch_size] for first in range(0, len(order), batch_size)]
    slots = bucket_length(int(targets.lengths.max()), model.config.positions)
    found = np.zeros(len(order))
    for rows in track("losses of the right answers", parts, len(order), len, progress):
        filled = np.full(batch_size, rows[-1])
        filled[: len(rows)] = rows
        widest = int(prompts.lengths[rows].max())
        room = max(widest, model.config.positions)
        tokens, lengths = prompts.padded(filled, bucket_length(widest, room))
        answers = CompletionBatch(tokens, lengths, *targets.padded(filled, slots))
        before = None if prefixes is None else prefixes[filled]
        sums = _summed_losses(model.config, model.params, answers, before)
        found[rows] = np.asarray(sums, np.float64)[: len(rows)] / targets.lengths[rows]
    if not np.isfinite(found).all():
        raise InputError(
            f"{model.name} in {model.config.dtype} gives losses that are not finite: its weights "
            "or the plug are broken."
        )
    return found


@partial(jax.jit, static_argnums=0)
def _summed_losses(
    config: families.Config,
    params: Mapping[str, Mapping[str, jax.Array]],
    answers: CompletionBatch,
    prefix: jax.Array | np.ndarray | None,
) -> jax.Array:
    """Return the loss of each answer [B] in nats."""
    states = completion_states(
        config, params, answers, prefix=None if prefix is None else jnp.asarray(prefix)
    )
    logprob, _ = token_logprob(states, unembedding(params), answers.completions)
    return -jnp.sum(jnp.where(answers.mask, logprob, 0), axis=1)
