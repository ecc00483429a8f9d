"""Rewards as a config names them: rules, classifiers and Python functions."""

import importlib
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal

from jaxalign.backend import program_backend
from jaxalign.config_fields import checks_fields
from jaxalign.errors import InputError
from jaxalign.models.classifier import Classifier
from jaxalign.models.global_arrays import device_bytes
from jaxalign.models.weights.load import Shardings
from jaxalign.rewards.registry import check_registered, file_digest, rule_rewards
from jaxalign.rewards.reward_model import load_reward_model
from jaxalign.rewards.vector import (
    TextReward,
    check_classifier_options,
    check_reward_names,
    classifier_reward,
    concatenate_rewards,
)

_OF_CLASSIFIERS = ("model", "label", "pair", "template", "between", "dtype", "batch_tokens")


@dataclass(frozen=True)
@checks_fields
class RewardSpec:
    """One reward, as a config names it.

    Attributes:
        name: of the reward, in reports and preferences. For kind `rule`, the name under which it
            is registered: brevity, positivity, simplicity, warmth, structure, or one of your own.
        kind: `rule` is a registered function of the text; `classifier` is a logit of a sequence
            classifier; `python` is a function of your own, given by `function`.
        model: for kind `classifier`: its folder, file or Hub name; also the folder `model` of a run
            of `jaxalign reward train`.
        label: for kind `classifier`: the number of the logit, or of the head, from 0.
        pair: for kind `classifier`: true classifies prompt and answer, joined as the tokenizer
            joins a pair; false classifies the answer alone.
        template: for kind `classifier`: text to classify instead, with {prompt} and {answer} in
            it, written as the classifier was trained.
        between: for kind `classifier`: two marks that stand in every prompt; the model reads only
            the text between them.
        dtype: for kind `classifier`: of parameters and compute. bfloat16 halves its memory. null is
            bfloat16 on an accelerator and float32 on a CPU, where bfloat16 is slower.
        batch_tokens: for kind `classifier`: tokens of one batch, padding included, at least 1.
            Lower it if memory runs out; null suits the backend.
        function: for kind `python`: `module:function`, found from the working directory too, of a
            list of prompts and a list of answers to one number per answer.
        levels: the raw rewards that count as levels 0 and 1, increasing, where they are known;
            null estimates them on reference samples.

    Example:
        >>> from jaxalign.rewards import RewardSpec
        >>> RewardSpec("brevity", levels=(-5.0, 0.0)).kind
        'rule'
    """

    name: str
    kind: Literal["rule", "classifier", "python"] = "rule"
    model: str | None = None
    label: int = 0
    pair: bool = True
    template: str | None = None
    between: tuple[str, str] | None = None
    dtype: Literal["float32", "bfloat16"] | None = None
    batch_tokens: int | None = None
    function: str | None = None
    levels: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.kind == "rule":
            check_registered(self.name)
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
        check_classifier_options(
            self.name, self.label, self.batch_tokens, self.template, self.between
        )
        if self.levels is not None and not -math.inf < self.levels[0] < self.levels[1] < math.inf:
            raise InputError(
                f"the reward {self.name} has levels {list(self.levels)}; expected the raw reward "
                "of level 0, then a higher one of level 1, both finite."
            )


def build_rewards(
    specs: Sequence[RewardSpec],
    shardings: Shardings | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> TextReward:
    """Return the rewards of a config as one function, columns in its order.

    Args:
        specs: R of them; a classifier that several name is loaded once.
        shardings: where the parameters of classifiers lie, such as
            `jaxalign.train.mesh.inference_shardings`; None for one device.
        say: called with one line for each classifier: its dtype and its memory.

    Raises:
        InputError: no reward, a name that comes twice, a model that cannot be loaded, or a
            function that cannot be found.

    Example:
        >>> from jaxalign.rewards import RewardSpec, build_rewards
        >>> reward = build_rewards([RewardSpec("brevity"), RewardSpec("structure")])
        >>> reward.function(["Why?"], ["- one\\n- two"]).tolist()[0][1]
        0.75
    """
    if not specs:
        raise InputError("a config names no rewards; expected at least one under `rewards`.")
    check_reward_names(tuple(spec.name for spec in specs))  # before a model is loaded
    loaded: dict[tuple[str, str], Classifier] = {}
    rewards = [_build_one(spec, loaded, shardings) for spec in specs]
    for (name, dtype), model in loaded.items():
        gib = device_bytes(model.params) / 2**30
        say(f"reward model {name} in {dtype}: {gib:.2f} GiB on each device")
    return concatenate_rewards(*rewards)


def known_levels(specs: Sequence[RewardSpec]) -> dict[str, tuple[float, float]]:
    """Return the raw rewards of levels 0 and 1 that a config states, by name, for `fit_scale`.

    Example:
        >>> from jaxalign.rewards import RewardSpec, known_levels
        >>> known_levels([RewardSpec("brevity", levels=(-5.0, 0.0)), RewardSpec("warmth")])
        {'brevity': (-5.0, 0.0)}
    """
    return {spec.name: spec.levels for spec in specs if spec.levels is not None}


def _build_one(
    spec: RewardSpec, loaded: dict[tuple[str, str], Classifier], shardings: Shardings | None
) -> TextReward:
    match spec:
        case RewardSpec(kind="python", function=str() as place):
            return _python(spec.name, place)
        case RewardSpec(kind="classifier", model=str() as model):
            on_cpu = program_backend() == "cpu"
            key = (model, spec.dtype or ("float32" if on_cpu else "bfloat16"))
            if key not in loaded:
                loaded[key] = load_reward_model(*key, shardings)
            return classifier_reward(
                loaded[key],
                spec.name,
                spec.label,
                spec.pair,
                spec.batch_tokens,
                template=spec.template,
                between=spec.between,
            )
    return rule_rewards([spec.name])


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
    return TextReward((name,), function, f"python:{place}:{file_digest(module.__name__)}")


def _imported(name: str, module: str) -> ModuleType:
    here = str(Path.cwd())
    sys.path.append(here)  # the command's own path does not hold the working directory
    try:
        return importlib.import_module(module)
    except (Exception, SystemExit) as error:  # importing runs the user's code
        raise InputError(
            f"the reward {name}: {module} cannot be imported ({type(error).__name__}: {error}); "
            "correct it, or run where it lies."
        ) from error
    finally:
        sys.path.remove(here)
