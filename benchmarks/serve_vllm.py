"""A real vLLM behind `jaxalign serve`: members answer as in jaxalign, and users are learned.

The members are an adapter of SmolLM2-135M-Instruct and the soup of two; the adapters are random, as
if they had been trained, and the members' rewards are stated. What is checked is that the exported
adapters do what the members do, and that the service in front of vLLM learns, goes on after vLLM
was killed and started again, and restarts itself.
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import jax

from benchmarks import harness
from benchmarks.loop_http import running
from benchmarks.serve_members import save_members
from benchmarks.vllm_server import check_vllm, free_port, vllm_server, wait_for_vllm
from jaxalign.demo.answers import read_answers
from jaxalign.files import write_json
from jaxalign.models import LanguageModel, load_language_model, save_language_model
from jaxalign.models.sampling import Sampling
from jaxalign.personalize import answer_as
from jaxalign.personalize.saved import open_policies
from jaxalign.personalize.vllm_export import export_vllm
from jaxalign.progress import Progress

MODEL = "SmolLM2-135M-Instruct"
EDITS = {"brief": "Yes.", "list": "- One step\n- Another step\n- A third step"}
"""What each user makes of every answer."""
StartVllm = Callable[[], AbstractContextManager[tuple[subprocess.Popen[bytes], str]]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--vllm", type=Path, required=True, help="the program `vllm`")
    parser.add_argument("--prompts", type=int, default=4, help="whose greedy answers are compared")
    parser.add_argument("--tokens", type=int, default=24, help="most tokens of an answer")
    parser.add_argument("--edits", type=int, default=6, help="answers that each user edits")
    parser.add_argument("--work", type=Path, help="folder of the base model, which is kept")


def run(arguments: argparse.Namespace) -> int:
    """Export, serve and send requests, and write what was seen.

    Raises:
        InputError: there is no such program.
    """
    check_vllm(arguments.vllm)
    result: dict[str, Any] = {
        "benchmark": "serve_vllm",
        "machine": harness.machine(),
        "settings": {name: getattr(arguments, name) for name in ("prompts", "tokens", "edits")},
    }
    with contextlib.ExitStack() as stack:
        work = arguments.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        base = work / "base"
        if not base.exists():
            save_language_model(base, load_language_model(MODEL))
        model = load_language_model(str(base))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        portfolio, exported = folder / "portfolio", folder / "vllm"
        save_members(portfolio, model)
        export_vllm(open_policies(portfolio, None), exported)
        log, command = folder / "vllm.log", ["sh", str(exported / "start_vllm.sh")]
        start = partial(vllm_server, arguments.vllm, command, log, free_port())
        with start() as (process, address):
            own = _own_answers(portfolio, model, arguments)
            begun = time.perf_counter()
            with Progress().waiting("vLLM starts"):
                result["vllm"] = wait_for_vllm(process, address, log)
            result["vllm_waited_seconds"] = time.perf_counter() - begun
            result["greedy"] = _compare(own, exported, address, arguments)
            result["users"] = asyncio.run(_ask(portfolio, process, address, start, log, arguments))
    write_json(arguments.out / "result.json", result)
    print(_table(result))
    return 0 if _holds(result) else 1


def _prompts() -> list[str]:
    return list(read_answers().prompts)


def _own_answers(
    portfolio: Path, model: LanguageModel, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Greedy answers of each member by the library."""
    saved = open_policies(portfolio, None)
    prompts = _prompts()[-arguments.prompts :]
    numbers = [number for number in range(len(saved.weights)) for _ in prompts]
    repeated = prompts * len(saved.weights)
    completions = answer_as(
        model, saved.adapt(model), saved.weights, numbers,
        [[{"role": "user", "content": prompt}] for prompt in repeated],
        Sampling(max_tokens=arguments.tokens, temperature=0.0), jax.random.key(0),
    )  # fmt: skip
    return [
        {"number": number, "model": saved.names[number], "prompt": prompt, "jaxalign": one.text}
        for number, prompt, one in zip(numbers, repeated, completions, strict=True)
    ]


