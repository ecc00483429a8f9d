"""The answers that ship with the package, and what is measured of them."""

import gzip
import importlib.resources
import json
import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from jaxalign.errors import InputError
from jaxalign.models.embed import Encoder, encode, load_encoder
from jaxalign.mrm.config import FeatureConfig
from jaxalign.rewards.reward_scale import RewardScale, fit_scale
from jaxalign.rewards.rules import TRAITS, measure_traits

FILE = "answers.jsonl.gz"
ENCODER = FeatureConfig.model


@dataclass(frozen=True)
class DemoAnswers:
    """N answers to X prompts; within a prompt no text occurs twice.

    Attributes:
        origin: the file's header: which model wrote them, its licence, its seed.
        ids: [X] ids of the prompts.
        prompts: [X] texts of the prompts.
        texts: [N] answers, prompt by prompt.
        prompt: [N] int, the prompt of each.
    """

    origin: dict[str, Any]
    ids: tuple[str, ...]
    prompts: tuple[str, ...]
    texts: tuple[str, ...]
    prompt: np.ndarray

    @cached_property
    def _raw(self) -> np.ndarray:
        return measure_traits(self.texts)

    @cached_property
    def scale(self) -> RewardScale:
        """The traits' scale, fitted once on all answers."""
        return fit_scale(self._raw, tuple(TRAITS), quantiles=None)

    @cached_property
    def traits(self) -> np.ndarray:
        """Standardised traits [N, 5]."""
        return self.scale.standardise(self._raw)

    def pairs(self, prompts: np.ndarray) -> np.ndarray:
        """All pairs of answers [M, 2] to the same one of `prompts`."""
        rows = [np.flatnonzero(self.prompt == prompt) for prompt in prompts]
        pairs = [row[np.stack(np.triu_indices(len(row), 1), axis=1)] for row in rows]
        return np.concatenate(pairs) if pairs else np.zeros((0, 2), int)


def from_rows(origin: dict[str, Any], rows: list[dict[str, Any]]) -> DemoAnswers:
    """Return answers from rows {"id", "prompt", "answers": [{"text"}]}, without repeated texts."""
    kept = [list(dict.fromkeys(answer["text"] for answer in row["answers"])) for row in rows]
    return DemoAnswers(
        origin,
        tuple(str(row["id"]) for row in rows),
        tuple(row["prompt"] for row in rows),
        tuple(text for texts in kept for text in texts),
        np.repeat(np.arange(len(rows)), [len(texts) for texts in kept]),
    )


def read_answers() -> DemoAnswers:
    """Read the answers of the installed package.

    Raises:
        InputError: the file is missing or damaged.
    """
    try:
        packed = (importlib.resources.files("jaxalign.demo") / FILE).read_bytes()
        lines = gzip.decompress(packed).decode().splitlines()
        origin, *rows = [json.loads(line) for line in lines]
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise InputError(
            f"jaxalign/demo/{FILE} is missing or damaged ({error}): install jaxalign again"
        ) from error
    return from_rows(origin, rows)


def encode_answers(texts: tuple[str, ...], show: bool) -> tuple[np.ndarray, Encoder]:
    """Return MiniLM features [N, E] of the answers, and the encoder."""
    encoder = load_encoder(ENCODER)
    return encode(encoder, texts, progress=show), encoder
