"""Choices, histories and features in: sources read and checked into tables of plain arrays."""

from jaxalign.data.authors import load_authors, read_authors_checkpoint
from jaxalign.data.completions import Completions, load_completions
from jaxalign.data.features import Features, load_features, lookup, save_features
from jaxalign.data.feedback import prism, reddit
from jaxalign.data.files import from_columns, load
from jaxalign.data.headlines import huffpost
from jaxalign.data.histories import Histories, Item, Sample, load_histories, load_lamp
from jaxalign.data.messages import Conversation
from jaxalign.data.preferences import ChoiceSource, Preferences
from jaxalign.data.sources import jester, load_source, ukpconvarg1
from jaxalign.data.torch_files import read_pt

__all__ = [
    "ChoiceSource",
    "Completions",
    "Conversation",
    "Features",
    "Histories",
    "Item",
    "Preferences",
    "Sample",
    "from_columns",
    "huffpost",
    "jester",
    "load",
    "load_authors",
    "load_completions",
    "load_features",
    "load_histories",
    "load_lamp",
    "load_source",
    "lookup",
    "prism",
    "read_authors_checkpoint",
    "read_pt",
    "reddit",
    "save_features",
    "ukpconvarg1",
]
