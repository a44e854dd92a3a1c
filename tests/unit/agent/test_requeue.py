"""What of an ended instance's journal the agent hands back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

import pytest
from nats.aio.client import Client

from nvcf_agent.requeue import Requeuer, requeueable
from nvcf_proto.journal import (
    ENTRY,
    ENTRY_STRUCT,
    FILE_NAME,
    HEADER_STRUCT,
    MAGIC,
    entry_offset,
)
from nvcf_proto.subjects import requeue_subject

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
    assert [each.ack_subject for each in requeueable(journal(text), INSTANCE, VERSION, NOW)] == [text]


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
    assert requeueable(journal(text), INSTANCE, VERSION, NOW) == []


def test_what_the_broker_delivers_again_by_itself_is_left_to_it() -> None:
    assert requeueable(journal(subject(), started=NOW - 29.5), INSTANCE, VERSION, NOW) == []


def test_another_instances_journal_is_not_touched() -> None:
    assert requeueable(journal(subject(), instance=OTHER), INSTANCE, VERSION, NOW) == []


class Published:
    """A connection that takes down what is published."""

    def __init__(self) -> None:
        self.subjects: list[str] = []

    async def publish(self, to: str, payload: bytes) -> None:
        assert payload == (b"" if ".started." in to else b"-NAK")
        self.subjects.append(to)

    async def flush(self, _timeout: float) -> None:
        pass


def place(folder: Path) -> Path:
    shared = folder / INSTANCE / "shared"
    shared.mkdir(parents=True)
    return shared / FILE_NAME


async def test_a_journal_is_read_and_its_requests_are_published(tmp_path: Path) -> None:
    place(tmp_path).write_bytes(journal(subject(), subject(f"rq_west_{VERSION}")))
    client = Published()
    requeuer = Requeuer(cast("Client", client), tmp_path, lambda: NOW)
    assert await requeuer.requeue(INSTANCE, VERSION) == 2
    held = [subject(), subject(f"rq_west_{VERSION}")]
    # Once for an agent in the queues' broker account, once for one in the control plane's.
    naks = [each for each in client.subjects if ".started." not in each]
    assert naks == [to for each in held for to in (each, requeue_subject(each))]
    assert len(client.subjects) == 2 * len(naks), "each is noted as an attempt"


@pytest.mark.parametrize("kind", ["nothing", "link", "pipe", "folder", "short"])
async def test_a_place_without_a_journal_holds_nothing_up(tmp_path: Path, kind: str) -> None:
    path = place(tmp_path)
    made: dict[str, Any] = {
        "nothing": lambda: None,
        "link": lambda: path.symlink_to("/dev/zero"),
        "pipe": lambda: os.mkfifo(path),
        "folder": path.mkdir,
        "short": lambda: path.write_bytes(b"NVCFJ1"),
    }
    made[kind]()
    client = Published()
    assert await Requeuer(cast("Client", client), tmp_path).requeue(INSTANCE, VERSION) == 0
    assert client.subjects == []
