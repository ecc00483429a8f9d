"""Trained policies behind PALM's oracle: their values, estimated on sampled completions."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from numpy.typing import ArrayLike

from jaxalign.errors import InputError
from jaxalign.models.chat import Chat, tokenize_prompt, with_stops
from jaxalign.models.language import LanguageModel
from jaxalign.models.sampling import Sampling
from jaxalign.palm.domain import Floats
from jaxalign.palm.oracle import OraclePolicy, Policies
from jaxalign.personalize.policies import Conditioned, Kind, identity
from jaxalign.progress import counted
from jaxalign.rewards.reward_scale import RewardScale
from jaxalign.rewards.vector import TextReward
from jaxalign.rollout import check_untruncated, rollout_policies
from jaxalign.runs.artifact import load_arrays, save_arrays

Prompts = Sequence[str | Chat]


class Sampled(NamedTuple):
    """Rewards [X, n, R] of one policy's completions, and log pi - log pi_ref of each [X, n]."""

    rewards: Floats
    log_ratio: Floats


class AnswerOracle:
    """Policies of one kind as PALM's oracle.

    With finitely many options (a grid of soups or mixtures, separate policies, the preferences of a
    conditioned one) each of them is evaluated once, and a user's weights select the best of them
    after the price of KL: a user's weights are not a preference that a policy can be given. Without
    options, soups and mixtures take a user's weights as those of the adapters.

    A policy is evaluated on n completions of each prompt. Its reward is their mean, and its KL the
    mean of log pi - log pi_ref, both under the sampling settings, where the reference reads the
    plain prompt; the estimate is unbiased, and so at times slightly negative. All policies draw
    with common random numbers, whose noise largely cancels in comparisons.

    How far the policies are from optimal is unknown (`error` None): certificates are relative to
    the pool. A policy's payload holds its `weight` [A], and the standard errors `stderr` [R] and
    `kl_stderr` of its values as means over completions of these prompts.

    Attributes: as of `jaxalign.palm.Oracle`, and
        samples: n.
    """

    error: tuple[float, float] | None = None

    def __init__(
        self,
        model: LanguageModel,
        policies: Kind,
        prompts: Prompts,
        reward: TextReward,
        beta: float,
        settings: Sampling,
        key: jax.Array,
        *,
        samples: int = 8,
        options: ArrayLike | None = None,
        scale: RewardScale | None = None,
        reward_range: tuple[float, float] | None = (0.0, 1.0),
        batch_size: int = 64,
        cache: str | Path | None = None,
        progress: bool = False,
    ) -> None:
        """Check everything, and evaluate the reference.

        Args:
            model: the reference policy.
            policies: of this model.
            prompts: X of them, as `generate_texts` takes them.
            reward: R rewards; they read the prompts without preferences.
            beta: price of one nat of KL, in units of reward; 0 for none.
            settings: how completions are sampled; the model's own stop ids are added.
            key: random key.
            samples: n, completions of each prompt; at least 2.
            options: [C, A] weights of the policies that there are; None for those of the kind.
            scale: scale of the rewards, whose levels the oracle's rewards are; None for the rewards
                as they are.
            reward_range: what every reward must lie in, None for any.
            batch_size: the most completions that are decoded at once.
            cache: folder where evaluated weights are kept and looked up, None for memory only.
            progress: show a bar on standard error for each batch of policies.

        Raises:
            InputError: fewer than 2 prompts or completions, settings under which the KL is infinite
                or meaningless, a reward outside its range or constant, or a prompt that does not
                fit.
        """
        if not beta >= 0 or not np.isfinite(beta):
            raise InputError(f"beta: found {beta}, expected 0 or more; correct it.")
        if len(prompts) < 2 or samples < 2 or batch_size < 1:
            raise InputError(
                f"found {len(prompts)} prompts, {samples} completions each and batches of "
                f"{batch_size}; expected 2 prompts, 2 completions and batches of 1 at least."
            )
        check_untruncated(settings)
        self.model, self.policies, self.reward = model, policies, reward
        self.prompts, self.names, self.range = list(prompts), reward.names, reward_range
        self.settings, self.samples, self.beta = with_stops(model, settings), samples, float(beta)
        self.num_rewards, self.batch_size = len(self.names), batch_size
        self.scale, self.progress = scale, progress
        self.options = policies.options if options is None else np.asarray(options, np.float64)
        self.cache = None if cache is None else Path(cache)
        self._check_rewards()
        self.key = key
        self.fingerprint = self._fingerprint()
        self._known: dict[bytes, Sampled] = {}
        nothing = np.zeros(policies.size)
        drawn = self.rewards_of(nothing[None])[0]
        self.spread = drawn.std(axis=(0, 1))
        flat = self.spread <= 1e-6 * np.abs(drawn.mean(axis=(0, 1)))
        if flat.any():
            raise InputError(
                f"{self.names[int(np.argmax(flat))]}: found the same reward for all completions of "
                "the reference, expected one that varies; leave it out, or sample longer ones."
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
        weights = np.asarray(weights, np.float64)
        if self.options is not None:
            known = self.policies_of(self.options)
            return [max(known, key=partial(self._worth, weight)) for weight in weights]
        if self.policies.size != self.num_rewards:
            raise InputError(
                f"found {self.policies.size} adapters and {self.num_rewards} rewards, "
                "expected an adapter for each reward, in their order."
            )
        return self.policies_of(weights)

    def policies_of(self, weights: Floats) -> list[OraclePolicy]:
        """Return the policies of weights [W, A], in their order."""
        found = zip(weights, self._sampled(weights), strict=True)
        return [self._policy(weight, sampled) for weight, sampled in found]

    def rewards_of(self, weights: Floats) -> Floats:
        """Return the rewards [W, X, n, R] of the completions of policies of weights [W, A]."""
        found = [self._levels(sampled.rewards) for sampled in self._sampled(weights)]
        shape = len(weights), len(self.prompts), self.samples, self.num_rewards
        return np.reshape(found, shape)

    def _levels(self, rewards: Floats) -> Floats:
        return rewards if self.scale is None else self.scale.levels(rewards)

    def _worth(self, weight: Floats, policy: OraclePolicy) -> float:
        return float(weight @ policy.rewards - self.beta * policy.kl)

    def outcomes(self, policies: Policies) -> tuple[Floats, Floats]:
        """Return expected rewards [n, X, R] and KL [n, X] of policies made here or elsewhere."""
        weights = np.asarray(policies.payload["weight"], np.float64)
        ratios = [sampled.log_ratio.mean(axis=1) for sampled in self._sampled(weights)]
        return self.rewards_of(weights).mean(axis=2), np.reshape(ratios, (-1, len(self.prompts)))

    def _policy(self, weight: Floats, sampled: Sampled) -> OraclePolicy:
        rewards, kl = self._levels(sampled.rewards), sampled.log_ratio
        payload = {
            "weight": weight.copy(),
            "stderr": standard_error(rewards),
            "kl_stderr": standard_error(kl),
        }
        return OraclePolicy(rewards.mean(axis=(0, 1)), float(kl.mean()), payload)

    def _check_rewards(self) -> None:
        if not isinstance(self.policies, Conditioned):
            return
        names = self.policies.policy.names
        if names != self.names:
            raise InputError(
                f"reward: found {', '.join(self.names)} for a policy that is conditioned on "
                f"{', '.join(names)}; expected the same rewards in the same order."
            )

    def _fingerprint(self) -> str:
        """Of all that decides the completions and their scores; beta is applied afterwards."""
        described = {
            "kind": self.policies.kind,
            "policies": identity(self.policies),
            "model": [self.model.sha256, repr(self.model.config)],
            "prompts": self.prompts,
            # The same text has other tokens under another chat template.
            "token ids": [tokenize_prompt(self.model, prompt) for prompt in self.prompts],
            "settings": asdict(self.settings),
            "key": [
                str(jax.random.key_impl(self.key)),
                np.asarray(jax.random.key_data(self.key)).tolist(),
            ],
            "rewards": [self.reward.id, *self.names],
            "samples": self.samples,
        }
        content = json.dumps(described, sort_keys=True, default=dict).encode()
        return hashlib.sha256(content).hexdigest()

    def _sampled(self, weights: Floats) -> list[Sampled]:
        """Completions of weights [W, A]: known ones from memory or disk, others together."""
        weights = weights + 0.0  # -0 is 0
        new = {weight.tobytes(): weight for weight in weights if not self._recall(weight)}
        each = len(self.prompts) * self.samples
        size = 1 if self.policies.one_at_a_time else max(1, self.batch_size // each)
        todo = list(new.values())
        for start in range(0, len(todo), size):
            group = todo[start : start + size]
            found = self._draw(np.stack(group), size, self._title(group, start, len(todo)))
            for weight, sampled in zip(group, found, strict=True):
                self._known[weight.tobytes()] = sampled
                if self.cache is not None:
                    path = self._path(self.cache, weight)
                    save_arrays(path, {"weight": weight, **sampled._asdict()})
        return [self._known[weight.tobytes()] for weight in weights]

    def _title(self, group: list[Floats], start: int, count: int) -> str:
        """What is drawn: the reference alone, or which of the policies that are not known yet."""
        first, last = start + 1, start + len(group)
        which = f"policy {first}" if first == last else f"policies {first} to {last}"
        drawn = f"{which} of {count}" if np.any(group) else "the reference"
        return f"{drawn}, answering {counted(len(self.prompts), 'prompt')}"

    def _path(self, cache: Path, weight: Floats) -> Path:
        own = hashlib.sha256(weight.astype("<f8").tobytes()).hexdigest()
        return cache / f"{self.fingerprint[:16]}_{own[:16]}.safetensors"

    def _recall(self, weight: Floats) -> bool:
        if weight.tobytes() in self._known:
            return True
        if self.cache is None or not (path := self._path(self.cache, weight)).exists():
            return False
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

    def _draw(self, weights: Floats, size: int, title: str) -> list[Sampled]:
        """Completions of W <= size weights, sampled and scored."""
        # Filled up with the last weight: one shape is compiled.
        filled = np.concatenate([weights, np.repeat(weights[-1:], size - len(weights), axis=0)])
        found = rollout_policies(
            self.model, self.policies, filled, self.prompts, self.reward, self.settings, self.key,
            samples=self.samples, batch_size=self.batch_size, title=title, progress=self.progress,
        )  # fmt: skip
        rewards = found.rewards[: len(weights)].astype(np.float64)
        self._check_range(rewards, found.texts)
        log_ratio = (found.logprobs - found.ref_logprobs)[: len(weights)]
        return [Sampled(*pair) for pair in zip(rewards, log_ratio, strict=True)]

    def _check_range(self, rewards: Floats, texts: np.ndarray) -> None:
        low, high = self.range or (-np.inf, np.inf)
        off = (rewards < low) | (rewards > high)
        if off.any():
            policy, prompt, sample, column = (int(i) for i in np.argwhere(off)[0])
            raise InputError(
                f"reward {self.names[column]}, prompt {prompt}, completion "
                f"{texts[policy, prompt, sample]!r:.80}: found "
                f"{rewards[policy, prompt, sample, column]:.4g}, expected a number from {low:g} to "
                f"{high:g}; normalise it, or state its range."
            )


def standard_error(values: Floats) -> Floats:
    """Return the standard error of the mean over given prompts with n completions each.

    Args:
        values: [X, n, ...], n > 1.

    Returns:
        [...].
    """
    prompts, samples = values.shape[:2]
    error = np.sqrt(np.sum(values.var(axis=1, ddof=1), axis=0) / samples) / prompts
    return np.asarray(error)
