"""The two forms of what a decoder has of each layer: one stack of all, or one tree per layer.

A stack is scanned: one compiled block, but every pass of a loop copies each matrix out of it. Trees
per layer are read where they lie, and take longer to compile.
"""

from typing import TypeVar, cast

import jax
import jax.numpy as jnp

from jaxalign.errors import InputError
from jaxalign.models.params import Params, subtree

STACK = "layers"
Tree = TypeVar("Tree")


def layer_name(number: int) -> str:
    """Return the name of an unstacked layer's parameters: Linen's, of a list called `layers`."""
    return f"{STACK}_{number}"


def is_stacked(params: Params) -> bool:
    """Return whether parameters hold their layers as one stack."""
    return STACK in params


def check_layers(unstacked: bool, params: Params) -> None:
    """Refuse parameters whose layers have another form than their config says.

    Args:
        unstacked: of the config.
        params: of a decoder.

    Raises:
        InputError: one stack and a config of trees per layer, or the other way round.

    Example:
        >>> from jaxalign.models.layers import check_layers
        >>> try:
        ...     check_layers(False, {"layers_0": {}})
        ... except ValueError as error:
        ...     print(error)
        params: found one tree per layer, expected one stack of layers as the config says; give
        both from the same model.
    """
    forms = {STACK: "one stack of layers", layer_name(0): "one tree per layer"}
    wanted, other = (layer_name(0), STACK) if unstacked else (STACK, layer_name(0))
    if other in params:
        raise InputError(
            f"params: found {forms[other]}, expected {forms[wanted]} as the config says; give both "
            "from the same model."
        )


def layer_count(params: Params) -> int:
    """Return L of the parameters of a decoder, of either form.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.models.layers import layer_count
        >>> layer_count({"layers": {"up": jnp.zeros((3, 2))}}), layer_count({"layers_0": {}})
        (3, 1)
    """
    if is_stacked(params):
        return int(jax.tree.leaves(params[STACK])[0].shape[0])
    return sum(name.startswith(layer_name(0)[:-1]) for name in params)


def unstack_params(params: Params) -> Params:
    """Return parameters with one tree per layer in place of the stack."""
    rest = {name: value for name, value in params.items() if name != STACK}
    layers = unstack_tree(layer_count(params), subtree(params, STACK))
    return rest | {layer_name(number): layer for number, layer in enumerate(layers)}


def unstack_tree(layers: int, stack: Tree) -> tuple[Tree, ...]:
    """Return a tree of leaves [L, ...] as L trees of leaves [...]; differentiable.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.models.layers import unstack_tree
        >>> [tree["up"].tolist() for tree in unstack_tree(2, {"up": jnp.arange(4).reshape(2, 2)})]
        [[0, 1], [2, 3]]
    """
    leaves = jax.tree.leaves(stack)
    structure = jax.tree.structure(stack)
    # The gradient of a split is one concatenation, that of L slices a sum of L padded arrays.
    parts = [jax.lax.split(leaf, (1,) * layers) for leaf in leaves]
    return tuple(
        cast(Tree, jax.tree.unflatten(structure, [jnp.squeeze(p[number], 0) for p in parts]))
        for number in range(layers)
    )


def each_layer(layers: int, tree: Tree | tuple[Tree, ...]) -> tuple[Tree, ...]:
    """Return one tree per layer, of a stack or of what is one tree per layer already."""
    return tree if isinstance(tree, tuple) else unstack_tree(layers, tree)
