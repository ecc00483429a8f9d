"""Exported personas on a real vLLM: the greedy answers beside those of the library.

The whole prompt with its soft tokens is sent as `prompt_embeds`, as `jaxalign pplug export` writes
it. vLLM runs in float32, with the language model of the plug.
"""

import argparse
import base64
import contextlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import httpx
import jax

from benchmarks import harness
from benchmarks.vllm_server import check_vllm, vllm_server, wait_for_vllm
from jaxalign.data.histories import Histories
from jaxalign.data.torch_files import tensor_bytes
from jaxalign.experiments.pplug.ask import RunPlug, embed_question, open_plug
from jaxalign.experiments.pplug.data import read_parts, sample_evenly
from jaxalign.files import write_json
from jaxalign.models import save_language_model
from jaxalign.models.sampling import Sampling
from jaxalign.pplug import generate_answers
from jaxalign.pplug.store import history_store
from jaxalign.progress import Progress
from jaxalign.runs.tables import markdown_table

_NAME = "base"


class ComparedAnswer(TypedDict):
    """The answers to one question with its persona."""

    id: str
    jaxalign: str
    vllm: str
    equal: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--vllm", type=Path, required=True, help="the program `vllm`")
    parser.add_argument("--trained", type=Path, required=True, help="run of `pplug train`")
    parser.add_argument("--samples", type=int, default=8, help="questions of the test part")
    parser.add_argument("--tokens", type=int, default=8, help="most tokens of an answer")
    parser.add_argument("--work", type=Path, help="folder of the base model, which is kept")


def run(arguments: argparse.Namespace) -> int:
    """Write the answers of both sides, and whether all are equal.

    Raises:
        InputError: There is no such program or run.
    """
    check_vllm(arguments.vllm)
    opened = open_plug(arguments.trained)
    settings = opened.run.config.data
    part = read_parts(opened.run.sources.data, settings, ("test",))["test"]
    samples = sample_evenly(part, arguments.samples, settings.seed)
    result = harness.started("pplug_vllm", opened.run.config.pplug.compute)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        base = (arguments.work or folder) / _NAME
        if not base.exists():
            save_language_model(base, opened.plug.model)
        command = [
            str(arguments.vllm), "serve", str(base), "--served-model-name", _NAME,
            "--host", "127.0.0.1", "--enable-prompt-embeds",
        ]  # fmt: skip
        log = folder / "vllm.log"
        process, address = stack.enter_context(vllm_server(arguments.vllm, command, log))
        own = own_answers(opened, samples, arguments.tokens)
        with Progress().waiting("vLLM starts"):
            result["vllm"] = wait_for_vllm(process, address, log)
        client = stack.enter_context(httpx.Client(base_url=address, timeout=600))
        rows = compare(opened, samples, own, client, arguments.tokens)
    equal = sum(row["equal"] for row in rows)
    result["equal"], result["answers"] = equal, rows
    write_json(arguments.out / "result.json", result)
    cells = [[row["id"], repr(row["jaxalign"]), repr(row["vllm"])] for row in rows]
    print(markdown_table(["question", "jaxalign", "vLLM"], cells, left=3))
    print(f"{equal} of {len(rows)} answers are equal")
    return 0 if equal == len(rows) else 1


def own_answers(opened: RunPlug, samples: Histories, tokens: int) -> list[str]:
    """Return the greedy answers of the library."""
    with history_store(opened.run.store, opened.plug.encoder) as store:
        found = generate_answers(
            opened.plug, samples, Sampling(max_tokens=tokens, temperature=0.0), jax.random.key(0),
            store=store, progress=False,
        )  # fmt: skip
    return [one.text for one in found]


def compare(
    opened: RunPlug, samples: Histories, own: Sequence[str], client: httpx.Client, tokens: int
) -> list[ComparedAnswer]:
    """Return the library's answers beside those of a server that takes `prompt_embeds`.

    Args:
        opened: The plug.
        samples: N questions with histories.
        own: N answers of the library.
        client: Of the server.
        tokens: Most tokens of an answer.
    """
    rows: list[ComparedAnswer] = []
    for row, (sample, expected) in enumerate(zip(samples.samples, own, strict=True)):
        embeddings = tensor_bytes(embed_question(opened, samples.take([row])))
        body = {
            "model": _NAME, "temperature": 0, "max_tokens": tokens,
            "prompt_embeds": base64.b64encode(embeddings).decode(),
        }  # fmt: skip
        found = client.post("completions", json=body)
        found.raise_for_status()
        text = str(found.json()["choices"][0]["text"])
        rows.append(
            {"id": sample.id, "jaxalign": expected, "vllm": text, "equal": text == expected}
        )
    return rows
