"""The report of a build: report.json, report.md, plots, and the table on the terminal."""

from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from jaxalign.experiments.palm import plots
from jaxalign.files import write_json, write_text
from jaxalign.palm.portfolio import Portfolio, Usage

Rows = list[list[str]]

SIZES_SAID = (
    "By size, on other prompts: worst gap in standard deviations, worst user's share of the "
    "improvement lost in %, all users' share lost in %."
)

_GAPS = (
    ("additive_sd", "gap, sd", 1.0, 3),
    ("share_lost", "improvement lost, %", 100.0, 1),
    ("additive", "gap, reward", 1.0, 4),
    ("multiplicative", "multiplicative, %", 100.0, 1),
)
_EDGES = {
    "additive_sd": ("additive_sd_low", "additive_sd_high"),
    "share_lost": ("share_low", "share_high"),
    "additive": ("additive_low", "additive_high"),
}


def write(out: Path, report: dict[str, Any], portfolio: Portfolio) -> None:
    """Write report.json, report.md and the plots that there is something for.

    Args:
        out: folder.
        report: of `palm.run`.
        portfolio: what it is about.
    """
    pictures = {}
    if len(report["rewards"]) == 3 and portfolio.config.weights == "simplex":
        plots.plot_regions(portfolio, report["rewards"], out / "regions.png")
        pictures["regions.png"] = "Which member every user is routed to"
    if report["sizes"]:
        plots.plot_sizes(report["sizes"], out / "sizes.png")
        pictures["sizes.png"] = "Every size beside uniform, random and k-center weights"
    write_json(out / "report.json", report)
    write_text(out / "report.md", markdown(report, pictures))


def certificate_rows(
    certificate: dict[str, Any] | None, held_out: dict[str, Any]
) -> tuple[list[str], Rows]:
    """Header and rows of the worst gaps over all users.

    Args:
        certificate: of the portfolio, on the prompts it was chosen on; None for none.
        held_out: on other prompts.
    """
    header = ["worst user"]
    scopes: list[Any] = []
    if certificate is not None:
        scopes = [certificate["optimum"], certificate["pool"]]
        header += ["optimum", "pool"]
    band = f"{100 * held_out['level']:g} % band"
    header += [f"{held_out['prompts']} prompts", band]
    rows = []
    for name, label, factor, digits in _GAPS:
        cells = [label]
        for scope in [*scopes, held_out]:
            gap = None if scope is None else scope[name]
            cells.append("-" if gap is None else f"{factor * gap['value']:.{digits}f}")
        ends = [f"{factor * held_out[edge]:.{digits}f}" for edge in _EDGES.get(name, ())]
        cells.append("..".join(ends) or "-")
        rows.append(cells)
    return header, rows


def member_rows(report: dict[str, Any]) -> tuple[list[str], Rows]:
    """Header and rows of the members, the reference first."""
    names = report["rewards"]
    header = ["member", *[f"w {name}" for name in names], *names, "KL"]
    rows = []
    for number, member in enumerate(report["members"]):
        weight = member["weight"] or []
        shown = [f"{value:.3f}" for value in weight] or [""] * len(names)
        values = [f"{value:.3f}" for value in member["rewards"]]
        label = str(number) if number else "0"
        rows.append([label, *shown, *values, f"{member['kl']:.3f}"])
    return header, rows


def size_rows(report: dict[str, Any]) -> tuple[list[str], Rows]:
    """Header and rows of the comparison: worst gap / worst share / mean share lost."""
    methods = list(dict.fromkeys(row["method"] for row in report["sizes"]))
    found = {(row["method"], row["size"]): row for row in report["sizes"]}
    rows = []
    for size in sorted({row["size"] for row in report["sizes"]}):
        cells = [str(size)]
        for method in methods:
            row = found[method, size]
            cells.append(
                f"{row['additive_sd']:.2f} {100 * row['share_lost']:.0f} "
                f"{100 * row['mean_lost']:.0f}"
            )
        rows.append(cells)
    return ["members", *methods], rows


def usage_rows(usage: Usage) -> tuple[list[str], Rows]:
    """Header and rows of who is routed where."""
    rows = [[str(i) if i else "0", f"{100 * s:.2f}"] for i, s in enumerate(usage.share)]
    return ["member", "users, %"], rows


def terminal(header: list[str], rows: Rows) -> Table:
    """A table for `Console.print`."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1))
    for place, name in enumerate(header):
        table.add_column(name, justify="right" if place else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def sentence(report: dict[str, Any]) -> str:
    """How small a portfolio may be, in words."""
    if not report["sizes"]:
        return ""
    most = max(row["size"] for row in report["sizes"])
    found = report["smallest_under_5_percent"]
    said = []
    for name, whose in (("share_lost", "the worst user loses"), ("mean_lost", "all users lose")):
        size = found[name]
        said.append(
            f"{whose} less than 5 % of the improvement from {size} "
            f"member{'s' if size != 1 else ''} on"
            if size
            else f"{whose} more than 5 % with {most} members"
        )
    return "On other prompts " + ", ".join(said) + "."


def markdown(report: dict[str, Any], pictures: dict[str, str]) -> str:
    """The report for people."""
    selection, certificate = report["selection"], report["certificate"]
    lines = [
        f"# {len(report['members']) - 1} policies for every preference over "
        f"{', '.join(report['rewards'])}",
        "",
        f"Built from {report['source']}: chosen on {report['prompts']['chosen_on']} prompts, "
        f"certified on {report['prompts']['certified_on']} others. {selection['calls']} oracle "
        f"calls; the selection is {'' if selection.get('optimal') else 'not '}proved optimal over "
        "the pool. The reference policy is a free member, so no user is served below it.",
        "",
        f"The certificate is {certificate['scope']}. The share lost is asked of users whose "
        f"improvement is at least {certificate['floor_sd']:g} standard deviations. Multiplicative "
        "gaps depend on the zero, here that of the scaled rewards less the price of KL. The last "
        "two columns are against the pool on the other prompts, the band for all users at once. "
        "Member 0 is the reference.",
        "",
        _table(*certificate_rows(certificate, report["held_out"])),
        _table(*member_rows(report)),
    ]
    if report["sizes"]:
        lines += [
            SIZES_SAID,
            "",
            _table(*size_rows(report)),
            sentence(report),
            "",
        ]
    lines += [f"![{text}]({name})\n" for name, text in pictures.items()]
    return "\n".join(lines)


def _table(header: list[str], rows: Rows) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
