"""A broker that cannot write is restarted once there is room."""

import asyncio
from pathlib import Path

import pytest

from nvcf_broker.process import RestartPolicy
from nvcf_cli.local import store_watch
from nvcf_cli.local.store_watch import StoreWatch, has_room, write_error
from tests.support.waiting import eventually

LINE = b"[1] [ERR] JetStream failed to store a msg on stream 'A > b': write 1.blk: no space left on device\n"


def test_which_lines_report_a_failed_write() -> None:
    assert write_error(b"[1] [INF] Server is ready\n" + LINE) == LINE.decode().strip()
    assert write_error(b"[1] [ERR] JetStream out of file resources, will be DISABLED") is not None
    assert write_error(b"[1] [ERR] Filestore [a] Critical write error: input/output error") is not None
    assert write_error(b"[1] [INF] Server is ready\n[1] [WRN] Consumer is slow\n") is None


def test_room(tmp_path: Path) -> None:
    assert has_room(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert not has_room(tmp_path / "missing")


async def test_it_waits_for_room_and_notices_the_next_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    restarts: list[int] = []
    said: list[str] = []
    room = False
    monkeypatch.setattr(store_watch, "has_room", lambda folder: room)
    monkeypatch.setattr(store_watch, "_LOOK_SECONDS", 0.01)

    async def restart() -> None:
        restarts.append(1)

    watch = StoreWatch(tmp_path, restart, said.append, RestartPolicy(initial=0.01, maximum=0.01))
    task = asyncio.create_task(watch.run())
    watch.feed(LINE)
    await eventually(lambda: any("no space left on device" in each for each in said))
    assert restarts == []
    room = True
    await eventually(lambda: len(restarts) == 1)
    watch.feed(LINE)
    await eventually(lambda: len(restarts) == 2)
    task.cancel()
