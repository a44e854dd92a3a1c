"""Supervision of small real children."""

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from nvcf_broker.errors import BrokerUnavailableError
from nvcf_broker.process import RestartPolicy
from nvcf_cli.errors import CliError
from nvcf_cli.local import progress
from nvcf_cli.local.supervisor import Change, Child, ChildSpec, Tree

WAIT = 30.0
READY = "import json, os, signal, sys, time\nprint(json.dumps({'event': 'ready', 'port': 7}), flush=True)\n"
# In short naps: a signal that comes just before a long one would be handled after it.
STEADY = READY + "while True:\n    time.sleep(0.05)\n"
QUICK = RestartPolicy(initial=0.01, factor=1.0, maximum=0.01, stable_after=60)


class Changes:
    """Collects what the supervisor says."""

    def __init__(self) -> None:
        self.all: list[Change] = []
        self._new = asyncio.Event()

    def __call__(self, change: Change) -> None:
        self.all.append(change)
        self._new.set()

    async def until(self, count: int, state: str) -> list[Change]:
        """Wait for the `count`-th change to a state."""
        async with asyncio.timeout(WAIT):
            while len(found := [each for each in self.all if each.state.state == state]) < count:
                self._new.clear()
                await self._new.wait()
        return found


def child(tmp_path: Path, script: str, changes: Changes, name: str = "part", **options: Any) -> Child:
    spec = ChildSpec(name, [sys.executable, "-c", script], tmp_path / f"{name}.log", **options)
    return Child(spec, changes, restarts=QUICK)


async def test_it_is_ready_when_it_says_so_and_ends_when_told(tmp_path: Path) -> None:
    changes, seen = Changes(), dict[str, Any]()

    async def wait_ready(line: dict[str, Any]) -> None:
        seen.update(line)

    one = child(tmp_path, STEADY, changes, wait_ready=wait_ready)
    await one.start()
    assert seen == {"event": "ready", "port": 7}
    (running,) = await changes.until(1, "running")
    assert running.state.pid is not None
    await one.stop()
    assert not psutil.pid_exists(running.state.pid)
    assert not [each for each in changes.all if each.text]


async def test_a_crash_is_told_and_the_child_started_again(tmp_path: Path) -> None:
    changes = Changes()
    one = child(tmp_path, STEADY, changes)
    await one.start()
    for number in (1, 2):
        running = (await changes.until(number, "running"))[-1]
        assert running.state.pid is not None
        os.kill(running.state.pid, signal.SIGKILL)
    waiting = await changes.until(2, "waiting")
    assert [each.state.restarts for each in waiting] == [1, 2]
    assert "the part ended (killed by SIGKILL), starting it again now" in str(waiting[0].text)
    await changes.until(3, "running")
    await one.stop()


async def test_one_that_never_gets_ready_ends_the_start_with_its_last_words(tmp_path: Path) -> None:
    script = 'import sys\nprint(\'{"message": "port 80 is taken"}\', file=sys.stderr)\nsys.exit(3)\n'
    one = child(tmp_path, script, Changes())
    with pytest.raises(CliError, match=r"the part does not start \(exit code 3\): port 80 is taken"):
        await one.start()
    assert "port 80" in (tmp_path / "part.log").read_text()


async def test_a_command_that_does_not_exist_is_named(tmp_path: Path) -> None:
    one = Child(ChildSpec("part", ["/does/not/exist"], tmp_path / "log"), Changes())
    with pytest.raises(CliError, match="/does/not/exist"):
        await one.start()


async def test_a_probe_that_fails_ends_the_child(tmp_path: Path) -> None:
    async def wait_ready(_: dict[str, Any]) -> None:
        raise BrokerUnavailableError("not there")

    one = child(
        tmp_path, "import time\ntime.sleep(600)\n", Changes(), ready_line=False, wait_ready=wait_ready
    )
    with pytest.raises(CliError, match="killed by SIGKILL"):
        await one.start()


async def test_stopping_during_the_wait_for_a_restart_starts_nothing(tmp_path: Path) -> None:
    changes = Changes()
    slow = RestartPolicy(initial=600, factor=1, maximum=600, stable_after=60)
    spec = ChildSpec("part", [sys.executable, "-c", STEADY], tmp_path / "part.log")
    one = Child(spec, changes, restarts=slow)
    await one.start()
    for number in (1, 2):
        running = (await changes.until(number, "running"))[-1]
        assert running.state.pid is not None
        os.kill(running.state.pid, signal.SIGKILL)
    await changes.until(2, "waiting")
    async with asyncio.timeout(WAIT):
        await one.stop()
    assert changes.all[-1].state.state == "waiting"


async def test_a_stubborn_child_is_killed_after_its_grace(tmp_path: Path) -> None:
    changes = Changes()
    one = child(
        tmp_path,
        "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + STEADY,
        changes,
        grace=0.1,
    )
    await one.start()
    (running,) = await changes.until(1, "running")
    await one.stop()
    assert not psutil.pid_exists(running.state.pid or 0)


