"""The demo's last stage: a frozen language model, told by one soft token who is asking.

The language model is a toy, made here in a second: it repeats the word that stands second. What it
is for is to be frozen. All that is learned of a user has to reach it as one vector in place of that
word, made from all answers that the user chose.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign import pplug
from jaxalign.demo.answers import DemoAnswers
from jaxalign.demo.study import DIMS, DRAWS, SUPPORT, TRAIN_CHOICES, DemoData, Design, Study
from jaxalign.kernels.token_logprob import token_logprob
from jaxalign.metrics.bootstrap import mean_interval
from jaxalign.models import families
from jaxalign.models.completions import CompletionBatch, completion_states
from jaxalign.models.decoder import unembedding
from jaxalign.models.decoder_config import DecoderConfig
from jaxalign.mrm.reduce import fit_projection
from jaxalign.personalize._project import within
from jaxalign.pplug.model import drop_items, embedding_norm
from jaxalign.pplug.persona import PersonaParams
from jaxalign.rewards.rules import TRAITS
from jaxalign.train import optimiser
from jaxalign.train.optimiser import OptimiserConfig, TrainState

PROMPT = ("this", "reader", "likes", "most", ":")
VOCABULARY = ("</s>", *TRAITS, *PROMPT)
STOP, FIRST = 0, 1  # the stop token, and the name of the first trait
TOY = DecoderConfig(
    "llama", len(VOCABULARY), width=32, layers=2, heads=2, kv_heads=1, head_width=16, hidden=64,
    positions=16,
)  # fmt: skip
TOY_STEPS = 200
TOY_OPTIMISER = OptimiserConfig(rate=1e-2, schedule="linear", warmup=0.05)
PERSONA = pplug.PersonaConfig(mean=True)
"""All items weigh alike: there is one prompt, so that no input encoder is needed."""
STEPS, BATCH = 300, 64
OPTIMISER = OptimiserConfig(rate=3e-3, schedule="linear", warmup=0.05, weight_decay=0.1)
THINNED = 0.5
"""The largest share of a training user's answers that a step leaves out."""
WHITEN = 0.5

Tree = dict[str, Any]


class Readers(NamedTuple):
    """U users, for whom there is one right answer.

    Attributes:
        chosen: [U, n] int32, the answers that each chose.
        mask: [U, n] bool, those that may be looked at.
        likes: [U] int32, the token of what each truly likes most.
    """

    chosen: Any
    mask: Any
    likes: Any

    def nobody(self) -> "Readers":
        """The same users without a history."""
        return self._replace(mask=np.zeros_like(self.mask))


def run_plug(
    encoded: np.ndarray,
    answers: DemoAnswers,
    plan: Design,
    world: DemoData,
    studies: dict[str, Study],
    seed: int,
) -> dict[str, Any]:
    """Train a plug on the training users, and let the toy say what unseen users like most.

    Args:
        encoded: [N, E], the encoder's vectors of the answers.
        answers: for the prompt of each.
        plan: who is a test user, and which prompts are known.
        world: users of linear taste; of the test users the support choices alone are read.
        studies: what was inferred of the test users, to compare with.
        seed: of the toy and of the training.

    Returns:
        Its part of report.json.
    """
    vectors = item_vectors(encoded, answers, plan)
    train = _readers(world, plan.train, world.fitted.chosen)
    test = _readers(world, plan.test, world.support["test"].chosen)
    key = jax.random.key(seed)
    toy = make_toy(key, fresh_toy(seed), TOY_STEPS)
    norm = embedding_norm(toy["embed"]["table"])
    own = learn(key, toy, norm, vectors, train, STEPS)
    # The same program and as many passes: all that it lacks is the users.
    task = learn(key, toy, norm, vectors, train.nobody(), STEPS)
    said, always = (
        np.asarray(name(toy, prefixes(params, vectors, readers)))
        for params, readers in ((own, test), (task, test.nobody()))
    )
    likes = np.asarray(test.likes)
    right = {
        "persona": said == likes,
        "another": said_of_others(said, likes),
        "task": always == likes,
        "most_frequent": np.bincount(train.likes).argmax() == likes,
    }
    scores = {name: np.asarray(values, np.float64) for name, values in right.items()}
    return {
        "prompt": " ".join(PROMPT).replace(" :", ":"),
        "toy": {
            "layers": TOY.layers,
            "width": TOY.width,
            "vocabulary": TOY.vocab_size,
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(toy)),
            "repeats": repeats(toy, len(likes)),
        },
        "trained_parameters": sum(leaf.size for leaf in jax.tree.leaves(own)),
        "choices": {"train": TRAIN_CHOICES, "judge": SUPPORT},
        "steps": STEPS,
        "accuracy": {name: _interval(seed, values) for name, values in scores.items()},
        "gain": {
            name: _interval(seed, scores["persona"] - scores[name]) for name in ("another", "task")
        },
        "by_inferred_weights": {
            kind: float((FIRST + study.mean.argmax(axis=1) == likes).mean())
            for kind, study in studies.items()
        },
    }


