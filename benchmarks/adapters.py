"""Many users in one batch: decoding under several LoRA adapters at once, beside peft.

Row i has adapter i modulo A, on every side that mixes. `one after another` is what one does without
mixed batches: a call for each adapter. peft's `adapter_names` goes from adapter to adapter within
each matrix. Both libraries hold the same weights, so that their answers can be compared.
"""

import argparse
import importlib.util
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

from benchmarks import harness, sizes
from benchmarks.harness import Side
from benchmarks.models import random_model, torch_model

RANK = 16
ONE, SINGLY, PEFT_ONE = "jaxalign, 1 adapter", "jaxalign, one after another", "peft, 1 adapter"
# Least agreement of mixed answers with others. In bfloat16 two orders of a sum may choose
# another of two tokens that are about equally likely, and all behind it are then others too:
# there the floor holds for tokens that follow the same ones.
FLOORS = {"float32": 1.0, "bfloat16": 0.9}
PEFT_FLOOR = 0.99
# Of rows under another adapter, how many tokens must differ: or equal answers would prove nothing.
LEAST_DIFFERENCE = 0.5


class Shape(NamedTuple):
    """Sizes of a batch: B rows, A adapters, tokens of a prompt and of an answer."""

    batch: int
    adapters: int
    prompt: int
    new: int

    @property
    def mixed(self) -> str:
        """The side that the others are judged by."""
        return f"jaxalign, {self.adapters} adapters"

    @property
    def peft_mixed(self) -> str:
        """Its counterpart."""
        return f"peft, {self.adapters} adapters"


CHECKED = Shape(8, 4, 64, 32)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--sizes", nargs="+", choices=list(sizes.SIZES), default=None)
    parser.add_argument("--batch", type=int, default=None, help="rows, a multiple of --adapters")
    parser.add_argument("--adapters", type=int, default=None, help="at least 2")
    parser.add_argument("--prompt", type=int, default=None, help="tokens of a prompt")
    parser.add_argument("--new", type=int, default=None, help="tokens of an answer")
    parser.add_argument("--dtype", choices=tuple(FLOORS), default=None)
    parser.add_argument("--rounds", type=int, default=7)


def run(arguments: argparse.Namespace) -> int:
    """Checks and measures every size; one that fails is named and the others go on."""
    import jax

    accelerated = jax.default_backend() != "cpu"
    dtype = arguments.dtype or ("bfloat16" if accelerated else "float32")
    shape = _shape(arguments, accelerated)
    result = harness.started("adapters", dtype)
    peft = importlib.util.find_spec("peft") is not None
    if not peft:
        result["failed"].append({"name": "peft", "why": "peft is not installed"})

    def attempt(name: str, job: Callable[[], dict[str, Any] | None]) -> bool:
        return harness.attempt(result, name, job, arguments.out, _table)

    # Where equal can mean equal: once, before anything is timed in another dtype.
    if dtype != "float32" and not attempt("check in float32", partial(_check, result, peft)):
        print(_table(result))
        return 1
    for size in arguments.sizes or (["1B", "8B"] if accelerated else ["tiny"]):
        name = f"{size} batch {shape.batch}"
        attempt(name, partial(_measured, result, peft, name, size, shape, arguments.rounds))
    print(_table(result))
    return 0


def _check(result: dict[str, Any], peft: bool) -> None:
    """The sides agree in float32, at a size where that takes seconds."""
    name, dtype = "check in float32", "float32"
    with _precision(dtype):
        _, sides = _sides(name, "tiny", dtype, CHECKED, peft, result)
        _, found = _answers(name, sides, result)
    result["check"] = {"shape": CHECKED._asdict(), "agreement": _agreement(found, dtype, CHECKED)}


