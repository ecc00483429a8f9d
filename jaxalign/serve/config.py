"""The settings of the service."""

import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from jaxalign.arrays import check_number
from jaxalign.config_fields import checks_fields
from jaxalign.errors import InputError
from jaxalign.experiments.pplug.ask import RunPlug, open_plug
from jaxalign.models.language import load_language_model
from jaxalign.personalize.saved import SavedPolicies, open_policies
from jaxalign.personalize.strategies.base import ServingRule
from jaxalign.serve.store.database import Synchronous
from jaxalign.serve.store.events import Limits
from jaxalign.serve.wire import MOST_CHOICES

StoreMode = Literal["texts", "features", "none"]
LOOPBACK = ("127.0.0.1", "localhost", "::1")
DEFAULT_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
_MOST_DAYS = 36_500  # a century
_HOST_NAME = re.compile(r"[^\s/:@\[\]]+|[0-9a-fA-F]*:[0-9a-fA-F:]*:[0-9a-fA-F.]*")
LIKELY = 0.8
"""Probability of a gain from which a personal answer is served: "probably", in words of a taste."""


@dataclass(frozen=True)
@checks_fields
class EngineConfig:
    """Where answers are drawn.

    Attributes:
        kind: name of a registered engine: `local` draws in this process, `openai` on a server.
        url: base address of an OpenAI-compatible server, such as http://127.0.0.1:8000/v1.
        model: language model of `local`: a folder, file or name; or the model's name upstream,
            None for the first one that the server lists.
        key: the server's own key; it never comes from a client.
        portfolio: folder of a portfolio whose members the engine answers as; None for none.
        policy: folder of a conditioned policy whose preferences the engine answers as, in place of
            a portfolio.
        plug: folder of a persona plug's run, or of one of its trainings; None for none.
        dtype: of weights and compute of `local`.
        most_waiting: answers of `local`, or requests to `openai`, that may wait or be answered at
            once; more are refused with 429.
        connect_seconds: until a connection must stand.
        read_seconds: most between two pieces of a response; one that is not streamed is one piece.
    """

    kind: str = "local"
    url: str | None = None
    model: str | None = None
    key: str | None = field(default=None, repr=False)
    portfolio: str | None = None
    policy: str | None = None
    plug: str | None = None
    dtype: str = "float32"
    most_waiting: int = 64
    connect_seconds: float = 5.0
    read_seconds: float = 120.0

    def __post_init__(self) -> None:
        check_number("engine.most_waiting", self.most_waiting, 1)
        check_number("engine.connect_seconds", self.connect_seconds, 0, above=True)
        check_number("engine.read_seconds", self.read_seconds, 0, above=True)

    @property
    def has_policies(self) -> bool:
        """Whether the engine answers as policies besides its own model."""
        return self.portfolio is not None or self.policy is not None

    @cached_property
    def saved_policies(self) -> SavedPolicies | None:
        """These policies, which are read once; None for none.

        Raises:
            InputError: a folder that holds none.
        """
        return open_policies(self.portfolio, self.policy) if self.has_policies else None

    @cached_property
    def opened_plug(self) -> RunPlug | None:
        """The persona plug with its language model, which are read once; None for none.

        Raises:
            InputError: a folder that holds none, or another language model than the plug's.
        """
        if self.plug is None:
            return None
        own = self.kind == "local" and self.model is not None
        model = load_language_model(str(self.model), self.dtype) if own else None
        return open_plug(self.plug, model, self.dtype)


@dataclass(frozen=True)
@checks_fields
class RequestLimits:
    """What one request may hold.

    Attributes:
        body_bytes: of any body.
        prompt_characters: of all messages of a request together.
    """

    body_bytes: int = 1_000_000
    prompt_characters: int = 200_000


@dataclass(frozen=True)
@checks_fields
class ServeConfig:
    """All settings of the service.

    Attributes:
        host: address that it is bound to; any but loopback requires keys.
        port: of that address.
        engine: where answers are drawn.
        database: `sqlite:///FILE` or `postgresql+psycopg://USER@HOST/NAME`.
        synchronous: of SQLite: FULL survives a loss of power, NORMAL a killed process only.
        users: run of `jaxalign mrm train`; None for the rewards by rule with the demo's people.
        reward_models: folders of the reward models that the run's named rewards come from;
            `NAME,...=FOLDER` where the names are not the model's labels.
        strategy: what answers requests for the model `auto`.
        rule: when an answer other than the plain one is served.
        samples: answers that `best_of` draws for one request, from 2 to 128.
        store: what is kept of prompts and answers.
        retain_days: age at which rows are deleted; None keeps them.
        keys: file of hashed keys; None for none, on loopback alone.
        hosts: names that requests may come to, beside those of loopback.
        webui_secret: secret of the signed identities of open-webui.
        webui_issuer: who must have signed them.
        limits: of one request.
        stored: limits of what is stored.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    engine: EngineConfig = field(default_factory=EngineConfig)
    database: str = "sqlite:///jaxalign.sqlite"
    synchronous: Synchronous = "FULL"
    users: str | None = None
    reward_models: tuple[str, ...] = ()
    strategy: str = "auto"
    rule: ServingRule = field(default_factory=lambda: ServingRule(0.0, LIKELY))
    samples: int = 4
    store: StoreMode = "texts"
    retain_days: float | None = None
    keys: str | None = None
    hosts: tuple[str, ...] = ()
    webui_secret: str | None = field(default=None, repr=False)
    webui_issuer: str = "open-webui"
    limits: RequestLimits = field(default_factory=RequestLimits)
    stored: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if not 2 <= self.samples <= MOST_CHOICES:
            raise InputError(
                f"--samples: found {self.samples}, expected 2 to {MOST_CHOICES} answers to choose "
                "among."
            )
        # `auto` may draw one as a policy and one with a persona too.
        drawn = self.samples + self.engine.has_policies + (self.engine.plug is not None)
        if self.engine.kind == "local" and drawn > self.engine.most_waiting:
            raise InputError(
                f"--samples {self.samples} needs {drawn} answers, more than the "
                f"{self.engine.most_waiting} answers of --engine.waiting, so that every request "
                "would be refused; raise the latter."
            )
        for strategy, option, given in (
            ("member", "--portfolio", self.engine.portfolio),
            ("conditioned", "--policy", self.engine.policy),
            ("persona", "--plug", self.engine.plug),
        ):
            if self.strategy == strategy and given is None:
                raise InputError(
                    f"--strategy {strategy}: found no {option}, expected the folder of what "
                    "answers: add it."
                )
        if self.engine.plug is not None and self.store != "texts":
            raise InputError(
                f"--plug with --store {self.store}: found no texts of choices, of which personas "
                "are made, expected --store texts: leave one of the two out."
            )
        if self.reward_models and self.users is None:
            raise InputError(
                "--reward-model is given without --users; expected the run whose named rewards it "
                "computes."
            )
        if self.retain_days is not None and not 0 < self.retain_days <= _MOST_DAYS:
            raise InputError(
                f"--retain: found {self.retain_days:g}, expected more than 0 days and at most "
                f"{_MOST_DAYS}; --store none keeps nothing."
            )
        for name in self.hosts:
            if not _HOST_NAME.fullmatch(name):
                raise InputError(
                    f"--allowed-host {name}: expected a name or an IP address without a scheme, a "
                    "port or brackets, such as chat.local: leave them out."
                )
        if self.host not in LOOPBACK and self.keys is None:
            raise InputError(
                f"--host {self.host} can be reached by others and there is no --keys file; "
                "expected keys for every address but loopback: make one with --new-key NAME."
            )
