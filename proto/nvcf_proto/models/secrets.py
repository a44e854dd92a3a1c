"""Secrets as they are stored: sealed with a key that no record has."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from nvcf_proto.models.record import Record, Text, matching

SECRETS_BUCKET = "nvcf_secrets"

SECRET_NAME_PATTERN = r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,47}"
MAX_SECRET_BYTES = 32_768
"""Largest value, in bytes of UTF-8; of a value that is no string, its compact JSON."""
MAX_SECRETS = 64
MAX_SEALED_BYTES = 768 * 1024
"""Most that the sealed secrets of one owner may take together: they are one record."""

SecretName = Annotated[str, matching(SECRET_NAME_PATTERN)]


class SecretSet(Record, frozen=True):
    """The sealed secrets of one owner, by name. Key: the owner, see `version_owner` and its neighbours."""

    owner: Text
    nca_id: Text
    updated_at: float
    sealed: Annotated[dict[str, str], Meta(max_length=MAX_SECRETS)]

    @property
    def size(self) -> int:
        """Bytes of all names and sealed values."""
        return sum(len(name) + len(value) for name, value in self.sealed.items())


def version_owner(version_id: str) -> str:
    """Return the owner of a function version's secrets."""
    return f"versions.{version_id}"


def telemetry_owner(telemetry_id: str) -> str:
    """Return the owner of a telemetry endpoint's secret."""
    return f"telemetries.{telemetry_id}"


def registry_owner(credential_id: str) -> str:
    """Return the owner of a registry credential's secret."""
    return f"registries.{credential_id}"


def task_owner(task_id: str) -> str:
    """Return the owner of a task's secrets."""
    return f"tasks.{task_id}"
