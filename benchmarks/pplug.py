"""PPlug: personas of users with long histories, a training step, and answers behind soft tokens.

Of personas, `flat` and `exact` are jaxalign's two forms, all items in one array or padded to the
longest history; `direct` is the published order of the
sums, from the same compiler. `torch, users` goes from user to user as the authors' code does;
`torch, batch` is the best that we could write in PyTorch: all users at once, padded, in our order
of the sums.
"""

import argparse
from functools import partial
from typing import Any

import numpy as np

from benchmarks import harness, pplug_model, sizes

PARTS = ("personas", "train", "generate")
CLAIM = (
    "Training and generation were measured on a CPU at a small size: they run, which says nothing "
    "about speed on an accelerator."
)
# Users, longest history, mean history, E, D.
SIZES = {
    "nano": (4, 16, 6, 32, 64),
    "huffpost": (32, 512, 40, 768, 576),  # SmolLM2-135M
    "lamp_4": (8, 512, 205, 768, 4096),  # LaMP-4's histories, Llama-2-7B
    "full": (2, 512, 512, 768, 4096),
    "gpu": (64, 512, 205, 768, 4096),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=None, help="of personas")
    parser.add_argument(
        "--models", nargs="+", choices=list(sizes.SIZES), default=None, help="of the other parts"
    )
    parser.add_argument("--rounds", type=int, default=5)


def run(arguments: argparse.Namespace) -> int:
    """Measures every part at every size; one that fails is named and the others go on."""
    import jax

    accelerated = jax.default_backend() != "cpu"
    personas = arguments.sizes or (["gpu"] if accelerated else ["huffpost", "lamp_4"])
    models = arguments.models or (["1B", "7B"] if accelerated else ["tiny"])
    dtype = "bfloat16" if accelerated else "float32"
    result = harness.started("pplug", dtype, CLAIM)
    for part in arguments.parts:
        for name in personas if part == "personas" else models:
            job = partial(_measured, part, name, arguments.rounds, result)
            harness.attempt(result, f"{part} {name}", job, arguments.out, _table)
    print(_table(result))
    return 0


def _measured(part: str, name: str, rounds: int, result: dict[str, Any]) -> dict[str, Any]:
    if part == "personas":
        row = _personas(name, rounds)
    else:
        row = _around(part, name, result["dtype"], result["claim"] is None, rounds)
    return _shared(row, result["ceilings"])


def _around(part: str, size: str, dtype: str, accelerated: bool, rounds: int) -> dict[str, Any]:
    """A training step, or answers, of a model with a plug."""
    make = pplug_model.train_sides if part == "train" else pplug_model.generate_sides
    shape = pplug_model.Shape(2, 16, 32, 8, "tiny")
    if accelerated:
        shape = pplug_model.Shape(16, 256, 256, 32, "base", remat=part == "train" and size != "1B")
    facts, sides = make(size, dtype, shape)
    timings = harness.measure(sides, rounds, limit=120.0)
    return harness.row(f"{part} {size}", timings, "jaxalign", **facts)


def _shared(row: dict[str, Any], ceilings: dict[str, Any]) -> dict[str, Any]:
    """The row with its share of the measured matmul ceiling, where FLOPs are counted."""
    flops, own = row.get("flops"), row["ours"]
    if isinstance(flops, dict):
        flops = flops.get(own)
    if flops is None:
        return row
    share = flops / row["seconds"][own]["median"] / ceilings["matmul_flops"]
    return row | {"share_of_ceiling": {own: share}, "ceiling": "matmul_flops"}


def _table(result: dict[str, Any]) -> str:
    sides = list(dict.fromkeys(side for row in result["rows"] for side in row["seconds"]))
    lines = []
    for row in result["rows"]:
        share, times = row.get("share_of_ceiling", {}).get(row["ours"]), row["seconds"]
        cells = [harness.shown(times[side]["median"]) if side in times else "-" for side in sides]
        lines.append([row["name"], *cells, "-" if share is None else f"{share:.0%}"])
    return harness.table(["", *sides, "of matmul ceiling"], lines)


def _personas(name: str, rounds: int) -> dict[str, Any]:
    users, longest, mean, encoder, width = SIZES[name]
    counts = history_lengths(users, longest, mean)
    params, arrays = _world(counts, longest, encoder, width)
    sides, flops, firsts = _jax_sides(params, arrays)
    sides |= _torch_sides(params, arrays)
    found = []
    for side, call in sides.items():
        personas, seconds = harness.timed(call)
        firsts[side] = firsts.get(side, 0.0) + seconds
        found.append(np.asarray(personas))
    exact, *others = found
    error = max(float(np.abs(other - exact).max() / np.abs(exact).max()) for other in others)
    if error > 1e-3:
        raise SystemExit(f"{name}: the sides differ by {error:.2g} of the largest value")
    timings = harness.measure(sides, rounds, firsts=firsts)
    facts = {"users": users, "items": int(counts.sum()), "E": encoder, "D": width}
    return harness.row(f"personas {name}", timings, "flat", **facts, flops=flops, difference=error)


