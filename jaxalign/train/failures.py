"""What a training that fails leaves behind and says: the last state, too little memory, streaks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax

from jaxalign.errors import InputError
from jaxalign.models.params import PyTree
from jaxalign.runs.log import MetricsLog
from jaxalign.train.checkpoint import Checkpoints

_PATIENCE = 5  # steps in a row before the first warning; each further one waits twice as long
MEMORY_REMEDY = (
    "raise micro_batches, set weights and compute to bfloat16 and remat to nothing_saveable, train "
    "an adapter instead of all parameters, or spread the model over more devices with mesh"
)
"""What to do where a training does not fit into the memory of its devices."""


def describe_last_state(checkpoints: Checkpoints | None) -> str:
    """Return which state is on disk, for a message; waits for what is being written.

    Args:
        checkpoints: of the run; None where it keeps nothing.

    Example:
        >>> from jaxalign.train.failures import describe_last_state
        >>> describe_last_state(None)
        'no state is kept'
    """
    step = None
    if checkpoints is not None:
        checkpoints.wait()
        step = checkpoints.latest_step()
    return "no state is kept" if step is None else f"the state of step {step} is kept"


@contextmanager
def memory_refusal(where: Callable[[], str]) -> Iterator[None]:
    """Turn a device's lack of memory into one sentence that says what to do.

    Args:
        where: returns what does not fit and what is on disk, the start of the sentence.

    Raises:
        InputError: the device has too little memory.

    Example:
        >>> import jax
        >>> from jaxalign.train.failures import memory_refusal
        >>> try:
        ...     with memory_refusal(lambda: "step 3"):
        ...         raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        ... except ValueError as error:
        ...     print(str(error).partition(" micro_batches")[0])
        step 3: the device has too little memory (Out of memory): raise
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        kind, _, said = str(error).partition(":")
        if kind != "RESOURCE_EXHAUSTED":
            raise
        detail = said.strip().split("\n")[0].rstrip(".")
        raise InputError(
            f"{where()}: the device has too little memory ({detail}): {MEMORY_REMEDY}."
        ) from error


@contextmanager
def guarded_step(
    state: PyTree,
    step: int,
    log: MetricsLog,
    checkpoints: Checkpoints | None,
    where: Callable[[], str],
) -> Iterator[None]:
    """Run a step, and save the state that it began with where it fails before it changes it.

    Nothing is saved where the state was donated to the step already, or where several processes
    train: the others may not have failed, and would be waited for.

    Args:
        state: before the step.
        step: steps taken before.
        log: of the run; what waits in it is written first.
        checkpoints: of the run; None where it keeps nothing.
        where: returns what a message adds on the step.

    Raises:
        InputError: the device has too little memory, or the metrics of the step before are not
            finite, so that the state is no good.
    """
    try:
        with memory_refusal(lambda: f"step {step + 1}{where()}"):
            yield
    except BaseException:
        donated = any(leaf.is_deleted() for leaf in jax.tree.leaves(state))
        if not (checkpoints is None or donated or step == 0 or jax.process_count() > 1):
            log.flush()
            checkpoints.wait()
            if step not in checkpoints.steps():
                checkpoints.save(step, state)
        raise


class Streak:
    """Counts steps in a row, and says when to warn: after 5, then after twice as many.

    Attributes:
        length: steps in a row so far.

    Example:
        >>> from jaxalign.train.failures import Streak
        >>> streak = Streak()
        >>> [step for step in range(1, 21) if streak.is_due(True)]
        [5, 10, 20]
    """

    def __init__(self) -> None:
        """Start with none."""
        self.length, self._next = 0, _PATIENCE

    def is_due(self, holds: bool) -> bool:
        """Take whether a step has what is counted, and return whether to warn now."""
        self.length = self.length + 1 if holds else 0
        if not holds:
            self._next = _PATIENCE
        if self.length < self._next:
            return False
        self._next *= 2
        return True
