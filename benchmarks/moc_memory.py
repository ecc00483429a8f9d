"""Memory of a MOC step at 7B, part by part, compiled for an H200 that need not be there.

`--topology FILE` names a file with `h200_mesh()`, which describes the card to XLA (an environment
with the CUDA plugin of jax is needed, and no card). Without it the parts are compiled for the
devices of this machine.
"""

import argparse
import importlib.util
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import harness, sizes
from jaxalign.backend import programs_for

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "moc" / "helpful_harmless.yaml"
GIB = 2**30
LIMIT = 48e9  # bytes of the card that the issue of memory is about


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--size", choices=list(sizes.SIZES), default="7B")
    parser.add_argument("--config", type=Path, default=CONFIG, help="of `jaxalign moc train`")
    parser.add_argument("--topology", type=Path, help="file whose h200_mesh() describes a card")


def run(arguments: argparse.Namespace) -> int:
    """Compile rollout, scoring and update, and state the bytes of each."""
    import jax

    console = Console(stderr=True, highlight=False)
    parts = {}
    with made_for(arguments.topology):
        programs, abstract, settings = programs_of(arguments, place(arguments.topology))
        for name, (function, shapes, donated) in parts_of(programs, abstract).items():
            console.print(f"compiling {name}")
            lowered = jax.jit(function, donate_argnums=donated).lower(*shapes)
            options = {"xla_gpu_autotune_level": 0} if arguments.topology else None
            parts[name] = memory(lowered.compile(compiler_options=options).memory_analysis())
    resident = {name: _size(tree) for name, tree in abstract.items() if name in ("state", "frozen")}
    peak = max(part["peak"] for part in parts.values())
    result = {
        "benchmark": "moc_memory",
        "machine": harness.machine(),
        "target": "H200, described" if arguments.topology else jax.default_backend(),
        "size": arguments.size,
        "settings": settings,
        "units": "bytes",
        "resident": resident,
        "parts": parts,
        "peak": peak,
        "fits_48_GB": peak < LIMIT,
    }
    text = _table(result)
    harness.write(arguments.out, result, text)
    print(text)
    return 0


def place(topology: Path | None) -> Any:
    """A mesh of one device: the described card, or this machine's first."""
    import jax
    from jax.sharding import Mesh

    from jaxalign.train.mesh import MeshConfig, make_mesh

    if topology is None:
        return make_mesh(MeshConfig(), jax.devices()[:1])
    spec = importlib.util.spec_from_file_location("topology", topology)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    described, _ = module.h200_mesh()
    return Mesh(described.devices.reshape(1, 1, 1), ("data", "fsdp", "tensor"))


def made_for(topology: Path | None) -> AbstractContextManager[None]:
    """Where programs take the form of the described card, or of this machine's devices."""
    return nullcontext() if topology is None else programs_for("gpu")


