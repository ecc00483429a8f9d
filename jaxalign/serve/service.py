"""The state of a running service, and its belief about one user."""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from jaxalign.models.chat import Chat
from jaxalign.personalize.utility import Utility
from jaxalign.serve.config import ServeConfig
from jaxalign.serve.engines import AnswerEngine
from jaxalign.serve.guards import Guard
from jaxalign.serve.identity import Caller, CallerGate
from jaxalign.serve.learning import UserTaste, infer_taste
from jaxalign.serve.reward_space import RewardSpace
from jaxalign.serve.store import events
from jaxalign.serve.store.database import Database
from jaxalign.serve.store.events import Event
from jaxalign.serve.telemetry import Telemetry

_MOST_TASTES = 10_000  # about 1 kB each; any of them can be inferred anew


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
        telemetry: counters.
        stopping: whether the service is being shut down.
    """

    config: ServeConfig
    database: Database
    engine: AnswerEngine
    space: RewardSpace
    gate: CallerGate
    guard: Guard
    telemetry: Telemetry = field(default_factory=Telemetry)
    stopping: bool = False
    _tastes: OrderedDict[str, tuple[str, UserTaste]] = field(default_factory=OrderedDict)

    def population(self) -> Utility:
        """Return the weights of a user without feedback."""
        prior = self.space.prior
        return Utility(np.asarray(prior.mean), np.asarray(prior.cov), self.space.ids)

    async def taste(self, user: str | None) -> UserTaste:
        """Return the belief about a user; where no user is named, about the population.

        It is computed from the user's rows, and kept until the user has another row.

        Raises:
            StorageError: the rows cannot be read.
        """
        if user is None:
            return UserTaste(self.population(), 0)
        row = await self.database.read(lambda connection: events.user_row(connection, user))
        if row is None:
            self.forget(user)
            return UserTaste(self.population(), 0)
        known = self._tastes.get(user)
        if known is not None and known[0] == row.version:
            self._tastes.move_to_end(user)
            return known[1]
        rows = await self.database.read(lambda connection: events.feedback(connection, user))
        found = await asyncio.to_thread(infer_taste, self.space, rows)
        # Rows of later than the version may be in it: then it is inferred once more, to no harm.
        self._tastes[user] = (row.version, found)
        while len(self._tastes) > _MOST_TASTES:
            self._tastes.popitem(last=False)
        return found

    def forget(self, user: str) -> None:
        """Drop what is kept in memory of a user."""
        self._tastes.pop(user, None)

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
        """Return the base rewards [N, K] of answers to one prompt."""
        prompts = [prompt] * len(texts)
        return await asyncio.to_thread(self.space.read, prompts, list(texts))
