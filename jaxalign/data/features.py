"""Feature rows of items: read, written and looked up by id."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from jaxalign.data.messages import Conversation
from jaxalign.data.tables import read_rows
from jaxalign.data.values import check_identifier, check_number, short
from jaxalign.errors import InputError
from jaxalign.files import expand_user, read_json, write_aside

_ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class Features:
    """One feature row for each id.

    Attributes:
        ids: [I] unique ids, which items are looked up by.
        values: [I, E] floating-point features.
        names: [E] names of the columns when they are named base rewards, or None.
        scale: what the file `scale_file` beside them states, the scale of named base rewards as
            `jaxalign.rewards.RewardScale.to_json` writes it; None without such a file.
        source: what they were read from, for messages.
    """

    ids: tuple[str, ...]
    values: np.ndarray
    names: tuple[str, ...] | None = None
    scale: Mapping[str, object] | None = None
    source: str = "the features"

    @cached_property
    def row_of(self) -> dict[str, int]:
        """The number of each id's row."""
        return {key: row for row, key in enumerate(self.ids)}


def scale_file(path: str | Path) -> Path:
    """Return the file beside scores or named features that states their scale.

    Example:
        >>> from jaxalign.data.features import scale_file
        >>> scale_file("runs/scores.jsonl.gz").name
        'scores.scale.json'
    """
    path = expand_user(path)
    return path.with_name(f"{path.name.removesuffix('.gz').rpartition('.')[0]}.scale.json")


def load_features(path: str | Path) -> Features:
    """Read features and their ids.

    Args:
        path: .npz with `features` [I, E], `ids` [I] and optionally `names` [E] (text arrays, or
            the UTF-8 bytes of a JSON list); .safetensors with the tensor `features`, and `ids` and
            `names` as JSON lists in its metadata; or .npy. For .npy, and for .safetensors without
            ids, the ids are in `<stem>.ids.json` (a JSON list) or `<stem>.ids.txt` (one a line).
            Or .jsonl (.gz) of `jaxalign reward score`: the rewards of each answer, with their
            names; an answer is looked up by its text, with its prompt where rewards read that.
            Their scale is read from `scale_file(path)`, where there is one.

    Returns:
        The features; whole numbers become float32, floating-point types stay.

    Raises:
        InputError: a file or key is missing, ids repeat, or the sizes disagree.
    """
    path = expand_user(path)
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        return _on_scale(path, _read_scores(path))
    readers = {".npy": _read_npy, ".npz": _read_npz, ".safetensors": _read_safetensors}
    if path.suffix not in readers:
        raise InputError(
            f"{path} is not a feature file; expected .npy, .npz or .safetensors, or .jsonl of "
            "`jaxalign reward score`."
        )
    if not path.exists():
        raise InputError(f"{path} does not exist; check the path.")
    values, ids, names = readers[path.suffix](path)
    ids = _sibling_ids(path) if ids is None else ids
    return _on_scale(path, _checked(path, values, ids, names))


def _on_scale(path: Path, features: Features) -> Features:
    """Features of a file; named ones with the scale that the file beside them states."""
    features, stated = replace(features, source=str(path)), scale_file(path)
    if features.names is None or not stated.exists():
        return features
    return replace(features, scale=read_json(stated, "the scale of the rewards"))


