"""Reading instances' log files: their last lines, then what is added, over rotations."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

POLL_SECONDS = 0.2
_BLOCK_BYTES = 64 * 1024


@dataclass
class LogFile:
    """One instance's log and how far it has been read. Its calls block for a read of a local file."""

    path: Path
    position: int = 0
    inode: int | None = None
    _rest: bytes = field(default=b"", repr=False)

    def last_lines(self, count: int) -> list[str]:
        """Return the last `count` lines; `new_lines` continues after them. Rotated files are left out."""
        try:
            with self.path.open("rb") as file:
                self.inode = self.path.stat().st_ino
                end = self.position = file.seek(0, 2)
                data, start = b"", end
                while start > 0 and data.count(b"\n") <= count:
                    size = min(_BLOCK_BYTES, start)
                    start -= size
                    file.seek(start)
                    data = file.read(size) + data
        except OSError:
            return []
        lines = _lines(data)
        return lines[-count:] if count else []

    def new_lines(self) -> list[str]:
        """Return the whole lines added since the last call; a rotated file is read from its beginning."""
        try:
            status = self.path.stat()
            with self.path.open("rb") as file:
                if self.inode != status.st_ino or status.st_size < self.position:
                    self.inode, self.position, self._rest = status.st_ino, 0, b""
                file.seek(self.position)
                data = file.read()
        except OSError:
            return []
        self.position += len(data)
        whole, newline, rest = (self._rest + data).rpartition(b"\n")
        self._rest = rest
        return _lines(whole) if newline else []


def _lines(data: bytes) -> list[str]:
    # Only at line feeds: other separators of Unicode are part of a text.
    lines = data.decode(errors="replace").split("\n")
    return [line.removesuffix("\r") for line in (lines if lines[-1] else lines[:-1])]


def _record(line: str) -> dict[str, Any] | None:
    if not line.startswith("{"):
        return None
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and "message" in record else None


def readable(line: str) -> str:
    """Return a JSON log line as `time level message`, with the error's text below; others as they are."""
    record = _record(line)
    if record is None:
        return line
    when = str(record.get("time", ""))[11:23]
    text = f"{when} {str(record.get('level', '')).upper():<7} {record['message']}"
    request = record.get("request_id") or record.get("requestId")
    if request:
        text += f"  [request {request}]"
    error = record.get("exception") or record.get("error")
    return f"{text}\n{error}" if error else text


def why_it_failed(lines: Iterable[str]) -> list[str]:
    """Return the last output of an instance for people: errors, and what is no log record."""
    shown: list[str] = []
    seen: set[str] = set()
    for line in lines:
        record = _record(line)
        if record is None:
            shown.append(line)
        elif str(record.get("level", "")).lower() in ("error", "critical"):
            error = str(record.get("exception") or record.get("error") or "")
            # The worker says first what failed and why, and then that it ends for that.
            if not any(str(record["message"]).endswith(each) for each in seen if each):
                shown += [str(record["message"]), *error.split("\n")] if error else [str(record["message"])]
            seen.add(error.rpartition("\n")[2])
    return shown or [readable(line) for line in lines]


async def follow(
    discover: Callable[[], "AsyncIterator[dict[str, Path]]"], known: dict[str, LogFile]
) -> AsyncIterator[tuple[str, str]]:
    """Yield (instance, line) for ever. `discover` yields the present files again and again."""
    async for paths in discover():
        for name, path in paths.items():
            known.setdefault(name, LogFile(path))
        for name, file in known.items():
            for line in await asyncio.to_thread(file.new_lines):
                yield name, line
        await asyncio.sleep(POLL_SECONDS)
