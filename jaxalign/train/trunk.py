"""A pretrained decoder in training: all of it, or an adapter beside it."""

from dataclasses import dataclass, field, replace
from typing import Literal, TypedDict

import jax
from jax.sharding import Mesh

from jaxalign.config_fields import checks_fields
from jaxalign.errors import InputError
from jaxalign.models import families, lora
from jaxalign.models.device_defaults import device_defaults, note_slow_dtype
from jaxalign.models.global_arrays import place
from jaxalign.models.lora import LoraConfig
from jaxalign.models.params import Params, PyTree
from jaxalign.train import optimiser
from jaxalign.train.mesh import (
    MeshConfig,
    batch_sharding,
    gathered,
    param_shardings,
    state_shardings,
)
from jaxalign.train.optimiser import OptimiserConfig, TrainState

Precision = Literal["float32", "bfloat16"]
# The other entries of `jax.checkpoint_policies` make a policy of arguments, or need offloading.
_REMAT = (
    "everything_saveable",
    "nothing_saveable",
    "dots_saveable",
    "checkpoint_dots",
    "dots_with_no_batch_dims_saveable",
    "checkpoint_dots_with_no_batch_dims",
)


class TrainableParams(TypedDict, total=False):
    """What is trained of a decoder: all of it or an adapter, and perhaps a head.

    Attributes:
        model: parameters of the whole model.
        adapter: LoRA adapter, not scaled.
        head: {"kernel": [D, R]} of R rewards.
    """

    model: Params
    adapter: Params
    head: dict[str, jax.Array]


@dataclass(frozen=True)
@checks_fields
class TrunkConfig:
    """Which parameters of a pretrained model are trained, their precision and their devices.

    Attributes:
        method: `lora` trains an adapter in float32 and keeps the model frozen; `full` trains every
            parameter and needs about four times the memory of the model.
        lora: size and place of the adapter.
        weights: dtype of the model's parameters. bfloat16 halves their memory.
        compute: dtype of matrix products. bfloat16 is several times faster on accelerators.
        remat: name of a `jax.checkpoint_policies` entry by which the backward pass recomputes each
            block, such as nothing_saveable or dots_saveable; it saves memory for about a third
            more time. null keeps all activations.
        unstack_layers: hold the frozen parameters of `lora` as one tree per layer: faster training
            and sampling, longer to compile. null does so where it pays: on one GPU or CPU. What
            `full` trains is one stack.
        mesh: number of devices of each axis.

    Example:
        >>> from jaxalign.train.trunk import TrunkConfig
        >>> TrunkConfig(weights="bfloat16", compute="bfloat16").method
        'lora'
    """

    method: Literal["lora", "full"] = "lora"
    lora: LoraConfig = field(default_factory=LoraConfig)
    weights: Precision = "float32"
    compute: Precision = "float32"
    remat: str | None = None
    unstack_layers: bool | None = None
    mesh: MeshConfig = field(default_factory=MeshConfig)

    def __post_init__(self) -> None:
        check_remat(self.remat)
        if self.method == "full" and self.unstack_layers:
            raise InputError(
                "unstack_layers: found true with method 'full', whose state is one stack of "
                "layers; expected null or false: leave it out, or train with method 'lora'."
            )

    @property
    def unstacks(self) -> bool | None:
        """Whether the layers are loaded unstacked; None where the devices decide."""
        return False if self.method == "full" else self.unstack_layers

    def decoder(self, config: families.Config, mesh: Mesh | None = None) -> families.Config:
        """The model's config with these switches.

        Args:
            config: of the model.
            mesh: devices of a training that generates nothing; on one device, the layers that
                `full` trains are unrolled where that pays.
        """
        note_slow_dtype(self.compute)
        alone = self.method == "full" and mesh is not None and mesh.size == 1
        unroll = config.unroll or (alone and device_defaults().unroll_to_train)
        return replace(config, dtype=self.compute, remat=self.remat, unroll=unroll)


def check_remat(name: str | None) -> None:
    """Refuse what is no policy of `jax.checkpoint_policies` without arguments; None keeps all.

    Raises:
        InputError: there is no such policy.
    """
    if name is not None and name not in _REMAT:
        raise InputError(f"remat is {name!r}; expected null or one of {', '.join(_REMAT)}.")


def check_trunk(config: TrunkConfig, params: Params) -> None:
    """Refuse a model that has not what is to be trained, before a run opens its folder.

    Args:
        config: says what is trained.
        params: of the model.

    Raises:
        InputError: LoRA is to adapt a matrix that the model lacks.
    """
    if config.method == "lora":
        lora.check_targets(config.lora, params)


def split_trainable(
    key: jax.Array, params: PyTree, config: TrunkConfig, mesh: Mesh, decoder: PyTree
) -> tuple[dict[str, PyTree], dict[str, PyTree]]:
    """What is trained and what is not.

    Args:
        key: of a fresh adapter.
        params: of the model.
        config: says which of the two.
        mesh: where the parameters are laid out.
        decoder: config of the model.

    Returns:
        {"adapter": tree} and the parameters; or {"model": parameters} and {}.
    """
    params = dict(place(params, param_shardings(params, mesh, decoder)))
    if config.method == "full":
        return {"model": params}, {}
    return {"adapter": lora.init(key, config.lora, params)}, params


def init_train_state(
    key: jax.Array, trained: PyTree, config: OptimiserConfig, mesh: Mesh, decoder: PyTree
) -> TrainState:
    """The state before the first step, on the mesh."""
    state = optimiser.start(key, trained, config)
    return place(state, state_shardings(state, mesh, decoder))


def hidden_states(
    config: families.Config,
    adapter: LoraConfig,
    mesh: Mesh,
    trained: PyTree,
    frozen: PyTree,
    tokens: jax.Array,
    lengths: jax.Array,
    key: jax.Array | None,
) -> jax.Array:
    """States of the last layer, [B, T, D].

    Args:
        config: of the decoder.
        adapter: how a trained adapter is scaled and dropped.
        mesh: where parameters and rows lie.
        trained, frozen: as from `split_trainable`.
        tokens: [B, T] int32.
        lengths: [B] int32.
        key: of dropout; None drops nothing.
    """
    params = trained.get("model", frozen)
    # Both pinned, or the compiler may cut the states by width: see jaxalign.train.mesh.
    table = {"table": gathered(params["embed"]["table"], mesh)}
    embeddings = families.embed(config, {**params, "embed": table}, tokens)
    scaled = lora.scaled(trained["adapter"], adapter) if "adapter" in trained else None
    hidden, _ = families.forward(
        config,
        params,
        embeddings=jax.lax.with_sharding_constraint(embeddings, batch_sharding(mesh)),
        lengths=lengths,
        adapters=scaled,
        adapter_dropout=adapter.dropout,
        dropout_key=None if scaled is None else key,
    )
    return hidden
