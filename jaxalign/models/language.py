"""A language model with its tokenizer, from any file that holds one, and back into a folder."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import jax.numpy as jnp

from jaxalign.errors import InputError
from jaxalign.files import write_folder_aside
from jaxalign.models import families
from jaxalign.models.adapted import adapted_settings, open_weights, read_settings
from jaxalign.models.decoder_config import DecoderConfig
from jaxalign.models.device_defaults import device_defaults, note_slow_dtype
from jaxalign.models.gguf_config import gguf_config
from jaxalign.models.gguf_tokenizer import gguf_tokenizer, reads_tokenizer
from jaxalign.models.hf_config import JsonObject, first_architecture, read_config_json
from jaxalign.models.layers import check_layers
from jaxalign.models.params import Params, leaf
from jaxalign.models.resolve import ResolvedModel, resolve
from jaxalign.models.tokenizer import Tokenizer
from jaxalign.models.weights import decoder, gpt2
from jaxalign.models.weights.adapter import CONFIG
from jaxalign.models.weights.layout import Layout, check_params
from jaxalign.models.weights.load import Shardings, abstract_params, load_params
from jaxalign.models.weights.save import INDEX, WEIGHTS, save_params

_DTYPES = ("float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A loaded language model; made by `load_language_model`.

    Attributes:
        config: sizes and switches; its dtype is that of the compute.
        params: nested dict of arrays; layers stacked, or unstacked as the config says.
        tokenizer: of transformers, with the chat template where the model has one.
        hf_config: its config.json, as it was found.
        name: as given to the loader.
        sha256: of the weights.
        generation: its generation_config.json; empty where it has none.
    """

    config: families.Config
    params: Params = field(repr=False)
    tokenizer: Tokenizer = field(repr=False)
    hf_config: JsonObject = field(repr=False)
    name: str
    sha256: str
    generation: JsonObject = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        """Refuse parameters that are not those of the config."""
        if self.params:  # `describe` reads none
            check_decoder(self.config, self.params)


def load_language_model(
    name: str,
    dtype: str = "float32",
    shardings: Shardings | None = None,
    sha256: str | None = None,
    unstack_layers: bool | None = None,
    resolved: ResolvedModel | None = None,
) -> LanguageModel:
    """A decoder of any family, from safetensors or GGUF.

    Args:
        name: a folder, a file or a name, as `resolve` takes it; the folder of a LoRA adapter is
            its base model with the adapter merged into it.
        dtype: of parameters and compute.
        shardings: from the tree of shapes to a tree of shardings alike; None for one device.
        sha256: what the weights must hash to.
        unstack_layers: read one tree of parameters per layer, `layers_0` and so on, in place of the
            stack `layers`: generation is faster, and the first call of a program takes longer to
            compile. Everything in this package takes both. None follows
            `jaxalign.models.device_defaults`.
        resolved: what `resolve` returned for this name before, so that the weights are not hashed
            again.

    Raises:
        InputError: where the model cannot be found, is of no family here, or is broken.
    """
    model = resolved or resolve(name, sha256)
    described = describe(model, name, dtype)
    note_slow_dtype(dtype)
    stacked = own = layout(described.config)
    if device_defaults().unstack_to_decode if unstack_layers is None else unstack_layers:
        described = replace(described, config=replace(described.config, unstacked=True))
        own = stacked.unstacked()
    places = None if shardings is None else shardings(abstract_params(own, dtype))
    with open_weights(model, stacked, dtype) as tensors:
        return replace(described, params=load_params(tensors, own, dtype, places))


def describe(model: ResolvedModel, name: str, dtype: str = "float32") -> LanguageModel:
    """A language model without its parameters.

    Args:
        model: from `resolve`.
        name: as it was given.
        dtype: of the compute.

    Raises:
        InputError: as `load_language_model`.
    """
    if dtype not in _DTYPES:
        raise InputError(f"dtype is {dtype!r}; expected one of {', '.join(_DTYPES)}.")
    gguf = model.weights[0].suffix == ".gguf"
    source = model.weights[0] if gguf else model.folder / "config.json"
    settings = gguf_config(source) if gguf else read_settings(model)
    _refuse_other_kinds(model, settings)
    completed = adapted_settings(_completed(settings, str(source)), model)
    config = families.config_from_hf(completed, dtype, str(source))
    # A file beside a GGUF model is read where the model's own tokenizer cannot be.
    own = (
        gguf
        and model.tokenizer_folder == model.folder
        and (reads_tokenizer(source) or not (model.folder / "tokenizer.json").is_file())
    )
    tokenizer = gguf_tokenizer(source) if own else load_tokenizer(model.tokenizer_folder)
    if len(tokenizer) > config.vocab_size:
        place, remedy = model.tokenizer_folder, "check that the two belong together"
        if place in model.adapters:
            remedy = f"save the embeddings with the adapter, or move the tokenizer out of {place}"
        raise InputError(
            f"{source}: the tokenizer has {len(tokenizer)} entries, the model "
            f"{config.vocab_size}: {remedy}."
        )
    source = model.folder / "generation_config.json"
    generation = {} if gguf else read_config_json(source, required=False)
    if model.adapters:
        changed = ("vocab_size", "tie_word_embeddings")
        settings = {**settings, **{key: completed[key] for key in changed if key in completed}}
    return LanguageModel(config, {}, tokenizer, settings, name, model.sha256, generation)


