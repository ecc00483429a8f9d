"""A plug learns whom it answers, where only the user decides; what knows no user guesses."""

import jax
import numpy as np
import pplug_world as world
import pytest

from jaxalign import pplug
from jaxalign.experiments.pplug.baselines import shuffle_histories
from jaxalign.models.sampling import Sampling
from jaxalign.pplug.config import PersonaConfig
from jaxalign.pplug.store import history_store
from jaxalign.train.loop import LoopConfig
from jaxalign.train.optimiser import OptimiserConfig

pytestmark = [
    pytest.mark.slow,
]
SETTINGS = Sampling(max_tokens=1, temperature=0.0)


def accuracy(plug, data, store):
    key = jax.random.key(0)
    found = pplug.generate_answers(
        plug, data, SETTINGS, key, store=store, batch_size=120, progress=False
    )
    right = [one.text.strip() == gold for one, gold in zip(found, data.outputs, strict=True)]
    return float(np.mean(right))


def trained(seed, persona, data, learned_from, store):
    model, encoder = world.told_by_its_second_token(), world.encoder()
    key = jax.random.key(seed)
    plug = pplug.init_plug(key, model, encoder, persona, world.TEXT, data, store)
    config = world.config(
        persona,
        loop=LoopConfig(epochs=12, batch_size=32, checkpoint_every=1000, seed=seed),
        optimiser=OptimiserConfig(rate=1e-2, schedule="linear", warmup=0.05, weight_decay=1e-4),
    )
    return pplug.train(plug, learned_from, config, store=store).plug


def test_only_the_user_decides(tmp_path):
    chance = 1 / len(world.TASTES)
    rows = []
    with history_store(tmp_path, world.encoder()) as store:
        for seed in range(3):
            data = world.histories(320, seed=seed, questions=1, shortest=4)
            # Users that training has not seen.
            test = world.histories(60, seed=100 + seed, shortest=4)
            own = trained(seed, PersonaConfig(), data, data, store)
            task = trained(seed, PersonaConfig(source="none"), data, data, store)
            strangers = shuffle_histories(test, seed)
            rows.append(
                {
                    "persona": accuracy(own, test, store),
                    "another's persona": accuracy(own, strangers, store),
                    "task token only": accuracy(task, test, store),
                }
            )
            if not seed:
                others = trained(seed, PersonaConfig(), data, shuffle_histories(data, seed), store)
                rows[-1]["trained on others"] = accuracy(others, strangers, store)
    print(rows)
    for row in rows:
        assert row.pop("persona") >= 0.95, rows
        for name, value in row.items():
            # Four standard errors of 120 answers at chance.
            assert abs(value - chance) < 0.16, (name, rows)