def programs_of(arguments: argparse.Namespace, mesh: Any) -> tuple[Any, dict[str, Any], Any]:
    """The programs of a run whose rewards the host computes, and the shapes that they take.

    Args:
        arguments: size and config.
        mesh: of one device.
    """
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    from jaxalign.config import load_config
    from jaxalign.experiments.moc import MocRunConfig
    from jaxalign.moc.policy import init_policy
    from jaxalign.moc.step import init_train_state, make_programs
    from jaxalign.models import families
    from jaxalign.models.device_defaults import device_defaults
    from jaxalign.models.language import LanguageModel
    from jaxalign.models.layers import unstack_params
    from jaxalign.rollout import Rollout

    run = load_config(MocRunConfig, arguments.config, [])
    config, names = run.moc, [reward.name for reward in run.rewards]
    plain = sizes.config(arguments.size, config.trunk.compute)
    dtype = jnp.dtype(config.trunk.weights)
    whole = NamedSharding(mesh, PartitionSpec())

    def held(tree: Any) -> Any:
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), tree
        )

    frozen = jax.eval_shape(
        lambda key: jax.tree.map(lambda x: x.astype(dtype), families.init(key, plain)),
        jax.random.key(0),
    )
    if device_defaults().unstack_to_train:
        plain = replace(plain, unstacked=True)
        frozen = jax.eval_shape(unstack_params, frozen)

    def first(params: Any) -> Any:
        model = LanguageModel(plain, params, None, {}, arguments.size, "0" * 64)
        key = jax.random.key(0)
        return init_train_state(key, init_policy(key, model, names, config).trained, config)

    decoder = config.trunk.decoder(plain)
    programs = make_programs(config, decoder, names, (2,), mesh)
    rows, width = config.batch, config.prompt_tokens
    whole_rows = {"tokens": (rows, width), "lengths": (rows,)}
    shapes = {**whole_rows, "plain": (rows, width), "plain_lengths": (rows,)}
    batch = {name: jax.ShapeDtypeStruct(shape, jnp.int32) for name, shape in shapes.items()}
    batch["preferences"] = jax.ShapeDtypeStruct((config.groups, len(names)), jnp.float32)
    abstract: dict[str, Any] = {
        "frozen": held(frozen),
        "state": held(jax.eval_shape(first, frozen)),
        "batch": held(batch),
    }
    own = [abstract[name] for name in ("state", "frozen", "batch")]
    completions = held(jax.eval_shape(programs.sample, *own))
    scores = held(jax.eval_shape(programs.score, *own, completions))
    rewards = held(jax.ShapeDtypeStruct((rows, len(names)), jnp.float32))
    abstract["rollout"] = Rollout(completions, scores, rewards)
    return programs, abstract, asdict(config)


def parts_of(programs: Any, abstract: dict[str, Any]) -> dict[str, Any]:
    """Of a step: each function, its arguments as shapes, and those that it may overwrite."""
    own = tuple(abstract[name] for name in ("state", "frozen", "batch"))
    rollout = abstract["rollout"]
    return {
        "rollout": (programs.sample, own, ()),
        "score": (programs.score, (*own, rollout.completions), ()),
        "update": (programs.learn, (*own, rollout), (0,)),
    }


def work(shape: Any, settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Turns of the loops, and the least work, of each part of a step in bfloat16."""
    rows = settings["groups"] * settings["rows"]
    prompt, answer = settings["prompt_tokens"], settings["answer_tokens"]
    read = 2 * (sizes.matrix_parameters(shape) + sizes.unembedding_parameters(shape))
    once = sizes.forward_flops(shape, rows, prompt + answer, answer)
    steps = answer - 1
    decoded = steps * sizes.decode_bytes(shape, rows, prompt + answer // 2, 2)
    prefill = (read, sizes.forward_flops(shape, rows, prompt, 1))
    return {
        "rollout": {"trips": steps, "least": (prefill, (decoded, 0.0))},
        "score": {"least": ((read, 2.0 * once),)},  # under the policy, and the reference
        "update": {"least": ((read, 2.0 * once * settings["epochs"]),)},
    }


def memory(found: Any) -> dict[str, int]:
    """Bytes of a program out of `memory_analysis`, and the most that it has at once."""
    arguments, outputs = found.argument_size_in_bytes, found.output_size_in_bytes
    temporary, alias = found.temp_size_in_bytes, found.alias_size_in_bytes
    return {
        "arguments": arguments,
        "outputs": outputs,
        "aliased": alias,
        "temporary": temporary,
        "peak": arguments + outputs - alias + temporary,
    }


def _size(tree: Any) -> int:
    import jax
    import jax.numpy as jnp

    leaves = [leaf for leaf in jax.tree.leaves(tree)]
    return sum(
        leaf.size * (8 if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf.dtype.itemsize)
        for leaf in leaves
    )


def _table(result: dict[str, Any]) -> str:
    lines = [
        [name, *(f"{part[key] / GIB:.2f}" for key in ("arguments", "temporary", "peak"))]
        for name, part in result["parts"].items()
    ]
    about = ", ".join(f"{name} {size / GIB:.2f} GiB" for name, size in result["resident"].items())
    head = f"{result['size']}, {result['target']}. Resident: {about}.\n\n"
    return head + harness.table(["part", "arguments, GiB", "temporary, GiB", "peak, GiB"], lines)
