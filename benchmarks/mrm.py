"""MRM: a training epoch and per-user adaptation beside PyTorch, and training streamed from disk."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from benchmarks import harness
from benchmarks.harness import Side
from jaxalign.mrm.config import MRMConfig

PARTS = ("train", "adapt", "stream")
TOLERANCE = 1e-4
EPOCHS_A_CALL = 4  # of jaxalign: epochs are scanned, several in one call


class Shape(NamedTuple):
    """A data set and its recipe.

    Attributes:
        seen: users trained on.
        unseen: users adapted to beside them.
        given: choices of a user that are learned from.
        asked: choices of a user that are judged.
        rewards: K.
        steps: inner steps.
        batch: users of an outer step.
        width: E.
    """

    seen: int
    unseen: int
    given: int
    asked: int
    rewards: int
    steps: int
    batch: int
    width: int = 4096


# Half of a user's choices are learned from and half judged, as in the published split of PRISM;
# Reddit TL;DR names 150 and 50.
SIZES = {
    "small": Shape(100, 100, 10, 10, 2, 1, 2),
    "small_k8": Shape(100, 100, 10, 10, 8, 5, 20),
    "prism": Shape(644, 644, 15, 15, 2, 1, 2),
    "reddit": Shape(40, 0, 150, 50, 2, 1, 2),
    "hundred_thousand": Shape(90_000, 10_000, 4, 4, 8, 3, 64, 1024),
    "tiny": Shape(6, 3, 5, 4, 2, 2, 2, 32),
}
FEW = 10_000  # with more users, sides that take them one by one are left out: minutes an epoch


class Stream(NamedTuple):
    """A file of choices: users, choices of each, E, users of a block, epochs."""

    users: int
    pairs: int
    width: int
    block: int
    epochs: int


STREAMS = {"large": Stream(100_000, 8, 1024, 2048, 3), "tiny": Stream(50, 8, 32, 16, 2)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    sizes = [name for name in SIZES if name not in ("tiny", "hundred_thousand")]
    parser.add_argument("--sizes", nargs="*", choices=list(SIZES), default=sizes)
    parser.add_argument("--stream", choices=list(STREAMS), default="large")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--reference-repo", type=Path, help="the authors' code, as they publish it")
    parser.add_argument("--no-compiled", action="store_true", help="leave torch.compile out")
    parser.add_argument("--scratch", type=Path, help="folder for the streamed file, 3.3 GB")


def run(arguments: argparse.Namespace) -> int:
    """Checks, measures and writes every size; a side that fails is named and the others go on."""
    import torch  # named among the versions

    console = Console(stderr=True)
    machine = {**harness.machine(), "torch_device": _device(torch)}
    result = _kept(arguments.out / "result.json", machine)
    result["ceilings"] = _higher(harness.ceilings(), result["ceilings"])
    timed = [part for part in arguments.parts if part != "stream"]
    for size in arguments.sizes if timed else ():
        console.print(f"{size} {tuple(SIZES[size])} ...", highlight=False)
        world = World(SIZES[size], arguments)
        for part in timed:
            name = f"{part} {size}"
            result["rows"] = [row for row in result["rows"] if row["name"] != name]
            result["failed"] = [f for f in result["failed"] if not f["name"].startswith(name + ",")]
            load = os.getloadavg()[0]
            facts, sides = MAKE[part](world, result["failed"], name)
            timings = harness.measure(sides, arguments.rounds, limit=20.0)
            units, firsts = facts.pop("units"), facts.pop("firsts")
            for side, timing in timings.items():
                timings[side] = _divided(timing, units[side], firsts.get(side))
            result["rows"].append(harness.row(name, timings, "jaxalign", load=load, **facts))
            result["ceilings"] = _higher(harness.ceilings(), result["ceilings"])
            _write(arguments.out, result)
    if "stream" in arguments.parts:
        console.print("streamed ...", highlight=False)
        result["streamed"] = _streamed(arguments)
    _write(arguments.out, result)
    print(_table(result))
    return 0


def _kept(path: Path, machine: dict[str, Any]) -> dict[str, Any]:
    """What was measured before on this machine with these versions, or nothing yet.

    `machine` is that of this run; `earlier` holds those of the runs whose figures may be kept.
    """
    fresh = {"benchmark": "mrm", "ceilings": {}, "rows": [], "failed": [], "streamed": None}
    before = json.loads(path.read_text()) if path.exists() else fresh
    same = ("processor", "cores", "devices", "versions", "torch_device")
    if any(before.get("machine", {}).get(name) != machine[name] for name in same):
        before = fresh
    runs = [*before.get("earlier", []), *([before["machine"]] if "machine" in before else [])]
    return {**before, "machine": machine, "earlier": runs}


def _higher(new: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """The better of two measurements of each ceiling: other work on the machine lowers them."""
    better = {name: (min if name == "launch_seconds" else max) for name in new if name != "dtype"}
    best = {name: pick(new[name], before.get(name, new[name])) for name, pick in better.items()}
    return {**new, **best}


def _write(out: Path, result: dict[str, Any]) -> None:
    """With what each side reads at least, over its time, beside the bytes/s of a read."""
    for row in result["rows"]:
        row["share_of_bandwidth"] = {
            side: row["bytes"] / timing["median"] / result["ceilings"]["read_bytes"]
            for side, timing in row["seconds"].items()
        }
    harness.write(out, result, _table(result))


def recipe(shape: Shape) -> MRMConfig:
    """Of all sides."""
    return MRMConfig(
        hidden_sizes=(shape.rewards,),
        inner_steps=shape.steps,
        eval_steps=shape.steps,
        users_per_batch=shape.batch,
    )


def served(config: MRMConfig) -> Callable[..., Any]:
    """What adaptation times: weights from the choices given, then scores [U, P] of those asked."""
    from jaxalign.mrm import adapt, base_rewards, score

    def function(params: Any, given: Any, asked: Any, mask: Any) -> Any:
        weights = adapt(params, base_rewards(params, given, config), mask, config)
        return score(weights, base_rewards(params, asked, config), config)

    return function


class World:
    """The same random choices for every side, and what each side makes of them.

    Attributes:
        shape: sizes.
        config: the recipe.
        given, asked: (chosen, rejected) features [U, P, E] on torch's device.
    """

    def __init__(self, shape: Shape, arguments: argparse.Namespace) -> None:
        import jax
        import torch

        from jaxalign.mrm import train

        torch.compiler.reset()  # each size compiled for itself, none for shapes of any kind
        self.shape = shape
        self.config = recipe(shape)
        self.compiled, self.reference = not arguments.no_compiled, arguments.reference_repo
        rng = np.random.default_rng(0)
        users, device = shape.seen + shape.unseen, _device(torch)

        def features(pairs: int) -> tuple[np.ndarray, np.ndarray]:
            size = (2, users, pairs, shape.width)
            made = rng.standard_normal(size, np.float32)
            return made[0], made[1]

        self.host_given, self.host_asked = features(shape.given), features(shape.asked)
        self.given, self.asked = (
            tuple(torch.from_numpy(part).to(device) for part in side)
            for side in (self.host_given, self.host_asked)
        )
        self.state = train.init_state(jax.random.key(0), self.config, shape.width, shape.seen)

    @property
    def start(self) -> Any:
        """The parameters before training, for torch."""
        import torch

        from benchmarks.mrm_torch import Start

        params = self.state.params
        kernel, weight = params["base"]["layer0"]["kernel"], params["weight_init"]
        device = self.given[0].device
        return Start(*(torch.tensor(np.array(x), device=device) for x in (kernel.T, weight)))

    def pairs(self) -> Any:
        """The seen users' choices for jaxalign: all chosen items, then all rejected ones."""
        import jax.numpy as jnp

        from jaxalign.data.batching import Pairs

        shape = (self.shape.seen, self.shape.given)
        number = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
        group = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
        arrays = (number, number + number.size, np.ones(shape, np.float32), group)
        return Pairs(*map(jnp.asarray, arrays))

    def references(self) -> Iterable[Any]:
        """The authors' code on these choices, if a copy is at hand."""
        from benchmarks.mrm_reference import Reference

        if self.reference is None or self.shape.seen > FEW:
            return []
        seen = slice(0, self.shape.seen)
        given, asked = (tuple(part[seen] for part in side) for side in (self.given, self.asked))
        return [Reference(self.reference, given[0], given[1], asked, self.config)]


