"""Answers behind prompts that no user changes, and all labels of a task scored together.

With soft tokens behind the prompt, the frozen model's keys and values of a prompt depend on no
trained parameter: they are computed once, and every sample and step reads them. The result and its
gradients are those of the whole sequence, since the model is causal.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jaxalign.data.histories import Histories
from jaxalign.data.sequences import Sequences
from jaxalign.errors import InputError
from jaxalign.kernels.token_logprob import token_logprob
from jaxalign.models import families
from jaxalign.models.attention import Cache
from jaxalign.models.completions import CompletionBatch, completion_states
from jaxalign.models.decoder import unembedding
from jaxalign.models.language import LanguageModel
from jaxalign.models.params import Array, Params
from jaxalign.pplug.config import TextConfig
from jaxalign.pplug.model import PlugParams, PrefixSpec, gathered_tables, thinned_prefix
from jaxalign.pplug.prompt_cache import chosen_past, read_prompts
from jaxalign.train.mesh import batch_sharding
from jaxalign.train.step import Batch, Sums


class LabelTokens(NamedTuple):
    """The tokens of a task's K labels: `tokens` [K, M] int32 and `lengths` [K] int32."""

    tokens: Array
    lengths: Array


class FrozenParts(NamedTuple):
    """What the loss reads and does not train.

    Attributes:
        model: Parameters of the language model.
        turn: [R] int32 tokens that open the assistant's turn, behind the soft tokens.
        prompts: Keys and values [L, N, G, S, H] of N prompts; None computes them in each step.
        labels: Tokens of the labels; None for answers that are texts.
    """

    model: Mapping[str, Mapping[str, jax.Array]]
    turn: Array = np.zeros(0, np.int32)
    prompts: Cache | None = None
    labels: LabelTokens | None = None


class PromptInputs(NamedTuple):
    """Prompts as the model reads them, with soft tokens.

    Attributes:
        tokens: [B, T] int32 prompts, padding on the right.
        lengths: [B] int32.
        soft: [B, Q, D] soft tokens; None for none.
        turn: [R] int32 last tokens of every prompt, which stand behind the soft tokens if `past`
            is given.
        past: Keys and values [L, B, G, S, H] of the prompts, behind which the soft tokens stand;
            None for soft tokens before the prompts.
    """

    tokens: Array
    lengths: Array
    soft: Array | None = None
    turn: Array = np.zeros(0, np.int32)
    past: Cache | None = None


