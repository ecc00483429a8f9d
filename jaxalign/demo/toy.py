"""A toy language model, trained in a second: it repeats the word that stands second.

The demo needs a frozen language model without a download. All that the toy can learn about a
user has to enter as one vector in place of the second word.
"""

from functools import partial
from typing import TYPE_CHECKING, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.kernels.token_logprob import token_logprob
from jaxalign.models import families
from jaxalign.models.completions import CompletionBatch, completion_states
from jaxalign.models.decoder import unembedding
from jaxalign.models.decoder_config import DecoderConfig
from jaxalign.models.language import LanguageModel
from jaxalign.models.params import Params, PyTree
from jaxalign.models.tokenizer import Tokenizer as ModelTokenizer
from jaxalign.rewards.rules import TRAITS
from jaxalign.train import optimiser
from jaxalign.train.optimiser import OptimiserConfig, TrainState

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PROMPT = ("this", "reader", "likes", "most", ":")
VOCABULARY = ("</s>", *TRAITS, *PROMPT)
STOP, FIRST = 0, 1  # the stop token, and the name of the first trait
CONFIG = DecoderConfig(
    "llama", len(VOCABULARY), width=32, layers=2, heads=2, kv_heads=1, head_width=16, hidden=64,
    positions=16,
)  # fmt: skip
STEPS, BATCH = 200, 64
OPTIMISER = OptimiserConfig(rate=1e-2, schedule="linear", warmup=0.05)


def make_toy(seed: int) -> LanguageModel:
    """Return a trained toy, which names after the prompt the trait that stands second before it.

    Args:
        seed: Seed of its initialisation and training.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    params = _train(jax.random.key(seed), init_params(CONFIG, seed), STEPS)
    return word_model(CONFIG, params, words, f"toy {seed}")


def word_model(
    config: DecoderConfig, params: Params, words: "Tokenizer", name: str
) -> LanguageModel:
    """Return a decoder of words as a language model, whose token 0 ends an answer.

    Args:
        config: Sizes of the decoder.
        params: Its parameters.
        words: Its tokenizer.
        name: What messages call it.
    """
    from transformers import PreTrainedTokenizerFast

    wrapped = PreTrainedTokenizerFast(tokenizer_object=words, eos_token=words.id_to_token(STOP))
    tokenizer = cast(ModelTokenizer, wrapped)
    return LanguageModel(config, params, tokenizer, {"eos_token_id": STOP}, name, name)


def count_parameters(tree: PyTree) -> int:
    """Return how many numbers a tree of arrays holds."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def init_params(config: DecoderConfig, seed: int) -> Params:
    """Return parameters before training, drawn on the host, where nothing is compiled.

    Args:
        config: Sizes of the decoder.
        seed: Seed of the draw.
    """
    rng = np.random.default_rng([seed, 4])
    shapes = jax.eval_shape(partial(families.init, config=config), jax.random.key(0))

    def draw(path: tuple[jax.tree_util.DictKey, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if path[-1].key == "scale":
            return jnp.ones(leaf.shape, jnp.float32)
        # Larger than usual, so that tokens differ from the start.
        if path[-1].key != "weight":
            return jnp.asarray(0.1 * rng.normal(size=leaf.shape), jnp.float32)
        # Drawn as [inputs, outputs], as the figures that are stated of the demo were.
        *stack, outputs, inputs = leaf.shape
        drawn = 0.1 * rng.normal(size=(*stack, inputs, outputs))
        return jnp.asarray(drawn.swapaxes(-1, -2), jnp.float32)

    params: Params = jax.tree_util.tree_map_with_path(draw, shapes)
    return params


@partial(jax.jit, static_argnames="steps")
def _train(key: jax.Array, params: Params, steps: int) -> Params:
    def step(state: TrainState, _: None) -> tuple[TrainState, None]:
        drawn = jax.random.fold_in(state.key, state.step)
        first, second = jax.random.randint(drawn, (2, BATCH), 0, 2**30, jnp.int32)
        traits = FIRST + second % len(TRAITS)
        before = jnp.stack([first % len(VOCABULARY), traits], axis=1)
        gradient = jax.grad(_loss)(state.params, before, traits)
        return optimiser.apply(state, gradient, OPTIMISER, steps)[0], None

    state = optimiser.start(key, params, OPTIMISER)
    return jax.lax.scan(step, state, None, steps)[0].params


def _loss(params: Params, before: jax.Array, traits: jax.Array) -> jax.Array:
    """Return the loss of naming traits [B] behind two words [B, 2] and the prompt, in nats."""
    rows = len(traits)
    words = jnp.asarray([VOCABULARY.index(word) for word in PROMPT], jnp.int32)
    answers = jnp.stack([traits, jnp.full(rows, STOP, jnp.int32)], axis=1)
    prompt_lengths, lengths = (jnp.full(rows, count, jnp.int32) for count in (len(words), 2))
    batch = CompletionBatch(jnp.tile(words, (rows, 1)), prompt_lengths, answers, lengths)
    prefix = families.embed(CONFIG, params, before)
    states = completion_states(CONFIG, params, batch, prefix=prefix)
    return -token_logprob(states, unembedding(params), answers)[0].sum(axis=1).mean()
