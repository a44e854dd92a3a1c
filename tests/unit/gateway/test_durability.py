"""Waiting for the disk: shared, never by a sync that began before, and with an error that reaches all."""

import asyncio
import threading
from pathlib import Path

import pytest

from nvcf_broker.errors import BrokerUnavailableError
from nvcf_gateway.background import BackgroundTasks
from nvcf_gateway.durability import Durability, sync_file_system
from tests.support.waiting import eventually


async def test_who_comes_during_a_sync_waits_for_the_next_one_together(tmp_path: Path) -> None:
    gate, begun = threading.Semaphore(0), list[Path]()

    def sync(folder: Path) -> None:
        begun.append(folder)
        gate.acquire(timeout=30)

    async with BackgroundTasks() as background:
        durability = Durability(tmp_path, background, sync)
        first = asyncio.create_task(durability.commit())
        await eventually(lambda: len(begun) == 1)
        later = [asyncio.create_task(durability.commit()) for _ in range(10)]
        await asyncio.sleep(0)
        gate.release()
        await first
        assert not any(task.done() for task in later)
        await eventually(lambda: len(begun) == 2)
        gate.release()
        await asyncio.gather(*later)
    assert begun == [tmp_path, tmp_path]


async def test_a_failing_disk_is_an_error_for_all_and_the_next_sync_may_work(tmp_path: Path) -> None:
    fails = [True]

    def sync(folder: Path) -> None:
        if fails.pop():
            raise OSError(5, "Input/output error")

    async with BackgroundTasks() as background:
        durability = Durability(tmp_path, background, sync)
        results = await asyncio.gather(*(durability.commit() for _ in range(3)), return_exceptions=True)
        assert [type(each) for each in results] == [BrokerUnavailableError] * 3
        fails.append(False)
        await durability.commit()


async def test_without_a_folder_nothing_is_waited_for() -> None:
    async with BackgroundTasks() as background:
        await Durability(None, background, lambda folder: pytest.fail("no sync wanted")).commit()


def test_the_real_sync(tmp_path: Path) -> None:
    sync_file_system(tmp_path)
    with pytest.raises(OSError, match="No such file"):
        sync_file_system(tmp_path / "missing")