def item_vectors(encoded: np.ndarray, answers: DemoAnswers, plan: Design) -> np.ndarray:
    """What each answer has beyond the others to its prompt, in few directions: [N, at most DIMS].

    Users choose among answers to prompts that they did not choose: what a prompt is about says
    nothing of them. The directions are those of the answers to known prompts.
    """
    beyond = within(encoded, answers.prompt)
    fitted = np.isin(answers.prompt, plan.known)
    return fit_projection(beyond[fitted], DIMS, WHITEN).apply(beyond)


def fresh_toy(seed: int) -> Tree:
    """Parameters before training, of config TOY; drawn on the host, where nothing is compiled."""
    rng = np.random.default_rng([seed, 4])
    shapes = jax.eval_shape(partial(families.init, config=TOY), jax.random.key(0))

    def draw(path: Any, leaf: Any) -> jax.Array:
        if path[-1].key == "scale":
            return jnp.ones(leaf.shape, jnp.float32)
        # Larger than usual, so that tokens are told apart from the start.
        return jnp.asarray(0.1 * rng.normal(size=leaf.shape), jnp.float32)

    toy: Tree = jax.tree_util.tree_map_with_path(draw, shapes)
    return toy


@partial(jax.jit, static_argnames="steps")
def make_toy(key: jax.Array, toy: Tree, steps: int) -> Tree:
    """Train a decoder to name after the prompt the trait that stands second before it.

    Args:
        key: random key.
        toy: as from `fresh_toy`.
        steps: static.

    Returns:
        Its parameters.
    """

    def step(state: TrainState, _: None) -> tuple[TrainState, None]:
        drawn = jax.random.fold_in(state.key, state.step)
        first, second = jax.random.randint(drawn, (2, BATCH), 0, 2**30, jnp.int32)
        likes = FIRST + second % len(TRAITS)
        before = jnp.stack([first % len(VOCABULARY), likes], axis=1)

        def loss(params: Tree) -> jax.Array:
            return _nats(params, families.embed(TOY, params, before), likes).mean()

        gradient = jax.grad(loss)(state.params)
        return optimiser.apply(state, gradient, TOY_OPTIMISER, steps)[0], None

    state = optimiser.start(key, toy, TOY_OPTIMISER)
    return jax.lax.scan(step, state, None, steps)[0].params


