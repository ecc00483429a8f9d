"""Starting and stopping the service."""

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import AsyncIterator

import uvicorn

from jaxalign.errors import InputError
from jaxalign.serve.app import create_app
from jaxalign.serve.comparing import most_informative
from jaxalign.serve.config import EngineConfig, ServeConfig
from jaxalign.serve.engines import make_engine
from jaxalign.serve.guards import Guard, allowed_hosts
from jaxalign.serve.identity import CallerGate, read_keys
from jaxalign.serve.offered import check_offered, offer_policies
from jaxalign.serve.personas import Personas
from jaxalign.serve.reward_space import RewardSpace, load_space
from jaxalign.serve.service import Service
from jaxalign.serve.store.database import (
    Database,
    StorageError,
    database_url,
    is_new_file,
    open_database,
)
from jaxalign.serve.store.events import ensure_salt
from jaxalign.serve.strategies import STRATEGIES
from jaxalign.serve.telemetry import log, log_to_stderr

_GRACE_SECONDS = 20  # most that answers may still take when the service is asked to stop
_BACKLOG = 2048
_REMIND_SECONDS = 5.0  # a model may be fetched and read for minutes


async def open_service(config: ServeConfig) -> Service:
    """Return a service with its database open and its engine started.

    Args:
        config: the settings.

    Raises:
        InputError: a setting that cannot be used.
    """
    if config.strategy not in STRATEGIES:
        raise InputError(f"--strategy {config.strategy}: expected one of {', '.join(STRATEGIES)}.")
    keys = read_keys(config.keys) if config.keys is not None else {}
    # A new file is made last: a start that is refused leaves none behind.
    database = None
    later = is_new_file(database_url(config.database))
    personas = None
    saved = config.engine.saved_policies  # a wrong folder is refused before rewards are loaded
    async with contextlib.AsyncExitStack() as opened:  # closed where something fails
        engine = make_engine(config.engine)
        opened.push_async_callback(engine.close)
        if not later:
            database = await _open_database(config, opened)
        async with _stage("rewards loading", config.users or "by rule"):
            space = await asyncio.to_thread(load_space, config.users, config.reward_models)
            policies = None if saved is None else offer_policies(saved, space)
        if config.engine.plug is not None:
            async with _stage("plug loading", config.engine.plug):
                personas = await asyncio.to_thread(_load_personas, config.engine)
        async with _stage("engine starting", config.engine.kind):
            await engine.start()
            if policies is not None:
                check_offered(policies, engine)
            if personas is not None and not engine.personas:
                raise InputError(
                    f"--plug {config.engine.plug}: --engine {config.engine.kind} takes no soft "
                    "tokens, expected local or openai: leave one of the two out."
                )
        async with _stage("programs compiling", engine.model):
            await asyncio.to_thread(_warm, space, config.samples)
        if database is None:
            database = await _open_database(config, opened)
        opened.pop_all()
    guard = Guard(
        allowed_hosts(config.host, config.hosts, bool(keys)), bool(keys), config.limits.body_bytes
    )
    gate = CallerGate(keys, config.webui_secret, config.webui_issuer)
    return Service(config, database, engine, space, gate, guard, policies, personas)


async def _open_database(config: ServeConfig, opened: contextlib.AsyncExitStack) -> Database:
    shown = database_url(config.database).render_as_string(hide_password=True)
    async with _stage("database opening", shown):
        database = await asyncio.to_thread(open_database, config.database, config.synchronous)
        opened.callback(database.close)
        await _write_salt(database)
    return database


async def _write_salt(database: Database) -> None:
    try:
        await database.write(ensure_salt)
    except StorageError as error:
        raise InputError(
            f"--database {database.source} cannot be written ({error}); give another, or free it."
        ) from None


def _load_personas(config: EngineConfig) -> Personas | None:
    opened = config.opened_plug
    return None if opened is None else Personas(str(config.plug), opened)


@contextlib.asynccontextmanager
async def _stage(event: str, what: str) -> AsyncIterator[None]:
    """Log what the start is at, and every few seconds that it still is."""

    async def remind() -> None:
        started = time.monotonic()
        while True:
            await asyncio.sleep(_REMIND_SECONDS)
            log(f"still {event}", what=what, seconds=round(time.monotonic() - started))

    log(event, what=what)
    reminder = asyncio.create_task(remind())
    try:
        yield
    finally:
        reminder.cancel()


def _warm(space: RewardSpace, samples: int) -> None:
    """Load lexicons and compile programs now, and not in the first request."""
    values = space.read([""] * samples, ["Yes."] * samples)
    most_informative(space.population, values)


def serve(config: ServeConfig) -> None:
    """Serve until the process is asked to stop; requests that are being answered are finished.

    Args:
        config: the settings.

    Raises:
        InputError: a setting that cannot be used, or an address that is taken.
    """
    asyncio.run(_serve(config))


async def _serve(config: ServeConfig) -> None:
    log_to_stderr()
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    with bind(config.host, config.port) as listener:
        service = await open_service(config)
        settings = uvicorn.Config(
            create_app(service),
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            timeout_graceful_shutdown=_GRACE_SECONDS,
        )
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        page = "" if config.keys else f"; the page is at http://{shown}:{port}/"
        print(
            f"jaxalign answers by {service.engine.model} at http://{shown}:{port}/v1, for users by "
            f"{service.space.source}; events are kept in {service.database.source}{page}",
            flush=True,  # a program that reads the address from a pipe waits for it
        )
        await uvicorn.Server(settings).serve(sockets=[listener])


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that listens at an address.

    Raises:
        InputError: the address is taken or is none of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, asyncio sets TCP_NODELAY on connections. Without it, the body of an
    # answer waits some 40 ms for the client to acknowledge its head.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise InputError(
            f"--host {host} --port {port} cannot be bound ({error.strerror or error}); expected a "
            "free address of this machine: give another --port."
        ) from None
    listener.listen(_BACKLOG)
    return listener
