"""Personas on Jester as a rating task: against models without a language model, and scalars."""

import argparse
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TypedDict

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax

from benchmarks import harness
from benchmarks.docs_pages import replaced
from benchmarks.jester_lora import LORA, lora_scores, prompt_text, write_pairs
from jaxalign.data.histories import Histories, Sample
from jaxalign.data.jokes import rating_labels
from jaxalign.data.sources import jester_jokes, jester_ratings
from jaxalign.errors import InputError
from jaxalign.experiments.pplug.baselines import METHODS, RATING_METHODS
from jaxalign.experiments.pplug.config import PPlugRunConfig
from jaxalign.experiments.pplug.data import PARTS, read_parts, sample_evenly
from jaxalign.experiments.pplug.report import markdown
from jaxalign.experiments.pplug.run_folder import PPlugRun, load_run
from jaxalign.experiments.pplug.statistics import LABEL_LOSS, TaskStatistics, score_distributions
from jaxalign.files import write_json, write_text
from jaxalign.models import load_language_model
from jaxalign.runs import finished_report
from jaxalign.runs.tables import MISSING, markdown_table, percent

LABELS = 5
Model = Callable[[Histories], np.ndarray | None]
"""From samples to log-probabilities [N, 5]; None for jokes that the model has not seen."""


class PartResult(TypedDict):
    """The statistics on one part, and each method's share of the gap that `gap_closed` measures."""

    statistics: TaskStatistics
    gap_closed: dict[str, float]


