"""What a folder or a file is, in a few words: for messages that refuse the wrong one.

Every reader of jaxalign says with it what was found where something else was expected. Names of
files and small headers decide; nothing large is read.
"""

import json
import os
import sqlite3
import zipfile
from contextlib import closing
from pathlib import Path

SQLITE = b"SQLite format 3\0"
"""The first bytes of a SQLite database."""

# A file that only folders of one kind hold, and what such a folder is; the first that fits counts.
_MARKS = (
    ("routing.json", "adapters of `jaxalign export vllm`, which its start_vllm.sh serves"),
    ("policy.safetensors", "a MOC policy, which `jaxalign generate` takes as --model with "
     "--preference"),
    ("moc.json", "a MOC policy of an older format, which has to be trained again, and which "
     "`jaxalign generate` then takes as --model with --preference"),
    ("policies.safetensors", "a portfolio with its policies, which `jaxalign serve` takes as "
     "--portfolio"),
    ("portfolio.safetensors", "a portfolio, which `jaxalign palm route` takes as --portfolio"),
    ("plug.safetensors", "a persona plug, which `jaxalign pplug generate` takes as --model"),
    ("reward.json", "a reward model (LoRA), which `jaxalign reward score` takes as --model"),
    ("adapter_config.json", "a LoRA adapter, which `jaxalign generate` takes as --adapter, or "
     "merged into its base as --model"),
    ("embeddings.sqlite", "a cache of embeddings"),
    ("dataset_info.json", "a data set, which goes to --data"),
    ("_CHECKPOINT_METADATA", "a checkpoint of a training, which only its own run goes on from, "
     "with --resume"),
    ("model_index.json", "a diffusion model, which jaxalign does not read"),
)  # fmt: skip
# What is done with a finished run, by its kind.
_RUNS = {
    "sft": "whose model is its folder model/",
    "reward train": "whose reward model is its folder model/",
    "moc train": "whose MOC policy is its folder model/",
    "mrm train": "which `jaxalign mrm adapt` and `mrm rank` take as --model",
    "palm build": "which `jaxalign palm route` takes as --portfolio",
    "pplug train": "which `jaxalign pplug generate` takes as --model",
}
_ARTIFACTS = {
    "user model": "a user reward model, which `jaxalign mrm adapt` takes as --model (its folder)",
    "portfolio": "a portfolio, which `jaxalign palm route` takes as --portfolio (its folder)",
    "persona plug": "a persona plug, which `jaxalign pplug generate` takes as --model (its folder)",
    "MOC policy": "a part of a MOC policy, which `jaxalign generate` takes as --model (its folder)",
}
_NOTHING = "nothing"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_TABLES = (".jsonl", ".json", ".csv", ".tsv", ".txt", ".jsonl.gz", ".json.gz", ".csv.gz", ".txt.gz")


def recognise(path: str | Path) -> str | None:
    """Say what a folder or file is, and what takes it; None where it is missing or unknown.

    Args:
        path: of the folder or file.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from jaxalign.recognise import recognise
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "plug.safetensors").write_bytes(b"")
        >>> recognise(folder)
        'a persona plug, which `jaxalign pplug generate` takes as --model'
    """
    path = Path(os.path.expanduser(path))  # of an unknown ~NAME: no such file
    try:
        return _folder(path) if path.is_dir() else _file(path) if path.is_file() else None
    except OSError:
        return None


def first_fields(path: Path) -> frozenset[str]:
    """Return the fields of the first object of a JSON file, or the columns of a table or archive.

    Args:
        path: of JSON, JSON lines, Parquet, .npz or .pt.

    Returns:
        Their names, of a .pt file those of the files in it; none of a file that is something else.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from jaxalign.recognise import first_fields
        >>> path = Path(tempfile.mkdtemp()) / "rows.jsonl"
        >>> _ = path.write_text('{"user": 7, "score": 1}\\n{"user": 8}\\n')
        >>> sorted(first_fields(path))
        ['score', 'user']
    """
    try:
        if path.suffix in (".npz", ".pt"):
            with zipfile.ZipFile(path) as file:
                return frozenset(name.removesuffix(".npy") for name in file.namelist())
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq  # slow to load

            return frozenset(pq.read_schema(path).names)
        with path.open("rb") as file:
            line = file.readline()
        first = json.loads(line if line.strip() not in (b"{", b"[") else path.read_bytes())
    except (OSError, ValueError, RecursionError, zipfile.BadZipFile):
        return frozenset()
    return frozenset(first) if isinstance(first, dict) else frozenset()


