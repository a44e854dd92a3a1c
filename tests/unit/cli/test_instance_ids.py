"""Short forms of instance ids: readable on 80 columns, unique, and taken back as an argument."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvcf_cli.instance_ids import is_named, short_id, short_ids
from nvcf_proto.icms.messages import instance_id_of
from nvcf_proto.icms.names import Workload
from nvcf_proto.ids import new_id

UUID = "3f2a9c1d-0000-4000-8000-0000000000ff"


@pytest.mark.parametrize(
    ("given_id", "shown"),
    [
        (f"0-sr-{UUID}", "3f2a9c1d"),
        (f"0-sr-{UUID}-task", "3f2a9c1d"),
        (f"sr-{UUID}-miniservice", "3f2a9c1d"),
        (f"1-sr-{UUID}", "1-3f2a9c1d"),
        (UUID, "3f2a9c1d"),
        ("another-agent's", "another-"),
    ],
)
def test_the_short_form_is_the_part_that_differs(given_id: str, shown: str) -> None:
    assert short_id(given_id) == shown
    assert is_named(given_id, shown)


@given(st.lists(st.uuids(version=4), min_size=1, max_size=8), st.sampled_from(list(Workload)))
def test_short_forms_of_a_list_are_unique_and_mean_their_instance(
    uuids: list[object], kind: Workload
) -> None:
    ids = [instance_id_of(str(each), workload=kind) for each in uuids]
    shown = short_ids(ids)
    assert len(set(shown.values())) == len(set(ids))
    assert all(is_named(each, text) for each, text in shown.items())


def test_ids_that_begin_alike_are_shown_in_full() -> None:
    twin = UUID.replace("ff", "fe")
    shown = short_ids([f"0-sr-{UUID}", f"0-sr-{twin}", f"0-sr-{new_id()}"])
    assert shown[f"0-sr-{UUID}"] == UUID
    assert shown[f"0-sr-{twin}"] == twin


def test_an_id_is_named_by_its_beginning_long_or_short_only() -> None:
    assert is_named(f"0-sr-{UUID}", "0-sr-3f2a")
    assert is_named(f"0-sr-{UUID}", "3f")
    assert not is_named(f"0-sr-{UUID}", "9c1d")
