"""Logs of bounded size and last words."""

import asyncio
import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvcf_agent.backends.orphans import find_orphans
from nvcf_agent.backends.output import RotatingLog, Tail, generation, pump


def test_a_full_log_is_set_aside_and_the_oldest_goes(tmp_path: Path) -> None:
    log = RotatingLog(tmp_path / "deep" / "i.log", limit=10, generations=2)
    for number in range(5):
        log.write(f"line {number}\n".encode())
    log.close()
    path = tmp_path / "deep" / "i.log"
    assert [generation(path, number).read_text() for number in range(3)] == [
        "line 4\n",
        "line 3\n",
        "line 2\n",
    ]
    assert not generation(path, 3).exists()


def test_an_existing_log_is_continued(tmp_path: Path) -> None:
    for text in (b"first\n", b"second\n"):
        log = RotatingLog(tmp_path / "i.log")
        log.write(text)
        log.close()
    assert (tmp_path / "i.log").read_text() == "first\nsecond\n"


@given(st.lists(st.text(alphabet="abc é\n", max_size=12), max_size=12))
def test_the_tail_does_not_depend_on_where_the_stream_is_cut(parts: list[str]) -> None:
    whole, cut = Tail(3, 5), Tail(3, 5)
    data = "".join(parts).encode()
    whole.feed(data)
    for index in range(len(data)):
        cut.feed(data[index : index + 1])
    assert whole.lines() == cut.lines()
    assert len(whole.lines()) <= 3
    assert all(len(line) <= 5 for line in whole.lines())


def test_an_endless_line_is_bounded() -> None:
    tail = Tail(2, 10)
    for _ in range(1000):
        tail.feed(b"x" * 1000)
    assert tail.lines() == ["x" * 10]


async def test_a_log_that_cannot_be_written_does_not_stop_the_function(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = RotatingLog(tmp_path / "i.log")
    log.close()
    stream = asyncio.StreamReader()
    stream.feed_data(b"last words\n")
    stream.feed_eof()
    tail = Tail()
    with caplog.at_level(logging.WARNING):
        await pump(stream, log, tail)
    assert tail.lines() == ["last words"]
    assert "dropping output" in caplog.text


def test_orphans_are_those_whose_folder_is_ours(tmp_path: Path) -> None:
    instances = tmp_path / "instances"
    for pid, folder in ((101, instances / "a" / "shared"), (102, tmp_path / "other" / "b"), (103, None)):
        process = tmp_path / "proc" / str(pid)
        process.mkdir(parents=True)
        variables = [b"HOME=/"] + ([f"SHARED_CONFIG_DIR={folder}".encode()] if folder else [])
        (process / "environ").write_bytes(b"\0".join(variables))
    (tmp_path / "proc" / "104").mkdir()
    assert find_orphans(instances, tmp_path / "proc") == [101]
