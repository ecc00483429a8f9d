"""From a model's name to its files: a folder, a file, the caches, the Hub, a package.

The folder of a LoRA adapter names a model too: its base, with the adapter merged into it.
"""

import functools
import hashlib
import json
import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from jaxalign.errors import InputError
from jaxalign.files import cache_folder, expand_user, write_json
from jaxalign.models.hf_config import JsonObject
from jaxalign.models.packages import PACKAGES, fetch_package
from jaxalign.models.weights.adapter import CONFIG, adapter_settings
from jaxalign.models.weights.adapter import WEIGHTS as ADAPTER
from jaxalign.models.weights.safetensors import find_weights
from jaxalign.recognise import instead

ALIASES = {
    "all-MiniLM-L6-v2": "sentence-transformers/all-MiniLM-L6-v2",
    "SmolLM2-135M-Instruct": "HuggingFaceTB/SmolLM2-135M-Instruct",
}
# Of the packaged file: the Hub may hold the same model in another format.
KNOWN_SHA256 = {
    "sentence-transformers/all-MiniLM-L6-v2": (
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    ),
    "HuggingFaceTB/SmolLM2-135M-Instruct": (
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    ),
}
_SUFFIXES = (".safetensors", ".gguf")
_PROBE_SECONDS = 3.0
_WANTED = ["*.json", "*.txt", "*.jinja", "model*.safetensors", ADAPTER, "tokenizer.model"]
_TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model")


@dataclass(frozen=True)
class ResolvedModel:
    """A model's files on this machine.

    Attributes:
        folder: holds config and tokenizer, except where the weights are GGUF, which has its own.
        weights: one safetensors file, all shards in the order of their names, or one GGUF file.
        sha256: of the file; of several, over the lines `<sha256>  <file name>`.
        source: folder, file, cache, hub cache, hub or package index.
        adapters: folders of LoRA adapters to merge into the weights, in this order. `sha256` then
            covers them too.
    """

    folder: Path
    weights: tuple[Path, ...]
    sha256: str
    source: str
    adapters: tuple[Path, ...] = ()

    @property
    def tokenizer_folder(self) -> Path:
        """The folder that has the tokenizer: of the last adapter that has one, else `folder`."""
        own = [place for place in self.adapters if _has_tokenizer(place)]
        return own[-1] if own else self.folder


def resolve(name: str, sha256: str | None = None) -> ResolvedModel:
    """The files of a model, fetched where needed.

    Looks for a folder, a safetensors or GGUF file, jaxalign's cache, the Hub's cache, then asks
    the Hub (probed once, for 3 s) and, for the few models that have one, the package index. Where
    that is the folder of a LoRA adapter, its base is found likewise: `base_model_name_or_path` is
    a path, absolute, from the adapter's folder or from the working directory, or a name.

    Args:
        name: a path, or a name on the Hub; `all-MiniLM-L6-v2` and `SmolLM2-135M-Instruct` stand
            for their full names.
        sha256: what the weights must hash to; the few known names are checked without it.

    Raises:
        InputError: where there is no such model here and it cannot be fetched, a file is missing,
            or the weights hash to something else.
    """
    return _resolve(name, sha256, ())


def _resolve(name: str, sha256: str | None, above: tuple[Path, ...]) -> ResolvedModel:
    """As `resolve`; `above` are the adapters whose base the model is."""
    path = expand_user(name)
    if not name.strip():
        raise InputError("the model's name is empty; expected a path or a name like 'owner/model'.")
    if path.name == ADAPTER and path.is_file():
        path = path.parent
    if path.is_dir() and (path / CONFIG).is_file():
        return _resolve_adapter(path, "folder", sha256, above)
    if path.is_dir():
        return _resolved(path, _find_files(path), "folder", sha256)
    if path.is_file():
        if path.suffix not in _SUFFIXES:
            raise InputError(
                f"{path}: not a model{instead(path)}; expected a folder, a .safetensors or .gguf "
                "file, or a name."
            )
        return _resolved(path.parent, (path,), "file", sha256)
    name = ALIASES.get(name, name)
    if _looks_like_path(name):
        raise InputError(
            f"{path}: no such file or folder; expected a model's folder, its .safetensors or "
            ".gguf file, or a name on the Hub like 'owner/model'."
        )
    folder, source = _find(name)
    if (folder / CONFIG).is_file():
        return _resolve_adapter(folder, source, sha256, above)
    weights = _find_files(folder)
    if sha256 is None and name in PACKAGES:
        pinned = Path(PACKAGES[name].weights).suffix == weights[0].suffix
        sha256 = KNOWN_SHA256[name] if pinned else None
    return _resolved(folder, weights, source, sha256)


