"""Which tensor of a file is which parameter: one table a family, read and written alike."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

import jax

from jaxalign.errors import InputError
from jaxalign.models.layers import is_stacked, layer_name
from jaxalign.models.params import Params

Leaves: TypeAlias = Mapping[tuple[str, ...], jax.Array]
"""Parameters by their paths."""


@dataclass(frozen=True)
class Leaf:
    """One parameter and its tensor, or one for each layer.

    Attributes:
        path: of the parameter in the nested dict; a layered one is stacked, [L, ...].
        name: of the tensor; `{layer}` stands for the layer's number.
        shape: of the tensor in the file.
        transpose: whether the file holds the matrix the other way round.
    """

    path: tuple[str, ...]
    name: str
    shape: tuple[int, ...]
    transpose: bool = False

    @property
    def layered(self) -> bool:
        """Whether there is a tensor for each layer."""
        return "{layer}" in self.name

    @property
    def out_first(self) -> bool:
        """Whether the file holds the matrix as [out, in]; a `weight` is so, a `kernel` not."""
        return (self.path[-1] == "weight") != self.transpose


@dataclass(frozen=True)
class Layout:
    """All parameters of a model.

    Patterns are tried at the beginning of a name, with and without the prefixes.

    Attributes:
        leaves: the table.
        layers: L.
        prefixes: name beginnings that some files leave out or add, such as `model.`; tried in turn.
        ignored: pattern of tensors of a file that are no parameters here, such as old buffers.
        optional: pattern of tensors that may be missing, such as a head that is tied.
        renamed: pairs of a pattern and what replaces it in a name of the file, for early spellings.
        copies: pairs of a tensor that some files hold and the one it must then equal.
    """

    leaves: tuple[Leaf, ...]
    layers: int
    prefixes: tuple[str, ...] = ()
    ignored: str = r"(?!)"
    optional: str = r"(?!)"
    renamed: tuple[tuple[str, str], ...] = ()
    copies: tuple[tuple[str, str], ...] = ()

    def unstacked(self) -> "Layout":
        """The same tensors, of parameters with one tree per layer in place of a stack."""
        leaves = [
            replace(leaf, path=(layer_name(number), *leaf.path[1:]), name=name)
            if leaf.layered
            else leaf
            for leaf in self.leaves
            for number, name in enumerate(self.names(leaf))
        ]
        return replace(self, leaves=tuple(leaves))

    def names(self, leaf: Leaf) -> list[str]:
        """The tensors of a leaf: one, or L of them in order."""
        if not leaf.layered:
            return [leaf.name]
        return [leaf.name.format(layer=layer) for layer in range(self.layers)]

    def shape(self, leaf: Leaf) -> tuple[int, ...]:
        """The shape of the parameter itself, layers stacked."""
        inner = leaf.shape[::-1] if leaf.transpose else leaf.shape
        return (self.layers, *inner) if leaf.layered else inner

    def optional_paths(self) -> set[tuple[str, ...]]:
        """Parameters that may be missing."""
        return {leaf.path for leaf in self.leaves if re.match(self.optional, self.names(leaf)[0])}

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Name and shape in the file of every tensor."""
        for leaf in self.leaves:
            for name in self.names(leaf):
                yield name, leaf.shape


def check_params(params: Params, layout: Layout) -> Leaves:
    """Return parameters by their paths, if they are those of a layout.

    Args:
        params: nested dict of arrays, layers stacked or not.
        layout: what they must be, of stacked layers.

    Returns:
        Every array by its path.

    Raises:
        InputError: a parameter that is missing, unknown or of another shape.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.models.weights.layout import Layout, Leaf, check_params
        >>> layout = Layout((Leaf(("embed", "table"), "wte", (5, 2)),), layers=1)
        >>> try:
        ...     check_params({"embed": {"table": jnp.zeros((4, 2))}}, layout)
        ... except ValueError as error:
        ...     print(error)
        parameter embed.table has shape [4, 2], expected [5, 2] as the config says; give both from
        the same model.
    """
    layout = layout if is_stacked(params) else layout.unstacked()
    leaves = jax.tree_util.tree_leaves_with_path(params)
    values = {tuple(str(part.key) for part in path): value for path, value in leaves}
    expected = {leaf.path: layout.shape(leaf) for leaf in layout.leaves}
    missing = expected.keys() - values.keys() - layout.optional_paths()
    for what, wrong in (("missing", missing), ("not part of it", values.keys() - expected.keys())):
        if wrong:
            raise InputError(
                f"parameter {'.'.join(min(wrong))} is {what}, expected the parameters that the "
                "config describes; give both from the same model."
            )
    for path, value in values.items():
        if tuple(value.shape) != expected[path]:
            raise InputError(
                f"parameter {'.'.join(path)} has shape {list(value.shape)}, expected "
                f"{list(expected[path])} as the config says; give both from the same model."
            )
    return values
