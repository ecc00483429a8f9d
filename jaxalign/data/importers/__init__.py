"""Feedback as products, annotation tools and public data sets write it, turned into one file."""

from jaxalign.data.importers import (  # noqa: F401, each registers itself
    arena,
    argilla,
    community,
    helpsteer,
    hh_rlhf,
    label_studio,
    langfuse,
    open_webui,
    openai,
    trl,
)
from jaxalign.data.importers._run import ImportSummary, import_feedback
from jaxalign.data.importers.registry import (
    FeedbackFormat,
    ImportOptions,
    each_row,
    formats,
    register_format,
)
from jaxalign.data.importers.rows import ChoiceRow, RatingRow, Skipped

__all__ = [
    "ChoiceRow",
    "FeedbackFormat",
    "ImportOptions",
    "ImportSummary",
    "RatingRow",
    "Skipped",
    "each_row",
    "formats",
    "import_feedback",
    "register_format",
]
