"""Every step that the GPU benchmarks time, compiled for an H200 that need not be there: its bytes.

Beside its memory stands its work on paper, see `benchmarks.roofline`. `--topology FILE` as in
`moc_memory`. Without it the same steps are compiled at tiny sizes for the devices of this machine.
All arrays are shapes alone; rows of earlier runs in `--out` are kept.
"""

import argparse
import json
import re
import time
from collections.abc import Callable, Collection, Mapping
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from benchmarks import (
    adapters,
    harness,
    logprob,
    moc_memory,
    models,
    mrm,
    palm,
    pplug,
    pplug_model,
    roofline,
)
from benchmarks import sizes as sizes_of
from benchmarks.compiled_sizes import FULL, TINY, Sizes
from benchmarks.moc_memory import GIB
from jaxalign.kernels.scalarize.shapes import ROUTES, SWEEPS
from jaxalign.models.device_defaults import training_options

LIMIT = 139 * GIB  # memory of an H200
VERSIONS = ("jax", "jaxlib", "flax", "optax")
_BYTES = ("arguments", "temporary", "outputs", "aliased", "peak")
_CUDNN = re.compile(r'custom_call_target="([^"]*cudnn[^"]*)"')


class Place(NamedTuple):
    """Where programs are compiled for.

    Attributes:
        mesh: of one device.
        described: whether that device is a GPU which the process does not have.
        sizes: of the arrays.
    """

    mesh: Any
    described: bool
    sizes: Sizes

    def held(self, tree: Any) -> Any:
        """Shapes of a tree of arrays or shapes, whole on the device."""
        import jax
        from jax.sharding import NamedSharding, PartitionSpec

        whole = NamedSharding(self.mesh, PartitionSpec())
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), tree
        )


class Program(NamedTuple):
    """What is compiled, and the least that it could do.

    Attributes:
        function: jitted.
        arguments: as shapes.
        trips: turns of a loop that ends by its data.
        options: of the compiler, where the card is described.
        least: bytes and operations that each phase cannot do without; none where they are the
            bytes of arguments and results.
    """

    function: Any
    arguments: tuple[Any, ...]
    trips: int = 1
    options: Mapping[str, str] = MappingProxyType({})
    least: tuple[tuple[float, float], ...] = ()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--topology", type=Path, help="file whose h200_mesh() describes a card")
    parser.add_argument("--only", nargs="+", default=[""], help="rows whose names begin so")


def run(arguments: argparse.Namespace) -> int:
    """Compiles every row; one that fails is named and the others go on."""
    import jax

    described = arguments.topology is not None
    place = Place(moc_memory.place(arguments.topology), described, FULL if described else TINY)
    programs = _programs(place)
    chosen = [name for name in programs if name.startswith(tuple(arguments.only))]
    if not chosen:
        raise SystemExit(f"--only {' '.join(arguments.only)}: no such row in {list(programs)}")
    target = "H200, described" if described else jax.default_backend()
    result = _kept(arguments.out / "result.json", target, programs)
    console = Console(stderr=True, highlight=False)
    for name in chosen:
        console.print(f"compiling {name} ...")
        for part in ("rows", "failed"):
            result[part] = [row for row in result[part] if row["name"] != name]
        try:
            with moc_memory.made_for(arguments.topology):
                result["rows"].append({"name": name, **compiled(programs[name](), described)})
        except Exception as error:  # whatever a compiler refuses: the other rows go on
            first = f"{type(error).__name__}: {error}".split("\n")[0]
            result["failed"].append({"name": name, "why": first})
        finally:
            jax.clear_caches()
        for part in ("rows", "failed"):
            result[part].sort(key=lambda row: list(programs).index(row["name"]))
        harness.write(arguments.out, result, _table(result))
    print(_table(result))
    return 0


def compiled(program: Program, described: bool) -> dict[str, Any]:
    """What the compiler says of a program: bytes, calls of cuDNN, work, seconds that it took."""
    began = time.perf_counter()
    lowered = program.function.lower(*program.arguments)
    # There is no card to try kernels on.
    options = {"xla_gpu_autotune_level": 0, **program.options} if described else None
    traced = time.perf_counter()
    found = lowered.compile(compiler_options=options)
    done = time.perf_counter()
    used, text = moc_memory.memory(found.memory_analysis()), found.as_text() or ""
    least = program.least or ((used["arguments"] + used["outputs"], 0.0),)
    return {
        "bytes": used,
        "fits": used["peak"] < LIMIT,
        "cudnn": sorted(set(_CUDNN.findall(text))),
        "roofline": roofline.summary(text, program.trips, least),
        "seconds": {"lower": traced - began, "compile": done - traced},
    }


