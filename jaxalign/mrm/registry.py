"""User-reward methods by name: what a method has to offer, and how it is added.

A method is one class in one file. `@register` gives it a name and default settings; from then on
`jaxalign mrm train` fits it, lets validation users choose among its candidates, judges it beside
the others, and saves it for `adapt` and `rank` where it can score texts that training did not see.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.data.batching import Pairs
from jaxalign.data.preferences import RowDetails
from jaxalign.errors import InputError
from jaxalign.mrm.bayes import Prior
from jaxalign.mrm.sites import Sites

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from jaxalign.mrm.support_query import TrainingData

    Settings = TypeVar("Settings", bound=DataclassInstance)
else:
    Settings = TypeVar("Settings")

Fitted = dict[str, Any]
"""What a fit leaves: nested dicts of arrays, with text keys."""
Candidate = dict[str, Any]
"""One choice of settings that is made after the fit, by validation users."""
Capability = Literal["weights", "posterior", "streaming", "ratings", "new_items"]
Inputs = Literal["projected", "directions", "encoded", "ids"]

CAPABILITIES: dict[Capability, str] = {
    "weights": "represents a user by weights on base rewards, so that `adapt` writes them",
    "posterior": "infers a mean and a covariance of a user's weights",
    "streaming": "updates a user after each choice without a new fit (`mrm.update_belief`)",
    "ratings": "learns from ratings, strengths and implicit choices beside plain choices",
    "new_items": "scores items that were not in training, so that it can be saved and can rank",
}


class UserRewardMethod(ABC, Generic[Settings]):
    """One way to predict a user's choices from the user's earlier choices.

    The object holds the settings alone; what is learned is a tree of arrays, which the functions
    take and return.

    Attributes:
        name: what the method is registered under.
        settings: its settings.
        capabilities: see `CAPABILITIES`.
        inputs: what an item is to the method: its "projected" features, all principal "directions",
            the features as they were "encoded", or its number among the items of training ("ids").
        seeded: whether a fit depends on its seed; if not, there is one fit for all seeds.
        warm_start: whether a fit may start from an earlier one, `TrainingData.start`.
        refits: whether fits are quick enough to be made again without each fold of users.
        own_temperature: whether its candidates have a "temperature", by which it divides its
            margins itself; to any other method a run adds one.
    """

    capabilities: ClassVar[frozenset[Capability]] = frozenset({"new_items"})
    inputs: ClassVar[Inputs] = "projected"
    seeded: ClassVar[bool] = True
    warm_start: ClassVar[bool] = False
    refits: ClassVar[bool] = False
    own_temperature: ClassVar[bool] = False

    def __init__(self, settings: Settings, name: str = "") -> None:
        self.settings = settings
        self.name = name

    def start_settings(self) -> tuple[str, ...]:
        """Return the settings that a fit and the earlier one that it starts from must share."""
        return ()

    @abstractmethod
    def fit(self, data: "TrainingData", seed: int) -> Fitted:
        """Return what is learned from the training users' choices.

        Args:
            data: choices and item features; `data.inputs(self.inputs)` is the table [I, D].
            seed: of whatever is random.
        """

    @abstractmethod
    def candidates(self, fitted: Fitted) -> list[Candidate]:
        """Return what validation users choose from, at least one candidate."""

    @abstractmethod
    def predict(
        self,
        fitted: Fitted,
        candidates: Sequence[Candidate],
        features: jax.Array,
        support: Pairs,
        query: Pairs,
    ) -> np.ndarray:
        """Return the probability that the chosen item of each query pair is chosen.

        Args:
            fitted: as from `fit` or `load`.
            candidates: C of `self.candidates(fitted)`.
            features: [I, D] items that the pairs point into.
            support: [U, P] choices that are known of each user; of weight 0 where there are none.
            query: [U, Q] pairs to predict.

        Returns:
            [C, U, Q]. Swapping the two items of a query pair gives one minus the probability.
        """

    def each_prediction(
        self, fitted: Fitted, candidates: Sequence[Candidate], features: jax.Array,
        support: Pairs, query: Pairs, details: RowDetails | None = None,
    ) -> Iterator[np.ndarray]:  # fmt: skip
        """Yield the probabilities [U, Q] of each candidate, after rows that may be ratings.

        Args:
            fitted, candidates, features, support, query: as of `predict`, which gives them.
            details: [U, P] what the support rows say beyond the choices, which a method without the
                capability "ratings" does not read; None for plain choices.
        """
        yield from self.predict(fitted, candidates, features, support, query)

    def fit_seeds(
        self,
        data: "TrainingData",
        seeds: Sequence[int],
        checkpoint: Path | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> list[Fitted]:
        """Return one fit per seed.

        Args:
            data: as for `fit`.
            seeds: of the fits.
            checkpoint: folder for the state of a long fit, to resume from.
            say: called with one line of progress at a time.
        """
        return [self.fit(data, seed) for seed in seeds]

    def item_effects(self, fitted: Fitted, candidate: Candidate) -> np.ndarray | None:
        """Return the effects [I] of the training items that the method has learned itself.

        They are added to the margins of known items, to which `predict` does not see them added.
        None, the default, for a method that takes the effects that all methods share.
        """
        return None

    def settled(self, fitted: Fitted) -> "UserRewardMethod[Settings]":
        """Return the method that fits again with what an earlier fit has chosen by itself."""
        return self

    def save(self, fitted: Fitted, candidate: Candidate) -> tuple[Fitted, Candidate]:
        """Return the arrays that one candidate needs, and the candidate that points into them."""
        return fitted, candidate

    def load(self, arrays: Fitted) -> Fitted:
        """Return saved arrays as `predict` takes them, on the device."""
        return jax.tree.map(jnp.asarray, arrays)

    def describe(self, fitted: Fitted, candidate: Candidate) -> Candidate:
        """Return a candidate in terms that mean something outside the run, for reports."""
        return dict(candidate)


class WeightsMethod(UserRewardMethod[Settings]):
    """A method that represents a user by weights on base rewards: the reward is linear in them."""

    capabilities: ClassVar[frozenset[Capability]] = frozenset({"new_items", "weights"})

    @property
    def on_inputs(self) -> bool:
        """Whether the base rewards are the inputs themselves, whose names then name the weights."""
        return type(self).base is WeightsMethod.base

    def base(self, fitted: Fitted, candidate: Candidate, features: jax.Array) -> jax.Array:
        """Return base rewards [..., K] of features [..., D]; by default the features themselves."""
        return features

    @abstractmethod
    def infer(
        self, fitted: Fitted, candidate: Candidate, differences: jax.Array, mask: jax.Array
    ) -> tuple[jax.Array, Sites | None]:
        """Return users' weights, and where the method has a posterior the sites of the choices.

        Args:
            fitted: as from `load`.
            candidate: the chosen candidate.
            differences: [U, P, K] base rewards, chosen minus rejected.
            mask: [U, P] weights of the choices; users without any get the population's weights.

        Returns:
            mean [U, K], and sites [U, P], weighted by `mask`, or None. With `prior` they give the
            covariance of a user's weights, see `sites.posterior_cov`.
        """


class PosteriorMethod(WeightsMethod[Settings]):
    """A method that infers a normal posterior of a user's weights."""

    capabilities: ClassVar[frozenset[Capability]] = frozenset({"new_items", "weights", "posterior"})

    @abstractmethod
    def prior(self, fitted: Fitted, candidate: Candidate) -> Prior:
        """Return the posterior of a user without choices."""


