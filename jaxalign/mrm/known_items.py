"""The items that a saved model knows, by digests of their texts and ids, and their effects."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from jaxalign.data.messages import Conversation

_BYTES = 16


@dataclass(frozen=True, eq=False)
class KnownEffects:
    """Effects of M texts or ids.

    Attributes:
        keys: [M, 16] uint8, the first bytes of the SHA-256 of each text or id.
        values: [M] float32, in logits.
    """

    keys: np.ndarray
    values: np.ndarray

    @cached_property
    def by_key(self) -> dict[bytes, float]:
        """The effects by their keys, made once for all look-ups."""
        keys = np.ascontiguousarray(self.keys, np.uint8)
        return dict(zip(map(bytes, keys), self.values.astype(np.float64).tolist(), strict=True))


def _key(text: str) -> bytes:
    return hashlib.sha256(str(text).encode("utf-8", "surrogatepass")).digest()[:_BYTES]


def known_effects(
    items: Sequence[str], texts: Sequence[str], effects: np.ndarray | None
) -> KnownEffects | None:
    """Return the effects of items as a saved model keeps them; None where all are zero.

    The id of an answer to a prompt is the bare answer in files without ids. It is no name of the
    item: the same words are another item under another prompt.

    Args:
        items: ids.
        texts: of the same items, with their prompts.
        effects: [I] in logits, or None.
    """
    if effects is None or not np.any(effects):
        return None
    ids = [None if _is_answer(*both) else both[0] for both in zip(items, texts, strict=True)]
    found: dict[bytes, float] = {}
    for names in (ids, texts):  # an id that is the text of another item yields to that one
        found |= {
            _key(name): effects[place]
            for place, name in enumerate(names)
            if effects[place] and name is not None
        }
    keys = np.frombuffer(b"".join(found), np.uint8).reshape(-1, _BYTES)
    return KnownEffects(keys, np.array([*found.values()], np.float32))


def _is_answer(item: str, text: str) -> bool:
    return isinstance(text, Conversation) and text.turns[-1] == item


def effects_of(
    known: KnownEffects | None, texts: Sequence[str], items: Sequence[str] | None = None
) -> np.ndarray:
    """Return the effects [N] of items; 0 for those that training has not seen.

    Args:
        known: of a saved model; None where all effects are 0.
        texts: of the items, with their prompts, which are looked up before the ids.
        items: their ids, where they have any.

    Example:
        >>> import numpy as np
        >>> from jaxalign.mrm.known_items import effects_of, known_effects
        >>> known = known_effects(["1", "2"], ["a joke", "another"], np.array([0.5, -1.0]))
        >>> effects_of(known, ["another", "a new one", "1"]).tolist()
        [-1.0, 0.0, 0.5]
    """
    if known is None:
        return np.zeros(len(texts))
    ids, value_of = texts if items is None else items, known.by_key
    return np.array(
        [
            value_of.get(_key(text), value_of.get(_key(name), 0.0))
            for text, name in zip(texts, ids, strict=True)
        ],
        np.float64,
    )
