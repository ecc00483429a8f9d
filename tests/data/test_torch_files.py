import os
import pickle
import zipfile
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest
import torch

from jaxalign import data
from jaxalign.data.torch_files import tensor_bytes
from jaxalign.errors import InputError


def refused(path, *parts):
    with pytest.raises(InputError) as caught:
        data.read_pt(path)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def forged(path, payload, entries=()):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", payload)
        for name, content in entries:
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize(
    ("torch_type", "numpy_type"),
    [
        ("float16", np.float16),
        ("bfloat16", ml_dtypes.bfloat16),
        ("float32", np.float32),
        ("float64", np.float64),
        ("int64", np.int64),
        ("bool", np.bool_),
    ],
)
def test_every_type_comes_back_bit_for_bit(tmp_path, torch_type, numpy_type):
    tensor = (torch.arange(24).reshape(4, 6) - 7).to(getattr(torch, torch_type))
    torch.save(tensor, tmp_path / "a.pt")
    read = data.read_pt(tmp_path / "a.pt")
    assert read.dtype == numpy_type
    np.testing.assert_array_equal(read.astype(np.float64), tensor.double().numpy())


def test_views_share_and_keep_sizes_strides_and_offsets(tmp_path):
    whole = torch.arange(60, dtype=torch.float32).reshape(5, 12)
    views = {
        "transposed": whole.T,
        "part": whole[1:4, 2::3],
        "scalar": whole[2, 3],
        "empty": whole[:0],
        "spread": whole[:1].expand(3, 12),
    }
    torch.save(views, tmp_path / "a.pt")
    read = data.read_pt(tmp_path / "a.pt")
    for name, view in views.items():
        assert read[name].shape == tuple(view.shape)
        np.testing.assert_array_equal(read[name], view.numpy())
    with pytest.raises(ValueError, match="read-only"):
        read["part"][0] = 1


def test_nested_containers_and_parameters(tmp_path):
    linear = torch.nn.Linear(3, 2)
    torch.save(
        {"model": linear.state_dict(), "own": [linear.weight, 4, "x", None]}, tmp_path / "a.pt"
    )
    read = data.read_pt(str(tmp_path / "a.pt"))
    assert isinstance(read["model"], OrderedDict)
    np.testing.assert_array_equal(read["model"]["bias"], linear.bias.detach().numpy())
    np.testing.assert_array_equal(read["own"][0], linear.weight.detach().numpy())
    assert read["own"][1:] == [4, "x", None]


class Hostile:
    def __init__(self, call, *args):
        self.reduced = (call, args)

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("call", [os.system, eval, getattr, pickle.loads])
def test_a_pickle_that_calls_anything_else_is_refused_and_not_run(tmp_path, call):
    proof = tmp_path / "proof"
    payload = pickle.dumps(Hostile(call, f"open({str(proof)!r}, 'w')"), protocol=2)
    refused(forged(tmp_path / "a.pt", payload), "asks for", call.__name__)
    assert not proof.exists()


def test_nothing_handed_to_a_pickle_can_be_altered(tmp_path):
    for state in (b"}X\x01\x00\x00\x00aK\x01s", b"N}X\x01\x00\x00\x00aK\x01s\x86"):
        for target in (b"ctorch\nFloatStorage\n", b"ccollections\nOrderedDict\n"):
            forged(tmp_path / "a.pt", b"\x80\x02" + target + state + b"b.")
            with pytest.raises(InputError, match=r"a\.pt"):
                data.read_pt(tmp_path / "a.pt")
    assert not hasattr(OrderedDict, "a")


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (torch.zeros(2, dtype=torch.int32), "torch.IntStorage"),
        (torch.zeros(2, dtype=torch.complex64), "torch.ComplexFloatStorage"),
        (torch.zeros(2).to_sparse(), "torch._utils._rebuild_sparse_tensor"),
        (torch.float32, "torch.float32"),
        (np.zeros(2), "multiarray"),
    ],
)
def test_other_content_is_refused_by_name(tmp_path, value, named):
    torch.save(value, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", named, "expected only tensors")


def test_a_tensor_that_reaches_outside_its_storage_is_refused(tmp_path):
    torch.save(torch.arange(6.0).reshape(2, 3), tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        payload, values = archive.read("a/data.pkl"), archive.read("a/data/0")
    entries = [("x/data/0", values)]
    np.testing.assert_array_equal(
        data.read_pt(forged(tmp_path / "b.pt", payload, entries)), [[0, 1, 2], [3, 4, 5]]
    )
    # The size (2, 3) becomes (2, 9).
    wide = payload.replace(b"K\x02K\x03\x86", b"K\x02K\x09\x86", 1)
    assert wide != payload
    refused(forged(tmp_path / "c.pt", wide, entries), "(2, 9)", "does not fit")
    refused(forged(tmp_path / "d.pt", payload, [("x/data/0", values[:-4])]), "20 bytes", "6 values")
    refused(forged(tmp_path / "e.pt", payload), "refers to `x/data/0`")
    big = [*entries, ("x/byteorder", "big")]
    refused(forged(tmp_path / "f.pt", payload, big), "big-endian")


def test_files_that_are_no_tensors(tmp_path):
    refused(tmp_path / "no.pt", "does not exist")
    (tmp_path / "a.pt").write_bytes(b"hello")
    refused(tmp_path / "a.pt", "not a zip file")
    torch.save(torch.zeros(2), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    refused(tmp_path / "old.pt", "not a zip file", "torch 1.6")
    with zipfile.ZipFile(tmp_path / "b.pt", "w") as archive:
        archive.writestr("readme", "x")
    refused(tmp_path / "b.pt", "0 entries data.pkl")
    refused(forged(tmp_path / "c.pt", b"\x80\x02garbage"), "damaged")
    refused(forged(tmp_path / "d.pt", b""), "damaged")


@pytest.mark.parametrize("kind", ["float16", "float32", "float64", "int64", "bool"])
@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 5), (7,), (), (0, 3)])
def test_torch_reads_what_is_written_without_it(tmp_path, kind, shape):
    values = np.random.default_rng(0).normal(size=shape).astype(kind)
    path = tmp_path / "tensor.pt"
    path.write_bytes(tensor_bytes(values))
    found = torch.load(path, weights_only=True)
    np.testing.assert_array_equal(found.numpy(), values)
    assert (str(found.dtype), found.shape) == (f"torch.{kind}", shape)
    np.testing.assert_array_equal(data.read_pt(path), values)


def test_bfloat16_is_written_too_and_other_types_are_refused(tmp_path):
    values = np.arange(6, dtype=ml_dtypes.bfloat16).reshape(2, 3)
    path = tmp_path / "tensor.pt"
    path.write_bytes(tensor_bytes(values.T))
    found = torch.load(path, weights_only=True)
    assert found.dtype == torch.bfloat16
    np.testing.assert_array_equal(found.float().numpy(), values.T.astype(np.float32))
    with pytest.raises(InputError, match="found values of int32, expected one of"):
        tensor_bytes(np.arange(3, dtype=np.int32))
