"""LoRA: low-rank updates of named matrices, as a tree of their own, one adapter or many at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxalign.errors import InputError

# Above this many columns, all adapters at once cost more arithmetic than the matrix they adapt.
_MOST_COLUMNS = 512


@dataclass(frozen=True)
class LoraConfig:
    """Size and place of an adapter.

    Attributes:
        rank: rank of the update, at least 1. 8 to 64 is usual; higher ranks learn and weigh more.
        alpha: the update is scaled by alpha / rank; twice the rank is usual.
        dropout: share of the update's inputs that is set to zero in training, in [0, 1).
        targets: names of the matrices, as they stand in the parameters: query, key, value, out,
            gate, up, down (GPT-2: qkv, out, up, down).
        rank_stabilised: scale by alpha / sqrt(rank) instead.
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

    @property
    def scale(self) -> float:
        """What the product of the two factors is multiplied by."""
        return self.alpha / (self.rank**0.5 if self.rank_stabilised else self.rank)


def init(key: jax.Array, config: LoraConfig, params: Mapping[str, Any]) -> dict[str, Any]:
    """A fresh adapter: a model with it equals the model without, until it is trained.

    Args:
        key: random key.
        config: rank and targets.
        params: of the model; a target is a dict with a `kernel` [L, in, out] under `layers`.

    Returns:
        The tree of `params["layers"]` cut down to the targets, each {"a": [L, in, r] uniform as
        torch's Linear starts, "b": [L, r, out] zero}, float32 (float64 for such parameters).

    Raises:
        InputError: for a target that the model lacks.

    Source: Hu et al. 2021, https://arxiv.org/abs/2106.09685.
    """
    kernels = _kernels(params["layers"])
    missing = set(config.targets) - {path[-1] for path in kernels}
    if missing:
        known = sorted({path[-1] for path in kernels})
        raise InputError(
            f"the model has no matrix {min(missing)!r} to adapt; choose among {', '.join(known)}."
        )
    tree: dict[str, Any] = {}
    for number, (path, kernel) in enumerate(sorted(kernels.items())):
        if path[-1] not in config.targets:
            continue
        layers, into, out = kernel.shape
        wide = jnp.promote_types(kernel.dtype, jnp.float32)
        bound = into**-0.5  # Kaiming uniform with a = sqrt(5)
        own = jax.random.fold_in(key, number)
        a = jax.random.uniform(own, (layers, into, config.rank), wide, -bound, bound)
        _put(tree, path, {"a": a, "b": jnp.zeros((layers, config.rank, out), wide)})
    return tree


def scaled(adapter: Mapping[str, Any], config: LoraConfig) -> dict[str, Any]:
    """The adapter as a model takes it: `b` times the scale; differentiable."""

    def at(pair: Mapping[str, Any]) -> dict[str, Any]:
        return {"a": pair["a"], "b": pair["b"] * jnp.asarray(config.scale, pair["b"].dtype)}

    return jax.tree.map(at, dict(adapter), is_leaf=is_pair)


def stack(adapters: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Many scaled adapters as one: leaves [L, A, in, r] and [L, A, r, out].

    Ranks may differ: smaller ones are padded with zeros, which changes nothing.

    Raises:
        InputError: where they adapt different matrices, or there is none.
    """
    if not adapters:
        raise InputError("found no adapter to stack; expected at least one.")
    for number, adapter in enumerate(adapters):
        if str(jax.tree.structure(adapter)) != str(jax.tree.structure(adapters[0])):
            raise InputError(
                f"adapter {number} adapts other matrices than adapter 0: stack adapters with the "
                "same targets only."
            )

    def joined(*pairs: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        rank = max(pair["a"].shape[-1] for pair in pairs)
        return {
            "a": jnp.stack([_padded(pair["a"], 2, rank) for pair in pairs], axis=1),
            "b": jnp.stack([_padded(pair["b"], 1, rank) for pair in pairs], axis=1),
        }

    return jax.tree.map(joined, *adapters, is_leaf=is_pair)


def merge(params: Mapping[str, Any], adapter: Mapping[str, Any], sign: int = 1) -> dict[str, Any]:
    """Parameters with a scaled adapter added to its matrices; sign -1 takes it out again.

    The sum is formed in float32 and rounded to the parameters' dtype: in bfloat16, taking out
    does not restore the last bits.
    """

    def walk(node: Any, update: Any) -> Any:
        if not is_pair(update):
            return {name: walk(node[name], update[name]) if name in update else node[name]
                    for name in node}  # fmt: skip
        kernel = node["kernel"]
        wide = jnp.promote_types(kernel.dtype, jnp.float32)
        product = jnp.einsum("Lir,Lro->Lio", update["a"].astype(wide), update["b"].astype(wide))
        return {**node, "kernel": (kernel.astype(wide) + sign * product).astype(kernel.dtype)}

    return {**params, "layers": walk(params["layers"], adapter)}


def delta(
    inputs: jax.Array, pair: Mapping[str, jax.Array], rows: jax.Array | None = None
) -> jax.Array:
    """What an adapter adds to the output of one matrix.

    Args:
        inputs: [B, T, in].
        pair: `a` [in, r] and `b` [r, out], scaled; with `rows`, [A, in, r] and [A, r, out].
        rows: [B] int32, the adapter of each row; -1 for none. None where all share one.

    Returns:
        [B, T, out] in the dtype of the inputs.
    """
    a, b = (pair[name].astype(inputs.dtype) for name in ("a", "b"))
    if rows is None:
        return (inputs @ a) @ b
    count, _, rank = a.shape
    if count * rank <= _MOST_COLUMNS:
        # Every adapter's columns at once, those of others set to zero: each is read once.
        low = jnp.einsum("BTi,Air->BTAr", inputs, a)
        own = rows[:, None] == jnp.arange(count, dtype=rows.dtype)[None, :]
        return jnp.einsum("BTAr,Aro->BTo", low * own[:, None, :, None].astype(low.dtype), b)
    held = (rows >= 0)[:, None, None].astype(inputs.dtype)
    low = jnp.einsum("BTi,Bir->BTr", inputs, a[rows]) * held
    return jnp.einsum("BTr,Bro->BTo", low, b[rows])


def is_pair(node: Any) -> bool:
    """Whether a node of a tree is one matrix's {"a", "b"}."""
    return isinstance(node, Mapping) and node.keys() == {"a", "b"}


def _kernels(layers: Mapping[str, Any], path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    found: dict[tuple[str, ...], Any] = {}
    for name, node in layers.items():
        if isinstance(node, Mapping):
            if "kernel" in node:
                found[(*path, name)] = node["kernel"]
            else:
                found |= _kernels(node, (*path, name))
    return found


def _put(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for part in path[:-1]:
        tree = tree.setdefault(part, {})
    tree[path[-1]] = value


def _padded(values: jax.Array, axis: int, size: int) -> jax.Array:
    widths = [(0, 0)] * values.ndim
    widths[axis] = (0, size - values.shape[axis])
    return jnp.pad(values, widths)
