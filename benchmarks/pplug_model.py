"""PPlug around a language model: a training step, and answers behind soft tokens.

The language model and the encoder have random weights of real shapes, so that nothing is fetched.
`torch, users` makes personas user by user, every item through both layers, and all logits, as the
authors' code does; `torch, batch` is the best that we could write: users at once, our order of the
sums, logits of the answers alone.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from benchmarks import harness, sizes
from benchmarks.harness import Side
from benchmarks.models import random_model, torch_model

# V, E, layers, heads, hidden, positions.
ENCODERS = {
    "tiny": (4096, 64, 2, 4, 128, 512),
    "base": (30_522, 768, 12, 12, 3072, 512),  # BGE-base, MPNet and the like
}


class Shape(NamedTuple):
    """Sizes of a batch.

    Attributes:
        batch: B, rows.
        items: n of each history.
        prompt: tokens of a question, for the language model and the input encoder.
        answer: tokens of an answer.
        encoder: a name in `ENCODERS`.
        remat: whether blocks are recomputed, on both sides.
    """

    batch: int
    items: int
    prompt: int
    answer: int
    encoder: str
    remat: bool = False


def train_sides(size: str, dtype: str, shape: Shape) -> tuple[dict[str, Any], dict[str, Side]]:
    """A step of AdamW on input encoder, projections and task token, the language model frozen."""
    import jax

    from jaxalign.pplug.answers import FrozenParts, answer_loss
    from jaxalign.train import optimiser
    from jaxalign.train.mesh import MeshConfig, make_mesh
    from jaxalign.train.step import make_step

    remat = "nothing_saveable" if shape.remat else None
    plan, trained, params = plug(size, dtype, shape.encoder, remat)
    arrays = batch(shape, plan)
    rule = optimiser.OptimiserConfig(rate=1e-4, weight_decay=1e-4)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    place = harness.whole(mesh)
    state = optimiser.start(jax.random.key(2), trained, rule)
    given = {name: array[None] for name, array in arrays.items()}
    state, frozen, given = jax.device_put((state, FrozenParts(params), given), place)
    held = [state]
    loss = partial(answer_loss, plan, mesh)
    step = jax.jit(make_step(loss, rule, 1000), donate_argnums=0, out_shardings=(place, None))

    def ours() -> Any:
        held[0], metrics = step(held[0], frozen, given)
        return harness.wait(metrics["loss"])

    sides: dict[str, Side] = {"jaxalign": ours}
    for name, batched in (("torch, batch", True), ("torch, users", False)):
        sides[name] = TorchPlug(size, dtype, shape, arrays, batched).step
    tokens = shape.batch * (shape.prompt + shape.answer)
    return {"tokens": tokens, "shape": shape._asdict(), "flops": _flops(size, shape)}, sides


def generate_sides(size: str, dtype: str, shape: Shape) -> tuple[dict[str, Any], dict[str, Side]]:
    """Greedy answers of one length behind two soft tokens; every row with its own persona."""
    import jax
    import jax.numpy as jnp
    import torch

    from jaxalign.models.generate import generate
    from jaxalign.models.sampling import Sampling
    from jaxalign.pplug import model as plugs

    plan, trained, params = plug(size, dtype, shape.encoder, None)
    arrays = batch(shape, plan)
    prefix = jax.jit(plugs.prefix, static_argnums=0)
    settings, key = Sampling(max_tokens=shape.answer, temperature=0.0), jax.random.key(0)
    given = jax.device_put(arrays)

    def ours() -> Any:
        soft = prefix(plan, trained, given)
        found = generate(
            plan.decoder, params, given["prompts"], given["prompt_lengths"], key, settings,
            prefix=soft.astype(jnp.dtype(dtype)),
        )  # fmt: skip
        return harness.wait(found.tokens)

    theirs = TorchPlug(size, dtype, shape, arrays, True)
    options = {"do_sample": False, "max_new_tokens": shape.answer, "min_new_tokens": shape.answer}

    def eager() -> Any:
        with torch.inference_mode():
            joined = theirs.joined(answers=False)
            mask = torch.ones(joined.shape[:2], dtype=torch.long, device=joined.device)
            return harness.wait(
                theirs.model.generate(
                    inputs_embeds=joined, attention_mask=mask, pad_token_id=0, **options
                )
            )

    tokens = shape.batch * shape.answer
    facts = {"tokens": tokens, "shape": shape._asdict()}
    return facts, {"jaxalign": ours, "torch, batch": eager}


def _flops(size: str, shape: Shape) -> int:
    """Of a step, without recomputation: the model's twice, for it is frozen; the encoder's thrice.

    Projections are a few per cent and left out.
    """
    length = 2 + shape.prompt + shape.answer
    decoder = sizes.SIZES[size]
    once = sizes.forward_flops(decoder, shape.batch, length, shape.answer)
    _, width, layers, _, hidden, _ = ENCODERS[shape.encoder]
    matrices = layers * (4 * width * width + 2 * width * hidden)
    return 2 * once + 3 * 2 * shape.batch * shape.prompt * matrices


def plug(size: str, dtype: str, encoder: str, remat: str | None) -> tuple[Any, Any, Any]:
    """What is static, what is trained and what is frozen."""
    import jax
    import jax.numpy as jnp

    from jaxalign.models import encoder as bert
    from jaxalign.models.device_defaults import device_defaults
    from jaxalign.pplug import PersonaConfig, init_persona
    from jaxalign.pplug.model import PrefixSpec

    unstack = device_defaults().unstack_to_train
    decoder, params = random_model(size, dtype, unstack, remat=remat)
    vocabulary, width, layers, heads, hidden, positions = ENCODERS[encoder]
    config = bert.EncoderConfig(
        vocabulary, width, layers, heads, hidden, positions, dtype=dtype, remat=remat
    )
    persona = PersonaConfig()
    blank = jnp.zeros((1, 8), jnp.int32)
    made = jax.jit(bert.EncoderModule(config).init)(
        jax.random.key(3), blank, jnp.ones((1, 8), bool)
    )
    start = jax.jit(init_persona, static_argnums=(1, 2, 3, 4))
    trained = {
        "encoder": made["params"],
        "persona": start(jax.random.key(4), persona, width, decoder.width, 1.0),
    }
    return PrefixSpec(decoder, config, "cls", True, persona, 0.5), trained, params


def batch(shape: Shape, plan: Any) -> dict[str, np.ndarray]:
    """One batch of samples, all of full length."""
    rng = np.random.default_rng(0)
    rows, width = shape.batch, plan.encoder.width
    items = rng.standard_normal((rows, shape.items, width), np.float32)

    def ids(high: int, *size: int) -> np.ndarray:
        return rng.integers(3, high, size).astype(np.int32)

    return {
        "prompts": ids(plan.decoder.vocab_size, rows, shape.prompt),
        "prompt_lengths": np.full(rows, shape.prompt, np.int32),
        "completions": ids(plan.decoder.vocab_size, rows, shape.answer),
        "completion_lengths": np.full(rows, shape.answer, np.int32),
        "is_copy": np.zeros(rows, bool),
        "queries": ids(plan.encoder.vocab_size, rows, shape.prompt),
        "query_lengths": np.full(rows, shape.prompt, np.int32),
        "items": items / np.linalg.norm(items, axis=-1, keepdims=True),
        "mask": np.ones((rows, shape.items), bool),
    }


class TorchPlug:
    """The same parts in torch: encoder and heads trained in float32, the model frozen."""

    def __init__(
        self,
        size: str,
        dtype: str,
        shape: Shape,
        arrays: Mapping[str, np.ndarray],
        batched: bool,
    ) -> None:
        import torch
        from transformers import BertConfig, BertModel

        self.shape, self.batched = shape, batched
        self.model, self.device = torch_model(size, dtype)
        self.model.requires_grad_(False)
        vocabulary, width, layers, heads, hidden, positions = ENCODERS[shape.encoder]
        config = BertConfig(
            vocab_size=vocabulary, hidden_size=width, num_hidden_layers=layers,
            num_attention_heads=heads, intermediate_size=hidden,
            max_position_embeddings=positions, hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )  # fmt: skip
        self.encoder = BertModel(config, add_pooling_layer=False).to(self.device)
        if shape.remat:
            self.model.train()  # there is no dropout in it; recomputing is for training only
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
            self.encoder.gradient_checkpointing_enable({"use_reentrant": False})
        self.half = torch.autocast(self.device, torch.bfloat16, enabled=dtype == "bfloat16")
        into = self.model.config.hidden_size

        def head() -> Any:
            return torch.nn.Sequential(
                torch.nn.Linear(width, into), torch.nn.GELU(), torch.nn.Linear(into, into)
            ).to(self.device)

        self.project, self.task = head(), head()
        self.token = torch.nn.Parameter(torch.rand(width, device=self.device))
        trained = [self.token]
        for part in (self.encoder, self.project, self.task):
            trained += list(part.parameters())
        self.optimiser = torch.optim.AdamW(trained, lr=1e-4, weight_decay=1e-4)
        self.arrays = {
            name: torch.tensor(array, device=self.device).long()
            if array.dtype == np.int32
            else torch.tensor(array, device=self.device)
            for name, array in arrays.items()
        }

    def joined(self, answers: bool) -> Any:
        """[B, 2 + T, D] embeddings of task token, persona, prompt and perhaps answer."""
        import torch

        given = self.arrays
        tokens = given["prompts"]
        if answers:
            tokens = torch.cat([tokens, given["completions"][:, :-1]], dim=1)
        with self.half:
            states = self.encoder(input_ids=given["queries"]).last_hidden_state
            queries = torch.nn.functional.normalize(states[:, 0].float(), dim=-1)
            personas = self._batch(queries) if self.batched else self._users(queries)
            task = self.task(self.token).expand(len(tokens), -1)
        embedded = self.model.get_input_embeddings()(tokens)
        soft = torch.stack([task, personas], dim=1).to(embedded.dtype)
        return torch.cat([soft, embedded], dim=1)

    def _batch(self, queries: Any) -> Any:
        import torch

        items, (inner, gelu, outer) = self.arrays["items"], self.project
        weights = torch.softmax(torch.einsum("BE,BnE->Bn", queries, items), dim=1)
        return outer(torch.einsum("Bn,BnD->BD", weights, gelu(inner(items))))

    def _users(self, queries: Any) -> Any:
        import torch

        pairs = zip(queries, self.arrays["items"], strict=True)
        return torch.stack(
            [
                torch.softmax(history @ query, dim=0) @ self.project(history)
                for query, history in pairs
            ]
        )

    def step(self) -> Any:
        """One step of AdamW; returns the loss."""
        import torch

        self.optimiser.zero_grad(set_to_none=True)
        joined, answers = self.joined(answers=True), self.arrays["completions"]
        count = answers.shape[1]
        options = {"logits_to_keep": count} if self.batched else {}
        logits = self.model(inputs_embeds=joined, use_cache=False, **options).logits
        last = logits[:, -count:].float()
        loss = torch.nn.functional.cross_entropy(last.flatten(0, 1), answers.flatten())
        loss.backward()
        self.optimiser.step()
        return harness.wait(loss.detach())
