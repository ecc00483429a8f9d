"""User reward models at work: answers ranked in a warm process, a million users in one file."""

import argparse
import functools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import harness

ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
ANSWERS = (
    "Green tea has less caffeine than coffee and keeps you awake more gently.",
    "It depends on what you like.",
    "Take the train: it is faster than the bus and you can read on the way.",
    "Honestly, both are fine!",
    "First boil the water, then add the pasta and a spoon of salt.",
    "I would not do that without asking a doctor first.",
    "Sure, here are three ideas for a small birthday party at home.",
    "The museum is closed on Mondays.",
)
WIDTH, ITEMS, CHOICES = 128, 10_000, 20
_ROWS_AT_ONCE = 2_000_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--users", type=int, default=1_000_000, help="0 for none")
    parser.add_argument("--lookups", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--no-rank", action="store_true", help="measure the users alone")
    parser.add_argument("--scratch", type=Path, help="folder for the users' files (temporary)")


def run(arguments: argparse.Namespace) -> int:
    """Measures both, and writes what is known after each."""
    result = harness.started("mrm_serving", "float32", "Measured on a CPU.")
    if not arguments.no_rank:
        ranking = functools.partial(_ranking, arguments.rounds)
        harness.attempt(result, "rank 8 short answers", ranking, arguments.out, _table)
    if arguments.users:
        job = functools.partial(_many_users, arguments)
        harness.attempt(result, f"{arguments.users:,} users", job, arguments.out, _table)
    print(_table(result))
    return 0


# Ranking ----------------------------------------------------------------------------------------


def _ranking(rounds: int) -> dict[str, Any]:
    """Seconds to rank the answers for an adapted user, beside encoding them with torch."""
    from jaxalign import mrm
    from jaxalign.mrm.config import FeatureConfig
    from jaxalign.mrm.serving import encode_texts

    model = _text_model(FeatureConfig(model=ENCODER))
    theirs, left_out = _torch_encoders()
    belief = mrm.init_belief(model.prior())
    answers = list(ANSWERS)
    ours = encode_texts(model, answers, keep=False)
    errors = {name: float(np.abs(encode() - ours).max()) for name, encode in theirs.items()}
    threads = {"all threads": os.cpu_count() or 1, "one thread": 1}
    sides = {
        f"{name}, {how}": functools.partial(_threaded, encode, count)
        for name, encode in theirs.items()
        for how, count in threads.items()
    }
    sides |= {
        "jaxalign, encode": lambda: encode_texts(model, answers, keep=False),
        "jaxalign, rank for a user": lambda: mrm.rank(model, "u0", answers),
        "jaxalign, rank for a belief": lambda: mrm.rank(model, belief, answers),
    }
    timings = harness.measure(sides, rounds=rounds)
    # On a busy machine torch's threads wait for one another: the better side of each counts.
    ratios = {
        name: {
            which: getattr(timings["jaxalign, rank for a user"], which)
            / min(getattr(timings[side], which) for side in sides if side.startswith(name))
            for which in ("best", "median")
        }
        for name in theirs
    }
    facts = {
        "answers": len(answers),
        "rank_to_encode": ratios,
        "largest_difference": errors,
        "left_out": left_out,
    }
    return harness.row("rank 8 short answers", timings, "jaxalign, rank for a user", **facts)


def _threaded(encode: Any, threads: int) -> np.ndarray:
    import torch

    torch.set_num_threads(threads)
    found: np.ndarray = encode()
    return found


def _text_model(features: Any) -> Any:
    """A model of hierarchical Bayes on the encoder's features, with one adapted user."""
    from dataclasses import replace

    from jaxalign import mrm
    from jaxalign.data import Features, from_columns
    from jaxalign.mrm.reduce import fit_projection

    rng = np.random.default_rng(0)
    values = rng.standard_normal((400, 384)).astype(np.float32)
    ids = tuple(f"i{n}" for n in range(len(values)))
    model = _model(fit_projection(values, WIDTH, 0.5), features)
    columns = {"user": ["u0"] * CHOICES, "chosen": ids[:CHOICES], "rejected": ids[CHOICES:40]}
    users = mrm.adapt_users(model, from_columns(columns, "memory"), Features(ids, values))
    return replace(model, users=users)


def _model(projection: Any, features: Any) -> Any:
    from jaxalign import mrm

    fitted = {
        "mean": np.zeros(WIDTH, np.float32),
        "cov": np.eye(WIDTH, dtype=np.float32),
    }
    method = mrm.make_method("bayes")
    candidate = {"strength": 1.0, "temperature": 1.0, "adapt": True}
    baseline = np.zeros(projection.matrix.shape[0])
    return mrm.UserModel(method, fitted, candidate, baseline, projection, features)


def _torch_encoders() -> tuple[dict[str, Any], dict[str, str]]:
    """What encodes the answers with torch, and what could not be measured and why."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    from jaxalign.models.resolve import resolve

    folder, answers = str(resolve(ENCODER).folder), list(ANSWERS)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    bert = AutoModel.from_pretrained(folder).eval()

    def encode() -> np.ndarray:
        with torch.inference_mode():
            batch = tokenizer(answers, padding=True, truncation=True, return_tensors="pt")
            states = bert(**batch).last_hidden_state
            mask = batch["attention_mask"][:, :, None].to(states.dtype)
            vectors = (states * mask).sum(1) / mask.sum(1)
            return torch.nn.functional.normalize(vectors, dim=1).numpy()

    sides: dict[str, Any] = {"transformers, mean-pooled": encode}
    try:
        from sentence_transformers import SentenceTransformer, __version__
    except ModuleNotFoundError as error:
        return sides, {"sentence-transformers": f"not installed ({error})"}
    encoder = SentenceTransformer(folder, device="cpu")
    name = f"sentence-transformers {__version__}"
    sides[name] = lambda: encoder.encode(answers, show_progress_bar=False)
    return sides, {}


# Many users -------------------------------------------------------------------------------------


def _many_users(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds and memory of `mrm adapt` for all users of a file, and of looking one up."""
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as name:
        root = Path(name)
        _write(root, arguments.users)
        common = ["mrm", "adapt", "--model", root / "run", "--data", root / "choices.parquet"]
        common += ["--features", root / "features.npz", "--out", root / "users.sqlite"]
        begun = time.perf_counter()
        command = [sys.executable, "-m", "jaxalign.cli", *map(str, [*common, "--skip-accuracy"])]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        with subprocess.Popen(command, env=environment) as process:
            peak = _peak_memory(process)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)
        seconds = time.perf_counter() - begun
        size = (root / "users.sqlite").stat().st_size
        lookups = json.loads(
            subprocess.run(
                [sys.executable, "-c", _LOOK_UP, root, str(arguments.lookups)],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        )
    return {
        "name": f"{arguments.users:,} users of {CHOICES} choices, {WIDTH} features",
        "users": arguments.users,
        "choices_file_bytes_in_memory": arguments.users * CHOICES * 6 * 4,
        "adapt_seconds": seconds,
        "peak_memory_bytes": peak,
        "file_bytes": size,
        "bytes_per_user": size / arguments.users,
        **lookups,
    }


def _peak_memory(process: subprocess.Popen[bytes]) -> int:
    """Largest resident memory in bytes of a process, when it has ended.

    `getrusage` of a child is never below the memory of the process that started it, so that the
    kernel's own high-water mark is read while the process runs.
    """
    peak = 0
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        peak = max(peak, int(found[1]) * 1024 if found else 0)
        time.sleep(0.2)
    return peak


_LOOK_UP = """
import json, resource, sys, time
import numpy as np
from jaxalign import mrm
folder, count = sys.argv[1], int(sys.argv[2])
model = mrm.load(folder + "/run")
start = time.perf_counter()
users = mrm.open_users(folder + "/users.sqlite", model.digest)
opened = time.perf_counter() - start
rng, times, posteriors = np.random.default_rng(0), [], []
names = [f"u{n:07d}" for n in rng.integers(0, len(users), count)]
for name in names:
    start = time.perf_counter()
    record = users.get(name)
    times.append(time.perf_counter() - start)
    state = mrm.read_state(model, record)
    mean, cov = mrm.weights_of(model, state)
    posteriors.append(time.perf_counter() - start)
quantiles = lambda some: np.quantile(some, [0.5, 0.99, 1]).tolist()
print(json.dumps({"open_seconds": opened, "lookup_seconds": quantiles(times),
    "lookup_and_posterior_seconds": quantiles(posteriors[1:])}))
"""


def _write(root: Path, users: int) -> None:
    """A saved model, features of items, and the users' choices as Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from jaxalign import mrm
    from jaxalign.mrm.config import FeatureConfig
    from jaxalign.mrm.reduce import identity

    rng = np.random.default_rng(0)
    values = (rng.standard_normal((ITEMS, WIDTH)) / np.sqrt(WIDTH)).astype(np.float32)
    ids = np.array([f"i{n:05d}" for n in range(ITEMS)])
    np.savez(root / "features.npz", features=values, ids=ids)
    mrm.save(root / "run", _model(identity(WIDTH), FeatureConfig(path="features.npz")))
    names = pa.array(ids.tolist())
    schema = pa.schema([(column, pa.string()) for column in ("user", "chosen", "rejected")])
    with pq.ParquetWriter(root / "choices.parquet", schema) as writer:
        step = _ROWS_AT_ONCE // CHOICES
        for start in range(0, users, step):
            count = min(step, users - start)
            who = pa.array([f"u{n:07d}" for n in range(start, start + count)])
            chosen = rng.integers(0, ITEMS, count * CHOICES)
            rejected = (chosen + rng.integers(1, ITEMS, count * CHOICES)) % ITEMS
            # Each pair always in one of its orders, so that no user chooses one both ways.
            low, high = np.minimum(chosen, rejected), np.maximum(chosen, rejected)
            odd = (low + high) % 2 == 1
            chosen, rejected = np.where(odd, low, high), np.where(odd, high, low)
            columns = [
                who.take(pa.array(np.repeat(np.arange(count), CHOICES))),
                names.take(pa.array(chosen)),
                names.take(pa.array(rejected)),
            ]
            writer.write_table(pa.table(columns, schema=schema))


def _table(result: dict[str, Any]) -> str:
    parts = []
    for row in result["rows"]:
        if "adapt_seconds" in row:
            lines = [
                ["adapted in one command", f"{row['adapt_seconds']:.0f} s"],
                ["peak memory", f"{row['peak_memory_bytes'] / 2**30:.1f} GiB"],
                ["file", f"{row['bytes_per_user'] / 1024:.1f} KiB per user"],
                *(
                    [f"{what}, median / 99 % / longest", _milliseconds(row[key])]
                    for what, key in (
                        ("one user looked up", "lookup_seconds"),
                        ("the same with the covariance", "lookup_and_posterior_seconds"),
                    )
                ),
            ]
            parts.append(harness.table([row["name"], ""], lines))
        else:
            kinds = ("best", "median")
            lines = [
                [side, *(harness.shown(t[kind]) for kind in kinds)]
                for side, t in row["seconds"].items()
            ]
            for name, ratio in row["rank_to_encode"].items():
                lines.append([f"rank / {name}", *(f"{ratio[kind]:.2f}" for kind in kinds)])
            lines += [[name, f"left out: {why}", ""] for name, why in row["left_out"].items()]
            parts.append(harness.table([row["name"], *kinds], lines))
    return "\n".join(parts)


def _milliseconds(seconds: list[float]) -> str:
    return " / ".join(f"{1000 * value:.2f}" for value in seconds) + " ms"
