"""A small word-level decoder, pretrained in half a minute on the shipped answers.

The demo needs a language model that writes, without a download. This one knows the most frequent
words of the answers and little of their order: its answers look like the shipped ones and mean
little.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from jaxalign.data.completions import Completions
from jaxalign.data.sequences import Sequences
from jaxalign.demo.answers import DemoAnswers
from jaxalign.demo.toy import STOP, init_params, word_model
from jaxalign.models.decoder_config import DecoderConfig
from jaxalign.models.language import LanguageModel
from jaxalign.progress import Progress
from jaxalign.train import sft
from jaxalign.train.loop import LoopConfig
from jaxalign.train.optimiser import OptimiserConfig
from jaxalign.train.trunk import TrunkConfig

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.pre_tokenizers import Split

SPECIAL = ("</s>", "<unk>")  # the stop token, and what stands for every rarer word
UNKNOWN = 1
# A word or a number with the space before it, a run of marks likewise, or one white space.
PIECES = r" ?\p{L}+(?:['’]\p{L}+)*| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s"
PROMPT_TOKENS, ANSWER_TOKENS = 14, 18
"""Every shipped prompt fits; answers are cut."""
CONFIG = DecoderConfig(
    "llama", vocab_size=1200, width=64, layers=2, heads=4, kv_heads=2, head_width=16, hidden=192,
    positions=PROMPT_TOKENS + ANSWER_TOKENS,
)  # fmt: skip
SFT = sft.SftConfig(
    trunk=TrunkConfig(method="full", weights="float32", compute="float32", remat=None),
    loop=LoopConfig(epochs=6, batch_size=64, checkpoint_every=10_000),
    optimiser=OptimiserConfig(rate=5e-3, warmup=0.05, weight_decay=0.1),
)


def question(prompt: str) -> str:
    """Return a prompt as the decoder reads it: on a line of its own."""
    return f"{prompt}\n"


def make_writer(
    answers: DemoAnswers, prompts: np.ndarray, seed: int, progress: Progress
) -> LanguageModel:
    """Return a decoder trained to answer some prompts as the shipped answers do.

    Args:
        answers: What it learns.
        prompts: [X] int prompts whose answers it learns; it reads none of the others.
        seed: Seed of its initialisation and training.
        progress: Where the training is shown.
    """
    rows = np.flatnonzero(np.isin(answers.prompt, prompts))
    questions = [question(answers.prompts[answers.prompt[row]]) for row in rows]
    written = [answers.texts[row] for row in rows]
    words = _tokenizer(written)
    model = word_model(CONFIG, init_params(CONFIG, seed), words, f"toy writer {seed}")
    config = replace(SFT, loop=replace(SFT.loop, seed=seed))
    with TemporaryDirectory() as folder:
        learned = _completions(model, questions, written)
        found = sft.train(model, learned, None, config, Path(folder), progress)
    return replace(model, params=found.params["model"])


def answer_pieces(texts: Iterable[str]) -> list[list[str]]:
    """Return the pieces of each text that fit into an answer of the decoder."""
    split = _splitter()
    return [[piece for piece, _ in split.pre_tokenize_str(text)[:ANSWER_TOKENS]] for text in texts]


def _splitter() -> "Split":
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Split(Regex(PIECES), "isolated")


def _tokenizer(texts: Iterable[str]) -> "Tokenizer":
    """Return a tokenizer of the most frequent words of texts that are cut as answers are."""
    from tokenizers import Tokenizer, decoders, models

    counts = Counter(piece for pieces in answer_pieces(texts) for piece in pieces)
    # Equally frequent words come in the order of their letters: the same at every run.
    ordered = sorted(counts, key=lambda word: (-counts[word], word))
    known = [*SPECIAL, *ordered[: CONFIG.vocab_size - len(SPECIAL)]]
    numbers = {word: number for number, word in enumerate(known)}
    words = Tokenizer(models.WordLevel(numbers, unk_token=SPECIAL[UNKNOWN]))
    words.pre_tokenizer = _splitter()
    words.decoder = decoders.Fuse()
    return words


def _completions(model: LanguageModel, prompts: Sequence[str], texts: Sequence[str]) -> Completions:
    """Return answers to learn; a rare word is read and never learned, so that none is written."""

    def ids(found: Sequence[str]) -> list[list[int]]:
        return model.tokenizer(list(found), add_special_tokens=False)["input_ids"]

    rows: list[list[int]] = []
    learned: list[bool] = []
    for prompt, text in zip(ids(prompts), ids(texts), strict=True):
        answer = [*text, STOP][:ANSWER_TOKENS]
        rows.append([*prompt, *answer])
        learned += [False] * len(prompt) + [token != UNKNOWN for token in answer]
    return Completions(Sequences.of(rows), np.array(learned), source="the shipped answers")