def _train(
    world: World, failed: list[dict[str, str]], name: str
) -> tuple[dict[str, Any], dict[str, Side]]:
    import jax
    import jax.numpy as jnp

    from benchmarks.mrm_check import check_training
    from benchmarks.mrm_torch import Batched, Loop
    from jaxalign.mrm import train
    from jaxalign.mrm.train import run_epochs

    config, shape, pairs = world.config, world.shape, world.pairs()
    seen = slice(0, shape.seen)
    items = np.concatenate([part[seen].reshape(-1, shape.width) for part in world.host_given])
    table = jax.jit(train.item_table, static_argnums=2)(jnp.asarray(items), pairs, config)
    held = [jax.tree.map(lambda leaf: leaf[None], world.state)]

    def ours() -> Any:
        states, losses = run_epochs(held[0], table, pairs, config, EPOCHS_A_CALL, shape.given)
        held[0] = states
        return harness.wait(losses)

    chosen, rejected = (part[seen] for part in world.given)
    d = chosen - rejected
    sides: dict[str, Side] = {"jaxalign": ours}
    makes: dict[str, Callable[[], Any]] = {
        "torch batched": lambda: Batched(world.start, d, config),
    }
    if shape.seen <= FEW:
        makes = {"torch loop": lambda: Loop(world.start, chosen, rejected, config), **makes}
    if world.compiled:
        makes["torch compiled"] = lambda: Batched(world.start, d, config, compiled=True)
    errors: dict[str, float] = {}
    firsts: dict[str, float | None] = {}
    for side, make in makes.items():
        with _named(failed, f"{name}, {side}"):
            made = make()
            errors[side], firsts[side] = check_training(world, table, pairs, made)
            sides[side] = _waited(made.epoch)
    for reference in world.references():
        errors["authors"], _ = check_training(world, table, pairs, reference)
        sides["authors"] = _waited(reference.epoch)
    _within(errors, name)
    facts = {
        "shape": shape._asdict(),
        "largest_error": errors,
        "bytes": 4 * shape.seen * shape.given * shape.width,
        "units": {side: EPOCHS_A_CALL if side == "jaxalign" else 1 for side in sides},
        "firsts": firsts,
        "unit": "epoch",
    }
    return facts, sides


