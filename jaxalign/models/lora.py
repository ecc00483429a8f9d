"""LoRA: low-rank updates of named matrices, as a tree of their own; one adapter or many at once."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

import jax
import jax.numpy as jnp

from jaxalign.config_fields import checks_fields
from jaxalign.errors import InputError
from jaxalign.models.layers import STACK, is_stacked, layer_count, layer_name, unstack_tree
from jaxalign.models.params import Params, leaf, put, subtree

# Above this many columns, all adapters at once cost more arithmetic than the matrix they adapt.
_MOST_COLUMNS = 512


@dataclass(frozen=True)
@checks_fields
class LoraConfig:
    """Size and place of an adapter.

    Attributes:
        rank: r, columns of the two factors, at least 1; 8 to 64 is usual, and cost grows with it.
        alpha: the update is scaled by alpha / rank; usually one or two times the rank.
        dropout: share of the update's inputs that is set to zero in training, from 0 to below 1.
        targets: names of the matrices to adapt, as in the parameters: query, key, value, out, gate,
            up, down (GPT-2: qkv, out, up, down).
        rank_stabilised: scale by alpha / sqrt(rank) instead, so that the learning rate fits all
            ranks.

    Example:
        >>> from jaxalign.models import LoraConfig
        >>> LoraConfig(rank=8, alpha=16.0, targets=("query", "value")).scale
        2.0
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("query", "key", "value", "out", "gate", "up", "down")
    rank_stabilised: bool = False

    def __post_init__(self) -> None:
        if self.rank < 1 or not 0 <= self.dropout < 1 or not self.targets:
            raise InputError(
                f"LoRA with rank {self.rank}, dropout {self.dropout} and {len(self.targets)} "
                "targets; expected a rank of at least 1, a dropout in [0, 1) and some target."
            )
        if not self.alpha or not math.isfinite(self.alpha):
            raise InputError(
                f"LoRA with alpha {self.alpha}; expected a finite number other than 0, with which "
                "an adapter would change nothing: correct it."
            )

    @property
    def scale(self) -> float:
        """What the product of the two factors is multiplied by."""
        return self.alpha / (self.rank**0.5 if self.rank_stabilised else self.rank)


def init(key: jax.Array, config: LoraConfig, params: Params) -> Params:
    """A fresh adapter: a model with it equals the model without it, until it is trained.

    Args:
        key: random key.
        config: rank and targets.
        params: of the model; a target is a dict with a `weight` [L, out, in] under `layers`, or
            of unstacked layers [out, in] under each of them.

    Returns:
        The tree of the layers cut down to the targets, each {"a": [L, in, r] uniform as
        torch's Linear starts, "b": [L, r, out] zero}, float32 (float64 for such parameters).

    Raises:
        InputError: the model has no matrix of a target's name.

    Source: Hu et al. 2021, https://arxiv.org/abs/2106.09685.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxalign.models import LoraConfig, lora
        >>> params = {"layers": {"mlp": {"up": {"weight": jnp.ones((2, 16, 8))}}}}
        >>> adapter = lora.init(jax.random.key(0), LoraConfig(rank=4, targets=("up",)), params)
        >>> jax.tree.map(jnp.shape, adapter)
        {'mlp': {'up': {'a': (2, 8, 4), 'b': (2, 4, 16)}}}
    """
    check_targets(config, params)
    layers = layer_count(params)
    weights = _layer_weights(params)
    tree: dict[str, Params | jax.Array] = {}
    for number, (path, weight) in enumerate(sorted(weights.items())):
        if path[-1] not in config.targets:
            continue
        out, into = weight.shape[-2:]
        wide = jnp.promote_types(weight.dtype, jnp.float32)
        bound = into**-0.5  # Kaiming uniform with a = sqrt(5)
        own = jax.random.fold_in(key, number)
        a = jax.random.uniform(own, (layers, into, config.rank), wide, -bound, bound)
        put(tree, path, {"a": a, "b": jnp.zeros((layers, config.rank, out), wide)})
    return tree


def check_targets(config: LoraConfig, params: Params) -> None:
    """Refuse targets that a model does not have.

    Args:
        config: of the adapter.
        params: of the model, as in `init`.

    Raises:
        InputError: the model has no matrix of a target's name.
    """
    known = {path[-1] for path in _layer_weights(params)}
    if missing := set(config.targets) - known:
        raise InputError(
            f"the model has no matrix {min(missing)!r} to adapt; choose among "
            f"{', '.join(sorted(known))}."
        )


