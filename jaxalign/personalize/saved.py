"""Policies of a folder that a server offers by name, before any model is loaded."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jaxalign import moc
from jaxalign.errors import InputError
from jaxalign.moc.files import PolicyInfo, load_info, policy_folder
from jaxalign.moc.value_table import ValueTable
from jaxalign.models.language import LanguageModel
from jaxalign.models.weights.adapter import WEIGHTS
from jaxalign.personalize.policies import Conditioned, Kind
from jaxalign.personalize.saved_members import SavedMembers, load_members, policy_names
from jaxalign.personalize.strategies.policies import (
    PolicyValues,
    member_values,
    preference_values,
)
from jaxalign.personalize.utility import Utility
from jaxalign.rewards.reward_scale import RewardIds, RewardScale


@dataclass(frozen=True, eq=False)
class SavedPreferences:
    """A conditioned policy under each preference of its value table; it is not loaded.

    Attributes:
        folder: of the policy.
        info: what its file says of it.
        table: its value table.
    """

    folder: Path
    info: PolicyInfo
    table: ValueTable

    @property
    def base(self) -> str:
        """Name of the base model."""
        return self.info.model

    @property
    def weights(self) -> NDArray[np.float64]:
        """The preferences [C, R]; zeros, the reference, first."""
        preferences = self.table.preferences
        return np.concatenate([np.zeros((1, preferences.shape[1])), preferences])

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names [C] under which servers offer the policies, as of `policy_names`."""
        adapter = hashlib.sha256((self.folder / WEIGHTS).read_bytes()).hexdigest()
        digests = (self.info.conditioning, self.info.model_sha256, adapter)
        return policy_names("preference", digests, self.weights)

    beta = 0.0

    def achieved(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the rewards in standard deviations [C, R] and the KL [C], 0 for the reference."""
        none = np.zeros((1, len(self.table.names)))
        rewards = np.concatenate([none, self.table.achieved_rewards])
        return rewards, np.append(0.0, self.table.kl)

    def reward_ids(self) -> RewardIds:
        """Return which rewards these are.

        Raises:
            InputError: a policy without a scale of its rewards.
        """
        if self.info.scale is None:
            raise InputError(
                f"{self.folder}: the policy has no scale of its rewards, expected one that weights "
                "can be compared with; train it with `jaxalign moc train`."
            )
        return RewardScale.from_json(self.info.scale, str(self.folder)).ids

    def adapt(self, model: LanguageModel) -> Kind:
        """Return what makes policies of the base model.

        Raises:
            InputError: another model than the policy was trained on.
        """
        return Conditioned(moc.load(self.folder, model), self.table.preferences)


SavedPolicies = SavedMembers | SavedPreferences


def open_policies(portfolio: str | Path | None, policy: str | Path | None) -> SavedPolicies:
    """Return the policies of a portfolio, or those of a conditioned policy.

    Args:
        portfolio: folder of `jaxalign palm build` over policies.
        policy: folder of `jaxalign moc train`, judged by `jaxalign moc evaluate`.

    Raises:
        InputError: both or none of them is given, or a folder that holds something else.
    """
    if portfolio is not None and policy is None:
        return load_members(portfolio)
    if policy is None or portfolio is not None:
        raise InputError(
            f"found {'both' if policy else 'neither'} of --portfolio and --policy, expected one of "
            "them: a portfolio can be built over a MOC policy (`jaxalign palm build --policies`)."
        )
    place = policy_folder(policy)
    return SavedPreferences(place, load_info(place), ValueTable.load(place))


def policy_values(saved: SavedPolicies, population: Utility) -> PolicyValues:
    """Return what saved policies are worth to users.

    Args:
        saved: of `open_policies`.
        population: weights of a user of whom nothing is known, on the policies' rewards.

    Raises:
        InputError: rewards without a scale, other rewards or another scale than the users'.
    """
    if isinstance(saved, SavedMembers):
        return member_values(saved.portfolio, population)
    return preference_values(saved.reward_ids(), saved.table, population)
