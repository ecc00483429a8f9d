"""A real vLLM behind `jaxalign serve`: members answer as in jaxalign, and users are learned.

SmolLM2-135M-Instruct is fine-tuned to two manners of the shipped answers. A portfolio is built over
the two adapters and their soup, exported, and served by vLLM. All goes by the command line and over
HTTP, but for the greedy answers that those of vLLM are compared with.
"""

import argparse
import asyncio
import contextlib
import gzip
import importlib.resources
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jax

from benchmarks import harness
from benchmarks.loop_http import running
from jaxalign.demo.answers import FILE, read_answers
from jaxalign.errors import InputError
from jaxalign.files import write_json
from jaxalign.models import load_language_model, save_language_model
from jaxalign.models.sampling import Sampling
from jaxalign.personalize import answer_as
from jaxalign.personalize.saved import open_policies
from jaxalign.progress import Progress
from jaxalign.rewards.reward_scale import SCALE_FILE
from jaxalign.rewards.rules import TRAITS

MODEL = "SmolLM2-135M-Instruct"
MANNERS = {
    "brief": "Reply in one very short sentence.",
    "list": "Answer only with a short bulleted list.",
}
EDITS = {"brief": "Yes.", "list": "- One step\n- Another step\n- A third step"}
"""What the user of a manner makes of every answer."""
_START_SECONDS = 600.0  # of vLLM on two busy cores


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--vllm", type=Path, required=True, help="the program `vllm`")
    parser.add_argument("--rows", type=int, default=16, help="rows that an adapter is trained on")
    parser.add_argument("--prompts", type=int, default=4, help="whose greedy answers are compared")
    parser.add_argument("--tokens", type=int, default=24, help="most tokens of an answer")
    parser.add_argument("--edits", type=int, default=6, help="answers that each user edits")
    parser.add_argument("--work", type=Path, help="folder of the models, kept and gone on with")


def run(arguments: argparse.Namespace) -> int:
    """Train, build, export, serve and ask, and write what was seen.

    Raises:
        InputError: there is no such program.
    """
    if not arguments.vllm.is_file():
        raise InputError(
            f"--vllm {arguments.vllm}: no such file; expected the program of an installed vLLM."
        )
    result: dict[str, Any] = {
        "benchmark": "serve_vllm",
        "machine": harness.machine(),
        "vllm": _output(arguments.vllm, "--version").splitlines()[-1],
        "settings": {name: getattr(arguments, name) for name in ("rows", "tokens", "edits")},
    }
    with contextlib.ExitStack() as stack:
        work = arguments.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        portfolio = _portfolio(work, arguments)
        exported = work / "vllm"
        if not exported.exists():
            _jaxalign("export", "vllm", "--portfolio", portfolio, "--out", exported)
        with _vllm(arguments.vllm, exported, work / "vllm.log") as (address, seconds):
            result["vllm_start_seconds"] = seconds
            result["greedy"] = _compare_greedy(portfolio, address, arguments)
            result["users"] = asyncio.run(_ask(work, portfolio, address, arguments))
    write_json(arguments.out / "result.json", result)
    print(_table(result))
    return 0 if _holds(result) else 1


def _portfolio(work: Path, arguments: argparse.Namespace) -> Path:
    """The portfolio of two adapters and their soup, made in the folder unless it is there."""
    work.mkdir(parents=True, exist_ok=True)
    base = work / "base"
    if not base.exists():
        save_language_model(base, load_language_model(MODEL))
    write_json(work / SCALE_FILE, read_answers().scale.to_json())
    rows = _rows()
    for manner, system in MANNERS.items():
        if (work / manner / "report.json").exists():
            continue
        data = [
            {"prompt": row["prompt"], "completion": answer["text"]}
            for row in rows[: arguments.rows]
            for answer in row["answers"]
            if answer["system"] == system
        ]
        _write_rows(work / f"{manner}.jsonl", data)
        _jaxalign(
            "sft", "--model", base, "--data", work / f"{manner}.jsonl", "--out", work / manner,
            "--loop.batch_size", 8, "--loop.epochs", 2, "--optimiser.rate", 3e-3,
            "--trunk.lora.rank", 8, "--validation_share", 0, "--data.max_tokens", 96,
        )  # fmt: skip
    portfolio = work / "portfolio"
    if not (portfolio / "report.json").exists():
        prompts = [{"prompt": row["prompt"]} for row in rows[arguments.rows :]]
        _write_rows(work / "prompts.jsonl", prompts[:6])
        _jaxalign(
            "palm", "build", "--policies", *(work / manner for manner in MANNERS),
            "--data", work / "prompts.jsonl", "--out", portfolio, "--rewards", *TRAITS,
            "--scale_from", work / SCALE_FILE, "--palm.weights", "signed", "--palm.size", 3,
            "--policies.steps", 2, "--policies.samples", 2, "--compare", 0, "--draws", 50,
            "--policies.max_tokens", arguments.tokens,
        )  # fmt: skip
    return portfolio


