"""What a reader of a log sees of the demo's steps."""

from __future__ import annotations

import asyncio
import codecs
import io

import pytest
from examples.demo import screen as screen_module
from examples.demo.failure import DemoFailure
from examples.demo.preflight import explain_opencv
from examples.demo.screen import PLAIN_ERRORS, Screen, Step, plain_signs
from rich.console import Console

REMINDER = "still waiting: starting: the broker"


class Log(io.StringIO):
    """Knows when the reminder has come three times."""

    def __init__(self) -> None:
        super().__init__()
        self.reminded = asyncio.Event()

    def write(self, text: str, /) -> int:
        written = super().write(text)
        if self.getvalue().count(REMINDER) >= 3:
            self.reminded.set()
        return written


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def screen(log: Log) -> Screen:
    return Screen(Console(file=log, width=100, highlight=False))


async def test_a_step_says_when_it_begins_and_what_came_of_it(screen: Screen, log: Log) -> None:
    async with screen.step("starting") as step:
        await asyncio.sleep(0)
        step.result = "all [of] it"
    first, last = log.getvalue().splitlines()
    assert first == "  starting …"
    assert last.startswith("✓ starting: all [of] it ")


async def test_a_long_step_says_again_and_again_what_it_waits_for(
    screen: Screen, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(screen_module, "LOG_INTERVAL", 0.01)
    async with screen.step("starting") as step:
        step.note = "the broker"
        await asyncio.wait_for(log.reminded.wait(), 30)


async def test_a_failed_step_is_marked_and_the_failure_goes_on(screen: Screen, log: Log) -> None:
    async def fail() -> None:
        async with screen.step("starting") as step:
            step.note = "the broker"
            raise DemoFailure("no broker")

    with pytest.raises(DemoFailure, match="no broker"):
        await fail()
    assert "✗ starting: the broker" in log.getvalue()


def test_notes_are_text_and_no_markup() -> None:
    step = Step("a [bold]title")
    step.note = "[/red] is not a tag"
    log = io.StringIO()
    Console(file=log, width=100).print(step.waiting_line())
    assert log.getvalue().startswith("a [bold]title: [/red] is not a tag")


@pytest.mark.parametrize(
    ("stderr", "words"),
    [
        ("Traceback\nImportError: libGL.so.1: cannot open shared object file", "apt-get install libgl1"),
        ("ImportError: libgthread-2.0.so.0: cannot open", "libglib2.0-0"),
        ("ImportError: something else\n", "does not load: ImportError: something else"),
        ("", "ended without a word"),
    ],
)
def test_a_missing_system_library_is_named_with_its_package(stderr: str, words: str) -> None:
    text = explain_opencv(stderr)
    assert words in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("encoding", "text", "shown"),
    [
        ("utf-8", "✓ done … ■", "✓ done … ■"),
        ("ascii", "✓ done … ■■", "ok done ... ##"),
        ("latin-1", "✗ “café” ✓✗", 'x "café" okx'),
        ("ascii", "café", "caf?"),
    ],
)
def test_signs_that_an_encoding_lacks_are_replaced(encoding: str, text: str, shown: str) -> None:
    codecs.register_error(PLAIN_ERRORS, plain_signs)
    assert text.encode(encoding, PLAIN_ERRORS).decode(encoding) == shown
