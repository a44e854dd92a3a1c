"""The demo as a user runs it: its output, its exit code, and that no process or file is left."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.support.waiting import eventually

ROOT = Path(__file__).resolve().parents[2]
DEADLINE = 150.0
# The promised limit on a fresh machine. Only a demo that hangs comes near it, also on a busy machine.
LONGEST_RUN = 120.0


class Demo:
    """A running demo. All its files are in its temporary folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "tmp"
        self.folder.mkdir()
        self._output = folder / "output.txt"
        environment = {**os.environ, "TMPDIR": str(self.folder), "PYTHONUNBUFFERED": "1"}
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "examples.demo"],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self._output.read_text(encoding="utf-8", errors="replace")

    async def wait_for_output(self, text: str) -> None:
        await eventually(
            lambda: text in self.output or self.process.poll() is not None, f"output {text!r}", DEADLINE
        )
        assert text in self.output, self.output

    def wait(self) -> int:
        return self.process.wait(DEADLINE)

    def processes(self) -> list[psutil.Process]:
        """Return the processes of this demo: their environment has the temporary folder."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                words = [*process.environ().values(), *process.cmdline()]
                if any(str(self.folder) in word for word in words):
                    found.append(process)
        return found

    def find(self, *words: str) -> psutil.Process:
        """Return the process whose command line has all these words."""
        for process in self.processes():
            with suppress(psutil.Error):
                if all(word in " ".join(process.cmdline()) for word in words):
                    return process
        raise AssertionError(f"no process with {words}")


@contextmanager
def running_demo(folder: Path) -> Iterator[Demo]:
    demo = Demo(folder)
    try:
        yield demo
    finally:
        for process in demo.processes():
            with suppress(psutil.Error):
                process.kill()
        demo.process.kill()
        demo.process.wait()


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_demo_shows_all_parts_and_leaves_no_process(tmp_path: Path) -> None:
    started = time.monotonic()
    with running_demo(tmp_path) as demo:
        code = demo.wait()
        seconds = time.monotonic() - started
        output = demo.output
        assert code == 0, output
        assert demo.processes() == []
    assert seconds < LONGEST_RUN
    assert list(demo.folder.iterdir()) == []
    assert "Traceback" not in output
    assert_pictures(output)
    assert_stream(output)
    assert_rescue(output)
    assert_scaling(output)
    assert re.search(r"Stopped +\d+ processes ended in [\d.]+ s, none is left", output)


def assert_pictures(output: str) -> None:
    """Check the table of true and recognised texts, and its counts."""
    counts = re.search(r"12 pictures: (\d+) exact, (\d+) nearly \(90 % alike\), (\d+) not", output)
    assert counts
    exact, nearly, missed = map(int, counts.groups())
    assert exact + nearly + missed == 12
    assert exact >= 5
    assert output.count("PLATFORM 9") == 2
    assert len(re.findall(r" \d+% +\d+ ms +\d+ ms", output)) == 12


def assert_stream(output: str) -> None:
    gaps = [int(gap) for gap in re.findall(r"^ +\d+ +\+ *(\d+) ms ", output, re.MULTILINE)]
    assert len(gaps) >= 20
    assert "Streamed" in output


def assert_rescue(output: str) -> None:
    killed = re.search(r"SIGKILL to process (\d+)", output)
    answered = re.search(r"Answered [\d.]+ s after the kill by .+, \w+, process (\d+)", output)
    assert killed
    assert answered
    assert killed[1] != answered[1]


def assert_scaling(output: str) -> None:
    """Check the scaling from zero to four instances on two clusters and back."""
    assert re.search(r"^ +[\d.]+ s  answered: the whole cold start", output, re.MULTILINE)
    burst = r"120 of 120 answered in [\d.]+ s, by 4 instances: 2 on local-1 and 2 on local-2"
    assert re.search(burst, output)
    assert "back to zero, its GPUs are free" in output
    reasons = re.findall(r"^ +(\d+) instances?: .", output, re.MULTILINE)
    assert reasons[:2] == ["0", "1"]
    assert "4" in reasons
    assert reasons[-1] == "0"
    assert "Scaled" in output


@pytest.mark.timeout(180)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_interrupted_demo_leaves_no_process(tmp_path: Path, number: signal.Signals) -> None:
    with running_demo(tmp_path) as demo:
        await demo.wait_for_output("simulated GPUs; http://")
        demo.process.send_signal(number)
        assert demo.wait() == 130, demo.output
        assert demo.processes() == []
    assert list(demo.folder.iterdir()) == []
    assert "Traceback" not in demo.output


@pytest.mark.timeout(180)
async def test_failure_is_reported_in_one_line_with_the_logs_and_leaves_no_process(tmp_path: Path) -> None:
    with running_demo(tmp_path) as demo:
        await demo.wait_for_output("simulated GPUs; http://")
        demo.find("nvcf", " up").kill()
        assert demo.wait() == 1, demo.output
        await eventually(lambda: demo.processes() == [], "no process is left")
    assert re.search(r"^The demo failed: .+", demo.output, re.MULTILINE)
    assert "end of nvcf-up.log" in demo.output
    assert "Traceback" not in demo.output
