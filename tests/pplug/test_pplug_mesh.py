"""Training a plug on meshes of two devices gives what one device gives."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pplug_world as world
import pytest
from test_pplug_train import started

from jaxalign import pplug
from jaxalign.pplug.store import history_store
from jaxalign.runs.artifact import flatten
from jaxalign.train.loop import LoopConfig
from jaxalign.train.mesh import MeshConfig

MESHES = """
import sys
from pathlib import Path
import numpy as np
import pplug_world as world
from test_pplug_mesh import meshed
meshed(Path(sys.argv[1]), {"data": (2, 1, 1), "fsdp": (1, 2, 1)})
"""


def meshed(folder: Path, meshes: dict) -> None:
    """What training on some meshes gives, as files."""
    data = world.histories(12)
    with history_store(folder / "store", world.encoder()) as store:
        plug = started(store, data=data)
        for name, sizes in meshes.items():
            config = world.config(
                mesh=MeshConfig(*sizes), loop=LoopConfig(epochs=1, batch_size=8, micro_batches=2)
            )
            result = pplug.train(plug, data, config, store=store)
            np.savez(folder / f"{name}.npz", **flatten(result.plug.trained))


@pytest.mark.slow
def test_a_mesh_trains_as_one_device(tmp_path):
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent), str(here.parent / "models")])
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2",
        "PYTHONPATH": path,
    }
    subprocess.run([sys.executable, "-c", MESHES, str(tmp_path)], env=environment, check=True)
    meshed(tmp_path, {"one": (1, 1, 1)})
    one = np.load(tmp_path / "one.npz")
    for name in ("data", "fsdp"):
        found = np.load(tmp_path / f"{name}.npz")
        for leaf in one.files:
            np.testing.assert_allclose(found[leaf], one[leaf], rtol=1e-3, atol=5e-4)
