"""A file of prompts in, a file of completions out, which an interrupted run goes on with."""

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypedDict

import jax

from jaxalign.data.lines import read_lines
from jaxalign.errors import InputError
from jaxalign.files import write_aside
from jaxalign.models.chat import Chat, Completion, generate_texts
from jaxalign.models.generate import GenerationArguments
from jaxalign.models.language import LanguageModel
from jaxalign.models.sampling import Sampling

_SPAN = 8  # batches between two writes of the output file


class PromptRow(TypedDict, total=False):
    """One row of a prompt file: `prompt` or `messages`, and what else is said about it.

    Attributes:
        prompt: a text.
        messages: a chat of {"role", "content"}.
        adapter: name of the adapter that answers.
        preference: of the user who asks, as text or as an object of shares.
        user: who asks, as `jaxalign answer` takes it.
    """

    prompt: str
    messages: Chat
    adapter: str
    preference: object
    user: str


def read_prompts(path: Path) -> list[PromptRow]:
    """Read a prompt file: one JSON object per line (.jsonl), or one prompt per line.

    Args:
        path: of the file. An object has `prompt` or `messages`, and perhaps more.

    Raises:
        InputError: there is no such file, it has no rows, or a row is something else; the message
            names the line.

    Example:
        >>> from pathlib import Path
        >>> from jaxalign.models.prompt_file import read_prompts
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "prompts.jsonl"
        >>> _ = path.write_text('{"prompt": "Hello."}')
        >>> read_prompts(path)
        [{'prompt': 'Hello.'}]
    """
    if path.suffix != ".jsonl":
        return [{"prompt": line} for line in read_lines(path)]
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    try:
        lines = path.read_text("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error}); convert it") from None
    rows: list[PromptRow] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}, line {number}: not JSON ({error.msg}); correct it") from None
        if not isinstance(row, dict) or ("prompt" in row) == ("messages" in row):
            raise InputError(
                f"{path}, line {number}: found {line[:60]!r}, expected an object with either "
                "prompt or messages"
            )
        if not (_is_chat(row["messages"]) if "messages" in row else isinstance(row["prompt"], str)):
            raise InputError(
                f"{path}, line {number}: found {line[:60]!r}, expected a text as prompt, or as "
                "messages a list of objects with the texts role and content; correct it"
            )
        rows.append(row)  # type: ignore[arg-type]
    if not rows:
        raise InputError(f"{path} is empty: expected JSON lines with prompt or messages")
    return rows


def _is_chat(messages: object) -> bool:
    """Whether it is a list of messages, each with a role and a text."""
    return (
        isinstance(messages, list)
        and len(messages) > 0
        and all(
            isinstance(turn, dict)
            and isinstance(turn.get("role"), str)
            and isinstance(turn.get("content"), str)
            for turn in messages
        )
    )


def prompt_of(row: PromptRow, chat: bool = False, system: str | None = None) -> str | Chat:
    """Return the prompt of a row as `generate_texts` takes it.

    Args:
        row: of `read_prompts`; its `messages` are used as they are.
        chat: make a chat of a plain prompt, for the model's chat template.
        system: system message before a plain prompt; implies `chat`.

    Example:
        >>> from jaxalign.models.prompt_file import prompt_of
        >>> prompt_of({"prompt": "Hello."}, system="Be brief.")
        [{'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': 'Hello.'}]
    """
    if "messages" in row:
        return row["messages"]
    if not chat and system is None:
        return row["prompt"]
    first = [{"role": "system", "content": system}] if system else []
    return [*first, {"role": "user", "content": row["prompt"]}]


def complete_prompts(
    model: LanguageModel,
    prompts: Sequence[str | Chat],
    settings: Sampling,
    seed: int,
    arguments_of: Callable[[Sequence[int]], GenerationArguments],
    *,
    batch_size: int = 16,
    out: Path | None = None,
    resume: bool = False,
) -> None:
    """Write one completion per prompt as JSON lines, a few batches at a time.

    A file grows under a name of its own and gets its name once it is whole.

    Args:
        model: from `load_language_model`.
        prompts: X texts or chats.
        settings: how tokens are sampled.
        seed: of the sampling; a resumed file has the bytes of one written without interruption.
        arguments_of: from row numbers to the arguments of `generate_texts` for these rows.
        batch_size: most prompts at once.
        out: file to write; None for standard output.
        resume: keep the rows that an interrupted run has written.
    """
    part, done, span = None, 0, _SPAN * batch_size
    if out is not None:
        part = out.with_name(f".{out.name}.part")
        done = _keep_whole_spans(part, span) if resume else 0
        part.parent.mkdir(parents=True, exist_ok=True)
        if not done:
            part.write_text("")
    for first in range(done, len(prompts), span):
        rows = range(first, min(first + span, len(prompts)))
        completions = generate_texts(
            model,
            [prompts[row] for row in rows],
            settings,
            jax.random.fold_in(jax.random.key(seed), first),
            batch_size=batch_size,
            **arguments_of(rows),
        )
        lines = "".join(map(_json_line, rows, completions))
        if part is None:
            sys.stdout.write(lines)
            sys.stdout.flush()
        else:
            with part.open("a", encoding="utf-8") as file:
                file.write(lines)
    if out is not None and part is not None:
        with write_aside(out) as aside:
            shutil.copyfile(part, aside)
        part.unlink()


def _keep_whole_spans(part: Path, span: int) -> int:
    """Cut what follows the whole spans off an unfinished file; return the rows that are left."""
    if not part.is_file():
        return 0
    lines = part.read_text("utf-8").splitlines(keepends=True)
    whole = len(lines) // span * span
    part.write_text("".join(lines[:whole]), encoding="utf-8")
    return whole


def _json_line(row: int, completion: Completion) -> str:
    found = {
        "row": row,
        "text": completion.text,
        "tokens": len(completion.tokens),
        "prompt_tokens": completion.prompt_tokens,
        "logprob": round(float(completion.logprobs.sum()), 6),
        "stopped": completion.stopped,
    }
    return json.dumps(found, ensure_ascii=False) + "\n"