def stated_name(name: str) -> str:
    """The name of a model as files state it: a path in full, so that it holds from everywhere.

    Example:
        >>> from jaxalign.models.resolve import stated_name
        >>> stated_name("owner/model")
        'owner/model'
    """
    path = expand_user(name)
    return str(path.absolute()) if path.exists() else name


def _resolve_adapter(
    folder: Path, source: str, sha256: str | None, above: tuple[Path, ...]
) -> ResolvedModel:
    """The base of an adapter with the adapter."""
    config = folder / CONFIG
    settings = adapter_settings(folder)
    name = settings.get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise InputError(
            f"{config}: base_model_name_or_path is {name!r}; expected the folder or name of the "
            "model that the adapter was trained on: write it there."
        )
    if folder.resolve() in above:
        raise InputError(
            f"{config}: base_model_name_or_path leads back to the adapter itself; expected the "
            "model that it was trained on: write its folder or name there."
        )
    place = folder / expand_user(name)
    try:
        found = _resolve(str(place) if place.exists() else name, None, (*above, folder.resolve()))
    except InputError as error:
        raise InputError(
            f"{config}: the base model of the adapter, {name!r}, cannot be used "
            f"({str(error).removesuffix('.')}): correct base_model_name_or_path if the model lies "
            "elsewhere."
        ) from error
    if not (folder / ADAPTER).is_file():
        raise InputError(
            f"{folder}: {ADAPTER} is missing: save the adapter again with safe serialisation."
        )
    parts = [found.sha256, hash_weights([folder / ADAPTER]), _meaning(settings)]
    total = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    _check_hash(folder, total, sha256)
    return replace(found, sha256=total, source=source, adapters=(*found.adapters, folder))


def _meaning(settings: JsonObject) -> str:
    """The part of an adapter's config that says what the adapter does, as text."""
    fields = (
        "r", "lora_alpha", "use_rslora", "target_modules", "exclude_modules", "rank_pattern",
        "alpha_pattern", "layers_to_transform", "modules_to_save", "task_type",
    )  # fmt: skip
    return json.dumps({name: settings.get(name) for name in fields}, sort_keys=True, default=str)


def _find(name: str) -> tuple[Path, str]:
    own = cache_folder() / "models" / name.replace("/", "--")
    if _complete(own):
        return own, "cache"
    cached = _hub_cached(name)
    if cached is not None:
        return cached, "hub cache"
    cause: Exception | None = None
    reason = "the Hub does not answer"
    if _hub_answers():
        try:
            return _hub_download(name), "hub"
        except Exception as error:
            # Whichever library beneath it failed, the user's way on is the same.
            line = (str(error).strip() or type(error).__name__).splitlines()[0]
            reason, cause = f"the Hub does not give it ({line})", error
    if name in PACKAGES:
        return fetch_package(PACKAGES[name], own, KNOWN_SHA256[name]), "package index"
    path, where = Path(name), ""
    if "/" in name and path.parent.is_dir():  # a path that is mistyped looks like owner and model
        where = f" (the folder {path.parent} is, without {path.name})"
    raise InputError(
        f"model {name!r} is not on this machine{where} and {reason}: put its config.json, "
        f"tokenizer and safetensors, or its .gguf file, into {own}, or name a folder that holds "
        "them."
    ) from cause


