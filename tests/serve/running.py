"""A real service on a free port of loopback, in a thread of the test."""

import asyncio
import contextlib
import sqlite3
import threading

import httpx
import uvicorn

from jaxalign.serve import EngineConfig, ServeConfig, create_app, open_service
from jaxalign.serve._run import bind

CHAT = {"model": "auto", "messages": [{"role": "user", "content": "How was your day?"}]}


class Running:
    """A service that runs until `stop`."""

    def __init__(self, config):
        self.config, self.service, self._loop = config, None, None
        self._listener = bind("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._ready, self._failure = threading.Event(), None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._ready.wait(60)
        if self._failure is not None:
            raise self._failure

    def _run(self):
        try:
            asyncio.run(self._serve())
        except Exception as error:
            self._failure = error
            self._ready.set()

    async def _serve(self):
        self._loop = asyncio.get_running_loop()
        self.service = await open_service(self.config)
        settings = uvicorn.Config(
            create_app(self.service), log_config=None, access_log=False,
            timeout_graceful_shutdown=5,
        )  # fmt: skip
        self._server = uvicorn.Server(settings)
        task = asyncio.create_task(self._server.serve(sockets=[self._listener]))
        while not self._server.started and not task.done():
            await asyncio.sleep(0.005)
        self._ready.set()
        await task

    def run(self, coroutine):
        """Return the result of a coroutine in the loop of the service."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(60)

    def stop(self):
        self._server.should_exit = True
        self._thread.join(60)
        self._listener.close()


def config_of(folder, upstream, **changes):
    engine = EngineConfig("openai", url=upstream.url, most_waiting=changes.pop("most_waiting", 64))
    database = f"sqlite:///{folder}/service.sqlite"
    return ServeConfig(engine=engine, **{"database": database, **changes})


@contextlib.contextmanager
def running(config):
    service = Running(config)
    try:
        yield service
    finally:
        service.stop()


@contextlib.contextmanager
def client_of(config):
    """Yield a client of a service that runs as long as the block."""
    with running(config) as service, httpx.Client(base_url=service.url, timeout=60) as client:
        client.service = service
        yield client


def rows_of(folder, table="events"):
    """Return the rows of a database, as tuples."""
    with contextlib.closing(sqlite3.connect(f"{folder}/service.sqlite")) as database:
        return database.execute(f"SELECT * FROM {table}").fetchall()


def choose_on_both(one, two, count):
    """Let ann make choices, each sent to two copies of the service twice, all four at once.

    Args:
        one: client of a copy, from which the answers come.
        two: client of the other copy.
        count: number of choices.

    Returns:
        What each copy believes of ann afterwards.
    """
    codes = []

    def send(client, key, body):
        headers = {"Idempotency-Key": key}
        codes.append(client.post("/v1/feedback", json=body, headers=headers).status_code)

    for number in range(count):
        found = one.post("/v1/chat/completions", json={**CHAT, "user": "ann", "n": 2})
        long, short = found.json()["jaxalign"]["answers"]
        body = {"response_id": long, "preferred": short, "user": "ann"}
        threads = [
            threading.Thread(target=send, args=(client, f"key-{number}", body))
            for client in (one, two, one, two)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert codes == [200] * 4 * count
    return [copy.service.run(copy.service.service.taste("local:ann")) for copy in (one, two)]


def error_of(response):
    """Status and code of a refusal, in OpenAI's shape."""
    body = response.json()
    assert set(body) == {"error"}, body
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return response.status_code, body["error"]["code"]
