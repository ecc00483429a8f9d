"""Reward models that were trained here: scores of answers, and folders in and out."""

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.errors import InputError
from jaxalign.files import expand_user, read_json, write_folder_aside, write_json
from jaxalign.models import lora
from jaxalign.models.classifier import Classifier, classify, load_classifier
from jaxalign.models.decoder_config import DecoderConfig
from jaxalign.models.global_arrays import place_whole
from jaxalign.models.language import LanguageModel, load_language_model
from jaxalign.models.lora import LoraConfig
from jaxalign.models.params import PyTree, leaf
from jaxalign.models.peft import load_adapter, save_adapter
from jaxalign.models.resolve import stated_name
from jaxalign.models.weights.classifier import layout
from jaxalign.models.weights.load import Shardings
from jaxalign.models.weights.safetensors import open_tensors
from jaxalign.models.weights.save import INDEX, WEIGHTS, save_params

FORMAT = 1
_ABOUT, _HEAD = "reward.json", "head.safetensors"


@dataclass(frozen=True, eq=False)
class Adapted:
    """What a LoRA reward model adds to its base.

    Attributes:
        adapter: not scaled.
        config: of the adapter.
        head: [D, R] float32.
    """

    adapter: PyTree = field(repr=False)
    config: LoraConfig
    head: jax.Array = field(repr=False)


def score(model: Classifier, prompts: Sequence[str] | None, answers: Sequence[str]) -> np.ndarray:
    """Rewards of answers.

    Args:
        model: from `load_reward_model`, or any sequence classifier.
        prompts: N, what each answers; None for answers by themselves.
        answers: N.

    Returns:
        [N, R] float32, a column for each of `model.labels`.

    Raises:
        InputError: prompts and answers differ in number, or what `classify` refuses.
    """
    if prompts is None:
        return classify(model, list(answers))
    if len(prompts) != len(answers):
        raise InputError(
            f"found {len(prompts)} prompts for {len(answers)} answers; expected one each."
        )
    return classify(model, list(zip(prompts, answers, strict=True)))


def reward_model(
    base: LanguageModel, labels: Sequence[str], head: jax.Array, trunk: PyTree
) -> Classifier:
    """A language model's trunk with a head in place of its unembedding.

    Args:
        base: whose config and tokenizer it takes.
        labels: names of the R rewards.
        head: [D, R].
        trunk: parameters; an unembedding among them is left out.
    """
    tokenizer = copy.deepcopy(base.tokenizer)
    if tokenizer.pad_token is None:
        # transformers finds a row's last token by what is not padding.
        tokenizer.pad_token = tokenizer.eos_token
    params = {name: value for name, value in trunk.items() if name != "unembed"}
    return Classifier(
        config=replace(base.config, tied=True),
        params=params | {"head": {"kernel": head}},
        tokenizer=tokenizer,
        labels=tuple(labels),
        problem_type=None,
        max_length=min(base.config.positions, int(tokenizer.model_max_length)),
        pad_id=tokenizer.pad_token_id,
        name=base.name,
        sha256=base.sha256,
    )


def adapted_model(base: LanguageModel, labels: Sequence[str], adapted: Adapted) -> Classifier:
    """The reward model of a base and what was added to it; the adapter is merged."""
    trunk = lora.merge(base.params, lora.scaled(adapted.adapter, adapted.config))
    digest = hashlib.sha256(base.sha256.encode())
    for part in jax.tree.leaves([adapted.adapter, adapted.head]):
        digest.update(np.ascontiguousarray(part).tobytes())
    made = reward_model(base, labels, adapted.head, trunk)
    return replace(made, sha256=digest.hexdigest())


def save_whole(folder: str | Path, model: Classifier, hf_config: Mapping[str, object]) -> None:
    """Write a folder that transformers loads as a sequence classifier.

    Args:
        folder: new, or one whose model is replaced once the new one is whole.
        model: what to write.
        hf_config: config.json of the model that it was made from.
    """
    config = model.config
    family = config.family.capitalize() if isinstance(config, DecoderConfig) else "GPT2"
    names = dict(enumerate(model.labels))
    settings = {key: value for key, value in hf_config.items() if key != "torch_dtype"}
    settings |= {
        "architectures": [f"{family}ForSequenceClassification"],
        "id2label": {str(number): name for number, name in names.items()},
        "label2id": {name: number for number, name in names.items()},
        "pad_token_id": model.pad_id,
        "dtype": jnp.dtype(leaf(model.params, "embed", "table").dtype).name,
    }
    with write_folder_aside(folder, WEIGHTS, INDEX) as aside:
        save_params(aside, model.params, layout(config, len(model.labels)))
        model.tokenizer.save_pretrained(aside)
        write_json(aside / "config.json", settings)


def save_adapted(
    folder: str | Path, base: LanguageModel, labels: Sequence[str], adapted: Adapted
) -> None:
    """Write a PEFT folder with the head (`score.weight`, [R, D]) and its labels beside it.

    Args:
        folder: new, or one whose model is replaced once the new one is whole.
        base: the language model that it stands on, which `load_reward_model` loads by its name.
        labels: names of the R rewards.
        adapted: what was trained.
    """
    from safetensors.numpy import save_file

    name = stated_name(base.name)
    with write_folder_aside(folder) as aside:
        save_adapter(aside, adapted.adapter, adapted.config, name, base.config)
        weight = np.ascontiguousarray(np.asarray(adapted.head, np.float32).T)
        save_file({"score.weight": weight}, aside / _HEAD)
        about = {"format": FORMAT, "base": name, "base_sha256": base.sha256}
        write_json(aside / _ABOUT, about | {"labels": list(labels)})


def load_reward_model(
    name: str | Path, dtype: str = "float32", shardings: Shardings | None = None
) -> Classifier:
    """A reward model: a folder of `save_adapted`, or any sequence classifier.

    Args:
        name: the folder, or a name as `resolve` takes it.
        dtype: of parameters and compute.
        shardings: from the tree of shapes to a tree of shardings alike; None for one device.

    Raises:
        InputError: where it cannot be found or is broken, or its base is another one now.
    """
    folder = expand_user(name)
    if not (folder / _ABOUT).is_file():
        return load_classifier(str(name), dtype, shardings)
    remedy = "train it again with `jaxalign reward train`"
    about = read_json(folder / _ABOUT, "a reward model", remedy)
    if about.get("format") != FORMAT:
        raise InputError(
            f"{folder / _ABOUT}: format {about.get('format')!r}; this version reads {FORMAT}: "
            "train it again, or use the version that wrote it."
        )
    base_name, sha256, labels = (about.get(field) for field in ("base", "base_sha256", "labels"))
    if (
        not isinstance(base_name, str)
        or not isinstance(sha256, str)
        or not isinstance(labels, list)
    ):
        raise InputError(f"{folder / _ABOUT}: lacks `base`, `base_sha256` or `labels`: {remedy}.")
    base = load_language_model(base_name, dtype, shardings, sha256=sha256, unstack_layers=False)
    config, adapter = load_adapter(folder, base.config)
    with open_tensors([folder / _HEAD]) as tensors:
        shape = (len(labels), base.config.width)
        if tensors.shapes.get("score.weight") != shape:
            raise InputError(
                f"{folder / _HEAD}: expected score.weight of shape {list(shape)}, found "
                f"{ {key: list(value) for key, value in tensors.shapes.items()} }: is the head "
                "another model's?"
            )
        head = jnp.asarray(tensors.read("score.weight").T)
    adapter, head = place_whole((adapter, head), base.params)
    return adapted_model(base, labels, Adapted(adapter, config, head))
