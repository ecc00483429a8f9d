"""The kinds of language-model policies that a portfolio can be made of."""

import hashlib
from typing import Any

import numpy as np

from jaxalign.models import lora
from jaxalign.models.soups import Adapter, Mixing, Soups, Tuned
from jaxalign.personalize.conditioned import Conditioned
from jaxalign.runs.artifact import flatten

Kind = Soups | Mixing | Tuned | Conditioned


def digest(adapter: Adapter) -> str:
    """The sha256 of what an adapter does, in hexadecimal: its scaled factors in float32."""
    config, tree = adapter
    return _hash(lora.scaled(tree, config))


def identity(policies: Kind) -> list[str]:
    """What tells policies of a kind from others: digests of adapters, and how they are told."""
    found = [digest(adapter) for adapter in policies.adapters]
    if isinstance(policies, Conditioned):
        told = policies.policy
        found += [told.conditioning, *told.names, _hash(told.trained.get("token", {}))]
    return found


def _hash(tree: dict[str, Any]) -> str:
    found = hashlib.sha256()
    for name, array in sorted(flatten(tree).items()):
        found.update(f"{name} {array.shape}\n".encode())
        found.update(np.ascontiguousarray(array, "<f4").tobytes())
    return found.hexdigest()
