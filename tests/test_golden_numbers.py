"""Every file of reference numbers is there, whole, and described."""

import hashlib
import re

import pytest
from golden_numbers import FOLDER, golden

# The first digits of each file's SHA-256: reference numbers are never adapted to the code.
DIGESTS = {
    "bayes/sd1": "87488452da934c43",
    "bayes/sd4": "641b74886e60d2a2",
    "mrm/k2_hard_tail": "87829ae9b8f5fd94",
    "mrm/k2_one_step": "670444077cfc1217",
    "mrm/k8_bias_ten_steps": "6491d77c099e8b45",
    "mrm/k8_five_steps": "9d8f5dc9c74aa81a",
    "mrm/two_layers_bias": "2453b70d469896a4",
    "palm/world_d2": "dc805ef2121fc82f",
    "palm/world_d3": "23d4845cbac0c2fd",
}


def test_no_file_is_missing_or_unknown():
    files = {str(path.relative_to(FOLDER).with_suffix("")) for path in FOLDER.rglob("*.npz")}
    assert files == set(DIGESTS)


@pytest.mark.parametrize("name", DIGESTS)
def test_each_file_is_the_one_that_was_made(name):
    found = hashlib.sha256((FOLDER / f"{name}.npz").read_bytes()).hexdigest()
    assert found[:16] == DIGESTS[name]


@pytest.mark.parametrize("name", DIGESTS)
def test_the_readme_says_what_each_array_is(name):
    text = (FOLDER / "README.md").read_text()
    kind = name.partition("/")[0]
    section = text[text.rindex(f"`{kind}/") :].partition("\n\n`")[0]
    for key in golden(name):
        known = re.sub(r"layer\d_(kernel|bias)", "layer{i}_kernel", key)
        assert f"`{known}`" in section or key.startswith("grad_"), key
