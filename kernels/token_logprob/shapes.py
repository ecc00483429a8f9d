"""Shapes of real models' unembeddings, shared by tests and benchmarks."""

from typing import NamedTuple


class Shape(NamedTuple):
    """One unembedding: vocabulary V, width D."""

    vocab: int
    width: int


SMOLLM2_135M = Shape(49_152, 576)
QWEN2_5_0_5B = Shape(151_936, 896)
QWEN2_5_7B = Shape(152_064, 3_584)
QWEN3_8B = Shape(151_936, 4_096)
LLAMA3_8B = Shape(128_256, 4_096)

SHAPES = {
    "smollm2-135m": SMOLLM2_135M,
    "qwen2.5-0.5b": QWEN2_5_0_5B,
    "qwen2.5-7b": QWEN2_5_7B,
    "qwen3-8b": QWEN3_8B,
    "llama3-8b": LLAMA3_8B,
}
