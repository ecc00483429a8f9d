"""The report of a build: report.md, its plots, and the tables for the terminal."""

from collections.abc import Sequence
from pathlib import Path

from jaxalign.experiments.palm.plots import plot_regions, plot_sizes
from jaxalign.experiments.palm.statistics import (
    MEASURES,
    BuiltPortfolio,
    Measure,
    SizeRow,
    smallest,
)
from jaxalign.files import write_text
from jaxalign.palm import Certificate, Gap, HeldOut, Portfolio, Usage
from jaxalign.progress import counted
from jaxalign.runs.tables import MISSING, interval, markdown_table, percent

Rows = list[list[str]]

SIZES_CAPTION = (
    "By size, on other prompts: worst gap in standard deviations, worst user's share of the "
    "improvement lost in %, all users' share lost in %."
)

_GAPS = (
    ("additive_sd", "gap, sd", 1.0, 3),
    ("share_lost", "improvement lost, %", 100.0, 1),
    ("additive", "gap, reward", 1.0, 4),
    ("multiplicative", "multiplicative, %", 100.0, 1),
)
_BANDS = {"additive_sd": "additive_sd", "share_lost": "share", "additive": "additive"}


def write_report(out: Path, built: BuiltPortfolio, steps: str = "") -> None:
    """Write report.md and the plots that there is something for.

    Args:
        out: folder.
        built: what the report is about.
        steps: last section, on what to do next.
    """
    plots, portfolio = {}, built.portfolio
    names = reward_names(portfolio)
    if len(names) == 3 and portfolio.config.weights == "simplex":
        plot_regions(portfolio, names, out / "regions.png")
        plots["regions.png"] = "Member that every user is routed to"
    if built.sizes:
        plot_sizes(built.sizes, out / "sizes.png")
        plots["sizes.png"] = "Every size beside uniform, random and k-center weights"
    write_text(out / "report.md", markdown(built, plots) + steps)


def reward_names(portfolio: Portfolio) -> tuple[str, ...]:
    """Return the names of a portfolio's rewards, or numbers where they are not known."""
    if portfolio.scale is not None:
        return portfolio.scale.names
    return tuple(f"reward {place}" for place in range(len(portfolio.spread)))


def certificate_rows(certificate: Certificate | None, held_out: HeldOut) -> tuple[list[str], Rows]:
    """Return header and rows of the worst gaps over all users.

    Args:
        certificate: certificate on the prompts that the portfolio was chosen on; None for none.
        held_out: the gaps on other prompts.
    """
    reports = [held_out.report]
    header = [counted(held_out.prompts, "prompt"), f"{100 * held_out.level:g} % band"]
    if certificate is not None:
        header = ["optimum", "pool", *header]
    rows = []
    for name, label, factor, digits in _GAPS:
        gaps: list[Gap | None] = [getattr(report, name) for report in reports]
        if certificate is not None:
            optimum = None if certificate.optimum is None else getattr(certificate.optimum, name)
            gaps = [optimum, getattr(certificate.pool, name), *gaps]
        cells = [MISSING if gap is None else f"{factor * gap.value:.{digits}f}" for gap in gaps]
        band = MISSING
        if name in _BANDS:
            low, high = (getattr(held_out, f"{_BANDS[name]}_{end}") for end in ("low", "high"))
            # Where no user is sure to be able to improve by the floor, there is no band.
            last = gaps[-1]
            if last is not None and high >= last.value - 1e-9:
                band = interval(factor * low, factor * high, digits)
        rows.append([label, *cells, band])
    return ["worst user", *header], rows


def member_rows(built: BuiltPortfolio) -> tuple[list[str], Rows]:
    """Return header and rows of the members, the reference first."""
    portfolio = built.portfolio
    names, members = reward_names(portfolio), portfolio.members
    of = built.weight_names or names
    rows = []
    for number in range(len(members)):
        weight = members.payload["weight"][number] if number else ()
        cells = [f"{value:.3f}" for value in weight] or [""] * len(of)
        values = [f"{value:.3f}" for value in members.rewards[number]]
        rows.append([str(number), *cells, *values, f"{members.kl[number]:.3f}"])
    return ["member", *[f"w {name}" for name in of], *names, "KL"], rows


