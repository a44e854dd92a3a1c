"""Routes of secrets and registry credentials."""

from __future__ import annotations

from functools import partial

from nvcf_gateway.management.registries import PROVISIONED_BY
from nvcf_gateway.openapi.parts import KEYED, Operation, json_answer, operation_of
from nvcf_gateway.openapi.schemas import (
    SECRET_NAME,
    TEXT,
    TIME,
    UUID,
    Schema,
    enum_of,
    list_of,
    object_of,
    ref,
)
from nvcf_proto.models import ArtifactType
from nvcf_proto.secrets import (
    ESS_NAMESPACE,
    ESS_NAMESPACE_HEADER,
    ESS_PREFIX,
    ESS_TOKEN_HEADER,
    function_secrets_path,
    task_secrets_path,
    telemetry_secrets_path,
)

SECRET_SCHEMAS: dict[str, Schema] = {
    "SecretNames": object_of(
        {"id": UUID, "versionId": UUID, "secrets": list_of(SECRET_NAME)}, "id", "versionId", "secrets"
    ),
    "SecretNamesList": object_of({"functions": list_of(ref("SecretNames"))}, "functions"),
    "SecretToken": object_of(
        {"token": TEXT, "expiration": TIME, "secretPaths": list_of(TEXT)},
        "token",
        "expiration",
        "secretPaths",
    ),
    "Secrets": object_of(
        {
            "data": object_of(
                {
                    "data": {
                        "type": "object",
                        "description": "The values by name: texts or any other JSON.",
                    },
                    "metadata": object_of({"created_time": TIME}),
                },
                "data",
                "metadata",
            )
        },
        "data",
    ),
    "RegistryCredential": object_of(
        {
            "registryCredentialId": UUID,
            "ncaId": TEXT,
            "registryCredentialName": SECRET_NAME,
            "registryName": TEXT,
            "registryHostname": TEXT,
            "artifactTypes": list_of(enum_of(ArtifactType)),
            "tags": list_of(TEXT),
            "description": TEXT,
            "provisionedBy": {"type": "string", "enum": list(PROVISIONED_BY)},
            "createdAt": TIME,
            "lastUpdatedAt": TIME,
        },
        "registryCredentialId",
        "registryHostname",
        "artifactTypes",
    ),
    "RegistryCredentialAnswer": object_of(
        {"registryCredential": ref("RegistryCredential")}, "registryCredential"
    ),
    "RegistryCredentialList": object_of(
        {"registryCredentials": list_of(ref("RegistryCredential"))}, "registryCredentials"
    ),
    "RecognizedRegistries": object_of(
        {
            "recognizedRegistries": {
                "type": "object",
                "additionalProperties": list_of(object_of({"registryName": TEXT, "registryHostname": TEXT})),
            }
        },
        "recognizedRegistries",
    ),
}
_BASE = "/v2/nvcf/secrets"
_FOUND = (*KEYED, 404)
_WRITTEN = (*_FOUND, 409, 501, 507)


def secrets() -> dict[str, dict[str, Operation]]:
    """Return the routes of secrets and registry credentials."""
    return {**_functions(), **_registries(), **_delivery()}


