"""What an install brings: a light import, the kernels as a subpackage, the data of the demo."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import own_process
import pytest

import jaxalign
import jaxalign.kernels

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("jax", "flax", "transformers", "datasets", "torch", "matplotlib", "pydantic", "tyro")
DATA = "demo/answers.jsonl.gz"

# Printed by the installed package: its folder. Dependencies come from this environment, behind it.
PROBE = f"""
import sys, importlib.util
sys.path.append({sysconfig.get_path("purelib")!r})
import jaxalign.kernels
assert importlib.util.find_spec("jaxalign.demo")
print(jaxalign.__path__[0], jaxalign.__version__, sep="\\n")
"""


def run(*command, **kwargs):
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    env |= kwargs.pop("env", {})
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, env=env, **kwargs
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_import_is_light():
    code = f"import sys, jaxalign; print([name for name in {HEAVY} if name in sys.modules])"
    assert run(sys.executable, "-c", code).strip() == "[]"


def test_imports_of_commands_are_light():
    """Every command pays for them: matplotlib comes with the first plot, NNX with `to_nnx`."""
    code = (
        "import sys, jaxalign.demo, jaxalign.serve, jaxalign.models\n"
        "from jaxalign.experiments import mrm, moc, palm, pplug, sft, reward, generate\n"
        "from jax._src.xla_bridge import backends_are_initialized\n"
        "late = ('matplotlib', 'flax.nnx')\n"
        "print([name for name in late if name in sys.modules], backends_are_initialized())\n"
        "assert 'to_nnx' in dir(jaxalign.models)\n"
        "jaxalign.models.to_nnx\n"
        "from jaxalign.runs.plots import new_figure\n"
        "new_figure(1, 1)\n"
        "print([name for name in late if name in sys.modules])\n"
    )
    done = run(sys.executable, "-c", code, env=own_process.torchless())
    assert done.splitlines() == ["[] False", "['matplotlib', 'flax.nnx']"]


def test_version_is_that_of_the_install():
    assert jaxalign.__version__ == importlib.metadata.version("jaxalign")


def test_kernels_and_configs_are_relative_symlinks():
    assert os.readlink(ROOT / "jaxalign/configs") == "../configs"
    assert os.readlink(ROOT / "jaxalign/kernels") == "../kernels"
    assert jaxalign.kernels.__name__ == "jaxalign.kernels"


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no git checkout")
@pytest.mark.parametrize("name", ["kernels", "configs"])
def test_git_holds_a_symlink(name):
    listed = run("git", "ls-files", "--stage", f"jaxalign/{name}", cwd=ROOT)
    assert listed.startswith("120000 ")


@pytest.fixture
def source(tmp_path):
    """A copy of what a build reads, so that nothing is left in the checkout."""
    copy = tmp_path / "source"
    ignore = shutil.ignore_patterns("__pycache__", "*.part")
    for name in ("jaxalign", "kernels", "configs"):
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    return copy


def modules(package: Path) -> set[str]:
    """The Python files of a package, symlinked folders included."""
    return {
        os.path.relpath(os.path.join(folder, name), package)
        for folder, _, names in os.walk(package, followlinks=True)
        for name in names
        if name.endswith(".py")
    }


def check(package: Path) -> None:
    """The package folder holds what the source tree holds."""
    assert modules(package) == modules(ROOT / "jaxalign")
    assert (package / "py.typed").is_file()
    configs = [
        {path.relative_to(folder) for path in (folder / "configs").glob("*/*.yaml")}
        for folder in (package, ROOT / "jaxalign")
    ]
    assert configs[0] == configs[1]
    assert len(configs[0]) > 20
    assert (package / DATA).is_file() == (ROOT / "jaxalign" / DATA).is_file()


@pytest.mark.slow
@pytest.mark.parametrize("build", [["--wheel"], []], ids=["wheel", "sdist-then-wheel"])
def test_wheel_brings_kernels_and_data_as_files(source, tmp_path, build):
    dist, target = tmp_path / "dist", tmp_path / "target"
    run(sys.executable, "-m", "build", "--no-isolation", *build, "--outdir", dist, source)
    (wheel,) = dist.glob("*.whl")
    assert re.fullmatch(r"jaxalign-[^-]+-py3-none-any\.whl", wheel.name)
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--target", target, wheel)
    folder, version = run(
        sys.executable, "-c", PROBE, cwd=tmp_path, env={"PYTHONPATH": str(target)}
    ).splitlines()
    assert Path(folder) == target / "jaxalign"
    assert version == jaxalign.__version__
    assert not [path for path in target.rglob("*") if path.is_symlink()]
    assert not (target / "kernels").exists()
    check(target / "jaxalign")
    assert list(target.glob("jaxalign-*.dist-info/licenses/LICENSE"))


@pytest.mark.slow
def test_editable_install_reads_the_source(source, tmp_path):
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv/bin/python"
    run(python, "-m", "pip", "install", "--no-deps", "-e", source)
    folder, version = run(python, "-c", PROBE, cwd=tmp_path).splitlines()
    assert Path(folder) == source / "jaxalign"
    assert version == jaxalign.__version__
    check(source / "jaxalign")
