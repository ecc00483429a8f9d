"""Answers for users: each with the persona of its user, several users in one batch."""

from collections.abc import Sequence

import jax

from jaxalign.data.histories import Histories
from jaxalign.models.chat import Completion, generate_texts
from jaxalign.models.sampling import Sampling
from jaxalign.pplug.model import PPlug, prefixes
from jaxalign.pplug.rows import prompts
from jaxalign.pplug.store import HistoryStore


def answer(
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
    """An answer to each question, for the user who asks.

    Args:
        plug: a trained one.
        histories: N samples; outputs are not looked at.
        settings: how tokens are drawn; the model's own stop ids are added.
        key: random key; an answer depends on its sample and place, not on the batch.
        store: of the encoder's vectors; new items are added.
        questions: N texts in place of the samples' own inputs, such as with items in them.
        batch_size: most samples at once, of whichever users.
        progress: show bars on stderr when it takes more than a few seconds.

    Returns:
        N answers, in order.

    Raises:
        InputError: an item or question that cannot be read, a prompt longer than the context has
            room for, or no store where the persona needs one.
    """
    soft = prefixes(plug, histories, store, progress)
    if questions is None:
        questions = [sample.input for sample in histories.samples]
    asked = prompts(plug.model, plug.text, questions)
    return generate_texts(
        plug.model, asked, settings, key, prefix=soft, batch_size=batch_size, progress=progress
    )