def _measured(
    result: dict[str, Any], peft: bool, name: str, size: str, shape: Shape, rounds: int
) -> dict[str, Any]:
    """One line of the result."""
    dtype = result["dtype"]
    with _precision(dtype):
        facts, sides = _sides(name, size, dtype, shape, peft, result)
        first, found = _answers(name, sides, result)
        agreement = _agreement(found, dtype, shape)
        timings = harness.measure(sides, rounds, firsts=first)
    row = harness.row(name, timings, shape.mixed, **facts, agreement=agreement)
    return _judged(row, timings, shape, result["ceilings"])


def _shape(arguments: argparse.Namespace, accelerated: bool) -> Shape:
    usual = Shape(64, 8, 128, 64) if accelerated else CHECKED
    found = Shape(*(getattr(arguments, name) or size for name, size in usual._asdict().items()))
    if found.adapters < 2 or found.batch % found.adapters:
        raise SystemExit(
            f"{found.batch} rows and {found.adapters} adapters; expected two adapters or more, and "
            "as many rows for each: change --batch or --adapters."
        )
    return found


def _precision(dtype: str) -> AbstractContextManager[Any]:
    """float32 as torch takes it, which multiplies in no smaller format unless it is told to."""
    import jax

    return jax.default_matmul_precision("highest") if dtype == "float32" else nullcontext()


def _sides(
    name: str, size: str, dtype: str, shape: Shape, peft: bool, result: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Side]]:
    """What is measured; every side returns its answers, [B, new] or parts of them in order."""
    import jax
    import jax.numpy as jnp

    from jaxalign.models import lora
    from jaxalign.models.generate import generate
    from jaxalign.models.sampling import Sampling

    config, params = random_model(size, dtype)
    params = jax.jit(_spread, donate_argnums=0)(params)
    settings = lora.LoraConfig(rank=RANK, alpha=2 * RANK)
    make = jax.jit(partial(_adapter, settings))
    trees = [make(jax.random.key(1 + number), params) for number in range(shape.adapters)]
    scaled = [lora.scaled(tree, settings) for tree in trees]
    stacked = jax.jit(lora.stack)(scaled)
    high = config.vocab_size
    tokens = np.random.default_rng(0).integers(0, high, (shape.batch, shape.prompt), np.int32)
    rows = np.arange(shape.batch, dtype=np.int32) % shape.adapters
    options = Sampling(max_tokens=shape.new, temperature=0.0)
    key = jax.random.key(0)

    def ours(held: Any, **adapted: Any) -> Any:
        lengths = np.full(len(held), shape.prompt, np.int32)
        return generate(config, params, held, lengths, key, options, **adapted).tokens

    held = jnp.asarray(tokens)
    parts = [held[number :: shape.adapters] for number in range(shape.adapters)]
    first = scaled[0]
    by_adapter = list(zip(parts, scaled, strict=True))
    sides: dict[str, Side] = {
        shape.mixed: lambda: harness.wait(ours(held, adapters=stacked, rows=rows)),
        ONE: lambda: harness.wait(ours(held, adapters=first)),
        SINGLY: lambda: harness.wait([ours(part, adapters=own) for part, own in by_adapter]),
    }
    if peft:
        try:
            model = _torch_weights(size, dtype, config, params)
            model = _with_adapters(model, trees, settings, size, config)
            sides |= _peft_sides(model, tokens, shape)
        except Exception as error:  # whatever the other library trips over, ours go on
            harness.failed(result, f"{name}, peft", error)
    return _facts(config, dtype, shape, trees[0]), sides


def _spread(params: Any) -> Any:
    """The layers' matrices scaled to keep a vector's length.

    A small model as it is drawn repeats its last token whatever its adapter, and says nothing.
    """
    import jax

    def at(path: Any, leaf: Any) -> Any:
        return leaf / (0.02 * leaf.shape[-1] ** 0.5) if path[-1].key == "weight" else leaf

    return jax.tree.map_with_path(at, params)


