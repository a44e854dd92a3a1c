"""Which deliveries of a request count as attempts."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from nvcf_broker.jetstream import StoredMessage
from nvcf_gateway.results import hand_backs
from nvcf_gateway.results.hand_backs import HandBacks, again
from nvcf_proto.streams import DEFAULT_MAX_DELIVER

STREAM = "rq_local_v"


def message(stored_at: float = 10.0, **headers: str) -> StoredMessage:
    named = {f"Nvcf-{name.capitalize()}": value for name, value in headers.items()}
    return StoredMessage(f"rq.local.v.{7}", 7, b"", named, stored_at)


async def nak(counted: HandBacks, sequence: int = 7) -> None:
    data: Any = SimpleNamespace(data=json.dumps({"stream": STREAM, "stream_seq": sequence}).encode())
    await counted.on_nak(data)


async def started(counted: HandBacks) -> None:
    subject: Any = SimpleNamespace(subject=f"$JS.ACK.{STREAM}.{STREAM}_workers.started.7")
    await counted.on_started(subject)


async def test_what_was_handed_back_without_a_start_is_no_attempt() -> None:
    counted = HandBacks(0.0)
    for _ in range(3):
        await nak(counted)
    await started(counted)
    await nak(counted)
    await nak(counted, sequence=8)
    assert counted.attempts(STREAM, message(), 5) == 2
    assert counted.attempts(STREAM, message(attempts="2"), 5) == 7, "counted once"


async def test_deliveries_before_this_replica_listened_do_not_count() -> None:
    assert HandBacks(20.0).attempts(STREAM, message(attempts="2"), 5) == 2


async def test_nonsense_is_ignored() -> None:
    counted = HandBacks(0.0)
    for data in (b"", b"[]", b'{"stream": "rq_x"}', b'{"stream": "other", "stream_seq": 1}'):
        await counted.on_nak(SimpleNamespace(data=data))  # type: ignore[arg-type]
    assert not counted._counts


async def test_what_is_counted_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hand_backs, "MAX_COUNTED", 3)
    counted = HandBacks(0.0)
    for sequence in range(10):
        await nak(counted, sequence)
    assert [sequence for _, sequence in counted._counts] == [7, 8, 9]


def test_rounds() -> None:
    assert again(message(), DEFAULT_MAX_DELIVER, 5) is None
    assert again(message(deliveries="5"), 4, 5) == ({"Nvcf-Attempts": "4", "Nvcf-Deliveries": "10"}, 0.0)
    assert again(message(deliveries="1000"), 0, 5) == (
        {"Nvcf-Attempts": "0", "Nvcf-Deliveries": "1005"}, hand_backs.PAUSE,
    )  # fmt: skip
