"""A tiny model with two adapters; all its answers can be listed with their probabilities."""

import itertools
from functools import cache, partial

import jax
import numpy as np
from scipy.special import log_softmax
from tiny_words import word_tokenizer

from jaxalign.models import families, lora
from jaxalign.models.decoder_config import DecoderConfig
from jaxalign.models.language import LanguageModel
from jaxalign.models.sampling import Sampling
from jaxalign.rewards.vector import TextReward

LETTERS = "abcdef"
STOP, UNKNOWN = 6, 7
CONFIG = DecoderConfig("llama", 8, 8, 1, 2, 1, 4, 12, 32)
PROMPTS = ["a", "b c", "d", "e f", "c c", "f a", "b", "d e"]
NAMES = ("early", "brief")
SETTINGS = Sampling(
    max_tokens=3, min_tokens=1, temperature=0.8, stop_ids=(STOP,), suppressed_ids=(UNKNOWN,)
)
_SHARES, _OTHERS = (1.0, 0.2, 0.9, 0.1, 0.4, 0.0), (0.1, 1.0, 0.0, 0.1, 0.8, 0.6)
_ROWS = 43  # beginnings of answers of up to 3 tokens: none, one letter, two


@cache
def language_model():
    params = jax.jit(families.init, static_argnums=1)(jax.random.key(0), CONFIG)
    params = jax.tree.map(lambda leaf: leaf * 12 if leaf.ndim > 1 else leaf, params)
    tokenizer = word_tokenizer([*LETTERS, "</s>", "<unk>"])
    return LanguageModel(CONFIG, params, tokenizer, {"eos_token_id": STOP}, "tiny", "0" * 64)


@cache
def adapters():
    """Of different ranks, scales and matrices; `b` is not zero, as if they had been trained."""
    made = []
    for seed, (rank, alpha, third) in enumerate([(2, 3.0, "up"), (3, 5.0, "gate")]):
        config = lora.LoraConfig(rank, alpha, targets=("query", "out", third))
        tree = lora.init(jax.random.key(seed), config, language_model().params)
        rng = np.random.default_rng(seed)
        tree = jax.tree.map(lambda x, r=rng: x + r.normal(0, 0.7, x.shape).astype("f"), tree)
        made.append((config, tree))
    return tuple(made)


def rewards(prompts, answers):
    """How early in the alphabet the letters are; how short the answer is, and unlike the prompt."""
    found = []
    for prompt, answer in zip(prompts, answers, strict=True):
        letters = answer.split()
        early = np.mean([_SHARES[LETTERS.index(x)] for x in letters])
        other = np.mean([_OTHERS[LETTERS.index(x)] * (x not in prompt) for x in letters])
        found.append([early, 0.1 + 0.25 * (3 - len(letters)) + 0.4 * other])
    return np.array(found)


REWARD = TextReward(NAMES, rewards, "letters 1")


@cache
def summed(weight):
    """Parameters with sum_i w_i scale_i a_i b_i added, in NumPy float64."""
    params = jax.tree.map(np.asarray, language_model().params)
    layers = {name: dict(node) for name, node in params["layers"].items()}
    for share, (config, tree) in zip(weight, adapters(), strict=True):
        for group, matrices in tree.items():
            for name, pair in matrices.items():
                a, b = (np.asarray(pair[x], np.float64) for x in "ab")
                matrix = np.asarray(layers[group][name]["weight"], np.float64)
                matrix = matrix + share * config.alpha / config.rank * (a @ b).mT
                layers[group][name] = {**layers[group][name], "weight": matrix}
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), {**params, "layers": layers})


@partial(jax.jit, static_argnums=0)
def logits_of(config, params, tokens):
    hidden, _ = families.forward(config, params, tokens)
    return families.logits(params, hidden)


def next_logits(kind, weight, sequences):
    """Logits [N, V] after each of N sequences of token ids: closed forms, one pass a policy."""
    table = np.zeros((_ROWS, 8), np.int32)
    for row, sequence in zip(table, sequences, strict=False):
        row[: len(sequence)] = sequence
    ends = [len(sequence) - 1 for sequence in sequences]

    def of(params):
        logits = np.asarray(logits_of(CONFIG, params, table), np.float64)
        return logits[np.arange(len(ends)), ends]

    if kind == "soups":
        return of(summed(tuple(weight)))
    experts = [
        (share, of(summed(tuple(one)))) for share, one in zip(weight, np.eye(2), strict=True)
    ]
    experts.append((1 - sum(weight), of(summed((0, 0)))))
    return sum(share * log_softmax(logits, axis=1) for share, logits in experts)


def prompt_tokens(prompt):
    return [LETTERS.index(letter) for letter in prompt.split()]


@cache
def answers_of(kind, weight, prompt):
    """{answer's token ids: its log-probability} over all answers to a prompt."""
    begun = [ids for n in range(3) for ids in itertools.product(range(6), repeat=n)]
    logits = next_logits(kind, weight, [[*prompt_tokens(prompt), *ids] for ids in begun])
    logits[:, UNKNOWN] = -np.inf
    logits[0, STOP] = -np.inf
    after = dict(zip(begun, log_softmax(logits / SETTINGS.temperature, axis=1), strict=True))

    def log_prob(ids):
        return sum(after[ids[:n]][token] for n, token in enumerate(ids))

    ended = [(*ids, STOP) for ids in begun if ids]
    full = list(itertools.product(range(6), repeat=3))
    return {ids: log_prob(ids) for ids in [*ended, *full]}


def exact(kind, weight):
    """Expected rewards [R], KL to the reference, and per prompt the variance of both [X, R + 1]."""
    means, variances = [], []
    for prompt in PROMPTS:
        own, base = answers_of(kind, tuple(weight), prompt), answers_of("soups", (0, 0), prompt)
        texts = [" ".join(LETTERS[i] for i in ids if i != STOP) for ids in own]
        ratio = np.array([own[ids] - base[ids] for ids in own])
        values = np.column_stack([rewards([prompt] * len(texts), texts), ratio])
        share = np.exp(list(own.values()))
        assert abs(share.sum() - 1) < 1e-6
        means.append(share @ values)
        variances.append(share @ (values - means[-1][None]) ** 2)
    mean = np.mean(means, axis=0)
    return mean[:-1], mean[-1], np.array(variances)
