"""Quantised checkpoints are named; plain 8-bit floats are read."""

import json

import ml_dtypes
import numpy as np
import pytest
import tiny_lms
import torch
from safetensors.torch import load_file, save_file

from jaxalign.errors import InputError
from jaxalign.models import load_encoder, load_language_model
from jaxalign.models.params import leaf
from jaxalign.rewards.reward_model import load_reward_model

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128}
BYTES = {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False}


@pytest.fixture
def folder(tmp_path):
    return tiny_lms.write(tmp_path / "model", "llama")


def change(folder, tensors=None, **fields):
    place = folder / "config.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | fields))
    if tensors is not None:
        save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("found", "how"),
    [
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, r"\(fp8\)"),
        (GPTQ, r"\(gptq, 4 bits\)"),
        ({"quant_method": "awq", "bits": 4}, r"\(awq, 4 bits\)"),
        (BYTES, r"\(bitsandbytes, 4bit\)"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "compressed-tensors"),
    ],
)
def test_the_config_of_a_quantised_checkpoint_says_how(folder, found, how):
    change(folder, quantization_config=found)
    for load in (load_language_model, load_encoder, load_reward_model):
        with pytest.raises(InputError, match=rf"quantised \(?.*{how}.*GGUF") as caught:
            load(str(folder))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "part", ["weight_scale_inv", "weight_scale", "qweight", "scales", "weight_packed", "SCB",
             "weight.absmax", "weight.quant_state.bitsandbytes__nf4"],
)  # fmt: skip
def test_the_tensors_of_a_quantised_checkpoint_are_enough(folder, part):
    tensors = load_file(folder / "model.safetensors")
    name = f"model.layers.1.mlp.up_proj.{part}"
    change(folder, tensors | {name: torch.ones(1)})
    with pytest.raises(InputError, match=f"is quantised.*{part}"):
        load_language_model(str(folder))


@pytest.mark.parametrize("kind", ["float8_e4m3fn", "float8_e5m2"])
def test_plain_8_bit_floats_are_read(folder, kind):
    tensors = load_file(folder / "model.safetensors")
    small = {
        name: value.to(getattr(torch, kind)) if "_proj" in name else value
        for name, value in tensors.items()
    }
    change(folder, small)
    model = load_language_model(str(folder), unstack_layers=False)
    found = leaf(model.params, "layers", "mlp", "up", "weight")[2]
    expected = tensors["model.layers.2.mlp.up_proj.weight"].numpy()
    np.testing.assert_array_equal(found, expected.astype(getattr(ml_dtypes, kind)).astype("f"))


def test_4_bit_floats_are_refused(folder):
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = torch.zeros(48, 16, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    change(folder, tensors)
    with pytest.raises(InputError, match=r"holds F4.*not quantised|up_proj.*has shape"):
        load_language_model(str(folder))