def _adapter(settings: Any, key: Any, params: Any) -> Any:
    """A random adapter whose updates are about a quarter of what the matrices give."""
    import jax
    import jax.numpy as jnp

    from jaxalign.models import lora

    blank = jax.eval_shape(partial(lora.init, key, settings), params)
    pairs, structure = jax.tree.flatten(blank, is_leaf=lora.is_pair)
    parts = [pair[name] for pair in pairs for name in ("a", "b")]
    # All numbers at once: a generator for every matrix takes long to compile.
    drawn = jax.random.uniform(key, (sum(part.size for part in parts),), minval=-1.0)
    split = iter(jnp.split(drawn, np.cumsum([part.size for part in parts])[:-1]))
    dtype = params["embed"]["table"].dtype

    def at(part: Any, bound: float) -> Any:
        return (next(split) * bound).reshape(part.shape).astype(dtype)

    made = [{"a": at(pair["a"], pair["a"].shape[1] ** -0.5), "b": at(pair["b"], 0.08)}
            for pair in pairs]  # fmt: skip
    return jax.tree.unflatten(structure, made)


def _facts(config: Any, dtype: str, shape: Shape, adapter: Any) -> dict[str, Any]:
    import jax
    import jax.numpy as jnp

    itemsize = jnp.dtype(dtype).itemsize
    each = sum(leaf.size for leaf in jax.tree.leaves(adapter))
    context = shape.prompt + shape.new // 2
    once = sizes.decode_bytes(config, shape.batch, context, itemsize)
    return {
        "tokens": shape.batch * shape.new,
        "bytes": shape.new * (once + itemsize * each * shape.adapters),
        "bytes_one_adapter": shape.new * (once + itemsize * each),
        "shape": {**shape._asdict(), "rank": RANK, "adapter_parameters": each},
    }


def _torch_weights(size: str, dtype: str, config: Any, params: Any) -> Any:
    """The model of `transformers` with our parameters."""
    import torch

    from jaxalign.models.language import layout

    model, _ = torch_model(size, dtype)
    table, theirs = layout(config), dict(model.named_parameters())
    table = table.unstacked() if config.unstacked else table
    with torch.no_grad():
        for leaf in table.leaves:
            value = params
            for step in leaf.path:
                value = value[step]
            for layer, name in enumerate(table.names(leaf)):
                one = torch.from_dlpack(harness.wait(value[layer] if leaf.layered else value))
                theirs[name].copy_(one.T if leaf.transpose else one)
    return model


def _with_adapters(model: Any, trees: list[Any], settings: Any, size: str, config: Any) -> Any:
    """The model of peft with our adapters, through files as one who trained them here would."""
    from peft import PeftModel

    from jaxalign.models.peft import save_adapter

    with TemporaryDirectory() as folder:
        for number, tree in enumerate(trees):
            place = Path(folder) / str(number)
            save_adapter(place, tree, settings, size, config)
            if number == 0:
                # Otherwise adapters would be in float32, and every matrix's input be cast to it.
                model = PeftModel.from_pretrained(
                    model, place, adapter_name="0", autocast_adapter_dtype=False
                )
            else:
                model.load_adapter(place, adapter_name=str(number), autocast_adapter_dtype=False)
    model.set_adapter("0")
    return model.eval()


def _peft_sides(model: Any, tokens: np.ndarray, shape: Shape) -> dict[str, Side]:
    import torch

    theirs = torch.tensor(tokens, device=model.device).long()
    mask = torch.ones_like(theirs)
    names = [str(row % shape.adapters) for row in range(shape.batch)]
    options = {"do_sample": False, "max_new_tokens": shape.new, "min_new_tokens": shape.new}

    def generated(**more: Any) -> Any:
        with torch.inference_mode():
            found = model.generate(
                input_ids=theirs, attention_mask=mask, pad_token_id=0, **options, **more
            )
        return harness.wait(found)[:, shape.prompt :]

    return {shape.peft_mixed: lambda: generated(adapter_names=names), PEFT_ONE: generated}


