"""What the commands show: tables and progress on a terminal, plain lines and JSON elsewhere."""

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

_PIPE_WIDTH = 2000
_STATE_STYLES = {
    "ACTIVE": "green",
    "RUNNING": "green",
    "running": "green",
    "DEGRADING": "yellow",
    "DEGRADED": "red",
    "ERROR": "red",
    "FAILED": "red",
    "waiting": "red",
    "live": "green",
    "silent": "red",
    "draining": "yellow",
    "COMPLETED": "dim",
    "INACTIVE": "dim",
}


def console(*, stderr: bool = False) -> Console:
    """Return a new console, which uses the standard streams of this moment."""
    return Console(stderr=stderr, highlight=False, soft_wrap=True)


def print_json(value: Any, indent: int | None = 2) -> None:
    """Print JSON; on one line without `indent`."""
    sys.stdout.write(json.dumps(value, indent=indent, ensure_ascii=False) + "\n")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], empty: str) -> None:
    """Print a table, or the sentence `empty` if there are no rows."""
    listed = list(rows)
    out = console()
    if not listed:
        out.print(Text(empty, style="dim"))
        return
    if not out.is_terminal:
        # For a file or a pipe nothing may be wrapped: one line a row.
        out = Console(highlight=False, width=_PIPE_WIDTH)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        # The last column has the longest texts: reasons. It takes several lines on a narrow terminal.
        table.add_column(column, no_wrap=column != columns[-1], overflow="fold")
    for row in listed:
        table.add_row(*(Text(visible(cell), style=_STATE_STYLES.get(cell, "")) for cell in row))
    out.print(table)


def cell(record: dict[str, Any], name: str) -> str:
    """Return a member of a JSON object as a table's cell; empty if it is missing."""
    value = record.get(name)
    return "" if value is None else visible(str(value))


def visible(text: str) -> str:
    """Replace the control characters in text from outside: a terminal would obey them."""
    return "".join(
        each if each.isprintable() or each in "\n\t" else "\N{REPLACEMENT CHARACTER}" for each in text
    )


def shortened(text: str, width: int) -> str:
    """Return text of at most `width` characters: names differ at their ends, so the middle is left out."""
    if len(text) <= width:
        return text
    head = max(1, width - 1) // 2
    return f"{text[:head]}…{text[len(text) - (width - 1 - head) :]}"


def age(timestamp: object, now: datetime | None = None) -> str:
    """Return how long ago an RFC 3339 time was, in one unit: `42s`, `5m`, `3h`, `2d`."""
    try:
        moment = datetime.fromisoformat(str(timestamp))
    except ValueError:
        return ""
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    seconds = max(0, int(((now or datetime.now(UTC)) - moment).total_seconds()))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


class StatusLine:
    """One changing line on a terminal; elsewhere each new text is a line."""

    def __init__(self) -> None:
        self._console = console(stderr=True)
        self._status = self._console.status("") if self._console.is_terminal else None
        self._last = ""

    def __enter__(self) -> "StatusLine":
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()

    def show(self, text: str) -> None:
        """Show what is going on now."""
        if text == self._last:
            return
        self._last = text
        if self._status is not None:
            self._status.update(Text(text))
        else:
            self._console.print(Text(text))
