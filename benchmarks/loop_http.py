"""The two servers of the loop, and the requests that people send."""

import asyncio
import json
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np

from benchmarks.loop_heuristics import way
from benchmarks.loop_people import LoopData

MODEL = "replay"
AT_ONCE = 16
"""Requests in flight; the service takes 64."""


class Served(NamedTuple):
    """What the service served.

    Attributes:
        position: [C, U, H] which draw.
        probability: [C, U, H] that it is better than the first draw, as the service says; NaN for
            the first one.
    """

    position: np.ndarray
    probability: np.ndarray


# The servers ----------------------------------------------------------------------------------


@asynccontextmanager
async def replay(data: LoopData) -> AsyncIterator[str]:
    """Serve the draws of every prompt in the OpenAI protocol, and yield the address."""
    texts = {
        prompt: [data.answers.texts[number] for number in draws]
        for prompt, draws in zip(data.answers.prompts, data.draws, strict=True)
    }
    async with answering(lambda body: texts[body["messages"][-1]["content"]]) as address:
        yield address


@asynccontextmanager
async def answering(
    draws: Callable[[dict[str, Any]], list[str]], models: Sequence[str] = (MODEL,)
) -> AsyncIterator[str]:
    """Serve the first n draws of each request in the OpenAI protocol, and yield the address."""
    listed = {"object": "list", "data": [{"id": name, "object": "model"} for name in models]}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                length = re.search(r"content-length: *(\d+)", head, re.IGNORECASE)
                sent = json.loads(await reader.readexactly(int(length[1]))) if length else None
                found = listed if sent is None else _reply(draws(sent)[: sent.get("n", 1)])
                answer = json.dumps(found).encode()
                writer.write(
                    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
                    b"content-length: %d\r\n\r\n" % len(answer) + answer
                )
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client is done
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    finally:
        server.close()


def _reply(drawn: list[str]) -> dict[str, Any]:
    tokens = sum(len(text.split()) for text in drawn)
    return {
        "id": "replayed", "object": "chat.completion", "created": 1, "model": MODEL,
        "choices": [
            {"index": number, "finish_reason": "stop", "logprobs": None,
             "message": {"role": "assistant", "content": text}}
            for number, text in enumerate(drawn)
        ],
        "usage": {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": tokens + 1},
    }  # fmt: skip


@asynccontextmanager
async def running(
    folder: Path, engine: str, samples: int, *options: str
) -> AsyncIterator[tuple[str, int]]:
    """Run `jaxalign serve` in a process of its own, and yield its address and its process's id.

    Args:
        folder: of its database and log.
        engine: address of the engine.
        samples: answers that it draws for a request.
        options: more of its options.
    """
    command = [
        sys.executable, "-m", "jaxalign.cli", "serve", "--port", "0", "--engine", "openai",
        "--engine.url", engine, "--database", f"sqlite:///{folder}/loop.sqlite",
        "--samples", str(samples), *options,
    ]  # fmt: skip
    async with started(command, folder / "log") as found:
        yield found


@asynccontextmanager
async def started(command: list[str], log: Path) -> AsyncIterator[tuple[str, int]]:
    """Run a server in a process of its own, and yield the address that it prints and its id.

    Args:
        command: its words.
        log: file for what it writes on standard error.
    """
    with log.open("ab") as errors:
        # An engine may be in this process: a wait for the server must not stop it.
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=errors
        )
        try:
            line = await process.stdout.readline() if process.stdout else b""
            found = re.search(r"http://[^/\s]+", line.decode())
            if found is None:
                raise RuntimeError(f"{command[2]} did not start: {log.read_text()[-2000:]}")
            yield found[0], process.pid
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
            await process.wait()


# The people -----------------------------------------------------------------------------------


class Talk:
    """People who talk to one service.

    Attributes:
        data: people and prompts.
        client: of the service.
        feedback: "thumbs", "pairs" or "both".
        seconds: of every request.
    """

    def __init__(self, data: LoopData, client: httpx.AsyncClient, feedback: str) -> None:
        self.data, self.client, self.feedback = data, client, feedback
        self.seconds: list[float] = []
        self._free = asyncio.Semaphore(AT_ONCE)
        self._place = [
            {data.answers.texts[number]: place for place, number in enumerate(draws)}
            for draws in data.draws
        ]

    async def all_people(self, people: range, checkpoints: tuple[int, ...]) -> Served:
        """Let all people give feedback, and judge what is served at the checkpoints."""
        found = await asyncio.gather(*(self._person(one, checkpoints) for one in people))
        both = np.moveaxis(np.array(found), 0, 1)  # [C, U, H, 2]
        return Served(both[..., 0].astype(int), both[..., 1])

    async def served(self, person: int, prompt: int) -> tuple[int, float]:
        """Return the place of the answer that a person is served, and the probability stated."""
        about = await self._chat("/v1/chat/completions", person, prompt)
        text = about["choices"][0]["message"]["content"]
        probability = about["jaxalign"]["probability"]
        return self._place[prompt][text], np.nan if probability is None else probability

    async def _person(self, person: int, checkpoints: tuple[int, ...]) -> list[Any]:
        found = []
        for turn in range(checkpoints[-1] + 1):
            if turn in checkpoints:
                replies = (self.served(person, int(prompt)) for prompt in self.data.judged)
                found.append(await asyncio.gather(*replies))
            if turn < checkpoints[-1]:
                await self._feedback(person, turn)
        return found

    async def _feedback(self, person: int, turn: int) -> None:
        prompt = int(self.data.feedback_prompts[person, turn])
        draws, place = self.data.draws[prompt], self._place[prompt]
        if way(self.feedback, turn) == "thumbs":
            found = await self._chat("/v1/chat/completions", person, prompt)
            answer = draws[place[found["choices"][0]["message"]["content"]]]
            up = self.data.thumb(person, turn, answer)
            body = {"response_id": found["id"], "rating": "up" if up else "down"}
        else:
            found = await self._chat("/v1/compare", person, prompt)
            first, second = found["answers"]
            shown = [int(draws[place[one["text"]]]) for one in (first, second)]
            wins = self.data.takes_first(person, turn, *shown)
            chosen, other = (first, second) if wins else (second, first)
            body = {"response_id": other["id"], "preferred": chosen["id"]}
        await self._post("/v1/feedback", {**body, "user": self._name(person)})

    async def _chat(self, path: str, person: int, prompt: int) -> dict[str, Any]:
        turns = [{"role": "user", "content": self.data.answers.prompts[prompt]}]
        body = {"model": "auto", "messages": turns, "user": self._name(person)}
        return await self._post(path, body)

    def _name(self, person: int) -> str:
        return f"{self.feedback}-{person}"

    async def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        async with self._free:
            started = time.perf_counter()
            response = await self.client.post(path, json=body)
            self.seconds.append(time.perf_counter() - started)
        if response.status_code != httpx.codes.OK:
            raise RuntimeError(f"{path}: status {response.status_code}, {response.text[:500]}")
        found: dict[str, Any] = response.json()
        return found
