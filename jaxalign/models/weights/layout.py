"""Which tensor of a file is which parameter: one table a family, read and written alike."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Leaf:
    """One parameter and its tensor, or one for each layer.

    Attributes:
        path: of the parameter in the nested dict; a layered one is stacked, [L, ...].
        name: of the tensor; `{layer}` stands for the layer's number.
        shape: of the tensor in the file.
        transpose: whether the file holds the matrix as [out, in].
    """

    path: tuple[str, ...]
    name: str
    shape: tuple[int, ...]
    transpose: bool = False

    @property
    def layered(self) -> bool:
        """Whether there is a tensor for each layer."""
        return "{layer}" in self.name


@dataclass(frozen=True)
class Layout:
    """All parameters of a model.

    Attributes:
        leaves: the table.
        layers: L.
        prefixes: name beginnings that some files leave out or add, such as `model.`; tried in turn.
        ignored: pattern of tensors of a file that are no parameters here, such as old buffers.
        optional: pattern of tensors that may be missing, such as a head that is tied.
    """

    leaves: tuple[Leaf, ...]
    layers: int
    prefixes: tuple[str, ...] = ()
    ignored: str = r"(?!)"
    optional: str = r"(?!)"
