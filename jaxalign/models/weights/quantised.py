"""Checkpoints that hold quantised weights, told apart by their config and by their tensors."""

import re
from collections.abc import Iterable

from jaxalign.errors import InputError
from jaxalign.models.hf_config import JsonObject, section

# Scales and packed integers, as bitsandbytes, GPTQ, AWQ, fp8 and compressed-tensors name them.
_PARTS = re.compile(
    r"\.(weight_scale(_inv)?|weight_scale_2|input_scale|activation_scale|weight_packed|weight_shape|"
    r"weight_zero_point|qweight|qzeros|scales|g_idx|SCB|weight_format|"
    r"weight\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..*))$"
)
_TAKE = (
    "take the checkpoint that it was made from, or a GGUF file of the model, which may be quantised"
)


def refuse_quantised(settings: JsonObject, source: str) -> None:
    """Refuse a model whose config says that its weights are quantised.

    Args:
        settings: the parsed config.json.
        source: what to call the config in messages.

    Raises:
        InputError: the config has a `quantization_config`.

    Example:
        >>> from jaxalign.models.weights.quantised import refuse_quantised
        >>> refuse_quantised({"quantization_config": {"quant_method": "awq"}}, "config.json")
        Traceback (most recent call last):
        jaxalign.errors.InputError: config.json: the checkpoint is quantised (awq); expected ...
    """
    found = section(settings, "quantization_config", source)
    if not found:
        return
    how = [str(found.get("quant_method") or "by an unknown method")]
    how += [f"{found[name]} bits" for name in ("bits", "w_bit") if name in found]
    how += [name.removeprefix("load_in_") for name in ("load_in_4bit", "load_in_8bit")
            if found.get(name)]  # fmt: skip
    raise InputError(
        f"{source}: the checkpoint is quantised ({', '.join(how)}); expected plain floating point "
        f"weights: {_TAKE}."
    )


def refuse_quantised_tensors(names: Iterable[str], source: str) -> None:
    """Refuse tensors that only a quantised checkpoint has.

    Args:
        names: of tensors that are no parameters of the model.
        source: what to call the file in messages.

    Raises:
        InputError: one of them is a scale, or holds packed integers.
    """
    parts = [name for name in names if _PARTS.search(name)]
    if parts:
        raise InputError(
            f"{source}: the checkpoint is quantised (it has {min(parts)!r}); expected plain "
            f"floating point weights: {_TAKE}."
        )