def _refuse_other_kinds(model: ResolvedModel, settings: JsonObject) -> None:
    """Refuse an adapter or a whole model that is no language model."""
    architecture = first_architecture(settings)
    scored = [model.folder] if architecture.endswith("ForSequenceClassification") else []
    for folder in model.adapters:
        if (folder / "policy.safetensors").is_file():
            raise InputError(
                f"{folder} holds a MOC policy, found where a language model is expected: give the "
                "policy's base model, or let the policy answer with `jaxalign generate`."
            )
        task = read_config_json(folder / CONFIG).get("task_type")
        if task == "SEQ_CLS" or (folder / "reward.json").is_file():
            scored.append(folder)
    if scored:
        raise InputError(
            f"{scored[-1]} holds a classifier or a reward model; expected a language model: give "
            "the model that it was trained on, or score answers with `jaxalign reward score`."
        )


def save_language_model(
    folder: str | Path, model: LanguageModel, max_shard_bytes: float = 5e9, dtype: str | None = None
) -> None:
    """Write weights, config.json and tokenizer so that transformers loads the folder.

    Args:
        folder: new, or one whose model is replaced once the new one is whole.
        model: what to write.
        max_shard_bytes: of one weight file.
        dtype: of the files; None for that of the parameters.

    Raises:
        InputError: for parameters that do not fit the config.
    """
    written = dtype or jnp.dtype(leaf(model.params, "embed", "table").dtype).name
    with write_folder_aside(folder, WEIGHTS, INDEX) as aside:
        save_params(aside, model.params, layout(model.config), max_shard_bytes, dtype)
        write_description(aside, model, written)


def write_description(folder: Path, model: LanguageModel, dtype: str) -> None:
    """Write all files of a model besides its weights.

    Args:
        folder: of the model.
        model: whose parameters are not looked at.
        dtype: of the weights beside them.
    """
    settings = {key: value for key, value in model.hf_config.items() if key != "torch_dtype"}
    architecture = "GPT2LMHeadModel"
    if isinstance(model.config, DecoderConfig):
        architecture = f"{model.config.family.capitalize()}ForCausalLM"
    settings |= {"architectures": [architecture], "dtype": dtype}
    model.tokenizer.save_pretrained(folder)
    _write_json(folder / "config.json", settings)
    if model.generation:
        _write_json(folder / "generation_config.json", model.generation)


def layout(config: families.Config) -> Layout:
    """The table of tensors of a language model's family."""
    if isinstance(config, DecoderConfig):
        return decoder.layout(config)
    return gpt2.layout(config)


def check_decoder(config: families.Config, params: Params) -> None:
    """Refuse parameters that are not those of a language model's config.

    Args:
        config: sizes and switches.
        params: nested dict of arrays.

    Raises:
        InputError: layers of another form, or a parameter that is missing, unknown or of another
            shape.
    """
    check_layers(config.unstacked, params)
    check_params(params, layout(config))


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a model's folder, through transformers and without the network.

    Raises:
        InputError: where there is none, or transformers cannot read it.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
        return cast(Tokenizer, tokenizer)
    except Exception as error:  # whatever the library trips over, the way on is the same
        remedy = "download them again"
        if (folder / "tokenizer.model").is_file() and not (folder / "tokenizer.json").is_file():
            remedy = "put tokenizer.json there, or install the package sentencepiece for its "
            remedy += "tokenizer.model"
        raise InputError(
            f"{folder}: its tokenizer cannot be read ({_line(error)}); expected tokenizer.json or "
            f"the vocabulary files of its family: {remedy}."
        ) from error


def _completed(settings: JsonObject, source: str) -> JsonObject:
    """The config with transformers' defaults for what it leaves out."""
    from transformers import AutoConfig

    kind = settings.get("model_type")
    if kind not in (*families.FAMILIES, "gpt2"):
        return settings  # refused by name afterwards
    rest = {key: value for key, value in settings.items() if key != "model_type"}
    try:
        return cast(JsonObject, AutoConfig.for_model(kind, **rest).to_dict())
    except Exception as error:  # its checks raise errors of several kinds
        raise InputError(
            f"{source}: transformers cannot read it ({_line(error)}): download it again."
        ) from error


def _write_json(path: Path, content: JsonObject) -> None:
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", "utf-8")


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
