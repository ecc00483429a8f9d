"""Data sets of the Hugging Face Hub, by name."""

import re

import pyarrow as pa

from jaxalign.data.values import first_line
from jaxalign.errors import InputError

_DATASET = re.compile(r"(?P<name>[\w.-]+(/[\w.-]+){0,2})(:(?P<split>[\w.\-+\[\]%:]+))?")


def is_dataset_name(source: str) -> bool:
    """Return whether a text has the form of a data set's name."""
    return _DATASET.fullmatch(source) is not None


def read_dataset(source: str) -> dict[str, pa.ChunkedArray]:
    """Return the columns of a data set.

    Args:
        source: `name`, `owner/name` or `owner/name/config`, perhaps with `:split`.

    Raises:
        InputError: it is no such name, or cannot be loaded.
    """
    import datasets  # slow to import, and only this source needs it

    match = _DATASET.fullmatch(source)
    if match is None:
        raise InputError(f"{source} is no name of a data set, expected owner/name; check it.")
    split = match["split"] or "train"
    last: Exception | None = None
    for name, config in _readings(match["name"]):
        try:
            table = datasets.load_dataset(name, config, split=split).with_format("arrow")[:]
            return {name: table[name] for name in table.column_names}
        except datasets.exceptions.DatasetNotFoundError as error:
            last = error
        except Exception as error:
            # Loaders raise what they like; whatever it was, the user named the data set.
            last = error
            break
    raise InputError(
        f"{source} is no file here and cannot be loaded as a data set with split `{split}` "
        f"({type(last).__name__}: {first_line(last)}); check path, name, split and network, or "
        "download it and name the .jsonl or .parquet file."
    )


def _readings(name: str) -> list[tuple[str, str | None]]:
    """Owner/name/config, owner/name or name: `a/b` may also be a name and its config."""
    parts = name.split("/")
    if len(parts) == 3:
        return [("/".join(parts[:2]), parts[2])]
    return [(name, None)] + ([(parts[0], parts[1])] if len(parts) == 2 else [])
