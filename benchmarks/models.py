"""Language models: prefill, decoding and training steps beside transformers."""

import argparse
import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import harness, sizes
from benchmarks.harness import Side
from jaxalign.errors import InputError

Complete = Callable[[np.ndarray, int], Any]
"""Completes prompts [B, T] greedily by so many tokens."""
PARTS = ("prefill", "decode", "train")
_SERVED = ("prefill", "decode")  # what vLLM does as well


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--sizes", nargs="+", choices=list(sizes.SIZES), default=None)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16, 64, 256])
    parser.add_argument("--prompt", type=int, default=None, help="tokens of a prompt")
    parser.add_argument("--new", type=int, default=None, help="tokens of an answer")
    parser.add_argument("--train-batch", type=int, default=None, help="rows of a training step")
    parser.add_argument("--lora-only", action="store_true", help="no steps of all parameters")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default=None)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--compiled", action="store_true", help="torch.compile beside eager torch")
    parser.add_argument(
        "--vllm", type=Path, help="the program `vllm`, for prefill and decoding on a CPU"
    )


def run(arguments: argparse.Namespace) -> int:
    """Measures every part at every size; a part that fails is named and the others go on.

    Raises:
        InputError: there is no program at `--vllm`, or an accelerator, which it does not use.
    """
    import jax

    accelerated = jax.default_backend() != "cpu"
    if arguments.vllm:
        _check_vllm(arguments.vllm, accelerated)
    dtype = arguments.dtype or ("bfloat16" if accelerated else "float32")
    chosen = arguments.sizes or (["135M", "1B", "8B"] if accelerated else ["tiny"])
    arguments.prompt = arguments.prompt or (512 if accelerated else 64)
    arguments.new = arguments.new or (128 if accelerated else 32)
    arguments.train_batch = arguments.train_batch or (16 if accelerated else 4)
    result = harness.started("models", dtype)
    for size in chosen:
        served = [part for part in arguments.parts if part in _SERVED]
        with _vllm(size, dtype, arguments, result) as complete:
            _measure_parts(served, size, dtype, arguments, complete, result)
        # A server takes time and memory while it waits, too.
        rest = [part for part in arguments.parts if part not in _SERVED]
        _measure_parts(rest, size, dtype, arguments, None, result)
    print(_table(result))
    return 0


def _measure_parts(
    parts: Sequence[str],
    size: str,
    dtype: str,
    arguments: argparse.Namespace,
    complete: Complete | None,
    result: dict[str, Any],
) -> None:
    for part in parts:
        for name, make in _jobs(part, size, dtype, arguments, complete):
            job = partial(_measured, name, make, arguments.rounds, result["ceilings"])
            harness.attempt(result, name, job, arguments.out, _table)


def _check_vllm(program: Path, accelerated: bool) -> None:
    from benchmarks.vllm_server import check_vllm

    check_vllm(program)
    if accelerated:
        raise InputError(
            f"--vllm {program}: vLLM is measured on a CPU only; leave the option out, or set "
            f"JAX_PLATFORMS=cpu."
        )


@contextlib.contextmanager
def _vllm(
    size: str, dtype: str, arguments: argparse.Namespace, result: dict[str, Any]
) -> Iterator[Complete | None]:
    """What completes prompts by vLLM while it runs; None without the option, or if it fails."""
    with contextlib.ExitStack() as stack:
        complete = None
        if arguments.vllm and set(_SERVED) & set(arguments.parts):
            from benchmarks.models_vllm import started_vllm

            rows = max(*arguments.batches, arguments.train_batch)
            server = started_vllm(
                arguments.vllm, size, dtype, rows, arguments.prompt + arguments.new
            )
            try:
                result["machine"]["versions"]["vllm"], complete = stack.enter_context(server)
            except RuntimeError as error:
                harness.failed(result, f"vLLM {size}", error)
        yield complete


def _jobs(
    part: str, size: str, dtype: str, arguments: argparse.Namespace, complete: Complete | None
) -> Iterator[Any]:
    prompt, new = arguments.prompt, arguments.new
    if part == "decode":
        for batch in arguments.batches:
            yield (
                f"decode {size} batch {batch}",
                partial(_decode, size, dtype, batch, prompt, new, arguments.compiled, complete),
            )
        return
    batch = arguments.train_batch
    if part == "prefill":
        make = partial(_prefill, size, dtype, batch, prompt, arguments.compiled, complete)
        yield f"prefill {size}", make
    if part == "train":
        for lora in (True,) if arguments.lora_only else (True, False):
            if lora or size != "8B":  # a full step's moments do not fit beside torch's
                name = f"training step {size} {'LoRA' if lora else 'full'}"
                yield name, partial(_train, size, dtype, batch, arguments.prompt, lora)


