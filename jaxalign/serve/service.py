"""The state of a running service, and its belief about one user."""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from weakref import WeakValueDictionary

import numpy as np

from jaxalign.errors import InputError
from jaxalign.models.chat import Chat
from jaxalign.serve.api_errors import ApiError
from jaxalign.serve.config import ServeConfig
from jaxalign.serve.engines import AnswerEngine
from jaxalign.serve.engines.registry import known_roles
from jaxalign.serve.guards import Guard
from jaxalign.serve.identity import Caller, CallerGate
from jaxalign.serve.learning import (
    TasteState,
    UserTaste,
    advance,
    first_state,
    unseen_rows,
)
from jaxalign.serve.offered import OfferedPolicies
from jaxalign.serve.personas import Persona, Personas
from jaxalign.serve.reward_space import RewardSpace
from jaxalign.serve.store import events
from jaxalign.serve.store.database import Database
from jaxalign.serve.store.events import Event
from jaxalign.serve.telemetry import Telemetry

_MOST_STATES = 10_000
_MOST_STATE_BYTES = 256_000_000
"""Of the states that are kept: any of them can be built anew from the user's rows."""


@dataclass(eq=False)
class Service:
    """What requests share.

    Attributes:
        config: the settings.
        database: where events are kept.
        engine: where answers are drawn.
        space: the base rewards, and the population.
        gate: finds the key and the user of a request.
        guard: refuses foreign requests.
        policies: that may answer in place of the engine's own model; None for none.
        personas: what makes the personas of users; None for none.
        telemetry: counters.
        stopping: whether the service is being shut down.
    """

    config: ServeConfig
    database: Database
    engine: AnswerEngine
    space: RewardSpace
    gate: CallerGate
    guard: Guard
    policies: OfferedPolicies | None = None
    personas: Personas | None = None
    telemetry: Telemetry = field(default_factory=Telemetry)
    stopping: bool = False
    _states: OrderedDict[str, TasteState] = field(default_factory=OrderedDict)
    _state_bytes: int = 0
    _following: WeakValueDictionary[str, asyncio.Lock] = field(default_factory=WeakValueDictionary)
    _making_persona: asyncio.Lock = field(default_factory=asyncio.Lock)

    @cached_property
    def _empty(self) -> TasteState:
        return first_state(self.space)

    async def taste(self, user: str | None) -> UserTaste:
        """Return the belief about a user; where no user is named, about the population.

        It is computed from the user's rows, and kept until the user has another row.

        Raises:
            StorageError: the rows cannot be read.
        """
        if user is None:
            return self._empty.taste
        row = await self.database.look(lambda connection: events.user_row(connection, user))
        if row is None:
            self._drop_cached(user)
            return self._empty.taste
        known = self._states.get(user, self._empty)
        if row.version != known.version:
            return await self.follow(user)
        self._states.move_to_end(user)
        return known.taste

    async def follow(self, user: str) -> UserTaste:
        """Return the belief about a user who has new rows; as `taste`."""
        # Requests that come at once, as after a restart, build the state once.
        async with self._following.setdefault(user, asyncio.Lock()):
            known = self._states.get(user, self._empty)
            known = await asyncio.to_thread(self._followed, user, known)
            self._remember(user, known)
        return known.taste

    async def persona(self, user: str | None, prompt: str | Chat) -> Persona | None:
        """Return the persona of a user for a prompt, which may be used; None where it may not.

        With the strategy `auto` it may be used where the user's held-out choices say so, with the
        probability that any answer but the plain one needs.

        Raises:
            ApiError: a prompt that cannot be read.
            StorageError: the user's choices cannot be read.
        """
        personas, strategy = self.personas, self.config.strategy
        if personas is None or strategy not in ("auto", "persona"):
            return None
        if strategy == "auto" and user is None:
            return None
        least = self.config.rule.least_probability if strategy == "auto" else None
        version = "" if user is None else self._states.get(user, self._empty).version
        async with self._making_persona:
            try:
                return await asyncio.to_thread(
                    personas.make, self.database, user, version, prompt, least
                )
            except InputError as error:
                raise ApiError(400, str(error), "invalid_prompt", "messages") from None

    def _followed(self, user: str, known: TasteState) -> TasteState:
        """The state of a user after the rows that are not in the known one."""
        version, start, rows = self.database.read_now(
            lambda connection: unseen_rows(connection, user, known, self._empty)
        )
        # Rows of later than the version may be in it: then it is read once more, to no harm.
        return replace(advance(self.space, start, rows), version=version)

    def _remember(self, user: str, state: TasteState) -> None:
        self._drop_state(user)
        if state.version == self._empty.version:  # all rows were deleted meanwhile
            return
        self._states[user] = state
        self._state_bytes += state.size
        while len(self._states) > _MOST_STATES or self._state_bytes > _MOST_STATE_BYTES:
            self._drop_state(next(iter(self._states)))

    async def erase(self, user: str) -> int:
        """Delete all rows of a user and what is kept of them in memory.

        It waits for what is being computed of the rows, which would be kept after them.

        Returns:
            How many rows were deleted.

        Raises:
            StorageError: nothing was deleted.
        """
        async with self._following.setdefault(user, asyncio.Lock()), self._making_persona:
            count = await self.database.write(lambda connection: events.erase(connection, user))
            self._drop_cached(user)
        return count

    def _drop_cached(self, user: str) -> None:
        if self.personas is not None:
            self.personas.drop_cached(user)
        self._drop_state(user)

    def _drop_state(self, user: str) -> None:
        state = self._states.pop(user, None)
        self._state_bytes -= 0 if state is None else state.size

    async def keep(self, caller: Caller, event: Event) -> Event:
        """Write an event of the caller's user, and return the one that is kept.

        Raises:
            StorageError: nothing was written.
            LimitReached: nothing was written.
        """
        stored, namespace = self.config.stored, caller.key.name
        return await self.database.write(
            lambda connection: events.insert(connection, event, namespace, stored)
        )

    async def read_rewards(self, prompt: str | Chat, texts: Sequence[str]) -> np.ndarray:
        """Return the base rewards [N, K] of answers to one prompt.

        Raises:
            ApiError: a prompt that they cannot be read of, such as one that the chat template of a
                reward model refuses.
        """
        prompts = [known_roles(prompt)] * len(texts)
        try:
            return await asyncio.to_thread(self.space.read, prompts, list(texts))
        except InputError as error:
            raise ApiError(400, f"The rewards cannot be read: {error}", "invalid_prompt") from None