def save_features(path: str | Path, features: Features) -> None:
    """Write features as .npz, whole or not at all; bfloat16 is stored as float32, exactly.

    Args:
        path: a path ending in .npz; an existing file is replaced.
        features: what to write; `load_features` reads it back.

    Raises:
        InputError: the path does not end in .npz, ids repeat, or the sizes disagree.
    """
    path = expand_user(path)
    if path.suffix != ".npz":
        raise InputError(f"{path} does not end in .npz, the format that features are saved in.")
    checked = _checked(path, features.values, list(features.ids), features.names)
    standard = checked.values.dtype.kind == "f"
    # Ids may be whole texts, which a NumPy text array would all pad to the longest.
    arrays = {
        "features": checked.values if standard else checked.values.astype(np.float32),
        "ids": _json_bytes(checked.ids),
    }
    if checked.names is not None:
        arrays["names"] = _json_bytes(checked.names)
    with write_aside(path) as aside, open(aside, "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def columns_named(features: Features, names: Sequence[str]) -> Features:
    """Return features with the columns of some names, in their order.

    Args:
        features: with names of their columns, or without, in which case they are returned as they
            are.
        names: of the columns that are wanted.

    Raises:
        InputError: a column is missing.
    """
    if features.names is None or features.names == tuple(names):
        return features
    missing = [name for name in names if name not in features.names]
    if missing:
        raise InputError(
            f"{features.source}: found the columns {', '.join(features.names)}, expected "
            f"{', '.join(names)}; add {', '.join(missing)}."
        )
    order = [features.names.index(name) for name in names]
    return replace(features, values=features.values[:, order], names=tuple(names))


def lookup(
    features: Features, items: Sequence[str], texts: Sequence[str] | None = None
) -> np.ndarray:
    """Gather the feature row of every item.

    Args:
        features: rows by id.
        items: ids, in any order, repeats allowed.
        texts: of the same items with their prompts, which are looked up before the ids.

    Returns:
        [len(items), E] in the order of `items`.

    Raises:
        InputError: an item has no features, or its row holds NaN or infinity.

    Example:
        >>> import numpy as np
        >>> from jaxalign.data import Features, lookup
        >>> lookup(Features(("a", "b"), np.eye(2)), ["b", "a", "b"]).tolist()
        [[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]
    """
    row_of = features.row_of
    found = [row_of.get(item, -1) for item in items]
    if texts is not None:
        found = [row_of.get(text, row) for text, row in zip(texts, found, strict=True)]
    rows = np.array(found, np.int64)
    if (rows < 0).any():
        missing = list(dict.fromkeys(items[i] for i in np.flatnonzero(rows < 0).tolist()))
        first = ", ".join(repr(key[:60]) for key in missing[:3])
        raise InputError(
            f"{len(missing)} of {len(set(items))} items have no features (first: {first}), "
            "expected a row for every item; compute the missing ones or check the ids."
        )
    values = features.values[rows]
    bad = first_bad_row(values)
    if bad is not None:
        raise InputError(
            f"the features of {items[bad][:60]!r} hold NaN or infinity, expected finite numbers; "
            "compute them again."
        )
    return values


def first_bad_row(values: np.ndarray) -> int | None:
    """The first row of [I, E] that holds NaN or infinity, or None."""
    for start in range(0, len(values), _ROWS_AT_ONCE):
        good = np.isfinite(values[start : start + _ROWS_AT_ONCE]).all(axis=1)
        if not good.all():
            return start + int(np.argmin(good))
    return None


def _read_scores(path: Path) -> Features:
    """The rewards of answers, by the texts of answers and by those of prompt and answer."""
    names: tuple[str, ...] = ()
    scores: list[list[float]] = []
    row_of: dict[str, int] = {}
    places: list[str] = []
    several: set[str] = set()
    for row, entry in enumerate(read_rows(path)):
        found = entry.values.get("rewards")
        if not isinstance(found, Mapping) or not found or (names and set(found) != set(names)):
            shown = "missing" if found is None else short(found)
            raise InputError(
                f"{entry.where}: `rewards` is {shown}, expected a number for "
                f"{', '.join(names) or 'each reward, by name'}; write the file with `jaxalign "
                "reward score`."
            )
        names = names or tuple(found)
        places.append(f"{entry.unit} {entry.place}")
        scores.append([check_number(found[name], f"rewards.{name}", entry.where) for name in names])
        answer = entry.answer()
        key = answer
        if entry.has("prompt"):
            key = Conversation((entry.conversation("prompt", "user"), answer))
        first = row_of.setdefault(key, row)
        if scores[first] != scores[row]:
            raise InputError(
                f"{entry.where}: found the rewards {short(found)} for an answer that has others in "
                f"{places[first]}, expected one row for each; remove one of them."
            )
        if scores[row_of.setdefault(answer, row)] != scores[row]:
            several.add(answer)
    values = np.asarray(scores, np.float32)
    kept = [key for key in row_of if key not in several]
    return Features(tuple(kept), values[[row_of[key] for key in kept]], names)


_Read = tuple[np.ndarray, list[str] | None, Sequence[str] | None]


def _read_npy(path: Path) -> _Read:
    try:
        return np.load(path, allow_pickle=False), None, None
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"{path} is not a readable .npy file of numbers: {error}.") from None