def scaled(adapter: Params, config: LoraConfig) -> Params:
    """Return the adapter as a model takes it, with `b` times the scale; differentiable."""

    def at(pair: Mapping[str, jax.Array]) -> Params:
        return {"a": pair["a"], "b": pair["b"] * jnp.asarray(config.scale, pair["b"].dtype)}

    result: Params = jax.tree.map(at, dict(adapter), is_leaf=is_pair)
    return result


def stack(adapters: Sequence[Params]) -> Params:
    """Stack many scaled adapters into one tree: leaves [L, A, in, r] and [L, A, r, out].

    Ranks may differ: smaller ones are padded with zeros, which changes nothing. Matrices may
    differ too: those that an adapter leaves alone have factors of zeros.

    Args:
        adapters: A scaled adapters of one model.

    Raises:
        InputError: there is none.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxalign.models import lora
        >>> def adapter(name, rank):
        ...     return {name: {"a": jnp.ones((2, 8, rank)), "b": jnp.ones((2, rank, 16))}}
        >>> stack = lora.stack([adapter("up", 4), adapter("up", 3), adapter("gate", 1)])
        >>> stack["up"]["a"].shape, stack["gate"]["b"].shape
        ((2, 3, 8, 4), (2, 3, 1, 16))
    """
    if not adapters:
        raise InputError("found no adapter to stack; expected at least one.")
    found = [adapted_pairs(adapter) for adapter in adapters]
    tree: dict[str, Params | jax.Array] = {}
    for path in dict.fromkeys(path for pairs in found for path in pairs):
        like = next(pairs[path] for pairs in found if path in pairs)
        none = {"a": jnp.zeros_like(like["a"][..., :1]), "b": jnp.zeros_like(like["b"][:, :1])}
        own = [pairs.get(path, none) for pairs in found]
        rank = max(pair["a"].shape[-1] for pair in own)
        joined = {
            "a": jnp.stack([_padded(pair["a"], 2, rank) for pair in own], axis=1),
            "b": jnp.stack([_padded(pair["b"], 1, rank) for pair in own], axis=1),
        }
        put(tree, path, joined)
    return tree


def concatenate(stack: Params, weights: jax.Array | None = None) -> Params:
    """Join a stack of adapters into one adapter that adds the weighted sum of their updates.

    Its rank is the sum of theirs, and the sum is exact: a = [a_1 | a_2], b = [w_1 b_1; w_2 b_2].

    Args:
        stack: leaves [L, A, in, r] and [L, A, r, out].
        weights: [A], of the updates; None weighs each by 1.

    Returns:
        Leaves [L, in, A r] and [L, A r, out].

    Source: peft's `add_weighted_adapter` with "cat".

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.models import lora
        >>> stack = {"up": {"a": jnp.ones((1, 2, 3, 1)), "b": jnp.ones((1, 2, 1, 4))}}
        >>> joined = lora.concatenate(stack, jnp.asarray([0.25, 0.75]))
        >>> joined["up"]["a"].shape, joined["up"]["b"][0, :, 0].tolist()
        ((1, 3, 2), [0.25, 0.75])
    """

    def at(pair: Mapping[str, jax.Array]) -> Params:
        a, b = pair["a"], pair["b"]
        if weights is not None:
            b = b * weights.astype(b.dtype)[None, :, None, None]
        a = jnp.moveaxis(a, 1, 2)
        return {
            "a": a.reshape(*a.shape[:2], -1),
            "b": b.reshape(b.shape[0], -1, b.shape[-1]),
        }

    result: Params = jax.tree.map(at, dict(stack), is_leaf=is_pair)
    return result


def widen(adapter: Params, rank: int) -> Params:
    """Pad the factors of an adapter with zeros to one rank, which changes no update.

    Args:
        adapter: leaves [L, in, r] and [L, r, out], where r may differ from matrix to matrix.
        rank: the common rank, no smaller than any of them.

    Returns:
        Leaves [L, in, rank] and [L, rank, out].

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.models import lora
        >>> wide = lora.widen({"up": {"a": jnp.ones((1, 3, 2)), "b": jnp.ones((1, 2, 4))}}, 8)
        >>> wide["up"]["a"].shape, wide["up"]["b"].shape, float(wide["up"]["a"].sum())
        ((1, 3, 8), (1, 8, 4), 6.0)
    """

    def at(pair: Mapping[str, jax.Array]) -> Params:
        return {"a": _padded(pair["a"], 2, rank), "b": _padded(pair["b"], 1, rank)}

    result: Params = jax.tree.map(at, dict(adapter), is_leaf=is_pair)
    return result


