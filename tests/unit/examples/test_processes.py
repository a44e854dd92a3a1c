"""How the demo tells which processes are the platform's, and which of them are left."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from examples.demo.processes import Process, descendants, parse_stat, process_table, still_alive


def stat_line(pid: int, name: str, state: str, parent: int, started: int) -> str:
    return f"{pid} ({name}) {state} {parent} 1 1 0 -1 4194304 9 0 0 0 1 1 0 0 20 0 1 0 {started} 1000 10"


@pytest.mark.parametrize("name", ["python", "a b", "odd) name (x", ")"])
def test_stat_line_with_any_name(name: str) -> None:
    assert parse_stat(stat_line(12, name, "S", 3, 777)) == Process(12, 3, 777, "S", name)


def test_descendants_are_found_at_any_depth_and_nobody_else() -> None:
    table = [Process(1, 0, 1, "S"), Process(5, 1, 2, "S"), Process(7, 5, 3, "S"), Process(9, 7, 4, "S")]
    table += [Process(8, 1, 4, "S")]
    assert {process.pid for process in descendants(table, 5)} == {5, 7, 9}


def test_descendants_of_a_process_that_is_gone() -> None:
    assert descendants([Process(1, 0, 1, "S")], 5) == []


@pytest.mark.parametrize(
    ("now", "left"),
    [
        ([], []),
        ([Process(7, 5, 3, "S")], [7]),
        ([Process(7, 1, 3, "S")], [7]),  # adopted by init, and alive all the same
        ([Process(7, 5, 3, "Z")], []),
        ([Process(7, 5, 99, "S")], []),  # another process with the same number
    ],
)
def test_who_is_left(now: list[Process], left: list[int]) -> None:
    assert [process.pid for process in still_alive([Process(7, 5, 3, "S")], now)] == left


def test_a_real_child_is_seen_alive_and_then_gone() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        seen = [process for process in descendants(process_table(), os.getpid()) if process.pid == child.pid]
        assert [process.pid for process in still_alive(seen, process_table())] == [child.pid]
        child.communicate(b"\n", timeout=30)
    assert still_alive(seen, process_table()) == []
