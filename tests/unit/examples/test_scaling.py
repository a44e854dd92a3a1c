"""The scaling part of the demo: what it reads from the platform and what it draws."""

from __future__ import annotations

import json
from typing import Any

import pytest
from examples.demo.caller import Answer
from examples.demo.failure import DemoFailure
from examples.demo.scaling import MOST_INSTANCES, Copy, check, parse_copies, picture, reasons
from examples.slow_start.function import DEFAULT_SECONDS, parse_seconds

from nvcf_worker import BadInput

CLUSTERS = ("one", "two")


def copy(number: int, state: str = "RUNNING", cluster: str = "one") -> Copy:
    return Copy(str(number), state, cluster, float(number))


def test_living_instances_are_read_from_the_list() -> None:
    record = {
        "instanceId": "a",
        "state": "RUNNING",
        "clusterId": "a6062a25-2c58-5dfd-93c7-33548ae31dcc",
        "clusterName": "one",
        "createdAt": "1970-01-01T00:00:07Z",
    }
    records = {"instances": [record, {**record, "state": "COMPLETED"}, {**record, "state": "FAILED"}]}
    assert parse_copies(records) == [Copy("a", "RUNNING", "one", 7.0)]


@pytest.mark.parametrize("records", [None, [], {}, {"instances": [{}]}, {"instances": [{"createdAt": 3}]}])
def test_lists_of_another_form_are_failures_in_words(records: Any) -> None:
    with pytest.raises(DemoFailure, match="cannot be understood"):
        parse_copies(records)
    with pytest.raises(DemoFailure, match="cannot be understood"):
        reasons(records)


def test_each_instance_is_a_sign_beside_its_cluster() -> None:
    copies = [copy(2, "STARTING"), copy(1), copy(3, "PENDING", "two"), copy(4, "TERMINATING", "two")]
    assert picture(copies, CLUSTERS) == "one ■□  two □x"
    assert picture([], CLUSTERS) == "one ..  two .."


def test_reasons_are_told_oldest_first() -> None:
    assert reasons({"events": [{"text": "new"}, {"text": "old"}]}) == ["old", "new"]


def answers(instances: int, status: int = 200) -> list[Answer]:
    return [
        Answer(status, "r", json.dumps({"instance": str(each)}).encode(), 1.0) for each in range(instances)
    ]


def test_every_answer_must_be_good_and_every_instance_have_answered() -> None:
    assert len(check(answers(MOST_INSTANCES))) == MOST_INSTANCES
    with pytest.raises(DemoFailure, match="by 3 instances"):
        check(answers(3))
    with pytest.raises(DemoFailure, match="answered 503"):
        check([*answers(MOST_INSTANCES), *answers(1, 503)])


@pytest.mark.parametrize(("body", "seconds"), [(b"", DEFAULT_SECONDS), (b'{"seconds": 2}', 2.0)])
def test_how_long_an_answer_takes(body: bytes, seconds: float) -> None:
    assert parse_seconds(body) == seconds


@pytest.mark.parametrize(
    "body", [b"{", b"3", b"{}", b'{"seconds": true}', b'{"seconds": -1}', b'{"seconds": NaN}']
)
def test_what_is_no_time_is_refused(body: bytes) -> None:
    with pytest.raises(BadInput):
        parse_seconds(body)
