"""The report for people: tables on the terminal and in Markdown, with plots and completions."""

from pathlib import Path

from rich.console import Group
from rich.text import Text

from jaxalign.experiments.moc import plots
from jaxalign.experiments.moc.statistics import Estimate, MocEvaluationReport, PartReport
from jaxalign.files import write_text
from jaxalign.progress import counted
from jaxalign.runs.tables import MISSING, TerminalTable, interval, markdown_table, percent

Rows = list[list[str]]

_PARTS = {"seen": "seen", "held_out": "held out", "shared": "shared"}
_PICTURES = {
    "front.png": "Rewards achieved under each preference",
    "control.png": "Requested preference and achieved reward",
}


def write_report(out: Path, report: MocEvaluationReport) -> None:
    """Write the plots and report.md into a folder."""
    plots.plot_front(report, out / "front.png")
    plots.plot_control(report, out / "control.png")
    write_text(out / "report.md", markdown(report))


def control_rows(report: MocEvaluationReport) -> tuple[list[str], Rows]:
    """Header and rows of how well each policy follows its preference."""
    header = [
        "policy",
        "preferences",
        *[f"tau {name}" for name in report["rewards"]],
        "MSE",
        "corners",
        "movement",
    ]
    rows = []
    for name, part, statistics in _each(report):
        taus = [_number(statistics["tau"][reward], 2) for reward in report["rewards"]]
        errors = [_number(statistics["squared_error"]), _number(statistics["corner_error"])]
        moved = [statistics["movement"][reward] for reward in report["rewards"]]
        movement = MISSING
        if all(moved):
            movement = ", ".join(format(one["value"], "+.2f") for one in moved if one)
        rows.append([name, _count(statistics, part), *taus, *errors, movement])
    return header, rows


def quality_rows(report: MocEvaluationReport) -> tuple[list[str], Rows]:
    """Header and rows of how good and how varied the achieved rewards of each policy are."""
    header = ["policy", "preferences", "hypervolume", "95 %", "one point", "sparsity", "front %"]
    header += ["entropy"]
    rows = []
    for name, part, statistics in _each(report):
        volume = statistics["hypervolume"]
        rows.append(
            [
                name,
                _count(statistics, part),
                f"{volume['value']:.3f}",
                _ends(volume),
                _number(statistics["single_point"]),
                _number(statistics["sparsity"], 4),
                percent(statistics["nondominated"]["value"], 0),
                _number(statistics["entropy"], 2),
            ]
        )
    return header, rows


def cost_rows(report: MocEvaluationReport) -> tuple[list[str], Rows]:
    """Header and rows of the regret of users with linear utilities, and what each policy costs."""
    header = ["policy", "preferences", "table", "of all", "weights", "of all", "KL", "nats/token"]
    header += ["tokens", "distinct-2"]
    rows = []
    for name, part, statistics in _each(report):
        ways = ("table_own", "table_all", "direct_own", "direct_all")
        rows.append(
            [
                name,
                _count(statistics, part),
                *[_number(statistics["regret"][way]) for way in ways],
                f"{statistics['kl']:.2f}",
                f"{statistics['token_entropy']:.2f}",
                f"{statistics['tokens']:.0f}",
                MISSING if statistics["distinct_2"] is None else f"{statistics['distinct_2']:.2f}",
            ]
        )
    return header, rows


def point_rows(report: MocEvaluationReport, policy: str) -> tuple[list[str], Rows]:
    """Header and rows of the rewards that a policy achieves under each preference."""
    names = report["rewards"]
    header = ["preference: " + ", ".join(names), *names, "KL", "held out", "dominated"]
    rows = []
    for point in report["policies"][policy]["points"]:
        pairs = zip(point["achieved_rewards"], point["stderr"], strict=True)
        rows.append(
            [
                _vector(point["preference"]),
                *[f"{value:.3f} ± {error:.3f}" for value, error in pairs],
                f"{point['kl']:.2f} ± {point['kl_stderr']:.2f}",
                "" if point["seen"] else "yes",
                "" if point["nondominated"] else "yes",
            ]
        )
    return header, rows


def terminal(report: MocEvaluationReport) -> Group:
    """The tables and a sentence, for `Console.print`; for usual names eighty columns wide."""
    parts: list[Text | TerminalTable] = []
    for title, (header, rows) in _tables(report):
        parts += [Text(title, style="bold"), TerminalTable(header, rows, left=2), Text()]
    return Group(*parts, Text(sentence(report)))


def _tables(report: MocEvaluationReport) -> list[tuple[str, tuple[list[str], Rows]]]:
    return [
        ("Does it follow the preference?", control_rows(report)),
        ("Achieved rewards", quality_rows(report)),
        ("Regret of users with linear utilities, and costs", cost_rows(report)),
    ]


def sentence(report: MocEvaluationReport) -> str:
    """The main statistics of the first policy, in words."""
    name, policy = next(iter(report["policies"].items()))
    part = next(iter(policy["parts"]))
    statistics = policy["parts"][part]
    said = [
        f"{name} has a hypervolume of {_with_ends(statistics['hypervolume'])} above "
        f"{_vector(report['reference_point'])}"
    ]
    taus = [
        f"{MISSING if tau is None else format(tau['value'], '.2f')} for {reward}"
        for reward, tau in statistics["tau"].items()
    ]
    said.append(f"orders its rewards as the preferences with tau-b {', '.join(taus)}")
    if statistics["corner_error"] is not None:
        corners = _with_ends(statistics["corner_error"])
        said.append(f"stays {corners} behind where a single reward is preferred")
    table, direct = (statistics["regret"][f"{way}_own"] for way in ("table", "direct"))
    if table is not None and direct is not None:
        said.append(
            f"costs a user with a linear utility {_with_ends(table)} through its value table and "
            f"{_with_ends(direct)} where the weights are used as the preference"
        )
    return f"On {_PARTS[part]} preferences " + "; ".join(said) + "."


