"""Environments of processes that tests start, and tests in a process of their own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import compile_cache

MARK = "JAXALIGN_TEST_OPTIMISED"
TORCHLESS = Path(__file__).parent / "torchless"


def torchless():
    """Return an environment in which torch cannot be found.

    transformers imports torch wherever it is installed, which takes half of the processor time of
    a short command. No command needs torch.
    """
    paths = [str(TORCHLESS), os.environ.get("PYTHONPATH")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}


def optimised():
    """Return an environment whose programs are compiled well.

    What other tests compile runs at half the speed, see `compile_cache`: for minutes of computation
    in a few programs it pays to compile them well.
    """
    return torchless() | {"XLA_FLAGS": compile_cache.xla_flags(compile_cache.OPTIMISED), MARK: "1"}


def is_optimised():
    """Whether this process was started with the environment of `optimised`."""
    return MARK in os.environ


def run_test(name, root):
    """Run one test in a process of `optimised()`; return its outcome and what it printed.

    Args:
        name: the test's node id, relative to `root`.
        root: folder that the tests are started in.

    Returns:
        "passed", "skipped" or "failed", and the output of pytest.
    """
    command = [sys.executable, "-m", "pytest", name, "-m", "", "-n", "0", "-rs", "--no-header"]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider"],
        cwd=root, env=optimised(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    return outcome(done.returncode, done.stdout), done.stdout + done.stderr


def outcome(code, printed):
    """Return what became of the one test of a process, from its exit code and what it printed."""
    last = printed.strip().rpartition("\n")[2]
    found = re.search(r"\b1 (passed|skipped)\b", last)
    return found[1] if code == 0 and found else "failed"
