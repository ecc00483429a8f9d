"""A portfolio of language-model policies in its folder, with and without its model loaded."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jaxalign import moc
from jaxalign.errors import InputError
from jaxalign.files import expand_user
from jaxalign.models.language import LanguageModel
from jaxalign.models.peft import load_adapter, save_adapter
from jaxalign.models.resolve import stated_name
from jaxalign.palm.portfolio import FILE as PORTFOLIO_FILE
from jaxalign.palm.portfolio import Portfolio
from jaxalign.palm.portfolio import load as load_portfolio
from jaxalign.personalize.policies import (
    Conditioned,
    Kind,
    Mixing,
    Separate,
    Soups,
    WholeModels,
    identity,
    open_models,
)
from jaxalign.personalize.targets import ids
from jaxalign.rewards.reward_scale import RewardIds, RewardScale
from jaxalign.runs.artifact import Artifact, load_artifact, save_artifact

FILE = "policies.safetensors"
_NAME_DIGITS = 6  # hexadecimal, of the digest in the name of a member
_REMEDY = "give the folder of a `jaxalign palm build --policies`, or make it anew"
_ADAPTED = {kind.kind: kind for kind in (Soups, Mixing, Separate)}


@dataclass(frozen=True, eq=False)
class Serving:
    """A portfolio with the model and the policies that its members are made of.

    Attributes:
        portfolio: portfolio whose payload holds the members' `weight` [M, A].
        policies: what makes a policy of A weights.
        model: the reference policy.
        names: [A] what each weight is of, for people; empty where nobody named them.
    """

    portfolio: Portfolio
    policies: Kind = field(repr=False)
    model: LanguageModel = field(repr=False)
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        shape = np.shape(self.portfolio.members.payload.get("weight", ()))
        if shape[1:] != (self.policies.size,):
            each = "reward" if isinstance(self.policies, Conditioned) else "adapter"
            raise InputError(
                f"portfolio: found members' weights of shape {shape}, expected "
                f"{self.policies.size} a member, one for each {each}; is it of other policies?"
            )

        if isinstance(self.policies, Conditioned) and self.portfolio.scale is not None:
            ids(self.policies.policy).expect(self.portfolio.scale.ids, "portfolio")

    def save(self, path: str | Path) -> None:
        """Write portfolio and policies to a folder; of the base model only its name and hash.

        Args:
            path: the folder, made if needed: portfolio.safetensors, policies.safetensors, and the
                adapters as peft writes them, or the conditioned policy as `moc.save` does. Of whole
                models, as of the base, only names and hashes are written.

        Raises:
            InputError: adapters that do not fit the model.
        """
        folder, model = Path(path), self.model
        folder.mkdir(parents=True, exist_ok=True)
        policies = self.policies
        models: tuple[str, ...] = ()
        if isinstance(policies, Conditioned):
            moc.save(folder / "policy", policies.policy)
        elif isinstance(policies, WholeModels):
            models = tuple(map(stated_name, policies.models))
        else:
            for number, (config, tree) in enumerate(policies.adapters):
                place = folder / "adapters" / str(number)
                place.parent.mkdir(parents=True, exist_ok=True)
                save_adapter(place, tree, config, model.name, model.config)
        about = AboutPolicies(
            policies.kind,
            stated_name(model.name),
            model.sha256,
            tuple(identity(policies)),
            self.portfolio.fingerprint,
            self.names,
            models,
        )
        options = policies.options
        arrays = {} if options is None else {"options": np.asarray(options)}
        save_artifact(folder / FILE, "set of policies", about, arrays)
        self.portfolio.save(folder)


@dataclass(frozen=True)
class AboutPolicies:
    """What the file of a portfolio's policies states.

    Attributes:
        kind: kind of the policies.
        base: name of the base model.
        base_sha256: digest of the base model's weights.
        identity: what identifies each policy, as from `policies.identity`.
        fingerprint: digest of the data that the portfolio was built on.
        names: [A] what each of a member's weights is of: an adapter, a model, or a reward.
        models: [A] names of whole models; empty for other policies.
    """

    kind: str
    base: str
    base_sha256: str
    identity: tuple[str, ...]
    fingerprint: str
    names: tuple[str, ...] = ()
    models: tuple[str, ...] = ()


def about_policies(path: str | Path) -> AboutPolicies:
    """Return what a folder of `Serving.save` states of its policies.

    Raises:
        InputError: the folder holds no policies.
    """
    return _load_policies(path).about


def _load_policies(path: str | Path) -> Artifact[AboutPolicies]:
    place = expand_user(path) / FILE
    if not place.exists() and place.with_name(PORTFOLIO_FILE).exists():
        raise InputError(
            f"{path} holds a portfolio of candidates, which answers no new prompt; expected one "
            "of trained policies: build it with `jaxalign palm build` over adapters or a policy."
        )
    return load_artifact(place, "set of policies", AboutPolicies, _REMEDY)


@dataclass(frozen=True, eq=False)
class SavedMembers:
    """A portfolio of policies as it lies in its folder: neither model nor adapters are loaded.

    Attributes:
        folder: where it lies.
        about: what the folder states of the policies.
        portfolio: with the members' `weight` [M, A].
        options: the weights that policies may have; None for any.
    """

    folder: Path
    about: AboutPolicies
    portfolio: Portfolio
    options: np.ndarray | None

    @property
    def base(self) -> str:
        """Name of the base model."""
        return self.about.base

    @property
    def weights(self) -> NDArray[np.float64]:
        """What makes each member [M, A]; zeros, the reference, first."""
        return np.asarray(self.portfolio.members.payload["weight"], np.float64)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names [M] under which servers offer the members, as of `policy_names`."""
        about = self.about
        digests = (about.kind, about.base_sha256, *about.identity)
        return policy_names("member", digests, self.weights)

    @property
    def beta(self) -> float:
        """Price of one nat of KL, in levels of the rewards."""
        return self.portfolio.beta

    def achieved(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the members' rewards in standard deviations [M, R] and their KL [M].

        Raises:
            InputError: a portfolio without a scale of its rewards.
        """
        members = self.portfolio.members
        scale = stated_scale(self.portfolio)
        rewards = scale.standardise_levels(np.asarray(members.rewards, np.float64))
        return rewards, np.asarray(members.kl, np.float64)

    def reward_ids(self) -> RewardIds:
        """Return which rewards these are.

        Raises:
            InputError: a portfolio without a scale of its rewards.
        """
        return stated_scale(self.portfolio).ids

    def adapt(self, model: LanguageModel) -> Kind:
        """Return what makes policies of the base model.

        Args:
            model: the base model, loaded; to copy adapters, its description is enough.

        Raises:
            InputError: another model, or adapters that are not those that were saved.
        """
        about, place = self.about, self.folder / FILE
        if about.base_sha256 != model.sha256:
            raise InputError(
                f"{place}: the policies are of {about.base} with SHA-256 "
                f"{about.base_sha256[:12]}, found {model.name} with {model.sha256[:12]}: load that "
                "model."
            )
        return _policies(self.folder, about, self.options, model)


def stated_scale(portfolio: Portfolio) -> RewardScale:
    """Return the scale of a portfolio's rewards.

    Raises:
        InputError: the portfolio does not state it.
    """
    if portfolio.scale is None:
        raise InputError(
            "portfolio: found one that does not state the scale of its rewards, expected one of "
            "`jaxalign palm build`; build it anew."
        )
    return portfolio.scale


def policy_names(
    word: str, digests: Iterable[str], weights: NDArray[np.float64]
) -> tuple[str, ...]:
    """Return names of policies that no other policies have, for servers of several models.

    Args:
        word: what each policy is.
        digests: of all that the policies are made of.
        weights: [C, A] that make the C policies.

    Returns:
        [C] the word, the number, and digits that differ for other digests or weights: a server of
        another build, or of another base model, offers none of these names.

    Example:
        >>> import numpy as np
        >>> from jaxalign.personalize.saved_members import policy_names
        >>> policy_names("member", ["digest of an adapter"], np.array([[0.0], [1.0]]))
        ('member-0-8bf0b5', 'member-1-8bf0b5')
    """
    found = hashlib.sha256("\n".join(digests).encode())
    found.update(np.ascontiguousarray(weights, "<f8").tobytes())
    end = found.hexdigest()[:_NAME_DIGITS]
    return tuple(f"{word}-{number}-{end}" for number in range(len(weights)))


def load_members(path: str | Path) -> SavedMembers:
    """Read a portfolio of policies without its model and its adapters.

    Raises:
        InputError: the folder holds no policies, is damaged, or holds parts of different builds.
    """
    folder = expand_user(path)
    found = _load_policies(folder)
    portfolio = load_portfolio(folder)
    if portfolio.fingerprint != found.about.fingerprint:
        raise InputError(f"{folder}: portfolio and {FILE} are of different builds: {_REMEDY}.")
    return SavedMembers(folder, found.about, portfolio, found.arrays.get("options"))


def load(path: str | Path, model: LanguageModel) -> Serving:
    """Read what `Serving.save` wrote.

    Args:
        path: the folder.
        model: the base model, loaded.

    Returns:
        Serving, its certificate computed again.

    Raises:
        InputError: a folder that is not whole, of another format or another model, or adapters that
            are not those it was saved with.
    """
    saved = load_members(path)
    return Serving(saved.portfolio, saved.adapt(model), model, saved.about.names)


def _policies(
    folder: Path, about: AboutPolicies, options: np.ndarray | None, model: LanguageModel
) -> Kind:
    """The policies of a folder; refuses others than those that were saved."""
    policies: Kind
    if about.kind == Conditioned.kind and options is not None:
        place = folder / "policy"
        policies = Conditioned(moc.load(place, model), options)
    elif about.kind == WholeModels.kind:
        place = folder
        policies = open_models(model, about.models)
    elif about.kind in _ADAPTED:
        place = folder / "adapters"
        numbers = range(len(about.identity))
        adapters = tuple(load_adapter(place / str(number), model.config) for number in numbers)
        policies = _ADAPTED[about.kind](adapters)
    else:
        raise InputError(
            f"{folder / FILE}: found policies of kind {about.kind!r}, expected one of "
            f"{', '.join([*_ADAPTED, Conditioned.kind, WholeModels.kind])}: {_REMEDY}."
        )
    found = identity(policies)
    if len(found) != len(about.identity):
        raise InputError(
            f"{folder / FILE}: found {len(about.identity)} identities of policies, expected "
            f"{len(found)}, one of each that is saved: {_REMEDY}."
        )
    for number, (own, saved) in enumerate(zip(found, about.identity, strict=True)):
        if own != saved:
            named = about.models[number] if about.models else f"{place}: number {number}"
            raise InputError(
                f"{named} is not the one that the portfolio was saved with (its SHA-256 differs): "
                "copy the folder again."
            )
    return policies
