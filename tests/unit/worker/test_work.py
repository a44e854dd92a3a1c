"""Reading queue messages."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvcf_proto.pb import nvcf_pb2
from nvcf_worker.errors import MalformedWork
from nvcf_worker.message import delivery_attempt, parse_work, poll_seconds, request_time

ACK = "$JS.ACK.s.c.2.10.11.1700000000000000000.0"


def message(**changes: object) -> nvcf_pb2.WorkerInvokeFunctionRequest:
    made = nvcf_pb2.WorkerInvokeFunctionRequest(requestId=str(uuid.uuid4()))
    http1 = made.statelessConfig.connectionConfigs.add().http1Config
    http1.targetURI, http1.responseAuthorizationToken = "http://gateway:1/", "token"
    for name, value in changes.items():
        setattr(http1, name, value)
    return made


def test_a_request() -> None:
    sent = message(proxyURI="http://proxy:2", requestAuthorizationToken="other")
    headers = {"Nvcf-Reply-Subject": "nvcf.reply.g.t", "Nvcf-Reply-Max-Bytes": "100", "traceparent": "00-1"}
    work = parse_work(sent.SerializeToString(), ACK, headers, region="r", now=5.0)
    assert (work.request_id, work.attempt, work.region) == (sent.requestId, 2, "r")
    target, subject, limit = work.reply_address
    assert target.url == "http://gateway:1/v2/nvcf/worker/request-attach"
    assert (target.proxy, target.request_token) == ("http://proxy:2", "other")
    assert (subject, limit) == ("nvcf.reply.g.t", 100)
    assert work.trace == headers
    assert request_time(work) == 5.0


@pytest.mark.parametrize(
    "headers",
    [None, {}, {"Nvcf-Reply-Subject": "a"}, {"Nvcf-Reply-Subject": "a", "Nvcf-Reply-Max-Bytes": "-1"}],
)
def test_without_a_usable_inline_reply(headers: dict[str, str] | None) -> None:
    work = parse_work(message().SerializeToString(), ACK, headers, region="r", now=5.0)
    assert (work.reply_address.reply_subject, work.trace) == (None, None)
    assert (work.reply_address.target.proxy, work.reply_address.target.request_token) == (None, None)


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (nvcf_pb2.WorkerInvokeFunctionRequest(), "requestId is not a UUID"),
        (nvcf_pb2.WorkerInvokeFunctionRequest(requestId=str(uuid.uuid4())), "no statelessConfig"),
        (message(targetURI="ftp://x"), "no http"),
        (message(responseAuthorizationToken=""), "responseAuthorizationToken is empty"),
    ],
)
def test_what_is_no_request(sent: nvcf_pb2.WorkerInvokeFunctionRequest, reason: str) -> None:
    with pytest.raises(MalformedWork, match=reason):
        parse_work(sent.SerializeToString(), ACK, None, region="r", now=0.0)


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with pytest.raises(MalformedWork):
        parse_work(data, ACK, None, region="r", now=0.0)


@pytest.mark.parametrize(
    ("subject", "attempt"),
    [
        (ACK, 2),
        ("$JS.ACK.domain.hash.s.c.3.10.11.1700.0", 3),
        ("$JS.ACK._.hash.s.c.4.10.11.1700.0.random", 4),
        ("", 1),
        ("$JS.ACK.s.c.x.10.11.17.0", 1),
    ],
)
def test_the_attempt_is_read_from_the_ack_subject(subject: str, attempt: int) -> None:
    assert delivery_attempt(subject) == attempt


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ([], 60),
        ([("nvcf-poll-seconds", " 5 ")], 5),
        ([("nvcf-poll-seconds", "0")], 1),
        ([("nvcf-poll-seconds", "99999")], 3600),
        ([("nvcf-poll-seconds", "soon")], 60),
        ([("accept", "text/event-stream")], 1200),
        ([("accept", "text/event-stream, */*")], 60),
        ([("accept", "text/event-stream"), ("nvcf-poll-seconds", "7")], 7),
    ],
)
def test_the_poll_time(headers: list[tuple[str, str]], seconds: int) -> None:
    assert poll_seconds(headers) == seconds
