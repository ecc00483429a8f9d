"""The report for people: tables on the terminal and in Markdown, with plots and answers."""

from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from jaxalign.experiments.moc import plots
from jaxalign.files import write_json, write_text

Rows = list[list[str]]

_MISSING = "-"
_PARTS = {"seen": "seen", "held_out": "held out", "shared": "shared"}
_PICTURES = {
    "front.png": "Rewards reached under each preference",
    "control.png": "What was told and what was reached",
}


def write(out: Path, report: dict[str, Any]) -> None:
    """Write the plots, report.md and, last and so as proof of a whole report, report.json.

    Args:
        out: folder.
        report: of `moc.report`.
    """
    plots.plot_front(report, out / "front.png")
    plots.plot_control(report, out / "control.png")
    write_text(out / "report.md", markdown(report))
    write_json(out / "report.json", report)


def control_rows(report: dict[str, Any]) -> tuple[list[str], Rows]:
    """Header and rows of how well each speaker does what it is told."""
    header = ["speaker", "told", *[f"tau {name}" for name in report["rewards"]], "MSE", "corners"]
    rows = []
    for name, part, figures in _each(report):
        taus = [_figure(figures["tau"][reward], 2) for reward in report["rewards"]]
        errors = [_figure(figures[error]) for error in ("squared_error", "corner_error")]
        rows.append([name, _count(figures, part), *taus, *errors])
    return header, rows


def quality_rows(report: dict[str, Any]) -> tuple[list[str], Rows]:
    """Header and rows of how good and how varied what each speaker reaches is."""
    header = ["speaker", "told", "hypervolume", "95 %", "sparsity", "front %", "entropy"]
    rows = []
    for name, part, figures in _each(report):
        volume = figures["hypervolume"]
        ends = _MISSING if volume["low"] is None else f"{volume['low']:.3f}..{volume['high']:.3f}"
        rows.append(
            [
                name,
                _count(figures, part),
                f"{volume['value']:.3f}",
                ends,
                _figure(figures["sparsity"], 4),
                f"{100 * figures['nondominated']['value']:.0f}",
                _figure(figures["entropy"], 2),
            ]
        )
    return header, rows


def cost_rows(report: dict[str, Any]) -> tuple[list[str], Rows]:
    """Header and rows of what users with linear wishes lose, and how far each speaker went."""
    header = ["speaker", "told", "table", "of all", "weights", "of all", "KL", "nats/token"]
    header += ["tokens"]
    rows = []
    for name, part, figures in _each(report):
        ways = ("table_own", "table_all", "direct_own", "direct_all")
        rows.append(
            [
                name,
                _count(figures, part),
                *[_figure(figures["regret"][way]) for way in ways],
                f"{figures['kl']:.2f}",
                f"{figures['answer_entropy']:.2f}",
                f"{figures['tokens']:.0f}",
            ]
        )
    return header, rows


def point_rows(report: dict[str, Any], speaker: str) -> tuple[list[str], Rows]:
    """Header and rows of what a speaker reaches under each preference."""
    names = report["rewards"]
    header = ["told: " + ", ".join(names), *names, "KL", "held out", "dominated"]
    rows = []
    for point in report["speakers"][speaker]["points"]:
        pairs = zip(point["reached"], point["stderr"], strict=True)
        rows.append(
            [
                _told(point["told"]),
                *[f"{value:.3f} ± {error:.3f}" for value, error in pairs],
                f"{point['kl']:.2f} ± {point['kl_stderr']:.2f}",
                "" if point["seen"] else "yes",
                "" if point["nondominated"] else "yes",
            ]
        )
    return header, rows


def terminal(report: dict[str, Any]) -> Group:
    """The tables and a sentence, for `Console.print`; for usual names eighty columns wide."""
    parts: list[Text | Table] = []
    for title, (header, rows) in _tables(report):
        parts += [Text(title, style="bold"), _terminal_table(header, rows), Text()]
    return Group(*parts, Text(sentence(report)))


def _tables(report: dict[str, Any]) -> list[tuple[str, tuple[list[str], Rows]]]:
    return [
        ("Does it do what it is told?", control_rows(report)),
        ("What it reaches", quality_rows(report)),
        ("What users with linear wishes lose, and what it costs", cost_rows(report)),
    ]


def sentence(report: dict[str, Any]) -> str:
    """What the first speaker does, in words."""
    name, speaker = next(iter(report["speakers"].items()))
    part = next(iter(speaker["parts"]))
    figures = speaker["parts"][part]
    said = [
        f"{name} dominates {_with_ends(figures['hypervolume'])} of volume above "
        f"{_told(report['reference_point'])}"
    ]
    taus = [
        f"{_MISSING if tau is None else format(tau['value'], '.2f')} for {reward}"
        for reward, tau in figures["tau"].items()
    ]
    said.append(f"orders its answers as told with tau-b {', '.join(taus)}")
    if figures["corner_error"] is not None:
        said.append(f"leaves {_with_ends(figures['corner_error'])} of an objective asked for alone")
    regret = figures["regret"]
    if regret["table_own"] is not None:
        said.append(
            f"costs a user with linear wishes {_with_ends(regret['table_own'])} when told through "
            f"its value table and {_with_ends(regret['direct_own'])} when the weights are told as "
            "they are"
        )
    return f"On {_PARTS[part]} preferences " + "; ".join(said) + "."


