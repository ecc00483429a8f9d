"""A policy on disk: a PEFT adapter, and beside it an artifact with all that peft does not know."""

from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jaxalign.errors import InputError
from jaxalign.files import expand_user, write_folder_aside
from jaxalign.moc.config import Conditioning
from jaxalign.moc.policy import ConditionedPolicy, TrainedParams
from jaxalign.moc.preferences import check_simplex
from jaxalign.models import lora
from jaxalign.models.language import LanguageModel, load_language_model
from jaxalign.models.peft import load_adapter, save_adapter
from jaxalign.models.resolve import stated_name
from jaxalign.models.weights.load import Shardings
from jaxalign.recognise import instead
from jaxalign.rewards.reward_scale import RewardScale
from jaxalign.runs.artifact import flatten, load_artifact, save_artifact, subtree

FILE, KIND = "policy.safetensors", "MOC policy"
POLICY = "model"
"""Folder of the policy in that of its run."""
REMEDY = "train it with `jaxalign moc train`"


@dataclass(frozen=True)
class PolicyInfo:
    """What a policy's file says of it, see `ConditionedPolicy`.

    Attributes:
        names: [R] names of the rewards.
        conditioning: how the policy is given the preference.
        decimals: how many a preference is written with.
        scale: of the rewards, as `RewardScale.to_json`; None where there is none.
        model: name of the base model.
        model_sha256: digest of the base model's weights.
    """

    names: tuple[str, ...]
    conditioning: Conditioning
    decimals: int
    scale: dict[str, list[str] | list[float]] | None
    model: str
    model_sha256: str


def save(folder: str | Path, policy: ConditionedPolicy) -> None:
    """Write a policy as a folder that peft, and `load_adapter`, read as a LoRA adapter.

    Of the conditioning "adapters", that adapter holds those of all rewards side by side, unmixed;
    `save_preference` writes what answers under one preference.

    Args:
        folder: new, or one whose policy is replaced once the new one is whole.
        policy: what to write; the base model is named, not copied.
    """
    trained = policy.trained
    rest = {"heads": trained["heads"], "token": trained.get("token", {})}
    model, scale = policy.model, policy.scale
    info = PolicyInfo(
        names=policy.names,
        conditioning=policy.conditioning,
        decimals=policy.decimals,
        scale=None if scale is None else scale.to_json(),
        model=stated_name(model.name),
        model_sha256=model.sha256,
    )
    with write_folder_aside(folder, last=FILE) as aside:
        adapter = trained["adapter"]
        if policy.conditioning == "adapters":
            adapter = lora.concatenate(adapter)
        save_adapter(aside, adapter, policy.lora, model.name, model.config)
        arrays = {name: np.asarray(value, np.float32) for name, value in flatten(rest).items()}
        save_artifact(aside / FILE, KIND, info, arrays)


def load_info(folder: Path) -> PolicyInfo:
    """Return what a policy's file says of it; the policy itself is not loaded.

    Raises:
        InputError: the file is missing, damaged or of an older format.
    """
    return load_artifact(folder / FILE, KIND, PolicyInfo, REMEDY).about


def check_base(folder: Path, info: PolicyInfo, model: LanguageModel) -> None:
    """Refuse a model that a policy was not trained on.

    Args:
        folder: of the policy, for the message.
        info: what the policy's file says of it.
        model: to be the policy's base model.

    Raises:
        InputError: the model has other weights.
    """
    if model.sha256 != info.model_sha256:
        raise InputError(
            f"{folder}: the policy was trained on {info.model} with weights "
            f"{info.model_sha256:.12}..; found {model.name} with {model.sha256:.12}..: give the "
            "model it was trained on."
        )


def load(
    folder: str | Path,
    model: LanguageModel | None = None,
    dtype: str = "float32",
    shardings: Shardings | None = None,
) -> ConditionedPolicy:
    """Read what `save` wrote.

    Args:
        folder: of the policy.
        model: its base model, loaded already; None loads the one that is named in the folder.
        dtype: in which the base model is loaded.
        shardings: where its parameters lie, as in `load_language_model`; None for one device.

    Raises:
        InputError: a file is missing, damaged or of an older format, or the model is another one.
    """
    folder = expand_user(folder)
    found = load_artifact(folder / FILE, KIND, PolicyInfo, REMEDY)
    info = found.about
    if model is None:
        model = load_language_model(info.model, dtype, shardings)
    check_base(folder, info, model)
    lora_config, adapter = load_adapter(folder, model.config)
    if info.conditioning == "adapters":
        adapter = lora.split(adapter, len(info.names))
    heads, token = (jax.tree.map(jnp.asarray, subtree(found.arrays, n)) for n in ("heads", "token"))
    trained: TrainedParams = {"adapter": adapter, "heads": heads}
    if token:
        trained["token"] = token
    scale = None
    if info.scale is not None:
        scale = RewardScale.from_json(info.scale, str(folder / FILE))
    return ConditionedPolicy(
        model,
        info.names,
        info.conditioning,
        lora_config,
        trained,
        scale,
        info.decimals,
    )


def save_preference(folder: str | Path, policy: ConditionedPolicy, preference: ArrayLike) -> None:
    """Write what answers under one preference as a plain LoRA adapter, which peft and vLLM load.

    Args:
        folder: new, or one whose adapter is replaced once the new one is whole.
        policy: conditioned by "adapters".
        preference: [R] on the simplex. The rank is that of one adapter times the number of weights
            above 0; at a corner the reward's own adapter is written.

    Raises:
        InputError: a policy that is conditioned in another way, or no preference.

    Source: peft's `add_weighted_adapter` with "cat".
    """
    if policy.conditioning != "adapters":
        other = (
            "a policy of one weighting is a plain adapter as it is: give its folder."
            if policy.conditioning == "none"
            else "other policies need the preference in each request."
        )
        raise InputError(
            f"the policy is conditioned by {policy.conditioning!r}; expected 'adapters', which are "
            f"mixed into one adapter for a preference: {other}"
        )
    weights = check_simplex(preference, policy.names)
    if weights.ndim != 1:
        raise InputError(f"preference: found shape {weights.shape}, expected [R], one preference.")
    used = np.flatnonzero(weights)
    stack = jax.tree.map(lambda leaf: leaf[:, used], policy.trained["adapter"])
    adapter = lora.concatenate(stack, jnp.asarray(weights[used]))
    save_adapter(folder, adapter, policy.lora, policy.model.name, policy.model.config)


def find_policy(folder: str | Path) -> Path | None:
    """Return where the policy lies: the folder itself, or that of a run's policy in it, or None."""
    folder = expand_user(folder)
    places = folder, folder / POLICY
    return next((place for place in places if (place / FILE).is_file()), None)


def policy_folder(folder: str | Path) -> Path:
    """Return where the policy lies, as `find_policy`.

    Raises:
        InputError: there is no policy in either.
    """
    if (place := find_policy(folder)) is not None:
        return place
    folder = expand_user(folder)
    raise InputError(
        f"{folder} holds no MOC policy ({FILE}){instead(folder)}: give the folder of a finished "
        "`jaxalign moc train`; a policy of an older format has to be trained again."
    )
