"""PPlug: a persona plug for a frozen language model (arXiv 2409.11901)."""

from jaxalign.pplug._train import PPlugTrainResult, train
from jaxalign.pplug.config import PersonaConfig, PPlugConfig, TextConfig
from jaxalign.pplug.files import load, save
from jaxalign.pplug.generate import generate_answers
from jaxalign.pplug.model import PPlug, init_plug, prefixes
from jaxalign.pplug.persona import (
    aggregate,
    aggregate_flat,
    init_persona,
    rescale_persona,
    task_token,
)
from jaxalign.pplug.rows import format_prompts
from jaxalign.pplug.store import HistoryStore, history_store

__all__ = [
    "HistoryStore",
    "PPlug",
    "PPlugConfig",
    "PPlugTrainResult",
    "PersonaConfig",
    "TextConfig",
    "aggregate",
    "aggregate_flat",
    "format_prompts",
    "generate_answers",
    "history_store",
    "init_persona",
    "init_plug",
    "load",
    "prefixes",
    "rescale_persona",
    "save",
    "task_token",
    "train",
]
