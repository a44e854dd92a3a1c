"""The output of the demo: steps with their waiting time, on a terminal or in a log file."""

from __future__ import annotations

import asyncio
import codecs
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from rich.console import Console
from rich.markup import escape
from rich.status import Status

# In a log nothing moves, so a line says now and then what is being waited for.
LOG_INTERVAL = 3.0
TERMINAL_INTERVAL = 0.2
LOG_WIDTH = 118
# For terminals and logs that are not in UTF-8.
PLAIN_SIGNS = {"✓": "ok", "✗": "x", "…": "...", "■": "#", "□": "+", "“": '"', "”": '"'}
PLAIN_ERRORS = "nvcf-demo-plain-signs"


class Step:
    """A step that takes time. `note` is what it waits for now, `result` its outcome."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.note = ""
        self.result = ""
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def waiting_line(self) -> str:
        note = f": {self.note}" if self.note else ""
        return f"{escape(self.title)}{escape(note)} [dim]({self.seconds:.0f} s)[/dim]"

    def done_line(self) -> str:
        result = f" {escape(self.result)}" if self.result else ""
        return f"[green]✓[/green] {escape(self.title)}:{result} [dim]{self.seconds:.1f} s[/dim]"


class Screen:
    def __init__(self, console: Console | None = None) -> None:
        self.console = console or _console()

    def heading(self, text: str) -> None:
        self.console.print()
        self.console.rule(f"[bold]{escape(text)}[/bold]", align="left")

    def line(self, text: str = "") -> None:
        """Print one line with rich markup. External text goes through `plain`."""
        self.console.print(text)

    def plain(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    @asynccontextmanager
    async def step(self, title: str) -> AsyncIterator[Step]:
        """Show a step for the length of the block."""
        step = Step(title)
        ticker = asyncio.create_task(self._tick(step))
        try:
            yield step
        except BaseException:
            await _end(ticker)
            self.console.print(f"[red]✗[/red] {step.waiting_line()}")
            raise
        await _end(ticker)
        self.console.print(step.done_line())

    async def _tick(self, step: Step) -> None:
        if self.console.is_terminal:
            with Status(step.waiting_line(), console=self.console) as status:
                while True:
                    await asyncio.sleep(TERMINAL_INTERVAL)
                    status.update(step.waiting_line())
        self.console.print(f"  {escape(step.title)} …")
        while True:
            await asyncio.sleep(LOG_INTERVAL)
            self.console.print(f"    still waiting: {step.waiting_line()}")


def plain_signs(error: UnicodeError) -> tuple[str, int]:
    """Replace signs that an encoding lacks. This is an error handler for `codecs`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(PLAIN_SIGNS.get(sign, "?") for sign in lacking), error.end


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.result()


def _console() -> Console:
    codecs.register_error(PLAIN_ERRORS, plain_signs)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors=PLAIN_ERRORS, line_buffering=True)
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=LOG_WIDTH)
