"""Routes of clusters: those of administrators, and those that agents call."""

from __future__ import annotations

from functools import partial
from typing import Any

from nvcf_gateway.openapi.parts import KEYED, Operation, json_answer, operation_of
from nvcf_gateway.openapi.schemas import TEXT, TIME, UUID, Schema, enum_of, list_of, object_of, ref
from nvcf_proto.icms.reports import HeartbeatAction, InstanceState, MaintenanceMode, RequestState

_ADMIN = (*KEYED, 404)
_AGENT = (400, 401, 403, 404, 409, 429, 503)
_CLUSTER_HEADER = {
    "name": "X-Nv-Cluster-Id",
    "in": "header",
    "required": True,
    "schema": TEXT,
    "description": "The agent's cluster: the same as in the path and in its identity.",
}
_IF_EXISTS = {
    "name": "ifExists",
    "in": "query",
    "schema": {"type": "string", "enum": ["return"]},
    "description": "Answer 200 with the ids of a cluster that has this name already.",
}


def clusters() -> dict[str, dict[str, Operation]]:
    """Return the administrator's routes, each at both of its paths."""
    found: dict[str, dict[str, Operation]] = {}
    for prefix, suffix in (("/v1/accounts/{nca_id}", ""), ("/v1/si/accounts/{nca_id}", "Si")):
        found |= _administration(prefix, suffix)
    return found


def _administration(prefix: str, suffix: str) -> dict[str, dict[str, Operation]]:
    def make(name: str, summary: str, answer: str, *more: int, **rest: Any) -> Operation:
        return operation_of(name + suffix, summary, answer, (*_ADMIN, *more), tag="clusters", **rest)

    one = f"{prefix}/clusters/{{cluster_id}}"
    return {
        f"{prefix}/clusters": {
            "post": make(
                "registerCluster",
                "Register a cluster. Its agent's key is in this response and nowhere else.",
                "ClusterIds",
                409,
                body="ClusterCreation",
                parameters=(_IF_EXISTS,),
            ),
            "get": make("listRegisteredClusters", "The account's clusters.", "RegisteredClusterList"),
        },
        f"{prefix}/clusterGroups": {
            "get": make(
                "listRegisteredClusterGroups",
                "Groups of the account's clusters.",
                "RegisteredClusterGroupList",
            )
        },
        one: {
            "get": make("getCluster", "One cluster.", "RegisteredCluster"),
            "put": make(
                "changeCluster",
                "Replace what was said at the registration.",
                "RegisteredCluster",
                409,
                body="ClusterChange",
            ),
            "delete": make(
                "deleteCluster", "Delete a cluster; its agent ends all instances.", "ClusterIds", 409
            ),
        },
        f"{one}/rotate": {
            "post": make("rotateClusterKey", "A new key for the cluster's agent.", "ClusterIds", 409)
        },
        f"{one}/cordon": {"post": make("cordonCluster", "No new instances.", "RegisteredCluster", 409)},
        f"{one}/drain": {
            "post": make(
                "drainCluster", "No new instances; replace those that run.", "RegisteredCluster", 409
            )
        },
        f"{one}/uncordon": {
            "post": make("uncordonCluster", "New instances again.", "RegisteredCluster", 409)
        },
    }


def agents() -> dict[str, dict[str, Operation]]:
    """Return the routes that agents call."""
    answers = partial(operation_of, tag="agents", parameters=(_CLUSTER_HEADER,))

    def make(name: str, summary: str, answer: str, **rest: Any) -> Operation:
        return answers(name, summary, {200: json_answer(answer)}, _AGENT, **rest)

    def sirs(name: str, summary: str, body: str) -> Operation:
        return answers(name, summary, {200: json_answer("Nothing")}, (*_AGENT, 412), body=body)

    cluster = "/v1/nvca/clusters/{cluster_id}"
    return {
        f"{cluster}/register": {
            "put": make("registerAgent", "What the cluster has.", "RegistrationAnswer", body="Registration")
        },
        f"{cluster}/credentials": {
            "get": make("getQueueCredentials", "Empty: the queues are in NATS.", "Credentials")
        },
        f"{cluster}/heartbeat": {
            "post": make("heartbeat", "What is free, and that it lives.", "HeartbeatAnswer", body="Heartbeat")
        },
        f"{cluster}/jwks": {
            "put": make("putJwks", "Replace the key set of the agent's tokens.", "Nothing", body="Jwks")
        },
        f"{cluster}/prefetch": {
            "get": make("listPrefetchImages", "Images that the nodes are to have.", "PrefetchImages")
        },
        "/v1/nvca/tokens/introspect": {
            "post": operation_of(
                "introspectToken",
                "Whose projected token it is (RFC 7662).",
                {200: json_answer("TokenIntrospection")},
                (400, 429, 431),
                tag="agents",
                body="Introspection",
                security=False,
            )
        },
        "/v1/sirs/{request_id}": {
            "put": sirs("acknowledgeRequest", "The agent has taken a request on.", "Acknowledgement")
        },
        "/v1/sirs/{request_id}/{instance_id}": {
            "post": sirs("reportInstance", "State of an instance.", "StatusReport")
        },
        "/v1/si/clusters/{cluster_id}/instances": {
            "get": make("listKnownInstances", "What the cluster should have.", "KnownInstances")
        },
    }


