"""How the demo finds the worker of a request, and what it accepts as the answer after the kill."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from examples.demo.caller import Answer, explain
from examples.demo.failure import DemoFailure
from examples.demo.reading import Reading
from examples.demo.rescue import Instance, LogMarks, Rescue, judge, parse_instances, started_line

EARLIER = Reading("plain", "fox", "fox", 1.0, 100, 80, "one")


def instance(name: str, log: Path | None) -> Instance:
    return Instance(name, "RUNNING", 5, 0, log)


def answer(status: int = 200, **changes: Any) -> Answer:
    body = {"text": "fox", "passes": 50, "delivery": 2, "worker": {"instance": "two", "pid": 12}, **changes}
    return Answer(status, "request", json.dumps(body).encode(), 9.5)


def test_instances_are_read_from_the_list() -> None:
    records = {
        "instances": [
            {"instanceId": "a", "state": "RUNNING", "pid": 7, "restarts": 1, "logPath": "/logs/a", "more": 1},
            {"instanceId": "b", "state": "STARTING"},
        ]
    }
    assert parse_instances(records) == [
        Instance("a", "RUNNING", 7, 1, Path("/logs/a")),
        Instance("b", "STARTING", None, 0, None),
    ]


@pytest.mark.parametrize("records", [None, [], {}, {"instances": [{}]}, {"instances": 3}])
def test_list_of_another_form_is_a_failure_in_words(records: Any) -> None:
    with pytest.raises(DemoFailure, match="cannot be understood"):
        parse_instances(records)


def test_only_what_was_written_since_counts(tmp_path: Path) -> None:
    old, new, missing = tmp_path / "old", tmp_path / "new", tmp_path / "missing"
    old.write_bytes(b"reading in 50 passes\n")
    new.write_bytes(b"")
    marks = LogMarks(
        [instance("old", old), instance("new", new), instance("c", missing), instance("d", None)]
    )
    assert marks.who_wrote(started_line(50)) is None
    with new.open("ab") as log:
        log.write(b'{"message": "reading 3 bytes in 50 passes"}\n')
    assert marks.who_wrote(started_line(50)) == instance("new", new)
    assert marks.who_wrote(started_line(5)) is None


def test_the_right_answer_from_another_process() -> None:
    rescue = judge(answer(), EARLIER, 50, killed_pid=11, killed_at=1.5)
    assert rescue == Rescue(1.5, 9.5, 11, 12, "two", 2)
    assert rescue.after_kill == 8.0


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (answer(502, detail="worker lost"), "answered 502: worker lost"),
        (answer(text="box"), "another one"),
        (answer(passes=1), "another one"),
        (answer(worker={"instance": "one", "pid": 11}), "killed too late"),
        (answer(worker=None), "cannot be understood"),
        (answer(delivery=None), "cannot be understood"),
        (Answer(200, "request", b"<html>", 1.0), "not JSON"),
    ],
)
def test_any_other_answer_is_a_failure_in_words(bad: Answer, words: str) -> None:
    with pytest.raises(DemoFailure, match=words):
        judge(bad, EARLIER, 50, killed_pid=11, killed_at=1.5)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"title": "Bad", "detail": "no such thing"}', "no such thing"),
        (b'{"title": "Bad"}', "Bad"),
        (b"{}", "{}"),
        (b"[1]", "[1]"),
        (b"plain words", "plain words"),
        (b"", "(no body)"),
    ],
)
def test_errors_are_explained(body: bytes, words: str) -> None:
    assert explain(body) == words
