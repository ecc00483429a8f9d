"""Metrics of a training run: JSON lines on disk, lines on the terminal, experiment trackers."""

import importlib
import importlib.util
import json
import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

import jax

from jaxalign.errors import InputError
from jaxalign.files import write_text
from jaxalign.progress import duration
from jaxalign.runs.processes import is_first_process, on_first_process

FILE = "metrics.jsonl"
TIMING = ("seconds", "tokens_per_second", "peak_gib")
"""Metrics that differ from run to run; all others are reproduced to the bit."""
Tracker = Literal["tensorboard", "trackio", "wandb"]
"""Where metrics may be sent beside metrics.jsonl; each needs its package installed."""
_VALIDATION = "validation_"
_REMEDY = "lower optimiser.rate, or raise optimiser.warmup, and start again in a new folder"
_LINE_EVERY = 5.0  # seconds between two lines on the terminal
_RECENT = 20  # steps whose seconds tell how long the rest takes

Check = Callable[[int, dict[str, float]], None]
Where = Callable[[], str]
_Waiting = tuple[int, int | None, Mapping[str, jax.typing.ArrayLike], Check | None, Where]


class MetricsLog:
    """The metrics of every step, written one step late so that the device never waits.

    A resumed run drops the lines behind its last state, so that metrics.jsonl reads as if the run
    had never stopped.

    Attributes:
        history: metrics of the steps so far without timing, an interrupted run's included.
        validations: means over the validation rows, by the number of steps taken before.
    """

    def __init__(
        self,
        folder: Path | None,
        step: int,
        steps: int,
        say: Callable[[str], None],
        describe: Callable[[Mapping[str, float]], str],
        trackers: Sequence[Tracker] = (),
        remedy: str = _REMEDY,
    ) -> None:
        """Take up the metrics of an interrupted run.

        Args:
            folder: for metrics.jsonl and the trackers' files; None keeps metrics in memory only.
            step: steps taken so far.
            steps: steps in all.
            say: called with lines for people.
            describe: returns the part of such a line that follows "step 3 of 8: ".
            trackers: names of experiment trackers.
            remedy: what to do about a metric that is not finite, for messages.

        Raises:
            InputError: a tracker's package is not installed.
        """
        self._steps, self._say, self._describe, self._remedy = steps, say, describe, remedy
        path = None if folder is None else folder / FILE
        lines = [] if path is None else on_first_process(lambda: _kept(path, step))
        first = is_first_process()  # of several processes, the others write nothing
        self._path = path if first else None
        self.history = [_untimed(line) for line in lines if not _is_validation(line)]
        self.validations = {
            int(line["step"]): {
                name.removeprefix(_VALIDATION): value
                for name, value in line.items()
                if name.startswith(_VALIDATION)
            }
            for line in lines
            if _is_validation(line)
        }
        self._trackers = (
            [_tracker(name, folder, step) for name in trackers] if folder and first else []
        )
        self._waiting: _Waiting | None = None
        self._last = self._said = time.monotonic()
        self._recent: deque[float] = deque(maxlen=_RECENT)  # seconds of the last steps
        self._first = step + 1
        if step:
            say(f"resumed at step {step} of {steps}")

    def add(
        self,
        step: int,
        metrics: Mapping[str, jax.typing.ArrayLike],
        tokens: int | None = None,
        check: Check | None = None,
        where: Where = lambda: "",
    ) -> None:
        """Take the metrics of a step, and write those of the step before.

        Args:
            step: steps taken, this one included.
            metrics: scalars on the device.
            tokens: tokens of the step, unless `metrics` has them under "tokens".
            check: called with the step and its values before they are written; it may take values
                out, and raise.
            where: returns what a message adds on the step where a metric is not finite.

        Raises:
            InputError: a metric of the step before is not finite.
        """
        waiting, self._waiting = self._waiting, (step, tokens, metrics, check, where)
        self._write(waiting)

    def flush(self) -> None:
        """Write the metrics that wait.

        Raises:
            InputError: a metric is not finite.
        """
        waiting, self._waiting = self._waiting, None
        self._write(waiting)

    def close(self) -> None:
        """Close the trackers."""
        for tracker in self._trackers:
            tracker.close()

    def add_validation(
        self, step: int, means: Mapping[str, float], where: Where = lambda: ""
    ) -> None:
        """Write means over the validation rows.

        Args:
            step: steps taken before.
            means: by name; "loss" is what `best_step` compares.
            where: as in `add`.

        Raises:
            InputError: a mean is not finite.
        """
        named = {f"{_VALIDATION}{name}": value for name, value in means.items()}
        self._line({"step": step} | self._finite(step, named, where))
        self.validations[step] = dict(means)
        shown = ", ".join(f"{name} {value:.4f}" for name, value in means.items())
        self._say(f"step {step} of {self._steps}: validation {shown}")
        self._last = time.monotonic()  # validation does not count as time of the steps

    def best_step(self) -> int:
        """Return the first step with the lowest validation loss, the start left out."""
        after = [step for step in self.validations if step]
        return min(after, key=lambda step: self.validations[step]["loss"])

    def _write(self, waiting: _Waiting | None) -> None:
        if waiting is None:
            return
        step, tokens, metrics, check, where = waiting
        values = {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}
        if check is not None:
            check(step, values)
        values = self._finite(step, values, where)
        if tokens is not None:
            values["tokens"] = tokens
        now = time.monotonic()
        seconds, self._last = max(now - self._last, 1e-9), now
        if step > self._first:  # the first one compiles
            self._recent.append(seconds)
        entry = {"step": step, **values}
        self.history.append(dict(entry))
        entry |= {"seconds": round(seconds, 4)}
        if "tokens" in values:
            entry["tokens_per_second"] = round(values["tokens"] / seconds, 1)
        peak = peak_memory()
        entry |= {} if peak is None else {"peak_gib": round(peak, 3)}
        self._line(entry)
        if now - self._said > _LINE_EVERY or step == self._steps:
            self._said = now
            left = self._left(step)
            self._say(f"step {step} of {self._steps}: {self._describe(entry)}{left}")

    def _left(self, step: int) -> str:
        """Return what a line says of the time that is left, by the median of the last steps."""
        if not self._recent or step >= self._steps:
            return ""
        left = statistics.median(self._recent) * (self._steps - step)
        return f", about {duration(left)} left"

    def _line(self, entry: dict[str, float]) -> None:
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
        values = {name: value for name, value in entry.items() if name != "step"}
        for tracker in self._trackers:
            tracker.log(int(entry["step"]), values)

    def _finite(
        self, step: int, values: Mapping[str, float], where: Where = lambda: ""
    ) -> dict[str, float]:
        for name in sorted(values, key="loss".__ne__):  # what follows from a bad loss comes after
            value = values[name]
            if not math.isfinite(value):
                raise InputError(
                    f"step {step}: {name} is {value}; expected a finite number: "
                    f"{self._remedy}{where()}."
                )
        return dict(values)


