"""Parts of the docs that are made from results: each stands between two markers of its own."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MRM_PAGE = ROOT / "docs" / "mrm.md"
SERVE_PAGE = ROOT / "docs" / "serve.md"
SPEED_PAGE = ROOT / "docs" / "benchmarks.md"


def replaced(text: str, name: str, part: str) -> str:
    """The text with what stands between `<!-- name: begin -->` and `<!-- name: end -->` renewed.

    Raises:
        SystemExit: a marker is missing.
    """
    start, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, found, rest = text.partition(start)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise SystemExit(f"docs: expected {start} and {end}, a line each, around {name}")
    return f"{before}{start}\n{part}{end}{after}"
