"""What a training run writes as it goes: metrics.jsonl, and lines on the terminal."""

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from jaxalign.errors import InputError
from jaxalign.train.files import write_text

_SAY_EVERY = 5.0  # seconds
_JUDGED = "validation_"


class Log:
    """metrics.jsonl, and a line on the terminal now and then.

    Args:
        path: of the file; lines after `step` are taken out of it.
        step: steps taken so far.
        steps: how many there are in all.
        say: where lines for people go.

    Attributes:
        judgements: means over the validation rows, by the steps taken before.
    """

    def __init__(self, path: Path, step: int, steps: int, say: Callable[[str], None]) -> None:
        self._path, self._steps, self._say = path, steps, say
        self._waiting: tuple[int, int, Any] | None = None
        self._said = self._last = time.monotonic()
        self._tokens = 0
        # What an interrupted run had written after its last state comes again.
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        whole = [line for line in lines if line.endswith("}")]
        kept = [line for line in whole if json.loads(line)["step"] <= step]
        write_text(path, "".join(f"{line}\n" for line in kept))
        self.judgements: dict[int, dict[str, float]] = {}
        for line in map(json.loads, kept):
            means = {n.removeprefix(_JUDGED): v for n, v in line.items() if n.startswith(_JUDGED)}
            if means:
                self.judgements[line["step"]] = means
        if step:
            say(f"resumed at step {step} of {steps}")

    def add(self, step: int, tokens: int, metrics: Any) -> None:
        """Takes a step's metrics, and writes those of the step before."""
        # One step late, so that the device does not wait for the host.
        waiting, self._waiting = self._waiting, (step, tokens, metrics)
        self._write(waiting)

    def flush(self) -> None:
        """Writes what waits."""
        waiting, self._waiting = self._waiting, None
        self._write(waiting)

    def judged(self, step: int, means: Mapping[str, float]) -> None:
        """Writes how the validation rows did."""
        self.judgements[step] = _finite(step, means)
        self._line({"step": step} | {f"{_JUDGED}{name}": v for name, v in means.items()})
        shown = ", ".join(f"{name} {value:.4f}" for name, value in means.items())
        self._say(f"step {step} of {self._steps}: validation {shown}")
        self._last = time.monotonic()  # judging is not the steps' time

    def best(self) -> int:
        """The first of the steps with the lowest validation loss, the start left out."""
        after = [step for step in self.judgements if step]
        return min(after, key=lambda step: self.judgements[step]["loss"])

    def _write(self, waiting: tuple[int, int, Any] | None) -> None:
        if waiting is None:
            return
        step, tokens, metrics = waiting
        values = _finite(step, jax.device_get(metrics))
        now = time.monotonic()
        seconds, self._last = now - self._last, now
        self._tokens += tokens
        self._line({"step": step, **values, "tokens": tokens, "seconds": round(seconds, 4)})
        if now - self._said > _SAY_EVERY or step == self._steps:
            speed = self._tokens / (now - self._said)
            self._say(
                f"step {step} of {self._steps}: loss {values['loss']:.4f}, {speed:,.0f} tokens/s"
            )
            self._said, self._tokens = now, 0

    def _line(self, values: Mapping[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")


def _finite(step: int, values: Mapping[str, Any]) -> dict[str, float]:
    plain = {name: float(value) for name, value in values.items()}
    for name, value in plain.items():
        if not math.isfinite(value):
            raise InputError(
                f"step {step}: {name} is {value}; expected a number: lower optimiser.rate, or "
                "raise optimiser.warmup, and start again in a new folder."
            )
    return plain