class Inferred(NamedTuple):
    """What is known of the weights of U users after all kinds of feedback.

    Attributes:
        mean: [U, K].
        cov: [U, K, K].
    """

    mean: jax.Array
    cov: jax.Array


class RatingsMethod(PosteriorMethod[Settings]):
    """A method that infers a user's weights from ratings too, where it was fitted on some."""

    capabilities: ClassVar[frozenset[Capability]] = frozenset(
        {"new_items", "weights", "posterior", "ratings"}
    )

    @abstractmethod
    def scales(self, fitted: Fitted) -> tuple[tuple[float, float], ...] | None:
        """Return the scales of the ratings that the fit has seen; None if of plain choices."""

    @abstractmethod
    def infer_feedback(
        self, fitted: Fitted, candidate: Candidate, vectors: jax.Array, details: RowDetails
    ) -> Inferred:
        """Return what is known of users, by a fit that has seen more than plain choices.

        Args:
            fitted: as from `load`.
            candidate: the chosen candidate.
            vectors: [U, P, K] base rewards of rated items, or chosen minus rejected.
            details: [U, P] what the rows say beyond plain choices, the scales as `scales` numbers
                them.
        """

    @abstractmethod
    def rating_log_likelihood(
        self, fitted: Fitted, candidate: Candidate, vectors: jax.Array, details: RowDetails,
        held_out: RowDetails,
    ) -> np.ndarray:  # fmt: skip
        """Return the log probability [U, P] of each row that is held out, 0 of all others.

        Args:
            fitted: as from `load`, of a fit that has seen more than plain choices.
            candidate: the chosen candidate.
            vectors: [U, P, K] as of `infer_feedback`.
            details: [U, P]; rows that are held out have the weight 0.
            held_out: [U, P] the same rows; those that are known have the weight 0.
        """


