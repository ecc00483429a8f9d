"""A portfolio of language-model policies at work: users in, each answered by the best member."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import ArrayLike

from jaxalign import moc
from jaxalign.errors import InputError
from jaxalign.files import write_json
from jaxalign.models.chat import Chat, Completion, generate_texts
from jaxalign.models.language import LanguageModel
from jaxalign.models.peft import load_adapter, save_adapter
from jaxalign.models.sampling import Sampling
from jaxalign.palm import portfolio as artefact
from jaxalign.palm.portfolio import Portfolio
from jaxalign.personalize.policies import (
    Conditioned,
    Kind,
    Mixing,
    PreferenceConditionedBatch,
    Separate,
    Soups,
    StackedAdapters,
    identity,
)

FORMAT = 2
FILE = "policies.json"
_ADAPTED = {kind.kind: kind for kind in (Soups, Mixing, Separate)}


class Answered(NamedTuple):
    """What users got.

    Attributes:
        answers: B, in order.
        members: [B] int32, who answered; 0 is the reference.
        values: [B] what the member is worth to the user, in units of reward, KL's price taken off.
    """

    answers: list[Completion]
    members: np.ndarray
    values: np.ndarray


@dataclass(frozen=True, eq=False)
class Serving:
    """A portfolio with the model and the policies that its members are made of.

    Attributes:
        portfolio: its payload holds the members' `weight` [M, A].
        policies: the kind, and what it makes policies of A weights with.
        model: the reference policy.
    """

    portfolio: Portfolio
    policies: Kind = field(repr=False)
    model: LanguageModel = field(repr=False)

    def __post_init__(self) -> None:
        shape = np.shape(self.portfolio.members.payload.get("weight", ()))
        if shape[1:] != (self.policies.size,):
            each = "reward" if isinstance(self.policies, Conditioned) else "adapter"
            raise InputError(
                f"portfolio: found members' weights of shape {shape}, expected "
                f"{self.policies.size} a member, one for each {each}; is it of other policies?"
            )

    @cached_property
    def stacked(self) -> StackedAdapters | PreferenceConditionedBatch:
        """The members side by side, made once."""
        return self.policies.stacked(self.portfolio.members.payload["weight"])

    def save(self, path: str | Path) -> None:
        """Write portfolio and policies to a folder; the base model is only named, with its hash.

        Args:
            path: a folder, made if needed: the portfolio's files, policies.json, and the adapters
                as peft writes them, or the one policy that is told preferences as MOC does.

        Raises:
            InputError: adapters that do not fit the model.
        """
        folder, model = Path(path), self.model
        folder.mkdir(parents=True, exist_ok=True)
        policies = self.policies
        if isinstance(policies, Conditioned):
            moc.save(folder / "policy", policies.policy)
        else:
            for number, (config, tree) in enumerate(policies.adapters):
                place = folder / "adapters" / str(number)
                place.parent.mkdir(parents=True, exist_ok=True)
                save_adapter(place, tree, config, model.name, model.config)
        described = {
            "format": FORMAT,
            "kind": policies.kind,
            "base": {"name": model.name, "sha256": model.sha256},
            "identity": identity(policies),
            "options": None if policies.options is None else policies.options.tolist(),
            "data_fingerprint": self.portfolio.fingerprint,
        }
        write_json(folder / FILE, described)
        self.portfolio.save(folder)


def load(path: str | Path, model: LanguageModel) -> Serving:
    """Read what `Serving.save` wrote.

    Args:
        path: the folder.
        model: the base model, loaded.

    Returns:
        Serving, its certificate computed again.

    Raises:
        InputError: a folder that is not whole, of another format or another model, adapters that
            are not those it was saved with, or a portfolio that fails its own certificate.
    """
    folder = Path(path)
    try:
        described = json.loads((folder / FILE).read_text())
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} holds no policies beside a portfolio: {error}; save them again."
        ) from None
    kinds = [*_ADAPTED, Conditioned.kind]
    if described.get("format") != FORMAT or described.get("kind") not in kinds:
        raise InputError(
            f"{folder / FILE} has format {described.get('format')!r} and kind "
            f"{described.get('kind')!r}, this version reads format {FORMAT} of {', '.join(kinds)}: "
            "save again or install the jaxalign that wrote it."
        )
    base = described["base"]
    if base["sha256"] != model.sha256:
        raise InputError(
            f"{folder / FILE}: the policies are of {base['name']} with SHA-256 "
            f"{base['sha256'][:12]}, found {model.name} with {model.sha256[:12]}: load that model."
        )
    policies = _policies(folder, described, model)
    portfolio = artefact.load(folder)
    if portfolio.fingerprint != described["data_fingerprint"]:
        raise InputError(
            f"{folder}: portfolio and {FILE} are of different builds: save them again."
        )
    return Serving(portfolio, policies, model)


def _policies(folder: Path, described: dict[str, Any], model: LanguageModel) -> Kind:
    """The policies of a folder, refused where they are not those that were saved."""
    policies: Kind
    if described["kind"] == Conditioned.kind:
        place = folder / "policy"
        policies = Conditioned(moc.load(place, model), np.asarray(described["options"]))
    else:
        place = folder / "adapters"
        found = range(len(described["identity"]))
        adapters = tuple(load_adapter(place / str(number), model.config) for number in found)
        policies = _ADAPTED[described["kind"]](adapters)
    for number, (own, saved) in enumerate(
        zip(identity(policies), described["identity"], strict=True)
    ):
        if own != saved:
            raise InputError(
                f"{place}: number {number} is not the one that the portfolio was saved with (its "
                "SHA-256 differs): copy the folder again."
            )
    return policies


def answer(
    serving: Serving,
    weights: ArrayLike,
    prompts: Sequence[str | Chat],
    settings: Sampling,
    key: jax.Array,
    *,
    batch_size: int = 64,
    progress: bool = True,
) -> Answered:
    """Route each user to the best member and answer: one decode call a batch, members mixed.

    Args:
        serving: portfolio, policies and model.
        weights: [B, R] of the users, as `Portfolio.route` takes them.
        prompts: B, one a user.
        settings: how tokens are drawn.
        key: random key; an answer depends on its member, prompt and place, not on the batch.
        batch_size: most prompts at once; who is routed where compiles nothing anew.
        progress: show a bar on stderr when it takes more than a few seconds.

    Returns:
        Answers, members and values.

    Raises:
        InputError: weights off the portfolio's domain, another number of prompts, or as
            `generate_texts`.
    """
    values, members = (np.asarray(found) for found in serving.portfolio.route(weights))
    found = answer_as(
        serving, members, prompts, settings, key, batch_size=batch_size, progress=progress
    )
    return Answered(found, members, values)


def answer_as(
    serving: Serving,
    members: ArrayLike,
    prompts: Sequence[str | Chat],
    settings: Sampling,
    key: jax.Array,
    *,
    batch_size: int = 64,
    progress: bool = True,
) -> list[Completion]:
    """Answer each prompt by a given member, for users routed elsewhere (on a posterior, say).

    Args:
        serving, prompts, settings, key, batch_size, progress: as in `answer`.
        members: [B] int, 0 is the reference.

    Returns:
        B answers, in order.

    Raises:
        InputError: members that the portfolio lacks, another number of prompts, or as
            `generate_texts`.
    """
    members = np.asarray(members)
    count = len(serving.portfolio.members)
    if members.shape != (len(prompts),):
        raise InputError(
            f"found members or weights of shape {members.shape} and {len(prompts)} prompts; "
            "expected one for each prompt."
        )
    if len(members) and not (0 <= members.min() <= members.max() < count):
        raise InputError(f"members are {members}; expected numbers from 0 to {count - 1}.")
    return generate_texts(
        serving.model,
        serving.stacked.prompts(prompts, members),
        settings,
        key,
        **serving.stacked.arguments(members),
        batch_size=batch_size,
        progress=progress,
    )