def split(adapter: Params, count: int) -> Params:
    """Split an adapter of `concatenate` into its stack of `count` adapters again.

    Args:
        adapter: leaves [L, in, A r] and [L, A r, out].
        count: A, which divides the rank.

    Returns:
        Leaves [L, A, in, r] and [L, A, r, out].

    Raises:
        InputError: a rank that is no multiple of the count.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.models import lora
        >>> joined = {"up": {"a": jnp.ones((1, 3, 2)), "b": jnp.ones((1, 2, 4))}}
        >>> stack = lora.split(joined, 2)
        >>> stack["up"]["a"].shape, stack["up"]["b"].shape
        ((1, 2, 3, 1), (1, 2, 1, 4))
    """

    def at(pair: Mapping[str, jax.Array]) -> Params:
        a, b = pair["a"], pair["b"]
        if a.shape[-1] % count:
            raise InputError(
                f"an adapter has rank {a.shape[-1]}, expected a multiple of {count}, the number of "
                "adapters that are joined in it."
            )
        return {
            "a": jnp.moveaxis(a.reshape(*a.shape[:2], count, -1), 2, 1),
            "b": b.reshape(b.shape[0], count, -1, b.shape[-1]),
        }

    result: Params = jax.tree.map(at, dict(adapter), is_leaf=is_pair)
    return result


def merge(params: Params, adapter: Params, sign: int = 1) -> Params:
    """Add a scaled adapter to the matrices of a model; with sign -1, subtract it again.

    The sum is formed in float32 and rounded to the parameters' dtype: in bfloat16, subtracting does
    not restore the last bits.

    Args:
        params: of the model.
        adapter: scaled.
        sign: 1 to add, -1 to subtract.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.models import lora
        >>> params = {"layers": {"up": {"weight": jnp.zeros((1, 2, 3))}}}
        >>> adapter = {"up": {"a": jnp.ones((1, 3, 1)), "b": jnp.full((1, 1, 2), 3.0)}}
        >>> lora.merge(params, adapter)["layers"]["up"]["weight"].tolist()
        [[[3.0, 3.0, 3.0], [3.0, 3.0, 3.0]]]
    """

    def walk(node: Params, update: Params) -> Params:
        if not is_pair(update):
            adapted = {name: walk(subtree(node, name), subtree(update, name)) for name in update}
            return {**node, **adapted}
        weight = leaf(node, "weight")
        wide = jnp.promote_types(weight.dtype, jnp.float32)
        product = jnp.einsum(
            "...ir,...ro->...oi", update["a"].astype(wide), update["b"].astype(wide)
        )
        return {**node, "weight": (weight.astype(wide) + sign * product).astype(weight.dtype)}

    if is_stacked(params):
        return {**params, STACK: walk(subtree(params, STACK), adapter)}
    merged = dict(params)
    for number, part in enumerate(unstack_tree(layer_count(params), adapter)):
        name = layer_name(number)
        merged[name] = walk(subtree(params, name), part)
    return merged


def delta(inputs: jax.Array, pair: Params, rows: jax.Array | None = None) -> jax.Array:
    """What an adapter adds to the output of one matrix.

    Args:
        inputs: [B, T, in]; without `rows` any number of axes before the last.
        pair: `a` [in, r] and `b` [r, out], scaled; with `rows`, [A, in, r] and [A, r, out].
        rows: [B] int32, the adapter of each row, -1 for none; or [B, A] floats, by which each row
            weighs the updates of all adapters. None if all rows share one adapter.

    Returns:
        [B, T, out], or as the inputs', in the dtype of the inputs.

    Source: mixed by a weight for each row, the adapters are a conditional language policy
    (Wang et al. 2024, arXiv 2407.15762).

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.models import lora
        >>> pair = {"a": jnp.ones((2, 3, 1)), "b": jnp.asarray([[[1.0]], [[10.0]]])}
        >>> rows = jnp.asarray([1, 0, -1])
        >>> lora.delta(jnp.ones((3, 1, 3)), pair, rows)[:, 0, 0].tolist()
        [30.0, 3.0, 0.0]
        >>> lora.delta(jnp.ones((1, 1, 3)), pair, jnp.asarray([[0.5, 0.5]])).tolist()
        [[[16.5]]]
    """
    a, b = (leaf(pair, name).astype(inputs.dtype) for name in ("a", "b"))
    if rows is None:
        return (inputs @ a) @ b
    count, _, rank = a.shape
    weighted = jnp.issubdtype(rows.dtype, jnp.floating)
    if weighted or count * rank <= _MOST_COLUMNS:
        # Every adapter's columns at once, those of others set to zero: each is read once.
        low = jnp.einsum("BTi,Air->BTAr", inputs, a)
        own = rows if weighted else rows[:, None] == jnp.arange(count, dtype=rows.dtype)[None, :]
        return jnp.einsum("BTAr,Aro->BTo", low * own[:, None, :, None].astype(low.dtype), b)
    held = (rows >= 0)[:, None, None].astype(inputs.dtype)
    low = jnp.einsum("BTi,Bir->BTr", inputs, a[rows]) * held
    return jnp.einsum("BTr,Bro->BTo", low, b[rows])