def _compare(
    own: list[dict[str, Any]], exported: Path, address: str, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """The same answers by the names of the members on the server."""
    served = json.loads((exported / "routing.json").read_text())["served_base"]
    rows = []
    with httpx.Client(base_url=address, timeout=600) as client:
        for row in own:
            name = row["model"] if row["number"] else served
            message = {"role": "user", "content": row["prompt"]}
            body = {"model": name, "messages": [message], "temperature": 0}
            found = client.post("chat/completions", json={**body, "max_tokens": arguments.tokens})
            found.raise_for_status()
            text = found.json()["choices"][0]["message"]["content"]
            rows.append({**row, "model": name, "text": text, "equal": text == row["jaxalign"]})
    return rows


async def _ask(
    portfolio: Path, vllm: subprocess.Popen[bytes], address: str, start: StartVllm, log: Path,
    arguments: argparse.Namespace,
) -> list[dict[str, Any]]:  # fmt: skip
    """Let two users edit answers; then kill vLLM, and the service, and start each again."""
    options = ("--portfolio", str(portfolio), "--strategy", "member")
    prompts = _prompts()
    found = []
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        async with (
            running(folder, address, 2, *options) as (service, process),
            httpx.AsyncClient(base_url=service, timeout=600) as client,
        ):
            listed = (await client.get("/v1/models")).json()["data"]
            for user, edit in EDITS.items():
                first = await _answer(client, user, prompts[0], arguments.tokens)
                for prompt in prompts[: arguments.edits]:
                    answer = await _answer(client, user, prompt, arguments.tokens)
                    feedback = {"response_id": answer["jaxalign"]["answers"][0], "user": user}
                    taken = await client.post("/v1/feedback", json={**feedback, "edited": edit})
                    taken.raise_for_status()
                last = await _answer(client, user, prompts[-1], arguments.tokens)
                taste = (await client.get("/v1/user", params={"id": user})).json()
                found.append({
                    "user": user, "models": [one["id"] for one in listed],
                    "before": first["jaxalign"], "after": last["jaxalign"],
                    "text": last["choices"][0]["message"]["content"],
                    "rewards": taste["rewards"],
                })  # fmt: skip
            os.killpg(vllm.pid, signal.SIGKILL)
            vllm.wait()
            for row in found:
                row["status_while_down"] = await _status(client, row["user"], prompts[-1])
            again, _ = stack.enter_context(start())
            with Progress().waiting("vLLM starts again"):
                await asyncio.to_thread(wait_for_vllm, again, address, log)
            for row in found:
                answer = await _answer(client, row["user"], prompts[-1], arguments.tokens)
                row["after_vllm"] = answer["jaxalign"]
            os.kill(process, signal.SIGKILL)
            await asyncio.sleep(1)  # until the loop has seen that it ended
        async with (
            running(folder, address, 2, *options) as (service, _),
            httpx.AsyncClient(base_url=service, timeout=600) as client,
        ):
            for row in found:
                user = row["user"]
                again = await _answer(client, user, prompts[-1], arguments.tokens)
                taste = (await client.get("/v1/user", params={"id": user})).json()
                row["restarted"] = again["jaxalign"]
                row["same_posterior"] = taste["rewards"] == row["rewards"]
    return found


async def _status(client: httpx.AsyncClient, user: str, prompt: str) -> int:
    body = {"model": "auto", "messages": [{"role": "user", "content": prompt}], "user": user}
    return (await client.post("/v1/chat/completions", json=body)).status_code


async def _answer(client: httpx.AsyncClient, user: str, prompt: str, tokens: int) -> dict[str, Any]:
    message = {"role": "user", "content": prompt}
    body = {"model": "auto", "messages": [message], "user": user, "max_tokens": tokens}
    found = await client.post("/v1/chat/completions", json=body)
    found.raise_for_status()
    reply: dict[str, Any] = found.json()
    return reply


def _holds(result: dict[str, Any]) -> bool:
    users = result["users"]
    learned = all(row["after"]["feedback_used"] > 0 for row in users)
    kept = all(
        row["same_posterior"]
        and row["restarted"]["choice"] == row["after_vllm"]["choice"] == row["after"]["choice"]
        and row["status_while_down"] == httpx.codes.BAD_GATEWAY
        for row in users
    )
    return learned and kept and all(row["equal"] for row in result["greedy"])


def _table(result: dict[str, Any]) -> str:
    lines = ["| model of vLLM | greedy answers that are those of jaxalign |", "|---|---|"]
    for name in dict.fromkeys(row["model"] for row in result["greedy"]):
        equal = [row["equal"] for row in result["greedy"] if row["model"] == name]
        lines.append(f"| {name} | {sum(equal)} of {len(equal)} |")
    lines += [
        "",
        "| user | before | after | vLLM killed | vLLM again | service again | same posterior |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["users"]:
        shown = [row[when]["choice"] for when in ("before", "after", "after_vllm", "restarted")]
        shown.insert(2, f"status {row['status_while_down']}")
        choices = " | ".join(shown)
        lines.append(f"| {row['user']} | {choices} | {'yes' if row['same_posterior'] else 'no'} |")
    return "\n".join(lines)