def _find_files(folder: Path) -> tuple[Path, ...]:
    """The weights in a folder: its safetensors, else its one GGUF file."""
    if not _is_gguf(folder):
        return find_weights(folder)
    found = sorted(folder.glob("*.gguf"))
    if len(found) > 1:
        raise InputError(
            f"{folder}: found {len(found)} GGUF files; expected one: name the file instead, such "
            f"as {found[0]}."
        )
    return (found[0],)


def _is_gguf(folder: Path) -> bool:
    return any(folder.glob("*.gguf")) and not any(folder.glob("*.safetensors*"))


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "~", os.sep)) or name.count("/") > 1 or name.endswith(_SUFFIXES)


def _complete(folder: Path) -> bool:
    """Whether a cached folder has all that a model needs; a download may have stopped half way."""
    if _is_gguf(folder):  # config and tokenizer are in the file
        return True
    if (folder / CONFIG).is_file():
        return (folder / ADAPTER).is_file()
    if not (folder / "config.json").is_file() or not _has_tokenizer(folder):
        return False
    with suppress(InputError):
        return bool(find_weights(folder))
    return False


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / file).is_file() for file in _TOKENIZERS)


def _hub_cached(name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "config.json")
        if not isinstance(found, str):
            found = try_to_load_from_cache(name, CONFIG)
    except HFValidationError as error:
        raise InputError(
            f"model {name!r} is neither a folder, a file nor a name on the Hub like 'owner/model'."
        ) from error
    if not isinstance(found, str):
        return None
    folder = Path(found).parent
    return folder if _complete(folder) else None


@functools.cache
def _hub_answers() -> bool:
    """One short question for the life of the process; a thread, since DNS knows no time limit."""
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return False
    answered = threading.Event()

    def ask() -> None:
        from huggingface_hub import get_session

        # A probe may fail in any way a network can; all of them mean no.
        with suppress(Exception):
            reply = get_session().head(constants.ENDPOINT, timeout=_PROBE_SECONDS)
            if reply.status_code < 500 and reply.status_code not in (403, 407):
                answered.set()

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PROBE_SECONDS)
    return answered.is_set()


def _hub_download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, allow_patterns=_WANTED))


def _resolved(
    folder: Path, weights: tuple[Path, ...], source: str, expected: str | None
) -> ResolvedModel:
    found = hash_weights(weights)
    _check_hash(weights[0] if len(weights) == 1 else folder, found, expected)
    return ResolvedModel(folder, weights, found, source)


def _check_hash(place: Path, found: str, expected: str | None) -> None:
    if expected is not None and found != expected.lower():
        raise InputError(
            f"{place}: the weights hash to sha256 {found}, expected {expected.lower()}: put "
            "the right ones there, or delete them and fetch them again."
        )


def hash_weights(paths: Sequence[Path]) -> str:
    """The sha256 of a model's weights, computed once a file and remembered in the cache.

    Args:
        paths: one file, or all shards.

    Returns:
        The file's sha256; of several, the sha256 over the lines `<sha256>  <file name>`.
    """
    memory_file = cache_folder() / "sha256.json"
    memory = _read_memory(memory_file)
    known, lines = dict(memory), []
    for path in paths:
        status = path.stat()
        key = f"{path.resolve()}:{status.st_size}:{status.st_mtime_ns}"
        if key not in known:
            with path.open("rb") as file:
                known[key] = hashlib.file_digest(file, "sha256").hexdigest()
        lines.append(f"{known[key]}  {path.name}\n")
    if known != memory:
        _write_memory(memory_file, known)
    if len(lines) == 1:
        return lines[0].split()[0]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _read_memory(path: Path) -> dict[str, str]:
    # A memory that cannot be read costs a second hash, no more.
    with suppress(OSError, ValueError):
        memory = json.loads(path.read_text("utf-8"))
        if isinstance(memory, dict):
            return memory
    return {}


def _write_memory(path: Path, memory: dict[str, str]) -> None:
    # A read-only cache is no reason to fail.
    with suppress(OSError, InputError):
        write_json(path, memory)
