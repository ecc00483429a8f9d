"""Files of the MRM authors (github ModalityDance/MRM): embedded choices and checkpoints."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TypedDict

import numpy as np

from jaxalign.data.features import first_bad_row
from jaxalign.data.files import encode, find_remarks
from jaxalign.data.preferences import Preferences
from jaxalign.data.torch_files import read_pt
from jaxalign.errors import InputError
from jaxalign.files import read_json


class _Entry(NamedTuple):
    """A choice of the authors' file; answers and embedding rows are chosen, then rejected."""

    user: str
    where: str
    conversation: str
    prompt: str
    answers: tuple[str, str]
    rows: tuple[int, int]
    split: str


class AuthorsCheckpoint(TypedDict):
    """What `read_authors_checkpoint` returns."""

    base: dict[str, dict[str, np.ndarray]]
    weight_init: np.ndarray


_LAYER = re.compile(r"layers\.(\d+)\.(weight|bias)")


def load_authors(
    pt_path: str | Path, json_path: str | Path
) -> tuple[Preferences, np.ndarray, dict[str, np.ndarray | None]]:
    """Read the authors' pair of files: embeddings, and the choices that point into them.

    Item i is embedding row i, its key the text of i. Both authors' data sets embed each pair
    anew, so one answer may be several items. Groups are (user, conversation_id) pairs.

    Args:
        pt_path: X.pt, one tensor [2N, E].
        json_path: X.json, {user: [{conversation_id, prompt, chosen, rejected, chosen_idx,
            rejected_idx, and optionally split}]}; a prompt is a text or a list of turns
            {role, content}.

    Returns:
        The choices, with `held_out` where every split is `train` or `val`; the embeddings [2N, E]
        as stored (bfloat16 of `ml_dtypes`, read-only); and {"split": [N] array of texts, empty
        where a row has none, or None if no row has one}.

    Raises:
        InputError: a file cannot be read or an entry cannot be used; the entry is named.
    """
    values = read_pt(pt_path)
    if not isinstance(values, np.ndarray) or values.ndim != 2 or values.dtype.kind in "bi":
        found = getattr(values, "shape", type(values).__name__)
        raise InputError(f"{pt_path} holds {found}, expected one tensor [2N, E] of embeddings.")
    if (bad := first_bad_row(values)) is not None:
        raise InputError(f"{pt_path}, row {bad}: found NaN or infinity, expected finite numbers.")
    entries = list(_entries(read_json(json_path, "{user: [choices]}"), json_path, len(values)))
    if not entries:
        raise InputError(f"{json_path} holds no choices, expected a list of them for each user.")
    user, users = encode([entry.user for entry in entries])
    prompt, _ = encode([entry.prompt for entry in entries])
    conversation, conversations = encode([entry.conversation for entry in entries])
    group, _ = np.unique(
        user * np.int64(len(conversations)) + conversation, return_inverse=True
    )[::-1]  # fmt: skip
    rows = np.array([entry.rows for entry in entries], np.int32)
    chosen, rejected = rows[:, 0].copy(), rows[:, 1].copy()
    texts = [""] * len(values)
    for entry in entries:
        for answer, index in zip(entry.answers, entry.rows, strict=True):
            text = f"{entry.prompt}\n\n{answer}"
            if texts[index] not in ("", text):
                raise InputError(
                    f"{entry.where}: embedding row {index} already belongs to another text, "
                    "expected one text for each row."
                )
            texts[index] = text
    split = np.array([entry.split for entry in entries], dtype=str)
    held_out = split == "val"
    table = Preferences(
        users, tuple(map(str, range(len(values)))), tuple(texts), user, chosen, rejected,
        group.astype(np.int32), prompt, np.zeros(len(entries), bool), source=str(json_path),
        held_out=held_out if (held_out | (split == "train")).all() else None,
    )  # fmt: skip
    notes = find_remarks(table).sentences(lambda row: entries[row].where)
    table = replace(table, notes=notes)
    return table, values, {"split": split if split.astype(bool).any() else None}


