"""Texts from a file, one per line."""

import json
from pathlib import Path

from jaxalign.errors import InputError


def read_lines(path: Path) -> list[str]:
    """Return the texts of a file: one per line, or the `text` of each row of a .jsonl file.

    Args:
        path: of the file; empty lines are left out.

    Raises:
        InputError: there is no such file, it is empty, or a row has no `text`.

    Example:
        >>> from pathlib import Path
        >>> from jaxalign.data.lines import read_lines
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "texts.jsonl"
        >>> _ = path.write_text('{"text": "one"}\\n{"text": "two"}\\n')
        >>> read_lines(path)
        ['one', 'two']
    """
    if not path.exists():
        raise InputError(f"{path} does not exist")
    try:
        lines = [line for line in path.read_text("utf-8").split("\n") if line.strip()]
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error})") from None
    if not lines:
        raise InputError(f"{path} is empty: expected one text a line")
    if path.suffix != ".jsonl":
        return lines
    texts = []
    for number, line in enumerate(lines, 1):
        try:
            texts.append(str(json.loads(line)["text"]))
        except (json.JSONDecodeError, KeyError, TypeError):
            raise InputError(
                f'{path}, line {number}: expected a JSON object with "text", found {line[:60]!r}'
            ) from None
    return texts
