"""One run, from choices to a report: resumable stage by stage, to the same bytes."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.data import (
    Features,
    Preferences,
    Source,
    load_authors,
    load_features,
    load_source,
    lookup,
)
from jaxalign.data.sources import recognise
from jaxalign.data.splits import Episodes, item_folds, split_users
from jaxalign.errors import InputError
from jaxalign.files import write_json
from jaxalign.mrm import experiment as X
from jaxalign.mrm import report as R
from jaxalign.mrm.config import RunConfig
from jaxalign.mrm.fits import SELECTABLE, Fit, fit_method
from jaxalign.mrm.model import UserModel, save
from jaxalign.mrm.reduce import Projection, fit_projection, identity, standardise
from jaxalign.progress import Progress
from jaxalign.runs.artifact import load_arrays, save_arrays, unflatten
from jaxalign.version import __version__


@dataclass(frozen=True)
class Encoded:
    """Item features of a run, and where they came from."""

    values: np.ndarray
    names: tuple[str, ...] | None
    encoder_sha256: str


def open_source(config: RunConfig, source: str) -> tuple[Source, Features | None]:
    """Read a run's choices; the MRM authors' `X.pt` beside `X.json` brings features too."""
    data = config.data
    options: dict[str, Any] = {}
    kind: str = data.kind
    if Path(source).suffix == ".pt":
        choices, embeddings, _ = load_authors(source, Path(source).with_suffix(".json"))
        return Source(choices), Features(choices.items, embeddings)
    if kind == "auto" and Path(source).is_dir():
        kind = recognise(source)
    if kind == "jester":
        options = {"margin": data.margin, "pairs_per_half": data.pairs_per_half}
        options |= {"item_folds": config.split.item_folds or 10, "seed": config.split.seed}
        options["fold_pairs"] = config.split.item_folds > 0
    elif kind == "ukpconvarg1":
        options = {"item_folds": config.split.item_folds or 10, "seed": config.split.seed}
    return load_source(source, kind=data.kind, **options), None


def encode_items(config: RunConfig, choices: Preferences, given: Features | None) -> Encoded:
    """Features of every item: as given with the choices, from the named file, or by the encoder."""
    wanted = config.features
    if wanted.path:
        given = load_features(wanted.path)
    if given is not None:
        if wanted.named and given.names is None:
            raise InputError(
                f"{wanted.path} has no `names` of its columns, which named rewards need"
            )
        names = given.names if wanted.named else None
        return Encoded(np.asarray(lookup(given, choices.items), np.float32), names, "")
    from jaxalign.models.embed import encode, load_encoder

    encoder = load_encoder(wanted.model)
    pooling = None if wanted.pooling == "auto" else wanted.pooling
    return Encoded(encode(encoder, choices.texts, pooling=pooling), None, encoder.sha256)


def fold_items(config: RunConfig, source: Source) -> np.ndarray:
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


def project(config: RunConfig, encoded: Encoded) -> Projection:
    """The map from features to what the models work on."""
    if encoded.names:
        return standardise(encoded.values, encoded.names)
    return fit_projection(encoded.values, config.features.max_dims, config.features.whiten)


def fingerprint(config: RunConfig, choices: Preferences, encoded: Encoded) -> str:
    """Hash of all that decides a run's result."""
    digest = hashlib.sha256(json.dumps([asdict(config), __version__], sort_keys=True).encode())
    for array in (choices.user, choices.chosen, choices.rejected, choices.tie, choices.group):
        digest.update(np.ascontiguousarray(array).tobytes())
    digest.update(np.ascontiguousarray(encoded.values).tobytes())
    digest.update(json.dumps([encoded.names, encoded.encoder_sha256]).encode())
    for strings in (choices.users, choices.items, choices.texts):
        digest.update("\x00".join(strings).encode())
    return digest.hexdigest()


