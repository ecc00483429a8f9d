"""Prepares docstrings, which are plain text with a few marks, for reStructuredText."""

import re

_CODE = re.compile(r"(`+[^`]*`+)")
_MARK = re.compile(r"(?<!\\)(\||\*(?!\*)|_(?=[\s,.;:)\]]|$))")


def escape(lines: list[str]) -> list[str]:
    """Escape what a docstring means literally: |x|, a * b, and a name that ends in an underscore.

    What stands between backticks, in examples and in literal blocks is left as it is.
    """
    escaped, example, literal, indent = [], False, False, 0
    for line in lines:
        depth = len(line) - len(line.lstrip())
        if line.strip():
            literal = literal and depth > indent
            example = example or line.lstrip().startswith(">>>")
        else:
            example = False
        if example or literal or line.lstrip().startswith(("* ", "..")):
            escaped.append(line)
        else:
            parts = _CODE.split(line)
            parts[::2] = [_MARK.sub(r"\\\1", part) for part in parts[::2]]
            escaped.append("".join(parts))
        if not literal and line.rstrip().endswith("::"):
            literal, indent = True, depth
    return escaped