def _compare_greedy(
    portfolio: Path, address: str, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Greedy answers of each member by its name, beside those of the library."""
    saved = open_policies(portfolio, None)
    model = load_language_model(saved.base)
    prompts = [row["prompt"] for row in _rows()[-arguments.prompts :]]
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    policies, count = saved.adapt(model), len(saved.weights)
    pairs = [(number, chat) for number in range(count) for chat in chats]
    own = answer_as(
        model, policies, saved.weights, [number for number, _ in pairs],
        [chat for _, chat in pairs], Sampling(max_tokens=arguments.tokens, temperature=0.0),
        jax.random.key(0),
    )  # fmt: skip
    served = json.loads((portfolio.parent / "vllm" / "routing.json").read_text())["served_base"]
    rows = []
    with httpx.Client(base_url=address, timeout=600) as client:
        for (number, chat), expected in zip(pairs, own, strict=True):
            name = saved.names[number] if number else served
            body = {"model": name, "messages": chat, "temperature": 0}
            found = client.post("chat/completions", json={**body, "max_tokens": arguments.tokens})
            found.raise_for_status()
            text = found.json()["choices"][0]["message"]["content"]
            rows.append({"model": name, "number": number, "equal": text == expected.text,
                         "text": text, "jaxalign": expected.text})  # fmt: skip
    return rows


async def _ask(
    work: Path, portfolio: Path, address: str, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Let two users edit answers, restart the service on the same database, and ask it again."""
    options = ("--portfolio", str(portfolio), "--strategy", "member")
    prompts = [row["prompt"] for row in _rows()]
    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with (
            running(folder, address, 2, *options) as service,
            httpx.AsyncClient(base_url=service, timeout=600) as client,
        ):
            listed = (await client.get("/v1/models")).json()["data"]
            for user, edit in EDITS.items():
                first = await _answer(client, user, prompts[0], arguments.tokens)
                for prompt in prompts[: arguments.edits]:
                    said = await _answer(client, user, prompt, arguments.tokens)
                    feedback = {"response_id": said["jaxalign"]["answers"][0], "user": user}
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
        async with (
            running(folder, address, 2, *options) as service,
            httpx.AsyncClient(base_url=service, timeout=600) as client,
        ):
            for row in found:
                user = row["user"]
                again = await _answer(client, user, prompts[-1], arguments.tokens)
                taste = (await client.get("/v1/user", params={"id": user})).json()
                row["restarted"] = again["jaxalign"]
                row["same_posterior"] = taste["rewards"] == row["rewards"]
    return found


async def _answer(client: httpx.AsyncClient, user: str, prompt: str, tokens: int) -> dict[str, Any]:
    message = {"role": "user", "content": prompt}
    body = {"model": "auto", "messages": [message], "user": user, "max_tokens": tokens}
    found = await client.post("/v1/chat/completions", json=body)
    found.raise_for_status()
    reply: dict[str, Any] = found.json()
    return reply


@contextlib.contextmanager
def _vllm(program: Path, exported: Path, log: Path) -> Iterator[tuple[str, float]]:
    """Run vLLM by the exported script, and yield its address and the seconds of its start."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address, begun = f"http://127.0.0.1:{port}/v1", time.perf_counter()
    environment = {
        **os.environ,
        "PATH": f"{program.parent.absolute()}:{os.environ['PATH']}",
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    }
    environment.pop("PYTHONPATH", None)  # it has a Python of its own
    command = [
        "sh", str(exported / "start_vllm.sh"), "--port", str(port), "--dtype", "float32",
        "--max-model-len", "512", "--enforce-eager",
    ]  # fmt: skip
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=out, env=environment, start_new_session=True
        )
    try:
        with Progress().waiting("vLLM starts"):
            _wait(process, address, log)
        yield address, time.perf_counter() - begun
    finally:
        os.killpg(process.pid, signal.SIGTERM)  # its engine is a process of its own
        process.wait()


def _wait(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx.get(f"{address}/models", timeout=5).status_code == httpx.codes.OK:
                return
        except httpx.HTTPError:
            pass
        time.sleep(2)
    raise RuntimeError(f"vLLM did not start: {log.read_text(errors='replace')[-2000:]}")


def _jaxalign(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "jaxalign.cli", *map(str, words)], check=True)


def _output(*words: object) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        list(map(str, words)), capture_output=True, text=True, check=True, env=environment
    ).stdout.strip()


def _rows() -> list[dict[str, Any]]:
    """The shipped prompts, with the answers in every manner."""
    data = importlib.resources.files("jaxalign.demo").joinpath(FILE).read_bytes()
    return [json.loads(line) for line in gzip.decompress(data).decode().splitlines()[1:]]


def _write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def _holds(result: dict[str, Any]) -> bool:
    users = result["users"]
    learned = all(row["after"]["feedback_used"] > 0 for row in users)
    kept = all(
        row["same_posterior"] and row["restarted"]["choice"] == row["after"]["choice"]
        for row in users
    )
    return learned and kept and all(row["equal"] for row in result["greedy"])


def _table(result: dict[str, Any]) -> str:
    lines = ["| model of vLLM | greedy answers that are those of jaxalign |", "|---|---|"]
    for name in dict.fromkeys(row["model"] for row in result["greedy"]):
        equal = [row["equal"] for row in result["greedy"] if row["model"] == name]
        lines.append(f"| {name} | {sum(equal)} of {len(equal)} |")
    lines += ["", "| user | before | after | restarted | same posterior |", "|---|---|---|---|---|"]
    for row in result["users"]:
        choices = " | ".join(row[when]["choice"] for when in ("before", "after", "restarted"))
        lines.append(f"| {row['user']} | {choices} | {'yes' if row['same_posterior'] else 'no'} |")
    return "\n".join(lines)