def repeats(toy: Tree, rows: int) -> float:
    """How often the toy names the trait that it is told, behind one word or another."""
    number = np.arange(rows, dtype=np.int32)
    likes = FIRST + number % len(TRAITS)
    before = np.stack([number // len(TRAITS) % len(VOCABULARY), likes], axis=1)
    soft = families.embed(TOY, toy, before)
    return float((np.asarray(name(toy, soft)) == likes).mean())


@partial(jax.jit, static_argnames="steps")
def learn(key: jax.Array, toy: Tree, norm: float, vectors: Any, train: Readers, steps: int) -> Tree:
    """Train a plug through the frozen toy, by next-token loss of the right answers.

    Args:
        key: random key.
        toy: as from `make_toy`.
        norm: mean length of its embeddings.
        vectors: [N, E] of the answers.
        train: whom to learn from, in each step without some of their answers.
        steps: static.

    Returns:
        Parameters as from `jaxalign.pplug.init_persona`.
    """
    begin, rest = jax.random.split(key)
    vectors = jnp.asarray(vectors)
    # Of length 1 and lengthened here: a length that is traced compiles once for all toys.
    fresh = pplug.init_persona(begin, PERSONA, vectors.shape[1], TOY.width, 1.0)
    fresh["task"]["scale"] *= norm
    # Measured on everyone's, a history or none.
    fresh = pplug.rescale_persona(fresh, prefixes(fresh, vectors, train)[:, 1:], norm)

    def step(state: TrainState, _: None) -> tuple[TrainState, None]:
        who, what = jax.random.split(jax.random.fold_in(state.key, state.step))
        rows = jax.random.randint(who, (BATCH,), 0, len(train.likes), jnp.int32)
        batch = Readers(*(jnp.asarray(part)[rows] for part in train))
        keys = jax.random.split(what, BATCH)
        less = batch._replace(mask=jax.vmap(partial(drop_items, share=THINNED))(keys, batch.mask))

        def loss(params: PersonaParams) -> jax.Array:
            return _nats(toy, prefixes(params, vectors, less), less.likes).mean()

        gradient = jax.grad(loss)(state.params)
        return optimiser.apply(state, gradient, OPTIMISER, steps)[0], None

    state = optimiser.start(rest, fresh, OPTIMISER)
    return jax.lax.scan(step, state, None, steps)[0].params


@jax.jit
def prefixes(params: PersonaParams, vectors: jax.Array, readers: Readers) -> jax.Array:
    """The task token and each user's persona, before the prompt: [U, 2, D]."""
    one = jax.vmap(partial(pplug.aggregate, config=PERSONA), (None, None, 0, 0))
    nothing = jnp.zeros(vectors.shape[1], jnp.float32)  # a mean does not look at the prompt
    personas = one(params, nothing, vectors[readers.chosen], readers.mask)
    task = jnp.tile(pplug.task_token(params)[None], (len(personas), 1, 1))
    return jnp.concatenate([task, personas], axis=1)


@jax.jit
def name(toy: Tree, soft: jax.Array) -> jax.Array:
    """The toy's likeliest answer of all its words: soft tokens [U, 2, D] -> [U] int."""
    states, _ = _states(toy, soft, jnp.zeros(len(soft), jnp.int32))
    return families.logits(toy, states[:, 0]).argmax(axis=-1)


def said_of_others(said: np.ndarray, likes: np.ndarray) -> np.ndarray:
    """How often other users' personas name what a user likes: said, likes [U] -> [U]."""
    hits = said[None, :] == likes[:, None]
    return (hits.sum(axis=1) - np.diagonal(hits)) / max(len(said) - 1, 1)


def _readers(world: DemoData, users: np.ndarray, chosen: np.ndarray) -> Readers:
    likes = FIRST + world.people.weights[users].argmax(axis=1)
    return Readers(chosen.astype(np.int32), np.ones(chosen.shape, bool), likes.astype(np.int32))


def _states(toy: Tree, soft: jax.Array, likes: jax.Array) -> tuple[jax.Array, CompletionBatch]:
    """The states before each token of the answers, a name and the stop token."""
    rows = len(soft)
    words = jnp.asarray([VOCABULARY.index(word) for word in PROMPT], jnp.int32)
    tokens = jnp.stack([likes, jnp.full(rows, STOP, jnp.int32)], axis=1)
    lengths, ends = (jnp.full(rows, count, jnp.int32) for count in (len(words), 2))
    given = CompletionBatch(jnp.tile(words, (rows, 1)), lengths, tokens, ends)
    return completion_states(TOY, toy, given, prefix=soft), given


def _nats(toy: Tree, soft: jax.Array, likes: jax.Array) -> jax.Array:
    """Negative log-probability of each right answer: soft [B, 2, D], likes [B] -> [B]."""
    states, given = _states(toy, soft, likes)
    return -token_logprob(states, unembedding(toy), given.completions)[0].sum(axis=1)


def _interval(seed: int, values: np.ndarray) -> dict[str, float]:
    found = mean_interval(seed, values, DRAWS)
    return {"mean": found.mean, "low": found.low, "high": found.high}
