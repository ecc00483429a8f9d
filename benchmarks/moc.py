"""A MOC step from prompts to a better policy, beside one-reward PPO on transformers and peft."""

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import harness, sizes
from benchmarks.harness import Side

NAMES = ("first", "second", "third", "fourth")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--sizes", nargs="+", choices=list(sizes.SIZES), default=None)
    parser.add_argument("--config", type=Path, help="of `jaxalign moc train`, for other settings")
    parser.add_argument("--objectives", nargs="+", type=int, default=[2, 4])
    parser.add_argument("--prompt", type=int, default=None, help="tokens of a prompt")
    parser.add_argument("--new", type=int, default=None, help="tokens of an answer")
    parser.add_argument("--groups", type=int, default=None, help="preferences of a step")
    parser.add_argument("--rounds", type=int, default=5)


def run(arguments: argparse.Namespace) -> int:
    """Measure a step at every size; one that fails is named and the others go on."""
    import jax

    accelerated = jax.default_backend() != "cpu"
    chosen = arguments.sizes or (["135M", "1B", "7B"] if accelerated else ["tiny"])
    dtype = "bfloat16" if accelerated else "float32"
    config = _config(arguments, accelerated, dtype)
    result = harness.started("moc", dtype) | {
        "shape": {
            "batch": config.batch,
            "prompt": config.prompt_tokens,
            "new": config.answer_tokens,
            "epochs": config.epochs,
        }
    }
    for size in chosen:
        job = partial(_measured, size, config, arguments, result)
        harness.attempt(result, size, job, arguments.out, _table)
    print(_table(result))
    return 0


def published() -> Any:
    """The sizes of configs/moc/helpful_harmless.yaml, read without what reads configs."""
    from jaxalign.moc.config import MocConfig

    base = MocConfig(groups=4, micro_batches=4)
    lora = replace(base.trunk.lora, targets=("query", "value"))
    return replace(base, trunk=replace(base.trunk, lora=lora))


def _config(arguments: argparse.Namespace, accelerated: bool, dtype: str) -> Any:
    base = published()
    if arguments.config is not None:
        from jaxalign.config import load_config
        from jaxalign.experiments.moc import MocRunConfig

        base = load_config(MocRunConfig, arguments.config, []).moc
    lora = replace(base.trunk.lora, dropout=0.0)  # peft's side has none either
    groups = arguments.groups or (base.groups if accelerated else 2)
    return replace(
        base,
        groups=groups,
        rows=base.rows if accelerated else 2,
        micro_batches=min(base.micro_batches, groups),
        prompt_tokens=arguments.prompt or (base.prompt_tokens if accelerated else 32),
        answer_tokens=arguments.new or (base.answer_tokens if accelerated else 16),
        value_dropout=0.0,
        conditioning="none",  # random prompts; a tag is but some tokens of them
        trunk=replace(base.trunk, weights=dtype, compute=dtype, lora=lora),
    )


def _measured(
    size: str, config: Any, arguments: argparse.Namespace, result: dict[str, Any]
) -> dict[str, Any]:
    from benchmarks.models import random_model
    from jaxalign.models.device_defaults import device_defaults

    dtype = result["dtype"]
    rng = np.random.default_rng(0)
    shape = (config.batch, config.prompt_tokens)
    prompts = rng.integers(3, sizes.SIZES[size].vocab_size, shape, np.int32)
    sides: dict[str, Side] = {}
    facts: dict[str, Any] = {}
    plain, params = random_model(
        size, dtype, device_defaults().unstack_to_train
    )  # one copy for all of our sides
    for count in arguments.objectives:
        step, rollout = _ours(plain, params, config, prompts, count)
        sides[f"jaxalign, {count} objectives"] = step
        if count == arguments.objectives[0]:
            sides["jaxalign, rollout alone"] = rollout
    theirs = _theirs(size, dtype, config, prompts)
    sides["transformers + peft, 1 reward"] = lambda: harness.wait(theirs.step())
    sides["transformers + peft, rollout alone"] = lambda: harness.wait(theirs.rollout())
    facts["peak_bytes"], firsts = {}, {}
    for name, side in sides.items():
        used, seconds = harness.timed(partial(_peak, name, side))
        facts["peak_bytes"][name] = used
        if used is not None:  # the side was called
            firsts[name] = seconds
    timings = harness.measure(sides, arguments.rounds, limit=200.0, firsts=firsts)
    ours = f"jaxalign, {arguments.objectives[0]} objectives"
    row = harness.row(size, timings, ours, **facts)
    row["samples_per_second"] = {
        name: config.batch / timing.median for name, timing in timings.items()
    }
    least = _least_seconds(size, dtype, config, result["ceilings"])
    return row | {"share_of_ceiling": {ours: least / timings[ours].median}, "ceiling": "both"}