def _adapt(
    world: World, failed: list[dict[str, str]], name: str
) -> tuple[dict[str, Any], dict[str, Side]]:
    import jax
    import jax.numpy as jnp

    from benchmarks.mrm_torch import Batched, Loop

    config, shape = world.config, world.shape
    users = shape.seen + shape.unseen
    given, asked = (jnp.asarray(s[0] - s[1]) for s in (world.host_given, world.host_asked))
    mask = jnp.ones(given.shape[:2], jnp.float32)

    function, arrays = jax.jit(served(config)), (world.state.params, given, asked, mask)
    sides: dict[str, Side] = {"jaxalign": lambda: harness.wait(function(*arrays))}
    exact, first = harness.timed(lambda: np.asarray(function(*arrays)))
    d_given, d_asked = (side[0] - side[1] for side in (world.given, world.asked))
    others: dict[str, Side] = {}
    if users <= FEW:
        loop = Loop(world.start, *world.given, config)
        others["torch loop"] = lambda: loop.serve(world.given, world.asked)
    for side, compiled in (("torch batched", False), ("torch compiled", True)):
        if world.compiled or not compiled:
            batched = Batched(world.start, d_given, config, compiled)
            others[side] = lambda batched=batched: batched.serve(d_given, d_asked)
    errors: dict[str, float] = {}
    firsts = {"jaxalign": first}
    for side, call in others.items():
        with _named(failed, f"{name}, {side}"):
            waited = _waited(call)
            found, firsts[side] = harness.timed(waited)
            difference = np.abs(found.cpu().numpy() - exact).max()
            errors[side] = float(difference / np.abs(exact).max())
            sides[side] = waited
    counts = dict.fromkeys(sides, users)
    for reference in world.references():
        right = (exact[: shape.seen] > 0).mean(1)
        theirs = np.array(reference.serve(world.start))
        # Their answer is each user's accuracy: at most one pair in a thousand may be too close.
        errors["authors"] = float(np.abs(right - theirs).mean()) / 10
        sides["authors"] = _waited(lambda r=reference: r.serve(world.start))
        counts["authors"] = shape.seen
    _within(errors, name)
    facts = {
        "shape": shape._asdict(),
        "largest_error": errors,
        "bytes": 4 * (shape.given + shape.asked) * shape.width,
        "units": counts,
        "firsts": firsts,
        "unit": "user",
    }
    return facts, sides