def _functions() -> dict[str, dict[str, Operation]]:
    make = partial(operation_of, tag="secrets")
    function = f"{_BASE}/functions/{{function_id}}"
    version = f"{function}/versions/{{version_id}}"
    telemetry = f"{_BASE}/telemetries/{{telemetry_id}}"
    return {
        function: {
            "put": make(
                "putFunctionSecrets",
                "Add or replace secrets of every version of a function.",
                None,
                _WRITTEN,
                body="SecretsChange",
            ),
            "get": make(
                "listFunctionSecrets", "The names of each version's secrets.", "SecretNamesList", _FOUND
            ),
        },
        version: {
            "put": make(
                "putSecrets",
                "Add secrets to a version, or replace those of the same name.",
                None,
                _WRITTEN,
                body="SecretsChange",
            ),
            "get": make("listSecrets", "The names of a version's secrets.", "SecretNames", _FOUND),
            "delete": make("deleteSecrets", "Remove all secrets of a version.", None, (*_FOUND, 409)),
        },
        f"{version}/names/{{secret_name}}": {
            "delete": make("deleteSecret", "Remove one secret of a version.", None, (*_FOUND, 409))
        },
        telemetry: {
            "put": make(
                "putTelemetrySecret",
                "Set the secret of a telemetry endpoint, for instances that start from then on.",
                None,
                _WRITTEN,
                body="TelemetrySecretChange",
            ),
            "delete": make(
                "deleteTelemetrySecret",
                "Remove it; files on the clusters serve again.",
                None,
                (*_FOUND, 409),
            ),
        },
    }


def _registries() -> dict[str, dict[str, Operation]]:
    make = partial(operation_of, tag="registries")
    base = "/v2/nvcf/registry-credentials"
    return {
        base: {
            "post": make(
                "createRegistryCredential",
                "A login for a registry.",
                "RegistryCredentialAnswer",
                (*KEYED, 409, 501, 507),
                body="RegistryCreation",
            ),
            "get": make(
                "listRegistryCredentials",
                "The account's logins, without their secrets.",
                "RegistryCredentialList",
                KEYED,
                parameters=(
                    {"name": "artifactType", "in": "query", "schema": enum_of(ArtifactType)},
                    {
                        "name": "provisionedBy",
                        "in": "query",
                        "schema": {"type": "string", "enum": list(PROVISIONED_BY)},
                    },
                ),
            ),
        },
        f"{base}/{{registry_id}}": {
            "get": make("getRegistryCredential", "One login.", "RegistryCredentialAnswer", _FOUND),
            "patch": make(
                "changeRegistryCredential",
                "Replace its secret, add types of artifacts.",
                "RegistryCredentialAnswer",
                _WRITTEN,
                body="RegistryChange",
            ),
            "delete": make("deleteRegistryCredential", "Remove a login.", None, (*_FOUND, 409)),
        },
        "/v2/nvcf/recognized-registries": {
            "get": make("listRecognizedRegistries", "Registries with a name.", "RecognizedRegistries", KEYED)
        },
    }


def _delivery() -> dict[str, dict[str, Operation]]:
    make = partial(operation_of, tag="secrets")
    headers = (
        {"name": ESS_TOKEN_HEADER, "in": "header", "required": True, "schema": TEXT},
        {
            "name": ESS_NAMESPACE_HEADER,
            "in": "header",
            "required": True,
            "schema": {"type": "string", "enum": [ESS_NAMESPACE]},
        },
        {"name": "If-None-Match", "in": "header", "schema": TEXT},
    )
    answers = {
        200: json_answer("Secrets", "The values; the header ETag changes with them."),
        304: {"description": "Nothing has changed."},
    }
    read = partial(
        make, answers=answers, problems=(400, 401, 403, 404, 501, 503), parameters=headers, security=False
    )
    return {
        ESS_PREFIX + function_secrets_path("{function_id}", "{version_id}"): {
            "get": read("readSecrets", "The secrets of a version; for its instances.")
        },
        ESS_PREFIX + telemetry_secrets_path("{nca_id}", "{telemetry_id}"): {
            "get": read("readTelemetrySecret", "The secret of a telemetry endpoint; for agents.")
        },
        ESS_PREFIX + task_secrets_path("{task_id}"): {
            "get": read("readTaskSecrets", "The secrets of a task; for its instance.")
        },
        "/v2/nvcf/agents/secret-credentials": {
            "post": make(
                "issueSecretToken",
                "A token for the secrets of an instance; for agents.",
                "SecretToken",
                _FOUND,
                body="SecretTokenRequest",
            )
        },
    }
