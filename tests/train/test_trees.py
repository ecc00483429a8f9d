"""Trees on disk: back as they were, refused in one sentence when damaged."""

import numpy as np
import pytest

from jaxalign.errors import InputError
from jaxalign.train.files import load_tree, save_tree


def test_a_tree_comes_back(tmp_path):
    tree = {"a": {"b": np.arange(3), "c": np.ones((2, 2), np.float32)}, "d": np.float64(2.0)}
    save_tree(tmp_path / "t.npz", tree)
    found = load_tree(tmp_path / "t.npz")
    np.testing.assert_array_equal(found["a"]["b"], tree["a"]["b"])
    assert found["a"]["c"].dtype == np.float32
    assert found["d"] == 2.0
    assert [path.name for path in tmp_path.iterdir()] == ["t.npz"]


@pytest.mark.parametrize("kept", [0, 10, 300, -30])
def test_a_damaged_file_is_refused(tmp_path, kept):
    path = tmp_path / "t.npz"
    save_tree(path, {"a": np.arange(100.0)})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"t\.npz is damaged"):
        load_tree(path)