def _read_npz(path: Path) -> _Read:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except Exception as error:
        # zipfile, zlib and NumPy each have their own words for a broken or pickled archive.
        raise InputError(
            f"{path} is not a readable .npz file ({error}); save text as np.array(ids, dtype=str)."
        ) from None
    for key in ("features", "ids"):
        if key not in arrays:
            found = ", ".join(arrays) or "none"
            raise InputError(f"{path} has no key `{key}`; found {found}.")
    names = _texts(arrays["names"], path, "names") if "names" in arrays else None
    return arrays["features"], _texts(arrays["ids"], path, "ids"), names


def _read_safetensors(path: Path) -> _Read:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            found = list(file.keys())
            values = file.get_tensor("features") if "features" in found else None
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a readable safetensors file: {error}.") from None
    if values is None:
        raise InputError(f"{path} has no tensor `features`; found {', '.join(found) or 'none'}.")
    ids, names = (
        _json_texts(metadata[key], f"{path}, metadata `{key}`") if key in metadata else None
        for key in ("ids", "names")
    )
    return values, ids, names


def _sibling_ids(path: Path) -> list[str]:
    as_json, as_text = (path.with_name(f"{path.stem}.ids.{ending}") for ending in ("json", "txt"))
    try:
        if as_json.exists():
            return _json_texts(as_json.read_text("utf-8-sig"), str(as_json))
    except UnicodeDecodeError as error:
        raise InputError(f"the ids of {path} are not UTF-8 text: {error}.") from None
    if as_text.exists():
        return [row.identifier("id") for row in read_rows(as_text, "id")]
    raise InputError(f"{path} has no ids; expected {as_json.name} or {as_text.name} beside it.")


def _texts(array: np.ndarray, path: Path, key: str) -> list[str]:
    if array.ndim == 1 and array.dtype.kind == "U":
        return array.tolist()
    if array.ndim == 1 and array.dtype.kind in "iu" and array.dtype != np.uint8:
        return [str(value) for value in array.tolist()]
    if array.ndim == 1 and array.dtype == np.uint8:
        return _json_texts(array.tobytes(), f"{path}, `{key}`")
    raise InputError(
        f"{path}, `{key}`: found {array.dtype} of shape {array.shape}, expected a list of texts."
    )


def _json_texts(text: str | bytes, where: str) -> list[str]:
    try:
        found: object = json.loads(text)
    except ValueError as error:
        raise InputError(f"{where} is not readable as JSON ({error}), expected a list.") from None
    if not isinstance(found, list):
        raise InputError(f"{where} is not a JSON list of texts; write one text for each row.")
    return [
        check_identifier(value, "ids", f"{where}, row {row}") for row, value in enumerate(found, 1)
    ]


def _json_bytes(texts: Sequence[str]) -> np.ndarray:
    return np.frombuffer(json.dumps(list(texts)).encode(), np.uint8)


def _checked(
    path: Path, values: np.ndarray, ids: Sequence[str], names: Sequence[str] | None
) -> Features:
    if values.ndim != 2 or 0 in values.shape:
        raise InputError(f"{path}: features have shape {values.shape}, expected [ids, width].")
    if values.dtype.kind in "iu":
        values = values.astype(np.float32)
    # bfloat16 is no NumPy kind of its own; a .npy file that held it comes back as raw bytes.
    if values.dtype.kind != "f" and values.dtype.name != "bfloat16":
        raise InputError(f"{path}: features are {values.dtype}, expected floating-point numbers.")
    if len(ids) != len(values):
        raise InputError(f"{path}: found {len(values)} feature rows and {len(ids)} ids, expected "
                         "as many of each.")  # fmt: skip
    if len(set(ids)) != len(ids):
        seen: set[str] = set()
        twice = next(key for key in ids if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise InputError(f"{path}: the id {twice[:60]!r} occurs twice, expected unique ids.")
    if names is not None and (len(names) != values.shape[1] or len(set(names)) != len(names)):
        raise InputError(
            f"{path}: found {len(names)} names for {values.shape[1]} columns, expected one unique "
            "name for each."
        )
    return Features(tuple(ids), values, None if names is None else tuple(names))
