"""The settings of a run of `jaxalign mrm train`: one field for each registered method."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, dataclass_transform

import jaxalign.mrm.baselines
import jaxalign.mrm.hierarchical
import jaxalign.mrm.meta  # noqa: F401
from jaxalign.config_fields import checks_fields
from jaxalign.errors import InputError
from jaxalign.mrm.config import (
    AdaptationConfig,
    ChoiceDataConfig,
    FeatureConfig,
    SplitConfig,
    check_range,
)
from jaxalign.mrm.registry import METHODS, UserRewardMethod, make_method

GLOBAL_MODELS = ("bt", "bt_items")
"""Models for all users, which every gain is over: on features alone, and with item effects."""
_Config = TypeVar("_Config")


@dataclass_transform(frozen_default=True)
def with_method_settings(cls: type[_Config]) -> type[_Config]:
    """Return the class as a frozen dataclass, checked, with a field for each registered method.

    The field has the method's name, the type of its settings, and its default settings. Fields of
    method names accept registered methods alone.
    """
    names = tuple(METHODS)
    some: Any = Literal[names]
    cls.__annotations__ |= {
        "methods": tuple[some, ...],
        "fold_methods": tuple[some, ...],
        "select": Literal[("validation", *names)],
        **{name: type(entry.settings) for name, entry in METHODS.items()},
    }
    for name, entry in METHODS.items():
        setattr(cls, name, field(default_factory=_constant(entry.settings)))
    return dataclass(frozen=True)(checks_fields(cls))


def _constant(value: object) -> Callable[[], object]:
    return lambda: value


@with_method_settings
class MRMRunConfig:
    """A whole run of `jaxalign mrm train`; each method's settings are in a field of its name.

    Attributes:
        data: how choices are read.
        split: which users train, validate and test, and how their choices are cut.
        features: what the features of an item are.
        adaptation: when a method adapts at all, and to whom.
        methods: one or more that are fitted and judged beside one model for all users on
            features alone (`bt`) and the best one, with effects of the known items (`bt_items`).
        fold_methods: methods that are fitted again in every item fold.
        select: method to save for `adapt` and `rank`: a name, or "validation" for the one with the
            least validation loss of those that can score new items.
        seeds: fits per method, with different initialisations and orders, 1 or more; the report
            averages over them.
        shots: numbers of choices at which the accuracy curve is drawn, one or more, each 0 or more
            and at most `split.support_pairs`, unless that is 0.
        draws: draws of the bootstrap, 100 or more for usable intervals.
    """

    data: ChoiceDataConfig = field(default_factory=ChoiceDataConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    features: FeatureConfig = field(default_factory=FeatureConfig)
    adaptation: AdaptationConfig = field(default_factory=AdaptationConfig)
    methods: tuple[str, ...] = ("bt_per_user", "item_ids", "bayes", "mrm_published", "mrm")
    fold_methods: tuple[str, ...] = ("item_ids", "bayes", "mrm")
    select: str = "validation"
    seeds: int = 3
    shots: tuple[int, ...] = (0, 1, 2, 5, 10, 20)
    draws: int = 2000

    def __post_init__(self) -> None:
        if not self.methods:
            raise InputError("methods is empty; expected one or more, such as bayes.")
        check_range(self, "seeds", 1)
        check_range(self, "shots", 0)
        check_range(self, "draws", 2)
        most = self.split.support_pairs
        if most and max(self.shots, default=0) > most:
            raise InputError(
                f"shots: found {max(self.shots)}, expected at most {most}, the choices that a test "
                "user is adapted on (split.support_pairs): lower the one, or raise the other."
            )


def method_of(config: MRMRunConfig, name: str) -> UserRewardMethod:
    """Return a method with the settings that a run's config has for it.

    Example:
        >>> from jaxalign.experiments.mrm.config import MRMRunConfig, method_of
        >>> method_of(MRMRunConfig(), "mixture").settings.em_steps
        30
    """
    return make_method(name, getattr(config, name))
