"""MOC on a real model at equal budgets: adapters, soups and MORLHF, RiC, and controls, by seeds.

Each seed trains one policy for all preferences, one policy for each reward with an equal share of
its completions, and one policy for the even weighting with as many. Every training is a run of
`jaxalign moc train` that is resumed where it stopped, so that the benchmark can be stopped too.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxalign.config import load_config
from jaxalign.demo.answers import read_answers
from jaxalign.experiments.moc import MocEvaluateConfig, MocRunConfig, evaluate
from jaxalign.experiments.moc import run as train
from jaxalign.files import write_json, write_text
from jaxalign.moc.warm_start import WarmStartConfig
from jaxalign.runs.tables import MISSING, markdown_table

FIGURES = ("squared_error", "corner_error", "hypervolume", "single_point")
MEANS = ("kl", "tokens", "distinct_2")


class Training(NamedTuple):
    """A run of `jaxalign moc train`: the name of its folder, and its config."""

    name: str
    config: MocRunConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--config", default="moc/simplicity_warmth", help="of `jaxalign moc train`")
    parser.add_argument("--model", default="SmolLM2-135M-Instruct", help="language model")
    parser.add_argument("--data", default="scripts/demo_prompts.txt", help="prompts")
    parser.add_argument("--runs", type=Path, default=Path("runs/moc_smollm2"), help="of trainings")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the trainings")
    parser.add_argument("--only", nargs="+", help="trainings that are made and judged")
    parser.add_argument("--samples", type=int, default=4, help="completions of each prompt judged")
    parser.add_argument("--best-of", type=int, default=16, help="n of the best of n")
    parser.add_argument(
        "--system-prompts",
        default="configs/moc/system_prompts.txt",
        help="one on each line; they are judged with the first seed",
    )


def run(arguments: argparse.Namespace) -> int:
    """Train and judge every seed, and write the table over the seeds."""
    scored = arguments.runs / "completions.jsonl"
    write_completions(scored)
    config = load_config(MocRunConfig, arguments.config, [])
    reports = []
    for seed in arguments.seeds:
        folder = arguments.runs / f"seed{seed}"
        made = [
            training
            for training in trainings(config, seed, str(scored))
            if arguments.only is None or training.name in arguments.only
        ]
        for training in made:
            _train(training, arguments, folder / training.name)
        # A system prompt is the same for every seed, and the slowest to judge.
        system_prompts = arguments.system_prompts if seed == arguments.seeds[0] else None
        names = [training.name for training in made]
        reports.append(_judge(arguments, folder, names, system_prompts))
    result = {
        "benchmark": "moc_smollm2",
        "config": arguments.config,
        "model": arguments.model,
        "seeds": arguments.seeds,
        "policies": over_seeds(reports),
        "reports": reports,
    }
    write_json(arguments.out / "result.json", result)
    text = table(result["policies"], reports[0]["rewards"])
    write_text(arguments.out / "result.md", text)
    print(text)
    return 0


def trainings(config: MocRunConfig, seed: int, scored: str) -> Iterator[Training]:
    """Yield the trainings of a seed, the policy for all preferences first."""
    moc = replace(config.moc, seed=seed)
    whole = replace(config, moc=moc)
    yield Training("adapters", whole)
    names = [reward.name for reward in config.rewards]
    part = replace(moc, steps=moc.steps // len(names))
    corners = [",".join(f"{other}={float(other == name):g}" for other in names) for name in names]
    for name, alone in zip(names, corners, strict=True):
        yield Training(f"only_{name}", replace(whole, moc=part, baseline="morlhf", weight=alone))
    even = ",".join(f"{name}={1 / len(names):.6g}" for name in names)
    yield Training("even", replace(whole, moc=part, baseline="morlhf", weight=even))
    warm = WarmStartConfig(data=scored)
    warm = replace(warm, loop=replace(warm.loop, seed=seed))
    yield Training("ric", replace(whole, baseline="ric", warm_start=warm))
    yield Training("adapters_after_ric", replace(whole, warm_start=warm))
    weights = {f"modpo_{name}": alone for name, alone in zip(names, corners, strict=True)}
    for name, weight in (weights | {"modpo_even": even}).items():
        yield Training(name, replace(whole, baseline="modpo", weight=weight, warm_start=warm))


def write_completions(path: Path) -> None:
    """Write the answers that ship with the demo as rows of a prompt and a completion."""
    answers = read_answers()
    rows = (
        {"prompt": answers.prompts[prompt], "completion": text}
        for prompt, text in zip(answers.prompt, answers.texts, strict=True)
    )
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def over_seeds(reports: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return each figure of each policy and part of the preferences, of every seed that has it."""
    found: dict[str, dict[str, Any]] = {}
    for name, policy in reports[0]["policies"].items():
        found[name] = {
            part: {
                key: [values[key] for values in _each(reports, name, part)]
                for key in _flat(figures)
            }
            for part, figures in policy["parts"].items()
        }
    return found


def table(policies: Mapping[str, Any], rewards: Sequence[str]) -> str:
    """Return the means over the seeds, with the least and the most."""
    columns = [*(f"tau {name}" for name in rewards), *(f"movement {name}" for name in rewards)]
    columns += [*FIGURES, *MEANS]
    rows = [
        [name, part, *[_cell(figures[column]) for column in columns]]
        for name, parts in policies.items()
        for part, figures in parts.items()
    ]
    return markdown_table(["policy", "preferences", *columns], rows, left=2)


def _train(training: Training, arguments: argparse.Namespace, folder: Path) -> None:
    if (folder / "report.json").exists():
        return
    resume = (folder / "run.json").exists()
    train(training.config, arguments.model, arguments.data, folder, resume=resume)


def _judge(
    arguments: argparse.Namespace, folder: Path, names: Sequence[str], system_prompts: str | None
) -> dict[str, Any]:
    """Judge trainings of a seed together."""
    config = MocEvaluateConfig(
        samples=arguments.samples,
        best_of=arguments.best_of,
        system_prompts=system_prompts,
    )
    out = folder / "_".join(["judged", *(arguments.only or ())])
    report = out / "report.json"
    if not report.exists():
        others = [folder / name for name in names[1:]]
        evaluate(config, folder / names[0], out, others, resume=(out / "run.json").exists())
    found: dict[str, Any] = json.loads(report.read_text())
    return found


def _each(
    reports: Sequence[Mapping[str, Any]], name: str, part: str
) -> Iterator[Mapping[str, float | None]]:
    for report in reports:
        if name in report["policies"]:
            yield _flat(report["policies"][name]["parts"][part])


def _flat(figures: Mapping[str, Any]) -> dict[str, float | None]:
    """The figures of a part of the preferences by the names of the table's columns."""
    single = {name: figures[name] for name in FIGURES}
    by_reward = {
        f"{kind} {name}": entry
        for kind in ("tau", "movement")
        for name, entry in figures[kind].items()
    }
    values = {
        name: None if entry is None else entry["value"]
        for name, entry in (by_reward | single).items()
    }
    return values | {name: figures[name] for name in MEANS}


def _cell(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return MISSING
    if len(known) == 1:
        return f"{known[0]:.2f}"
    return f"{np.mean(known):.2f} ({min(known):.2f} to {max(known):.2f})"
