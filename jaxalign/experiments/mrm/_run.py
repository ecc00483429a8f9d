"""One run, from choices to a report: resumable stage by stage, to the same bytes."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jaxalign.data.preferences import Preferences
from jaxalign.data.splits import Episodes, UserSplit, split_users
from jaxalign.errors import InputError
from jaxalign.experiments.mrm.adaptation import AdaptationRule, Decision, reference_pairs
from jaxalign.experiments.mrm.config import GLOBAL_MODELS, MRMRunConfig, method_of
from jaxalign.experiments.mrm.data import (
    Encoded,
    ExperimentData,
    all_directions,
    encode_items,
    fold_items,
    open_run,
    open_source,
    project,
)
from jaxalign.experiments.mrm.fits import (
    FittedMethod,
    KeepStage,
    SharedEffects,
    fit_method,
    shared_effects,
)
from jaxalign.experiments.mrm.folds import Predictions, judge_new_items, usable_folds
from jaxalign.experiments.mrm.gates import let_through
from jaxalign.experiments.mrm.report import write_pages
from jaxalign.experiments.mrm.start import earlier_projection, extended_split, load_start
from jaxalign.experiments.mrm.statistics import NewUsers, Report, assemble, selected_method
from jaxalign.files import expand_user, write_json
from jaxalign.mrm.known_items import known_effects
from jaxalign.mrm.model import RUN_KIND, UserModel, save
from jaxalign.mrm.reduce import Projection, identity
from jaxalign.mrm.registry import Fitted, Inputs, require
from jaxalign.mrm.support_query import (
    cut_episodes,
    support_query,
    with_other_support,
    with_swapped_support,
)
from jaxalign.progress import Progress, counted
from jaxalign.rewards.reward_scale import SCALE_FILE
from jaxalign.runs import RunDir
from jaxalign.runs.run_dir import check_run_dir


def run(
    config: MRMRunConfig,
    source: str,
    out: str | Path,
    resume: bool = False,
    show: bool = True,
    start: Path | None = None,
) -> Report:
    """Train, choose on validation users, judge test users once, and write the report.

    Args:
        config: the run.
        source: file, folder or `datasets` name of the choices.
        out: output folder: report.json, report.md, plots, model.safetensors, splits.json, state/,
            and scale.json where the features are named rewards.
        resume: whether to go on with an unfinished run in `out`.
        show: whether to print progress on standard error.
        start: folder of a finished run whose saved model is where the fit of its method starts, on
            that run's directions of the features. Users keep the roles that they had there, and
            there are no figures on new items, which that run has seen.

    Returns:
        The report, as in report.json.

    Raises:
        InputError: bad choices, features, settings or folder.
    """
    _check_selected(config)
    out, progress = expand_user(out), Progress(show)
    say = progress.say
    check_run_dir(out, RUN_KIND, config, resume)
    earlier = None if start is None else load_start(start, config)
    opened, given = open_source(config, source)
    choices = opened.choices
    if earlier is None:
        shares = (config.split.unseen_share, config.split.validation_share)
        split = split_users(choices.users, config.split.seed, *shares)
    else:
        split = extended_split(earlier, choices.users, config)
    for note in choices.notes:
        say(note)
    _say_rows(choices, config, say)
    cuts = _cut_users(choices, split, config, say)
    encoded = encode_items(config, choices, given)
    if earlier is None:
        projection, begun = project(config, encoded), None
        every = all_directions(config, encoded)
    else:
        projection, every = earlier_projection(earlier, encoded, config), None
        begun = (earlier.model.method.name, earlier.model.fitted)
    data = ExperimentData(
        choices,
        opened.fold_choices or choices,
        fold_items(config, opened),
        jnp.asarray(projection.apply(encoded.values)),
        jnp.asarray(encoded.values),
        split,
        begun,
        None if every is None else jnp.asarray(every.apply(encoded.values)),
    )
    _say_folds(data, config, say)
    # Only now, when nothing about the choices can be refused any more.
    digest = "" if earlier is None else earlier.model.digest
    folder = open_run(config, choices, encoded, projection.scale, out, resume, digest)
    for name, words in folder.changes.items():
        say(f"{name.partition('.')[0]} goes on: epochs {words}")
    split.save(out / "splits.json")
    if projection.scale is not None:
        write_json(out / SCALE_FILE, projection.scale.to_json())

    def stage(name: str, compute: Callable[[], Fitted]) -> Fitted:
        with progress.waiting(name):
            return folder.stage(name, compute, say)

    new_users = _new_users(data, config, cuts, stage, folder, progress)
    folds = judge_new_items(data, config, new_users.fits, stage)
    with progress.waiting("intervals of the report"):
        report = assemble(config, data, new_users, folds)
    projections: dict[Inputs, Projection] = {
        "projected": projection,
        "directions": every or projection,
    }
    save(out, _chosen_model(config, data, encoded, projections, new_users))
    with progress.waiting("report and plots"):
        write_pages(out, report, new_users)
    folder.finish(report)
    return report


def _say_rows(choices: Preferences, config: MRMRunConfig, say: Callable[[str], None]) -> None:
    """Say how many rows there are, and which methods leave ratings out."""
    ratings = int(choices.rating.sum())
    rows = counted(len(choices) - ratings, "choice")
    rows += f" and {counted(ratings, 'rating')}" if ratings else ""
    people, items = counted(len(choices.users), "user"), counted(len(choices.items), "item")
    say(f"{rows} of {people}, {items}")
    if not ratings:
        return
    methods = [method_of(config, name) for name in (*GLOBAL_MODELS, *config.methods)]
    unable = [method.name for method in methods if "ratings" not in method.capabilities]
    them = counted(ratings, "rating")
    say(f"{them} left out by {', '.join(dict.fromkeys(unable))}: they learn from choices alone")


def _check_selected(config: MRMRunConfig) -> None:
    """Refuse to save a method that is not fitted, or that cannot score new items."""
    if config.select == "validation":
        return
    if config.select not in (*GLOBAL_MODELS, *config.methods):
        raise InputError(
            f"select: found {config.select!r}, expected one of the fitted methods, "
            f"{', '.join(config.methods)}; add it to methods."
        )
    require(method_of(config, config.select), "new_items", "a model to save (`select`)")


def _cut_users(
    choices: Preferences, split: UserSplit, config: MRMRunConfig, say: Callable[[str], None]
) -> dict[str, Episodes]:
    """Support and query choices of validation and test users; says who is dropped."""
    cuts = {
        role: cut_episodes(choices, config.split, getattr(split, role))
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
                "or split.min_query, or give more choices."
            )
    return cuts


def _say_folds(data: ExperimentData, config: MRMRunConfig, say: Callable[[str], None]) -> None:
    """Say which figures on new items are left out because their folds cannot be judged."""
    count, usable = config.split.item_folds, len(usable_folds(data, config))
    if count < 2 or usable == count:
        return
    prompts = data.choices.prompt
    by_prompt = bool((prompts >= 0).all())
    cause = (
        counted(len(np.unique(prompts)), "prompt")
        if by_prompt
        else counted(len(data.choices.items), "item")
    )
    what = "there are no figures on new items" if not usable else f"figures are of {usable} folds"
    say(
        f"{count - usable} of {count} item folds left out, {what}: {cause} are too few to hold "
        "some of them out from enough users (--split.item_folds 0 asks for no such figures)"
    )


def _new_users(
    data: ExperimentData,
    config: MRMRunConfig,
    cuts: dict[str, Episodes],
    stage: KeepStage,
    folder: RunDir,
    progress: Progress,
) -> NewUsers:
    say = progress.say
    training = data.training(config.data)
    validation, test = (support_query(data.choices, cuts[role]) for role in ("validation", "test"))
    fits: dict[str, FittedMethod] = {}
    decisions: dict[str, Decision] = {}
    rule = AdaptationRule(data, config, validation, stage, say)
    effects: SharedEffects | None = None
    for name in dict.fromkeys((*GLOBAL_MODELS, *config.methods)):
        method = method_of(config, name)
        checkpoint = folder.state / f"{name}.epochs"
        checkpoint.mkdir(exist_ok=True)
        shared = effects if method.inputs != "ids" else None
        fit = fit_method(method, training, config.seeds, stage, checkpoint, say, shared)
        decisions[name], fits[name] = rule.decide(fit, common=name in GLOBAL_MODELS), fit
        if name == "bt_items":
            effects = shared_effects(fit, validation, data.features.shape[1])
    selected = selected_method(config, {name: fit.loss for name, fit in fits.items()})
    chosen = "validation chose" if config.select == "validation" else "as the config says, saving"
    reference = reference_pairs(data, config)
    adapting = {name: fit for name, fit in fits.items() if decisions[name].adapts}
    with progress.waiting("levels of the gates"):
        for fit in adapting.values():
            rule.set_gates(fit, reference)
    say(f"{chosen} {selected}; test users are judged once")
    with progress.waiting("test users"):
        predictions, curves, controls, ceiling = _judge_once(data, config, fits, cuts["test"])
        through = {
            name: let_through(fit, test, reference, predictions[name])
            for name, fit in adapting.items()
        }
    dropped = {role: cut.dropped for role, cut in cuts.items()}
    return NewUsers(
        fits, test, dropped, selected, predictions, curves, controls, ceiling, decisions, through
    )


def _judge_once(
    data: ExperimentData,
    config: MRMRunConfig,
    fits: Mapping[str, FittedMethod],
    cut: Episodes,
) -> tuple[
    Predictions, dict[str, dict[int, np.ndarray]], Predictions, tuple[np.ndarray, float] | None
]:
    """Predictions of test users: whole, by number of choices, of the controls, of the ceiling."""
    test = support_query(data.choices, cut)
    predictions = {n: (f.predict(test), f.predict(test, adapted=False)) for n, f in fits.items()}
    first = {shots: support_query(data.choices, cut, shots) for shots in config.shots}
    curves = {
        name: {shots: fits[name].predict(known) for shots, known in first.items()}
        for name in fits
        if name not in GLOBAL_MODELS
    }
    wrong = (with_swapped_support(test), with_other_support(test))
    controls: Predictions = {
        name: (fit.predict(wrong[0]), fit.predict(wrong[1])) for name, fit in fits.items()
    }
    ceiling = None
    if "bayes" in fits:
        full = cut_episodes(data.choices, config.split, data.split.test, everything=True)
        shots = float(np.mean([len(rows) for rows in full.support]))
        ceiling = (fits["bayes"].predict(support_query(data.choices, full)), shots)
    return predictions, curves, controls, ceiling


def _chosen_model(
    config: MRMRunConfig,
    data: ExperimentData,
    encoded: Encoded,
    projections: Mapping[Inputs, Projection],
    new_users: NewUsers,
) -> UserModel:
    """The model to save: the first fit of the chosen method, with the projection that it reads."""
    fit, one = new_users.fits[new_users.selected], new_users.fits["bt"]
    theta = one.fitted[0]["theta"][one.candidates[0]["ridge"]]
    margins = projections["projected"].matrix @ theta / one.judged.divisor_of(one.candidates[0])
    projection = projections.get(fit.method.inputs)
    if projection is None:  # of the encoded features themselves
        projection = identity(encoded.values.shape[1])
    choices, effects = data.choices, fit.effects()
    model = UserModel(
        fit.method, fit.fitted[0], fit.candidates[0], margins.astype(np.float32), projection,
        config.features, encoded.encoder_sha256,
        with_prompts=bool((choices.prompt >= 0).any()),
        item_effects=known_effects(choices.items, choices.texts, effects),
        gate=fit.gates[0],
        stated_scale="" if encoded.scale is None else encoded.scale.digest,
    )  # fmt: skip
    if "weights" not in fit.method.capabilities:
        return model
    pairs = reference_pairs(data, config)
    base = (model.base(encoded.values[side]) for side in (pairs.chosen, pairs.rejected))
    chosen, rejected = base
    moves = None if effects is None else effects[pairs.chosen] - effects[pairs.rejected]
    return replace(model, reference=chosen - rejected, reference_effects=moves)
