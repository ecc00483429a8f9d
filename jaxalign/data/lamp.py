"""Tasks: what an item and a question say, what an answer may be, and LaMP's files of answers."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from string import Formatter
from typing import Literal

from jaxalign.config_fields import checks_fields
from jaxalign.data.values import field_identifier, field_text, short
from jaxalign.errors import InputError
from jaxalign.files import read_json, write_json

QUERY_PREFIX = "Represent this sentence for searching relevant passages:"


@dataclass(frozen=True)
@checks_fields
class Task:
    """One task.

    Attributes:
        name: as files of answers have it, `LaMP_4`.
        fields: of an item, in the order in which they make its text.
        label: the field that says what the user made of the item, or None.
        kind: whether an answer is one of `labels`, a number that they span, or a text. It chooses
            the metrics: accuracy and macro-F1, MAE and RMSE, or ROUGE.
        labels: the answers there are; empty for texts. Those of a rating are numbers, ascending.
        marks: what stands before and after the part of a question that differs between questions;
            without a second mark the part reaches to the end, with neither it is everything.
        item: how a prompt shows one item.
        cut: the field of an item that is shortened to fit a prompt.
        frame: how a prompt holds {items} and the question, {input}.
        answer_tokens: the most that an answer may have.
        question: template of a question, {} for the part that differs; None where the part is not
            one text.
        encode: what is encoded of an item with its label: fields in braces, and {verdict}, the
            label in words. Empty to append the label to the fields.
        verdicts: words for each of `labels`, in their order; empty for the labels themselves.
    """

    name: str
    fields: tuple[str, ...] = ("text",)
    label: str | None = None
    kind: Literal["choice", "rating", "text"] = "text"
    labels: tuple[str, ...] = ()
    marks: tuple[str, str] = ("", "")
    item: str = '"{text}" '
    cut: str = "text"
    frame: str = "{items}. {input}"
    answer_tokens: int = 128
    question: str | None = None
    encode: str = ""
    verdicts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        where = f"the task {self.name}"
        if not self.fields or self.cut not in self.fields:
            raise InputError(
                f"{where}: cut is {self.cut!r} and fields are {[*self.fields]}; expected one of "
                "the fields: correct one of the two."
            )
        if self.kind != "text" and len(self.labels) < 2:
            raise InputError(
                f"{where}: found {len(self.labels)} labels for answers of the kind {self.kind}; "
                "expected at least two: add them, or set kind to text."
            )
        if self.kind == "rating" and not _ascending(self.labels):
            raise InputError(
                f"{where}: labels are {[*self.labels]}; expected ascending numbers for a rating: "
                "correct them, or set kind to choice."
            )
        if self.verdicts and (self.label is None or len(self.verdicts) != len(self.labels)):
            raise InputError(
                f"{where}: found {len(self.verdicts)} verdicts for {len(self.labels)} labels of "
                f"the field {self.label}; expected one for each label of a field: correct them."
            )
        own = (*self.fields, *(() if self.label is None else (self.label,)))
        check_template(self.item, own, f"{where}, item")
        check_template(self.encode, (*own, "verdict"), f"{where}, encode")
        check_template(self.frame, ("items", "input"), f"{where}, frame")
        if self.question is not None:
            check_template(self.question, ("",), f"{where}, question")


def check_template(template: str, fields: Sequence[str], where: str) -> None:
    """Refuse a template that names anything but the fields.

    Args:
        template: text with fields in braces.
        fields: that may stand there.
        where: what to call the template in messages.

    Raises:
        InputError: the braces do not close, or hold another name.
    """
    try:
        found = [name for _, name, _, _ in Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise InputError(
            f"{where}: {short(template)} is no template ({error}); close each brace, or write it "
            "twice."
        ) from None
    if unknown := [name for name in found if name not in fields]:
        raise InputError(
            f"{where}: {short(template)} holds {{{unknown[0]}}}; expected some of "
            f"{', '.join(f'{{{name}}}' for name in fields)}: correct the name."
        )


def _ascending(labels: Sequence[str]) -> bool:
    try:
        values = [float(label) for label in labels]
    except ValueError:
        return False
    return all(one < other for one, other in pairwise(values))


HEADLINE_PROMPT = "Generate a headline for the following article: {}"
TAGS = (
    "sci-fi", "based on a book", "comedy", "action", "twist ending", "dystopia", "dark comedy",
    "classic", "psychology", "fantasy", "romance", "thought-provoking", "social commentary",
    "violence", "true story",
)  # fmt: skip

_HEADLINE = Task(
    "LaMP_4", ("text", "title"), "title", "text", (), ("article:", ""),
    '"{title}" is the title for "{text}" ', "text", question=HEADLINE_PROMPT,
)  # fmt: skip

# Field names, labels and prompts: LaMP-Benchmark/LaMP @ 38c9d4d. Order of an item's fields and
# marks of a question: rucliujn/PPlug @ 6f9f283. The last three are not of LaMP: `huffpost` has the
# prompts of LaMP_4, an answer of `jester` is a rating, and `text` takes any history.
TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        Task(
            "LaMP_1", ("title", "abstract"), None, "choice", ("[1]", "[2]"), ('title "', '",'),
            '"{title}"', "title", "",
        ),
        Task(
            "LaMP_2", ("description",), "tag", "choice", TAGS, ("description:", ""),
            'the tag for the movie: "{description}" is "{tag}" ', "description",
            question="Which tag does this movie relate to among the following tags? Just answer "
            f"with the tag name without further explanation. tags: [{', '.join(TAGS)}] "
            "description: {}",
        ),
        Task(
            "LaMP_3", ("text",), "score", "rating", ("1", "2", "3", "4", "5"), ("review:", ""),
            '{score} is the score for "{text}" ', "text", answer_tokens=10,
            question="What is the score of the following review on a scale of 1 to 5? just answer "
            "with 1, 2, 3, 4, or 5 without further explanation. review: {}",
        ),
        _HEADLINE,
        Task(
            "LaMP_5", ("title", "abstract"), "title", "text", (), ("paper:", ""),
            '"{title}" is a title for "{abstract}" ', "abstract",
            "{items}. Following the given patterns {input}",
            question="Generate a title for the following abstract of a paper: {}",
        ),
        Task(
            "LaMP_7", ("text",), None, "text", (), ("before or after it:", ""),
            '"{text}" ', "text",
            "{items} are written by a person. Following the given patterns {input}",
            question="Paraphrase the following tweet without any explanation before or after it: "
            "{}",
        ),
        replace(_HEADLINE, name="huffpost"),
        Task(
            "jester", ("text",), "rating", "rating", ("1", "2", "3", "4", "5"), ("Joke:", ""),
            '{rating} is the rating of "{text}" ', "text",
            question="How does this person rate the joke on a scale from 1 to 5? Answer with the "
            "number alone. Joke: {}",
            encode="I {verdict} this joke: {text}",
            verdicts=("hated", "disliked", "was indifferent to", "liked", "loved"),
        ),
        Task(
            "ukpconvarg1", ("text",), None, "choice", ("A", "B"), ("Topic:", ""),
            '"{text}" ', "text", "{items} are reasons that this person gave. {input}",
            question="Which of two arguments does this person find more convincing? Answer with A "
            "or B alone. Topic: {}",
        ),
        Task(
            "text", ("text",), None, "text", (), ("", ""), '"{text}" ', "text",
            "{items} are written by a person. {input}",
        ),
    )
}  # fmt: skip

_CANDIDATES = re.compile(r'\[1\]:\s*"(.*)"\s*\[2\]:\s*"(.*)"\s*$', re.DOTALL)


def task(name: str | Task) -> Task:
    """The task of that name; a task is returned as it is.

    Raises:
        InputError: there is none.
    """
    if isinstance(name, Task):
        return name
    if name not in TASKS:
        hint = " (LaMP_6 needs a licence for its mails)" if name == "LaMP_6" else ""
        raise InputError(f"task is {name!r}{hint}; expected one of {', '.join(TASKS)}.")
    return TASKS[name]


def item_text(
    name: str | Task, fields: Mapping[str, str], labels: bool = False, template: str = ""
) -> str:
    """What the history encoder reads of an item.

    Args:
        name: of the task, or the task.
        fields: of the item.
        labels: add the tag or score that the user gave, as the task's `encode` says. As published
            they are left out, although titles, which are the labels of LaMP_4 and LaMP_5, are part
            of the text.
        template: used instead of the task's `encode`, whatever `labels` says; empty for none.

    Returns:
        The text, without space around it.

    Source: rucliujn/PPlug @ 6f9f283.

    Example:
        >>> from jaxalign.data.lamp import item_text
        >>> item_text("jester", {"text": "Knock, knock.", "rating": "5"}, labels=True)
        'I loved this joke: Knock, knock.'
    """
    rules = task(name)
    if wording := template or (rules.encode if labels else ""):
        return wording.format(**{**fields, "verdict": _verdict(rules, fields)}).strip()
    words = [fields[field] for field in rules.fields]
    if labels and rules.label is not None and rules.label not in rules.fields:
        words.append(f"{rules.label}: {fields[rules.label]}")
    return " ".join(words).strip()


def _verdict(rules: Task, fields: Mapping[str, str]) -> str:
    """The label of an item in words; empty without one."""
    label = "" if rules.label is None else fields[rules.label]
    known = dict(zip(rules.labels, rules.verdicts, strict=False))
    return known.get(label, label)


def query_text(name: str | Task, question: str, prefix: str = QUERY_PREFIX) -> str:
    """What the input encoder reads of a question: the part that differs between questions.

    Args:
        name: of the task, or the task.
        question: the whole input.
        prefix: stands in front, as the encoder was trained.

    Returns:
        The prefix and the part.

    Raises:
        InputError: the question lacks the task's marks.

    Source: rucliujn/PPlug @ 6f9f283.

    Example:
        >>> from jaxalign.data.lamp import query_text
        >>> query_text("LaMP_4", "Generate a headline for the following article: Rain.", prefix="")
        'Rain.'
    """
    before, after = task(name).marks
    place = question.find(before)
    end = question.find(after, place + len(before)) if after else len(question)
    if min(place, end) < 0:
        mark = before if place < 0 else after
        raise InputError(
            f"the input {short(question)} has no `{mark}`, which every question of "
            f"{task(name).name} has; check the task, or use the task `text`."
        )
    return prefix + question[place + len(before) : end].strip()


def format_question(name: str | Task, words: str) -> str:
    """A question as the task puts it, made of the part that differs between questions.

    Args:
        name: of the task, or the task.
        words: that part, or a whole question, which stays as it is; the marks tell.

    Raises:
        InputError: the task's questions hold more than one part, and these words lack its marks.

    Example:
        >>> from jaxalign.data.lamp import format_question
        >>> format_question("LaMP_4", "Rain.")
        'Generate a headline for the following article: Rain.'
    """
    rules = task(name)
    if rules.question is not None and not all(mark in words for mark in rules.marks):
        words = rules.question.format(words)
    query_text(name, words)  # refuses a question without the marks
    return words


def retrieval_query(name: str | Task, question: str) -> str:
    """What items are searched for: `query_text` without prefix; LaMP_1's two candidate references.

    Args:
        name: of the task, or the task.
        question: the whole input.

    Returns:
        The words to search for.

    Raises:
        InputError: the question lacks the task's marks.

    Source: LaMP-Benchmark/LaMP @ 38c9d4d.
    """
    if task(name).name != "LaMP_1":
        return query_text(name, question, prefix="")
    found = _CANDIDATES.search(question)
    if found is None:
        raise InputError(
            f"the input {short(question)} does not end with two references, "
            '`[1]: "..." [2]: "..."`, as every question of LaMP_1 does; check the task.'
        )
    return f"{found[1]} {found[2]}"


def read_answers(path: str | Path, own: Task | None = None) -> tuple[str, dict[str, str]]:
    """Read answers or predictions, {"task": "LaMP_4", "golds": [{"id", "output"}]}.

    Args:
        path: of the JSON file.
        own: a task that is none of `TASKS`; None for any of these.

    Returns:
        The name of the task, and id -> answer in the order of the file.

    Raises:
        InputError: the file cannot be read, is not of that form, or has an id twice.
    """
    remedy = "give the file of outputs"
    value = read_json(path, "LaMP's answers", remedy)
    rows, found = value.get("golds"), value.get("task")
    if not isinstance(rows, list) or not isinstance(found, str):
        raise InputError(
            f'{path} does not hold answers, expected {{"task": "LaMP_4", "golds": [{{"id", '
            f'"output"}}]}}; {remedy}.'
        )
    answers: dict[str, str] = {}
    for place, row in enumerate(rows):
        where = f"{path}, golds[{place}]"
        name = field_identifier(row, "id", where)
        if name in answers:
            raise InputError(f"{where}: id {name!r} comes twice, expected unique ids; remove one.")
        answers[name] = field_text(row, "output", where, numbers=True)
    return task(own if own is not None and own.name == found else found).name, answers


def write_answers(path: str | Path, name: str | Task, answers: Mapping[str, str]) -> None:
    """Write answers or predictions as LaMP's evaluator reads them, whole or not at all.

    Args:
        path: of the JSON file.
        name: of the task, or the task.
        answers: id -> answer.

    Raises:
        InputError: the task is unknown.
    """
    golds = [{"id": key, "output": answer} for key, answer in answers.items()]
    write_json(path, {"task": task(name).name, "golds": golds})
