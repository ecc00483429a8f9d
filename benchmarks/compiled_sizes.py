"""What the rows of `benchmarks.compiled` are compiled at: for a card, and to try them anywhere."""

from collections.abc import Mapping
from typing import NamedTuple

from benchmarks import adapters
from benchmarks.pplug_model import Shape


class Sizes(NamedTuple):
    """What is compiled.

    Attributes:
        dtype: of language models and hidden states.
        tokens, vocabulary, width: of log-probabilities.
        decoded, batches, prompt, new: models that decode, rows, tokens of prompts and answers.
        trained, length: (model, whether by LoRA, rows) and tokens of a training step.
        recomputed: policies of rematerialisation that the last of these is compiled with, too.
        mixed: models that decode under several adapters at once, and the batch.
        preferences: names in `mrm.SIZES`.
        sweep, route: names in `SWEEPS` and `ROUTES`.
        personas: a name in `pplug.SIZES`.
        plugs: batches around language models.
        moc: model of the step of MOC.
    """

    dtype: str
    tokens: tuple[int, ...]
    vocabulary: int
    width: int
    decoded: tuple[str, ...]
    batches: tuple[int, ...]
    prompt: int
    new: int
    trained: tuple[tuple[str, bool, int], ...]
    length: int
    recomputed: tuple[str, ...]
    mixed: tuple[tuple[str, ...], adapters.Shape]
    preferences: tuple[str, ...]
    sweep: str
    route: str
    personas: str
    plugs: Mapping[str, Shape]
    moc: str


_PLUG = Shape(16, 256, 256, 32, "base")
FULL = Sizes(
    "bfloat16", (4096, 32_768), 151_936, 4096,
    ("135M", "1B", "8B"), (64, 256), 512, 128,
    (
        ("135M", True, 16), ("135M", False, 16), ("1B", True, 16), ("1B", False, 16),
        ("8B", True, 4), ("8B", True, 16),
    ), 512, ("dots_with_no_batch_dims_saveable", "nothing_saveable"),
    (("1B", "8B"), adapters.Shape(64, 8, 128, 64)),
    ("prism", "hundred_thousand"), "grid_d3", "ten_million", "gpu",
    {"1B": _PLUG, "7B": _PLUG._replace(remat=True)}, "7B",
)  # fmt: skip
TINY = Sizes(
    "float32", (64,), 512, 32, ("tiny",), (2,), 16, 8,
    (("tiny", True, 2), ("tiny", False, 2)), 16, (),
    (("tiny",), adapters.Shape(4, 2, 16, 8)),
    ("tiny",), "uneven", "uneven", "huffpost", {"tiny": Shape(2, 16, 32, 8, "tiny")}, "tiny",
)  # fmt: skip