def instead(path: str | Path) -> str:
    """The clause "; PATH holds ..." of a message; empty for what is empty or of no known kind.

    Args:
        path: of the folder or file that was given.
    """
    found = recognise(path)
    return "" if found in (None, _NOTHING) else f"; {path} holds {found}"


def _folder(folder: Path) -> str | None:
    names = {entry.name for entry in folder.iterdir()}
    if not names:
        return _NOTHING
    if "run.json" in names:
        return _run(folder, finished="report.json" in names)
    for mark, kind in _MARKS:
        if mark in names:
            return kind
    if "config.json" in names:
        return _model(_read(folder / "config.json"))
    if any(name.endswith(".gguf") for name in names):
        return "a GGUF file, which holds a language model"
    if folder.name == "state" and (folder.parent / "run.json").is_file():
        return "the state of a run, which goes on with --resume"
    if "snapshots" in names and "refs" in names:
        return "a model of the Hub's cache, whose files are in a folder below snapshots/"
    for name in sorted(names):
        if name.endswith(".safetensors"):
            return _safetensors(folder / name) or "safetensors without a config.json"
    if any(name.endswith(_PICKLES) for name in names):
        return _pickles()
    if "tokenizer.json" in names or "tokenizer_config.json" in names:
        return "a tokenizer without a model"
    if "plugs" in names:
        return "persona plugs of a run"
    return None


def _run(folder: Path, finished: bool) -> str:
    kind = str(_read(folder / "run.json").get("kind"))
    if not finished:
        return f"an unfinished run of `{kind}`, which goes on with --resume"
    use = _RUNS.get(kind)
    return f"a run of `{kind}`" + (f", {use}" if use else "")


def _model(config: dict[str, object]) -> str:
    """Of a Hugging Face config."""
    kind = config.get("model_type")
    names = config.get("architectures")
    architecture = str(names[0]) if isinstance(names, list) and names else ""
    if architecture.endswith("ForSequenceClassification"):
        return f"a classifier or reward model ({kind}), which `jaxalign reward score` takes"
    if architecture.endswith(("ForCausalLM", "LMHeadModel")):
        return f"a whole language model ({kind}), which `jaxalign generate` takes as --model"
    return f"a model of type {kind}" if kind else "a model without a model_type in its config.json"


def _file(path: Path) -> str | None:
    name = path.name
    if name.endswith(".safetensors"):
        found = _safetensors(path)
        whole = "the weights of a model or an adapter, whose folder is named in its place"
        return found or whole
    with path.open("rb") as file:
        start = file.read(16)
    if start[:4] == b"GGUF":
        return "a GGUF file, which holds a language model"
    if start[:4] == b"PAR1":
        return "a table (Parquet), which goes to --data"
    if start == SQLITE:
        return _database(path)
    if name.endswith(_PICKLES):
        return _pickles()
    if name.endswith(".npz"):
        return "arrays (npz), such as features"
    if name.endswith(_TABLES):
        return f"a table or text ({''.join(path.suffixes)}), which goes to --data"
    if name.endswith((".yaml", ".yml")):
        return "a config, which goes to --config"
    return None


def _pickles() -> str:
    return (
        "weights as PyTorch pickles, which are not read (load the model with transformers and save "
        "it again with `save_pretrained`)"
    )


def _safetensors(path: Path) -> str | None:
    """The kind that an artifact of jaxalign states in its header."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        head = file.read(size) if size < 1 << 26 else b""
    try:
        stated = json.loads(json.loads(head)["__metadata__"]["jaxalign"])["kind"]
    except (ValueError, KeyError, TypeError):
        return None
    return _ARTIFACTS.get(str(stated), f"a {stated}")


def _database(path: Path) -> str:
    """The kind that a database of jaxalign states."""
    try:
        with closing(sqlite3.connect(path)) as database:
            stated = database.execute("SELECT value FROM about").fetchone()
    except sqlite3.Error:
        return "a SQLite database"
    if stated is None or not stated[0].startswith('{"kind": "users"'):
        return "a SQLite database"
    return "users of `jaxalign mrm adapt`, which `jaxalign palm route` takes as --users"


def _read(path: Path) -> dict[str, object]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
