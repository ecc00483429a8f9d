"""`jaxalign.moc` at its edges, see `moc_table`."""

import jax.numpy as jnp
import pytest
from edge_table import cases, check
from moc_table import ADVANTAGES, MASK, MOC, RATIO

from jaxalign import moc
from jaxalign.errors import InputError


@pytest.mark.parametrize(("name", "probe"), cases(MOC))
def test_edge(name, probe):
    check(MOC[name], probe)


def test_advantages_that_count_are_finite():
    advantages = jnp.asarray(ADVANTAGES).at[1, 0].set(jnp.nan)
    with pytest.raises(InputError) as refused:
        moc.policy_directions(RATIO, advantages, MASK, clip=0.5)
    assert str(refused.value) == (
        "advantages[1, 0] is nan; expected finite numbers where the mask is above 0: correct it, "
        "or set the mask to 0 there."
    )
