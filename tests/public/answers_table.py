"""Entries of functions that answer with a tiny model, beside full passes over the same texts."""

import adapted_pair as tiny
import jax
import jax.numpy as jnp
import numpy as np
import test_conditioned as conditioned
from edge_table import Entry, empty, refusals

from jaxalign import models, personalize, rollout
from jaxalign.models import families
from jaxalign.models.sampling import Sampling
from jaxalign.personalize.policies import Soups, answer_as

WEIGHTS = np.array([[1.0, 0.0], [0.75, 0.25], [0.25, 0.75]])
PROMPTS = tiny.PROMPTS[:3]
SOFT = np.random.default_rng(0).integers(-8, 8, (3, 1, tiny.CONFIG.width)) / 4  # [X, S, D]
KEY = jax.random.key(0)
GREEDY = Sampling(
    max_tokens=3, temperature=0.0, stop_ids=(tiny.STOP,), suppressed_ids=(tiny.UNKNOWN,)
)


def ids_of(completions, length):
    """Token ids [B, length], -1 behind the end."""
    found = np.full((len(completions), length), -1)
    for row, one in zip(found, completions, strict=True):
        ids = list(getattr(one, "tokens", one))
        row[: len(ids)] = ids
    return found


def answered(weights):
    rows = np.arange(len(weights))
    found = answer_as(
        tiny.language_model(), Soups(tiny.adapters()), weights, rows, PROMPTS[: len(rows)], GREEDY,
        KEY, progress=False,
    )  # fmt: skip
    return ids_of(found, GREEDY.max_tokens)


def by_full_passes(next_logits, count):
    """The likeliest tokens, by `next_logits(row, tokens so far)`."""
    completions = [[] for _ in range(count)]
    for row, ids in enumerate(completions):
        while len(ids) < GREEDY.max_tokens and tiny.STOP not in ids:
            logits = next_logits(row, ids)
            logits[tiny.UNKNOWN] = -np.inf
            ids.append(int(logits.argmax()))
    return ids_of(completions, GREEDY.max_tokens)


def soups(weights):
    lines = [tiny.prompt_tokens(prompt) for prompt in PROMPTS]
    return by_full_passes(
        lambda row, ids: tiny.next_logits("soups", weights[row], [lines[row] + ids])[0],
        len(weights),
    )


def differences_of_logprobs(weights):
    """Log-probabilities of what every soup samples, less those of the list of all answers."""
    found = rollout.rollout_policies(
        tiny.language_model(), Soups(tiny.adapters()), weights, PROMPTS, tiny.REWARD, tiny.SETTINGS,
        KEY, samples=2, progress=False,
    )  # fmt: skip
    exact = np.zeros(found.logprobs.shape)
    for (w, x, n), text in np.ndenumerate(found.texts):
        ids = tuple(tiny.prompt_tokens(text))
        ids = ids if len(ids) == tiny.SETTINGS.max_tokens else (*ids, tiny.STOP)
        weight = tuple(float(share) for share in np.asarray(weights[w], np.float64))
        exact[w, x, n] = tiny.answers_of("soups", weight, PROMPTS[x])[ids]
    return found.logprobs - exact


@jax.jit
def logits_at(embeddings, last):
    params = tiny.language_model().params
    hidden, _ = families.forward(tiny.CONFIG, params, embeddings=embeddings)
    return families.logits(params, hidden[0, last][None])[0]


def prefixed(prefix):
    found = models.generate_texts(
        tiny.language_model(), PROMPTS[: len(prefix)], GREEDY, KEY, prefix=prefix, progress=False
    )
    return ids_of(found, GREEDY.max_tokens)


def after_a_prefix(prefix):
    table = np.asarray(tiny.language_model().params["embed"]["table"], np.float64)

    def next_logits(row, ids):
        line = np.concatenate([prefix[row], table[tiny.prompt_tokens(PROMPTS[row]) + ids]])
        padded = np.zeros((1, 8, tiny.CONFIG.width), np.float32)
        padded[0, : len(line)] = line
        return np.array(logits_at(jnp.asarray(padded), len(line) - 1))

    return by_full_passes(next_logits, len(prefix))


def conditioned_answers(wanted):
    found = personalize.answer_conditioned(
        conditioned.policy("token"), wanted, PROMPTS[: len(wanted)], conditioned.GREEDY, KEY,
        progress=False,
    )  # fmt: skip
    return ids_of(found, conditioned.GREEDY.max_tokens)


def conditioned_alone(wanted):
    rows = zip(wanted, PROMPTS, strict=False)
    completions = [
        conditioned.alone("token", tuple(map(float, weight)), prompt) for weight, prompt in rows
    ]
    return ids_of(completions, conditioned.GREEDY.max_tokens)


def _wanted(found):
    return f"wanted: found {found}, expected numbers of at least 0."


_WEIGHTS = refusals("weights", "2, 1", "W A", "1, 3, 2")
_BEYOND = {"scale 1e8": "adapters times 1e8 leave no logits to compare"}

ANSWER_AS = Entry(
    answered, {"weights": WEIGHTS}, soups, "weights", rows=("weights",), refused=_WEIGHTS,
    skipped=_BEYOND,
)  # fmt: skip
ROLLOUT_POLICIES = Entry(
    differences_of_logprobs, {"weights": WEIGHTS},
    lambda weights: np.zeros((len(weights), len(PROMPTS), 2)), "weights", rows=("weights",),
    refused={**_WEIGHTS, **empty("weights", "0, 2", "W A", "W")}, skipped=_BEYOND, least=1e-4,
)  # fmt: skip
GENERATE_TEXTS = Entry(
    prefixed, {"prefix": SOFT}, after_a_prefix, "prefix", rows=("prefix",),
    refused=refusals("prefix", "2, 0, 7", "X S D", "1, 3, 1, 8"),
)  # fmt: skip
ANSWER_CONDITIONED = Entry(
    conditioned_answers, {"wanted": WEIGHTS}, conditioned_alone, "wanted", rows=("wanted",),
    refused={
        "nan live": _wanted("[0.25, nan]"), "infinity live": _wanted("[0.25, inf]"),
        "wrong rank": "wanted: found shape (1, 3, 2), expected (1, 2), a row for each prompt, of "
        "early, brief.",
        "scale 1e-8": "wanted: [1e-08, 0.0] sums to 1e-08, expected 1.",
        "scale 1e8": "wanted: [100000000.0, 0.0] sums to 1e+08, expected 1.",
    },
)  # fmt: skip
