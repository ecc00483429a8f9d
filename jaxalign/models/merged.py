"""A base model and LoRA adapters of it, written as one whole model, a tensor at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from safetensors import safe_open

from jaxalign.errors import InputError
from jaxalign.files import check_new_folder, expand_user, write_folder_aside
from jaxalign.models.adapted import open_weights
from jaxalign.models.language import describe, layout, write_description
from jaxalign.models.resolve import ResolvedModel, resolve
from jaxalign.models.weights.adapter import adapter_settings
from jaxalign.models.weights.load import match_names
from jaxalign.models.weights.safetensors import Tensors
from jaxalign.models.weights.save import header_of, save_shards
from jaxalign.progress import track
from jaxalign.recognise import instead

_STORED = {"F32": "float32", "F64": "float32", "F16": "float16", "BF16": "bfloat16"}
_DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class MergeReport:
    """What `save_merged` wrote.

    Attributes:
        parameters: number of numbers in all tensors.
        dtype: of the file.
    """

    parameters: int
    dtype: str


def save_merged(
    out: str | Path,
    adapters: Sequence[str | Path],
    weights: Sequence[float] | None = None,
    model: str | None = None,
    dtype: str | None = None,
    max_shard_bytes: float = 5e9,
    show: bool = True,
) -> MergeReport:
    """Write the model with sum_i w_i of its adapters' updates as a folder of transformers.

    Tensors are read, summed in float32 and written one by one: memory holds a tensor of the model
    at a time.

    Args:
        out: folder to write, new or empty.
        adapters: A folders of LoRA adapters; none where `model` names an adapter itself.
        weights: [A] finite; None for 1, where there is one adapter.
        model: name of the base model; None for the one that the adapters name.
        dtype: of the file: float32, bfloat16 or float16; None for that of the base model's
            embeddings, float32 for GGUF.
        max_shard_bytes: of one weight file.
        show: progress on standard error.

    Raises:
        InputError: an adapter or the base cannot be used, adapters stand on different models,
            weights of another number, or `out` holds something.
    """
    out, folders = expand_user(out), [expand_user(folder) for folder in adapters]
    check_new_folder(out)
    shares = _checked(weights, len(folders))
    found = _base(folders) if model is None else resolve(model)
    for folder in folders:
        adapter_settings(folder)
        if any(folder.samefile(own) for own in found.adapters):
            raise InputError(f"{folder} is in the model already: give it once.")
    if not folders and not found.adapters:
        raise InputError(
            f"{model}{instead(str(model))}; expected a LoRA adapter: give its folder with "
            "--adapter."
        )
    whole = replace(found, adapters=(*found.adapters, *folders))
    described = describe(whole, model or str(found.folder))
    table = layout(described.config)
    with open_weights(whole, table, "float32", shares) as tensors:
        names = match_names(tensors, table)
        written = dtype or _stored(found, table.leaves[0].name.split(".", 1)[1])
        if written not in _DTYPES:
            raise InputError(f"dtype is {written!r}; expected one of {', '.join(_DTYPES)}.")
        shapes = {name: shape for name, shape in table.tensors() if name in names}
        headers = [header_of(name, shape, written) for name, shape in shapes.items()]
        merged = _Merged(tensors, names, written)
        with write_folder_aside(out) as aside:
            save_shards(aside, headers, lambda part: merged.read(part, show), max_shard_bytes)
            write_description(aside, described, written)
    count = sum(int(np.prod(shape, dtype=np.int64)) for shape in shapes.values())
    return MergeReport(count, written)


@dataclass(frozen=True)
class _Merged:
    """Reads tensors in the order in which they are written."""

    tensors: Tensors
    names: dict[str, str]
    dtype: str

    def read(self, part: Sequence[str], show: bool) -> Iterator[np.ndarray]:
        for name in track("merging", part, len(part), lambda _: 1, show):
            value = self.tensors.read(self.names[name]).astype(jnp.dtype(self.dtype))
            if not np.isfinite(value).all():
                raise InputError(
                    f"{self.tensors.source}: tensor {name!r} in {self.dtype} is not finite: write "
                    "it with --dtype float32, and if it is already, an adapter or its base is "
                    "broken."
                )
            yield value


def _checked(weights: Sequence[float] | None, count: int) -> tuple[float, ...]:
    if weights is None and count > 1:
        raise InputError(
            f"found {count} adapters and no weights; expected a weight for each, such as --weights "
            f"{' '.join([format(1 / count, '.3g')] * count)}."
        )
    found = (1.0,) * count if weights is None else tuple(weights)
    if len(found) != count or not np.isfinite(found).all():
        raise InputError(
            f"weights are {list(found)} for {count} adapters; expected a finite number for each."
        )
    return found


def _base(folders: Sequence[Path]) -> ResolvedModel:
    """The model that all adapters stand on, as their configs name it."""
    if not folders:
        raise InputError("found no adapter to merge; expected folders of some: give --adapter.")
    bases = []
    for folder in folders:
        adapter_settings(folder)
        own = resolve(str(folder))
        bases.append(replace(own, adapters=own.adapters[:-1]))
    for folder, base in zip(folders, bases, strict=True):
        if (base.weights, base.adapters) != (bases[0].weights, bases[0].adapters):
            raise InputError(
                f"{folder} is an adapter of {base.folder}, and {folders[0]} of "
                f"{bases[0].folder}; expected adapters of one model: give it with --model if they "
                "are the same."
            )
    return bases[0]


def _stored(model: ResolvedModel, ending: str) -> str:
    """The dtype of the base model's tensor of this ending; float32 for GGUF."""
    if model.weights[0].suffix == ".gguf":
        return "float32"
    for path in model.weights:
        with safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118  (a handle is no mapping)
                if name.endswith(ending):
                    return _STORED.get(file.get_slice(name).get_dtype(), "bfloat16")
    return "float32"
