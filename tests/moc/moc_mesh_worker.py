"""One step on meshes of virtual devices, in a process of its own: `python moc_mesh_worker.py OUT`.

The number of devices is fixed when jax starts.
"""

import json
import os
import sys
from pathlib import Path

os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
)
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import moc_world as world
import numpy as np

from jaxalign import moc
from jaxalign.moc.prompt_sampler import PromptSampler
from jaxalign.moc.step import init_train_state, make_programs, make_step
from jaxalign.train.mesh import (
    MeshConfig,
    batch_sharding,
    make_mesh,
    param_shardings,
    state_shardings,
)

jax.config.update("jax_numpy_rank_promotion", "raise")
MESHES = {"one": (1, 1, 1), "data": (2, 1, 1), "fsdp": (1, 4, 1), "tensor": (1, 2, 2)}
config = world.config(micro_batches=2, epochs=2, conditioning="token")
policy = moc.init_policy(jax.random.key(0), world.language_model(), world.NAMES, config)
batch = PromptSampler(policy, world.PROMPTS, config).draw(0).arrays
found = {}
for name, sizes in MESHES.items():
    mesh = make_mesh(MeshConfig(*sizes), jax.devices()[: int(np.prod(sizes))])
    decoder = config.trunk.decoder(policy.model.config)
    programs = make_programs(config, decoder, world.NAMES, (world.STOP,), mesh)
    state = init_train_state(jax.random.key(0), jax.tree.map(np.array, policy.trained), config)
    state = jax.device_put(state, state_shardings(state, mesh, decoder))
    frozen = jax.device_put(
        policy.model.params, param_shardings(policy.model.params, mesh, decoder)
    )
    rows = batch_sharding(mesh)
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    placed = {
        key: jax.device_put(value, whole if key == "preferences" else rows)
        for key, value in batch.items()
    }
    state, metrics = jax.jit(make_step(programs, world.reward()))(state, frozen, placed)
    total = sum(float(np.abs(leaf).sum()) for leaf in jax.tree.leaves(state.train.params))
    found[name] = {key: float(value) for key, value in metrics.items()} | {"total": total}
Path(sys.argv[1]).write_text(json.dumps(found))
