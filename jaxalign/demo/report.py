"""The files that the demo writes, and its summary on the terminal."""

import importlib.resources
import json
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape

from jaxalign.demo import conditioned_page, plots
from jaxalign.demo.answers import DemoAnswers
from jaxalign.demo.people import SATURATION, TYPES, WITHIN, SimulatedChoices
from jaxalign.demo.portfolio import PortfolioStage
from jaxalign.demo.statistics import DemoReport
from jaxalign.demo.study import CURVE, SHOTS, DemoData, Design, Study
from jaxalign.files import write_json, write_text
from jaxalign.runs.tables import MISSING, TerminalTable, markdown_table, percent

PAGE = "page.md"
_CERTAINTY = (
    "population", "rewards", "sd of weights", "95 % covers", "nll", "nll, one model",
    "nll, true taste", "calibration error %", "worse off %",
)  # fmt: skip
_PORTFOLIO = (
    "routed on", "prompts", "users", "to be gained", "mean regret", "worst regret",
    "share lost %", "below reference %",
)  # fmt: skip
UNFINISHED = {"demo": True, "finished": False}
"""The report of a demo that has begun."""
_ACCURACY = ("population", "rewards", "one model", "10 choices", "true taste", "gap closed", "95 %")


def write(
    out: Path,
    report: DemoReport,
    answers: DemoAnswers,
    plan: Design,
    worlds: dict[str, DemoData],
    studies: dict[str, dict[str, Study]],
    stage: PortfolioStage,
) -> list[str]:
    """Write all files to `out`, report.json last, and return their names."""
    data = write_data(out, answers, plan, worlds["friendly"])
    images = plots.draw(out, report, plan, worlds, studies, stage)
    write_text(out / "report.md", markdown(report, answers.prompts[plan.held_out[0]], out))
    write_json(out / "report.json", report)
    return ["report.md", "report.json", *images, *data]


def write_data(out: Path, answers: DemoAnswers, plan: Design, world: DemoData) -> list[str]:
    """Write the users' choices and the answers as files for other commands; return their names."""
    # An earlier demo's report is not one of these files.
    write_json(out / "report.json", UNFINISHED)
    (out / "report.md").unlink(missing_ok=True)
    pairs = [(answers.prompts[p], t) for p, t in zip(answers.prompt, answers.texts, strict=True)]
    rows = ({"prompt": prompt, "answer": text} for prompt, text in pairs)
    shown = (text for prompt, text in pairs if prompt == answers.prompts[plan.held_out[0]])
    files = {
        "choices.jsonl": (_json(row) for row in choice_rows(answers, plan, world)),
        "answers.jsonl": (_json(row) for row in rows),
        "answers.txt": map(_flat, shown),
    }
    for name, lines in files.items():
        write_text(out / name, "\n".join(lines) + "\n")
    return list(files)


def choice_rows(answers: DemoAnswers, plan: Design, world: DemoData) -> Iterator[dict[str, str]]:
    """Yield a population's choices as rows of a preference file."""
    made: list[tuple[np.ndarray, SimulatedChoices]] = [(plan.train, world.fitted)]
    for role, users in (("validation", plan.validation), ("test", plan.test)):
        made += [(users, world.support[role]), (users, world.query[role])]
    for users, choices in made:
        for user, chosen, rejected in zip(users, choices.chosen, choices.rejected, strict=True):
            for one, other in zip(chosen, rejected, strict=True):
                prompt = answers.prompt[one]
                yield {
                    "user": f"u{user:04d}",
                    "chosen": answers.texts[one],
                    "rejected": answers.texts[other],
                    "prompt": answers.prompts[prompt],
                    "group": answers.ids[prompt],
                }


def _json(row: dict[str, str]) -> str:
    return json.dumps(row, ensure_ascii=False)


def _flat(text: str) -> str:
    return " ".join(text.split())


def _short(text: str, width: int) -> str:
    text = _flat(text)
    return text if len(text) <= width else text[: width - 1].rstrip() + "…"


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f}"


def _share(found: dict[str, Any]) -> tuple[str, str]:
    ends = f"{percent(found['share_low'], 0)} to {percent(found['share_high'], 0)}"
    return f"{percent(found['share'], 0)} %", ends


