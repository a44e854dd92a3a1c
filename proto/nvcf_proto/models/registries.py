"""Logins of an account for registries of images, charts, models and resources. The secret is not in them."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from msgspec import Meta
from msgspec.structs import force_setattr

from nvcf_proto.models.record import Id, Record, Text, matching
from nvcf_proto.models.secrets import SecretName

REGISTRIES_BUCKET = "nvcf_registries"

# A host name or IPv4 address, and a port or none.
HOSTNAME_PATTERN = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*(:[0-9]{1,5})?"
MAX_TAGS = 64


class ArtifactType(StrEnum):
    """What a registry is asked for."""

    CONTAINER = "CONTAINER"
    HELM = "HELM"
    MODEL = "MODEL"
    RESOURCE = "RESOURCE"


Hostname = Annotated[str, matching(HOSTNAME_PATTERN, max_length=255)]
ArtifactTypes = Annotated[tuple[ArtifactType, ...], Meta(min_length=1)]
Tags = Annotated[tuple[Annotated[str, matching(r"[a-zA-Z0-9_:=-]{1,128}")], ...], Meta(max_length=MAX_TAGS)]


class RegistryCredential(Record, frozen=True):
    """One login. Key: its id. `name` is the name of its secret, which is kept sealed elsewhere."""

    id: Id
    nca_id: Text
    name: SecretName
    hostname: Hostname
    artifact_types: ArtifactTypes
    created_at: float
    updated_at: float
    tags: Tags = ()
    description: Text | None = None

    def __post_init__(self) -> None:
        force_setattr(self, "artifact_types", tuple(dict.fromkeys(self.artifact_types)))
