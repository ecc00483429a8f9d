"""A file of prompts in, a file of completions out, which an interrupted run goes on with."""

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypedDict

import jax

from jaxalign.data.messages import check_messages, is_messages
from jaxalign.data.tables import Row, read_rows
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
    """Read a prompt file.

    Args:
        path: of a file as `jaxalign.data.tables.read_rows` takes it. A row has `prompt`, a text or
            a conversation, or `messages`, and perhaps more; a .txt file has a prompt per line.

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
    return [_prompt_row(row) for row in read_rows(path, "prompt")]


def _prompt_row(row: Row) -> PromptRow:
    if row.has("prompt") == row.has("messages"):
        names = ", ".join(f"`{name}`" for name in row.values) or "nothing"
        raise InputError(
            f"{row.where}: found {names}, expected either prompt or messages; correct the row."
        )
    name = "messages" if row.has("messages") else "prompt"
    found = PromptRow()
    if name == "messages" or is_messages(row.values[name]):
        found["messages"] = check_messages(row.values[name], name, row.where)
    else:
        found["prompt"] = row.text("prompt", blank=True)
    if row.has("adapter"):
        found["adapter"] = row.text("adapter")
    if row.has("user"):
        found["user"] = row.identifier("user")
    if row.has("preference"):
        found["preference"] = row.values["preference"]
    return found


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