def _least_seconds(size: str, dtype: str, config: Any, ceilings: dict[str, Any]) -> float:
    """Of a step, were every part bound by a ceiling: decoding by bytes, all else by the matmuls.

    Prompts are read once, answers scored by policy and reference, and in every epoch go forward
    and backward, nothing recomputed.
    """
    import jax.numpy as jnp

    shape, batch = sizes.SIZES[size], config.batch
    prompt, answer = config.prompt_tokens, config.answer_tokens
    context, itemsize = prompt + answer // 2, jnp.dtype(dtype).itemsize
    once = sizes.forward_flops(shape, batch, prompt + answer, answer)
    flops = sizes.forward_flops(shape, batch, prompt, 1) + (2 + 2 * config.epochs) * once
    read = answer * sizes.decode_bytes(shape, batch, context, itemsize)
    return flops / ceilings["matmul_flops"] + read / ceilings["copy_bytes"]


def _ours(
    plain: Any, params: Any, config: Any, prompts: np.ndarray, count: int
) -> tuple[Side, Side]:
    """A step and its rollout, whose rewards are shares of the vocabulary's parts."""
    import jax
    import jax.numpy as jnp

    from jaxalign.moc.policy import init_policy
    from jaxalign.moc.step import init_train_state, make_programs, make_step
    from jaxalign.models.language import LanguageModel
    from jaxalign.rewards.vector import TokenReward
    from jaxalign.train.mesh import make_mesh

    names = NAMES[:count]
    part = plain.vocab_size // count

    def shares(prompts: Any, lengths: Any, answers: Any, ends: Any) -> Any:
        inside = jnp.arange(answers.shape[1])[None, :] < ends[:, None]
        own = [(answers // part == place) & inside for place in range(count)]
        counts = jnp.stack([mask.sum(axis=1) for mask in own], axis=1)
        return counts / jnp.maximum(ends, 1)[:, None].astype(jnp.float32)

    reward = TokenReward(names, shares, "shares")
    model = LanguageModel(plain, params, None, {}, "random", "0" * 64)
    state = init_train_state(
        jax.random.key(1), init_policy(jax.random.key(2), model, names, config).trained, config
    )
    mesh = make_mesh(config.trunk.mesh, jax.devices()[:1])
    programs = make_programs(config, config.trunk.decoder(plain), names, (), mesh)
    lengths = np.full(len(prompts), prompts.shape[1], np.int32)
    preferences = np.random.default_rng(1).dirichlet(np.ones(count), config.groups)
    batch = {
        "tokens": prompts, "lengths": lengths, "plain": prompts, "plain_lengths": lengths,
        "preferences": preferences.astype(np.float32),
    }  # fmt: skip
    place = harness.whole(mesh)
    state, params, batch = jax.device_put((state, params, batch), place)
    step = jax.jit(make_step(programs, reward), donate_argnums=0, out_shardings=(place, None))
    sample = jax.jit(programs.sample)
    held = [state]

    def once() -> Any:
        held[0], metrics = step(held[0], params, batch)
        return harness.wait(metrics["loss"])

    return once, lambda: harness.wait(sample(held[0], params, batch))


def _theirs(size: str, dtype: str, config: Any, prompts: np.ndarray) -> Any:
    from benchmarks.moc_torch import PPO
    from benchmarks.models import torch_model

    model, device = torch_model(size, dtype)
    return PPO(model, config, prompts, device)


def _peak(name: str, side: Side) -> int | None:
    """Most bytes of the card that its library held by the end of a call; None on a CPU.

    torch's count begins with the call. JAX's begins with the process, so that of a size may be
    that of one before it: sizes go upwards.
    """
    import jax
    import torch

    if not torch.cuda.is_available():
        return None
    torch.cuda.reset_peak_memory_stats()
    side()
    if name.startswith("jaxalign"):
        return int((jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0))
    return int(torch.cuda.max_memory_allocated())


def _table(result: dict[str, Any]) -> str:
    rows = []
    for row in result["rows"]:
        for side, timing in row["seconds"].items():
            used = row["peak_bytes"][side]
            rows.append(
                [
                    f"{row['name']}, {side}",
                    harness.shown(timing["median"]),
                    f"{row['samples_per_second'][side]:,.1f}",
                    f"{row['share_of_ceiling'][side]:.0%}" if side == row["ours"] else "",
                    "" if used is None else f"{used / 2**30:.1f}",
                    harness.shown(timing["first"]),
                ]
            )
    header = ["", "a step", "samples/s", "of the ceilings", "peak, GiB", "first call"]
    lines = harness.table(header, rows)
    lines += "".join(f"\n{row['name']} failed: {row['why']}\n" for row in result["failed"])
    return lines + (f"\n{result['claim']}\n" if result["claim"] else "")
