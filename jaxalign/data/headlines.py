"""HuffPost headlines by author in time order: the shape of LaMP_4, and not LaMP itself."""

import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

from jaxalign.data.dates import date_key
from jaxalign.data.histories import Histories, Item, Sample
from jaxalign.data.lamp import HEADLINE_PROMPT
from jaxalign.data.tables import read_rows
from jaxalign.errors import InputError
from jaxalign.files import expand_user

_FILE = "articles.jsonl.gz"
_FIELDS = ("user", "date", "category", "title", "text")
_SERIES_WORDS, _SERIES_TITLES = 5, 3
_MONTH = re.compile(
    r"\b(jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|january|february|march|april|may|june|july|"
    r"august|september|october|november|december)\b\.?"
)


@dataclass(frozen=True)
class TimeSplit:
    """Three parts of one set of articles, by time within each author; they share their items.

    Attributes:
        train: the earliest articles of every author that have a history.
        validation: those that follow.
        test: the last ones.
    """

    train: Histories
    validation: Histories
    test: Histories


def huffpost(
    source: str | Path,
    test_share: float = 0.2,
    validation_share: float = 0.1,
    most: int | None = 20,
    least_history: int = 3,
    series: bool = False,
) -> TimeSplit:
    """Read articles and ask for the headline of each, given what its author wrote before that day.

    As in the time split of LaMP_4 an author's last articles are for testing and those before them
    for validation; LaMP has one of each, here it is a share, for 124 authors with one article each
    would show no difference. The history is every article of the author of an earlier day, so that
    articles of an earlier part, and earlier ones of the same part, count as known.

    Args:
        source: the folder with articles.jsonl.gz, or a file like it: JSON lines with `user`,
            `date`, `category`, `title` and `text`.
        test_share: of each author's articles, rounded, at least one.
        validation_share: likewise, of those before them.
        most: articles of one author in the test part and in the validation part, the latest, so
            that a few authors do not decide everything; None for no limit.
        least_history: articles without that many before them are history only.
        series: keep recurring titles. Otherwise articles are dropped whose titles, apart from
            numbers, months and punctuation, are alike, or whose author begins or ends three
            titles with the same five words: what copies a series scores on these alone.

    Returns:
        The parts; sample and item ids are the author and the place of the article in the source,
        categories the newspaper's sections.

    Raises:
        InputError: the source cannot be read, a line lacks a field, a date cannot be read, the
            shares leave nothing to train on, or a part is empty.

    Source: News Category Dataset, Misra, arXiv 2209.11429; LaMP's time split, arXiv 2304.11406.
    """
    shares = (test_share, validation_share)
    counts = (least_history, 1 if most is None else most)
    if not (all(share > 0 for share in shares) and sum(shares) < 1 and min(counts) >= 1):
        raise InputError(
            f"huffpost got test_share {test_share}, validation_share {validation_share}, most "
            f"{most} and least_history {least_history}; expected shares above 0 and below 1 in "
            "sum, and at least 1 of the others."
        )
    path = expand_user(source)
    path = path / _FILE if path.is_dir() else path
    articles = _articles(path)
    kept = articles if series else _without_series(articles)
    items = tuple(article.item for article in kept)
    parts: dict[str, list[Sample]] = {"train": [], "validation": [], "test": []}
    for places in _by_author(kept).values():
        samples = [_sample(kept, places, rank) for rank in range(len(places))]
        end = len(samples)
        last_but = max(end - max(1, round(test_share * end)), 0)
        cuts = (0, max(last_but - max(1, round(validation_share * end)), 0), last_but, end)
        for part, first, last in zip(parts, cuts[:-1], cuts[1:], strict=True):
            chosen = [one for one in samples[first:last] if len(one.profile) >= least_history]
            parts[part] += chosen if part == "train" or most is None else chosen[-most:]
    notes = (
        ()
        if series
        else (f"articles of series, which were dropped: {len(articles) - len(kept):,}",)
    )
    if empty := [part for part, samples in parts.items() if not samples]:
        raise InputError(
            f"{path} leaves no article for {empty[0]} ({len(kept)} articles with titles that do "
            "not recur); lower least_history or change the shares."
        )
    return TimeSplit(
        **{
            part: Histories(tuple(samples), items, "huffpost", f"{path} ({part})", notes)
            for part, samples in parts.items()
        }
    )


@dataclass(frozen=True)
class _Article:
    user: str
    item: Item
    key: tuple[int, ...]


def _articles(path: Path) -> list[_Article]:
    articles = []
    for row in read_rows(path):
        texts = {name: row.text(name) for name in _FIELDS}
        fields = {name: texts[name] for name in ("text", "title", "category")}
        item = Item(f"{texts['user']}-{row.place}", fields, texts["date"])
        articles.append(_Article(texts["user"], item, date_key(texts["date"], row.where)))
    return articles


def _by_author(articles: list[_Article]) -> dict[str, list[int]]:
    """Places of each author's articles, oldest first."""
    places: dict[str, list[int]] = defaultdict(list)
    for place, article in enumerate(articles):
        places[article.user].append(place)
    return {
        user: sorted(own, key=lambda place: articles[place].key) for user, own in places.items()
    }


def _sample(articles: list[_Article], places: list[int], rank: int) -> Sample:
    """The question for an article, with its author's articles of earlier days."""
    article = articles[places[rank]]
    fields = article.item.fields
    before = tuple(place for place in places[:rank] if articles[place].key < article.key)
    return Sample(
        article.item.id, article.user, HEADLINE_PROMPT.format(fields["text"]), fields["title"],
        before, fields["category"], article.item.date,
    )  # fmt: skip


def _without_series(articles: list[_Article]) -> list[_Article]:
    words = [_words(article.item.fields["title"]) for article in articles]
    same = Counter(words)
    ends = [
        ((one.user, "first", title[:_SERIES_WORDS]), (one.user, "last", title[-_SERIES_WORDS:]))
        for one, title in zip(articles, words, strict=True)
    ]
    alike = Counter(end for pair in ends for end in pair if len(end[2]) == _SERIES_WORDS)
    return [
        one
        for one, title, pair in zip(articles, words, ends, strict=True)
        if same[title] == 1 and max(alike[end] for end in pair) < _SERIES_TITLES
    ]


def _words(title: str) -> tuple[str, ...]:
    """A title without what numbers and dates a series."""
    return tuple(re.sub(r"[\d\W_]+", " ", _MONTH.sub(" ", title.casefold())).split())
