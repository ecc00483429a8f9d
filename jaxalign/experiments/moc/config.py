"""The settings of a run of MOC, and those that a trained policy was made with."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jaxalign.config import load_config
from jaxalign.config_fields import checks_fields
from jaxalign.data.prompts import PromptConfig
from jaxalign.errors import InputError
from jaxalign.experiments.moc import baselines
from jaxalign.files import expand_user
from jaxalign.moc.config import MocConfig
from jaxalign.moc.files import policy_folder
from jaxalign.moc.modpo import ModpoConfig
from jaxalign.moc.preferences import parse_preference
from jaxalign.moc.warm_start import WarmStartConfig
from jaxalign.rewards.reward_scale import check_quantiles
from jaxalign.rewards.spec import RewardSpec

CONFIG = "config.yaml"
_RESERVED = "=,<>"  # what separates the names of rewards in a preference
_ONE_WEIGHTING = ("morlhf", "modpo")  # baselines that are trained for a single weighting


@dataclass(frozen=True)
@checks_fields
class MocRunConfig:
    """A run: rewards, prompts, and how the policy is trained.

    Attributes:
        rewards: the R rewards that are the objectives, two or more, in the order of preferences.
        prompts: which prompts of the source are used; a share is held out to judge on.
        moc: settings of the training.
        baseline: what to train instead, with the same trainer: "morlhf", an unconditioned policy
            for the weighting `weight`; "closeness", a conditioned policy that is rewarded for
            the closeness of each completion's rewards to the preference; "ric", a conditioned
            policy after its warm start, without PPO; or "modpo", an unconditioned policy for the
            weighting `weight` that learns from pairs of the completions in `warm_start.data`,
            without PPO.
        warm_start: fine-tuning on scored completions before PPO.
        modpo: preference optimisation of "modpo", which takes its loop and optimiser from
            `warm_start`.
        weight: weighting of "morlhf" and "modpo", such as helpful=0.3,harmless=0.7; null otherwise.
        reference_answers: completions of the model alone on which the scale of the rewards is
            estimated, 256 or more.
        quantiles: quantiles of their rewards that become levels 0 and 1, between 0 and 1.
        conflict_prompts: prompts on which it is measured before training how far the rewards
            conflict, 16 or more for a useful figure; 0 measures nothing.
        conflict_samples: completions of each by the model alone, 2 or more; 16 is usual.
    """

    rewards: tuple[RewardSpec, ...] = ()
    prompts: PromptConfig = field(default_factory=PromptConfig)
    moc: MocConfig = field(default_factory=MocConfig)
    baseline: Literal["none", "morlhf", "closeness", "ric", "modpo"] = "none"
    warm_start: WarmStartConfig = field(default_factory=WarmStartConfig)
    modpo: ModpoConfig = field(default_factory=ModpoConfig)
    weight: str | None = None
    reference_answers: int = 512
    quantiles: tuple[float, float] = (0.05, 0.95)
    conflict_prompts: int = 16
    conflict_samples: int = 16

    def __post_init__(self) -> None:
        for name, least in (("conflict_prompts", 0), ("conflict_samples", 2)):
            if getattr(self, name) < least:
                raise InputError(
                    f"{name} is {getattr(self, name)}; expected at least {least}: correct it."
                )
        for name in (reward.name for reward in self.rewards):
            if not name or name != name.strip() or set(name) & set(_RESERVED):
                raise InputError(
                    f"rewards: found the name {name!r}, expected one without {' '.join(_RESERVED)} "
                    "and spaces around it, since a preference is written as name=share,name=share "
                    "and as <pref_name> in prompts; rename it."
                )
        check_quantiles(self.quantiles)
        if self.reference_answers < 256:
            raise InputError(
                f"reference_answers is {self.reference_answers}; expected at least 256, or the "
                "scale of the rewards is noise."
            )
        if (self.baseline in _ONE_WEIGHTING) != (self.weight is not None):
            raise InputError(
                f"baseline is {self.baseline} and weight {self.weight}; expected a weight such as "
                "helpful=0.3,harmless=0.7 for morlhf and modpo, and none else."
            )
        if self.baseline not in _ONE_WEIGHTING and self.moc.conditioning == "none":
            raise InputError(
                f"moc.conditioning is none with the baseline {self.baseline}; expected a policy "
                "that is given its preference: set another conditioning, or the baseline morlhf "
                "or modpo with a weight."
            )
        if self.baseline in ("ric", "modpo") and self.warm_start.data is None:
            raise InputError(
                f"warm_start.data is null, expected completions to learn from for the baseline "
                f"{self.baseline}: give a file with the columns prompt and completion."
            )

    def training(self, names: Sequence[str]) -> MocConfig:
        """Return the settings of the training, the baseline's changes included.

        Args:
            names: [R] names of the rewards.

        Raises:
            InputError: a weight that is not over these rewards.
        """
        if self.weight is not None:
            return baselines.morlhf(self.moc, parse_preference(self.weight, names))
        return baselines.closeness(self.moc) if self.baseline == "closeness" else self.moc


def trained_config(folder: str | Path) -> MocRunConfig | None:
    """Return the config of the run that trained a policy, None where the policy stands alone.

    Args:
        folder: of the run, or of the policy in it.

    Raises:
        InputError: there is no policy, or its config cannot be read.
    """
    places = expand_user(folder) / CONFIG, policy_folder(folder).parent / CONFIG
    found = next((place for place in places if place.is_file()), None)
    return None if found is None else load_config(MocRunConfig, found, [])