EXAMPLES = 40_000  # of the models without a language model: enough for 106 features
SCALAR, PROMPT = "mean rating as the only item", "mean rating in the prompt + task token"
BASELINES = (
    "task token only",
    "persona of another",
    "persona of another, same level",
    SCALAR,
    PROMPT,
    LORA,
    "marginal",
    "persona",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--data", type=Path, required=True, help="folder of Jester")
    parser.add_argument("--trained", type=Path, help="run of `pplug train`")
    parser.add_argument("--known", type=Path, help="its evaluation on known jokes (split test)")
    parser.add_argument("--new", type=Path, help="its evaluation on new jokes (split test_new)")
    for name in ("scalar", "prompt"):
        parser.add_argument(f"--{name}-known", type=Path, help=f"likewise, of the {name} data")
        parser.add_argument(f"--{name}-new", type=Path, help=f"likewise, of the {name} data")
    parser.add_argument(
        "--write", choices=("scalar", "prompt", "lora"), help="write these data to --out, and stop"
    )
    parser.add_argument("--lora", help="model/ of `jaxalign sft`, trained on the lora data")
    parser.add_argument("--lora-tokens", type=int, default=512, help="of a prompt of the lora data")
    parser.add_argument("--page", type=Path, help="whose table is renewed, such as docs/pplug.md")


def run(arguments: argparse.Namespace) -> int:
    """Write the data of a control, or the tables of all methods."""
    if arguments.write is not None:
        return write_control(arguments)
    if arguments.trained is None or (arguments.known is None and arguments.new is None):
        raise InputError(
            "found no --trained or none of --known and --new; expected a run of `pplug train` and "
            "one of its evaluations."
        )
    trained = load_run(arguments.trained)
    parts = read_parts(arguments.data, trained.config.data, (*PARTS, "test_new"))
    result = harness.started("pplug_jester", trained.config.pplug.compute)
    result["config"] = asdict(trained.config)
    evaluations = {
        "known": (arguments.known, arguments.scalar_known, arguments.prompt_known),
        "new": (arguments.new, arguments.scalar_new, arguments.prompt_new),
    }
    models = fit_models(arguments.data, parts["train"])
    pages = []
    for name, (own, scalar, prompt) in evaluations.items():
        if own is None:
            continue
        part = parts["test" if name == "known" else "test_new"]
        report = finished_report(own, "pplug evaluate", "run `jaxalign pplug evaluate`")
        samples = sample_evenly(part, int(str(report["samples"])), trained.config.data.seed)
        found = scores_of(own, samples, {name: name for name in (*METHODS, *RATING_METHODS)})
        if scalar is not None:
            found |= scores_of(scalar, samples, {"persona": SCALAR})
        if prompt is not None:
            found |= scores_of(prompt, samples, {"task token only": PROMPT})
        if arguments.lora is not None:
            text = prompt_text(trained.config.pplug.text, arguments.lora_tokens)
            found[LORA] = [lora_scores(arguments.lora, samples, text)]
        for method, predict in models.items():
            table = predict(samples)
            if table is not None:
                found[method] = [table]
        statistics = score_distributions(
            samples.rules,
            found,
            samples.label_numbers,
            samples.users,
            samples.lengths,
            [method for method in BASELINES if method in found],
        )
        result[name] = {"statistics": statistics, "gap_closed": gap_closed(statistics)}
        pages.append(f"# Jokes {name}\n\n" + markdown(statistics).partition("\n\n")[2])
    tables = {name: result[name] for name in evaluations if name in result}
    learned = sample_evenly(
        parts["train"], trained.config.data.train_samples, trained.config.data.seed
    )
    lead = what_was_trained(trained, learned)
    summary = f"{lead}\n\n{losses_beside_the_persona(tables)}"
    pages.insert(0, f"# Losses in nats per answer\n\n{summary}")
    write_json(arguments.out / "result.json", result)
    write_text(arguments.out / "report.md", "\n".join(pages))
    if arguments.page is not None:
        page = replaced(arguments.page.read_text("utf-8"), "jester", summary)
        write_text(arguments.page, page)
    print("\n".join(pages))
    return 0


def what_was_trained(trained: PPlugRun, samples: Histories) -> str:
    """Return a sentence on the trainings of a run.

    Args:
        trained: The run.
        samples: Its training samples.
    """
    seeds: dict[str, list[str]] = {}
    for name, seed in sorted(trained.plugs):
        seeds.setdefault(name, []).append(str(seed))
    loop = trained.config.pplug.loop
    runs = "; ".join(
        f"`{name}`, {'seed' if len(own) == 1 else 'seeds'} {', '.join(own)}"
        for name, own in seeds.items()
    )
    steps = loop.epochs * -(-len(samples) // loop.batch_size)
    return (
        f"Trained on {len(samples):,} ratings of {len(set(samples.users)):,} people in {steps} "
        f"steps: {runs}."
    )


def losses_beside_the_persona(parts: Mapping[str, PartResult]) -> str:
    """Return one table of all methods and parts, sorted by the loss in the last part.

    Args:
        parts: The result of each part by its name, `known` or `new`.
    """
    methods = {name: None for part in parts.values() for name in part["statistics"]["scores"]}
    columns = ("loss", "above the persona (95 %)", "gap closed %", "right label %")
    rows = [
        (method, [cell for part in parts.values() for cell in _cells(part, method)])
        for method in methods
    ]
    *_, last = parts.values()
    losses = {name: one[LABEL_LOSS] for name, one in last["statistics"]["scores"].items()}
    rows.sort(key=lambda row: losses.get(row[0], -np.inf), reverse=True)
    head = ["method", *(f"{part}: {column}" for part in parts for column in columns)]
    return markdown_table(head, [[method, *cells] for method, cells in rows])


def _cells(part: PartResult, method: str) -> list[str]:
    """Return the loss of a method, its excess over the persona, and how often it is right."""
    statistics = part["statistics"]
    if method not in statistics["scores"]:
        return [MISSING] * 4
    scores = statistics["scores"][method]
    own = statistics["metrics"][LABEL_LOSS]["methods"][method]
    loss = f"{scores[LABEL_LOSS]:.3f}"
    if own["seed_sd"] is not None:
        loss += f" (sd of {own['seeds']} seeds {own['seed_sd']:.3f})"
    excess = MISSING
    if (gain := own["gains"].get("persona")) is not None and gain["low"] is not None:
        excess = f"{gain['mean']:+.3f} ({gain['low']:.3f} to {gain['high']:.3f})"
    return [loss, excess, percent(part["gap_closed"][method], 0), percent(scores["accuracy"])]


def write_control(arguments: argparse.Namespace) -> int:
    """Write the data of a control: all parts, or the training part for `jaxalign sft`."""
    if arguments.write == "lora" and arguments.trained is None:
        raise InputError("--write lora needs --trained: the run whose prompts are written.")
    run = None if arguments.trained is None else load_run(arguments.trained)
    config = PPlugRunConfig() if run is None else run.config
    data = replace(config.data, kind="jester", task=None)
    parts = read_parts(arguments.data, data, (*PARTS, "test_new"))
    if arguments.write == "lora" and run is not None:
        text = prompt_text(config.pplug.text, arguments.lora_tokens)
        chosen = sample_evenly(parts["train"], data.train_samples, data.seed)
        write_pairs(
            arguments.out / "train.jsonl", chosen, load_language_model(run.sources.model), text
        )
        return 0
    for part, histories in parts.items():
        write_scalars(arguments.out / f"{part}.jsonl", histories, arguments.write == "prompt")
    return 0


def write_scalars(path: Path, histories: Histories, in_prompt: bool) -> None:
    """Write questions whose histories are one item that states the mean rating, as JSON lines."""
    rows = []
    for sample in histories.samples:
        level = mean_rating(histories, sample)
        question = sample.input
        if in_prompt:
            question += f" The mean of this person's ratings is {level:.1f}."
        row = {
            "id": sample.id, "user": sample.user, "input": question, "output": sample.output,
            "history": [
                {"text": f"The mean of my ratings is {level:.1f}.", "rating": f"{round(level)}"}
            ],
        }  # fmt: skip
        rows.append(json.dumps(row))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "\n".join(rows) + "\n")


def mean_rating(histories: Histories, sample: Sample) -> float:
    """Return the mean of the ratings in a history."""
    ratings = [float(histories.items[place].fields["rating"]) for place in sample.profile]
    return float(np.mean(ratings))


def scores_of(
    folder: Path, samples: Histories, names: Mapping[str, str]
) -> dict[str, list[np.ndarray]]:
    """Return the log-probabilities [N, K] of each method's seeds in an evaluation.

    Args:
        folder: Of `pplug evaluate`.
        samples: The N samples that it was made on.
        names: Its methods, and their names in the result.
    """
    found: dict[str, list[np.ndarray]] = {}
    for name, renamed in names.items():
        stem = re.sub(r"\W+", "_", name)
        paths = sorted(folder.glob(f"losses/{stem}-*.json"))
        tables = []
        for path in paths:
            rows = json.loads(path.read_text())
            tables.append(np.array([rows[one.id] for one in samples.samples]))
        if tables:
            found[renamed] = tables
    return found


def gap_closed(statistics: TaskStatistics) -> dict[str, float]:
    """Return each method's share of the way from the marginal to a person's level and the joke."""
    losses = {name: one[LABEL_LOSS] for name, one in statistics["scores"].items()}
    best = losses.get("level and joke", losses["level"])
    return {name: (losses["marginal"] - loss) / (losses["marginal"] - best)
            for name, loss in losses.items()}  # fmt: skip


def fit_models(folder: Path, train: Histories) -> dict[str, Model]:
    """Return models without a language model, fitted on the training people.

    Every rating of a known joke that is not in a person's history is an example.
    """
    jokes = jester_jokes(folder)
    users, ratings = jester_ratings(folder)
    labels = rating_labels(ratings)
    row_of = {user: row for row, user in enumerate(users)}
    joke_of = {text: number for number, (_, text) in enumerate(jokes)}
    known = {joke_of[item.fields["text"]] for one in train.samples
             for item in [train.items[place] for place in one.profile]}  # fmt: skip
    known |= {int(one.id.rpartition("/")[2]) for one in train.samples}
    histories = {one.user: one.profile for one in train.samples}
    people, rated, right = [], [], []
    for user, profile in histories.items():
        inside = {joke_of[train.items[place].fields["text"]] for place in profile}
        own = labels[row_of[user]]
        free = [joke for joke in np.flatnonzero(own) if joke in known and joke not in inside]
        people += [user] * len(free)
        rated += free
        right += list(own[free] - 1)
    rng = np.random.default_rng(0)
    kept = rng.permutation(len(people))[:EXAMPLES]
    people, rated, right = ([whole[row] for row in kept] for whole in (people, rated, right))
    level = {user: shares(train, profile) for user, profile in histories.items()}
    features = np.array([level[user] for user in people])
    joke = np.eye(len(jokes))[np.array(rated)]
    gold = np.array(right)
    marginal = np.log(np.bincount(gold, minlength=LABELS) / len(gold))
    by_joke = fit(joke, gold)
    by_level = fit(features, gold)
    both = fit(np.concatenate([features, joke], axis=1), gold)

    def numbers(histories: Histories) -> np.ndarray:
        return np.array([int(one.id.rpartition("/")[2]) for one in histories.samples])

    def levels(histories: Histories) -> np.ndarray:
        return np.array([shares(histories, one.profile) for one in histories.samples])

    def joke_only(histories: Histories) -> np.ndarray | None:
        own = numbers(histories)
        return predict(by_joke, np.eye(len(jokes))[own]) if set(own) <= known else None

    def level_and_joke(histories: Histories) -> np.ndarray | None:
        own = numbers(histories)
        if not set(own) <= known:
            return None
        table = np.concatenate([levels(histories), np.eye(len(jokes))[own]], axis=1)
        return predict(both, table)

    return {
        "marginal": lambda histories: np.tile(marginal, (len(histories), 1)),
        "joke": joke_only,
        "level": lambda histories: predict(by_level, levels(histories)),
        "level and joke": level_and_joke,
    }


def shares(histories: Histories, profile: Sequence[int]) -> np.ndarray:
    """Return how often each rating stands in a history, and the mean: [6]."""
    ratings = np.array([int(histories.items[place].fields["rating"]) for place in profile])
    count = np.bincount(ratings, minlength=LABELS + 1)[1:] / len(ratings)
    return np.array([*count, ratings.mean() - 3])


def fit(features: np.ndarray, gold: np.ndarray, penalty: float = 10.0) -> np.ndarray:
    """Return the weights [F + 1, 5] of a penalised multinomial regression."""
    inputs = np.concatenate([features, np.ones((len(features), 1))], axis=1)
    target = np.eye(LABELS)[gold]

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(-1, LABELS)
        logs = log_softmax(inputs @ weights, axis=1)
        slope = inputs.T @ (np.exp(logs) - target) + penalty * weights
        value = -(logs * target).sum() + 0.5 * penalty * (weights**2).sum()
        return float(value), slope.ravel()

    start = np.zeros(inputs.shape[1] * LABELS)
    found = minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 100})
    return found.x.reshape(-1, LABELS)


def predict(weights: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Return log-probabilities [N, 5]."""
    inputs = np.concatenate([features, np.ones((len(features), 1))], axis=1)
    return log_softmax(inputs @ weights, axis=1)