def refuse_foreign(out: Path) -> None:
    """Refuse an output folder that is in use and no run's, before any work is done."""
    if (out / "run.json").exists() or not out.exists():
        return
    if not out.is_dir():
        raise InputError(f"{out} is a file: give a folder with --out")
    if any(out.iterdir()):
        raise InputError(f"{out} is not empty and holds no run: give a new folder with --out")


def claim(
    out: Path,
    config: RunConfig,
    choices: Preferences,
    encoded: Encoded,
    source: str,
    resume: bool,
) -> None:
    """Make the output folder this run's, or refuse another run's."""
    mine = {
        "format": 1,
        "version": __version__,
        "source": Path(source).name,
        "fingerprint": fingerprint(config, choices, encoded),
        "config": asdict(config),
    }
    marker = out / "run.json"
    if not marker.exists():
        out.mkdir(parents=True, exist_ok=True)
        (out / "state").mkdir(exist_ok=True)
        write_json(marker, mine)
        return
    theirs = json.loads(marker.read_text())
    if theirs.get("fingerprint") != mine["fingerprint"]:
        raise InputError(
            f"{out} holds another run (other choices or settings): give a new folder with --out"
        )
    if not resume:
        state = "a finished run" if (out / "report.json").exists() else "an unfinished run"
        raise InputError(
            f"{out} holds {state} of the same settings: add --resume to go on, or give a new folder"
        )


def stages(out: Path, say: Callable[[str], None]) -> Callable[..., Any]:
    """`stage(name, compute)`: compute once, keep under state/, read back on a resume."""

    def stage(name: str, compute: Callable[[], Any]) -> Any:
        path = out / "state" / f"{name}.npz"
        if path.exists():
            say(f"{name}: kept from before")
        else:
            say(name)
            tree = compute()
            save_arrays(path, tree)
        return unflatten(load_arrays(path))

    return stage


def run(
    config: RunConfig, source: str, out: str | Path, resume: bool = False, show: bool = True
) -> dict[str, Any]:
    """Train, choose on validation users, judge test users once, and write the report.

    Args:
        config: the run.
        source: file, folder or `datasets` name of the choices.
        out: output folder: report.json, plots, model/, splits.json, state/.
        resume: go on with an unfinished run in `out`.
        show: progress on standard error.

    Returns:
        The report, as in report.json.

    Raises:
        InputError: bad choices, features, settings or folder.
    """
    out = Path(out)
    opened, features = open_source(config, source)
    return run_source(config, opened, features, source, out, resume, Progress(show).say)