class AnswerRows(NamedTuple):
    """The answers of N samples as arrays of batches.

    Attributes:
        tokens: Tokens of answers that are texts.
        numbers: [N] int32 number of each sample's label, where labels are scored; otherwise None.
        labels: Tokens of all labels, likewise.
    """

    tokens: Sequences
    numbers: np.ndarray | None = None
    labels: LabelTokens | None = None

    @property
    def slots(self) -> int:
        """Most tokens of an answer."""
        if self.labels is not None:
            return int(np.shape(self.labels.tokens)[1])
        return int(self.tokens.lengths.max())

    def arrays(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Return the answers of some samples [B] int, -1 for an empty row."""
        if self.numbers is not None:
            return {
                "label": np.where(rows < 0, 0, self.numbers[rows]).astype(np.int32),
                "completion_lengths": (rows >= 0).astype(np.int32),
            }
        completions, lengths = self.tokens.padded(rows, self.slots)
        return {
            "completions": completions,
            "completion_lengths": np.where(rows < 0, 0, lengths).astype(np.int32),
        }


def answer_rows(
    model: LanguageModel, text: TextConfig, histories: Histories, tokens: Sequences
) -> AnswerRows:
    """Return the answers of samples, as texts or as labels.

    Args:
        model: The language model, whose tokenizer is used.
        text: Whether labels are scored.
        histories: N samples with outputs.
        tokens: The tokens of their answers.

    Raises:
        InputError: Labels are scored, and an output is none of the task's, or as `label_tokens`.
    """
    if text.answers == "generated":
        return AnswerRows(tokens)
    rules = histories.rules
    labels = label_tokens(model, rules.labels, rules.name)
    return AnswerRows(tokens, histories.label_numbers, labels)


def label_tokens(model: LanguageModel, labels: tuple[str, ...], task: str) -> LabelTokens:
    """Return the tokens of a task's labels, without a stop token.

    Args:
        model: The language model, whose tokenizer is used.
        labels: K labels of the task.
        task: Name of the task, for messages.

    Raises:
        InputError: The task has fewer than two labels, or the tokens of one begin another's.
    """
    if len(labels) < 2:
        raise InputError(
            f"text.answers is scored, and the task {task} has {len(labels)} labels; expected at "
            "least two: set text.answers to generated."
        )
    found = Sequences.of(model.tokenizer(list(labels), add_special_tokens=False)["input_ids"])
    width = int(found.lengths.max())
    tokens, lengths = found.padded(np.arange(len(labels)), width)
    for one in range(len(labels)):
        for other in range(len(labels)):
            short = tokens[one, : lengths[one]]
            if one != other and np.array_equal(short, tokens[other, : lengths[one]]):
                raise InputError(
                    f"the label {labels[one]!r} of the task {task} begins the label "
                    f"{labels[other]!r} in the tokens of {model.name}, so that their scores cannot "
                    "be compared; expected labels that differ: rename one."
                )
    return LabelTokens(tokens, lengths)


def answer_states(
    config: families.Config,
    params: Params,
    inputs: PromptInputs,
    completions: Array,
    lengths: Array,
    sharding: NamedSharding | None = None,
) -> jax.Array:
    """Return the states [B, M, D] before each token of answers.

    Args:
        config: Of the language model; static.
        params: Of the language model.
        inputs: The prompts.
        completions: [B, M] int32 tokens of the answers.
        lengths: [B] int32.
        sharding: Of the rows over devices.
    """
    if inputs.past is None:
        answers = CompletionBatch(inputs.tokens, inputs.lengths, completions, lengths)
        soft = None if inputs.soft is None else jnp.asarray(inputs.soft)
        return completion_states(config, params, answers, prefix=soft, sharding=sharding)
    rows, turn = len(completions), len(inputs.turn)
    ahead = jnp.broadcast_to(jnp.asarray(inputs.turn, jnp.int32)[None, :], (rows, turn))
    # Nothing follows the last token of an answer, so that its own state would be computed in vain.
    words = families.embed(config, params, jnp.concatenate([ahead, completions[:, :-1]], axis=1))
    if inputs.soft is None:
        raise ValueError("no soft tokens stand behind the prompts; give them before: past=None")
    embeddings = jnp.concatenate([jnp.asarray(inputs.soft).astype(words.dtype), words], axis=1)
    if sharding is not None:
        embeddings = jax.lax.with_sharding_constraint(embeddings, sharding)
    starts = jnp.maximum(jnp.asarray(inputs.lengths) - turn, 0)
    hidden, _ = families.forward(
        config, params, embeddings=embeddings, starts=starts, past=inputs.past
    )
    before = inputs.soft.shape[1] + turn - 1
    return hidden[:, before : before + np.shape(completions)[1]]


def label_logprobs(
    config: families.Config,
    params: Params,
    inputs: PromptInputs,
    labels: LabelTokens,
    sharding: NamedSharding | None = None,
) -> jax.Array:
    """Return the log-probability [B, K] of each label among all labels, at least float32.

    A label's score is the log-probability of its tokens, without a stop token; the scores are
    normalised over the labels. Labels of one token each need one state per row.

    Args:
        config: Of the language model; static.
        params: Of the language model.
        inputs: The prompts.
        labels: Tokens of K labels.
        sharding: Of the rows over devices.
    """
    count, width = np.shape(labels.tokens)
    rows, table = np.shape(inputs.tokens)[0], unembedding(params)
    tokens = jnp.asarray(labels.tokens, jnp.int32)
    if width == 1:
        first = jnp.broadcast_to(tokens[:1], (rows, 1))
        one = jnp.ones(rows, jnp.int32)
        states = answer_states(config, params, inputs, first, one, sharding)
        wide = jnp.promote_types(states.dtype, jnp.float32)
        own = table[tokens[:, 0]].astype(states.dtype)
        scores = jnp.einsum("BD,KD->BK", states[:, 0], own, preferred_element_type=wide)
        return jax.nn.log_softmax(scores, axis=1)
    many = inputs._replace(
        tokens=jnp.repeat(jnp.asarray(inputs.tokens), count, axis=0),
        lengths=jnp.repeat(jnp.asarray(inputs.lengths), count, axis=0),
        soft=None if inputs.soft is None else jnp.repeat(jnp.asarray(inputs.soft), count, axis=0),
        past=jax.tree.map(lambda kept: jnp.repeat(kept, count, axis=1), inputs.past),
    )
    tokens = jnp.tile(tokens, (rows, 1))
    lengths = jnp.tile(jnp.asarray(labels.lengths, jnp.int32), rows)
    states = answer_states(config, params, many, tokens, lengths, sharding)
    logprob, _ = token_logprob(states, table, tokens)
    real = jnp.arange(width, dtype=jnp.int32)[None, :] < lengths[:, None]
    scores = jnp.sum(jnp.where(real, logprob, 0), axis=1).reshape(rows, count)
    return jax.nn.log_softmax(scores, axis=1)


def answer_loss(
    spec: PrefixSpec,
    mesh: Mesh,
    trained: PlugParams,
    frozen: FrozenParts,
    batch: Batch,
    key: jax.Array | None,
) -> Sums:
    """Return the summed loss of the answers of a batch, of any place and kind.

    Answers that are texts have the next-token cross-entropy; labels have the cross-entropy among
    the task's labels, one for each sample.

    Args:
        spec: Static settings.
        mesh: Device mesh of parameters and rows.
        trained: The trained parameters.
        frozen: The language model, and what depends on it alone.
        batch: `prompts` [B, T], `prompt_lengths` [B], `completions` [B, M] and
            `completion_lengths` [B], int32; the arrays of `PersonaInputs.arrays`; `is_copy` [B]
            bool, true for samples whose histories lack items while training. With labels `label`
            [B] int32 in place of `completions`; with cached prompts `prompt` [B] int32, their
            numbers.
        key: Random key of the items that are left out; None keeps all histories whole.

    Returns:
        `loss` in nats and `weight`, the number of answer tokens or of labels, both [] and at least
        float32.

    Source: arXiv 2409.11901, section 3.4, for texts and soft tokens before the prompts.
    """
    config, sharding = spec.decoder, batch_sharding(mesh)
    params = gathered_tables(frozen.model, mesh)
    soft = thinned_prefix(spec, trained, batch, key)
    tokens, lengths = batch["prompts"], batch["prompt_lengths"]
    past = None
    if spec.persona.place == "after" and frozen.prompts is not None:
        past = chosen_past(frozen.prompts, batch["prompt"], tokens.shape[1])
    elif spec.persona.place == "after":
        past = jax.lax.stop_gradient(read_prompts(config, params, tokens, lengths))
    inputs = PromptInputs(tokens, lengths, soft, frozen.turn, past)
    real = batch["completion_lengths"]
    if frozen.labels is not None:
        scores = label_logprobs(config, params, inputs, frozen.labels, sharding)
        chosen = jnp.take_along_axis(scores, batch["label"][:, None], axis=1)[:, 0]
        return {
            "loss": -jnp.sum(jnp.where(real > 0, chosen, 0)),
            "weight": jnp.sum(real > 0, dtype=chosen.dtype),
        }
    completions = batch["completions"]
    states = answer_states(config, params, inputs, completions, real, sharding)
    logprob, _ = token_logprob(states, unembedding(params), completions)
    mask = jnp.arange(completions.shape[1], dtype=jnp.int32)[None, :] < real[:, None]
    return {
        "loss": -jnp.sum(jnp.where(mask, logprob, 0)),
        "weight": jnp.sum(mask, dtype=logprob.dtype),
    }