def markdown(report: dict[str, Any]) -> str:
    """The page: tables, plots, answers under preferences far apart."""
    names = ", ".join(report["rewards"])
    point = _told(report["reference_point"])
    lines = [
        f"# What is told and what is reached: {names}",
        "",
        *[part for title, rows in _tables(report) for part in (f"**{title}**\n", _table(*rows))],
        sentence(report),
        "",
        f"Means over {report['prompts']} prompts, {_drawn(report)}. Rewards are levels of the "
        "run's scale: 0 is low and 1 is high among the reference's answers. Intervals, here and in "
        f"report.json, are at 95 % of {report['draws']} resamples of the prompts. A front drawn "
        "through noisy points looks a little larger and less even than it is, and resamples have "
        "the noise twice: a figure may lie off the middle of its interval.",
        "",
        "- **told**: how many preferences, seen in training or held out"
        + ("; shared are those that all were told." if _has_shared(report) else "."),
        f"- **tau**: Kendall's tau-b of preference and level; {_cap(report)}",
        "- **MSE**: mean squared distance of level from preference. **corners**: of an objective "
        "asked for alone, how far the level stays behind the highest that any speaker reached.",
        "- Users whose weights are the preferences lose, against the best of the speaker's own "
        "points, or of all speakers' (**of all**): **table**, where it is told what its value "
        "table says, chosen on one half of the prompts and judged on the other; **weights**, where "
        "it is told their weights as if they were levels.",
        f"- **hypervolume** above {point}. **sparsity**: squared gaps between neighbours on the "
        "front, summed over objectives, over n - 1 (Xu et al. 2020). **front %**: points that no "
        "other of the row dominates. **entropy**: nats; its exponential is a number of distinct "
        "points.",
        "- **KL**: nats an answer, to the model alone on the plain prompt; where the preference "
        "stands in the prompt, that alone moves it, and training, whose reference reads it too, "
        "reports less. **nats/token**: entropy of what is drawn.",
        "",
        *[f"![{text}]({name})\n" for name, text in _PICTURES.items()],
        *_example_lines(report),
    ]
    for speaker in report["speakers"]:
        lines += [f"## Points of {speaker}", "", _table(*point_rows(report, speaker))]
    return "\n".join(lines)


def _example_lines(report: dict[str, Any]) -> list[str]:
    lines = [f"## Answers of {next(iter(report['speakers']))}", ""]
    order = ", ".join(report["rewards"])
    for example in report["examples"]:
        lines += ["**Prompt**", "", *_quoted(example["prompt"]), ""]
        for answer in example["answers"]:
            lines += [f"told {_told(answer['told'])} ({order}):", "", *_quoted(answer["answer"])]
            lines.append("")
    return lines


def _quoted(text: str) -> list[str]:
    """Text as it is, whatever marks it holds: an indented block."""
    return [f"    {line}" for line in text.strip().splitlines()] or ["    (nothing)"]


def _each(report: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """Speaker, part and figures of each row; where all told is shared, once."""
    return [
        (name, part, figures)
        for name, speaker in report["speakers"].items()
        for part, figures in speaker["parts"].items()
        if part == "shared"
        or speaker["parts"].get("shared", {}).get("points") != len(speaker["points"])
    ]


def _count(figures: dict[str, Any], part: str) -> str:
    return f"{figures['points']} {_PARTS[part]}"


def _has_shared(report: dict[str, Any]) -> bool:
    return any(part == "shared" for _, part, _ in _each(report))


def _drawn(report: dict[str, Any]) -> str:
    said = {
        f"{one['samples']} answer{'s' if one['samples'] > 1 else ''} each at temperature "
        f"{one['temperature']:g}"
        for one in report["speakers"].values()
    }
    return " or ".join(sorted(said))


def _cap(report: dict[str, Any]) -> str:
    caps = [
        cap for _, _, figures in _each(report) for cap in figures["tau_cap"].values()
        if cap is not None
    ]  # fmt: skip
    if not caps:
        return "nowhere to be measured, as no two preferences differ."
    low = min(caps)
    if low > 1 - 1e-9:
        return "1 is the most. - where levels or preferences are all the same."
    return (
        f"as preferences tie, the most is {low:.2f} to {max(caps):.2f} (report.json: tau_cap). - "
        "where levels or preferences are all the same."
    )


def _told(values: list[float]) -> str:
    return "(" + ", ".join(f"{value:.2f}".rstrip("0").rstrip(".") for value in values) + ")"


def _figure(entry: dict[str, Any] | None, digits: int = 3) -> str:
    return _MISSING if entry is None else f"{entry['value']:.{digits}f}"


def _with_ends(entry: dict[str, Any]) -> str:
    if entry["low"] is None:
        return f"{entry['value']:.3f}"
    return f"{entry['value']:.3f} ({entry['low']:.3f} to {entry['high']:.3f})"


def _terminal_table(header: list[str], rows: Rows) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=0)
    for place, name in enumerate(header):
        # Long names of speakers break, nothing else does.
        justify: Any = "left" if place < 2 else "right"
        table.add_column(name, justify=justify, overflow="fold", no_wrap=place > 0)
    for row in rows:
        table.add_row(*[Text(cell) for cell in row])
    return table


def _table(header: list[str], rows: Rows) -> str:
    lines = [header, ["---", "---", *["---:"] * (len(header) - 2)], *rows]
    cells = [[cell.replace("|", r"\|") for cell in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells) + "\n"
