"""Peak memory of one side of `python -m benchmarks palm`, in a process of its own."""

import gc
import json
import sys
from pathlib import Path
from typing import Any

from jaxalign.kernels.scalarize.shapes import ROUTES, SWEEPS


def main() -> int:
    """Prints the bytes beyond the inputs, XLA's compilation included; the peak, not what stays."""
    part, side, size, chunk = sys.argv[1:]
    call = _call(part, side, size, int(chunk))
    gc.collect()
    before = _start()
    result = call()
    print(json.dumps(_peak() - before))
    del result
    return 0


def _call(part: str, side: str, size: str, chunk: int) -> Any:
    from benchmarks import harness, palm

    sweep = part == "sweep"
    arrays: Any = palm.world(SWEEPS[size]) if sweep else palm.crowd(ROUTES[size])
    if side == "numpy":
        return lambda: palm.numpy_sweep(*arrays) if sweep else palm.numpy_route(*arrays)
    if side == "jaxalign":
        import jax.numpy as jnp

        from jaxalign import palm as ours

        held = [jnp.asarray(array) for array in arrays]
        held[0].block_until_ready()
        del arrays
        if sweep:
            return lambda: harness.wait(ours.sweep(*held, palm.BETA))
        return lambda: harness.wait(ours.best_member(*held))
    import torch

    place = "cuda" if torch.cuda.is_available() else "cpu"
    tensors = [torch.from_numpy(array).to(place) for array in arrays]
    function: Any = palm.torch_sweep if sweep else palm.torch_route

    def run() -> Any:
        with torch.inference_mode():
            return harness.wait(function(*tensors, chunk))

    return run


def _device() -> str:
    import jax

    if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
        return "torch"
    return "jax" if jax.default_backend() != "cpu" else "host"


def _start() -> int:
    """Bytes in use, the peak set back to them."""
    where = _device()
    if where == "torch":
        sys.modules["torch"].cuda.reset_peak_memory_stats()
        return int(sys.modules["torch"].cuda.memory_allocated())
    if where == "jax":
        import jax

        return int(jax.devices()[0].memory_stats()["bytes_in_use"])
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak() -> int:
    where = _device()
    if where == "torch":
        return int(sys.modules["torch"].cuda.max_memory_allocated())
    if where == "jax":
        import jax

        return int(jax.devices()[0].memory_stats()["peak_bytes_in_use"])
    return _status("VmHWM")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name + ":"))


if __name__ == "__main__":
    sys.exit(main())
