"""Answers to users' questions, each with the persona of its user, several users per batch."""

from collections.abc import Sequence

import jax

from jaxalign.data.histories import Histories
from jaxalign.models.chat import Completion, generate_texts
from jaxalign.models.sampling import Sampling
from jaxalign.pplug.model import PPlug, prefixes
from jaxalign.pplug.rows import format_prompts, soft_starts
from jaxalign.pplug.store import HistoryStore


def generate_answers(
    plug: PPlug,
    histories: Histories,
    settings: Sampling,
    key: jax.Array,
    *,
    store: HistoryStore | None = None,
    questions: Sequence[str] | None = None,
    batch_size: int = 16,
    progress: bool = True,
) -> list[Completion]:
    """Return an answer to each question, conditioned on its user.

    Args:
        plug: A trained plug.
        histories: N samples; their outputs are ignored.
        settings: Sampling settings; the model's own stop ids are added.
        key: Random key. An answer depends on its sample and place, not on the batch.
        store: Store of the encoder's vectors; vectors of new items are added.
        questions: N texts to ask instead of the samples' own inputs, such as with retrieved items.
        batch_size: Largest number of samples per batch, of any users.
        progress: Show bars on standard error if it takes more than a few seconds.

    Returns:
        N answers, in order.

    Raises:
        InputError: An item or question cannot be read, a prompt is longer than the context has
            room for, or a store is needed and missing.
    """
    soft = prefixes(plug, histories, store, progress)
    if questions is None:
        questions = [sample.input for sample in histories.samples]
    prompts = format_prompts(plug.model, plug.text, questions)
    return generate_texts(
        plug.model,
        prompts,
        settings,
        key,
        prefix=soft,
        prefix_starts=soft_starts(plug.model, plug.text, prompts, plug.persona.place),
        batch_size=batch_size,
        progress=progress,
    )
