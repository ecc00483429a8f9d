"""Training samples as tokens, refused where they do not fit into the model."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxalign.data.histories import Histories
from jaxalign.data.sequences import Sequences
from jaxalign.errors import InputError
from jaxalign.models.language import LanguageModel
from jaxalign.pplug.answers import AnswerRows, answer_rows
from jaxalign.pplug.config import PersonaConfig, TextConfig
from jaxalign.pplug.rows import tokenize_samples


@dataclass(frozen=True)
class TokenizedSamples:
    """Samples as tokens.

    Attributes:
        histories: N samples.
        prompts: Tokens of their prompts.
        answers: Their answers.
        numbers: [N] int32 cached prompt of each; None where prompts are not cached.
    """

    histories: Histories
    prompts: Sequences
    answers: AnswerRows
    numbers: np.ndarray | None = None

    @classmethod
    def of(
        cls,
        model: LanguageModel,
        persona: PersonaConfig,
        text: TextConfig,
        histories: Histories,
        prompts: Sequence[str] | None,
    ) -> "TokenizedSamples":
        """Tokenize samples.

        Args:
            model: The language model.
            persona: Settings of the soft tokens, which take room beside a prompt.
            text: Template and length limits.
            histories: N samples with outputs.
            prompts: N questions in place of the samples' own, or None.

        Raises:
            InputError: As `tokenize_samples` and `answer_rows`, or a prompt is too long.
        """
        if not len(histories):
            raise InputError(
                f"{histories.source} holds no sample, expected one or more; give some."
            )
        questions = [one.input for one in histories.samples] if prompts is None else prompts
        prompt_tokens, answer_tokens = tokenize_samples(model, text, histories, questions)
        answers = answer_rows(model, text, histories, answer_tokens)
        check_room(model, histories, prompt_tokens, persona.prefix_length, answers.slots)
        return cls(histories, prompt_tokens, answers)


def check_room(
    model: LanguageModel,
    histories: Histories,
    prompts: Sequences,
    prefix_length: int,
    answer_slots: int,
) -> None:
    """Refuse prompts that have no room beside soft tokens and answers.

    Args:
        model: The language model.
        histories: N samples, for messages.
        prompts: Tokens of their N prompts.
        prefix_length: Number of soft tokens beside a prompt.
        answer_slots: Most tokens of an answer.

    Raises:
        InputError: A prompt is too long.
    """
    room = model.config.positions - prefix_length - answer_slots
    row = int(np.argmax(prompts.lengths))
    longest = int(prompts.lengths[row])
    if longest > room:
        raise InputError(
            f"{histories.source}: question {histories.samples[row].id!r} has {longest} "
            f"tokens as a prompt; beside {answer_slots} of answers {model.name} has room for "
            f"{room}: lower text.prompt_tokens or text.answer_tokens."
        )
