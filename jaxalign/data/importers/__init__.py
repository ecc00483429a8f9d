"""Feedback as products, annotation tools and public data sets write it, turned into one file."""

import jaxalign.data.importers.arena
import jaxalign.data.importers.argilla
import jaxalign.data.importers.community
import jaxalign.data.importers.helpsteer
import jaxalign.data.importers.hh_rlhf
import jaxalign.data.importers.label_studio
import jaxalign.data.importers.langfuse
import jaxalign.data.importers.open_webui
import jaxalign.data.importers.openai
import jaxalign.data.importers.own
import jaxalign.data.importers.trl  # noqa: F401, registers itself
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
