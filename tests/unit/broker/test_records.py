"""What a mirror makes of a bucket's messages."""

import json

from hypothesis import given
from hypothesis import strategies as st

from nvcf_broker.records import Records, Update, parse_update, valid_key


def decode(data: bytes) -> int:
    return int(json.loads(data))


def records() -> Records[int]:
    return Records("bucket", decode)


def test_deletions_are_marked_by_writer_or_server() -> None:
    assert parse_update("k", b"1", None, 3) == Update("k", b"1", 3)
    assert parse_update("k", b"", {"KV-Operation": "DEL"}, 3).deleted
    assert parse_update("k", b"", {"KV-Operation": "PURGE"}, 3).deleted
    assert parse_update("k", b"", {"Nats-Marker-Reason": "MaxAge"}, 3).deleted
    assert not parse_update("k", b"1", {"Other": "x"}, 3).deleted


def test_an_older_message_never_replaces_a_newer_one() -> None:
    known = records()
    known.begin("a", 0)
    assert known.apply(Update("k", b"2", 2))
    assert not known.apply(Update("k", b"1", 1))
    assert not known.apply(Update("k", b"2", 2))
    assert known.apply(Update("k", None, 5))
    assert not known.apply(Update("k", b"4", 4))
    assert known.entries == {}


def test_what_a_snapshot_lacks_is_dropped_but_not_what_was_written_after_it() -> None:
    known = records()
    known.begin("a", 0)
    known.complete()
    known.apply(Update("old", b"1", 1))
    known.apply(Update("stays", b"2", 2))
    known.begin("a", 2)
    known.apply(Update("stays", b"2", 2))
    known.entries["mine"] = known.entries["stays"]
    known._revisions["mine"] = 3
    assert known.complete() == ["old"]
    assert sorted(known.entries) == ["mine", "stays"]
    assert known.complete() == []


def test_an_unreadable_value_takes_the_old_record_away() -> None:
    known = records()
    known.begin("a", 0)
    known.apply(Update("k", b"1", 1))
    assert known.apply(Update("k", b"nonsense", 2))
    assert "k" not in known.entries


def test_a_new_incarnation_may_count_from_one_again() -> None:
    for incarnation, last in (("b", 50), ("a", 1)):
        known = records()
        known.begin("a", 10)
        known.apply(Update("k", b"1", 10))
        known.complete()
        known.begin(incarnation, last)
        assert known.apply(Update("k", b"2", 1))
        assert known.entries["k"].value == 2


@given(st.text(max_size=20))
def test_valid_keys_can_be_a_subject_tail(text: str) -> None:
    if valid_key(text):
        assert not set(text) & set(" *>\r\n\t")
        assert all(text.split("."))


history = st.lists(st.tuples(st.sampled_from("abcd"), st.one_of(st.none(), st.integers())), max_size=30)


@given(history, st.data())
def test_any_cut_into_sessions_ends_in_the_same_records(
    writes: list[tuple[str, int | None]], data: st.DataObject
) -> None:
    """However often the mirror starts again and whatever it misses, a snapshot brings the bucket's state."""
    known = records()
    stored: dict[str, Update] = {}
    revision = 0
    known.begin("a", 0)
    known.complete()
    for key, value in writes:
        revision += 1
        update = Update(key, None if value is None else str(value).encode(), revision)
        stored[key] = update
        if data.draw(st.booleans(), label="delivered"):
            known.apply(update)
        if data.draw(st.booleans(), label="purged") and value is None:
            del stored[key]
    known.begin("a", revision)
    for update in sorted(stored.values(), key=lambda each: each.revision):
        known.apply(update)
    known.complete()
    expected = {key: decode(update.data) for key, update in stored.items() if update.data is not None}
    assert {key: entry.value for key, entry in known.entries.items()} == expected


def test_a_deletion_is_told_from_a_loss() -> None:
    known = records()
    known.begin("a", 0)
    known.apply(Update("deleted", b"1", 1))
    known.apply(Update("again", b"1", 2))
    known.apply(Update("unreadable", b"1", 3))
    known.apply(Update("lost", b"1", 4))
    known.complete()
    known.apply(Update("deleted", None, 5))
    known.apply(Update("again", None, 6))
    known.apply(Update("again", b"2", 7))
    known.apply(Update("unreadable", b"nonsense", 8))
    assert known.deleted == {"deleted"}
    known.begin("a", 8)
    known.apply(Update("deleted", None, 5))
    assert "lost" in known.complete()
    assert known.deleted == {"deleted"}
    known.begin("a", 8)
    known.complete()
    assert known.deleted == set(), "the mark has expired"
    known.apply(Update("k", None, 9))
    known.begin("b", 0)
    assert known.deleted == set(), "a bucket that was made anew records nothing"
