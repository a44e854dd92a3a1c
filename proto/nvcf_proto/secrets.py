"""How secrets are fetched (protocol.md, section 6.9): paths, headers and the token that names the paths."""

from __future__ import annotations

ESS_PREFIX = "/v1/"
ESS_TOKEN_HEADER = "X-ESS-Token"
ESS_NAMESPACE_HEADER = "X-ESS-Namespace"
ESS_NAMESPACE = "nvcf"
SECRETS_AUDIENCE = "secrets"
SECRETS_TOKEN_LIFE = 900.0
"""Life of a token for secrets, in seconds."""
SECRETS_FILE = "secrets.json"


def function_secrets_path(function_id: str, version_id: str) -> str:
    """Return the path of a function version's secrets."""
    return f"functions/{function_id}/versions/{version_id}"


def telemetry_secrets_path(nca_id: str, telemetry_id: str) -> str:
    """Return the path of a telemetry endpoint's secret."""
    return f"accounts/{nca_id}/telemetries/{telemetry_id}"


def task_secrets_path(task_id: str) -> str:
    """Return the path of a task's secrets."""
    return f"tasks/{task_id}/secrets"
