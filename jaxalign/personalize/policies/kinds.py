"""The kinds of language-model policies that a portfolio can be made of."""

import hashlib

import numpy as np

from jaxalign.models import lora
from jaxalign.personalize.policies.adapters import Adapter
from jaxalign.personalize.policies.conditioned import Conditioned
from jaxalign.personalize.policies.mixing import Mixing
from jaxalign.personalize.policies.separate import Separate
from jaxalign.personalize.policies.soups import Soups
from jaxalign.personalize.policies.whole import WholeModels
from jaxalign.runs.artifact import Tree, flatten

Kind = Soups | Mixing | Separate | Conditioned | WholeModels


def adapter_digest(adapter: Adapter) -> str:
    """The sha256 of what an adapter does, in hexadecimal: its scaled factors in float32."""
    config, tree = adapter
    return _hash(lora.scaled(tree, config))


def identity(policies: Kind) -> list[str]:
    """Return what identifies policies: digests of adapters and conditioning, or of models."""
    if isinstance(policies, WholeModels):
        return list(policies.digests)
    found = [adapter_digest(adapter) for adapter in policies.adapters]
    if isinstance(policies, Conditioned):
        policy = policies.policy
        found += [policy.conditioning, *policy.names, _hash(policy.trained.get("token", {}))]
    return found


def _hash(tree: Tree) -> str:
    found = hashlib.sha256()
    for name, array in sorted(flatten(tree).items()):
        found.update(f"{name} {array.shape}\n".encode())
        found.update(np.ascontiguousarray(array, "<f4").tobytes())
    return found.hexdigest()