@dataclass(frozen=True)
class Registration(Generic[Settings]):
    """One registered method.

    Attributes:
        cls: its class.
        settings: its default settings, whose type is that of its field in a run's config.
    """

    cls: type[UserRewardMethod[Settings]]
    settings: Settings


METHODS: dict[str, Registration[Any]] = {}
"""Every registered method by its name."""
_Class = TypeVar("_Class", bound=type[UserRewardMethod[Any]])


def register(name: str, settings: "DataclassInstance") -> Callable[[_Class], _Class]:
    """Return a class decorator that registers a user-reward method.

    One class may be registered under several names with different default settings.

    Args:
        name: of the method, in configs, reports and files.
        settings: default settings: an instance of a frozen dataclass.

    Raises:
        InputError: the name is taken, or is none that a config field can have.

    Example:
        >>> from jaxalign.mrm import METHODS
        >>> METHODS["lore"].cls is METHODS["lore_published"].cls
        True
        >>> METHODS["lore_published"].settings.link
        'softmax'
    """
    if name in METHODS or not name.isidentifier():
        raise InputError(
            f"register: the name {name!r} is taken or is no identifier; give the method another."
        )

    def add(cls: _Class) -> _Class:
        METHODS[name] = Registration(cls, settings)
        return cls

    return add


def make_method(name: str, settings: object = None) -> UserRewardMethod[Any]:
    """Return a registered method by its name.

    Args:
        name: of the method.
        settings: its settings; its default settings if None.

    Raises:
        InputError: there is no such method.

    Example:
        >>> from jaxalign.mrm import make_method
        >>> method = make_method("vpl")
        >>> method.name, "posterior" in method.capabilities
        ('vpl', False)
    """
    if name not in METHODS:
        raise InputError(
            f"{name!r} is not a user-reward method; expected one of {', '.join(METHODS)}."
        )
    entry = METHODS[name]
    return entry.cls(entry.settings if settings is None else settings, name)


def require(method: UserRewardMethod[Any], capability: Capability, what: str) -> None:
    """Refuse a method without a capability.

    Args:
        method: to check.
        capability: that is needed.
        what: what needs it, for the message.

    Raises:
        InputError: the method does not declare the capability.

    Example:
        >>> from jaxalign.errors import InputError
        >>> from jaxalign.mrm import make_method, require
        >>> require(make_method("bayes"), "posterior", "mrm.init_belief")
        >>> try:
        ...     require(make_method("vpl"), "posterior", "mrm.init_belief")
        ... except InputError as error:
        ...     print(str(error).split(" (")[0])
        vpl declares no posterior, which mrm.init_belief needs
    """
    if capability not in method.capabilities:
        able = [name for name, entry in METHODS.items() if capability in entry.cls.capabilities]
        raise InputError(
            f"{method.name} declares no {capability}, which {what} needs (a method that "
            f"{CAPABILITIES[capability]}); use one of {', '.join(able)}."
        )