def run_source(
    config: RunConfig,
    source: Source,
    given: Features | None,
    label: str,
    out: Path,
    resume: bool,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """`run`, from choices that are already in memory."""
    choices = source.choices
    split = split_users(
        choices.users, config.split.seed, config.split.unseen_share, config.split.validation_share
    )
    refuse_foreign(out)
    say(f"{len(choices):,} choices of {len(choices.users):,} users, {len(choices.items):,} items")
    encoded = encode_items(config, choices, given)
    projection = project(config, encoded)
    features = jnp.asarray(projection.apply(encoded.values))
    fold_of_item = fold_items(config, source)
    raw = jnp.asarray(encoded.values)
    queries = source.fold_choices or choices
    world = X.World(choices, queries, fold_of_item, features, raw, split)
    cuts = _cut_users(world, config, say)
    # Only now, when nothing about the choices can be refused any more.
    claim(out, config, choices, encoded, label, resume)
    split.save(out / "splits.json")
    stage = stages(out, say)
    new_users = _new_users(world, config, cuts, stage, out, say)
    folds = _new_items(world, config, new_users.fits, stage) if config.split.item_folds > 1 else {}
    report = R.assemble(config, world, new_users, folds)
    _save_model(config, encoded, projection, new_users, out)
    R.write(out, report, new_users)
    return report


@dataclass(frozen=True)
class NewUsers:
    """All that the new-user regime gives.

    Attributes:
        fits: name -> fit with its chosen settings; "bt" is among them.
        test: the test users' choices.
        dropped: {"validation": n, "test": n} users with too few choices.
        selected: what validation chose.
        curves: name -> (shots -> probabilities).
        ceiling: predictions of `bayes` from all the choices that a test user has on the support
            side, and how many that is on average; None without `bayes`.
    """

    fits: dict[str, Fit]
    test: X.Regime
    dropped: dict[str, int]
    selected: str
    predictions: dict[str, tuple[np.ndarray, np.ndarray]]
    curves: dict[str, dict[int, np.ndarray]]
    ceiling: tuple[np.ndarray, float] | None


def _cut_users(
    world: X.World, config: RunConfig, say: Callable[[str], None]
) -> dict[str, Episodes]:
    """Support and query choices of validation and test users; says who is dropped."""
    cuts = {
        role: X.cut_episodes(world, config, getattr(world.split, role))
        for role in ("validation", "test")
    }
    for role, cut in cuts.items():
        if cut.dropped:
            everyone = cut.dropped + len(cut.users)
            say(f"{cut.dropped} of {everyone} {role} users dropped: too few choices")
        if not cut.users:
            raise InputError(
                f"no {role} user has {config.split.min_support} choices to learn from and "
                f"{config.split.min_query} in other groups to judge on: lower split.min_support "
                "or split.min_query, or give more choices"
            )
    return cuts


def _new_users(
    world: X.World,
    config: RunConfig,
    cuts: dict[str, Episodes],
    stage: Any,
    out: Path,
    say: Callable[[str], None],
) -> NewUsers:
    training = X.training_pairs(world, config)
    validation, test = (X.regime(world, cuts[role]) for role in ("validation", "test"))
    fits = {}
    for name in ("bt", *config.methods):
        if name == "item_ids" and len(world.choices.items) > 256:
            say("item_ids left out: more than 256 items")
            continue
        checkpoint = out / "state" / f"{name}.epochs"
        checkpoint.mkdir(exist_ok=True)
        fit = fit_method(name, world, training, config, config.seeds, stage, checkpoint, say)
        fits[name] = fit.choose(validation)
    selected = min((n for n in fits if n in SELECTABLE), key=lambda name: fits[name].loss)
    say(f"validation chose {selected}; test users are judged once")
    predictions = {n: (f.predict(test), f.predict(test, adapted=False)) for n, f in fits.items()}
    curves = {
        name: {shots: fits[name].predict(_first(test, shots)) for shots in config.shots}
        for name in fits
        if name != "bt"
    }
    dropped = {role: cut.dropped for role, cut in cuts.items()}
    ceiling = None
    if "bayes" in fits:
        full = X.cut_episodes(world, config, world.split.test, everything=True)
        shots = float(np.mean([len(rows) for rows in full.support]))
        ceiling = (fits["bayes"].predict(X.regime(world, full)), shots)
    return NewUsers(fits, test, dropped, selected, predictions, curves, ceiling)


def _first(regime: X.Regime, shots: int) -> X.Regime:
    """The same users with their first `shots` choices only."""
    weight = regime.support.weight
    seen = jnp.cumsum(weight, axis=1) <= shots
    return replace(regime, support=regime.support._replace(weight=jnp.where(seen, weight, 0)))


def _new_items(
    world: X.World, config: RunConfig, fits: dict[str, Fit], stage: Any
) -> dict[str, Any]:
    """Predictions on held-out items, pooled over folds: regime -> arrays."""
    names = ["bt", *(name for name in config.fold_methods if name in fits)]
    # A fold is served with the settings that validation users chose on the fold before it, so
    # that no setting has seen the fold's items; the first takes those of the known items.
    settings = {name: fits[name].settings[:1] for name in names}
    folds = []
    for fold in range(config.split.item_folds):
        kept = stage(
            f"fold{fold:02d}",
            lambda fold=fold, settings=settings: _one_fold(world, config, fold, settings),
        )
        settings = json.loads(str(kept["settings"]))
        folds.append(kept)
    pooled: dict[str, Any] = {"names": names}
    for where in ("new_items", "new_users_new_items"):
        parts = [fold[where] for fold in folds]
        weight = np.concatenate([part["weight"] for part in parts], axis=1)
        pooled[where] = {
            "mask": weight > 0,
            "chosen": np.concatenate([part["chosen"] for part in parts], axis=1),
            "rejected": np.concatenate([part["rejected"] for part in parts], axis=1),
            "predictions": {
                name: tuple(
                    np.concatenate([part[kind][name] for part in parts], axis=-1)
                    for kind in ("adapted", "unadapted")
                )
                for name in names
            },
            "losses": {
                name: float(np.mean([fold["losses"][name] for fold in folds])) for name in names
            },
        }
    return pooled


def _one_fold(
    world: X.World, config: RunConfig, fold: int, settings: dict[str, list[Any]]
) -> dict[str, Any]:
    """Fit without the fold's items; predict on them with the given settings; choose the next."""
    training = X.training_pairs(world, config, ~X.touching(world, fold))
    wheres = {
        "new_items": X.fold_regime(world, config, world.split.train, fold, seen=True),
        "new_users_new_items": X.fold_regime(world, config, world.split.test, fold, seen=False),
    }
    validation, enough = X.fold_regime(world, config, world.split.validation, fold, seen=False)
    validation = X.judged_only(validation, enough)
    result: dict[str, Any] = {"losses": {}}
    for where, (regime, usable) in wheres.items():
        result[where] = {
            "weight": np.asarray(regime.query.weight) * usable[:, None],
            "chosen": np.asarray(regime.query.chosen),
            "rejected": np.asarray(regime.query.rejected),
            "adapted": {},
            "unadapted": {},
        }
    following = {}
    for name, given in settings.items():
        fit = fit_method(name, world, training, config, 1, lambda _, compute: compute())
        fit.choose(validation)
        result["losses"][name] = np.asarray(fit.loss)
        following[name], fit.settings = fit.settings, given
        for where, (regime, _) in wheres.items():
            result[where]["adapted"][name] = fit.predict(regime)[0]
            result[where]["unadapted"][name] = fit.predict(regime, adapted=False)[0]
    return {**result, "settings": np.asarray(json.dumps(following))}


def _save_model(
    config: RunConfig, encoded: Encoded, projection: Projection, new_users: NewUsers, out: Path
) -> None:
    fit = new_users.fits[new_users.selected]
    setting, fitted = fit.settings[0], fit.fitted[0]
    one = new_users.fits["bt"]
    theta = one.fitted[0]["theta"][one.settings[0]["ridge"]]
    arrays: dict[str, Any] = {"bt": (projection.matrix @ theta).astype(np.float32)}
    kind, recipe, strength = new_users.selected, None, (0.0, 0)
    if kind == "bt":
        arrays |= {"mean": theta, "cov": np.zeros((len(theta), len(theta)), theta.dtype)}
    elif kind == "bayes":
        mean, cov = fitted["mean"][setting["em"]], fitted["cov"][setting["em"]]
        arrays |= {"mean": mean, "cov": cov if setting["adapt"] else np.zeros_like(cov)}
    else:
        recipe = config.mrm if kind == "mrm" else config.published
        index = setting["snapshot"]
        arrays["params"] = jax.tree.map(lambda leaf: leaf[index], fitted["params"])
        if kind == "mrm_published":
            projection = identity(encoded.values.shape[1])
        kind, strength = "mrm", (setting["rate"], setting["steps"])
    sha256 = encoded.encoder_sha256
    model = UserModel(kind, arrays, projection, config.features, sha256, recipe, strength)
    save(out / "model", model)