def peak_memory() -> float | None:
    """Return the most GiB that the first device has held; None where the backend does not say."""
    stats = jax.local_devices()[0].memory_stats() or {}
    peak = stats.get("peak_bytes_in_use")
    return None if peak is None else peak / 2**30


def _is_validation(line: Mapping[str, float]) -> bool:
    return any(name.startswith(_VALIDATION) for name in line)


def _untimed(line: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in line.items() if name not in TIMING}


def _kept(path: Path, step: int) -> list[dict[str, float]]:
    """Return the lines up to a step, and drop the others from the file."""
    lines = path.read_text("utf-8").split("\n") if path.exists() else []
    parsed = [(line, json.loads(line)) for line in lines if line.endswith("}")]
    kept = [(line, values) for line, values in parsed if values["step"] <= step]
    write_text(path, "".join(f"{line}\n" for line, _ in kept))
    return [values for _, values in kept]


class _Sink(Protocol):
    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


def check_trackers(trackers: Sequence[Tracker]) -> None:
    """Refuse experiment trackers whose packages are not installed, before a run loads anything.

    Of several processes only the first one writes, and only it needs the packages.

    Raises:
        InputError: a tracker's package is not installed.
    """
    for name in trackers:
        if importlib.util.find_spec(_package(name)) is None:
            raise _missing(name)


def _package(tracker: Tracker) -> str:
    return "tensorboardX" if tracker == "tensorboard" else tracker


def _missing(tracker: Tracker) -> InputError:
    package = _package(tracker)
    return InputError(
        f"trackers names {tracker}, and {package} is not installed: pip install {package}, or "
        f"take it out of trackers; {FILE} holds the same numbers."
    )


def _tracker(name: Tracker, folder: Path, step: int) -> _Sink:
    try:
        module = importlib.import_module(_package(name))
    except ImportError:
        raise _missing(name) from None
    if name == "tensorboard":
        return _TensorBoard(module.SummaryWriter(str(folder / name), purge_step=step + 1))
    return _Experiment(module.init(project="jaxalign", name=folder.resolve().name))


class _BoardWriter(Protocol):
    def add_scalar(self, name: str, value: float, step: int) -> None: ...

    def close(self) -> None: ...


class _TensorBoard:
    def __init__(self, writer: _BoardWriter) -> None:
        self._writer = writer

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _ExperimentRun(Protocol):
    def log(self, values: dict[str, float], step: int) -> None: ...

    def finish(self) -> None: ...


class _Experiment:
    """A run of trackio or wandb, whose clients have the same face."""

    def __init__(self, run: _ExperimentRun) -> None:
        self._run = run

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()
