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