MAKE: dict[str, Any] = {"train": _train, "adapt": _adapt}


class _named:
    """A context in which a failure is written down and does not stop the others."""

    def __init__(self, failed: list[dict[str, str]], name: str) -> None:
        self.failed, self.name = failed, name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
        if kind is None or not issubclass(kind, Exception):
            return False
        lines = [line for line in str(error).splitlines() if line.strip()]
        self.failed.append({"name": self.name, "why": f"{kind.__name__}: {lines[0][:300]}"})
        return True


def _within(errors: dict[str, float], name: str) -> None:
    wrong = {side: error for side, error in errors.items() if not error <= TOLERANCE}
    if wrong:
        raise AssertionError(f"{name}: not the same result as jaxalign's: {wrong}")


def _waited(call: Callable[..., Any]) -> Side:
    return lambda: harness.wait(call())


def _device(torch: Any) -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _divided(timing: harness.Timing, units: int, first: float | None) -> harness.Timing:
    """Times of one epoch or one user; the first call whole, where it was made as a check if so."""
    each = {n: getattr(timing, n) / units for n in ("best", "low", "median", "high")}
    calls = timing.calls * units
    return harness.Timing(first or timing.first, **each, calls=calls, again=timing.again)


def _streamed(arguments: argparse.Namespace) -> dict[str, Any]:
    """The streamed run, in a process of its own, whose memory is then its own."""
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
        command = [sys.executable, "-m", "benchmarks.mrm_stream", folder, arguments.stream]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _table(result: dict[str, Any]) -> str:
    header = ["", "time", "beside jaxalign", "of a read's bandwidth", "largest error", "first call"]
    rows = []
    for row in result["rows"]:
        for side, timing in row["seconds"].items():
            rows.append(
                [
                    f"{row['name']}, {side}",
                    f"{harness.shown(timing['median'])} / {row['unit']}",
                    f"{row['times_as_fast'].get(side, 1.0):.3g} x",
                    f"{100 * row['share_of_bandwidth'][side]:.2g} %",
                    f"{row['largest_error'][side]:.0e}" if side in row["largest_error"] else "",
                    harness.shown(timing["first"]),
                ]
            )
    text = harness.table(header, rows)
    found = result["streamed"]
    if found:
        text += (
            f"\nStreamed: {found['users']:,} users x {found['pairs']} choices, E = "
            f"{found['width']:,}, {found['file_bytes'] / 1e9:.2f} GB on disk: "
            f"{harness.shown(found['seconds'])} / epoch, each byte read "
            f"{' to '.join(f'{times:g}' for times in sorted(set(found['reads_of_each_byte'])))} "
            f"times an epoch, at most {found['peak_anonymous_bytes'] / 2**30:.2f} GiB of "
            f"anonymous memory ({found['start_anonymous_bytes'] / 2**30:.2f} before).\n"
        )
    return text + "".join(f"\n{f['name']} failed: {f['why']}\n" for f in result["failed"])
