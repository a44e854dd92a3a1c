"""The in-flight journal."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nvcf_proto.journal import ENTRY, Orphan, read_orphans
from nvcf_worker.errors import JournalError
from nvcf_worker.queue.journal import Journal

SUBJECT = "$JS.ACK.rq_local_v.rq_local_v_workers.1.2.3.4.5"


def subjects(journal: Journal) -> set[str]:
    return {orphan.ack_subject for orphan in journal.orphans}


def test_unsettled_requests_are_found_by_the_successor(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "inflight", "one", 4)
    first = journal.add(SUBJECT + "1", now=100.0, ack_wait=30.0)
    journal.add(SUBJECT + "2", now=100.0, ack_wait=30.0)
    journal.remove(first)
    journal.close()
    successor = Journal.open(tmp_path / "inflight", "one", 4)
    assert successor.orphans == [Orphan(SUBJECT + "2", 130.0)]
    # They stay until they have been handed back, even if this process dies too.
    successor.close()
    third = Journal.open(tmp_path / "inflight", "one", 4)
    assert third.orphans == [Orphan(SUBJECT + "2", 130.0)]
    third.forget_orphans()
    third.close()
    assert Journal.open(tmp_path / "inflight", "one", 4).orphans == []


def test_a_heartbeat_counts_as_a_new_start(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "inflight", "one", 4)
    journal.add(SUBJECT, now=100.0, ack_wait=30.0)
    journal.heartbeat(150.0)
    journal.close()
    (orphan,) = Journal.open(tmp_path / "inflight", "one", 4).orphans
    assert orphan.still_held(178.0)
    assert not orphan.still_held(179.5)


def test_another_instance_gets_nothing(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "inflight", "one", 4)
    journal.add(SUBJECT, now=0.0, ack_wait=30.0)
    journal.close()
    assert Journal.open(tmp_path / "inflight", "two", 4).orphans == []


def test_the_file_is_private_and_held_by_one_process(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "inflight", "one", 4)
    assert (tmp_path / "inflight").stat().st_mode & 0o777 == 0o600
    with pytest.raises(JournalError, match="held by another"):
        Journal.open(tmp_path / "inflight", "one", 4)
    journal.close()
    Journal.open(tmp_path / "inflight", "one", 4).close()


def test_an_unusable_place_is_told(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="cannot open"):
        Journal.open(tmp_path / "missing" / "inflight", "one", 4)


def test_a_full_journal_and_a_long_subject_are_left_out(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "inflight", "one", 1)
    assert journal.add("$JS.ACK." + "x" * 600, now=0.0, ack_wait=30.0) == -1
    entry = journal.add(SUBJECT, now=0.0, ack_wait=30.0)
    assert entry >= 0
    assert journal.add(SUBJECT, now=0.0, ack_wait=30.0) == -1
    journal.remove(-1)
    journal.remove(entry)
    assert journal.add(SUBJECT, now=0.0, ack_wait=30.0) >= 0


@given(st.binary(max_size=4 * ENTRY))
def test_any_file_can_be_read(data: bytes) -> None:
    read_orphans(data, "one")
    read_orphans(b"NVCFJ1\0\0\x01\0\0\0\xff\xff\xff\xff" + data, "one")


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=60),
    st.integers(1, 8),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_the_successor_finds_exactly_what_is_open(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[bool, int]], capacity: int
) -> None:
    path = tmp_path_factory.mktemp("journal") / "inflight"
    journal = Journal.open(path, "one", capacity)
    entries: dict[str, int] = {}
    for number, (add, pick) in enumerate(steps):
        if add:
            subject = f"$JS.ACK.{number}"
            entry = journal.add(subject, now=float(number), ack_wait=30.0)
            assert (entry >= 0) is (len(entries) < capacity)
            if entry >= 0:
                entries[subject] = entry
        elif entries:
            journal.remove(entries.pop(sorted(entries)[pick % len(entries)]))
    journal.close()
    successor = Journal.open(path, "one", capacity)
    assert subjects(successor) == set(entries)
    # There is full room beside the orphans.
    for number in range(capacity):
        assert successor.add(f"$JS.ACK.new{number}", now=0.0, ack_wait=30.0) >= 0
    successor.forget_orphans()
    successor.close()
    assert len(Journal.open(path, "one", capacity).orphans) == capacity