def _results(report: DemoReport) -> Iterator[tuple[str, str, dict[str, Any], dict[str, Any]]]:
    """Yield population and kind of rewards, by name and by their results."""
    for name, population in report["populations"].items():
        for kind in ("named", "learned"):
            yield name, kind, population, population[kind]


def _accuracy_rows(report: DemoReport) -> list[list[str]]:
    keys = ("one_model", "adapted", "true")
    return [
        [name, kind, *(percent(found[key]) for key in keys), *_share(found)]
        for name, kind, _, found in _results(report)
    ]


def _correlation_rows(report: DemoReport) -> list[list[str]]:
    return [
        [name, kind, *map(_number, found["correlation"].values()), _number(found["r_squared"])]
        for name, kind, _, found in _results(report)
    ]


def _certainty_rows(report: DemoReport) -> list[list[str]]:
    return [
        [
            name, kind, _number(found["posterior_sd"]), percent(found["coverage_95"], 0),
            f"{found['nll']:.3f}", f"{found['nll_one_model']:.3f}", f"{population['true_nll']:.3f}",
            percent(found["calibration_error"]), percent(found["harmed"], 0),
        ]
        for name, kind, population, found in _results(report)
    ]  # fmt: skip


def _portfolio_rows(found: dict[str, Any]) -> list[list[str]]:
    true, inferred = found["true_weights"], found["inferred"]
    return [
        [
            routed, prompts, str(part["users"]), _number(part[key]["mean_improvement"]),
            _number(part[key]["mean_regret"]), _number(part[key]["worst_regret"]),
            percent(part[key]["share_lost"]), percent(part[key]["below_reference"]),
        ]
        for routed, part in (("true weights", true), (f"{inferred['choices']} choices", inferred))
        for key, prompts in (("known", "built on"), ("held_out", "held out"))
    ]  # fmt: skip


def _persona_rows(accuracy: dict[str, dict[str, float]]) -> list[list[str]]:
    labels = {
        "persona": "the user's own persona",
        "another": "persona of another user",
        "task": "task token alone, no history",
        "most_frequent": "most frequent answer",
    }
    return [
        [label, percent(one["mean"]), f"{percent(one['low'])} to {percent(one['high'])}"]
        for label, one in ((label, accuracy[key]) for key, label in labels.items())
    ]


def _setting(setting: dict[str, Any]) -> str:
    words = "no adaptation"
    if setting["adapt"]:
        words = (
            f"covariance times {setting['strength']:g}, temperature {setting['temperature']:g}, "
            f"{setting['pseudo_users']:g} pseudo-users"
        )
    if "directions_of" in setting:
        words += (
            f", {setting['dims']} principal directions ({setting['directions_of']}), whitening "
            f"{setting['whiten']:g}"
        )
    return words


def _opposites(report: DemoReport, width: int) -> tuple[list[str], list[list[str]]]:
    pair = report["opposites"]["users"]
    header = ["rank"]
    for user in pair:
        dislikes = user["true"]["dislikes"]
        against = f", dislikes {dislikes} most" if dislikes else ""
        header.append(f"{user['user']}: truly likes {user['true']['likes']} most{against}")
    few, count = len(pair[0]["top"]), report["opposites"]["answers"]
    ranks = [f"{i + 1}" for i in [*range(few), *range(count - few, count)]]
    columns = [[_short(t, width) for t in user["top"] + user["bottom"]] for user in pair]
    return header, [list(row) for row in zip(ranks, *columns, strict=True)]


class _Page(string.Formatter):
    """A format with the type `p` for per cent: `{share:0p}` has no decimals."""

    def format_field(self, value: Any, format_spec: str) -> str:
        """Return one formatted value."""
        if format_spec.endswith("p"):
            return percent(value, int(format_spec[:-1]))
        return str(super().format_field(value, format_spec))


