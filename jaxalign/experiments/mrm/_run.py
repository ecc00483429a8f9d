"""One run, from choices to a report: resumable stage by stage, to the same bytes."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.data import ChoiceSource, Features, Preferences
from jaxalign.data.splits import Episodes, split_users
from jaxalign.errors import InputError
from jaxalign.experiments.mrm.data import (
    Encoded,
    ExperimentData,
    encode_items,
    fingerprint,
    fold_items,
    open_source,
    project,
)
from jaxalign.experiments.mrm.fits import SELECTABLE, fit_method
from jaxalign.experiments.mrm.folds import judge_new_items
from jaxalign.experiments.mrm.report import write
from jaxalign.experiments.mrm.statistics import NewUsers, assemble
from jaxalign.files import write_json
from jaxalign.mrm.config import MRMRunConfig
from jaxalign.mrm.model import UserModel, save
from jaxalign.mrm.reduce import Projection, identity
from jaxalign.mrm.support_query import (
    SupportQueryData,
    cut_episodes,
    support_query,
    training_choices,
)
from jaxalign.progress import Progress
from jaxalign.runs.artifact import load_arrays, save_arrays, unflatten
from jaxalign.version import __version__


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
    config: MRMRunConfig,
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
    config: MRMRunConfig, source: str, out: str | Path, resume: bool = False, show: bool = True
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
    config: MRMRunConfig,
    source: ChoiceSource,
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
    data = ExperimentData(choices, queries, fold_of_item, features, raw, split)
    cuts = _cut_users(data, config, say)
    # Only now, when nothing about the choices can be refused any more.
    claim(out, config, choices, encoded, label, resume)
    split.save(out / "splits.json")
    stage = stages(out, say)
    new_users = _new_users(data, config, cuts, stage, out, say)
    folds = (
        judge_new_items(data, config, new_users.fits, stage) if config.split.item_folds > 1 else {}
    )
    report = assemble(config, data, new_users, folds)
    _save_model(config, encoded, projection, new_users, out)
    write(out, report, new_users)
    return report


def _cut_users(
    data: ExperimentData, config: MRMRunConfig, say: Callable[[str], None]
) -> dict[str, Episodes]:
    """Support and query choices of validation and test users; says who is dropped."""
    cuts = {
        role: cut_episodes(data.choices, config.split, getattr(data.split, role))
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
    data: ExperimentData,
    config: MRMRunConfig,
    cuts: dict[str, Episodes],
    stage: Any,
    out: Path,
    say: Callable[[str], None],
) -> NewUsers:
    training = training_choices(data.choices, data.split.train, config.data, config.split.seed)
    validation, test = (support_query(data.choices, cuts[role]) for role in ("validation", "test"))
    fits = {}
    for name in ("bt", *config.methods):
        if name == "item_ids" and len(data.choices.items) > 256:
            say("item_ids left out: more than 256 items")
            continue
        checkpoint = out / "state" / f"{name}.epochs"
        checkpoint.mkdir(exist_ok=True)
        fit = fit_method(name, data, training, config, config.seeds, stage, checkpoint, say)
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
        full = cut_episodes(data.choices, config.split, data.split.test, everything=True)
        shots = float(np.mean([len(rows) for rows in full.support]))
        ceiling = (fits["bayes"].predict(support_query(data.choices, full)), shots)
    return NewUsers(fits, test, dropped, selected, predictions, curves, ceiling)


def _first(regime: SupportQueryData, shots: int) -> SupportQueryData:
    """The same users with their first `shots` choices only."""
    weight = regime.support.weight
    seen = jnp.cumsum(weight, axis=1) <= shots
    return replace(regime, support=regime.support._replace(weight=jnp.where(seen, weight, 0)))


def _save_model(
    config: MRMRunConfig, encoded: Encoded, projection: Projection, new_users: NewUsers, out: Path
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
