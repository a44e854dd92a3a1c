"""Tickets and sessions of the dashboard: made here, for one purpose, for a while."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvcf_gateway.access.dashboard_tickets import LIFE_SECONDS, InvalidTicket, Purpose, Seals, looks_sealed
from nvcf_proto.apikeys import new_api_key

NOW = 1_800_000_000.0
KEY = "0123456789ab"
SEALS = Seals(lambda: (b"one" * 8, b"two" * 8))


@pytest.mark.parametrize("purpose", list(Purpose))
def test_they_are_good_until_they_are_over(purpose: Purpose) -> None:
    text, until = SEALS.make(purpose, KEY, NOW)
    assert until == NOW + LIFE_SECONDS[purpose]
    assert looks_sealed(text)
    assert SEALS.read(text, purpose, until) == KEY
    with pytest.raises(InvalidTicket, match="is over"):
        SEALS.read(text, purpose, until + 1)


def test_a_ticket_is_no_session_and_a_session_no_ticket() -> None:
    for made, wanted in ((Purpose.TICKET, Purpose.SESSION), (Purpose.SESSION, Purpose.TICKET)):
        with pytest.raises(InvalidTicket):
            SEALS.read(SEALS.make(made, KEY, NOW)[0], wanted, NOW)
    relabelled = SEALS.make(Purpose.TICKET, KEY, NOW)[0].replace("ticket", "session")
    with pytest.raises(InvalidTicket):
        SEALS.read(relabelled, Purpose.SESSION, NOW)


def test_other_keys_of_the_installation_stay_good_and_foreign_ones_do_not() -> None:
    older = Seals(lambda: (b"two" * 8,)).make(Purpose.SESSION, KEY, NOW)[0]
    assert SEALS.read(older, Purpose.SESSION, NOW) == KEY
    foreign = Seals(lambda: (b"three" * 8,)).make(Purpose.SESSION, KEY, NOW)[0]
    with pytest.raises(InvalidTicket):
        SEALS.read(foreign, Purpose.SESSION, NOW)


@given(st.integers(0, 200), st.sampled_from("0123456789abcdefXYZ_-\n"))
def test_every_changed_character_is_noticed(position: int, character: str) -> None:
    text, _ = SEALS.make(Purpose.SESSION, KEY, NOW)
    position %= len(text)
    changed = text[:position] + character + text[position + 1 :]
    if changed != text:
        with pytest.raises(InvalidTicket):
            SEALS.read(changed, Purpose.SESSION, NOW)


def test_api_keys_look_different() -> None:
    assert not any(looks_sealed(new_api_key()) for _ in range(100))
