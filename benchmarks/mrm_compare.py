"""All user reward models on the same people: runs the presets, renders docs/mrm.md's tables."""

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.docs_pages import MRM_PAGE, ROOT, replaced
from jaxalign.experiments.mrm.config import GLOBAL_MODELS
from jaxalign.experiments.mrm.tables import GATES, adaptation_table, gate_table

NAME, SPLITS_NAME = "mrm_compare", "mrm_splits"  # of the parts of the page
RESULTS = ROOT / "benchmarks" / "results"
# The preset of each data set, its folder, and where its result lies.
PRESETS = {
    "jester": ("compare", "jester5k", "mrm_compare_jester"),
    "ukpconvarg1": ("compare_ukpconvarg1", "ukpconvarg1", "mrm_compare_ukpconvarg1"),
}
# Other splits of Jester's users. The rule of the gates was fixed after 1 and 2, and before 3.
SPLITS = (1, 2, 3)
SPLIT_RESULTS = RESULTS / "mrm_jester_splits"
SPLIT_OPTIONS = ["--methods", "neighbours", "mrm", "bayes", "--split.item_folds", "0"]
SPLIT_OPTIONS += ["--shots", "0", "5", "20"]
TITLES = {
    "jester": "Jester (Goldberg et al. 2001): which of two jokes a person rated higher, by 3 "
    "points or more.",
    "ukpconvarg1": "UKPConvArg1 (Habernal and Gurevych 2016): which of two arguments convinces "
    "more.",
}
METHODS = {
    "bt": "one Bradley-Terry model",
    "bt_items": "the best one model: item effects",
    "bt_per_user": "one per user",
    "item_ids": "item ids, no text",
    "neighbours": "nearest neighbours",
    "mixture": "mixture of Bradley-Terry models",
    "lore_published": "LoRe as published",
    "lore": "LoRe, signed weights",
    "pal": "PAL",
    "vpl": "VPL",
    "gpo": "GPO",
    "pttt": "P-TTT",
    "mrm_published": "MRM as published",
    "mrm": "MRM regularised",
    "bayes": "hierarchical Bayes",
}
REGIMES = {
    "new_users": "new users, known items",
    "new_users_new_items": "new users, new items",
    "new_items": "known users, new items",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--data", type=Path, help="folder of jester5k/ and ukpconvarg1/: run both")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the runs are kept")
    parser.add_argument("--page", type=Path, default=MRM_PAGE, help="where the tables go")


def run(arguments: argparse.Namespace) -> int:
    """Run the presets, if data are given, and write the tables into the docs."""
    if arguments.data is not None:
        for preset, folder, result in PRESETS.values():
            _run_preset(preset, arguments.data / folder, arguments.runs / preset, RESULTS / result)
        _run_splits(arguments.data, arguments.runs)
    reports, splits = load_reports(), load_splits()
    text = arguments.page.read_text(encoding="utf-8")
    text = replaced(text, NAME, rendered(reports))
    arguments.page.write_text(replaced(text, SPLITS_NAME, splits_table(splits)), encoding="utf-8")
    print(rendered(reports), splits_table(splits), sep="\n")
    return 0


def _run_preset(
    preset: str, data: Path, out: Path, result: Path, options: Sequence[str] = ()
) -> None:
    from jaxalign.config import load_config
    from jaxalign.experiments.mrm import MRMRunConfig, run

    config = load_config(MRMRunConfig, ROOT / "configs" / "mrm" / f"{preset}.yaml", options)
    run(config, str(data), out, resume=(out / "run.json").exists())
    result.mkdir(parents=True, exist_ok=True)
    for path in [out / "report.json", out / "report.md", *out.glob("*.png")]:
        shutil.copy(path, result / path.name)


def _run_splits(data: Path, runs: Path) -> None:
    preset, folder, _ = PRESETS["jester"]
    for split in SPLITS:
        options = ["--split.seed", f"{split}", *SPLIT_OPTIONS]
        name = f"split{split}"
        _run_preset(preset, data / folder, runs / f"{preset}_{name}", SPLIT_RESULTS / name, options)


def load_reports() -> dict[str, dict[str, Any]]:
    """The reports that are there, by data set."""
    paths = {name: RESULTS / result / "report.json" for name, (_, _, result) in PRESETS.items()}
    return {name: json.loads(p.read_text()) for name, p in paths.items() if p.exists()}


def load_splits() -> dict[int, dict[str, Any]]:
    """The reports on Jester that are there, by split; split 0 is that of the tables."""
    paths = {0: RESULTS / PRESETS["jester"][2] / "report.json"}
    paths |= {split: SPLIT_RESULTS / f"split{split}" / "report.json" for split in SPLITS}
    return {split: json.loads(p.read_text()) for split, p in paths.items() if p.exists()}


def splits_table(reports: Mapping[int, Mapping[str, Any]]) -> str:
    """What the selected method and its gates do to the test users of each split of Jester."""
    header = ["split", "selected", "calibration error, %", "gate sees", "left alone, %", "gain"]
    header += ["harmed, %", "by noise alone, %", "excess", "random gate: gain", "harmed, %"]
    header += ["levels chosen for"]
    rows = []
    for split, report in reports.items():
        settings = report["adaptation_settings"]
        rule = f"{100 * settings['kept_gain']:g} % of the gain"
        if "most_harmed" in settings:  # reports of an earlier rule have no limit
            rule += f", at most {100 * settings['most_harmed']:g} % harmed"
        name = report["selected"]["new_users"]
        found = report["new_users"][name]
        calibration = f"{100 * found['calibration_error']:.1f}"
        whole = {key: found[key] for key in ("gain", "harmed", "harm_floor", "harm_excess")}
        gates = {"no gate": {"left_alone": 0.0, **whole}}
        for form, title in GATES.items():
            key = f"gate_{form}_"
            gates[title] = {k.removeprefix(key): v for k, v in found.items() if k.startswith(key)}
        rows += [
            [f"{split}", f"`{name}`", calibration, title, *_gate_cells(gate), rule if form else ""]
            for form, (title, gate) in enumerate(gates.items())
            if gate
        ]
    return _markdown(header, rows)