def _kept(path: Path, target: str, known: Collection[str]) -> dict[str, Any]:
    """Known rows of earlier runs for this target with these versions, and what they ran on."""
    machine = harness.machine()
    fresh: dict[str, Any] = {"rows": [], "failed": []}
    before = json.loads(path.read_text()) if path.exists() else fresh
    versions = before.get("machine", {}).get("versions", {})
    same = all(versions.get(name) == machine["versions"].get(name) for name in VERSIONS)
    if before.get("target") != target or not same:
        before = fresh
    runs = [*before.get("earlier", []), *([before["machine"]] if "machine" in before else [])]
    return {
        "benchmark": "compiled",
        "machine": machine,
        "earlier": runs,
        "target": target,
        "limit_bytes": LIMIT,
        **{part: [row for row in before[part] if row["name"] in known] for part in fresh},
    }


def _programs(place: Place) -> dict[str, Callable[[], Program]]:
    """What makes each row's program."""
    sizes = place.sizes
    made: dict[str, Callable[[], Program]] = {}
    for tokens in sizes.tokens:
        for backward in (False, True):
            name = f"logprob {tokens:,}, forward{' + backward' if backward else ''}"
            made[name] = partial(_logprob, place, tokens, backward)
    for size in sizes.decoded:
        for batch in sizes.batches:
            made[f"decode {size} batch {batch}"] = partial(_decode, place, size, batch)
    for size, lora, rows in sizes.trained:
        name = f"train {size} {'LoRA' if lora else 'full'} batch {rows}"
        made[name] = partial(_train, place, size, lora, rows)
    for policy in sizes.recomputed:
        size, lora, rows = sizes.trained[-1]
        made[f"train {size} LoRA batch {rows}, {policy}"] = partial(
            _train, place, size, lora, rows, policy
        )
    for size in sizes.mixed[0]:
        made[f"adapters {size}"] = partial(_mixed, place, size)
    for size in sizes.preferences:
        made[f"mrm epoch {size}"] = partial(_epoch, place, size)
        made[f"mrm adapt {size}"] = partial(_adapt, place, size)
    made["palm sweep"] = partial(_sweep, place)
    made["palm route"] = partial(_route, place)
    for form in ("exact", "flat"):
        made[f"pplug personas {form}"] = partial(_personas, place, form)
    for size in sizes.plugs:
        made[f"pplug train {size}"] = partial(_plug_train, place, size)
        made[f"pplug generate {size}"] = partial(_plug_generate, place, size)
    parts = cache(partial(_moc, place))
    for part in ("rollout", "score", "update"):
        made[f"moc {part} {sizes.moc}"] = partial(lambda part: parts()[part], part)
    return made


def _shapes(make: Callable[..., tuple[Any, Any]], *arguments: Any) -> tuple[Any, Any]:
    """The two results of a function that is only traced: the first as it is, of arrays shapes."""
    import jax

    kept = []

    def traced(*arguments: Any) -> Any:
        still, arrays = make(*arguments)
        kept.append(still)
        return arrays

    arrays = jax.eval_shape(traced, *arguments)
    return kept[-1], arrays


def _model(place: Place, size: str) -> tuple[Any, Any]:
    return _shapes(partial(models.random_model, size, place.sizes.dtype))


def _array(dtype: str, *shape: int) -> Any:
    import jax

    return jax.ShapeDtypeStruct(shape, dtype)


def _logprob(place: Place, tokens: int, backward: bool) -> Program:
    import jax

    sizes, summed = place.sizes, logprob.summed
    both = [_array(sizes.dtype, rows, sizes.width) for rows in (tokens, sizes.vocabulary)]
    arguments = (*both, _array("int32", tokens))
    # The states' gradient is one more product; the table is frozen.
    flops = 2.0 * tokens * sizes.width * sizes.vocabulary * (2 if backward else 1)
    read = sum(array.size * array.dtype.itemsize for array in both)
    function = jax.jit(jax.grad(summed) if backward else summed)
    return Program(function, place.held(arguments), least=((read, flops),))


def _decode(place: Place, size: str, batch: int) -> Program:
    config, params = _model(place, size)
    return _generated(place, config, params, (batch, place.sizes.prompt), place.sizes.new)


