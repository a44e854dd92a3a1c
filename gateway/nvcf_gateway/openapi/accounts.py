"""Routes of accounts: sharing, GPUs, queues, and those that name the account in their path."""

from __future__ import annotations

from functools import partial
from typing import Any

from nvcf_gateway.management.accounts import account_path
from nvcf_gateway.openapi.parts import KEYED, Operation, operation_of
from nvcf_gateway.openapi.schemas import INTEGER, KEY_ID, TEXT, UUID, Schema, enum_of, list_of, object_of, ref
from nvcf_proto.models import VersionStatus

_FOUND = (*KEYED, 404)
_CHANGED = (*KEYED, 404, 409)
_METHODS = ("get", "put", "post", "patch", "delete")


def changes() -> dict[str, dict[str, Operation]]:
    """Return the routes that change versions, and that of functions' ids."""
    make = partial(operation_of, tag="functions")
    version = "functions/{function_id}/versions/{version_id}"
    return {
        "/v2/nvcf/functions/ids": {
            "get": make("listFunctionIds", "The ids of the account's functions.", "FunctionIds", KEYED)
        },
        f"/v2/nvcf/metadata/{version}": {
            "put": make(
                "putMetadata", "Replace a version's tags.", "VersionAnswer", _CHANGED, body="MetadataUpdate"
            )
        },
        f"/v2/nvcf/ratelimit/{version}": {
            "put": make(
                "putRateLimitSetting",
                "Set the rate limit of all accounts.",
                "VersionAnswer",
                _CHANGED,
                body="RateLimitUpdate",
            ),
            "delete": make("deleteRateLimitSetting", "No rate limits.", "VersionAnswer", _CHANGED),
        },
    }


def tokens() -> dict[str, dict[str, Operation]]:
    """Return the routes of invocation tokens, and of clients."""
    make = partial(operation_of, tag="keys")
    base = "/v2/nvcf/tokens/functions"
    summary = "A token that invokes this for 15 minutes."
    one = partial(make, summary=summary, answers="InvocationToken", problems=(*_CHANGED, 503))
    return {
        base: {"post": one("createFunctionsToken", body="FunctionsTokenCreation")},
        f"{base}/{{function_id}}": {"post": one("createFunctionToken", body="TokenCreation")},
        f"{base}/{{function_id}}/versions/{{version_id}}": {
            "post": one("createVersionToken", body="TokenCreation")
        },
        "/v2/nvcf/clients/{client_id}": {
            "get": make("getClient", "Whose API key it is.", "ClientAnswer", _FOUND)
        },
    }


def sharing() -> dict[str, dict[str, Operation]]:
    """Return the routes of functions that are shared with other accounts."""
    make = partial(operation_of, tag="sharing")
    base = "/v2/nvcf/authorizations/functions"
    function = f"{base}/{{function_id}}"
    one, many = "AuthorizationsAnswer", "AuthorizedVersions"
    return {
        base: {"get": make("listAuthorizations", "All versions that others may invoke.", many, KEYED)},
        function: {
            "get": make(
                "listAuthorizedVersions",
                "The versions of a function, with the accounts that may invoke them.",
                many,
                _FOUND,
            ),
            "post": make(
                "createAuthorizations",
                "Share the function with these accounts and no others.",
                one,
                _CHANGED,
                body="Authorizations",
            ),
            "delete": make("clearAuthorizations", "Share the function with nobody.", one, _CHANGED),
        },
        f"{function}/add": {
            "patch": make(
                "addAuthorization",
                "Share a shared function with one more account.",
                one,
                _CHANGED,
                body="PartyChange",
            )
        },
        f"{function}/remove": {
            "patch": make(
                "removeAuthorization",
                "Share a function with one account less.",
                one,
                _CHANGED,
                body="PartyChange",
            )
        },
        f"{function}/versions/{{version_id}}": {
            "get": make("getVersionAuthorizations", "The accounts that may invoke a version.", one, _FOUND)
        },
    }


def accounts() -> dict[str, dict[str, Operation]]:
    """Return the routes of the account, of GPUs and of queues."""
    make = partial(operation_of, tag="accounts")
    queues = "/v2/nvcf/queues/functions/{function_id}"
    return {
        "/v2/nvcf/accounts": {"get": make("listAccounts", "The caller's account.", "AccountList", KEYED)},
        "/v2/nvcf/accounts/{nca_id}": {
            "get": make("getAccount", "The caller's account.", "AccountAnswer", _FOUND)
        },
        "/v2/nvcf/supportedGpus": {
            "get": make("listSupportedGpus", "The GPUs of all cluster groups.", "SupportedGpus", KEYED)
        },
        "/v2/nvcf/clusterGroups": {
            "get": make(
                "listClusterGroups", "Cluster groups with their GPUs and clusters.", "ClusterGroups", KEYED
            )
        },
        "/v2/nvcf/usage/gpus": {
            "get": make("getGpuUsage", "What the account's deployments may use.", "GpuUsage", KEYED)
        },
        queues: {
            "get": make(
                "getQueues", "How many requests wait for a function's versions.", "QueueDetails", _FOUND
            )
        },
        f"{queues}/versions/{{version_id}}": {
            "get": make("getQueue", "How many requests wait for a version.", "QueueDetails", _FOUND)
        },
        "/v2/nvcf/queues/{request_id}/position": {
            "get": make(
                "getQueuePosition",
                "About how many requests are delivered first, this one included; at most 1000.",
                "QueuePosition",
                _FOUND,
            )
        },
    }


