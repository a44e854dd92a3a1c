"""Fuzz parsers in this process: they may refuse an input only with their own errors."""

from __future__ import annotations

import base64
import contextlib
import json
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import DecodeError

from nvcf_gateway.access.agent_identity import read_key_set
from nvcf_gateway.access.broker_callout import read_claims
from nvcf_gateway.access.signing_keys import SigningKeys
from nvcf_gateway.access.worker_tokens import InvalidWorkerToken, WorkerTokens
from nvcf_gateway.clusters.cluster_records import after_heartbeat, after_registration, registered
from nvcf_gateway.clusters.instance_reports import reported
from nvcf_gateway.clusters.registration import ClusterCreation
from nvcf_gateway.errors import HttpProblem
from nvcf_gateway.exchange.attach import _decode_inline
from nvcf_gateway.exchange.exec_json import parse_exec, wrap_response
from nvcf_gateway.exchange.sinks import checked_head
from nvcf_gateway.http.durations import poll_seconds
from nvcf_gateway.http.responses import json_response
from nvcf_gateway.http.routing import pass_through_target
from nvcf_gateway.management.bodies import DeploymentCreation
from nvcf_gateway.management.deployment_changes import completed, deployment_of
from nvcf_gateway.management.function_bodies import FunctionCreation
from nvcf_gateway.management.functions import build_version
from nvcf_gateway.ratelimit.policy import parse_rates
from nvcf_gateway.results.idempotency_keys import checked_key
from nvcf_proto.compute import RegisteredCluster
from nvcf_proto.errors import ContractError
from nvcf_proto.h1 import RequestDecoder, ResponseDecoder, ResponseHead
from nvcf_proto.icms.messages import (
    CreationMessage,
    InstanceOrder,
    TerminationMessage,
    decode_environment,
    encode_environment,
)
from nvcf_proto.icms.names import agent_connection_name, decode_agent_token
from nvcf_proto.icms.reports import Acknowledgement, Heartbeat, Jwks, Registration, StatusReport
from nvcf_proto.journal import held_by
from nvcf_proto.models import ApiKey, Deployment, Function, FunctionVersion, Instance, InstanceState
from nvcf_proto.models.record import decode_object
from nvcf_proto.problem import parse_problem
from nvcf_proto.tokens import decode_broker_token
from nvcf_worker.errors import MalformedWork
from nvcf_worker.message import delivery_attempt, parse_work
from nvcf_worker.message import poll_seconds as worker_poll_seconds
from nvcf_worker.queue.puller import read_limits
from tests.fuzz import corpus
from tests.fuzz.mutation import Mutator
from tests.support.peers.icms_agent import GPUS

Run = Callable[[bytes, Mutator], None]


@dataclass(frozen=True)
class Parser:
    """A parser, good inputs, and the errors with which it refuses bad ones."""

    name: str
    corpus: list[bytes]
    run: Run
    refusals: tuple[type[Exception], ...] = (ContractError,)


@dataclass(frozen=True)
class Crash:
    """An input that a parser neither accepted nor refused."""

    parser: str
    data: bytes
    error: str


def _response(data: bytes, mutator: Mutator) -> None:
    decoder = ResponseDecoder()
    for piece in mutator.pieces(data):
        for event in decoder.feed(piece):
            if isinstance(event, ResponseHead):
                checked_head(event)
    decoder.close()


def _request(data: bytes, mutator: Mutator) -> None:
    decoder = RequestDecoder()
    for piece in mutator.pieces(data):
        decoder.feed(piece)
    decoder.close()


def _exec_response(data: bytes, _: Mutator) -> None:
    decoder = ResponseDecoder()
    events = decoder.feed(data)
    decoder.close()
    head, body = events[0], b"".join(part for part in events[1:] if isinstance(part, bytes))
    assert isinstance(head, ResponseHead)
    status, value = wrap_response(corpus.REQUEST, checked_head(head), body)
    json_response(status, value)


def _exec_body(data: bytes, _: Mutator) -> None:
    # Long numbers are passed on as they are; Python's own parser makes no number of them.
    json.loads(parse_exec(data).body, parse_int=str)


