"""Base reward functions phi: features in, K rewards out (MRM, arXiv 2601.18731, section 3)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxalign.arrays import Sizes, check_array, check_count
from jaxalign.backend import program_backend
from jaxalign.mrm.config import MRMConfig

Params = dict[str, Any]

_FEW, _CACHED = 4, 1 << 21
_ACTIVATIONS = {"linear": lambda x: x, "tanh": jnp.tanh, "gelu": nn.gelu}


def _uniform_fan_in(
    key: jax.Array, shape: tuple[int, int], dtype: jax.typing.DTypeLike = jnp.float32
) -> jax.Array:
    # What torch.nn.Linear starts from, so that published recipes start where the authors' runs do.
    bound = shape[0] ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def _product(x: jax.Array, kernel: jax.Array, scale: float) -> jax.Array:
    """scale * (x [..., E] @ kernel [E, K]), in the form that is fastest for a thin kernel.

    Measured on a CPU, gradient included: the kernel as [K, E] is 4 to 40 times as fast as [E, K];
    a few columns one by one are up to twice as fast again, as long as x stays in the cache, which
    each of them reads anew. On a GPU, a few columns are sums, of which XLA makes one kernel with
    what gathers x; the library of products would have x in memory first.
    """
    few = kernel.shape[1] <= _FEW and x.size <= _CACHED
    if few and program_backend() != "cpu":
        columns = jnp.broadcast_to(scale * kernel.T, (*x.shape[:-1], *kernel.T.shape))
        return jnp.sum(x[..., None, :] * columns, axis=-1)
    # Without the barrier XLA would fold the transpose into the product again.
    turned = jax.lax.optimization_barrier(kernel.T)
    if few:
        rows = x.reshape(-1, x.shape[-1])
        products = [rows @ column for column in turned]
        return scale * jnp.stack(products, -1).reshape(*x.shape[:-1], len(turned))
    return scale * jnp.einsum("...E,KE->...K", x, turned)


class _Dense(nn.Module):
    """y = scale * (x @ kernel) + bias: scaling the product spares a scaled copy of the features."""

    width: int
    use_bias: bool
    scale: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", _uniform_fan_in, (x.shape[-1], self.width))
        y = _product(x, kernel, self.scale)
        if not self.use_bias:
            return y
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        return y + jnp.broadcast_to(bias, y.shape)


class BaseRewards(nn.Module):
    """A stack of dense layers from features [..., E] to base rewards [..., K]."""

    config: MRMConfig

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        """Base rewards [..., K] of features [..., E]; the features themselves without layers."""
        x = features
        for index, width in enumerate(self.config.hidden_sizes):
            if index:
                x = _ACTIVATIONS[self.config.activation](x)
            scale = self.config.input_scale if index == 0 else 1.0
            x = _Dense(width, self.config.use_bias, scale, name=f"layer{index}")(x)
        return x


def is_linear(config: MRMConfig) -> bool:
    """Whether phi(a) - phi(b) = phi(a - b) up to biases, so that differences can be taken first."""
    return config.activation == "linear" or len(config.hidden_sizes) < 2


def init(key: jax.Array, config: MRMConfig, feature_dim: int) -> Params:
    """Fresh parameters, from the distributions the authors' code draws from.

    Args:
        key: random key.
        config: the model.
        feature_dim: E, the width of the features.

    Returns:
        `{"base": {"layer0": {"kernel" [E, .], "bias"?}, ...}, "weight_init": [K]}`, and
        `"log_inner_lr"` [inner_steps] when the inner rates are learned. Signed weights start at
        1/K each, so that the start is the mean of the base rewards.

    Raises:
        InputError: features without a width.

    Example:
        >>> import jax
        >>> from jaxalign.mrm import MRMConfig, init
        >>> config = MRMConfig(hidden_sizes=(2,), link="signed")
        >>> params = init(jax.random.key(0), config, feature_dim=5)
        >>> params["base"]["layer0"]["kernel"].shape, params["weight_init"].tolist()
        ((5, 2), [0.5, 0.5])
    """
    feature_dim = check_count("feature_dim", feature_dim)
    base_key, weight_key = jax.random.split(key)
    variables = BaseRewards(config).init(base_key, jnp.zeros((1, feature_dim)))
    size = config.hidden_sizes[-1] if config.hidden_sizes else feature_dim
    if config.link == "softmax":
        weight = jax.random.normal(weight_key, (size,))
    else:
        weight = jnp.full((size,), 1.0 / size, jnp.float32)
    params: Params = {"base": variables.get("params", {}), "weight_init": weight}
    if config.learn_inner_lr:
        params["log_inner_lr"] = jnp.log(
            jnp.full((config.inner_steps,), config.inner_lr, jnp.float32)
        )
    return params


def base_rewards(params: Params, features: jax.Array, config: MRMConfig | None = None) -> jax.Array:
    """Base rewards [..., K] of features [..., E].

    Args:
        params: as from `init`.
        features: [..., E].
        config: the model; without it a linear base with the published input scale, its depth read
            from the parameters.

    Raises:
        InputError: features of another width, or a concrete value that is not finite.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.mrm import MRMConfig, base_rewards
        >>> params = {"base": {"layer0": {"kernel": jnp.eye(2)}}, "weight_init": jnp.ones(2)}
        >>> config = MRMConfig(hidden_sizes=(2,), input_scale=0.5)
        >>> base_rewards(params, jnp.array([[2.0, 4.0]]), config).tolist()
        [[1.0, 2.0]]
    """
    features = check_array("features", features, "... E", _input_width(params))
    if config is None:
        layers = [params["base"][f"layer{i}"] for i in range(len(params["base"]))]
        widths = tuple(int(layer["kernel"].shape[1]) for layer in layers)
        config = MRMConfig(hidden_sizes=widths, use_bias=bool(layers) and "bias" in layers[0])
    rewards: Any = BaseRewards(config).apply({"params": params["base"]}, features)
    return rewards


def _input_width(params: Params) -> Sizes:
    """The width E that the first layer takes, of a base that has one."""
    first = params["base"].get("layer0")
    return Sizes() if first is None else Sizes(E=(first["kernel"].shape[0], "the first layer"))


def base_differences(
    params: Params, chosen: jax.Array, rejected: jax.Array, config: MRMConfig
) -> jax.Array:
    """phi(chosen) - phi(rejected) [..., K] of features [..., E]; one matmul where phi is linear."""
    if is_linear(config):
        unbiased = jax.tree.map_with_path(
            lambda path, leaf: jnp.zeros_like(leaf) if path[-1].key == "bias" else leaf,
            params["base"],
        )
        return base_rewards({**params, "base": unbiased}, chosen - rejected, config)
    return base_rewards(params, chosen, config) - base_rewards(params, rejected, config)


def effective_weights(weights: jax.Array, config: MRMConfig) -> jax.Array:
    """The weights [..., K] that multiply the base rewards: softmax as published, or as they are.

    Raises:
        InputError: a concrete value that is not finite.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.mrm import MRMConfig, effective_weights
        >>> effective_weights(jnp.zeros(2), MRMConfig(link="softmax")).tolist()
        [0.5, 0.5]
        >>> effective_weights(jnp.array([-1.0, 2.0]), MRMConfig(link="signed")).tolist()
        [-1.0, 2.0]
    """
    weights = check_array("weights", weights, "... K")
    return jax.nn.softmax(weights, axis=-1) if config.link == "softmax" else weights


def score(weights: jax.Array, base: jax.Array, config: MRMConfig | None = None) -> jax.Array:
    """Rewards [U, P] of base rewards [U, P, K] under each user's weights [U, K].

    Args:
        weights: [U, K].
        base: [U, P, K] base rewards, or their differences.
        config: if given, its link is applied to the weights first; without it they are used as
            they are.

    Raises:
        InputError: shapes that disagree, or a concrete value that is not finite.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.mrm import score
        >>> weights, base = jnp.array([[1.0, -1.0]]), jnp.array([[[3.0, 1.0], [0.0, 2.0]]])
        >>> score(weights, base).tolist()
        [[2.0, -2.0]]
    """
    sizes = Sizes()
    weights = check_array("weights", weights, "... K", sizes, empty="U")
    base = check_array("base", base, "... P K", sizes, empty="P")
    if config is not None:
        weights = effective_weights(weights, config)
    return jnp.einsum("...K,...PK->...P", weights, base)
