"""vLLM beside the other sides of `python -m benchmarks models`, in a process of its own.

It serves a model of the same shapes with random weights, takes prompts as token ids and runs on
the processors of this process, one thread each. Its start is not measured; what a request costs
besides the model, such as HTTP and scheduling, is.
"""

import contextlib
import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import jax.numpy as jnp
import numpy as np

from benchmarks import sizes
from benchmarks.models import Complete, torch_model
from benchmarks.vllm_server import vllm_server, wait_for_vllm
from jaxalign.progress import Progress

_NAME = "base"
_SECONDS = 600.0  # of the slowest request


@contextlib.contextmanager
def started_vllm(
    program: Path, size: str, dtype: str, batch: int, tokens: int
) -> Iterator[tuple[str, Complete]]:
    """Serve a random model, and yield vLLM's version and what completes prompts with it.

    Args:
        program: `vllm` in its own environment.
        size: A key of `sizes.SIZES`.
        dtype: Of weights, computation and cache.
        batch: Most rows of a request.
        tokens: Most tokens of a row, prompt and answer.

    Raises:
        RuntimeError: vLLM does not start.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        torch_model(size, dtype)[0].save_pretrained(folder / "model")
        command = [str(program), "serve", str(folder / "model"), "--served-model-name", _NAME]
        options = [
            "--host", "127.0.0.1", "--dtype", dtype, "--max-model-len", str(tokens),
            "--max-num-seqs", str(batch),
            "--skip-tokenizer-init",  # prompts and answers are token ids
            "--no-enable-prefix-caching",  # every call sends the same prompts
        ]  # fmt: skip
        log = folder / "vllm.log"
        server = vllm_server(
            program, command, log, options=options,
            variables=variables(program, size, dtype, batch * tokens),
        )  # fmt: skip
        process, address = stack.enter_context(server)
        with Progress().waiting("vLLM starts"):
            version = wait_for_vllm(process, address, log)
        client = stack.enter_context(httpx.Client(base_url=address, timeout=_SECONDS))
        yield version, lambda prompts, new: complete(client, prompts, new)


def variables(program: Path, size: str, dtype: str, cached: int) -> dict[str, str]:
    """Return the environment of a vLLM with a thread for each processor of this process.

    Args:
        program: `vllm`, whose own OpenMP is taken where it has one, as vLLM recommends.
        size: A key of `sizes.SIZES`.
        dtype: Of the cache.
        cached: Tokens whose keys and values have to fit.
    """
    room = cached * sizes.cached_numbers(sizes.SIZES[size]) * jnp.dtype(dtype).itemsize
    openmp = program.absolute().parents[1] / "lib" / "libiomp5.so"
    return {
        **({"LD_PRELOAD": str(openmp)} if openmp.is_file() else {}),
        "VLLM_CPU_KVCACHE_SPACE": str(math.ceil(1 + room / 2**30)),  # GiB; one for its blocks
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, sorted(os.sched_getaffinity(0)))),
    }


def complete(client: httpx.Client, prompts: np.ndarray, new: int) -> None:
    """Complete prompts greedily, all in one request.

    Args:
        client: Of the server.
        prompts: Token ids [B, T].
        new: Tokens of each answer.

    Raises:
        RuntimeError: The server is gone or refuses, or an answer has another length.
    """
    body = {
        "model": _NAME, "prompt": prompts.tolist(), "temperature": 0, "ignore_eos": True,
        "max_tokens": new, "return_token_ids": True,
    }  # fmt: skip
    try:
        found = client.post("completions", json=body)
    except httpx.HTTPError as error:
        raise RuntimeError(f"vLLM does not answer: {error!r}") from error
    if found.status_code != httpx.codes.OK:
        raise RuntimeError(f"vLLM answered with status {found.status_code}: {found.text[:300]}")
    lengths = [len(choice["token_ids"]) for choice in found.json()["choices"]]
    if lengths != [new] * len(prompts):
        raise RuntimeError(
            f"vLLM returned answers of {lengths} tokens; expected {len(prompts)} of {new}."
        )
