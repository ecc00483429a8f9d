"""What a run is made from: choices of a source, features of their items, and users by role."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from jaxalign.data import (
    ChoiceSource,
    Features,
    Preferences,
    load_authors,
    load_features,
    load_source,
    lookup,
)
from jaxalign.data.features import columns_named
from jaxalign.data.files import only_ratings
from jaxalign.data.sources import recognise
from jaxalign.data.splits import UserSplit, item_folds
from jaxalign.errors import InputError
from jaxalign.experiments.mrm.config import MRMRunConfig
from jaxalign.files import expand_user
from jaxalign.mrm.config import ChoiceDataConfig
from jaxalign.mrm.model import RUN_KIND
from jaxalign.mrm.reduce import Projection, fit_projection, standardise
from jaxalign.mrm.registry import Fitted
from jaxalign.mrm.support_query import TrainingData, training_choices
from jaxalign.rewards.reward_scale import RewardScale, fit_scale, load_scale, stated_scale
from jaxalign.runs.run_dir import Identity, RunDir, open_run_dir


@dataclass(frozen=True)
class ExperimentData:
    """The data of a run, on the device.

    Attributes:
        choices: the table.
        queries: choices between items of one fold, where a source has more than the table.
        fold_of_item: [I] fold of every item.
        features: [I, D] projected, as most models see them.
        encoded: [I, E] as they were encoded or given.
        split: users by role.
        start: name of a method, and what it learned in an earlier run, where its fit starts.
        all_directions: [I, A] on all principal directions; None where `features` are.
    """

    choices: Preferences
    queries: Preferences
    fold_of_item: np.ndarray
    features: jax.Array
    encoded: jax.Array
    split: UserSplit
    start: tuple[str, Fitted] | None = None
    all_directions: jax.Array | None = None

    def training(self, config: ChoiceDataConfig, known: np.ndarray | None = None) -> TrainingData:
        """Return what methods are fitted on, of the rows `known` [N] only where given."""
        choices = training_choices(self.choices, self.split.train, config, self.split.seed, known)
        return TrainingData(
            self.features, self.encoded, choices, self.start, self.all_directions,
            self.choices.scales,
        )  # fmt: skip


@dataclass(frozen=True)
class Encoded:
    """Item features of a run, and where they came from.

    Attributes:
        values: [I, E].
        names: [E] of named base rewards, None for learned features.
        encoder_sha256: digest of the encoder's weights, empty for given features.
        scale: of the named rewards, where their file states it.
    """

    values: np.ndarray
    names: tuple[str, ...] | None
    encoder_sha256: str
    scale: RewardScale | None = None


def open_source(config: MRMRunConfig, source: str) -> tuple[ChoiceSource, Features | None]:
    """Read a run's choices; the MRM authors' `X.pt` beside `X.json` brings features too."""
    data = config.data
    options: dict[str, float | bool] = {}
    kind: str = data.kind
    if Path(source).suffix == ".pt":
        choices, embeddings, _ = load_authors(source, expand_user(source).with_suffix(".json"))
        return ChoiceSource(choices), Features(choices.items, embeddings)
    if kind == "auto" and expand_user(source).is_dir():
        kind = recognise(source)
    if kind == "jester":
        options = {"margin": data.margin, "pairs_per_half": data.pairs_per_half}
        options |= {"item_folds": config.split.item_folds or 10, "seed": config.split.seed}
        options["fold_pairs"] = config.split.item_folds > 0
    elif kind == "ukpconvarg1":
        options = {"item_folds": config.split.item_folds or 10, "seed": config.split.seed}
    found = load_source(source, data.kind, data.on_bad_row, ratings=True, **options)
    if bool(found.choices.rating.all()):
        raise only_ratings(source, len(found.choices))
    return found, None


def encode_items(config: MRMRunConfig, choices: Preferences, given: Features | None) -> Encoded:
    """Features of every item: as given with the choices, from the named file, or by the encoder."""
    wanted = config.features
    if wanted.path:
        given = load_features(wanted.path)
    if given is not None:
        if given.names is None and (wanted.named or wanted.scale):
            raise InputError(
                f"{wanted.path} has no `names` of its columns, which named rewards need"
            )
        if wanted.scale:
            given = columns_named(given, load_scale(wanted.scale).names)
        names = None if wanted.named is False else given.names
        values = np.asarray(lookup(given, choices.items, choices.texts), np.float32)
        stated = None if names is None else stated_scale(given.scale, names, given.source)
        return Encoded(values, names, "", stated)
    from jaxalign.models.embed import encode, load_encoder

    encoder = load_encoder(wanted.model)
    pooling = None if wanted.pooling == "auto" else wanted.pooling
    return Encoded(encode(encoder, choices.texts, pooling=pooling), None, encoder.sha256)


def fold_items(config: MRMRunConfig, source: ChoiceSource) -> np.ndarray:
    """Fold of each item: the source's own; else by prompt where all rows have one; else by item."""
    choices, folds, seed = source.choices, config.split.item_folds, config.split.seed
    if source.fold_of_item is not None:
        return source.fold_of_item
    if len(choices) and bool((choices.prompt >= 0).all()):
        of_prompt = item_folds(int(choices.prompt.max()) + 1, max(folds, 1), seed)
        fold = np.zeros(len(choices.items), np.int32)
        fold[choices.chosen] = of_prompt[choices.prompt]
        fold[choices.rejected] = of_prompt[choices.prompt]
        return fold
    return item_folds(len(choices.items), max(folds, 1), seed)


def project(config: MRMRunConfig, encoded: Encoded) -> Projection:
    """Return the map from features to what the models work on."""
    features = config.features
    if encoded.names is None:
        return fit_projection(encoded.values, features.max_dims, features.whiten)
    if features.scale:
        return standardise(load_scale(features.scale))
    return standardise(encoded.scale or fit_scale(encoded.values, encoded.names, None))


def all_directions(config: MRMRunConfig, encoded: Encoded) -> Projection | None:
    """Return the map to all principal directions, None where there are no more than are kept."""
    if encoded.names is not None or min(encoded.values.shape) <= config.features.max_dims:
        return None
    return fit_projection(encoded.values, encoded.values.shape[1], config.features.whiten)


def open_run(
    config: MRMRunConfig,
    choices: Preferences,
    encoded: Encoded,
    scale: RewardScale | None,
    out: Path,
    resume: bool,
    start: str = "",
) -> RunDir:
    """Open the folder of a run, which its settings, choices and features decide."""
    arrays = [choices.user, choices.chosen, choices.rejected, choices.tie, choices.group]
    if choices.held_out is not None:
        arrays.append(choices.held_out)
    if choices.details is not None:
        arrays += [*choices.details, np.asarray(choices.scales)]
    identity: dict[str, Identity] = {
        "choices": [*arrays, *choices.users, *choices.items, *choices.texts],
        "features": [encoded.values, *(encoded.names or ()), encoded.encoder_sha256],
        "scale of rewards": "" if scale is None else scale.digest,
        "run to start from": start,
    }
    return open_run_dir(out, RUN_KIND, config, identity, resume, _discard_outdated_stages)


def _discard_outdated_stages(state: Path, changes: Mapping[str, str]) -> None:
    """Fit the methods again whose epochs the resumed run has raised, and judge new items again."""
    stale = [state / f"{name.partition('.')[0]}.safetensors" for name in changes]
    for path in (*stale, *state.glob("fold*.safetensors")):
        path.unlink(missing_ok=True)
