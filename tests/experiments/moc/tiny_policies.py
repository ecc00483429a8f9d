"""A tiny Llama with a tokenizer of letters, and policies whose adapters follow the preference."""

from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tiny_words import word_tokenizer

from jaxalign.experiments.moc.judge import EvaluatedPolicy
from jaxalign.models import families, lora
from jaxalign.models.decoder_config import DecoderConfig
from jaxalign.models.language import LanguageModel
from jaxalign.models.sampling import Sampling
from jaxalign.rewards.reward_scale import RewardScale
from jaxalign.rewards.vector import TextReward, TokenReward

LETTERS = "abcdef"
STOP, UNKNOWN, TELL = 6, 7, 8  # "<tell>" stands before a prompt that says a preference
CONFIG = DecoderConfig("llama", 9, 16, 1, 2, 1, 8, 12, 64)
NAMES = ("vowels", "early")
PROMPTS = ["a b", "c", "d e f a b", "f f", "b d c"]
SETTINGS = Sampling(max_tokens=6, min_tokens=1, temperature=0.7, suppressed_ids=(UNKNOWN, TELL))
VOWEL = np.array([1, 0, 0, 0, 1, 0, 0, 0, 0], np.float32)
EARLY = np.array([0, 1, 1, 0, 0, 0, 0, 0, 0], np.float32)


@cache
def language_model():
    params = jax.jit(families.init, static_argnums=1)(jax.random.key(0), CONFIG)
    params = jax.tree.map(lambda leaf: leaf * 4 if leaf.ndim > 1 else leaf, params)
    # What all embeddings have in common: an adapter can read it as a constant.
    common = 4 * np.random.default_rng(0).normal(size=CONFIG.width).astype(np.float32)
    params["embed"] = {"table": params["embed"]["table"] + jnp.asarray(common)[None, :]}
    tokenizer = word_tokenizer([*LETTERS, "</s>", "<unk>", "<tell>"])
    return LanguageModel(CONFIG, params, tokenizer, {"eos_token_id": STOP}, "tiny", "0" * 64)


@cache
def adapters():
    """One that raises vowels and one that raises early letters: the same push after any text."""
    params = language_model().params
    config = lora.LoraConfig(rank=1, alpha=1.0, targets=("out",))
    embedding = np.asarray(params["embed"]["table"])
    normed = embedding / np.sqrt((embedding**2).mean(axis=1, keepdims=True))
    value = (normed @ np.asarray(params["layers"]["attention"]["value"]["weight"][0]).T).mean(
        axis=0
    )
    gate = np.tile(value, 2) / (2 * value @ value)  # of two heads, whatever they attend to
    made = []
    for wanted in (VOWEL, EARLY):
        push = (wanted - wanted.mean()) @ np.asarray(params["unembed"]["table"])
        push = 6 * push / np.linalg.norm(push)
        tree = lora.init(jax.random.key(0), config, params)
        tree["attention"]["out"] = {
            "a": jnp.asarray(gate, jnp.float32)[None, :, None],
            "b": jnp.asarray(push, jnp.float32)[None, None, :],
        }
        made.append(lora.scaled(tree, config))
    return made


def stacked(weights):
    """Adapters [L, A, ..] whose updates are summed with weights [A, 2]: ranks side by side."""
    pairs = [one["attention"]["out"] for one in adapters()]
    a = np.concatenate([np.asarray(pair["a"]) for pair in pairs], axis=-1)
    b = np.concatenate([np.asarray(pair["b"]) for pair in pairs], axis=-2)
    weighted = np.asarray(weights, np.float32)[None, :, :, None] * b[:, None]
    return {"attention": {"out": {"a": np.repeat(a[:, None], len(weights), axis=1), "b": weighted}}}


class Stacked(NamedTuple):
    """Policies [W] whose adapters are summed with weights [W, 2]; rows of -1 are the reference."""

    weights: np.ndarray
    adapted: bool

    @property
    def params(self):
        return None

    def arguments(self, policy):
        rows = np.asarray(policy, np.int32)
        own = rows if self.adapted else np.full_like(rows, -1)
        return {"adapters": stacked(self.weights), "rows": own}


class Tiny:
    """Adapters summed with the preference; "<tell>" before the prompt, unless it is the reference.

    Its weights are never 0, so that its KL is estimated also where no adapter is applied.
    """

    prefix_tokens = 0
    one_at_a_time = False

    def __init__(self, adapted=True):
        self.adapted = adapted

    def prompt(self, prompt, weight):
        if not self.adapted:
            return prompt
        return " ".join(["<tell>"] * (1 + round(2 * float(weight[0]))) + [prompt])

    def stacked(self, weights):
        return Stacked(np.asarray(weights, np.float32), self.adapted)


def evaluated(preferences, seen, name="told", adapted=True):
    told = np.asarray(preferences, np.float32)
    return EvaluatedPolicy(name, language_model(), Tiny(adapted), told, told, np.asarray(seen))


def _of_tokens(prompts, prompt_lengths, answers, lengths):
    """Shares of the answer that are vowels not in the prompt's first letter, and early letters."""
    slots = jnp.arange(answers.shape[1], dtype=jnp.int32)[None, :]
    letter = (slots < lengths[:, None]) & (answers < STOP)
    count = jnp.maximum(letter.sum(axis=1), 1)
    vowel = jnp.asarray(VOWEL)[answers] * (answers != prompts[:, :1])
    early = jnp.asarray(EARLY)[answers]
    scores = [jnp.where(letter, table, 0).sum(axis=1) for table in (vowel, early)]
    return jnp.stack(scores, axis=1) / count[:, None].astype(jnp.float32)


def _of_texts(prompts, answers):
    found = []
    for prompt, answer in zip(prompts, answers, strict=True):
        assert "<tell>" not in prompt
        letters = [LETTERS.index(letter) for letter in answer.split()]
        first = LETTERS.index(prompt.split()[0])
        vowels = sum(VOWEL[letter] for letter in letters if letter != first)
        early = sum(EARLY[letter] for letter in letters)
        found.append([vowels / max(len(letters), 1), early / max(len(letters), 1)])
    return np.array(found)


TOKEN_REWARD = TokenReward(NAMES, _of_tokens, "letters")
TEXT_REWARD = TextReward(NAMES, _of_texts, "letters")


def scale(low=(0.1, 0.0), high=(0.6, 0.5)):
    return RewardScale(NAMES, [0.25, 0.2], [0.3, 0.2], np.array(low), np.array(high))
