"""Small worlds: closed forms, finite lists of policies, two tiny policies mixed while decoding."""

import numpy as np

from jaxalign import palm


def net_values(world):
    return world["expected_rewards"] - 0.1 * world["kl"][:, None]


class Listed:
    """A finite list of policies; an error may be asked for. Values not below 0, no price on KL."""

    beta, fingerprint = 0.0, "listed"

    def __init__(self, values, error=(0.0, 0.0), seed=0):
        self.values, self.error = np.asarray(values, np.float64), error
        self.num_rewards = self.values.shape[1]
        self.spread = np.ones(self.num_rewards)
        self.reference = palm.OraclePolicy(np.zeros(self.num_rewards), 0.0, {"row": np.array(-1)})
        self.rng = np.random.default_rng(seed)
        self.calls = 0

    def __call__(self, weight):
        self.calls += 1
        scores = self.values @ weight
        eta, tau = self.error
        # The worst that the error allows, so that a bound that forgets it is caught.
        good = np.flatnonzero(scores >= (1 - eta) * scores.max() - tau)
        row = good[np.argmin(scores[good])]
        return palm.OraclePolicy(self.values[row], 0.0, {"row": np.array(row)})


class Mixed:
    """Decoding-time mixing of two tiny policies over short strings: logits sum_i w_i log pi_i.

    Strings of two tokens from four; policy i favours what reward i likes. The mixture is not the
    optimum, so the error is unknown.
    """

    beta, fingerprint, error, num_rewards = 0.05, "mixed", None, 2

    def __init__(self, seed=0):
        rng = np.random.default_rng(seed)
        self.reward = rng.random((2, 4, 4))
        base = np.log(rng.dirichlet(np.ones(4), 5))  # the first token, and the second after each
        self.base = base
        first = np.stack([r.max(1) for r in self.reward])
        self.experts = [
            base + 3 * np.concatenate([first[i][None], self.reward[i]]) for i in range(2)
        ]
        self.reference = self._policy(base, np.array([0.0, 0.0]))
        joint = self._joint(base)
        mean = [np.sum(joint * r) for r in self.reward]
        self.spread = np.array(
            [np.sqrt(np.sum(joint * (r - m) ** 2)) for r, m in zip(self.reward, mean, strict=True)]
        )

    @staticmethod
    def _joint(logits):
        step = np.exp(logits - logits.max(1, keepdims=True))
        step /= step.sum(1, keepdims=True)
        return step[0][:, None] * step[1:]

    def _policy(self, logits, mix):
        joint, ref = self._joint(logits), self._joint(self.base)
        rewards = np.array([np.sum(joint * r) for r in self.reward])
        return palm.OraclePolicy(rewards, float(np.sum(joint * np.log(joint / ref))), {"mix": mix})

    def __call__(self, weight):
        logits = sum(w * e for w, e in zip(weight, self.experts, strict=True))
        return self._policy(logits, np.asarray(weight))


def cover_interval(covers):
    """A smallest cover of intervals, as for two rewards: from the left, what reaches furthest."""
    covers = np.asarray(covers, bool)
    steps = np.diff(np.pad(covers, [(0, 0), (1, 1)]).astype(np.int8), axis=1)
    if ((steps == 1).sum(axis=1) > 1).any():
        raise ValueError("a policy covers no interval")
    # One past the last covered weight of each policy, 0 for a policy that covers none.
    ends = np.where(covers.any(axis=1), covers.shape[1] - np.argmax(covers[:, ::-1], axis=1), 0)
    members, place = [], 0
    while place < covers.shape[1]:
        reach = np.where(covers[:, place], ends, 0)
        if reach.max() <= place:
            raise ValueError(f"no policy covers weight {place}")
        members.append(int(np.argmax(reach)))
        place = int(reach.max())
    return np.array(members, np.intp)
