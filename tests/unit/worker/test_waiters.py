"""Who is told what and when; what becomes of an answer that nobody takes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvcf_worker.exchange.exchanges import read_progress
from nvcf_worker.exchange.waiters import (
    FALLBACK_SECONDS,
    NEVER,
    RETENTION_SECONDS,
    Step,
    Waiter,
    Waiters,
    compatible,
    next_step,
)
from nvcf_worker.message import AttachTarget, ReplyAddress

ADDRESS = ReplyAddress(AttachTarget("http://gateway", None, "token", None))


def waiter(due: float = 10.0) -> Waiter:
    return Waiter(ADDRESS, due)


def test_everybody_is_told_at_the_end_of_their_time_and_once() -> None:
    waiters = Waiters()
    early, late, never = waiter(5.0), waiter(9.0), waiter(NEVER)
    for one in (early, late, never):
        assert waiters.add(one) == []
    assert waiters.next_due == 5.0
    assert waiters.overdue(4.9) == []
    assert waiters.overdue(5.0) == [early]
    assert waiters.overdue(20.0) == [late]
    assert waiters.take_all() == [never]
    assert waiters.next_due == NEVER


def test_progress_is_told_to_who_waits_and_kept_for_the_next() -> None:
    waiters = Waiters()
    first, never = waiter(), waiter(NEVER)
    waiters.waiting += [first, never]
    assert waiters.progressed(10, None) == [first]
    assert waiters.may_poll
    assert waiters.progressed(20, {"a": 1}) == []
    second = waiter()
    assert waiters.add(second) == [second]
    third = waiter()
    assert waiters.add(third) == []
    assert waiters.progress_reply().headers == [
        ("nvcf-percent-complete", "20"),
        ("content-type", "application/json"),
    ]


@given(st.lists(st.tuples(st.sampled_from(["add", "progress", "time", "take"]), st.floats(0, 100))))
def test_nobody_is_answered_twice_or_forgotten(steps: list[tuple[str, float]]) -> None:
    waiters = Waiters()
    answered: list[Waiter] = []
    added: list[Waiter] = []
    for step, number in steps:
        if step == "add":
            one = waiter(number)
            added.append(one)
            answered += waiters.add(one)
        elif step == "progress":
            answered += waiters.progressed(number, None)
        elif step == "time":
            answered += waiters.overdue(number)
        else:
            answered += waiters.take_all()
    assert len({id(one) for one in answered}) == len(answered)
    answered += waiters.waiting
    assert {id(one) for one in answered} == {id(one) for one in added}


@pytest.mark.parametrize(
    ("situation", "step"),
    [
        ({"refused": True}, Step.ABANDON),
        ({"refused": True, "may_poll": True}, Step.ABANDON),
        ({"gone": True}, Step.WAIT),
        ({"gone": True, "waited": FALLBACK_SECONDS}, Step.GIVE_UP),
        ({"gone": True, "has_fallback": False}, Step.ABANDON),
        ({"gone": True, "may_poll": True}, Step.WAIT),
        ({"gone": True, "may_poll": True, "has_fallback": False}, Step.WAIT),
        ({"may_poll": True, "waited": FALLBACK_SECONDS + 1}, Step.WAIT),
        ({"may_poll": True, "waited": RETENTION_SECONDS}, Step.GIVE_UP),
        ({"may_poll": True, "has_fallback": False, "waited": RETENTION_SECONDS}, Step.ABANDON),
        ({"waited": FALLBACK_SECONDS - 1}, Step.WAIT),
        ({"waited": FALLBACK_SECONDS}, Step.GIVE_UP),
    ],
)
def test_what_becomes_of_an_answer_that_nobody_takes(situation: dict[str, Any], step: Step) -> None:
    usual = {"refused": False, "gone": False, "may_poll": False, "has_fallback": True, "waited": 0.0}
    assert next_step(**{**usual, **situation}) is step


@pytest.mark.parametrize(
    ("headers", "disabled", "expected"),
    [
        ([], False, True),
        ([], True, False),
        ([("Accept", "*/*")], False, True),
        ([("accept", "text/event-stream")], False, False),
        ([("accept", "text/event-stream, */*")], False, True),
        ([("nvcf-feature-disable-worker-compatibility", "TRUE")], False, False),
        ([("nvcf-feature-disable-worker-compatibility", "false")], False, True),
    ],
)
def test_compatibility(headers: list[tuple[str, str]], disabled: bool, expected: bool) -> None:
    assert compatible(headers, disabled=disabled) is expected


def test_progress_files() -> None:
    assert read_progress(b'{"id": "x", "progress": 12.5, "partialResponse": [1]}') == (12.5, [1])
    assert read_progress(b'{"progress": 3}') == (3.0, None)
    for text in (b"", b"{", b"[]", b'{"progress": "3"}', b'{"progress": true}'):
        with pytest.raises(ValueError, match=r".*"):
            read_progress(text)
