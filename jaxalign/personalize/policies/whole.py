"""Whole models as policies: one of them, or the weighted sum of the parameters of several."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jaxalign.errors import InputError
from jaxalign.models.chat import Chat
from jaxalign.models.generate import GenerationArguments
from jaxalign.models.language import LanguageModel, describe, load_language_model
from jaxalign.models.params import Params
from jaxalign.models.resolve import resolve
from jaxalign.personalize.policies.adapters import check_weights

# How far weights may be off a sum of 1 and still do without the reference's parameters.
_SUM_TOLERANCE = 1e-6


class WholeModel(NamedTuple):
    """One policy with parameters of its own, as generation takes it.

    Attributes:
        params: that take the place of the reference's; None for the reference.
    """

    params: Params | None

    def arguments(self, policy: ArrayLike) -> GenerationArguments:
        """Return no arguments: the policy has no adapter."""
        return {}


@dataclass(frozen=True, eq=False)
class WholeModels:
    """A models of one architecture, read from their files one at a time.

    The policy of weights w has the parameters theta + sum_i w_i (theta_i - theta), where theta are
    those of the reference: one of the models where its weight is 1 and the others are 0, and a
    soup of several otherwise. Only one policy decodes at a time.

    Attributes:
        reference: the model that the policies are compared with.
        models: [A] folders or names of the models; folders of LoRA adapters are merged.
        digests: [A] SHA-256 of their weights.

    Source: Rame et al. 2023, https://arxiv.org/abs/2306.04488, whose soups are of whole models.
    """

    reference: LanguageModel = field(repr=False)
    models: tuple[str, ...]
    digests: tuple[str, ...]
    kind = "whole"
    options = None  # any weights
    prefix_tokens = 0
    one_at_a_time = True

    @property
    def size(self) -> int:
        """A, how many weights make a policy."""
        return len(self.models)

    @property
    def most_bytes(self) -> int:
        """Bytes of parameters held at most: the reference, a sum, and the model being added."""
        leaves = jax.tree.leaves(self.reference.params)
        return sum(2 * x.nbytes + x.size * _sum_dtype(x).itemsize for x in leaves)

    def prompt(self, prompt: str | Chat, weight: np.ndarray) -> str | Chat:
        """Return the prompt as it is: models do not read their weights."""
        return prompt

    def stacked(self, weights: ArrayLike) -> WholeModel:
        """Return the policy of weights [1, A], its parameters loaded.

        Raises:
            InputError: weights of another number or not finite, several policies, or a model whose
                files have changed.
        """
        rows = check_weights(weights, self.size)
        if len(rows) != 1:
            raise InputError(f"found {len(rows)} policies of whole models, expected one at a time.")
        used = np.flatnonzero(rows[0])
        if not len(used):
            return WholeModel(None)
        if len(used) == 1 and rows[0, used[0]] == 1:
            return WholeModel(self._params(int(used[0])))
        return WholeModel(self._soup(rows[0]))

    def _soup(self, weight: np.ndarray) -> Params:
        """The weighted sum of parameters, summed in place, leaf by leaf, in at least float32."""
        leaves, tree = jax.tree.flatten(self.reference.params)
        rest = float(1 - weight.sum())
        rest = rest if abs(rest) > _SUM_TOLERANCE else 0.0
        total = [rest * leaf.astype(_sum_dtype(leaf)) for leaf in leaves]
        for number in np.flatnonzero(weight):
            own, share = jax.tree.leaves(self._params(int(number))), float(weight[number])
            for place, leaf in enumerate(own):
                total[place] += share * leaf.astype(_sum_dtype(leaf))
            del own  # before the next model is loaded
        for place, leaf in enumerate(leaves):
            total[place] = total[place].astype(leaf.dtype)
        soup: Params = jax.tree.unflatten(tree, total)
        return soup

    def _params(self, number: int) -> Params:
        name, config = self.models[number], self.reference.config
        return load_language_model(
            name, config.dtype, sha256=self.digests[number], unstack_layers=config.unstacked
        ).params


def _sum_dtype(leaf: jax.Array) -> np.dtype:
    return jnp.promote_types(leaf.dtype, jnp.float32)


def open_models(reference: LanguageModel, names: Sequence[str]) -> WholeModels:
    """Return whole models as policies; their parameters are not read yet.

    Args:
        reference: the base model.
        names: A folders or names of models.

    Raises:
        InputError: a model cannot be found, or has another architecture or vocabulary than the
            reference.
    """
    digests = []
    for name in names:
        found = resolve(name)
        model = describe(found, name, str(reference.config.dtype))
        if model.config != replace(reference.config, unstacked=model.config.unstacked):
            raise InputError(
                f"{name}: found a model of another architecture than {reference.name}, expected "
                "the same sizes and switches; give models that were trained from one base."
            )
        if len(model.tokenizer) != len(reference.tokenizer):
            raise InputError(
                f"{name}: found another vocabulary than that of {reference.name}, expected the "
                "same; give models that were trained from one base."
            )
        digests.append(found.sha256)
    return WholeModels(reference, tuple(names), tuple(digests))
