"""Good inputs to start from."""

from __future__ import annotations

import base64
import json

from nvcf_proto.pb import nvcf_pb2
from nvcf_proto.tokens import encode_broker_token

FUNCTION = "0a7a1d1e-58a2-4a0b-9d53-0d9c3b6cbb01"
VERSION = "0a7a1d1e-58a2-4a0b-9d53-0d9c3b6cbb02"
REQUEST = "0a7a1d1e-58a2-4a0b-9d53-0d9c3b6cbb03"


def document(value: object) -> bytes:
    """Return JSON as clients encode it."""
    return json.dumps(value).encode()


RESPONSE_HEADS = [
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
    b"HTTP/1.1 202 Accepted\r\nNVCF-PERCENT-COMPLETE: 40\r\n\r\n{\"partial\": 1}",
    b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1/result\r\n\r\n",
    b"HTTP/1.1 500 Internal Server Error\r\nContent-Type: application/problem+json\r\n\r\n{\"error\": \"x\"}",
    b"HTTP/1.1 204\r\nX-A: \r\nx-a:b\r\n\r\n",
]  # fmt: skip

EXEC_BODIES = [
    document(
        {
            "requestHeader": {"inputAssetReferences": [REQUEST], "pollDurationSeconds": 1},
            "requestBody": {"prompt": "ä", "n": [1, 2.5, None, True], "deep": {"a": {"b": {}}}},
        }
    ),
    document({"requestBody": "text"}),
    document({"requestBody": None}),
    document({}),
]

FUNCTION_BODIES = [
    document(
        {
            "name": "a-function",
            "inferenceUrl": "/echo",
            "description": "text",
            "tags": ["a", "b"],
            "functionType": "DEFAULT",
            "containerImage": "example/image:1",
        }
    ),
    document(
        {
            "name": "p",
            "process": {
                "python": "/usr/bin/python3",
                "file": "/f.py",
                "handler": "handler",
                "workingDirectory": "/",
                "environment": {"A": "1"},
            },
        }
    ),
]

LLM_CONFIG = {"uris": ["/v1/a"], "tokenRateLimit": "5-S", "routingMethod": "random"}
FUNCTION_BODIES.append(
    document(
        {
            "name": "everything",
            "containerImage": "example/image:1",
            "inferencePort": 8000,
            "health": {"protocol": "gRPC", "uri": "/ready", "port": 8001, "timeout": "PT1M30S"},
            "containerArgs": "--model 'a b'",
            "containerEnvironment": [{"key": "A", "value": "b"}],
            "models": [
                {
                    "name": "m",
                    "llmConfig": {"uris": ["/v1/a"], "tokenRateLimit": "5-S", "routingMethod": "random"},
                }
            ],
            "resources": [{"name": "r", "version": "1", "uri": "ngc://r"}],
            "functionType": "LLM",
            "rateLimit": {"rateLimit": "5-S", "exemptedNcaIds": ["a"]},
            "llmInvocationConfig": {"priority": {"defaultPriority": 1, "perAccountPriority": {"a": 2}}},
        }
    )
)

DEPLOYMENT_BODIES = [
    document(
        {
            "deploymentSpecifications": [
                {
                    "gpuSpecificationId": REQUEST,
                    "gpu": "H100",
                    "instanceType": "NCP.GPU.H100_1x",
                    "backend": "group",
                    "availabilityZones": ["z"],
                    "attributes": ["A"],
                    "configuration": {"a": {"b": [1, None]}},
                    "preferredOrder": 1,
                    "cpuArch": "arm64",
                    "autoscalingConfiguration": {
                        "scaleUpDetails": {
                            "factor": 1.5,
                            "threshold": 60,
                            "stickiness": {"size": "PT10M", "threshold": "PT5M"},
                        }
                    },
                    "helmValidationPolicy": {"name": "Default"},
                },
                {"gpu": "CPU", "attributes": {"a": "b"}},
            ]
        }
    ),
    document(
        {
            "deploymentSpecifications": [
                {
                    "gpu": "CPU",
                    "instanceType": "process",
                    "minInstances": 1,
                    "maxInstances": 2,
                    "maxRequestConcurrency": 4,
                }
            ],
            "keepQueued": True,
        }
    ),
]


def _work() -> list[bytes]:
    message = nvcf_pb2.WorkerInvokeFunctionRequest(
        requestId=REQUEST,
        ncaId="account-1",
        subject="caller",
        requestMethod="POST",
        requestPath="/echo?a=b",
        requestBody=b'{"a": 1}',
        maxDirectResponseSizeBytes=5_242_880,
        largeResponseUrl="http://127.0.0.1:9/large",
    )
    message.requestTime.GetCurrentTime()
    message.requestTime.seconds = 1_700_000_000
    message.requestHeaders.add(key="Content-Type", value="application/json")
    message.requestHeaders.add(key="NVCF-POLL-SECONDS", value="1")
    message.inputAssetReference.add(
        assetId=REQUEST, reference="http://127.0.0.1:9/a", contentType="text/plain"
    )
    http1 = message.statelessConfig.connectionConfigs.add().http1Config
    # Nothing listens at this address, so the connection of a worker is refused.
    http1.targetURI, http1.responseAuthorizationToken = "http://127.0.0.1:9", "token"
    whole = message.SerializeToString()
    http1.requestAuthorizationToken = "body"
    message.requestMethod = message.requestPath = ""
    return [whole, message.SerializeToString()]


WORK = _work()


def _inline() -> list[bytes]:
    reply = nvcf_pb2.InlineResponse(body=b"{}", httpStatusCode=200, endOfResponse=True)
    reply.headers.add(key="Content-Type", value="application/json")
    reply.headers.add(key="Content-Length", value="2")
    progress = nvcf_pb2.InlineResponse(httpStatusCode=202, endOfResponse=True)
    progress.headers.add(key="NVCF-PERCENT-COMPLETE", value="40")
    return [reply.SerializeToString(), progress.SerializeToString()]


INLINE = _inline()

CONNECT = [
    nvcf_pb2.WorkerConnect(
        instanceId=REQUEST, functionId=FUNCTION, functionVersionId=VERSION
    ).SerializeToString()
]


def segment(value: object) -> bytes:
    """Return an encoded part of a JWT."""
    return base64.urlsafe_b64encode(document(value)).rstrip(b"=")


JWT = [
    b".".join((segment({"alg": "EdDSA", "typ": "JWT", "kid": "a"}), segment({"sub": "x", "exp": 1}), b"c2ln"))
]
BROKER_TOKENS = [encode_broker_token(JWT[0].decode()).encode()]
CALLOUTS = [
    b".".join(
        (
            segment({"typ": "JWT", "alg": "ed25519-nkey"}),
            segment(
                {
                    "nats": {
                        "user_nkey": "UABC",
                        "server_id": {"id": "NABC", "name": "n"},
                        "connect_opts": {"auth_token": BROKER_TOKENS[0].decode(), "name": "worker"},
                        "client_info": {"host": "127.0.0.1"},
                    }
                }
            ),
            b"c2ln",
        )
    )
]