def history_lengths(users: int, longest: int, mean: int) -> np.ndarray:
    """Lengths of histories, most of them short; the first is the longest."""
    drawn = np.random.default_rng(0).exponential(mean, users).round().astype(int)
    counts = np.clip(drawn if mean < longest else np.full(users, longest), 1, longest)
    counts[0] = longest
    return counts


def padding(items: int) -> int:
    """Empty items behind all histories: as a trainer would, so that shapes stay few."""
    return -items % 256


def _world(counts: np.ndarray, longest: int, encoder: int, width: int) -> tuple[Any, Any]:
    import jax

    from jaxalign.pplug import PersonaConfig, init_persona

    make = jax.jit(init_persona, static_argnums=(1, 2, 3, 4))
    params = make(jax.random.key(0), PersonaConfig(), encoder, width, 1.0)
    rng = np.random.default_rng(1)

    def unit(*shape: int) -> np.ndarray:
        drawn = rng.normal(size=shape).astype(np.float32)
        return drawn / np.linalg.norm(drawn, axis=-1, keepdims=True)

    mask = np.arange(longest)[None, :] < counts[:, None]
    queries, items = unit(len(counts), encoder), unit(len(counts), longest, encoder)
    segments = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    spare = padding(len(segments))
    flat = np.concatenate([items[mask], np.zeros((spare, encoder), np.float32)])
    segments = np.concatenate([segments, np.full(spare, len(counts), np.int32)])
    return params, (queries, items, mask, flat, segments)


def _jax_sides(
    params: Any, arrays: Any
) -> tuple[dict[str, Any], dict[str, float], dict[str, float]]:
    """Our forms, the FLOPs of each as the compiler counts them, and what compiling took."""
    import jax
    import jax.numpy as jnp

    from jaxalign.pplug import PersonaConfig, aggregate, aggregate_flat

    queries, items, mask, flat, segments = jax.device_put(arrays)
    config = PersonaConfig()

    def direct(params: Any, query: Any, history: Any, mask: Any) -> Any:
        inner, head = params["project"]["inner"], params["project"]["head"]
        hidden = jnp.matmul(history, inner["kernel"], precision="highest") + inner["bias"][None]
        hidden = jax.nn.gelu(hidden, approximate=False)
        tokens = jnp.matmul(hidden, head["kernel"][0], precision="highest") + head["bias"]
        logits = jnp.where(mask, history @ query, -jnp.inf)
        return (jax.nn.softmax(logits)[None] @ tokens) * params["project"]["scale"]

    over = (None, 0, 0, 0)
    calls = {
        "exact": (jax.vmap(partial(aggregate, config=config), over), (queries, items, mask)),
        "flat": (partial(aggregate_flat, config=config), (queries, flat, segments)),
        "direct": (jax.vmap(direct, over), (queries, items, mask)),
    }
    sides, flops, seconds = {}, {}, {}
    for name, (function, rest) in calls.items():
        compiled, seconds[name] = harness.timed(partial(_compiled, function, params, *rest))
        flops[name] = float(compiled.cost_analysis()["flops"])
        sides[name] = partial(lambda call, rest: harness.wait(call(params, *rest)), compiled, rest)
    return sides, flops, seconds


def _compiled(function: Any, *arguments: Any) -> Any:
    import jax

    return jax.jit(function).lower(*arguments).compile()


def _torch_sides(params: Any, arrays: Any) -> dict[str, Any]:
    import jax
    import torch

    place = "cuda" if torch.cuda.is_available() else "cpu"

    def tensor(array: Any) -> Any:
        return torch.from_numpy(np.array(array)).to(place)

    project = jax.tree.map(tensor, params["project"])
    inner, head, scale = project["inner"], project["head"], project["scale"]
    queries, items, mask = (tensor(array) for array in arrays[:3])
    own = [one[real] for one, real in zip(items, mask, strict=True)]

    def hidden(history: Any) -> Any:
        return torch.nn.functional.gelu(history @ inner["kernel"] + inner["bias"])

    def users() -> Any:
        found = []
        for query, history in zip(queries, own, strict=True):
            tokens = hidden(history) @ head["kernel"][0] + head["bias"][0]
            found.append(torch.softmax(history @ query, dim=0) @ tokens)
        return torch.stack(found)[:, None] * scale

    def batch() -> Any:
        logits = torch.einsum("BE,BnE->Bn", queries, items).masked_fill(~mask, -torch.inf)
        pooled = torch.einsum("Bn,BnD->BD", torch.softmax(logits, dim=1), hidden(items))
        return (pooled @ head["kernel"][0] + head["bias"][0])[:, None] * scale

    def side(function: Any) -> Any:
        def call() -> Any:
            with torch.inference_mode():
                return harness.wait(function()).cpu()

        return call

    return {"torch, users": side(users), "torch, batch": side(batch)}
