"""The folders of `palm build --policies`: adapters or a MOC policy, base model and rewards."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import comb
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jaxalign import moc
from jaxalign.data.chat_template import choose_template
from jaxalign.data.prompts import Prompt, Prompts, as_chats, filter_prompts, load_prompts
from jaxalign.errors import InputError
from jaxalign.experiments.moc.config import MocRunConfig, trained_config
from jaxalign.files import expand_user
from jaxalign.moc.files import load_info, policy_folder
from jaxalign.moc.preferences import evaluation_points
from jaxalign.models.chat import room_for_prompts, tokenize_prompt
from jaxalign.models.hf_config import read_config_json
from jaxalign.models.language import LanguageModel, load_language_model
from jaxalign.models.peft import load_adapter
from jaxalign.models.resolve import stated_name
from jaxalign.palm.baselines import das_dennis
from jaxalign.palm.config import BuildConfig
from jaxalign.palm.policy_pool import ANSWER_TOKENS, PolicyPoolConfig, PoolKind
from jaxalign.personalize.policies import (
    Conditioned,
    Kind,
    Mixing,
    Separate,
    Soups,
    adapter_digest,
    open_models,
)
from jaxalign.progress import counted
from jaxalign.rewards.reward_scale import RewardScale
from jaxalign.rewards.spec import RewardSpec

ADAPTER, MOC = "adapter_config.json", "policy.safetensors"
_MADE_OF: dict[str, type[Soups | Mixing | Separate]] = {
    "soups": Soups,
    "mixing": Mixing,
    "separate": Separate,
}


@dataclass(frozen=True, eq=False)
class PolicyPool:
    """The policies that a portfolio is chosen from.

    Attributes:
        model: the reference, and what the policies adapt.
        policies: what makes a policy of A weights.
        options: [C, A] weights of the C policies.
        names: [A] what a weight is of: an adapter's folder, or a reward.
        scale: of a MOC policy's rewards, None for other policies.
    """

    model: LanguageModel
    policies: Kind
    options: NDArray[np.float64]
    names: tuple[str, ...]
    scale: RewardScale | None


def resolved_config(folders: Sequence[Path], config: BuildConfig) -> BuildConfig:
    """Return a build's config with the rewards and the most tokens of the answers filled in.

    Where the config leaves them open, they are those of the runs of `jaxalign moc train` that the
    folders are of, where these have the same. No model is loaded.

    Args:
        folders: of `--policies`.
        config: of the build.

    Raises:
        InputError: a folder that holds no policy, policies that the kind does not fit, or no
            rewards.
    """
    places = _policy_places(folders, config.policies.kind)
    run = _shared_run(folders) if all((place / MOC).is_file() for place in places) else None
    rewards = _rewards(config, () if run is None else run.rewards)
    own = ANSWER_TOKENS if run is None else run.moc.answer_tokens
    policies = replace(
        config.policies, rewards=rewards, max_tokens=config.policies.max_tokens or own
    )
    return replace(config, rewards=tuple(spec.name for spec in rewards), policies=policies)


def _shared_run(folders: Sequence[Path]) -> MocRunConfig | None:
    """The config of a run that trained each policy, None where they differ or stand alone."""
    first, *others = (trained_config(folder) for folder in folders)
    if first is None:
        return None
    what = first.rewards, first.moc.answer_tokens
    same = (one is not None and (one.rewards, one.moc.answer_tokens) == what for one in others)
    return first if all(same) else None


def load_pool(folders: Sequence[Path], base: str | None, config: BuildConfig) -> PolicyPool:
    """Read the folders of `--policies`.

    Args:
        folders: of adapters in the format of peft, of whole models, or the one folder of a MOC
            policy or its run.
        base: base model; None for the one that the first folder names, where it is an adapter.
        config: of the build.

    Raises:
        InputError: a folder that is neither, or adapters of different matrices or another model.
    """
    kind = config.policies.kind
    places = _policy_places(folders, kind)
    if _is_conditioned(places[0]):
        return _of_moc(folders[0], base, config)
    if not all((place / ADAPTER).is_file() for place in places):
        return _of_models(folders, places, base, config)
    bases = [_base_of(place) for place in places]
    if base is None and len(set(bases)) > 1:
        other = next(place for place, name in enumerate(bases) if name != bases[0])
        raise InputError(
            f"--policies: {folders[0]} adapts {bases[0]} and {folders[other]} adapts "
            f"{bases[other]}, expected one base model; add --model if the two are the same."
        )
    model = load_language_model(base or bases[0], config.policies.dtype)
    adapters = tuple(load_adapter(place, model.config) for place in places)
    _refuse_repeated(folders, list(map(adapter_digest, adapters)))
    policies = _MADE_OF["soups" if kind == "auto" else kind](adapters)
    options = np.eye(len(adapters)) if kind == "separate" else _grid(len(adapters), config.policies)
    return PolicyPool(model, policies, options, _names(folders), None)


def _of_models(
    folders: Sequence[Path],
    places: Sequence[Path],
    base: str | None,
    config: BuildConfig,
) -> PolicyPool:
    """Whole models; adapters among them are merged into their base models."""
    settings = config.policies
    if settings.kind == "mixing":
        raise InputError(
            "policies.kind: found mixing for whole models, which would all have to be in memory to "
            "draw each token together, expected soups or separate; fine-tune adapters (--trunk."
            "method lora) to mix them."
        )
    if base is None:
        raise InputError(
            f"--policies: {folders[0]} and others are whole models, which name no base model; add "
            "--model with the one that they were trained from: their gains are over it."
        )
    model = load_language_model(base, settings.dtype)
    policies = open_models(model, [str(place.resolve()) for place in places])
    _refuse_repeated(folders, policies.digests)
    size = len(places)
    options = np.eye(size) if settings.kind == "separate" else _grid(size, settings)
    return PolicyPool(model, policies, options, _names(folders), None)


def _refuse_repeated(folders: Sequence[Path], digests: Sequence[str]) -> None:
    """Refuse a policy that is given twice, by one path or as a copy."""
    for number, digest in enumerate(digests):
        first = digests.index(digest)
        if first < number:
            raise InputError(
                f"--policies: found the same weights in {folders[first]} (number {first + 1}) and "
                f"{folders[number]} (number {number + 1}), expected policies that differ; leave "
                "one out."
            )


def load_prompts_for(model: LanguageModel, source: str, config: PolicyPoolConfig) -> Prompts:
    """Return the prompts of a source as a model takes them, with room for the answers.

    Raises:
        InputError: a source that cannot be read, or without usable prompts.
    """
    read = load_prompts(source)
    chat = choose_template(model.tokenizer, config.prompts.template)
    prompts = as_chats(read) if chat else read
    least = config.prompts.min_tokens
    room = room_for_prompts(model, config.answer_tokens, least, "policies.max_tokens")

    def count(prompt: Prompt) -> int:
        return len(tokenize_prompt(model, prompt))

    remedy = "lower policies.max_tokens or give a model with a longer context"
    return filter_prompts(prompts, count, room, config.prompts, remedy=remedy)


def _policy_places(folders: Sequence[Path], kind: PoolKind) -> list[Path]:
    """The folders of the policies, which are a MOC policy alone or others that the kind fits."""
    places = [_policy_place(folder) for folder in folders]
    conditioned = [place for place in places if _is_conditioned(place)]
    if conditioned and len(places) > 1:
        raise InputError(
            f"--policies: found the MOC policy {conditioned[0]} among {len(places)} folders, "
            "expected it alone, since it is many policies by itself: build a portfolio of each."
        )
    if bool(conditioned) != (kind == "conditioned") and kind != "auto":
        found = "a MOC policy" if conditioned else counted(len(places), "adapter")
        raise InputError(
            f"policies.kind: found {kind} for {found}, expected "
            f"{'conditioned' if conditioned else 'soups, mixing or separate'}, or auto."
        )
    return places


def _is_conditioned(place: Path) -> bool:
    """Whether a MOC policy of all preferences is there; one of a single weighting is an adapter."""
    return (place / MOC).is_file() and load_info(place).conditioning != "none"


def _policy_place(folder: Path) -> Path:
    """The folder of an adapter, a model or a MOC policy, perhaps below that of its run."""
    folder = expand_user(folder)
    for place in (folder, folder / "model"):
        if (place / MOC).is_file() or (place / ADAPTER).is_file():
            return place
    for place in (folder, folder / "model"):
        if (place / "config.json").is_file():
            return place
    raise InputError(
        f"{folder} holds no LoRA adapter ({ADAPTER}), no model (config.json) and no MOC policy "
        f"({MOC}); give the output folder of `jaxalign sft` or `jaxalign moc train`, or one that "
        "peft or transformers wrote."
    )


def _base_of(adapter: Path) -> str:
    """The base model that the adapter of a language model names, a path in full."""
    source = adapter / ADAPTER
    settings = read_config_json(source)
    if settings.get("task_type") == "SEQ_CLS" or (adapter / "reward.json").is_file():
        raise InputError(
            f"{adapter} holds a reward model, expected an adapter that answers; name it among the "
            "rewards instead, with kind: classifier."
        )
    name = settings.get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise InputError(f"{source} names no base model; add --model.")
    path = expand_user(name)
    found = (place for place in (adapter / path, path) if place.exists())
    return next((str(place.resolve()) for place in found), name)


def _of_moc(folder: Path, base: str | None, config: BuildConfig) -> PolicyPool:
    dtype = config.policies.dtype
    model = load_language_model(base, dtype) if base else None
    policy = moc.load(policy_folder(folder), model, dtype)
    options = evaluation_points(len(policy.names)).astype(np.float64).round(7)
    policies = Conditioned(policy, options)
    return PolicyPool(policy.model, policies, options, policy.names, policy.scale)


def _rewards(config: BuildConfig, own: Sequence[RewardSpec]) -> tuple[RewardSpec, ...]:
    """The rewards of the answers, with paths in full."""
    found = config.policies.rewards or tuple(map(RewardSpec, config.rewards)) or tuple(own)
    if not found:
        raise InputError(
            "rewards: found none for the answers of the policies, expected names of registered "
            "rewards (--rewards brevity warmth), or `policies: {rewards: [...]}` in a --config, "
            "as for `jaxalign moc train`."
        )
    return tuple(
        spec if spec.model is None else replace(spec, model=stated_name(spec.model))
        for spec in found
    )


def _grid(size: int, config: PolicyPoolConfig) -> NDArray[np.float64]:
    """Weights [C, A] on the simplex in even steps."""
    return das_dennis(size, comb(config.steps + size - 1, size - 1))


def _names(folders: Sequence[Path]) -> tuple[str, ...]:
    """Short names of the folders, the whole path where two are alike."""
    short = [
        folder.resolve().parent.name if folder.name == "model" else folder.resolve().name
        for folder in folders
    ]
    return tuple(
        name if short.count(name) == 1 else str(folder)
        for name, folder in zip(short, folders, strict=True)
    )
