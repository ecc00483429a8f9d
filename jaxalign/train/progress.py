"""Progress of long work on standard error."""

import time

from rich.console import Console

console = Console(stderr=True, highlight=False)


class Progress:
    """Lines that say what is being done, each with the seconds since the start."""

    def __init__(self, show: bool = True) -> None:
        self._show = show
        self._start = time.monotonic()

    def say(self, text: str) -> None:
        """Print one line."""
        if self._show:
            console.print(f"[dim]{time.monotonic() - self._start:6.1f} s[/dim]  {text}")