def read_authors_checkpoint(path: str | Path) -> AuthorsCheckpoint:
    """Read an MRM checkpoint of the authors into the parameters of `jaxalign.mrm`.

    Args:
        path: a .pt file with a state dict (or one under `state_dict` or `model`) of
            `layers.{i}.weight` [out, in], optionally `layers.{i}.bias` [out], `shared_weight` [K].

    Returns:
        {"base": {"layer{i}": {"kernel": [in, out], "bias": [out]}}, "weight_init": [K]}, with
        "bias" only in layers that have one.

    Raises:
        InputError: the file cannot be read, or its keys or sizes are not those of the model.
    """
    state = read_pt(path)
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or "shared_weight" not in state:
        found = ", ".join(map(str, state))[:80] if isinstance(state, dict) else type(state).__name__
        raise InputError(f"{path} holds {found}, expected `layers.*` and `shared_weight`.")
    layers: dict[int, dict[str, np.ndarray]] = {}
    for key, value in state.items():
        match = _LAYER.fullmatch(str(key))
        if match:
            layers.setdefault(int(match[1]), {})[match[2]] = value
        elif key != "shared_weight":
            raise InputError(f"{path} has the key `{key}`, expected `layers.*` and `shared_weight`")
    width: int | None = None
    base: dict[str, dict[str, np.ndarray]] = {}
    for index in range(len(layers)):
        layer = layers.get(index, {})
        weight, bias = layer.get("weight"), layer.get("bias")
        weight = _check_layer(f"{path}, `layers.{index}", weight, bias, width)
        width = weight.shape[0]
        base[f"layer{index}"] = {"kernel": np.ascontiguousarray(weight.T)}
        if bias is not None:
            base[f"layer{index}"]["bias"] = bias
    start = state["shared_weight"]
    if np.shape(start) != (width,):
        raise InputError(
            f"{path}, `shared_weight`: found shape {np.shape(start)}, expected ({width},), one "
            "weight for each output of the last layer."
        )
    if not base:
        raise InputError(f"{path} has no `layers.0.weight`, expected one layer or more.")
    return AuthorsCheckpoint(base=base, weight_init=start)


def _check_layer(
    where: str, weight: np.ndarray | None, bias: np.ndarray | None, width: int | None
) -> np.ndarray:
    """Return the weight [out, in], checked against the layer before it."""
    if weight is None or np.ndim(weight) != 2 or (width is not None and weight.shape[1] != width):
        found = () if weight is None else np.shape(weight)
        expected = f"[out, {'in' if width is None else width}]"
        raise InputError(f"{where}.weight`: found shape {found}, expected {expected}.")
    if bias is not None and np.shape(bias) != weight.shape[:1]:
        raise InputError(
            f"{where}.bias`: found shape {np.shape(bias)}, expected {weight.shape[:1]}."
        )
    return weight


def _entries(meta: dict[str, object], path: str | Path, rows: int) -> Iterator[_Entry]:
    """Every choice, checked."""
    for user, choices in meta.items():
        if not user or not isinstance(choices, list):
            raise InputError(
                f"{path}, user {user!r}: expected a named user with a list of choices."
            )
        for number, entry in enumerate(choices, 1):
            yield _entry(entry, user, f"{path}, user {user!r}, choice {number}", rows)


def _entry(entry: object, user: str, where: str, rows: int) -> _Entry:
    needed = ("conversation_id", "prompt", "chosen", "rejected", "chosen_idx", "rejected_idx")
    if not isinstance(entry, dict) or any(entry.get(name) is None for name in needed):
        gone = [n for n in needed if not isinstance(entry, dict) or entry.get(n) is None]
        raise InputError(f"{where}: `{gone[0]}` is missing, expected {', '.join(needed)}.")
    for side in ("chosen", "rejected"):
        index, text = entry[f"{side}_idx"], entry[side]
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < rows:
            raise InputError(
                f"{where}: `{side}_idx` is {index!r}, expected a row from 0 to {rows - 1} of the "
                "embeddings; check that the two files belong together."
            )
        if not isinstance(text, str):
            raise InputError(f"{where}: `{side}` is {str(text)[:40]}, expected text.")
    if entry["chosen_idx"] == entry["rejected_idx"]:
        raise InputError(f"{where}: `chosen_idx` and `rejected_idx` are equal, expected two rows.")
    turns = entry["prompt"]
    if not isinstance(turns, str) and not (
        isinstance(turns, list)
        and all(isinstance(t, dict) and isinstance(t.get("content"), str) for t in turns)
    ):
        raise InputError(f"{where}: `prompt` is neither text nor a list of turns with `content`.")
    if not isinstance(entry.get("split", ""), str | None):
        raise InputError(f"{where}: `split` is {entry['split']!r}, expected text.")
    return _Entry(
        user,
        where,
        str(entry["conversation_id"]),
        turns if isinstance(turns, str) else "\n\n".join(turn["content"] for turn in turns),
        (entry["chosen"], entry["rejected"]),
        (entry["chosen_idx"], entry["rejected_idx"]),
        entry.get("split") or "",
    )
