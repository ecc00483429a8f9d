"""Meta-training on more choices than memory holds: features streamed from disk by blocks of users.

An epoch takes the blocks in a fresh order, and the users of a block in a fresh order, so that every
byte is read once and from beginning to end of a block; the next block is read while the device
works on this one.
"""

import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.data.batching import Pairs
from jaxalign.data.pair_file import Block, PairFile, block_pairs
from jaxalign.errors import InputError
from jaxalign.mrm import train
from jaxalign.mrm.base import Params, is_linear
from jaxalign.mrm.config import MRMConfig
from jaxalign.mrm.diverged import all_finite, training_diverged
from jaxalign.runs import open_run_dir
from jaxalign.runs.stop import stop_request
from jaxalign.train.checkpoint import Checkpoints


@dataclass(frozen=True)
class StreamResult:
    """What `fit_stream` gives.

    Attributes:
        params: after the last epoch, as from `mrm.init`.
        losses: [epochs] mean query loss of each.
        bytes_read: of features, by this call.
    """

    params: Params
    losses: np.ndarray
    bytes_read: int


@dataclass(frozen=True)
class StreamPlan:
    """The blocks of every epoch, a function of the seed and the number of the epoch alone.

    Attributes:
        users: in the file.
        size: users of a block; the last one has what is left.
        seed: of the order.
    """

    users: int
    size: int
    seed: int

    def __len__(self) -> int:
        """Blocks of an epoch."""
        return -(-self.users // self.size)

    def epoch(self, number: int) -> list[tuple[int, int]]:
        """Start and end of each block; the short one comes last, after full batches only."""
        rng = np.random.Generator(np.random.PCG64([self.seed, number]))
        order = [*rng.permutation(self.users // self.size)]
        order += range(len(order), len(self))
        return [(int(b) * self.size, min((int(b) + 1) * self.size, self.users)) for b in order]


@dataclass(frozen=True)
class StreamRun:
    """What decides the result of a streamed run.

    Attributes:
        plan: the blocks.
        config: the model.
    """

    plan: StreamPlan
    config: MRMConfig


def fit_stream(
    choices: PairFile,
    config: MRMConfig | None = None,
    seed: int = 0,
    block_users: int = 2048,
    folder: str | Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> StreamResult:
    """Train MRM on choices whose features stay on disk.

    At most three blocks are in memory, 4 P E bytes a user each and the differences as float32.

    Args:
        choices: from `data.pair_file.open_pairs` or `data.pair_file.write_pairs`.
        config: the model; the authors' recipe by default.
        seed: of the parameters, the order and the draws of support and query.
        block_users: users of a block, rounded up to whole batches.
        folder: where the state is kept after every tenth of an epoch, and resumed from; `epochs`
            may have been raised since.
        say: receives a line of progress after each epoch.

    Returns:
        StreamResult; the same bits however often the run was interrupted.

    Raises:
        InputError: training diverged (with the epoch and the users of the block; the state before
            is on disk), or the folder holds another run or one on other choices.
    """
    config = config or MRMConfig()
    users = len(choices.users)
    batch = min(config.users_per_batch, users)
    plan = StreamPlan(users, -(-min(block_users, users) // batch) * batch, seed)
    state = train.init_state(jax.random.key(seed), config, choices.width, users)
    carried = (state, jnp.zeros((config.epochs,), jnp.float32))
    most_groups = int(choices.group.max()) + 1
    total, done, read = config.epochs * len(plan), 0, 0
    run = None
    if folder is not None:
        identity = {"choices": choices.digest}
        run = open_run_dir(folder, "mrm stream", StreamRun(plan, config), identity, resume=True)
    states = Checkpoints(run.state, keep=2) if run else nullcontext()
    with stop_request() as stop, states as kept:
        latest = kept.latest_step() if kept else None
        if kept and latest is not None:
            begun = _epochs_begun(latest, plan)
            state, losses = kept.restore((state, carried[1][:begun]))
            done, carried = latest, (state, jnp.pad(losses, (0, config.epochs - begun)))
        for epoch, start, block in _blocks(choices, plan, done, config.epochs):
            read += block.bytes
            place = jnp.asarray([epoch, start], jnp.int32)
            carried = _step(carried, place, block_pairs(block), block.features, config, most_groups)
            # Waited for, so that no more than the next block piles up behind it.
            jax.block_until_ready(carried)
            loss = float(carried[1][epoch])
            if not all_finite((carried[0].params, loss)):
                raise _diverged(epoch, start, config, plan, kept)
            done += 1
            if done % len(plan) == 0:
                say(f"epoch {epoch + 1} of {config.epochs}, query loss {loss:.4f}")
            if kept and (stop.asked or done == total or done % max(len(plan) // 10, 1) == 0):
                # The epochs to come are left out, so that a longer run can go on from here.
                kept.save(done, (carried[0], carried[1][: _epochs_begun(done, plan)]))
            if stop.asked:
                break
    state, losses = carried
    return StreamResult(jax.device_get(state.params), np.asarray(losses), read)


def _epochs_begun(done: int, plan: StreamPlan) -> int:
    """Number of epochs that the first `done` blocks belong to."""
    return -(-done // len(plan))


def _blocks(
    choices: PairFile, plan: StreamPlan, done: int, epochs: int
) -> Iterator[tuple[int, int, Block]]:
    """Epoch, first user and block from the block `done` on, each read while the last is used."""
    places = [
        (epoch, *place)
        for epoch in range(done // len(plan), epochs)
        for place in plan.epoch(epoch)[done % len(plan) if epoch == done // len(plan) else 0 :]
    ]

    def read(start: int, stop: int) -> Block:
        block = choices.read(start, stop)
        features, weight, group = map(jnp.asarray, block[:3])
        return Block(features, weight, group, block.bytes)

    with ThreadPoolExecutor(1) as reader:
        coming = [reader.submit(read, *place[1:]) for place in places[:1]]
        for number, (epoch, start, _) in enumerate(places):
            block = coming.pop().result()
            coming += [reader.submit(read, *place[1:]) for place in places[number + 1 : number + 2]]
            yield epoch, start, block


@functools.partial(jax.jit, static_argnames=("config", "most_groups"), donate_argnames="carried")
def _step(
    carried: tuple[train.MetaTrainState, jax.Array],
    place: jax.Array,
    pairs: Pairs,
    features: jax.Array,
    config: MRMConfig,
    most_groups: int,
) -> tuple[train.MetaTrainState, jax.Array]:
    """A pass over one block; `place` is its epoch and the number of its first user."""
    state, history = carried
    _, masks, order = draw_block(state.key, place, pairs, config, most_groups)
    values = features.astype(jnp.float32)
    if is_linear(config):
        table = values[:, :, 0] - values[:, :, 1]
    else:
        table = values.reshape(-1, values.shape[-1])
    state, losses = train.take_steps(state, table, pairs, masks, order, config, place[1])
    steps = train.steps_per_epoch(state.population.shape[0], config)
    return state, history.at[place[0]].add(jnp.sum(losses) / steps)


def draw_block(
    key: jax.Array, place: jax.Array, pairs: Pairs, config: MRMConfig, most_groups: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array], jax.Array]:
    """What `train.draw_epoch` draws for the block at an epoch and first user, `place` [2]."""
    mine = jax.random.fold_in(jax.random.fold_in(key, place[0]), place[1])
    return train.draw_epoch(mine, pairs, config, most_groups)


def _diverged(
    epoch: int, start: int, config: MRMConfig, plan: StreamPlan, kept: Checkpoints | None
) -> InputError:
    """The error of a pass over a block that diverged, with the last good state."""
    if kept is not None:
        kept.wait()
    latest = None if kept is None else kept.latest_step()
    last = "no state is kept" if latest is None else f"the state of block {latest} is kept"
    users = f"users {start} to {min(start + plan.size, plan.users) - 1} of the file"
    where = f"epoch {epoch + 1} of {config.epochs}, {users}"
    return training_diverged("mrm stream", where, train.remedy(config), kept=last)
