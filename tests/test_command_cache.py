"""Commands keep what they compile: each jax and CPU apart, off by one switch, never in the way."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxalign.commands import compile_cache

HOME = Path("home")
PLACE = compile_cache.folder(HOME, "0.10.2", "0.10.2", "one CPU")


@pytest.mark.parametrize(
    "other",
    [
        ("0.10.3", "0.10.2", "one CPU"),
        ("0.10.2", "0.10.3", "one CPU"),
        ("0.10.2", "0.10.2", "another CPU"),
    ],
)
def test_another_version_or_cpu_has_a_folder_of_its_own(other):
    assert compile_cache.folder(HOME, *other) != PLACE
    assert compile_cache.folder(HOME, *other).parent == PLACE.parent == HOME


def test_the_kind_of_the_cpu_and_nothing_that_changes():
    info = "processor : 0\nmodel name\t: One CPU\ncpu MHz : 2600\nflags\t\t: fpu avx512f\n"
    kind = compile_cache.cpu(info)
    assert compile_cache.cpu(info.replace("2600", "3100")) == kind
    assert compile_cache.cpu(info.replace(" avx512f", "")) != kind
    assert compile_cache.cpu(info.replace("One", "Another")) != kind


def test_the_cpu_of_this_machine_is_known():
    if sys.platform == "linux":
        kind = "flags" if os.uname().machine == "x86_64" else "Features"
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        line = next(line for line in lines if line.startswith(kind))
        assert line.partition(":")[2].strip() in compile_cache.cpu(compile_cache.cpuinfo())


def test_programs_lie_in_the_users_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXALIGN_CACHE", str(tmp_path))
    found = compile_cache.variables({})
    path = Path(found["JAX_COMPILATION_CACHE_DIR"])
    assert path.is_dir()
    assert path == compile_cache.own_folder(tmp_path / "compiled")
    assert compile_cache.variables(found) == {}
    own = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "7"}
    assert compile_cache.variables(own).keys() == found.keys() - own.keys()


def test_one_switch_turns_it_off(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXALIGN_CACHE", str(tmp_path))
    assert compile_cache.variables({compile_cache.SWITCH: "off"}) == {}
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_keeps_nothing(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JAXALIGN_CACHE", str(tmp_path / "file"))
    assert compile_cache.variables({}) == {}


def test_programs_that_were_not_read_for_a_month_are_removed(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXALIGN_CACHE", str(tmp_path))
    before = compile_cache.folder(tmp_path / "compiled", "0.1", "0.1", "an older CPU")
    before.mkdir(parents=True)
    old, new = before / "old-cache", before / "new-cache"
    for path, days in ((old, 31), (new, 29)):
        path.write_text("")
        os.utime(path, (time.time() - days * 86_400,) * 2)
    compile_cache.variables({})
    assert list(before.iterdir()) == [new]


def test_a_command_sets_it_before_jax_is_there(tmp_path):
    code = (
        "import sys\n"
        "from jaxalign.cli import main\n"
        "assert 'jax' not in sys.modules\n"
        "assert main(['import', 'auto', 'missing']) == 2\n"
        "import jax\n"
        "print(jax.config.jax_compilation_cache_dir)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name[:4] != "JAX_"}
    environment |= {"JAXALIGN_CACHE": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-W", "error", "-c", code]
    ran = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert Path(ran.stdout.strip()).parent == tmp_path / "compiled"