def size_rows(sizes: Sequence[SizeRow]) -> tuple[list[str], Rows]:
    """Return header and rows of the comparison: worst gap / worst share / mean share lost."""
    methods = list(dict.fromkeys(row["method"] for row in sizes))
    found = {(row["method"], row["size"]): row for row in sizes}
    rows = []
    for size in sorted({row["size"] for row in sizes}):
        of_size = [found[method, size] for method in methods]
        cells = [
            f"{row['additive_sd']:.2f} " + " ".join(percent(row[name], 0) for name in MEASURES[1:])
            for row in of_size
        ]
        rows.append([str(size), *cells])
    return ["members", *methods], rows


def usage_rows(usage: Usage) -> tuple[list[str], Rows]:
    """Return header and rows of the share of users that each member serves."""
    return ["member", "users, %"], [[str(i), percent(s, 2)] for i, s in enumerate(usage.share)]


def size_sentence(sizes: Sequence[SizeRow]) -> str:
    """Return one sentence on how small a portfolio may be."""
    most = max(row["size"] for row in sizes)
    parts = []
    whose: dict[Measure, str] = {
        "share_lost": "the worst user loses", "mean_lost": "all users lose",
    }  # fmt: skip
    for measure, words in whose.items():
        size = smallest(sizes, measure)
        parts.append(
            f"{words} less than 5 % of the improvement from {counted(size, 'member')} on"
            if size
            else f"{words} more than 5 % with {counted(most, 'member')}"
        )
    return "On other prompts " + ", ".join(parts) + "."


def selection_sentence(portfolio: Portfolio) -> str:
    """Return one sentence on fewer members than were requested, empty where there are not fewer."""
    found = portfolio.selection
    if found is None or found.asked is None or found.distinct >= found.asked:
        return ""
    return (
        f"{counted(found.asked, 'member was', 'members were')} requested; the pool has "
        f"{found.distinct} that differ from each other and from the reference, so the portfolio "
        f"has {found.size}."
    )


def estimate_lines(built: BuiltPortfolio) -> list[str]:
    """Return what is said of values that are means over sampled answers; nothing for others."""
    sampling = built.portfolio.certificate.sampling
    if sampling is None:
        return []
    return [
        "Values are means over answers that the policies drew to these prompts. On the prompts "
        f"that the members were chosen on, the gap to the pool lies between {sampling[0]:.4f} and "
        f"{sampling[1]:.4f}, in units of the scaled reward, at a level of 95 % over draws of "
        "prompts; on the others, in the band below. More prompts narrow both.",
        "",
    ]


def markdown(built: BuiltPortfolio, plots: dict[str, str]) -> str:
    """Return the report for people.

    Args:
        built: what the report is about.
        plots: name of a plot's file to its caption.
    """
    portfolio, certificate = built.portfolio, built.portfolio.certificate
    proved = portfolio.selection is not None and portfolio.selection.optimal
    lines = [
        f"# {counted(len(portfolio.members) - 1, 'policy', 'policies')} for every preference over "
        f"{', '.join(reward_names(portfolio))}",
        "",
        f"Built from {built.source}: chosen on {counted(built.chosen_on, 'prompt')}, certified on "
        f"{built.held_out.prompts} others. {portfolio.calls} "
        f"{'trained policies' if built.weight_names else 'oracle calls'}; the selection is "
        f"{'' if proved else 'not '}proved optimal over the pool. The reference policy is a free "
        "member, so no user is served below it.",
        "",
        *estimate_lines(built),
        f"The certificate is {certificate.scope}. The share lost is that of users whose "
        f"improvement is at least {certificate.floor:g} standard deviations. Multiplicative "
        "gaps depend on the zero, here that of the scaled rewards less the price of KL. The last "
        "two columns are against the pool on the other prompts, the band for all users at once. "
        "Member 0 is the reference.",
        "",
        markdown_table(*certificate_rows(certificate, built.held_out)),
        markdown_table(*member_rows(built)),
    ]
    if fewer := selection_sentence(portfolio):
        lines += [fewer, ""]
    if portfolio.scale is not None:
        lines += [
            f"Scale of the rewards: `{portfolio.scale.digest}`. Files of users that state a scale "
            "must state this one.",
            "",
        ]
    if built.sizes:
        table = markdown_table(*size_rows(built.sizes))
        lines += [SIZES_CAPTION, "", table, size_sentence(built.sizes), ""]
    lines += [f"![{text}]({name})\n" for name, text in plots.items()]
    return "\n".join(lines)
