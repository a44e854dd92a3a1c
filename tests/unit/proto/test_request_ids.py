"""Ids of requests, from which follows what they were for."""

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvcf_proto.icms.request_ids import new_request_id, specification_of, version_of
from nvcf_proto.ids import is_id, new_id

SPECIFICATIONS = ["0-H100-NCP.GPU.H100_1x-1x0", "1-CPU-process-4x0", "2-Ü-x"]


@given(st.integers(0, 49), st.sampled_from(SPECIFICATIONS))
def test_version_and_specification_follow_from_the_id(place: int, specification: str) -> None:
    versions = [new_id() for _ in range(50)]
    found = new_request_id(versions[place], specification)
    assert is_id(found)
    assert uuid.UUID(found).version == 8
    assert uuid.UUID(found).variant == uuid.RFC_4122
    assert version_of(found, versions) == versions[place]
    assert version_of(found, versions[:place]) is None
    assert specification_of(found, versions[place], SPECIFICATIONS) == specification
    others = [each for each in SPECIFICATIONS if each != specification]
    assert specification_of(found, versions[place], others) is None


def test_two_requests_have_two_ids() -> None:
    version = new_id()
    assert len({new_request_id(version, "s") for _ in range(1000)}) == 1000


@pytest.mark.parametrize("text", ["", "sr-1", "x" * 100, "1bf8f95a-28c8-49e0-b227-9f4f67dbabe9"])
def test_an_id_of_another_form_says_nothing(text: str) -> None:
    version = new_id()
    assert version_of(text, [version]) is None
    assert specification_of(text, version, ["s"]) is None
