"""Five traits of a text, measured by rule: cheap, named base rewards that need no model.

A trait is a pure function of the text alone and finite for every text, the empty one included. The
traits live on different scales; `jaxalign.rewards.RewardScale` puts them on one.
"""

import functools
import math
import re
import unicodedata
from collections.abc import Callable, Sequence

import numpy as np

from jaxalign.rewards.registry import register_reward

# Letters of any script; an apostrophe inside a word (don't, l'eau) does not split it.
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
# Joiners and the soft hyphen stand inside words.
_INSIDE = "\u200c\u200d\u00ad"
_SENTENCE_END = re.compile(r"[.!?…]+(?=\s|$)|\n+")
_VOWELS = re.compile(r"[aeiouy]+")
_LIST_ITEM = re.compile(r"\s*(?:[-*•–]|\d{1,3}[.)])(?=\s|$)")
_HEADING = re.compile(r"\s*#{1,6}\s*\S|\s*\*\*[^*]+\*\*:?\s*$")

FLESCH_RANGE = (-50.0, 121.0)

_WARM = {
    "addressing the reader": "you your yours yourself yourselves",
    "thanks and courtesy": "thank thanks thankful grateful please welcome appreciate appreciated "
    "sorry apologies",
    "care and comfort": "care cares caring kind kindly kindness gentle gently comfort comforting "
    "support supportive help helping safe hug hugs cherish cherished heart warm warmly warmth "
    "encourage proud",
    "closeness": "dear friend friends together love loving loved lovely beloved darling sweet",
    "empathy": "understand feel feeling feelings listen listening sympathy empathy compassion hope",
}
WARM_WORDS = frozenset(word for words in _WARM.values() for word in words.split())
"""The lexicon of `warmth`: lower case, whole words."""


def brevity(text: str) -> float:
    """Score a text higher the fewer words it has.

    Args:
      text: any text.

    Returns:
      -log(1 + number of words): 0 for a text without words, and as much lost for each doubling.

    Example:
        >>> from jaxalign.rewards.rules import brevity
        >>> round(brevity("Three short words."), 3)
        -1.386
    """
    return -math.log1p(len(_words(text)))


def _words(text: str) -> list[str]:
    """The words of a text, without marks on letters: vowels in many scripts, accents if apart."""
    if not text.isascii():
        composed = unicodedata.normalize("NFC", text)
        text = "".join(
            letter
            for letter in composed
            if unicodedata.category(letter)[0] != "M" and letter not in _INSIDE
        )
    return _WORD.findall(text)


def positivity(text: str) -> float:
    """Score the sentiment of an English text by VADER's compound score.

    Args:
      text: any text.

    Returns:
      From -1 (most negative) to 1 (most positive); 0 for a text without sentiment.

    Reference: Hutto & Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of
    Social Media Text", ICWSM 2014.
    """
    return float(_vader().polarity_scores(text)["compound"])


def simplicity(text: str) -> float:
    """Score an English text by its reading ease.

    Args:
      text: any text.

    Returns:
      206.835 - 1.015 words per sentence - 84.6 syllables per word, clipped to `FLESCH_RANGE`; the
      range's middle for a text without words, of which nothing can be said. A line break ends a
      sentence, or a list without full stops would read as one long sentence.

    Reference: Flesch, "A new readability yardstick", Journal of Applied Psychology 32 (1948).
    """
    words = _words(text)
    if not words:
        return sum(FLESCH_RANGE) / 2
    sentences = sum(1 for part in _SENTENCE_END.split(text) if _words(part))
    per_word = sum(map(count_syllables, words)) / len(words)
    ease = 206.835 - 1.015 * len(words) / sentences - 84.6 * per_word
    low, high = FLESCH_RANGE
    return min(max(ease, low), high)


def warmth(text: str) -> float:
    """Score how much a text turns to its reader with care.

    Args:
      text: any text.

    Returns:
      Words of `WARM_WORDS`, plus half of the exclamations (a run of marks is one: shouting is
      not warmth), per word of the text; 0 for a text without words. It is divided by ten words at
      least: one warm word alone is no very warm text.

    Example:
        >>> from jaxalign.rewards.rules import warmth
        >>> round(warmth("Thank you!"), 2)
        0.25
    """
    words = _words(text.lower())
    if not words:
        return 0.0
    # Contractions count by their stem: you're, friend's.
    warm = sum(1 for word in words if re.split("['’]", word, maxsplit=1)[0] in WARM_WORDS)
    exclaimed = len(re.findall(r"!+", text))
    return (warm + 0.5 * exclaimed) / max(len(words), 10)


def structure(text: str) -> float:
    """Score how much of a text is laid out as lists, headings and lines.

    Args:
      text: any text.

    Returns:
      From 0 (one running paragraph) to 1: the mean of two shares of the non-empty lines, those
      that are list items or headings, and those that a line break set apart (all but the first).

    Example:
        >>> from jaxalign.rewards.rules import structure
        >>> structure("- one\\n- two")
        0.75
    """
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return 0.0
    marked = sum(1 for line in lines if _LIST_ITEM.match(line) or _HEADING.match(line))
    return (marked + len(lines) - 1) / (2 * len(lines))


TRAITS: dict[str, Callable[[str], float]] = {
    "brevity": brevity,
    "positivity": positivity,
    "simplicity": simplicity,
    "warmth": warmth,
    "structure": structure,
}
"""The traits by name, in the order of the columns of `measure_traits`."""


def measure_traits(texts: Sequence[str]) -> np.ndarray:
    """Measure every trait of every text.

    Args:
      texts: N texts.

    Returns:
      [N, 5] float32, raw values, columns in the order of `TRAITS`.

    Example:
      >>> from jaxalign.rewards.rules import measure_traits
      >>> measure_traits(["Thank you!", "- one\\n- two"]).shape
      (2, 5)
    """
    rows = [[trait(text) for trait in TRAITS.values()] for text in texts]
    return np.asarray(rows, np.float32).reshape(len(texts), len(TRAITS))


def _register(name: str, trait: Callable[[str], float]) -> None:
    @register_reward(name)
    def measure(_: list[str], answers: list[str]) -> np.ndarray:
        return np.array([trait(answer) for answer in answers], np.float32)


for _name, _trait in TRAITS.items():
    _register(_name, _trait)


def count_syllables(word: str) -> int:
    """Count the syllables of an English word by its groups of vowels.

    Args:
      word: one word, any case.

    Returns:
      At least 1. A silent final e or ed is not counted; a final consonant with -le is.

    Example:
        >>> from jaxalign.rewards.rules import count_syllables
        >>> count_syllables("table"), count_syllables("made")
        (2, 1)
    """
    word = word.lower()
    count = len(_VOWELS.findall(word))
    silent = re.search(r"[^aeiouy]e$|[^aeiouytd]ed$", word)
    if silent and not re.search(r"[^aeiouy]le$", word):
        count -= 1
    return max(count, 1)


@functools.cache
def _vader():
    # Loading its lexicon takes longer than a thousand texts, and `import jaxalign` stays light.
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()
