"""How varied texts are: a reward can be met by one phrase that stands in every answer."""

from collections.abc import Sequence

from jaxalign.errors import InputError


def distinct_n(texts: Sequence[str], n: int = 2) -> float | None:
    """Return distinct-n: of all runs of n words in some texts, the share that are different ones.

    Words are split at white space and compared in lower case; no run crosses from one text into
    the next. The share falls as texts are added, so compare equally many of them.

    Args:
      texts: any number of them.
      n: words of a run, 1 or more.

    Returns:
      Between 0 and 1, 1 where no run occurs twice; None where no text has n words.

    Raises:
      InputError: n is below 1.

    Source: Li et al. 2016, https://arxiv.org/abs/1510.03055.

    Example:
        >>> from jaxalign.metrics.diversity import distinct_n
        >>> distinct_n(["I love this", "I love that"])
        0.75
    """
    if n < 1:
        raise InputError(f"n: found {n}, expected at least 1 word.")
    runs = [
        tuple(words[start : start + n])
        for words in (text.lower().split() for text in texts)
        for start in range(len(words) - n + 1)
    ]
    return len(set(runs)) / len(runs) if runs else None