def _function_body(data: bytes, _: Mutator) -> None:
    FunctionVersion.from_json(_version(data).to_json())


def _version(data: bytes) -> FunctionVersion:
    wanted = FunctionCreation.from_json(data)
    return build_version(wanted, Function(corpus.FUNCTION, wanted.name, "a", 1.0), corpus.VERSION, 1.0)


_VERSION = _version(corpus.FUNCTION_BODIES[0])


_DEPLOYMENT = deployment_of(_VERSION, DeploymentCreation.from_json(corpus.DEPLOYMENT_BODIES[0]), 1.0)


def _deployment_body(data: bytes, _: Mutator) -> None:
    deployment = deployment_of(_VERSION, DeploymentCreation.from_json(data), 1.0)
    Deployment.from_json(deployment.to_json())


def _changed_deployment(data: bytes, _: Mutator) -> None:
    """Complete a PUT by what the deployment has."""
    members = completed(decode_object(data), _DEPLOYMENT)
    deployment_of(_VERSION, DeploymentCreation.from_dict(members), 2.0, _DEPLOYMENT)


def _work(data: bytes, _: Mutator) -> None:
    work = parse_work(data, "$JS.ACK.s.c.1.2.3.4.5", {"Nvcf-Reply-Max-Bytes": "1"}, region="local", now=1.0)
    worker_poll_seconds((pair.key.lower(), pair.value) for pair in work.message.requestHeaders)


def _header_text(data: bytes, _: Mutator) -> None:
    """Parse one text with every parser of a caller's header."""
    text = data.decode("utf-8", "surrogateescape")
    for read in (
        lambda: poll_seconds(text, accept=text, path_route=True),
        lambda: checked_key(text),
        lambda: pass_through_target({"function-id": text}, text),
        lambda: pass_through_target({}, text),
        lambda: parse_rates(text),
    ):
        try:
            read()
        except (HttpProblem, ContractError, ValueError) as error:
            if isinstance(error, UnicodeError):
                raise
    delivery_attempt(text)


def _records(data: bytes, _: Mutator) -> None:
    for record in (Function, FunctionVersion, Deployment, Instance, ApiKey):
        try:
            record.from_json(data).to_json()
        except ContractError:
            continue


_FOLDER = tempfile.TemporaryDirectory()
_TOKENS = WorkerTokens(SigningKeys(Path(_FOLDER.name) / "signing.pem"))


def _worker_token(data: bytes, _: Mutator) -> None:
    _TOKENS.verify(data.decode("latin-1"), 1.0)


def _inner_jwt(data: bytes, mutator: Mutator) -> None:
    """Damage the JSON inside a token's parts. Damage to the encoded text seldom reaches it."""
    parts = [base64.urlsafe_b64encode(part).rstrip(b"=") for part in mutator.pieces(data)]
    _TOKENS.verify(b".".join([*parts, b"c2ln"][:3]).decode(), 1.0)


def _callout(data: bytes, _: Mutator) -> None:
    read_claims(data)


def _inner_callout(data: bytes, _: Mutator) -> None:
    read_claims(b"x." + base64.urlsafe_b64encode(data))


def _inner_broker_token(data: bytes, _: Mutator) -> None:
    decode_broker_token(base64.urlsafe_b64encode(data).rstrip(b"=").decode())


_CLUSTER = RegisteredCluster(id="c", name="c", nca_id="a")
_RECORD = Instance(
    id="0-sr-x",
    function_id=corpus.FUNCTION,
    version_id=corpus.VERSION,
    cluster_id="c",
    state=InstanceState.PENDING,
    updated_at=1.0,
    created_at=1.0,
    request_id="x",
)