def _answers(
    name: str, sides: dict[str, Side], result: dict[str, Any]
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Seconds of each side's first call and its answers; a side of peft that fails is left out."""
    first, found = {}, {}
    for side, call in list(sides.items()):
        try:
            answers, seconds = harness.timed(call)
        except Exception as error:  # whatever the other library trips over, ours go on
            if not side.startswith("peft"):
                raise
            harness.failed(result, f"{name}, {side}", error)
            del sides[side]
            continue
        first[side] = seconds
        if isinstance(answers, list):  # row i is in part i modulo A
            answers = np.stack([np.asarray(part) for part in answers], 1)
        else:
            answers = answers if not hasattr(answers, "cpu") else answers.cpu()
        found[side] = np.asarray(answers).reshape(-1, answers.shape[-1])
    return first, found


def _agreement(
    found: Mapping[str, np.ndarray], dtype: str, shape: Shape
) -> dict[str, dict[str, float]]:
    """How far the sides' answers are equal.

    Raises:
        RuntimeError: where they are not equal enough, or adapters change too little to tell.
    """
    mixed = found[shape.mixed]
    if mixed.shape != (shape.batch, shape.new):
        raise RuntimeError(f"answers have shape {mixed.shape}, expected {shape}")
    others = np.arange(shape.batch) % shape.adapters != 0
    changed = float(np.mean(mixed[others] != found[ONE][others]))
    if changed < LEAST_DIFFERENCE:
        raise RuntimeError(f"adapters change only {changed:.1%} of the tokens: nothing is checked")
    shares = {SINGLY: shares_of(found[SINGLY], mixed)}
    for side, ours in ((shape.peft_mixed, mixed), (PEFT_ONE, found[ONE])):
        if side in found:
            shares[side] = shares_of(found[side], ours)
    counted = "tokens" if dtype == "float32" else "after_equal"
    for side, share in shares.items():
        floor = FLOORS[dtype] if side == SINGLY else PEFT_FLOOR if dtype == "float32" else 0.0
        if share[counted] < floor:
            raise RuntimeError(
                f"{side}: {share[counted]:.1%} of the tokens are ours, expected {floor:.0%}"
            )
    return shares


def shares_of(found: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """Shares of equal tokens: of all, and of those behind equal ones only, [B, M] both."""
    equal = found == expected
    before = np.cumprod(equal, axis=1, dtype=bool)
    same = int(before.sum())
    firsts = int((~before[:, -1]).sum())  # each row's first difference follows equal tokens
    return {"tokens": float(equal.mean()), "after_equal": same / (same + firsts)}


def _judged(
    row: dict[str, Any], timings: Mapping[str, Any], shape: Shape, ceilings: Mapping[str, Any]
) -> dict[str, Any]:
    row["tokens_per_second"] = {s: row["tokens"] / t.median for s, t in timings.items()}
    row["share_of_ceiling"] = {
        side: row["bytes_one_adapter" if side in (ONE, PEFT_ONE) else "bytes"]
        / timing.median
        / ceilings["copy_bytes"]
        for side, timing in timings.items()
    }
    row["ceiling"] = "copy_bytes"
    return row


def _table(result: dict[str, Any]) -> str:
    sides = list(dict.fromkeys(side for row in result["rows"] for side in row["seconds"]))
    lines = []
    for row in result["rows"]:
        cells = [row["name"]]
        for side in sides:
            if side not in row["seconds"]:
                cells.append("")
                continue
            share = 100 * row["share_of_ceiling"][side]
            cells.append(f"{row['tokens_per_second'][side]:,.0f} ({share:.0f} % of bandwidth)")
        lines.append([*cells, f"{row['seconds'][row['ours']]['first']:.1f} s"])
    text = harness.table(["tokens/s", *sides, "jaxalign's first call"], lines)
    text += "".join(f"\n{one['name']} failed: {one['why']}\n" for one in result["failed"])
    return text + (f"\n{result['claim']}\n" if result["claim"] else "")
