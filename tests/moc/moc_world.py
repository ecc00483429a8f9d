"""A tiny random model of words, and rewards on its tokens that conflict."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
from tiny_words import word_tokenizer

from jaxalign.moc.config import KLConfig, MocConfig
from jaxalign.models import families
from jaxalign.models.decoder_config import DecoderConfig
from jaxalign.models.language import LanguageModel
from jaxalign.models.lora import LoraConfig
from jaxalign.rewards.vector import TokenReward
from jaxalign.train.optimiser import OptimiserConfig
from jaxalign.train.trunk import TrunkConfig

NAMES = ("red", "blue")
LETTERS = "abcdefghijklmnop"
TAGS = [f"<pref_{name}>" for name in (*NAMES, "green", "grey")]
NUMBERS = [f"{n / 10:.1f}" for n in range(11)]
VOCABULARY = ["</s>", "<unk>", *TAGS, *NUMBERS, *LETTERS]
STOP = 0
FIRST = VOCABULARY.index("a")
CONFIG = DecoderConfig(
    "llama", len(VOCABULARY), width=64, layers=2, heads=4, kv_heads=2, head_width=16, hidden=96,
    positions=64,
)  # fmt: skip
PROMPTS = [f"{a} {b}" for a in LETTERS[:8] for b in LETTERS[8:]]
LORA = LoraConfig(rank=8, alpha=16.0)


@cache
def language_model(dtype="float32"):
    params = jax.jit(families.init, static_argnums=1)(jax.random.key(0), CONFIG)
    # Larger than at the start of a training, so that tokens are told apart.
    params = jax.tree.map(lambda leaf: (leaf * (4 if leaf.ndim > 1 else 1)).astype(dtype), params)
    tokenizer = word_tokenizer(VOCABULARY)
    config, hf_config = replace(CONFIG, dtype=dtype), {"eos_token_id": STOP}
    return LanguageModel(config, params, tokenizer, hf_config, "tiny", "0" * 64)


def shares(prompts, lengths, answers, ends, groups):
    """Of an answer's tokens, how many lie in each of some ranges of letters."""
    inside = jnp.arange(answers.shape[1])[None, :] < ends[:, None]
    own = [(answers >= FIRST + first) & (answers < FIRST + last) & inside for first, last in groups]
    counts = jnp.stack([mask.sum(axis=1) for mask in own], axis=1)
    return counts / jnp.maximum(ends, 1)[:, None].astype(jnp.float32)


def reward(names=NAMES):
    """The shares of the letters, in as many ranges as there are names."""
    width = len(LETTERS) // len(names)
    groups = [(width * n, width * (n + 1)) for n in range(len(names))]

    def function(*arrays):
        return shares(*arrays, groups)

    return TokenReward(tuple(names), function, "shares")


def config(**changes):
    base = MocConfig(
        steps=4,
        groups=4,
        rows=4,
        prompt_tokens=16,
        answer_tokens=6,
        temperature=1.0,
        epochs=2,
        minibatches=1,
        micro_batches=1,
        kl=KLConfig(coef=0.01, adaptive=False),
        trunk=TrunkConfig(lora=LORA),
        optimiser=OptimiserConfig(rate=3e-3, schedule="constant", warmup=0.0, clip_norm=0.5),
        checkpoint_every=2,
    )
    return replace(base, **changes)