def markdown(report: MocEvaluationReport) -> str:
    """The report: tables, plots, completions under preferences that lie far apart."""
    names = ", ".join(report["rewards"])
    point = _vector(report["reference_point"])
    lines = [
        f"# Requested preferences and achieved rewards: {names}",
        "",
        *[
            part
            for title, rows in _tables(report)
            for part in (f"**{title}**\n", markdown_table(*rows, left=2))
        ],
        sentence(report),
        "",
        f"Means over {counted(report['prompts'], 'prompt')}, {_drawn(report)}. Rewards are "
        "levels of the run's scale: 0 is low and 1 is high among the reference's completions. "
        f"Intervals, here and in report.json, are at 95 % over {report['draws']} resamples of "
        "the prompts; fewer than four prompts have none. Noise makes a front look larger and less "
        "even than it is, and resampling adds the noise once more, so a value may lie off the "
        "middle of its interval.",
        "",
        "- **preferences**: how many, seen in training or held out"
        + ("; shared are those that all policies have in common." if _has_shared(report) else "."),
        f"- **tau**: Kendall's tau-b of preference and level; {_cap(report)}",
        "- **MSE**: squared difference between mean level and preference, averaged over "
        "rewards and preferences. **corners**: how far the level of a reward that is preferred "
        "alone stays behind the highest of all policies. **movement**: how much higher the "
        "level of each reward is where it alone is preferred than where another is; 0 for a "
        "policy that ignores the preference.",
        "- Regret of users whose weights are the preferences, against the best of the policy's own "
        "points, or of the points of all policies (**of all**). **table**: served under the "
        "preference that the value table gives, chosen on one half of the prompts and judged on "
        "the other. **weights**: served under their weights as if they were a preference.",
        f"- **hypervolume** above {point}. **one point**: the hypervolume of the best single "
        "point, which a policy that ignores the preference can reach. **sparsity**: squared gaps "
        "between neighbours on the front, summed over objectives, over n - 1 (Xu et al. 2020). "
        "**front %**: points that no other of the row dominates. **entropy**: nats; its "
        "exponential is a number of distinct points.",
        "- **KL**: nats per completion, to the model alone on the plain prompt. A preference in "
        "the prompt moves it by itself; that of the best of n is its upper bound "
        "log n - (n - 1) / n. **nats/token**: entropy of what is sampled. **distinct-2**: of all "
        "pairs of neighbouring words in a completion of each prompt, the share that are different.",
        "",
        *[f"![{text}]({name})\n" for name, text in _PICTURES.items()],
        *_example_lines(report),
    ]
    for policy in report["policies"]:
        table = markdown_table(*point_rows(report, policy), left=2)
        lines += [f"## Points of {policy}", "", table]
    return "\n".join(lines)


def _example_lines(report: MocEvaluationReport) -> list[str]:
    lines = [f"## Completions of {next(iter(report['policies']))}", ""]
    order = ", ".join(report["rewards"])
    for example in report["examples"]:
        lines += ["**Prompt**", "", *_quoted(example["prompt"]), ""]
        for one in example["completions"]:
            preference = _vector(one["preference"])
            lines += [f"preference {preference} ({order}):", "", *_quoted(one["completion"]), ""]
    return lines


def _quoted(text: str) -> list[str]:
    """Text as it is, whatever marks it holds: an indented block."""
    return [f"    {line}" for line in text.strip().splitlines()] or ["    (nothing)"]


def _each(report: MocEvaluationReport) -> list[tuple[str, str, PartReport]]:
    """Policy, part and statistics of each row; once where all preferences are shared."""
    return [
        (name, part, statistics)
        for name, policy in report["policies"].items()
        for part, statistics in policy["parts"].items()
        if part == "shared"
        or "shared" not in policy["parts"]
        or policy["parts"]["shared"]["points"] != len(policy["points"])
    ]


def _count(statistics: PartReport, part: str) -> str:
    return f"{statistics['points']} {_PARTS[part]}"


def _has_shared(report: MocEvaluationReport) -> bool:
    return any(part == "shared" for _, part, _ in _each(report))


def _drawn(report: MocEvaluationReport) -> str:
    said = {
        f"{counted(one['samples'], 'completion')} each at temperature {one['temperature']:g}"
        for one in report["policies"].values()
    }
    return " or ".join(sorted(said))


def _cap(report: MocEvaluationReport) -> str:
    caps = [
        cap for _, _, statistics in _each(report) for cap in statistics["tau_cap"].values()
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


def _vector(values: list[float]) -> str:
    return "(" + ", ".join(f"{value:.2f}".rstrip("0").rstrip(".") for value in values) + ")"


def _number(entry: Estimate | None, digits: int = 3) -> str:
    return MISSING if entry is None else f"{entry['value']:.{digits}f}"


def _with_ends(entry: Estimate) -> str:
    if entry["low"] is None or entry["high"] is None:
        return f"{entry['value']:.3f}"
    return f"{entry['value']:.3f} ({entry['low']:.3f} to {entry['high']:.3f})"


def _ends(entry: Estimate) -> str:
    if entry["low"] is None or entry["high"] is None:
        return MISSING
    return interval(entry["low"], entry["high"])