def with_dropout_keys(
    adapters: Params | tuple[Params, ...], key: jax.Array
) -> Params | tuple[Params, ...]:
    """Add to each matrix of each layer a key of its own, which drops what its update reads.

    A key depends on the layer and on the matrix's place in the sorted tree alone: layers in one
    stack and layers apart drop the same.

    Args:
        adapters: scaled, leaves [L, ...]; or a tree for each of L layers.
        key: random key.

    Returns:
        The same with keys `dropout` beside `a` and `b`, [L] or for each layer [].

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxalign.models import lora
        >>> adapter = {"up": {"a": jnp.ones((2, 8, 4)), "b": jnp.ones((2, 4, 16))}}
        >>> lora.with_dropout_keys(adapter, jax.random.key(0))["up"]["dropout"].shape
        (2,)
    """
    if isinstance(adapters, tuple):
        return tuple(_with_layer_keys(own, key, layer) for layer, own in enumerate(adapters))
    return _with_layer_keys(adapters, key, None)


def _with_layer_keys(adapter: Params, key: jax.Array, layer: int | None) -> Params:
    tree: dict[str, Params | jax.Array] = {}
    for number, (path, pair) in enumerate(sorted(adapted_pairs(adapter).items())):
        own = jax.random.fold_in(key, number)
        if layer is None:
            layers = jnp.arange(len(pair["a"]), dtype=jnp.uint32)
            keys = jax.vmap(jax.random.fold_in, (None, 0))(own, layers)
        else:
            keys = jax.random.fold_in(own, layer)
        put(tree, path, {**pair, "dropout": keys})
    return tree


def is_pair(node: object) -> TypeGuard[Mapping[str, jax.Array]]:
    """Whether a node of a tree is one matrix's {"a", "b"}."""
    return isinstance(node, Mapping) and node.keys() == {"a", "b"}


def is_stack(adapter: Params) -> bool:
    """Whether the tree is a stack of adapters, as of `stack`, and not one adapter."""
    return any(pair["a"].ndim == 4 for pair in adapted_pairs(adapter).values())


def adapted_pairs(
    adapter: Params, path: tuple[str, ...] = ()
) -> dict[tuple[str, ...], Mapping[str, jax.Array]]:
    """Return the factors of each matrix of an adapter, by its path.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.models import lora
        >>> pair = {"a": jnp.ones((2, 8, 1)), "b": jnp.ones((2, 1, 8))}
        >>> list(lora.adapted_pairs({"attention": {"query": pair}}))
        [('attention', 'query')]
    """
    found: dict[tuple[str, ...], Mapping[str, jax.Array]] = {}
    for name in adapter:
        node = subtree(adapter, name)
        found |= {(*path, name): node} if is_pair(node) else adapted_pairs(node, (*path, name))
    return found


def _layer_weights(params: Params) -> dict[tuple[str, ...], jax.Array]:
    return _weights(subtree(params, STACK if is_stacked(params) else layer_name(0)))


def _weights(layers: Params, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], jax.Array]:
    found: dict[tuple[str, ...], jax.Array] = {}
    for name, node in layers.items():
        if isinstance(node, Mapping):
            if "weight" in node:
                found[(*path, name)] = leaf(node, "weight")
            else:
                found |= _weights(node, (*path, name))
    return found


def _padded(values: jax.Array, axis: int, size: int) -> jax.Array:
    widths = [(0, 0)] * values.ndim
    widths[axis] = (0, size - values.shape[axis])
    return jnp.pad(values, widths)
