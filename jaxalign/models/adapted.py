"""The weights and the config of a model, with the LoRA adapters merged that its name stands for."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from jaxalign.models.hf_config import JsonObject, read_config_json
from jaxalign.models.resolve import ResolvedModel
from jaxalign.models.weights.adapter import CONFIG, TABLES, add_adapter, saved_rows
from jaxalign.models.weights.gguf import open_gguf
from jaxalign.models.weights.layout import Layout
from jaxalign.models.weights.quantised import refuse_quantised
from jaxalign.models.weights.safetensors import Tensors, open_tensors
from jaxalign.progress import stderr_console


@contextmanager
def open_weights(
    model: ResolvedModel, layout: Layout, dtype: str, weights: Sequence[float] = ()
) -> Iterator[Tensors]:
    """The tensors of a model, opened: of safetensors or GGUF, adapters merged as they are read.

    A line on standard error names each adapter.

    Args:
        model: from `resolve`.
        layout: of the model, with the config of `adapted_settings`.
        dtype: that the parameters are read in; sums are formed in at least float32.
        weights: of the last adapters, whose updates are multiplied by them; 1 for the others.

    Raises:
        InputError: a file is broken, or an adapter does not fit the model.
    """
    gguf = model.weights[0].suffix == ".gguf"
    with ExitStack() as stack:
        opened = open_gguf(model.weights[0]) if gguf else open_tensors(model.weights)
        tensors = stack.enter_context(opened)
        base = model.weights[0] if gguf else model.folder
        before = [1.0] * (len(model.adapters) - len(weights))
        for folder, weight in zip(model.adapters, (*before, *weights), strict=True):
            tensors = stack.enter_context(add_adapter(tensors, folder, layout, dtype, weight))
            times = "" if weight == 1 else f" with weight {weight:g}"
            text = f"The LoRA adapter {folder} is merged{times} into its base model {base}."
            stderr_console().print(text, markup=False, soft_wrap=True)
        yield tensors


def read_settings(model: ResolvedModel) -> JsonObject:
    """The config.json of a model with safetensors; empty for GGUF, which has its own.

    Raises:
        InputError: the file is missing or broken, or the weights are quantised.
    """
    if model.weights[0].suffix == ".gguf":
        return {}
    source = model.folder / "config.json"
    settings = read_config_json(source)
    refuse_quantised(settings, str(source))
    return settings


def adapted_settings(settings: JsonObject, model: ResolvedModel) -> JsonObject:
    """The config.json of a model as its adapters change it.

    Adapters with embeddings of their own may have tokens added to the vocabulary. A head of its
    own is no longer tied to the embeddings.
    """
    for folder in model.adapters:
        found = read_config_json(folder / CONFIG)
        saved = found.get("modules_to_save")
        whole = (
            {str(name).rpartition(".")[2] for name in saved} if isinstance(saved, list) else set()
        )
        if settings.get("tie_word_embeddings") and not whole.isdisjoint(TABLES):
            tied = bool(found.get("ensure_weight_tying"))
            settings = {**settings, "tie_word_embeddings": tied}
        rows = saved_rows(folder, TABLES)
        if rows is not None:
            settings = {**settings, "vocab_size": rows}
    return settings


def classifier_settings(settings: JsonObject, model: ResolvedModel) -> JsonObject:
    """The config.json of a sequence classifier, where an adapter of peft makes a model one.

    Labels keep their names where the base has names for as many.
    """
    for folder in model.adapters:
        rows = saved_rows(folder, ("score", "classifier"))
        if rows is None or read_config_json(folder / CONFIG).get("task_type") != "SEQ_CLS":
            continue
        names = settings.get("id2label")
        named = isinstance(names, Mapping) and len(names) == rows
        settings = {
            **settings,
            "architectures": ["ForSequenceClassification"],
            "id2label": names if named else {str(row): f"LABEL_{row}" for row in range(rows)},
        }
    return settings
