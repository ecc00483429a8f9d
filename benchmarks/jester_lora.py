"""The control of personas on Jester that trains the language model: 16 ratings in the prompt, LoRA.

`python -m benchmarks pplug_jester --write lora` writes what `jaxalign sft` trains an adapter on;
with `--lora` the labels are scored by the model with that adapter, on the same prompts.
"""

import json
from pathlib import Path

import numpy as np

from jaxalign.data.histories import Histories
from jaxalign.experiments.pplug.losses import ScoredSamples, label_scores
from jaxalign.files import write_text
from jaxalign.models import LanguageModel, load_language_model
from jaxalign.pplug.config import TextConfig
from jaxalign.pplug.retrieval import build_questions

LORA = "ratings in the prompt + LoRA"


def prompt_text(text: TextConfig, tokens: int) -> TextConfig:
    """Return the text settings of prompts that hold a whole history.

    Args:
        text: Settings of the plug's prompts.
        tokens: Length limit of a prompt with all rated jokes, which share what the question leaves.
    """
    return TextConfig(answers=text.answers, prompt_tokens=tokens, template=text.template)


def questions_with_ratings(
    histories: Histories, model: LanguageModel, text: TextConfig
) -> list[str]:
    """Return each question with all items of the history in front of it, each with its rating."""
    return build_questions(histories, [one.profile for one in histories.samples], text, model)


def write_pairs(path: Path, histories: Histories, model: LanguageModel, text: TextConfig) -> None:
    """Write prompts and right labels as JSON lines for `jaxalign sft`."""
    questions = questions_with_ratings(histories, model, text)
    rows = [
        json.dumps({"prompt": f"{question}\n", "completion": output})
        for question, output in zip(questions, histories.outputs, strict=True)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "\n".join(rows) + "\n")


def lora_scores(adapter: str, samples: Histories, text: TextConfig) -> np.ndarray:
    """Return the log-probability [N, K] of each label by a model with an adapter.

    Args:
        adapter: Folder of the adapter that `jaxalign sft` saved.
        samples: N samples.
        text: As from `prompt_text`.
    """
    model = load_language_model(adapter)
    return label_scores(
        ScoredSamples(model, text, samples, questions_with_ratings(samples, model, text))
    )
