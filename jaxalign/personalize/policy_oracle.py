"""Trained policies behind PALM's oracle: what they are worth, estimated on sampled answers."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from numpy.typing import ArrayLike

from jaxalign.errors import InputError
from jaxalign.models.buckets import padded
from jaxalign.models.chat import Chat, check_finite, prompt_ids, text_of, with_stops
from jaxalign.models.completions import reference_logprobs
from jaxalign.models.generate import generate
from jaxalign.models.language import LanguageModel
from jaxalign.models.sampling import Sampling
from jaxalign.palm.domain import Floats
from jaxalign.palm.oracle import OraclePolicy, Policies
from jaxalign.personalize.policies import Conditioned, Kind, identity
from jaxalign.rollout.checks import check_untruncated
from jaxalign.runs.artifact import load_arrays, save_arrays

Prompts = Sequence[str | Chat]
Reward = Callable[[Prompts, Sequence[str]], ArrayLike]


class Sampled(NamedTuple):
    """What one policy drew: rewards [X, n, R], and log pi - log pi_ref of each answer [X, n]."""

    rewards: Floats
    log_ratio: Floats


class AnswerOracle:
    """Policies of one kind as PALM's oracle.

    Soups and mixtures take a user's weights as those of the adapters. Where there are so many
    policies and no more (tuned ones, and the preferences that a conditioned one is told), all are
    evaluated once, and a user's weights get the best of them, KL's price taken off: weights are
    not told, as what is told is no weights.

    A policy is evaluated by n answers a prompt, drawn from it and scored. The reward is their
    mean; KL is the mean of log pi - log pi_ref, both under the settings they were drawn with and
    the reference reading the plain prompt, unbiased and so at times slightly negative. Every
    policy uses the same keys: what is luck of the draw is largely the same for all and falls out
    of comparisons.

    How far the policies are from optimal is unknown (`error` None): certificates are relative to
    the pool. A policy's payload holds its `weight` [A], what its kind makes it of, and the
    standard errors `stderr` [R] and `kl_stderr` of its values as means over answers to these
    prompts.

    Attributes: as of `jaxalign.palm.Oracle`, and
        samples: n.
    """

    error = None

    def __init__(
        self,
        model: LanguageModel,
        policies: Kind,
        prompts: Prompts,
        reward: Reward,
        beta: float,
        settings: Sampling,
        key: jax.Array,
        *,
        names: Sequence[str],
        reward_id: str,
        samples: int = 8,
        reward_range: tuple[float, float] | None = (0.0, 1.0),
        batch_size: int = 64,
        cache: str | Path | None = None,
    ) -> None:
        """Check everything, and evaluate the reference.

        Args:
            model: the reference policy.
            policies: of this model.
            prompts: X of them, as `generate_texts` takes them.
            reward: from prompts and answers, N each, to rewards [N, R]; called with each pair once
                an evaluation.
            beta: price of one nat of KL, in units of reward; 0 for none.
            settings: how answers are drawn; the model's own stop ids are added.
            key: random key.
            names: [R] of the rewards.
            reward_id: what tells this reward function from others, its version included: values
                are kept under it.
            samples: n, answers a prompt; at least 2.
            reward_range: what every reward must lie in, None for any.
            batch_size: most answers decoded at once; several weights share a batch if it has room.
            cache: folder where evaluated weights are kept and looked up, None for memory only.

        Raises:
            InputError: fewer than 2 prompts or answers, settings under which KL would be infinite
                or meaningless, a reward outside its range or constant, or a prompt that does not
                fit.
        """
        if not beta >= 0 or not np.isfinite(beta):
            raise InputError(f"beta: found {beta}, expected 0 or more; correct it.")
        if len(prompts) < 2 or samples < 2 or batch_size < 1:
            raise InputError(
                f"found {len(prompts)} prompts, {samples} answers each and batches of "
                f"{batch_size}; expected at least 2 prompts and answers, and batches of at least 1."
            )
        check_untruncated(settings)
        self.model, self.policies, self.reward = model, policies, reward
        self.prompts, self.names, self.range = list(prompts), tuple(names), reward_range
        self.settings, self.samples, self.beta = with_stops(model, settings), samples, float(beta)
        self.num_rewards, self.batch_size = len(self.names), batch_size
        self.cache = None if cache is None else Path(cache)
        self._check_rewards()
        self._tokens, self._lengths = self._table(self.prompts, np.arange(len(prompts)))
        places = np.arange(len(prompts) * samples, dtype=np.int32)
        self._keys = jax.vmap(partial(jax.random.fold_in, key))(places)
        self.fingerprint = self._fingerprint(key, reward_id)
        self._known: dict[bytes, Sampled] = {}
        nothing = np.zeros(policies.size)
        drawn = self._sampled(nothing[None])[0].rewards
        self.spread = drawn.std(axis=(0, 1))
        flat = self.spread <= 1e-6 * np.maximum(np.abs(drawn.mean(axis=(0, 1))), 1e-6)
        if flat.any():
            raise InputError(
                f"{self.names[int(np.argmax(flat))]}: found the same reward for every answer of "
                "the reference, expected one that varies; leave it out, or draw longer answers."
            )
        self.reference = self._policy(nothing, self._sampled(nothing[None])[0])

    def __call__(self, weight: ArrayLike) -> OraclePolicy:
        """Return the policy of weight [R]."""
        return self.many(np.asarray(weight)[None])[0]

    def many(self, weights: ArrayLike) -> list[OraclePolicy]:
        """Return the policies of weights [W, R].

        Raises:
            InputError: adapters that are not one for each reward, or a reward out of its range.
        """
        weights, options = np.asarray(weights, np.float64), self.policies.options
        if options is not None:
            found = zip(options, self._sampled(options), strict=True)
            known = [self._policy(option, sampled) for option, sampled in found]
            return [max(known, key=partial(self._worth, weight)) for weight in weights]
        if self.policies.size != self.num_rewards:
            raise InputError(
                f"found {self.policies.size} adapters and {self.num_rewards} rewards, "
                "expected an adapter for each reward, in their order."
            )
        found = zip(weights, self._sampled(weights), strict=True)
        return [self._policy(weight, sampled) for weight, sampled in found]

    def _worth(self, weight: Floats, policy: OraclePolicy) -> float:
        return float(weight @ policy.rewards - self.beta * policy.kl)

    def outcomes(self, policies: Policies) -> tuple[Floats, Floats]:
        """Return expected rewards [n, X, R] and KL [n, X] of policies made here or elsewhere."""
        found = self._sampled(np.asarray(policies.payload["weight"], np.float64))
        rewards = np.stack([sampled.rewards.mean(axis=1) for sampled in found])
        return rewards, np.stack([sampled.log_ratio.mean(axis=1) for sampled in found])

    def _policy(self, weight: Floats, sampled: Sampled) -> OraclePolicy:
        rewards, kl = sampled.rewards, sampled.log_ratio
        payload = {
            "weight": weight.copy(),
            "stderr": standard_error(rewards),
            "kl_stderr": standard_error(kl),
        }
        return OraclePolicy(rewards.mean(axis=(0, 1)), float(kl.mean()), payload)

    def _check_rewards(self) -> None:
        told = self.policies.policy.names if isinstance(self.policies, Conditioned) else self.names
        if told != self.names:
            raise InputError(
                f"names: found rewards {', '.join(self.names)} for a policy that is told "
                f"{', '.join(told)}; expected the same in the same order."
            )

    def _table(
        self, prompts: Prompts, numbers: np.ndarray, soft: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Tokens [B, T] and lengths [B] of texts for the prompts of these numbers [B]."""
        reserved = self.settings.max_tokens + soft
        # Most rows repeat a few texts.
        texts = {repr(text): (text, number) for text, number in zip(prompts, numbers, strict=True)}
        ids = {
            name: prompt_ids(self.model, text, reserved, f"prompt {number}")
            for name, (text, number) in texts.items()
        }
        rows = [ids[repr(text)] for text in prompts]
        lengths = np.array([len(row) for row in rows], np.int32)
        return padded(rows, (len(rows), int(lengths.max()))), lengths

    def _fingerprint(self, key: jax.Array, reward_id: str) -> str:
        """Of all that decides what is drawn and how it is scored; beta is applied afterwards."""
        described = {
            "kind": self.policies.kind,
            "policies": identity(self.policies),
            "model": [self.model.sha256, repr(self.model.config)],
            "prompts": [self._tokens.tolist(), self._lengths.tolist()],
            "texts": self.prompts,
            "settings": asdict(self.settings),
            "key": [str(jax.random.key_impl(key)), np.asarray(jax.random.key_data(key)).tolist()],
            "rewards": [reward_id, *self.names],
            "samples": self.samples,
        }
        content = json.dumps(described, sort_keys=True, default=dict).encode()
        return hashlib.sha256(content).hexdigest()

    def _sampled(self, weights: Floats) -> list[Sampled]:
        """Answers of weights [W, A]: known ones from memory or disk, others drawn together."""
        weights = weights + 0.0  # -0 is 0
        new = {weight.tobytes(): weight for weight in weights if not self._recall(weight)}
        each = len(self.prompts) * self.samples
        size = max(1, self.batch_size // each)
        todo = list(new.values())
        for start in range(0, len(todo), size):
            group = todo[start : start + size]
            for weight, sampled in zip(group, self._draw(np.stack(group), size), strict=True):
                self._known[weight.tobytes()] = sampled
                if self.cache is not None:
                    self.cache.mkdir(parents=True, exist_ok=True)
                    save_arrays(self._path(weight), {"weight": weight, **sampled._asdict()})
        return [self._known[weight.tobytes()] for weight in weights]

    def _path(self, weight: Floats) -> Path:
        assert self.cache is not None
        own = hashlib.sha256(weight.astype("<f8").tobytes()).hexdigest()
        return self.cache / f"{self.fingerprint[:16]}_{own[:16]}.safetensors"

    def _recall(self, weight: Floats) -> bool:
        if weight.tobytes() in self._known:
            return True
        if self.cache is None or not self._path(weight).exists():
            return False
        path = self._path(weight)
        try:
            tree = load_arrays(path)
            sampled = Sampled(np.asarray(tree["rewards"]), np.asarray(tree["log_ratio"]))
            whole = np.array_equal(np.asarray(tree["weight"]), weight)
        except (InputError, KeyError) as error:
            raise InputError(
                f"{path} holds no evaluated weight ({error}): delete the file."
            ) from None
        shape = len(self.prompts), self.samples
        if not whole or sampled.rewards.shape != (*shape, self.num_rewards):
            raise InputError(f"{path} holds another weight than its name says: delete the file.")
        self._known[weight.tobytes()] = sampled
        return True

    def _draw(self, weights: Floats, size: int) -> list[Sampled]:
        """Answers of W <= size weights, drawn and scored."""
        padded = np.zeros((size, weights.shape[1]))  # one shape is compiled
        padded[: len(weights)] = weights
        stacked = self.policies.stacked(padded)
        each = len(self.prompts) * self.samples
        texts: list[str] = []
        ratios: list[np.ndarray] = []
        for rows, kept in _batches(len(weights) * each, min(self.batch_size, size * each)):
            prompt = rows % each // self.samples
            tokens, lengths = self._tokens[prompt], self._lengths[prompt]
            arguments = stacked.arguments(rows // each)
            told = stacked.prompts([self.prompts[number] for number in prompt], rows // each)
            soft = np.shape(arguments["prefix"])[1] if "prefix" in arguments else 0
            found = generate(
                self.model.config,
                self.model.params,
                *self._table(told, prompt, soft),
                self._keys[rows % each],
                self.settings,
                **arguments,
            )
            answers, ends = np.asarray(found.tokens), np.asarray(found.lengths)
            own = np.asarray(found.logprobs, np.float64)[:kept]
            check_finite(self.model, own)
            reference = reference_logprobs(
                self.model, tokens, lengths, answers, ends, self.settings
            )
            ratios.append(own.sum(axis=1) - np.asarray(reference, np.float64)[:kept].sum(axis=1))
            drawn = zip(answers[:kept], ends, strict=False)
            texts += [text_of(self.model, answer[:end]) for answer, end in drawn]
        shape = len(weights), len(self.prompts), self.samples
        rewards = self._scored(texts).reshape(*shape, self.num_rewards)
        log_ratio = np.concatenate(ratios).reshape(shape)
        # Where no adapter is applied, what is left is rounding.
        log_ratio[~weights.any(axis=1)] = 0
        return [Sampled(*pair) for pair in zip(rewards, log_ratio, strict=True)]

    def _scored(self, texts: list[str]) -> Floats:
        """Rewards [N, R] of answers in the order of the rows."""
        each = len(self.prompts) * self.samples
        pairs = [(row % each // self.samples, text) for row, text in enumerate(texts)]
        once = list(dict.fromkeys(pairs))
        values = np.asarray(
            self.reward([self.prompts[number] for number, _ in once], [text for _, text in once]),
            np.float64,
        )
        if values.shape != (len(once), self.num_rewards):
            raise InputError(
                f"reward: found shape {values.shape} for {len(once)} answers, expected "
                f"{(len(once), self.num_rewards)}, a column for each of {', '.join(self.names)}."
            )
        low, high = self.range or (-np.inf, np.inf)
        off = ~np.isfinite(values) | (values < low) | (values > high)
        if off.any():
            row, column = (int(i) for i in np.argwhere(off)[0])
            raise InputError(
                f"reward {self.names[column]}, prompt {once[row][0]}, answer {once[row][1]!r:.80}: "
                f"found {values[row, column]:.4g}, expected a number from {low:g} to {high:g}; "
                "normalise it, or state its range."
            )
        place = {pair: row for row, pair in enumerate(once)}
        return values[[place[pair] for pair in pairs]]


def standard_error(values: Floats) -> Floats:
    """Standard error of the mean over prompts of n answers each, the prompts being given.

    Args:
        values: [X, n, ...], n > 1.

    Returns:
        [...].
    """
    prompts, samples = values.shape[:2]
    error = np.sqrt(np.sum(values.var(axis=1, ddof=1), axis=0) / samples) / prompts
    return np.asarray(error)


def _batches(count: int, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Rows 0 to count - 1 in batches of one size, the last filled up; and how many are new."""
    for start in range(0, count, size):
        rows = np.arange(start, start + size)
        yield np.minimum(rows, count - 1), min(size, count - start)