def markdown(report: DemoReport, shown_prompt: str, out: Path) -> str:
    """Return the report as Markdown: page.md with the values filled in."""
    populations, found = report["populations"], report["portfolio"]
    names = report["rewards"]["names"]
    targets = [
        f"{kind} rewards {_share(populations['friendly'][kind])[0]} (target "
        f"{percent(target['share'], 0)} %: {'reached' if target['reached'] else 'missed'})"
        for kind, target in report["targets"].items()
    ]
    types = [
        [kind, f"{100 * share:.0f} %", *(f"{weight:+.1f}" for weight in centre)]
        for kind, (share, centre) in TYPES.items()
    ]
    by_weights = report["persona"]["by_inferred_weights"].items()
    values = {
        "everyone": sum(report["users"].values()),
        "closed": "; ".join(targets),
        "friendly": populations["friendly"],
        "other": populations["misspecified"],
        "most_choices": max(CURVE),
        "types": len(types),
        "within": WITHIN,
        "saturation": SATURATION,
        "settings": {
            name: {kind: _setting(one[kind]["setting"]) for kind in ("named", "learned")}
            for name, one in populations.items()
        },
        "opposites_prompt": _flat(report["opposites"]["prompt"]),
        "policies": found["members"] - 1,
        "inferred": found["inferred"],
        "signed": next(one for one in found["guarantees"] if one["who"] == "signed"),
        "gain": report["persona"]["gain"],
        "by_weights": " and ".join(f"{percent(v, 0)} % ({kind} rewards)" for kind, v in by_weights),
        **conditioned_page.page_values(report["conditioned"]),
        "shown_prompt": _flat(shown_prompt),
        "choices_file": out / "choices.jsonl",
        "names": ", ".join(names),
        "accuracy_table": markdown_table(_ACCURACY, _accuracy_rows(report), left=2),
        "type_table": markdown_table(["type", "share", *names], types, left=2),
        "correlation_table": markdown_table(
            ["population", "rewards", *names, "pooled", "R²"], _correlation_rows(report), left=2
        ),
        "certainty_table": markdown_table(_CERTAINTY, _certainty_rows(report), left=2),
        "opposites_table": markdown_table(*_opposites(report, 160), left=3),
        "portfolio_table": markdown_table(_PORTFOLIO, _portfolio_rows(found), left=2),
        "persona_table": markdown_table(
            ["persona", "named right %", "95 %"], _persona_rows(report["persona"]["accuracy"])
        ),
    }
    page = (importlib.resources.files("jaxalign.demo") / PAGE).read_text("utf-8")
    return _Page().format(page, **report, **values)


def show(report: DemoReport, out: Path, written: list[str]) -> None:
    """Print the accuracies, the two rankings and the names of the files."""
    console = Console(highlight=False)
    users = report["users"]
    console.print(
        f"\n[bold]Expected accuracy in %[/bold], {users['test']} unseen [bold]simulated[/bold] "
        f"users after {SHOTS} choices, on prompts nobody chose on"
    )
    console.print(TerminalTable(_ACCURACY, _accuracy_rows(report), left=2))
    for kind, target in report["targets"].items():
        word = "reached" if target["reached"] else "[red]missed[/red]"
        console.print(f"{kind} rewards: target {percent(target['share'], 0)} % of the gap {word}")
    served = report["portfolio"]
    console.print(
        f"portfolio of {served['members'] - 1} policies and the reference: loses "
        f"{percent(served['true_weights']['held_out']['share_lost'], 0)} % of what users could "
        f"gain, {percent(served['inferred']['held_out']['share_lost'], 0)} % routed on {SHOTS} "
        "choices (held-out prompts)"
    )
    named = {key: percent(one["mean"], 0) for key, one in report["persona"]["accuracy"].items()}
    console.print(
        f"persona, one soft token before a frozen toy model: it names what the user likes most for "
        f"{named['persona']} % (persona of another {named['another']} %, task token alone "
        f"{named['task']} %)"
    )
    console.print(conditioned_page.summary(report["conditioned"]), markup=False)
    console.print(
        f"\n[bold]Two simulated users, the same answers[/bold] to "
        f"“{escape(_flat(report['opposites']['prompt']))}”"
    )
    header, rows = _opposites(report, 70)
    for column, title in enumerate(header[1:], start=1):
        console.print(f"\n{title}", markup=False)
        for row in rows:
            console.print(f"  {row[0]:>4}  {row[column]}", markup=False, overflow="ellipsis",
                          no_wrap=True)  # fmt: skip
    console.print(f"\nWritten to {out}: {', '.join(written)}", markup=False, soft_wrap=True)
    console.print(f"Go on with: jaxalign mrm train --data {out / 'choices.jsonl'} --out runs/first",
                  markup=False, soft_wrap=True)  # fmt: skip