def _mixed(place: Place, size: str) -> Program:
    import jax

    from jaxalign.models import lora

    config, params = _model(place, size)
    shape, settings = place.sizes.mixed[1], lora.LoraConfig(adapters.RANK, 2 * adapters.RANK)

    def stacked(key: jax.Array, params: Any) -> Any:
        own = lora.scaled(lora.init(key, settings, params), settings)
        own = jax.tree.map(lambda leaf: leaf.astype(place.sizes.dtype), own)
        return lora.stack([own] * shape.adapters)

    stack = jax.eval_shape(stacked, jax.random.key(0), params)
    rows = np.arange(shape.batch, dtype=np.int32) % shape.adapters
    given = (shape.batch, shape.prompt)
    return _generated(place, config, params, given, shape.new, adapters=stack, rows=rows)


def _generated(
    place: Place,
    config: Any,
    params: Any,
    shape: tuple[int, int],
    new: int,
    prefix: Any = None,
    **adapted: Any,
) -> Program:
    """The one program of `generate`, for answers that are drawn greedily."""
    import jax
    import jax.numpy as jnp

    from jaxalign.models.generate import Prompt, decode_jit, prepare_decode
    from jaxalign.models.sampling import Sampling

    settings, key = Sampling(max_tokens=new, temperature=0.0), jax.random.key(0)
    lengths = np.full(shape[0], shape[1], np.int32)
    prompt = Prompt(np.zeros(shape, np.int32), lengths, prefix)
    spec, inputs, prompt = prepare_decode(config, params, prompt, key, settings, **adapted)
    batch, length = shape
    width = np.dtype(jnp.dtype(config.dtype)).itemsize
    read = width * (sizes_of.matrix_parameters(config) + sizes_of.unembedding_parameters(config))
    steps = new - 1
    least = (
        (read, sizes_of.forward_flops(config, batch, length, 1)),
        (steps * sizes_of.decode_bytes(config, batch, length + new // 2, width), 0.0),
    )
    return Program(decode_jit, (spec, *place.held((inputs, prompt))), trips=steps, least=least)


def _train(place: Place, size: str, lora: bool, rows: int, remat: str | None = None) -> Program:
    import jax

    make = partial(models.model_to_train, size, place.sizes.dtype, lora, remat=remat)
    config, params = _shapes(make)
    step, state = _shapes(lambda params: models.training_step(config, params, lora), params)
    batch = {"tokens": _array("int32", rows, place.sizes.length + 1)}
    arguments = place.held((state, params if lora else None, batch))
    flops = sizes_of.training_flops(config, rows, place.sizes.length, lora)
    read = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((params, state.params)))
    options = training_options() or {}
    return Program(
        jax.jit(step, donate_argnums=0), arguments, options=options, least=((read, flops),)
    )


def _epoch(place: Place, size: str) -> Program:
    import jax

    from jaxalign.data.batching import Pairs
    from jaxalign.mrm import train
    from jaxalign.mrm.train import run_epochs

    shape = mrm.SIZES[size]
    config = mrm.recipe(shape)
    start = partial(train.init_states, config=config, feature_dim=shape.width, users=shape.seen)
    states = jax.eval_shape(start, jax.random.split(jax.random.key(0), 1))
    number, weight = (_array(dtype, shape.seen, shape.given) for dtype in ("int32", "float32"))
    pairs = Pairs(number, number, weight, number)
    features = _array("float32", 2 * shape.seen * shape.given, shape.width)
    table = jax.eval_shape(partial(train.item_table, config=config), features, pairs)
    arguments = place.held((states, table, pairs))
    return Program(run_epochs, (*arguments, config, mrm.EPOCHS_A_CALL, shape.given))


def _adapt(place: Place, size: str) -> Program:
    import jax

    from jaxalign.mrm import init

    shape = mrm.SIZES[size]
    config = mrm.recipe(shape)
    make = partial(init, config=config, feature_dim=shape.width)
    params = jax.eval_shape(make, jax.random.key(0))
    users = shape.seen + shape.unseen

    sides = (_array("float32", users, pairs, shape.width) for pairs in (shape.given, shape.asked))
    mask = _array("float32", users, shape.given)
    return Program(jax.jit(mrm.served(config)), place.held((params, *sides, mask)))


def _sweep(place: Place) -> Program:
    import jax

    from jaxalign.palm import sweep

    shape = SWEEPS[place.sizes.sweep]
    rewards = _array("float32", shape.prompts, shape.candidates, shape.rewards)
    log_ref = _array("float32", shape.prompts, shape.candidates)
    weights = _array("float32", shape.weights, shape.rewards)
    arrays = place.held((rewards, log_ref, weights))
    return Program(jax.jit(partial(sweep, beta=palm.BETA)), arrays)


def _route(place: Place) -> Program:
    import jax

    from jaxalign.palm import best_member

    shape = ROUTES[place.sizes.route]
    both = [_array("float32", count, shape.rewards) for count in (shape.users, shape.members)]
    return Program(jax.jit(best_member), place.held(both))


def _personas(place: Place, form: str) -> Program:
    import jax

    from jaxalign.pplug import PersonaConfig, aggregate, aggregate_flat, init_persona

    users, longest, mean, encoder, width = pplug.SIZES[place.sizes.personas]
    config = PersonaConfig()
    params = jax.eval_shape(
        lambda key: init_persona(key, config, encoder, width, 1.0), jax.random.key(0)
    )
    queries = _array("float32", users, encoder)
    function: Any
    if form == "exact":
        function = jax.vmap(partial(aggregate, config=config), (None, 0, 0, 0))
        items = _array("float32", users, longest, encoder), _array("bool", users, longest)
    else:
        function = partial(aggregate_flat, config=config)
        count = int(pplug.history_lengths(users, longest, mean).sum())
        count += pplug.padding(count)
        items = _array("float32", count, encoder), _array("int32", count)
    return Program(jax.jit(function), place.held((params, queries, *items)))


def _plug(place: Place, size: str, remat: str | None) -> tuple[Any, Any, Any]:
    """`pplug_model.plug`, all arrays as shapes."""

    def make() -> tuple[Any, Any]:
        plan, *trees = pplug_model.plug(size, place.sizes.dtype, shape.encoder, remat)
        return plan, trees

    shape = place.sizes.plugs[size]
    plan, (trained, params) = _shapes(make)
    return plan, trained, params


def _plug_train(place: Place, size: str) -> Program:
    import jax

    from jaxalign.pplug.answers import FrozenParts, answer_loss
    from jaxalign.train import optimiser
    from jaxalign.train.step import make_step

    shape = place.sizes.plugs[size]
    plan, trained, params = _plug(place, size, "nothing_saveable" if shape.remat else None)
    rule = optimiser.OptimiserConfig(rate=1e-4, weight_decay=1e-4)
    state = jax.eval_shape(
        lambda key, trained: optimiser.start(key, trained, rule), jax.random.key(0), trained
    )
    batch = {name: array[None] for name, array in pplug_model.batch(shape, plan).items()}
    step = make_step(partial(answer_loss, plan, place.mesh), rule, 1000)
    given = place.held((state, FrozenParts(params), batch))
    options = training_options() or {}
    return Program(jax.jit(step, donate_argnums=0), given, options=options)


def _plug_generate(place: Place, size: str) -> Program:
    shape = place.sizes.plugs[size]
    plan, _, params = _plug(place, size, None)
    soft = np.zeros((shape.batch, 2, plan.decoder.width), plan.decoder.dtype)
    return _generated(place, plan.decoder, params, (shape.batch, shape.prompt), shape.answer, soft)


def _moc(place: Place) -> dict[str, Program]:
    import jax

    given = argparse.Namespace(size=place.sizes.moc, config=moc_memory.CONFIG)
    programs, abstract, settings = moc_memory.programs_of(given, place.mesh)
    work = moc_memory.work(sizes_of.SIZES[place.sizes.moc], settings)
    return {
        part: Program(
            jax.jit(function, donate_argnums=donated),
            arguments,
            options=training_options() or {},
            **work[part],
        )
        for part, (function, arguments, donated) in moc_memory.parts_of(programs, abstract).items()
    }


def _table(result: dict[str, Any]) -> str:
    header = ["", *(f"{name}, GiB" for name in _BYTES), "fits", "cuDNN attention", "compiled in"]
    rows = [
        [
            row["name"],
            *(f"{row['bytes'][name] / GIB:.2f}" for name in _BYTES),
            "yes" if row["fits"] else "**no**",
            "yes" if row["cudnn"] else "no",
            harness.shown(row["seconds"]["compile"]),
        ]
        for row in result["rows"]
    ]
    text = f"{result['target']}; fits: within {result['limit_bytes'] / GIB:.0f} GiB.\n\n"
    text += harness.table(header, rows) + "\n" + roofline.table(result["rows"])
    return text + "".join(f"\n{row['name']} failed: {row['why']}\n" for row in result["failed"])