async def test_a_tree_ends_in_reverse_order(tmp_path: Path) -> None:
    order = tmp_path / "order"
    tree = Tree()
    for name in ("a", "b", "c"):
        script = (
            "import os, signal\n"
            "def leave(*_):\n"
            f"    open({str(order)!r}, 'a').write({name!r})\n"
            "    os._exit(0)\n"
            "signal.signal(signal.SIGTERM, leave)\n"
        )
        await tree.add(child(tmp_path, script + STEADY, Changes(), name=name))
    await tree.stop()
    assert order.read_text() == "cba"


async def test_killing_a_tree_leaves_nothing(tmp_path: Path) -> None:
    tree, changes = Tree(), Changes()
    for name in ("a", "b"):
        await tree.add(child(tmp_path, STEADY, changes, name=name, grace=600))
    pids = [each.state.pid for each in await changes.until(2, "running")]
    stopping = asyncio.create_task(tree.stop())
    tree.kill()
    async with asyncio.timeout(WAIT):
        await stopping
    assert not any(psutil.pid_exists(pid or 0) for pid in pids)


async def test_a_group_starts_and_stops_together(tmp_path: Path) -> None:
    """Each of two children waits for the other one: in a row neither would come up, or leave."""
    script = (
        "import os, pathlib, signal, time\n"
        "here = pathlib.Path({folder!r})\n"
        "def meet(what):\n"
        "    (here / (what + {name!r})).touch()\n"
        "    while not all((here / (what + each)).exists() for each in 'ab'):\n"
        "        time.sleep(0.01)\n"
        "meet('up')\n"
        "def leave(*_):\n"
        "    meet('down')\n"
        "    os._exit(0)\n"
        "signal.signal(signal.SIGTERM, leave)\n"
    )
    tree, changes = Tree(), Changes()
    texts = {name: script.format(folder=str(tmp_path), name=name) + STEADY for name in "ab"}
    async with asyncio.timeout(WAIT):
        await tree.add(
            *(child(tmp_path, text, changes, name=name, grace=600) for name, text in texts.items())
        )
        await tree.stop()
    assert (tmp_path / "downa").exists()


async def test_one_bad_child_of_a_group_is_told(tmp_path: Path) -> None:
    tree, changes = Tree(), Changes()
    with pytest.raises(CliError, match=r"the bad does not start \(exit code 3\)"):
        await tree.add(
            child(tmp_path, STEADY, changes, name="good"),
            child(tmp_path, "import sys\nsys.exit(3)\n", changes, name="bad"),
        )
    await tree.stop()
    (good,) = await changes.until(1, "running")
    assert not psutil.pid_exists(good.state.pid or 0)


async def test_a_slow_start_that_makes_progress_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A busy machine gives a process little of five seconds, but more than what counts as nothing.
    monkeypatch.setattr(progress, "PATIENCE_SECONDS", 5.0)
    slow = "import sys, time\nfor _ in range(12):\n    print('...', file=sys.stderr, flush=True)\n"
    one = child(tmp_path, f"{slow}    time.sleep(0.5)\n{STEADY}", Changes())
    await one.start()
    await one.stop()
    busy = "import time\nend = time.monotonic() + 6\nwhile time.monotonic() < end: pass\n"
    one = child(tmp_path, busy + STEADY, Changes(), "busy")
    await one.start()
    await one.stop()


async def test_a_start_that_has_stopped_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PATIENCE_SECONDS", 2.0)
    one = child(tmp_path, "import time\ntime.sleep(600)\n", Changes())
    with pytest.raises(CliError, match="does not become ready"):
        await one.start()
    await one.stop()


def test_progress_is_cpu_time_or_a_log_that_grows() -> None:
    seen = progress.Progress(0.0)
    assert not seen.stopped(1, 0.2, 0)
    assert not seen.stopped(29, 0.2, 0)
    assert not seen.stopped(30, 0.5, 0)
    assert not seen.stopped(59, 0.5, 0)
    assert seen.stopped(61, 0.51, 0), "a clock that is looked at is no progress"
    assert not seen.stopped(62, 0.51, 100)
    assert seen.stopped(600, 99, 200), "at some time enough is enough"


async def test_a_group_that_ends_before_those_started_after_it(tmp_path: Path) -> None:
    tree, ended = Tree(), list[str]()

    def on_end(name: str) -> Any:
        class Ends(Child):
            async def stop(self) -> None:
                await super().stop()
                ended.append(name)

        spec = ChildSpec(name, [sys.executable, "-c", STEADY], tmp_path / f"{name}.log")
        return Ends(spec, Changes(), restarts=QUICK)

    await tree.add(on_end("gateway"))
    await tree.add(on_end("autoscaler"))
    await tree.add(on_end("agent"), outlives_last=True)
    await tree.stop()
    assert ended == ["autoscaler", "agent", "gateway"]