def below_account(paths: dict[str, dict[str, Operation]]) -> dict[str, dict[str, Operation]]:
    """Return the routes that are the same below an account."""
    found: dict[str, dict[str, Operation]] = {}
    for path, operations in paths.items():
        if (alias := account_path(path)) is not None:
            found[alias] = {
                method: {
                    **operation,
                    "operationId": f"{operation['operationId']}OfAccount",
                    "responses": {**operation["responses"], "404": _NOT_FOUND},
                }
                for method, operation in operations.items()
                if method in _METHODS
            }
    return found


_NOT_FOUND: dict[str, Any] = {
    "description": "There is no such thing, or it is another account's.",
    "content": {"application/problem+json": {"schema": ref("Problem")}},
}
_BOUNDS: dict[str, Schema] = {"currentMaxUsage": INTEGER, "currentMinUsage": INTEGER}
_ACCOUNT = object_of(
    {
        "ncaId": TEXT,
        "name": TEXT,
        "currentNumberFunctions": INTEGER,
        "maxFunctionsAllowed": INTEGER,
        "maxRegistryCredentialsAllowed": INTEGER,
    },
    "ncaId",
    "name",
    "currentNumberFunctions",
)
ACCOUNT_SCHEMAS: dict[str, Schema] = {
    "FunctionIds": object_of({"functionIds": list_of(UUID)}, "functionIds"),
    "AuthorizedVersions": object_of(
        {
            "functions": list_of(
                object_of(
                    {
                        "id": UUID,
                        "versionId": UUID,
                        "ncaId": TEXT,
                        "authorizedParties": list_of(ref("Party")),
                    },
                    "id",
                    "versionId",
                    "authorizedParties",
                )
            )
        },
        "functions",
    ),
    "Account": _ACCOUNT,
    "AccountAnswer": object_of({"account": ref("Account")}, "account"),
    "AccountList": object_of({"accounts": list_of(ref("Account"))}, "accounts"),
    "InvocationToken": object_of({"access_token": TEXT, "expires_in": INTEGER}, "access_token", "expires_in"),
    "ClientAnswer": object_of(
        {"client": object_of({"clientId": KEY_ID, "ncaId": TEXT, "name": TEXT}, "clientId", "ncaId", "name")},
        "client",
    ),
    "SupportedGpus": list_of(object_of({"gpu": TEXT, "backend": TEXT}, "gpu", "backend")),
    "ClusterGroups": object_of(
        {
            "clusterGroups": list_of(
                object_of(
                    {
                        "id": UUID,
                        "name": TEXT,
                        "ncaId": TEXT,
                        "authorizedNcaIds": list_of(TEXT),
                        "gpus": list_of(
                            object_of(
                                {"name": TEXT, "instanceTypes": list_of(object_of({"name": TEXT}, "name"))},
                                "name",
                                "instanceTypes",
                            )
                        ),
                        "clusters": list_of(
                            object_of({"id": TEXT, "name": TEXT, "region": TEXT}, "id", "name")
                        ),
                    },
                    "id",
                    "name",
                    "gpus",
                    "clusters",
                )
            )
        },
        "clusterGroups",
    ),
    "GpuUsage": object_of(
        {
            "gpus": list_of(
                object_of(
                    {
                        "gpu": TEXT,
                        "instanceType": TEXT,
                        **_BOUNDS,
                        "placements": list_of(
                            object_of(
                                {
                                    "clusterId": TEXT,
                                    "cluster": TEXT,
                                    "clusterGroup": TEXT,
                                    "region": TEXT,
                                    **_BOUNDS,
                                },
                                "clusterId",
                                *_BOUNDS,
                            )
                        ),
                    },
                    "gpu",
                    "instanceType",
                    *_BOUNDS,
                    "placements",
                )
            )
        },
        "gpus",
    ),
    "QueueDetails": object_of(
        {
            "functionId": UUID,
            "queues": list_of(
                object_of(
                    {
                        "functionVersionId": UUID,
                        "functionName": TEXT,
                        "functionStatus": enum_of(VersionStatus),
                        "queueDepth": INTEGER,
                    },
                    "functionVersionId",
                    "queueDepth",
                )
            ),
        },
        "functionId",
        "queues",
    ),
    "QueuePosition": object_of(
        {"functionId": UUID, "functionVersionId": UUID, "positionInQueue": INTEGER},
        "functionId",
        "functionVersionId",
        "positionInQueue",
    ),
}
