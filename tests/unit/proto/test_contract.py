"""Names, settings and forms of the contract, as protocol.md writes them."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor
from hypothesis import given
from hypothesis import strategies as st

from nvcf_proto import headers, ids, models, problem, streams, subjects, tokens
from nvcf_proto.errors import ContractError, InvalidId, InvalidRecord, InvalidToken
from nvcf_proto.models import keys
from nvcf_proto.pb import nvcf_pb2, ratelimiter_pb2

V = "0b0e0a52-6f4c-4d3a-9d59-9e3f0f0c1a2b"
Q = "5f0a4f4e-56f6-4a50-8a3c-3d1f0e1b2c3d"


@pytest.mark.parametrize(
    ("message", "fields"),
    [
        (nvcf_pb2.WorkerConnect, {"instanceId": 1, "functionId": 2, "functionVersionId": 3}),
        (
            nvcf_pb2.WorkerConnectOnceResponse,
            {"connectedRegion": 1, "otherRegions": 2, "nvcfWorkerToken": 3, "expiration": 4},
        ),
        (
            nvcf_pb2.WorkerInvokeFunctionRequest,
            {
                "requestId": 1, "ncaId": 2, "subject": 3, "largeResponseUrl": 4,
                "maxDirectResponseSizeBytes": 5,
                "inputAssetReference": 6, "requestTime": 8, "statefulConfig": 9, "requestBody": 10,
                "directResponseUrl": 12, "requestHeaders": 13, "requestMethod": 14, "requestPath": 15,
                "statelessConfig": 18,
            },
        ),
        (
            nvcf_pb2.StatelessConfig.HTTP1ProtocolConfig,
            {"proxyURI": 1, "targetURI": 2, "responseAuthorizationToken": 3, "requestAuthorizationToken": 4},
        ),
        (nvcf_pb2.StatefulConfig, {"nvcfRegionOfInvoker": 3, "connectionConfigs": 4}),
        (
            nvcf_pb2.InlineResponse,
            {"body": 1, "headers": 2, "httpStatusCode": 3, "chunkNumber": 4, "endOfResponse": 5},
        ),
        (nvcf_pb2.ErrorDetails, {"type": 1, "title": 2, "status": 3, "detail": 4}),
        (
            nvcf_pb2.RateLimitPolicyResponse.Config,
            {"rate": 1, "excludedNcaIds": 2, "perNcaIdConfigs": 3, "perUserRate": 4},
        ),
        (nvcf_pb2.ScalingDetails, {"metric": 1, "factor": 2, "threshold": 3, "stickiness": 4}),
        (
            ratelimiter_pb2.RateLimitRequest,
            {"ncaId": 1, "functionId": 2, "functionVersionId": 3, "clientAuthSubject": 4},
        ),
    ],
)  # fmt: skip
def test_field_numbers(message: Any, fields: dict[str, int]) -> None:
    descriptor: Descriptor = message.DESCRIPTOR
    assert {field.name: field.number for field in descriptor.fields} == fields


def test_services_have_the_contract_s_calls() -> None:
    services = nvcf_pb2.DESCRIPTOR.services_by_name
    assert sorted(services) == ["Autoscaler", "Invocation", "Proxy", "RateLimit", "Worker"]
    assert services["Worker"].full_name == "nvcf.Worker"
    assert len(services["Worker"].methods) == 11
    assert nvcf_pb2.InvokeStatus.items() == [
        ("ERRORED", 0), ("IN_PROGRESS", 1), ("FULFILLED", 2), ("PENDING_EVALUATION", 3), ("REJECTED", 4),
    ]  # fmt: skip


def test_names() -> None:
    assert subjects.request_stream("eu-1", V) == f"rq_eu-1_{V}"
    assert subjects.request_subject("eu-1", V, Q) == f"rq.eu-1.{V}.{Q}"
    assert subjects.request_consumer("eu-1", V) == f"rq_eu-1_{V}_workers"
    assert subjects.tracking_subject("eu-1", Q) == f"requestToFunctionVersion.eu-1.{Q}"
    assert subjects.polling_subject(Q) == f"rq_polling.{Q}"
    assert subjects.cancel_subject(V) == f"nvcf.cancel.{V}"
    assert subjects.session_lookup_subject("eu-1", V, Q) == f"stateful_session.lookup.eu-1.{V}.{Q}"


def test_stream_settings() -> None:
    config = streams.request_stream_config("eu-1", V, placement_tag="aws-region:eu-1")
    assert config == {
        "name": f"rq_eu-1_{V}", "subjects": [f"rq.eu-1.{V}.>"], "retention": "workqueue", "storage": "file",
        "num_replicas": 1, "discard": "new", "discard_new_per_subject": True, "max_msgs": 100_000,
        "max_msgs_per_subject": 1, "max_msg_size": 6_291_456, "duplicate_window": 5_000_000_000,
        "allow_direct": True, "placement": {"tags": ["aws-region:eu-1"]},
    }  # fmt: skip
    assert "placement" not in streams.request_stream_config("eu-1", V)
    tracking = streams.tracking_stream_config("eu-1")
    assert (tracking["retention"], tracking["max_age"]) == ("limits", 3_600_000_000_000)
    consumer = streams.request_consumer_config("eu-1", V)
    assert (consumer["max_ack_pending"], consumer["max_deliver"]) == (100_000, 5)


def test_worker_permissions_name_nothing_foreign() -> None:
    granted = subjects.worker_permissions(["a", "b"], V, Q)
    foreign = [each for each in granted.publish if V not in each]
    assert foreign == []
    assert [each for each in granted.subscribe if V not in each] == []
    assert {f"nvcf.cancel.{V}", f"_INBOX.{V}.{Q}.>"} <= set(granted.subscribe)
    assert "_INBOX.>" in subjects.worker_permissions(["a"], V, Q, wide_inbox=True).subscribe


@given(st.text(max_size=200))
def test_broker_token_round_trip(token: str) -> None:
    if token:
        assert tokens.decode_broker_token(tokens.encode_broker_token(token)) == token


@pytest.mark.parametrize(
    "text", ["", "x", "e30", "bnVsbA", "eyJhY2NvdW50IjoiT3RoZXIiLCJwYXlsb2FkIjoieCJ9", "ä", "=="]
)
def test_other_broker_tokens_are_refused(text: str) -> None:
    with pytest.raises(InvalidToken):
        tokens.decode_broker_token(text)


def test_broker_token_is_unpadded_json() -> None:
    import base64

    text = tokens.encode_broker_token("abc")
    assert "=" not in text
    padded = text + "=" * (-len(text) % 4)
    assert json.loads(base64.urlsafe_b64decode(padded)) == {
        "account": "Worker", "pluginName": "webhook", "payload": "abc",
    }  # fmt: skip


def test_ids() -> None:
    assert ids.parse_id(V.upper()) == V
    for bad in ("", "x", V + "0", V.replace("-", ""), "{" + V + "}", V[:-1] + "g"):
        with pytest.raises(InvalidId):
            ids.parse_id(bad)
    made = {ids.new_id() for _ in range(200)}
    assert len(made) == 200
    for text in made:
        found = uuid.UUID(text)
        assert (str(found), found.version, found.variant) == (text, 4, uuid.RFC_4122)


def test_problem_document() -> None:
    made = problem.Problem("Too Many Deliveries", 500, "five", source="nvcf-worker-service")
    document = json.loads(made.to_json())
    assert document == {
        "type": "urn:nvcf-worker-service:problem-details:too-many-deliveries",
        "title": "Too Many Deliveries",
        "status": 500,
        "detail": "five",
    }
    assert problem.parse_problem(made.to_json()) == made
    for bad in (b"", b"[]", b"{}", b'{"title":"x","status":"y"}'):
        with pytest.raises(ContractError):
            problem.parse_problem(bad)


def test_hop_by_hop_headers_and_those_that_connection_names_go() -> None:
    pairs = [("Connection", "close, X-Named"), ("X-Named", "1"), ("TE", "x"), ("Keep", "2"), ("Keep", "3")]
    assert headers.strip_hop_by_hop(pairs) == [("Keep", "2"), ("Keep", "3")]


def test_api_key_form() -> None:
    key = keys.new_api_key()
    assert key.startswith(f"nvcf-{keys.api_key_id(key)}-")
    assert len(keys.hash_api_key(key)) == 64
    for bad in ("", "nvcf-", key[:-1], key + "x", key.upper()):
        with pytest.raises(InvalidToken):
            keys.api_key_id(bad)


def test_records_round_trip() -> None:
    process = models.ProcessSource("/p", "/f.py", "/w", "handler", {"A": "b"})
    version = models.FunctionVersion(V, Q, "name", "account", 1.5, process=process, tags=("x",))
    deployment = models.Deployment(
        V, Q, 2.0, (models.DeploymentSpecification(min_instances=2, max_instances=4),)
    )
    instance = models.Instance(Q, Q, V, "c", models.InstanceState.RUNNING, 1.0, 1.0, pid=7, ready_at=2.0)
    key = models.ApiKey("0" * 12, "0" * 64, "account", (models.Scope.INVOKE,), 1.0)
    for record in (version, deployment, instance, key, models.Function(Q, "name", "account", 1.0)):
        assert type(record).from_json(record.to_json()) == record
    assert instance.key == f"{V}.{Q}"
    assert not key.allows(models.Scope.DEPLOY)
    admin = models.ApiKey("0" * 12, "0" * 64, "account", (models.Scope.ADMIN,), 1.0)
    assert admin.allows(models.Scope.DEPLOY)
    assert not admin.allows(models.Scope.AGENT)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_any_json_is_a_record_or_refused_by_name(value: Any) -> None:
    for kind in (models.FunctionVersion, models.Deployment, models.Instance, models.ApiKey):
        with pytest.raises(InvalidRecord):
            kind.from_json(json.dumps(value).encode())
