"""From models and histories to trained plugs in a folder, controls among them."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from shutil import rmtree
from typing import Any, Literal, NamedTuple

import jax

from jaxalign.config import load_config, to_yaml
from jaxalign.data.histories import Histories
from jaxalign.errors import InputError
from jaxalign.files import write_json, write_text
from jaxalign.models.embed import Encoder, load_encoder
from jaxalign.models.encoder_files import read_json
from jaxalign.models.language import LanguageModel, load_language_model
from jaxalign.pplug.config import PPlugConfig, TextConfig
from jaxalign.pplug.controls import RUNS, shuffled
from jaxalign.pplug.files import save
from jaxalign.pplug.model import start
from jaxalign.pplug.questions import nearest, questions
from jaxalign.pplug.rows import check_encoder
from jaxalign.pplug.source import DataConfig, digest, read, subset
from jaxalign.pplug.store import HistoryStore, history_store
from jaxalign.pplug.train import STORE, train
from jaxalign.progress import Progress
from jaxalign.runs.run_dir import open_run_dir
from jaxalign.train.mesh import make_mesh, param_shardings

CONFIG, SOURCES, REPORT, PLUGS, PLUG = (
    "config.yaml", "sources.json", "report.json", "plugs", "model",
)  # fmt: skip
FORMAT = 1


@dataclass(frozen=True)
class RetrievalConfig:
    """Items in the prompts of those methods that have some there.

    Attributes:
        count: the most items of a prompt, and of a persona of the top items.
        prompt_tokens: of such a prompt; null for text.prompt_tokens, as published.
    """

    count: int = 4
    prompt_tokens: int | None = None

    def __post_init__(self) -> None:
        for name in ("count", "prompt_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"retrieval.{name} is {value}; expected at least 1.")


@dataclass(frozen=True)
class EvaluateConfig:
    """How methods are judged.

    Attributes:
        split: `validation` or `test`.
        samples: the most, drawn evenly over users; null for all.
        batch_size: most answers drawn at once.
        max_tokens: of an answer; null for text.answer_tokens.
        temperature: of the draws; 0 takes the likeliest token.
        draws: bootstrap resamples of the users.
        seed: of draws and resamples.
    """

    split: Literal["validation", "test"] = "test"
    samples: int | None = None
    batch_size: int = 16
    max_tokens: int | None = None
    temperature: float = 0.0
    draws: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"samples": 2, "batch_size": 1, "max_tokens": 1, "temperature": 0, "draws": 2}
        for name, bound in {**least, "seed": 0}.items():
            value = getattr(self, name)
            if value is not None and not bound <= value < float("inf"):
                raise InputError(f"evaluate.{name} is {value}; expected at least {bound}.")


@dataclass(frozen=True)
class RunConfig:
    """A run: which data, how plugs are trained, which of the controls, how all are judged.

    Attributes:
        data: what is learned.
        pplug: the training; its loop's seed gives way to those below.
        runs: names of trainings in `jaxalign.pplug.controls.RUNS`.
        seeds: of the training `pplug`.
        control_seeds: of every other training; null for the same.
        retrieval: of items in prompts.
        evaluate: the judging.
    """

    data: DataConfig = field(default_factory=DataConfig)
    pplug: PPlugConfig = field(default_factory=PPlugConfig)
    runs: tuple[str, ...] = ("pplug",)
    seeds: tuple[int, ...] = (0,)
    control_seeds: tuple[int, ...] | None = None
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    def __post_init__(self) -> None:
        if unknown := [name for name in self.runs if name not in RUNS]:
            raise InputError(f"runs names {unknown[0]!r}; expected some of {', '.join(RUNS)}.")
        for name in ("runs", "seeds", "control_seeds"):
            values = getattr(self, name)
            if values is not None and (not values or len(set(values)) < len(values)):
                raise InputError(f"{name} are {[*values]}; expected at least one, each once.")
        if min((*self.seeds, *(self.control_seeds or ()))) < 0:
            raise InputError("seeds and control_seeds: expected numbers of at least 0.")

    @property
    def trainings(self) -> tuple[tuple[str, int], ...]:
        """(name, seed) of each, in the order in which they are done."""
        controls = self.seeds if self.control_seeds is None else self.control_seeds
        return tuple(
            (name, seed)
            for name in sorted(self.runs, key=list(RUNS).index)
            for seed in (self.seeds if name == "pplug" else controls)
        )

    def text(self, retrieval: bool) -> TextConfig:
        """What is read of the data, where prompts hold retrieved items or not."""
        most = self.retrieval.prompt_tokens
        if not retrieval or most is None:
            return self.pplug.text
        return replace(self.pplug.text, prompt_tokens=most)

    def training(self, name: str, seed: int) -> PPlugConfig:
        """The training of that name in `RUNS`."""
        run = RUNS[name]
        return replace(
            self.pplug,
            persona=replace(self.pplug.persona, **run.persona),
            text=self.text(run.retrieval is not None),
            loop=replace(self.pplug.loop, seed=seed),
        )


class Trained(NamedTuple):
    """A folder in which at least one training is over.

    Attributes:
        folder: of the run.
        config: of the run.
        sources: of sources.json: `model`, `encoder`, `data` and `task`, and `store`.
        plugs: (name in RUNS, seed) -> folder of the plug.
    """

    folder: Path
    config: RunConfig
    sources: dict[str, Any]
    plugs: dict[tuple[str, int], Path]

    @property
    def store(self) -> Path:
        """Where vectors of items are kept."""
        return Path(self.sources["store"] or self.folder / STORE)


def run(
    config: RunConfig,
    model: str,
    encoder: str,
    source: str | Path,
    out: str | Path,
    store: str | Path | None = None,
    resume: bool = False,
    show: bool = True,
) -> dict[str, Any]:
    """Train plugs one after another, each in a folder of its own, and save them.

    Trainings may be added to a folder later: with `resume` and more `runs` or seeds, those that
    are over stay as they are.

    Args:
        config: the run.
        model: name of the language model, as `load_language_model` takes it.
        encoder: name of the encoder, as `load_encoder` takes it.
        source: data, as config.data says.
        out: folder: plugs/<name>-<seed>/ (model/ as `jaxalign.pplug.save` writes it, report.json,
            metrics.jsonl, and state/ until it is over), history/ (the store), config.yaml,
            sources.json, report.json.
        store: folder of the store in place of history/, which runs may share.
        resume: go on with an unfinished run in `out`.
        show: progress on standard error.

    Returns:
        The report, as in report.json.

    Raises:
        InputError: bad data, a bad model, setting or folder, or a store of another encoder.
    """
    out, progress = Path(out), Progress(show)
    learn, held = _parts(config.data, source, progress)
    for name, seed in config.trainings:  # before hours of training, not after
        _histories(name, learn, held, seed)
    mesh = make_mesh(config.pplug.mesh)
    language = load_language_model(
        model, config.pplug.weights, lambda shapes: param_shardings(shapes, mesh)
    )
    reader = load_encoder(encoder)
    check_encoder(reader)
    with ExitStack() as stack:
        if store is not None:  # before anything is written
            stack.enter_context(history_store(store, reader))
        names = [language.sha256, reader.identity, digest(learn), digest(held)]
        open_run_dir(out, "pplug train", _shared(config), [], names, resume)
        opened = stack.enter_context(history_store(store or out / STORE, reader))
        write_text(out / CONFIG, to_yaml(config))
        sources = {
            "format": FORMAT,
            "model": model,
            "encoder": encoder,
            "data": str(Path(source).expanduser().resolve()),
            "task": learn.task,
            "store": None if store is None else str(Path(store).expanduser().resolve()),
        }
        write_json(out / SOURCES, sources)
        world = _World(language, reader, opened, learn, held, progress, show)
        asked = cache(lambda name, part: world.questions(config, name, part))
        reports = {}
        for number, (name, seed) in enumerate(config.trainings, 1):
            place = out / PLUGS / f"{name}-{seed}"
            progress.say(f"training {number} of {len(config.trainings)}: {name}, seed {seed}")
            if not (place / REPORT).exists():
                world.train(config.training(name, seed), name, place, asked)
            reports[place.name] = read_json(place / REPORT, required=True)
    report = {
        "format": FORMAT,
        "task": learn.task,
        "samples": len(learn),
        "users": len(set(learn.users)),
        "validation_samples": 0 if held is None else len(held),
        "notes": list(learn.notes),
        "trainings": reports,
    }
    write_json(out / REPORT, report)
    return report


def load_run(folder: str | Path) -> Trained:
    """Read what a run is and which of its trainings are over.

    Args:
        folder: of `run`.

    Raises:
        InputError: no such run, or none of its trainings is over.
    """
    folder = Path(folder).expanduser()
    if not (folder / CONFIG).is_file() or not (folder / SOURCES).is_file():
        raise InputError(
            f"{folder} holds no run of PPlug ({CONFIG} and {SOURCES}): give the folder of "
            "`jaxalign pplug train`."
        )
    sources = read_json(folder / SOURCES, required=True, version=FORMAT)
    plugs = {}
    for path in sorted((folder / PLUGS).glob(f"*/{REPORT}")):
        about = read_json(path, required=True, version=FORMAT)
        plugs[about["run"], int(about["seed"])] = path.parent / PLUG
    if not plugs:
        raise InputError(
            f"{folder} holds no trained plug: go on with `jaxalign pplug train` and --resume."
        )
    ordered = dict(sorted(plugs.items(), key=lambda pair: (list(RUNS).index(pair[0][0]), pair[0])))
    return Trained(folder, load_config(RunConfig, folder / CONFIG, []), sources, ordered)


class _World(NamedTuple):
    """What all trainings of a run share."""

    model: LanguageModel
    encoder: Encoder
    store: HistoryStore
    learn: Histories
    held: Histories | None
    progress: Progress
    show: bool

    def questions(self, config: RunConfig, name: str, part: str) -> list[str] | None:
        """What is asked of the samples of a part, `learn` or `held`."""
        histories, by = getattr(self, part), RUNS[name].retrieval
        if histories is None or by is None:
            return None
        text = config.text(True)
        where = (text, self.encoder, self.store, self.show)
        chosen = nearest(histories, by, config.retrieval.count, *where)
        return questions(histories, chosen, text, self.model)

    def train(
        self,
        config: PPlugConfig,
        name: str,
        place: Path,
        asked: Callable[[str, str], list[str] | None],
    ) -> None:
        """One training, from the newest state in its folder to the plug and a report."""
        seed = config.loop.seed
        learn, held = _histories(name, self.learn, self.held, seed)
        # Lengths are measured on whole histories of the users' own: all runs begin alike.
        fresh = jax.random.fold_in(jax.random.key(seed), 1)
        text = config.text
        plug = start(fresh, self.model, self.encoder, config.persona, text, self.learn, self.store)
        result = train(
            plug,
            learn,
            config,
            place,
            self.progress,
            validation=held,
            store=self.store,
            prompts=asked(name, "learn"),
            validation_prompts=asked(name, "held"),
        )
        save(place / PLUG, result.plug)
        fit = result.fit
        report = {
            "format": FORMAT,
            "run": name,
            "seed": seed,
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(result.plug.trained)),
            "steps": fit.steps,
            "step": fit.best_step,
            "before": fit.validation_before,
            "judged": fit.validation,
            "config": asdict(config),
        }
        write_json(place / REPORT, report)
        rmtree(place / "state")  # of use to a training that is not over


def _parts(
    config: DataConfig, source: str | Path, progress: Progress
) -> tuple[Histories, Histories | None]:
    """Samples to learn, and those to judge training by."""
    found = read(source, config, ("train", "validation"))
    learn = subset(found["train"], config.train_samples, config.seed)
    held = found.get("validation")
    held = None if held is None else subset(held, config.validation_samples, config.seed)
    if held is not None and (not len(held) or None in {one.output for one in held.samples}):
        held = None
    if not len(learn.outputs):
        raise InputError(f"{learn.source} holds no sample to learn; give some.")
    lengths = learn.lengths
    progress.say(
        f"{len(learn):,} samples of {len(set(learn.users)):,} users, histories of "
        f"{lengths.min()} to {lengths.max()} items, {0 if held is None else len(held):,} more to "
        "judge by"
    )
    for note in learn.notes:
        progress.say(note)
    return learn, held


def _histories(
    name: str, learn: Histories, held: Histories | None, seed: int
) -> tuple[Histories, Histories | None]:
    """Both parts with the histories that a training sees."""
    if RUNS[name].histories == "own":
        return learn, held
    return shuffled(learn, seed), None if held is None else shuffled(held, seed)


def _shared(config: RunConfig) -> RunConfig:
    """What all trainings of a folder have in common, and later ones must have too."""
    plain = replace(config.pplug, loop=replace(config.pplug.loop, seed=0))
    rest = {name: getattr(RunConfig(), name) for name in ("runs", "seeds", "control_seeds")}
    return replace(config, pplug=plain, evaluate=EvaluateConfig(), **rest)