def _icms(data: bytes, _: Mutator) -> None:
    """Read a body of the compute plane as each of its kinds, and do what follows from it."""
    for kind in (InstanceOrder, CreationMessage, TerminationMessage, Acknowledgement, Jwks, ClusterCreation):
        with contextlib.suppress(ContractError):
            kind.from_json(data).to_json()
    with contextlib.suppress(ContractError):
        registration = Registration.from_json(data)
        cluster = registered(_CLUSTER, registration)
        after_registration(cluster, registration, None, 2.0).to_json()
    with contextlib.suppress(ContractError):
        after_heartbeat(_CLUSTER, Heartbeat.from_json(data), 2.0).to_json()
    with contextlib.suppress(ContractError):
        report = StatusReport.from_json(data)
        decision = reported(_RECORD, "c", "0-sr-x", report, 2.0)
        (decision.record or _RECORD).to_json()
        for each in report.held_requests:
            held_by(each, _RECORD.version_id)


def _agent_token(data: bytes, _: Mutator) -> None:
    decode_agent_token(agent_connection_name("c"), base64.urlsafe_b64encode(data).rstrip(b"=").decode())
    decode_agent_token(data.decode("latin-1"), data.decode("latin-1"))


def _key_set(data: bytes, _: Mutator) -> None:
    read_key_set.__wrapped__(data.decode("latin-1"))


def _launch_environment(data: bytes, _: Mutator) -> None:
    found = decode_environment(base64.b64encode(data).decode())
    assert decode_environment(encode_environment(found)) == found


ICMS_BODIES = [
    corpus.document({"status": "READY", "gpus": GPUS, "heartbeatSeconds": 2.5, "attributes": {"a": "b"}}),
    corpus.document(
        {
            "status": "healthy",
            "gpuUsage": {"H100": {"capacity": 16, "allocated": 5, "available": 11}},
            "maintenanceMode": "None",
        }
    ),
    corpus.document(
        {
            "status": "instance-terminated-by-service",
            "instanceState": "terminated",
            "requestState": "closed",
            "terminationCause": "instance-not-found",
            "healthInfo": {"errorLog": "x"},
            "instanceIps": ["", ""],
            "details": {"restarts": 1, "readyAt": 1.5, "category": "crash"},
            "heldRequests": ["$JS.ACK.rq_local_v.c.1.1.1.1.0"],
        }
    ),
    corpus.document({"instanceCount": 1, "messageBatchId": "b", "status": "pending-fulfillment"}),
    corpus.document(
        {
            "requestId": "x",
            "functionVersionId": corpus.VERSION,
            "clusterId": "c",
            "gpuSpecificationId": "s",
            "expiresAt": 1.5,
            "attempt": 0,
        }
    ),
    corpus.document(
        {
            "requestId": "x",
            "ncaId": "a",
            "action": "RequestSpotInstances",
            "instanceTypeName": "NCP.GPU.H100_1x",
            "functionDetails": {"functionId": corpus.FUNCTION, "functionVersionId": corpus.VERSION},
            "launchSpecification": {"environment": "QT1i", "gpuName": "H100", "cacheArtifacts": False},
        }
    ),
    corpus.document({"clusterName": "c", "authorizedNCAIds": ["*"], "attributes": {"a": "b"}}),
    corpus.document({"jwks": '{"keys": []}'}),
]
AGENT_TOKENS = [corpus.document({"account": "APP", "pluginName": "oidc", "payload": "x", "inbox": "own"})]
KEY_SETS = [
    corpus.document(
        {"keys": [{"kty": "RSA", "kid": "k", "alg": "RS256", "n": "u1SU1LfVLPHCozMxH2Mo", "e": "AQAB"}]}
    )
]