def _gate_cells(gate: Mapping[str, float]) -> list[str]:
    cells = [f"{100 * gate['left_alone']:.1f}", _points(gate["gain"])]
    cells += [f"{100 * gate[key]:.1f}" for key in ("harmed", "harm_floor")]
    cells.append(_points(gate["harm_excess"]))
    if "random_gain" not in gate:
        return [*cells, "", ""]
    return [*cells, _points(gate["random_gain"]), f"{100 * gate['random_harmed']:.1f}"]


def rendered(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """The tables of the docs: for each data set a paragraph and its tables."""
    return "\n".join(
        f"{_about(n, report)}\n\n{table(report)}{_adaptation(report)}"
        for n, report in reports.items()
    )


def _adaptation(report: Mapping[str, Any]) -> str:
    """The tests that decided which methods adapt, and what their gates do."""
    if "adaptation" not in report:  # a run of an earlier version
        return ""
    gates = gate_table(report["new_users"])
    text = (
        "\nThe test of whether each method adapts, and the gates beside random ones of equal size:"
        f"\n\n{adaptation_table(report['adaptation'])}"
    )
    return text + (f"\n{gates}" if gates else "")


def _about(name: str, report: Mapping[str, Any]) -> str:
    people = report["users"]
    preset, _, result = PRESETS[name]
    losses = report["validation_nll"]
    least = min(losses, key=lambda method: losses[method])
    ceiling = report.get("ceiling")
    text = [
        f"**{TITLES[name]}** {people['train']:,} training, {people['validation']:,} validation and "
        f"{people['test']:,} test users; {report['seeds']} seeds. The least validation loss on "
        f"known items has `{least}`."
    ]
    if ceiling:
        text.append(
            f"Ceiling, `bayes` from all {ceiling['choices']:.0f} choices that a test user has to "
            f"learn from: {100 * ceiling['accuracy']:.1f} %."
        )
    text.append(
        f"From `configs/mrm/{preset}.yaml`; "
        f"[the report](../benchmarks/results/{result}/report.json)."
    )
    return " ".join(text)


# More of new users on known items: title, figure, and how it is written. A column is left out where
# no method has its figure.
MORE = (
    ("gain over `bt_items`", "gain_best", ""),
    ("nll", "nll", "{:.3f}"),
    ("calibration error, %", "calibration_error", "{:.1%}"),
    ("flipped, %", "flipped", "{:.1%}"),
    ("flipped by swapped choices, %", "swap_flipped", "{:.1%}"),
    ("gain with another user's choices", "gain_other", ""),
    ("harmed, %", "harmed", "{:.1%}"),
    ("by noise alone, %", "harm_floor", "{:.1%}"),
    ("worst tenth, %", "worst_10_split", "{:.1%}"),
)
_NOT_PERSONAL = ("flipped", "swap_flipped", "harmed", "harm_floor", "gain_other")


def table(report: Mapping[str, Any]) -> str:
    """Two tables: accuracy and gain in every regime, and what else there is of new users."""
    names = [name for name in METHODS if name in report["new_users"]]
    header = ["", *(cell for title in REGIMES.values() for cell in (f"{title}, %", "gain"))]
    rows = [
        [_label(name), *(c for regime in REGIMES for c in _cells(name, _of(report, regime, name)))]
        for name in names
    ]
    new_users = report["new_users"]
    more = [entry for entry in MORE if any(entry[1] in new_users[name] for name in names)]
    other = [
        [_label(n), *(_more(n, new_users[n], key, form) for _, key, form in more)] for n in names
    ]
    about = "New users on known items:"
    titles = ["", *(title for title, _, _ in more)]
    return f"{_markdown(header, rows)}\n{about}\n\n{_markdown(titles, other)}"


def _label(name: str) -> str:
    return f"{METHODS[name]} (`{name}`)"


def _of(report: Mapping[str, Any], regime: str, name: str) -> Mapping[str, float] | None:
    found: Mapping[str, float] | None = report.get(regime, {}).get(name)
    return found


def _markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join("| " + " | ".join(row) + " |\n" for row in lines)


def _more(name: str, figures: Mapping[str, float], key: str, form: str) -> str:
    if key not in figures or (name in GLOBAL_MODELS and key in _NOT_PERSONAL):
        return ""
    if form:
        return form.format(figures[key]).rstrip("%")
    return f"{_points(figures[key])} ({_range(figures, key)})"


def _cells(name: str, figures: Mapping[str, float] | None) -> list[str]:
    if figures is None:
        return ["", ""]
    accuracy = f"{100 * figures['accuracy']:.1f}"
    if name == "bt":
        return [accuracy, ""]
    cell = f"{_points(figures['gain'])} ({_range(figures, 'gain')})"
    if "gain_items_low" in figures:
        cell += f" [{_range(figures, 'gain_items')}]"
    surely = figures["gain_low"] > 0
    return [accuracy, f"**{cell}**" if surely else cell]


def _range(figures: Mapping[str, float], key: str) -> str:
    return f"{_points(figures[f'{key}_low'], '')} to {_points(figures[f'{key}_high'], '')}"


def _points(share: float, sign: str = "+") -> str:
    text = f"{100 * share:{sign}.1f}"
    return "0.0" if text.lstrip("+-") == "0.0" else text
