"""Settings from the environment."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from nvcf_worker.control.config import GrpcEndpoint, WorkerConfig, grpc_endpoint, nats_servers
from nvcf_worker.errors import ConfigurationError
from nvcf_worker.function.headers import constant_headers, function_headers
from nvcf_worker.queue.connect import authentication

ENVIRONMENT = {
    "NVCF_WORKER_TOKEN": "t",
    "NVCF_FQDN_GRPC": "127.0.0.1:1",
    "NVCF_FQDN_NATS": "nats://127.0.0.1:2",
    "INSTANCE_ID": "i-1",
    "FUNCTION_ID": str(uuid.uuid4()),
    "FUNCTION_VERSION_ID": str(uuid.uuid4()).upper(),
}


def config(**changes: str) -> WorkerConfig:
    return WorkerConfig.from_environment({**ENVIRONMENT, **changes})


def test_defaults() -> None:
    made = config()
    assert made.version_id == ENVIRONMENT["FUNCTION_VERSION_ID"].lower()
    assert (made.concurrency, made.health_port, made.shared_dir) == (1, 8080, Path("/config/shared"))
    assert made.nkey_seed is None


def test_values() -> None:
    made = config(MAX_REQUEST_CONCURRENCY="16", HEALTH_PORT="0", SHARED_CONFIG_DIR="/x", ZONE_NAME="z")
    assert (made.concurrency, made.health_port, made.shared_dir, made.zone) == (16, 0, Path("/x"), "z")
    assert WorkerConfig.from_environment(ENVIRONMENT, concurrency=7).concurrency == 7
    assert config(HEALTH_PORT="").health_port == 8080


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"INSTANCE_ID": "", "NVCF_FQDN_GRPC": ""}, "NVCF_FQDN_GRPC, INSTANCE_ID"),
        ({"INSTANCE_ID": "a b"}, "INSTANCE_ID"),
        ({"INSTANCE_ID": "a.*"}, "INSTANCE_ID"),
        ({"INSTANCE_ID": "a..b"}, "INSTANCE_ID"),
        ({"INSTANCE_ID": "../b"}, "INSTANCE_ID"),
        ({"FUNCTION_ID": "1"}, "FUNCTION_ID is not a UUID"),
        ({"HEALTH_PORT": "70000"}, "HEALTH_PORT"),
        ({"HEALTH_PORT": "-1"}, "HEALTH_PORT"),
        ({"MAX_REQUEST_CONCURRENCY": "-1"}, "MAX_REQUEST_CONCURRENCY"),
        ({"NVCF_FQDN_NATS": ","}, "NVCF_FQDN_NATS"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, str], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        config(**changes)
    with pytest.raises(ConfigurationError, match="concurrency"):
        WorkerConfig.from_environment(ENVIRONMENT, concurrency=0)


@pytest.mark.parametrize(
    ("address", "tls", "expected"),
    [
        ("127.0.0.1:1", None, GrpcEndpoint("127.0.0.1:1", False)),
        ("localhost:1", None, GrpcEndpoint("localhost:1", False)),
        ("[::1]:1", None, GrpcEndpoint("[::1]:1", False)),
        ("grpc.example.com", None, GrpcEndpoint("grpc.example.com:443", True)),
        ("grpc.example.com:9", None, GrpcEndpoint("grpc.example.com:9", True)),
        ("grpc.example.com:9", "false", GrpcEndpoint("grpc.example.com:9", False)),
        ("http://gateway:9", None, GrpcEndpoint("gateway:9", False)),
        ("https://gateway", None, GrpcEndpoint("gateway:443", True)),
        ("127.0.0.1:1", "true", GrpcEndpoint("127.0.0.1:1", True)),
    ],
)
def test_grpc_addresses(address: str, tls: str | None, expected: GrpcEndpoint) -> None:
    assert grpc_endpoint(address, tls) == expected


@pytest.mark.parametrize(("address", "tls"), [("", None), ("ftp://a", None), ("a:b", None), ("a:1", "maybe")])
def test_bad_grpc_addresses(address: str, tls: str | None) -> None:
    with pytest.raises(ConfigurationError):
        grpc_endpoint(address, tls)


def test_nats_servers() -> None:
    assert nats_servers("a:1, tls://b:2") == ("nats://a:1", "tls://b:2")


def test_how_the_worker_shows_itself_to_the_broker() -> None:
    assert authentication(config(NKEY_SEED="S"), lambda: "t") == {"nkeys_seed_str": "S"}
    assert authentication(config(NVCF_FQDN_NATS="nats://u:p@a:1"), lambda: "t") == {}
    options = authentication(config(), lambda: "newest")
    from nvcf_proto.tokens import decode_broker_token

    assert decode_broker_token(options["token"]()) == "newest"


def test_headers_that_only_the_worker_sets() -> None:
    made = config(FUNCTION_NAME="f", CLOUD_PROVIDER="b", INSTANCE_TYPE="t", ICMS_ENVIRONMENT="e")
    seen = function_headers(
        [("NVCF-Sub", "forged"), ("nvcf-ncaid", "forged"), ("NVCF-INVOCATION-REGION", "far"), ("TE", "x")],
        constant_headers(made, "near"),
        request_id="q",
        subject="",
        nca_id="n",
        max_response_bytes=0,
        seconds_left=1.2,
    )
    assert dict(seen) == {
        "NVCF-INVOCATION-REGION": "far",
        "NVCF-FUNCTION-NAME": "f",
        "NVCF-FUNCTION-ID": made.function_id,
        "NVCF-FUNCTION-VERSION-ID": made.version_id,
        "NVCF-BACKEND": "b",
        "NVCF-INSTANCETYPE": "t",
        "NVCF-REGION": "near",
        "NVCF-ENV": "e",
        "NVCF-REQID": "q",
        "NVCF-POLL-SECONDS": "2",
        "NVCF-NCAID": "n",
    }


def test_what_other_platforms_say() -> None:
    """Pod names have dots, and no concurrency at all means one request at a time."""
    made = config(INSTANCE_ID="pod-1.ns:0", MAX_REQUEST_CONCURRENCY="0", NVCF_FQDN_GRPC="http://api.local")
    assert (made.instance_id, made.concurrency, made.grpc.target) == ("pod-1.ns:0", 1, "api.local:80")
