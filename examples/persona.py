"""A soft token made of a user's history steers a frozen (tiny, random) language model."""

import jax
import jax.numpy as jnp
import optax

from jaxalign import pplug
from jaxalign.models import families
from jaxalign.models.decoder_config import DecoderConfig
from jaxalign.pplug import PersonaConfig

KINDS, USERS, ITEMS, E = 4, 64, 8, 16  # a user likes one of 4 kinds; 8 items of 16 numbers each
decoder = DecoderConfig(
    "llama", vocab_size=12, width=32, layers=2, heads=2, kv_heads=1, head_width=16, hidden=48,
    positions=16,
)  # fmt: skip
keys = jax.random.split(jax.random.key(0), 5)
frozen = jax.tree.map(lambda x: 4 * x if x.ndim > 1 else x, families.init(keys[0], decoder))
config = PersonaConfig()
params = pplug.init_persona(keys[1], config, E, decoder.width, embedding_norm=1.0)
centres = jax.random.normal(keys[2], (KINDS, E))


def histories(key):
    """Users' kinds [USERS], and their items [USERS, ITEMS, E]."""
    kinds = jnp.arange(USERS) % KINDS
    return kinds, centres[kinds][:, None] + jax.random.normal(key, (USERS, ITEMS, E))


def log_probs(params, items):
    """Log-probabilities [V] of the next token after the persona and a prompt of two tokens."""
    persona = pplug.aggregate(params, jnp.zeros(E), items, jnp.ones(ITEMS), config)
    prompt = families.embed(decoder, frozen, jnp.array([[5, 6]]))
    states, _ = families.forward(
        decoder,
        frozen,
        lengths=jnp.array([3]),
        embeddings=jnp.concatenate([persona[None], prompt], 1),
    )
    return jax.nn.log_softmax(families.logits(frozen, states[0, -1]))


def loss(params, kinds, items):
    """The word of a user's kind is the right answer."""
    rows = jax.vmap(log_probs, (None, 0))(params, items)
    return -jnp.take_along_axis(rows, kinds[:, None], axis=1).mean()


@jax.jit
def train(params, kinds, items):
    """Adam on the persona's parameters alone; the model stays as it is."""
    optimiser = optax.adam(1e-2)

    def step(state, _):
        value, slope = jax.value_and_grad(loss)(state[0], kinds, items)
        updates, moments = optimiser.update(slope, state[1])
        return (optax.apply_updates(state[0], updates), moments), value

    (params, _), values = jax.lax.scan(step, (params, optimiser.init(params)), None, length=150)
    return params, values


params, values = train(params, *histories(keys[3]))
kinds, items = histories(keys[4])  # users that training has not seen
found = jax.vmap(log_probs, (None, 0))(params, items)[:, :KINDS].argmax(1)
print(f"loss {values[0]:.2f} -> {values[-1]:.2f}")
print(f"new users answered with the word of their kind: {(found == kinds).mean():.0%}")