def random_model(
    size: str, dtype: str, unstack: bool | None = None, **changes: Any
) -> tuple[Any, Any]:
    """A config and random parameters in the dtype, made on the device.

    Its layers are unstacked as those of models that are loaded to generate, unless `unstack` says
    otherwise.
    """
    import jax

    from jaxalign.models import families
    from jaxalign.models.device_defaults import device_defaults
    from jaxalign.models.layers import unstack_params

    config = sizes.config(size, dtype, **changes)
    unstack = device_defaults().unstack_to_decode if unstack is None else unstack

    def made(key: jax.Array) -> Any:
        params = jax.tree.map(lambda leaf: leaf.astype(dtype), families.init(key, config))
        return unstack_params(params) if unstack else params

    return replace(config, unstacked=unstack), jax.jit(made)(jax.random.key(0))


def model_to_train(size: str, dtype: str, lora: bool, remat: str | None = None) -> tuple[Any, Any]:
    """A `random_model` in the form in which a training on one device has it."""
    from jaxalign.models.device_defaults import device_defaults

    here = device_defaults()
    unstack = lora and here.unstack_to_train
    return random_model(size, dtype, unstack, unroll=not lora and here.unroll_to_train, remat=remat)


def torch_model(size: str, dtype: str) -> tuple[Any, str]:
    """A random model of `transformers` with flash attention, and its device."""
    import torch
    from transformers import LlamaForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_default_device(device)
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        hf = sizes.torch_config(sizes.SIZES[size])
        model = LlamaForCausalLM._from_config(hf, attn_implementation="sdpa").eval()
    finally:
        torch.set_default_device("cpu")
        torch.set_default_dtype(torch.float32)
    return model.to(device), device


def _tokens(size: str, batch: int, length: int) -> np.ndarray:
    high = sizes.SIZES[size].vocab_size
    return np.random.default_rng(0).integers(0, high, (batch, length)).astype(np.int32)


def _prefill(
    size: str, dtype: str, batch: int, length: int, compiled: bool, complete: Complete | None
) -> tuple[dict[str, Any], dict[str, Side]]:
    import jax
    import jax.numpy as jnp
    import torch

    from jaxalign.models import families

    config, params = random_model(size, dtype)
    tokens = _tokens(size, batch, length)
    held = jnp.asarray(tokens)

    @jax.jit
    def forward(params: Any, tokens: jax.Array) -> jax.Array:
        hidden, _ = families.forward(config, params, tokens)
        return families.logits(params, hidden[:, -1])

    model, device = torch_model(size, dtype)
    theirs = torch.tensor(tokens, device=device).long()

    def eager(run: Any) -> Any:
        with torch.inference_mode():
            return harness.wait(run(theirs, logits_to_keep=1, use_cache=False).logits)

    sides: dict[str, Side] = {
        "jaxalign": lambda: harness.wait(forward(params, held)),
        "torch eager": lambda: eager(model),
    }
    if compiled:
        faster = torch.compile(model)
        sides["torch compiled"] = lambda: eager(faster)
    if complete:  # its shortest answer: one token, which it samples from the last logits
        sides["vLLM"] = partial(complete, tokens, 1)
    facts = {
        "tokens": batch * length,
        "flops": sizes.forward_flops(config, batch, length, 1),
        "shape": {"batch": batch, "tokens": length},
    }
    return facts, sides


