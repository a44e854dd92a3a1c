"""Output of an instance: a log file of bounded size, and the last lines."""

import asyncio
import logging
from collections import deque
from pathlib import Path

_log = logging.getLogger(__name__)

LOG_LIMIT_BYTES = 10 * 1024 * 1024
LOG_GENERATIONS = 2
TAIL_LINES = 20
TAIL_LINE_CHARACTERS = 4000
"""A line may be a log record in JSON with a traceback: what is cut off is no JSON any more."""
TAIL_CHARACTERS = 12_000
_CHUNK_BYTES = 64 * 1024


class RotatingLog:
    """A log file. When it is full it becomes `NAME.1`, the one before `NAME.2`, and so on.

    Its methods block for a write to a local file, so call them from a thread.
    """

    def __init__(
        self, path: Path, *, limit: int = LOG_LIMIT_BYTES, generations: int = LOG_GENERATIONS
    ) -> None:
        self.path = path
        self._limit = limit
        self._generations = generations
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._file = path.open("ab")
        path.chmod(0o600)

    def write(self, data: bytes) -> None:
        """Append data. The file is rotated before a write would exceed the limit."""
        if self._file.tell() and self._file.tell() + len(data) > self._limit:
            self._rotate()
        self._file.write(data)
        self._file.flush()

    def _rotate(self) -> None:
        self._file.close()
        for number in range(self._generations, 0, -1):
            older = generation(self.path, number)
            newer = generation(self.path, number - 1)
            if newer.exists():
                newer.replace(older)
        self._file = self.path.open("ab")
        self.path.chmod(0o600)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def generation(path: Path, number: int) -> Path:
    """Return the file of generation `number` of a log; 0 is the current one."""
    return path if number == 0 else path.with_name(f"{path.name}.{number}")


class Tail:
    """The last lines of a byte stream, bounded in lines and line length."""

    def __init__(self, lines: int = TAIL_LINES, characters: int = TAIL_LINE_CHARACTERS) -> None:
        self._lines: deque[str] = deque(maxlen=lines)
        self._characters = characters
        self._open = b""

    def feed(self, data: bytes) -> None:
        """Add bytes, which may end anywhere in a line."""
        *whole, self._open = (self._open + data).split(b"\n")
        for line in whole:
            self._add(line)
        # An unfinished line is bounded too. UTF-8 takes at most 4 bytes per character.
        self._open = self._open[: 4 * self._characters]

    def _add(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip()
        if text:
            self._lines.append(text[: self._characters])

    def lines(self) -> list[str]:
        """Return the last lines that are not empty, including an unfinished one."""
        if self._open.strip():
            self._add(self._open)
            self._open = b""
        lines = list(self._lines)
        while len(lines) > 1 and sum(map(len, lines)) > TAIL_CHARACTERS:
            del lines[0]
        return lines


async def pump(stream: asyncio.StreamReader, log: RotatingLog, tail: Tail | None) -> None:
    """Copy a process' output to its log (and its tail) until it ends.

    Output that cannot be written (disk full) is dropped, so that the function does not block.
    """
    failing = False
    while data := await stream.read(_CHUNK_BYTES):
        if tail is not None:
            tail.feed(data)
        try:
            await asyncio.to_thread(log.write, data)
            failing = False
        except (OSError, ValueError) as error:
            if not failing:
                _log.warning("cannot write %s, dropping output: %s", log.path, error)
            failing = True