_NO_QUEUES: Schema = {"type": "object", "maxProperties": 0}
_CREDENTIALS: Schema = object_of(
    {
        "creationQueue": _NO_QUEUES,
        "clusterCreationQueue": _NO_QUEUES,
        "clusterCreationQueueForTasks": _NO_QUEUES,
        "terminationQueue": {"type": "null"},
    }
)
_IDS = {"clusterId": UUID, "clusterGroupId": UUID, "clusterName": TEXT}

CLUSTER_SCHEMAS: dict[str, Schema] = {
    "Nothing": {"type": "object"},
    "TokenIntrospection": object_of(
        {
            "active": {"type": "boolean"},
            **dict.fromkeys(
                ("sub", "aud", "iss", "clusterId", "client_id", "tokenType", "token_type", "error"), TEXT
            ),
            "exp": {"type": "number"},
        },
        "active",
    ),
    "Credentials": _CREDENTIALS,
    "ClusterIds": object_of(
        {**_IDS, "clusterKey": {"type": "string", "description": "Shown when it is made, never again."}},
        *_IDS,
    ),
    "RegisteredCluster": object_of(
        {
            **_IDS,
            "ncaId": TEXT,
            "clusterGroupName": TEXT,
            "region": TEXT,
            "createdAt": TIME,
            "maintenance": enum_of(MaintenanceMode),
            "gpus": list_of(ref("Gpu")),
            "pools": list_of({"type": "object"}),
            "heartbeatAt": TIME,
        },
        *_IDS,
    ),
    "RegisteredClusterList": object_of({"clusters": list_of(ref("RegisteredCluster"))}, "clusters"),
    "RegisteredClusterGroupList": object_of(
        {
            "clusterGroups": list_of(
                object_of(
                    {
                        "id": UUID,
                        "name": TEXT,
                        "ncaId": TEXT,
                        "clusters": list_of(object_of({"id": UUID, "name": TEXT}, "id", "name")),
                    },
                    "id",
                    "name",
                    "clusters",
                )
            )
        },
        "clusterGroups",
    ),
    "RegistrationAnswer": object_of({**_IDS, "credentials": _CREDENTIALS, "region": TEXT}, "credentials"),
    "HeartbeatAnswer": object_of(
        {"action": enum_of(HeartbeatAction), "maintenance": TEXT, "reportAgain": {"type": "boolean"}},
        "action",
    ),
    "PrefetchImages": object_of(
        {
            "images": {
                "type": "array",
                "items": object_of({"containerImage": TEXT, "instanceTypeValue": TEXT, "credentials": TEXT}),
            }
        }
    ),
    "KnownInstances": object_of(
        {
            "instances": list_of(
                object_of({"instanceId": TEXT, "requestId": TEXT, "instanceState": enum_of(InstanceState)})
            )
        },
        "instances",
    ),
    "StatusReport": object_of(
        {
            "status": TEXT,
            "instanceState": enum_of(InstanceState),
            "requestState": enum_of(RequestState),
            "action": TEXT,
            "terminationCause": TEXT,
            "systemFailure": TEXT,
            "healthInfo": object_of({"errorLog": TEXT, "errorSource": TEXT}),
            "instanceIps": list_of(TEXT),
            "details": {"type": "object"},
            "heldRequests": list_of(TEXT),
        },
        "status",
        "instanceState",
    ),
}