def _decode(
    size: str,
    dtype: str,
    batch: int,
    length: int,
    new: int,
    compiled: bool,
    complete: Complete | None,
) -> tuple[dict[str, Any], dict[str, Side]]:
    import jax
    import jax.numpy as jnp
    import torch

    from jaxalign.models.generate import generate
    from jaxalign.models.sampling import Sampling

    config, params = random_model(size, dtype)
    tokens = _tokens(size, batch, length)
    held, lengths = jnp.asarray(tokens), np.full(batch, length, np.int32)
    settings = Sampling(max_tokens=new, temperature=0.0)
    key = jax.random.key(0)
    model, device = torch_model(size, dtype)
    theirs = torch.tensor(tokens, device=device).long()
    options = {"do_sample": False, "max_new_tokens": new, "min_new_tokens": new, "pad_token_id": 0}

    def generated(**more: Any) -> Any:
        with torch.inference_mode():
            mask = torch.ones_like(theirs)
            return harness.wait(model.generate(theirs, attention_mask=mask, **options, **more))

    sides: dict[str, Side] = {
        "jaxalign": lambda: harness.wait(
            generate(config, params, held, lengths, key, settings).tokens
        ),
        "torch eager": generated,
    }
    if compiled:  # transformers compiles the decoding step where the cache is static
        sides["torch compiled"] = lambda: generated(cache_implementation="static")
    if complete:
        sides["vLLM"] = partial(complete, tokens, new)
    itemsize = jnp.dtype(dtype).itemsize
    facts = {
        "tokens": batch * new,
        "bytes": new * sizes.decode_bytes(config, batch, length + new // 2, itemsize),
        "shape": {"batch": batch, "prompt": length, "new": new},
    }
    return facts, sides


def _train(
    size: str, dtype: str, batch: int, length: int, lora: bool
) -> tuple[dict[str, Any], dict[str, Side]]:
    import jax.numpy as jnp
    import torch

    config, params = model_to_train(size, dtype, lora)
    tokens = _tokens(size, batch, length + 1)
    step, state = training_step(config, params, lora)
    batch_of = {"tokens": jnp.asarray(tokens)}
    held = [state]

    def ours() -> Any:
        held[0], loss = step(held[0], params if lora else None, batch_of)
        return harness.wait(loss)

    model, device = torch_model(size, dtype)
    model.train()
    if lora:
        from peft import LoraConfig, get_peft_model

        places = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules=places))
    trained = [p for p in model.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0)
    theirs = torch.tensor(tokens, device=device).long()

    def eager() -> Any:
        adam.zero_grad(set_to_none=True)
        logits = model(theirs[:, :-1], use_cache=False).logits.float()
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), theirs[:, 1:].flatten())
        loss.backward()
        adam.step()
        return harness.wait(loss.detach())

    facts = {
        "tokens": batch * length,
        "flops": sizes.training_flops(config, batch, length, lora),
        "shape": {"batch": batch, "tokens": length},
    }
    return facts, {"jaxalign": ours, "torch eager": eager}


def training_step(config: Any, params: Any, lora: bool) -> tuple[Any, Any]:
    """The step of `jaxalign.train`: next-token loss by `token_logprob`, AdamW, state donated."""
    import jax
    import jax.numpy as jnp

    from jaxalign.kernels.token_logprob import token_logprob
    from jaxalign.models import families
    from jaxalign.models import lora as adapters
    from jaxalign.models.decoder import unembedding
    from jaxalign.train import optimiser
    from jaxalign.train.step import make_step

    settings = adapters.LoraConfig(rank=16, alpha=32)

    def loss(trained: Any, frozen: Any, micro: Any, key: Any) -> dict[str, jax.Array]:
        tokens = micro["tokens"]
        whole = frozen if lora else trained
        added = adapters.scaled(trained, settings) if lora else None
        hidden, _ = families.forward(config, whole, tokens[:, :-1], adapters=added)
        logprob, _ = token_logprob(hidden, unembedding(whole), tokens[:, 1:])
        return {"loss": -jnp.sum(logprob), "weight": jnp.asarray(logprob.size, jnp.float32)}

    trained = adapters.init(jax.random.key(1), settings, params) if lora else params
    rule = optimiser.OptimiserConfig(rate=1e-4)
    state = optimiser.start(jax.random.key(2), trained, rule)
    step = jax.jit(make_step(loss, rule, 1000), donate_argnums=0)

    def once(state: Any, frozen: Any, batch: Any) -> Any:
        micro = jax.tree.map(lambda leaf: leaf[None], batch)
        state, metrics = step(state, frozen, micro)
        return state, metrics["loss"]

    return once, state


def _measured(name: str, make: Any, rounds: int, ceilings: dict[str, Any]) -> dict[str, Any]:
    facts, sides = make()
    timings = harness.measure(sides, rounds)
    row = harness.row(name, timings, "jaxalign", **facts)
    row["tokens_per_second"] = {s: facts["tokens"] / t.median for s, t in timings.items()}
    for counted, ceiling in (("flops", "matmul_flops"), ("bytes", "copy_bytes")):
        if counted in facts:
            row["share_of_ceiling"] = {
                side: facts[counted] / timing.median / ceilings[ceiling]
                for side, timing in timings.items()
            }
            row["ceiling"] = ceiling
    return row


def _table(result: dict[str, Any]) -> str:
    sides = list(dict.fromkeys(side for row in result["rows"] for side in row["seconds"]))
    rows = []
    for row in result["rows"]:
        share = "matmul" if row["ceiling"] == "matmul_flops" else "bandwidth"
        cells = [row["name"]]
        for side in sides:
            if side not in row["seconds"]:
                cells.append("")
                continue
            cells.append(
                f"{row['tokens_per_second'][side]:,.0f} "
                f"({100 * row['share_of_ceiling'][side]:.0f} % of {share})"
            )
        cells.append(f"{row['seconds']['jaxalign']['first']:.1f} s")
        rows.append(cells)
    lines = harness.table(["tokens/s", *sides, "jaxalign's first call"], rows)
    lines += "".join(f"\n{row['name']} failed: {row['why']}\n" for row in result["failed"])
    return lines + (f"\n{result['claim']}\n" if result["claim"] else "")