REQUEST_HEADS = [
    b"POST /echo?a=b HTTP/1.1\r\nHost: a\r\nContent-Type: text/plain\r\n\r\nbody",
    b"GET / HTTP/1.0\r\n\r\n",
]
CLAIMS = [corpus.document({"alg": "EdDSA", "kid": "a"}) + corpus.document({"sub": "x", "exp": 1, "fn": "f"})]
INFO = [corpus.document({"config": {"ack_wait": 30_000_000_000}}), corpus.document({"error": {"code": 404}})]
RECORDS = [
    corpus.document(
        {
            "id": corpus.FUNCTION,
            "functionId": corpus.FUNCTION,
            "versionId": corpus.VERSION,
            "ncaId": "a",
            "name": "n",
            "state": "RUNNING",
            "createdAt": 1.5,
            "scopes": ["invoke"],
            "secretHash": "ab" * 32,
        }
    ),
    *corpus.FUNCTION_BODIES,
    *corpus.DEPLOYMENT_BODIES,
]
TEXTS = [
    b"60", b"5-S", b"100-M", corpus.FUNCTION.encode(), f"{corpus.VERSION}.{corpus.FUNCTION}.host:80".encode(),
    b"text/event-stream", b"$JS.ACK.d.h.s.c.3.1.1.1.1.x",
]  # fmt: skip

UNREADABLE = (ValueError, TypeError, IndexError, RecursionError)
PROBLEMS = [corpus.document({"type": "urn:a:b:c", "title": "t", "status": 400})]

PARSERS = [
    Parser("h1 response", corpus.RESPONSE_HEADS, _response),
    Parser("h1 request", REQUEST_HEADS, _request),
    Parser("exec JSON", corpus.EXEC_BODIES, _exec_body, (HttpProblem,)),
    Parser("exec response", corpus.RESPONSE_HEADS, _exec_response),
    Parser("function JSON", corpus.FUNCTION_BODIES, _function_body, (HttpProblem, ContractError)),
    Parser("deployment JSON", corpus.DEPLOYMENT_BODIES, _deployment_body, (HttpProblem, ContractError)),
    Parser("deployment PUT", corpus.DEPLOYMENT_BODIES, _changed_deployment, (HttpProblem, ContractError)),
    Parser("queue message", corpus.WORK, _work, (MalformedWork,)),
    Parser(
        "inline reply",
        corpus.INLINE,
        lambda data, _: void(_decode_inline(data, bodiless=False)),
        (DecodeError, ContractError),
    ),
    Parser("header texts", TEXTS, _header_text),
    Parser("stored records", RECORDS, _records),
    Parser("worker token", corpus.JWT, _worker_token, (InvalidWorkerToken,)),
    Parser("worker token, inside", CLAIMS, _inner_jwt, (InvalidWorkerToken,)),
    Parser(
        "broker token",
        corpus.BROKER_TOKENS,
        lambda data, _: void(decode_broker_token(data.decode("utf-8", "replace"))),
    ),
    Parser("broker token, inside", CLAIMS, _inner_broker_token),
    Parser("auth callout request", corpus.CALLOUTS, _callout, UNREADABLE),
    Parser("auth callout request, inside", CLAIMS, _inner_callout, UNREADABLE),
    Parser("consumer info", INFO, lambda data, _: void(read_limits(data)), (ValueError,)),
    Parser("compute plane", ICMS_BODIES, _icms),
    Parser("agent's broker token", AGENT_TOKENS, _agent_token),
    Parser("key set", KEY_SETS, _key_set, (ValueError,)),
    Parser("launch environment", [b"A=b\nC=d=e", b"NVCF_FQDN=x"], _launch_environment),
    Parser("problem document", PROBLEMS, lambda data, _: void(parse_problem(data))),
]  # fmt: skip


def void(_: object) -> None:
    """Discard a result: only errors count."""


def fuzz(parser: Parser, count: int, seed: int) -> list[Crash]:
    """Feed `count` inputs. Returns at most ten crashes, each kind once."""
    mutator = Mutator(f"{seed}/{parser.name}")
    crashes: dict[str, Crash] = {}
    for _ in range(count):
        data = mutator.make(parser.corpus)
        try:
            parser.run(data, mutator)
        except parser.refusals:
            continue
        except Exception as error:  # noqa: BLE001 # finding these is what this is for
            place = traceback.extract_tb(error.__traceback__)[-1]
            key = f"{type(error).__name__} at {place.filename}:{place.lineno}"
            crashes.setdefault(key, Crash(parser.name, data, f"{key}: {str(error)[:200]}"))
            if len(crashes) >= 10:
                break
    return list(crashes.values())
