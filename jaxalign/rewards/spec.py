"""Rewards as a config names them: rules, classifiers and Python functions."""

import hashlib
import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jaxalign.errors import InputError
from jaxalign.models.classifier import Classifier, load_classifier
from jaxalign.rewards.rules import TRAITS
from jaxalign.rewards.vector import TextReward, classifier_reward, concatenate_rewards, rule_rewards

_OF_CLASSIFIERS = ("model", "label", "pair", "template", "between", "dtype", "batch_tokens")


@dataclass(frozen=True)
class RewardSpec:
    """One reward.

    Attributes:
        name: of the reward; of a rule, which one: brevity, positivity, simplicity, warmth or
            structure.
        kind: `rule`, a logit of a sequence `classifier`, or a `python` function.
        model: of a classifier, a folder, file or name.
        label: number of its logit.
        pair: classify prompt and answer, joined as the tokenizer joins a pair; false for the
            answer alone.
        template: text to classify in place of either, with {prompt} and {answer} in it.
        between: two marks in every prompt; the classifier reads only what stands between them.
        dtype: of the classifier's parameters and compute.
        batch_tokens: of one batch of the classifier, padding included; null to suit the backend.
        function: `module:function` of Python, found from the working directory too, of a list of
            prompts and one of answers, to a number for each answer.
        levels: raw rewards that count as levels 0 and 1, where they are known; null to estimate
            them on reference samples.
    """

    name: str
    kind: Literal["rule", "classifier", "python"] = "rule"
    model: str | None = None
    label: int = 0
    pair: bool = True
    template: str | None = None
    between: tuple[str, str] | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    batch_tokens: int | None = None
    function: str | None = None
    levels: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.kind == "rule" and self.name not in TRAITS:
            raise InputError(
                f"no rule measures {self.name!r}; choose among {', '.join(TRAITS)}, or give kind."
            )
        needed = {"classifier": "model", "python": "function"}
        for kind, field in needed.items():
            if (self.kind == kind) != bool(getattr(self, field)):
                raise InputError(
                    f"the reward {self.name} is of kind {self.kind} and its {field} is "
                    f"{getattr(self, field)!r}; expected one for kind {kind}, and none else."
                )
        foreign = [
            field
            for field in _OF_CLASSIFIERS
            if getattr(self, field) != type(self).__dataclass_fields__[field].default
        ]
        if self.kind != "classifier" and foreign:
            raise InputError(
                f"the reward {self.name} is of kind {self.kind} and has {foreign[0]}, which only "
                "classifiers have; remove it."
            )
        if self.levels is not None and not self.levels[0] < self.levels[1]:
            raise InputError(
                f"the reward {self.name} has levels {list(self.levels)}; expected the raw reward "
                "of level 0, then a higher one of level 1."
            )


def build_rewards(specs: Sequence[RewardSpec]) -> TextReward:
    """The rewards of a config as one function, columns in its order.

    Args:
        specs: R of them; a classifier that several name is loaded once.

    Raises:
        InputError: no reward, a name that comes twice, a model that cannot be loaded, or a
            function that cannot be found.
    """
    if not specs:
        raise InputError("a config names no rewards; expected at least one under `rewards`.")
    loaded: dict[tuple[str, str], Classifier] = {}
    return concatenate_rewards(*[_one(spec, loaded) for spec in specs])


def known_levels(specs: Sequence[RewardSpec]) -> dict[str, tuple[float, float]]:
    """Raw rewards of levels 0 and 1 by name, as `fit_scale` takes them, where a config has them."""
    return {spec.name: spec.levels for spec in specs if spec.levels is not None}


def _one(spec: RewardSpec, loaded: dict[tuple[str, str], Classifier]) -> TextReward:
    if spec.kind == "rule":
        return rule_rewards([spec.name])
    if spec.kind == "python":
        assert spec.function is not None
        return _python(spec.name, spec.function)
    assert spec.model is not None
    key = (spec.model, spec.dtype)
    if key not in loaded:
        loaded[key] = load_classifier(*key)
    return classifier_reward(
        loaded[key],
        spec.name,
        spec.label,
        spec.pair,
        spec.batch_tokens,
        template=spec.template,
        between=spec.between,
    )


def _python(name: str, place: str) -> TextReward:
    module_name, _, function_name = place.partition(":")
    if not module_name or not function_name:
        raise InputError(f"the reward {name} has function {place!r}; expected module:function.")
    module = _imported(name, module_name)
    function = getattr(module, function_name, None)
    if not callable(function):
        raise InputError(
            f"the reward {name}: {module_name} has no function {function_name!r}; correct the name."
        )
    # Another text of the module may be another reward.
    file = getattr(module, "__file__", None)
    digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16] if file else "built in"
    return TextReward((name,), function, f"python:{place}:{digest}")


def _imported(name: str, module: str) -> Any:
    here = str(Path.cwd())
    sys.path.append(here)  # the command's own path does not hold the working directory
    try:
        return importlib.import_module(module)
    except Exception as error:  # importing runs the user's code
        raise InputError(
            f"the reward {name}: {module} cannot be imported ({type(error).__name__}: {error}); "
            "correct it, or run where it lies."
        ) from error
    finally:
        sys.path.remove(here)
