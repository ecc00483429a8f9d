"""One policy for every preference: a model, its adapter, and how it is given the preference."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NotRequired, TypedDict

import jax
import jax.numpy as jnp
from numpy.typing import ArrayLike

from jaxalign.errors import InputError
from jaxalign.moc.config import Conditioning, MocConfig
from jaxalign.moc.preferences import Prompt, check_simplex, insert_preference_tag
from jaxalign.models import lora
from jaxalign.models.chat import prompt_ids
from jaxalign.models.heads import ValueHead
from jaxalign.models.language import LanguageModel
from jaxalign.models.lora import LoraConfig
from jaxalign.models.params import Params
from jaxalign.rewards.reward_scale import RewardScale

_HIDDEN = 64  # width of the network from a preference to its soft token

Layers = dict[str, dict[str, jax.Array]]
"""Dense layers by name, each {"kernel", "bias"}."""


class TrainedParams(TypedDict):
    """What training changes.

    Attributes:
        adapter: LoRA factors before their scaling; with the conditioning "adapters" a stack of R.
        heads: the value heads, for training only; empty where the advantages' baseline is
            the group's mean.
        token: the network from a preference to its soft token, where there are soft tokens.
    """

    adapter: Params
    heads: Layers
    token: NotRequired[Layers]


@dataclass(frozen=True, eq=False)
class ConditionedPolicy:
    """A language model with an adapter, or one for each of R rewards, conditioned on a preference.

    Attributes:
        model: the base model, to which the adapter is added; alone it is the reference of the KL.
        names: [R] names of the rewards that a preference weighs.
        conditioning: how the policy is given the preference: "tags" in the prompt, one soft
            "token" before it, an adapter for each reward ("adapters"), mixed by the preference, or
            "none".
        lora: size and place of the adapter, or of each.
        trained: what training changes.
        scale: scale of the rewards, whose levels are compared with preferences; None where the
            rewards lie between 0 and 1 as they are.
        decimals: how many decimals a preference is written with.
    """

    model: LanguageModel
    names: tuple[str, ...]
    conditioning: Conditioning
    lora: LoraConfig
    trained: TrainedParams = field(repr=False)
    scale: RewardScale | None = None
    decimals: int = 1


def init_policy(
    key: jax.Array,
    model: LanguageModel,
    names: Sequence[str],
    config: MocConfig,
    scale: RewardScale | None = None,
) -> ConditionedPolicy:
    """Return a fresh policy, which answers as the model alone does to what the policy reads.

    With tags that is the prompt with its tag, and with a soft token, the prompt behind a random
    embedding. With adapters, or without conditioning, it is the prompt itself.

    Args:
        key: random key.
        model: the reference.
        names: [R] names of the rewards.
        config: of the run that will train the policy.
        scale: scale of the rewards, None where they lie between 0 and 1 as they are.

    Returns:
        The policy, with an adapter and value heads that change nothing yet.

    Raises:
        InputError: the adapter does not fit the model, or the scale has other rewards.
    """
    if scale is not None and scale.names != tuple(names):
        raise InputError(
            f"the scale is of {', '.join(scale.names)}, the policy of {', '.join(names)}; expected "
            "the same rewards in the same order."
        )
    adapter_key, heads_key, token_key = jax.random.split(key, 3)
    trained: TrainedParams = {
        "adapter": _fresh_adapter(adapter_key, model, len(names), config),
        "heads": _fresh_heads(heads_key, model, len(names), config),
    }
    if config.conditioning == "token":
        trained["token"] = _token_params(token_key, len(names), model.config.width)
    decimals = config.preferences.decimals
    return ConditionedPolicy(
        model, tuple(names), config.conditioning, config.trunk.lora, trained, scale, decimals
    )


def _fresh_adapter(key: jax.Array, model: LanguageModel, rewards: int, config: MocConfig) -> Params:
    """One adapter, or a stack of one for each reward."""
    if config.conditioning != "adapters":
        return lora.init(key, config.trunk.lora, model.params)
    keys = jax.random.split(key, rewards)
    return lora.stack([lora.init(own, config.trunk.lora, model.params) for own in keys])


def _fresh_heads(key: jax.Array, model: LanguageModel, rewards: int, config: MocConfig) -> Layers:
    if config.advantage_baseline == "group":
        return {}
    values = value_head(rewards if config.reward == "vector" else 1)
    states = jnp.zeros((1, model.config.width), jnp.float32)
    return {"value": values.init(key, states)["params"]}


def value_head(objectives: int) -> ValueHead:
    """Return the module of the value heads, one for each of K objectives and, last, the KL.

    Fresh heads give 0.
    """
    return ValueHead(objectives + 1, scale=0.0)


def prompt_token_ids(
    policy: ConditionedPolicy, prompts: Sequence[Prompt], preferences: ArrayLike
) -> list[list[int]]:
    """Return the token ids of each prompt as the policy reads it, with its tag if there is one.

    Args:
        policy: whose tokenizer and conditioning are used.
        prompts: B texts or chats, without preferences.
        preferences: [B, R] on the simplex.

    Raises:
        InputError: a prompt that is no text or chat or longer than the context, or preferences off
            the simplex.
    """
    soft = 1 if policy.conditioning == "token" else 0
    return [
        prompt_ids(policy.model, prompt, soft, f"prompt {number}")
        for number, prompt in enumerate(conditioned_prompts(policy, prompts, preferences))
    ]


def conditioned_prompts(
    policy: ConditionedPolicy, prompts: Sequence[Prompt], preferences: ArrayLike
) -> list[Prompt]:
    """Return the prompts as the policy reads them, as in `prompt_token_ids`, before tokenising."""
    rows = check_simplex(preferences, policy.names)
    if rows.shape != (len(prompts), len(policy.names)):
        raise InputError(
            f"found preferences of shape {rows.shape} for {len(prompts)} prompts; expected "
            f"{(len(prompts), len(policy.names))}, a row for each."
        )
    if policy.conditioning != "tags":
        return list(prompts)
    pairs = zip(prompts, rows, strict=True)
    return [insert_preference_tag(policy.names, row, one, policy.decimals) for one, row in pairs]


class ConditionedInputs(TypedDict):
    """What generation and training read besides the prompts: adapters, weights, soft tokens.

    The keys are keyword arguments of `jaxalign.models.completions.completion_states`; `rows` and
    `prefix` are None where the preference is given in another way.
    """

    adapters: Params
    rows: jax.Array | None
    prefix: jax.Array | None


def conditioned_inputs(
    trained: TrainedParams, table: jax.Array, config: LoraConfig, preferences: jax.Array
) -> ConditionedInputs:
    """Return the scaled adapter, and how B preferences reach it.

    Args:
        trained: as in `ConditionedPolicy`.
        table: [V, D], input embeddings.
        config: of the adapter.
        preferences: [B, R] on the simplex.

    Returns:
        `adapters`; `rows`, the preferences [B, R], by which a stack of adapters is mixed; and
        `prefix` [B, 1, D], the soft tokens.
    """
    adapters = lora.scaled(trained["adapter"], config)
    prefix = soft_token(trained["token"], table, preferences) if "token" in trained else None
    return {
        "adapters": adapters,
        "rows": preferences if lora.is_stack(adapters) else None,
        "prefix": prefix,
    }


def soft_token(params: Layers, table: jax.Array, preferences: jax.Array) -> jax.Array:
    """Return preferences as one embedding each, with the mean norm of the model's own embeddings.

    Args:
        params: {"inner", "head"}, each {"kernel", "bias"}.
        table: [V, D], input embeddings.
        preferences: [B, R].

    Returns:
        [B, 1, D], at least float32.
    """
    inner, head = params["inner"], params["head"]
    wide = inner["kernel"].dtype
    norms = jnp.linalg.norm(table.astype(jnp.promote_types(table.dtype, jnp.float32)), axis=1)
    hidden = jnp.matmul(preferences.astype(wide), inner["kernel"], precision="highest")
    hidden = jnp.tanh(hidden + inner["bias"][None, :])
    tokens = jnp.matmul(hidden, head["kernel"], precision="highest") + head["bias"][None, :]
    norm = jnp.linalg.norm(tokens, axis=1, keepdims=True)
    scaled = tokens * (jnp.mean(norms).astype(wide) / jnp.maximum(norm, 1e-6))
    return scaled[:, None, :]


def _token_params(key: jax.Array, rewards: int, width: int) -> Layers:
    first, second = jax.random.split(key)
    return {
        "inner": {
            # Twice the usual spread: entries of preferences differ by less than 1, and the tokens
            # of two preferences are to differ from the start.
            "kernel": 2 * jax.random.normal(first, (rewards, _HIDDEN), jnp.float32),
            "bias": jnp.zeros(_HIDDEN, jnp.float32),
        },
        "head": {
            "kernel": jax.random.normal(second, (_HIDDEN, width), jnp.float32) / _HIDDEN**0.5,
            "bias": jnp.zeros(width, jnp.float32),
        },
    }
