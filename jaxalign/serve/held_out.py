"""Whether soft tokens favour what a user chose: probabilities of answers with and without them."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import betaincc

from jaxalign.kernels.token_logprob import token_logprob
from jaxalign.models import families
from jaxalign.models.buckets import bucket_length, padded
from jaxalign.models.decoder import unembedding
from jaxalign.models.generate import Prompt, prompt_embeddings
from jaxalign.models.language import LanguageModel
from jaxalign.models.params import Params
from jaxalign.serve.engines.registry import SoftTokens


def favour_probability(favoured: int, held_out: int) -> float:
    """Return the posterior probability that more than half of a user's choices are favoured.

    Args:
        favoured: choices that a persona favours.
        held_out: choices by which it was judged, whose share has a uniform prior.

    Example:
        >>> from jaxalign.serve.held_out import favour_probability
        >>> favour_probability(0, 0), favour_probability(3, 3)
        (0.5, 0.9375)
    """
    return float(betaincc(1 + favoured, 1 + held_out - favoured, 0.5))


def answer_shifts(
    model: LanguageModel, prompt: Sequence[int], answers: Sequence[Sequence[int]], soft: SoftTokens
) -> np.ndarray:
    """Return by how much soft tokens raise the log-probability of each answer, [A] in nats.

    Args:
        model: the language model.
        prompt: [T] its tokens.
        answers: A answers, tokens without a stop token.
        soft: the soft tokens, which stand beside the prompt.
    """
    rows = [[*prompt, *answer] for answer in answers]
    longest = max(map(len, rows))
    room = model.config.positions - len(soft.values)
    width, count = bucket_length(longest, max(longest, room)), len(rows)
    twice = Prompt(
        padded(rows * 2, (2 * count, width)),
        np.array([len(row) for row in rows] * 2, np.int32),
        np.tile(soft.values[None], (2 * count, 1, 1)),
        np.repeat(np.array([len(soft.values), 0], np.int32), count),
        np.full(2 * count, soft.start(len(prompt)), np.int32),
    )
    found = _summed_logprobs(model.config, model.params, twice, np.int32(len(prompt)))
    with_soft, without = np.asarray(found, np.float64).reshape(2, count)
    return with_soft - without


@partial(jax.jit, static_argnums=0)
def _summed_logprobs(
    config: families.Config, params: Params, prompt: Prompt, first: jax.Array
) -> jax.Array:
    """Log-probability [B] of the tokens from a place on; soft tokens stand before it."""
    soft = jnp.asarray(prompt.prefix_lengths)
    embeddings = prompt_embeddings(prompt, config, params)
    lengths = jnp.asarray(prompt.lengths) + soft
    hidden, _ = families.forward(config, params, embeddings=embeddings, lengths=lengths)
    tokens = jnp.asarray(prompt.tokens)
    place = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None, :]
    before = jnp.maximum(place + soft[:, None] - 1, 0)
    states = jnp.take_along_axis(hidden, before[:, :, None], axis=1)
    logprob, _ = token_logprob(states, unembedding(params), tokens)
    own = (place >= first) & (place < jnp.asarray(prompt.lengths)[:, None])
    return jnp.sum(jnp.where(own, logprob, 0), axis=1)
