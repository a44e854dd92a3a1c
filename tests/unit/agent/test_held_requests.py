"""What of an ended instance's journal the agent reports."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from nvcf_agent.backends.held_requests import acknowledgement_subjects, held_requests
from nvcf_proto.journal import (
    ENTRY,
    ENTRY_STRUCT,
    FILE_NAME,
    HEADER_STRUCT,
    MAGIC,
    entry_offset,
)

VERSION, OTHER, INSTANCE = (f"00000000-0000-4000-8000-00000000000{number}" for number in range(3))
STREAM = f"rq_local_{VERSION}"
NOW = 1000.0


def subject(stream: str = STREAM, *, new: bool = False) -> str:
    place = "_.hash." if new else ""
    return f"$JS.ACK.{place}{stream}.{stream}_workers.1.22.7.1700000000000000000.0" + (".x" if new else "")


def journal(*subjects: str | bytes, instance: str = INSTANCE, started: float = NOW - 5) -> bytes:
    data = bytearray((len(subjects) + 1) * ENTRY)
    name = instance.encode()
    HEADER_STRUCT.pack_into(data, 0, MAGIC, 1, len(subjects), 0.0, len(name))
    data[HEADER_STRUCT.size : HEADER_STRUCT.size + len(name)] = name
    for number, each in enumerate(subjects):
        text = each.encode() if isinstance(each, str) else each
        ENTRY_STRUCT.pack_into(data, entry_offset(number), len(text), started, 30.0)
        start = entry_offset(number) + ENTRY_STRUCT.size
        data[start : start + len(text)] = text
    return bytes(data)


@pytest.mark.parametrize("text", [subject(), subject(new=True)])
def test_requests_of_its_own_version_go_back(text: str) -> None:
    assert acknowledgement_subjects(journal(text), INSTANCE, VERSION, NOW) == (text,)


@pytest.mark.parametrize(
    "text",
    [
        subject(f"rq_local_{OTHER}"),
        "$JS.ACK",
        "$JS.API.STREAM.DELETE." + STREAM,
        subject() + "\r\nPUB evil 0\r\n",
        subject().replace(".22.", ".*."),
        subject().replace(".22.", ".>."),
        f"$JS.ACK.other.{STREAM}.1.2.3.4.5",
    ],
)
def test_nothing_else_does_whatever_the_function_wrote_there(text: str) -> None:
    assert acknowledgement_subjects(journal(text), INSTANCE, VERSION, NOW) == ()


def test_what_the_broker_delivers_again_by_itself_is_left_to_it() -> None:
    assert acknowledgement_subjects(journal(subject(), started=NOW - 29.5), INSTANCE, VERSION, NOW) == ()


def test_another_instances_journal_is_not_touched() -> None:
    assert acknowledgement_subjects(journal(subject(), instance=OTHER), INSTANCE, VERSION, NOW) == ()


def place(folder: Path) -> Path:
    shared = folder / INSTANCE / "shared"
    shared.mkdir(parents=True)
    return shared / FILE_NAME


def test_a_journal_is_read(tmp_path: Path) -> None:
    path = place(tmp_path)
    path.write_bytes(journal(subject(), subject(f"rq_west_{VERSION}")))
    held = (subject(), subject(f"rq_west_{VERSION}"))
    assert held_requests(path.parent, INSTANCE, VERSION, NOW) == held


@pytest.mark.parametrize("kind", ["nothing", "link", "pipe", "folder", "short"])
def test_a_place_without_a_journal_holds_nothing_up(tmp_path: Path, kind: str) -> None:
    path = place(tmp_path)
    made: dict[str, Any] = {
        "nothing": lambda: None,
        "link": lambda: path.symlink_to("/dev/zero"),
        "pipe": lambda: os.mkfifo(path),
        "folder": path.mkdir,
        "short": lambda: path.write_bytes(b"NVCFJ1"),
    }
    made[kind]()
    assert held_requests(path.parent, INSTANCE, VERSION, NOW) == ()
