"""Bodies that carry the value of a secret. Their `repr` never shows it."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any

import msgspec
from msgspec import Meta, field

from nvcf_proto.errors import InvalidRecord
from nvcf_proto.models.record import Record
from nvcf_proto.models.registries import ArtifactType, ArtifactTypes, Hostname, Tags
from nvcf_proto.models.secrets import MAX_SECRET_BYTES, MAX_SECRETS, SecretName
from nvcf_proto.models.telemetries import TelemetryName

NGC_HOST = "nvcr.io"
NGC_USER = "$oauthtoken"

Value = Annotated[
    Any,
    Meta(description=f"A text or any other JSON but null; at most {MAX_SECRET_BYTES} bytes. Never shown."),
]
Login = Annotated[
    str, Meta(max_length=MAX_SECRET_BYTES, description="Base64 of `user:password`. Never shown.")
]


class _Hidden(Record, frozen=True):
    """A record of which only the name shows."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}(name={getattr(self, 'name', None)!r})"


def _check_value(value: Any) -> None:
    """Raise InvalidRecord for a value that is none or too large."""
    if value is None:
        raise InvalidRecord("value", "missing; expected a string or another JSON value")
    encoded = value.encode() if isinstance(value, str) else msgspec.json.encode(value)
    if len(encoded) > MAX_SECRET_BYTES:
        raise InvalidRecord("value", f"longer than {MAX_SECRET_BYTES} bytes")


class SecretValue(_Hidden, frozen=True, forbid_unknown_fields=True):
    """A secret with its value."""

    name: SecretName
    value: Value

    def __post_init__(self) -> None:
        _check_value(self.value)


SecretList = Annotated[tuple[SecretValue, ...], Meta(max_length=MAX_SECRETS)]


def values_of(secrets: tuple[SecretValue, ...]) -> dict[str, Any]:
    """Return the values by name. Raises InvalidRecord for a name that is given twice."""
    found: dict[str, Any] = {}
    for index, each in enumerate(secrets):
        if each.name in found:
            raise InvalidRecord(f"secrets[{index}].name", f"a second secret {each.name}")
        found[each.name] = each.value
    return found


class SecretsChange(Record, frozen=True, forbid_unknown_fields=True):
    """Secrets to add to those that are there, or to replace those of the same name."""

    secrets: Annotated[tuple[SecretValue, ...], Meta(min_length=1, max_length=MAX_SECRETS)]

    def __post_init__(self) -> None:
        values_of(self.secrets)


class TelemetrySecretValue(_Hidden, frozen=True, forbid_unknown_fields=True):
    """The secret of a telemetry endpoint: one text, or an object with a text for each of its keys.

    Without a value the clusters must have it in files.
    """

    name: TelemetryName
    value: (
        Annotated[
            str | dict[str, str],
            Meta(description="A text, or an object with a text for each key. Never shown."),
        ]
        | None
    ) = None

    def __post_init__(self) -> None:
        if self.value is not None:
            _check_value(self.value)


class TelemetrySecretChange(Record, frozen=True, forbid_unknown_fields=True):
    """The new secret of a telemetry endpoint."""

    secret: TelemetrySecretValue

    def __post_init__(self) -> None:
        if self.secret.value is None:
            raise InvalidRecord("secret.value", "missing; expected a string or an object of strings")


class RegistrySecret(_Hidden, frozen=True, forbid_unknown_fields=True):
    """The login for a registry: base64 of `user:password`."""

    name: SecretName
    value: Login

    def __post_init__(self) -> None:
        login_user(self.value)


class RegistryCreation(Record, frozen=True, forbid_unknown_fields=True):
    """A new registry credential."""

    hostname: Hostname = field(name="registryHostname")
    secret: RegistrySecret
    artifact_types: ArtifactTypes
    tags: Tags = ()
    description: Annotated[str, Meta(max_length=256)] | None = None

    def __post_init__(self) -> None:
        check_login(self.hostname, self.secret)


class RegistryChange(Record, frozen=True, forbid_unknown_fields=True):
    """A new secret, and artifact types to add to those that are there."""

    secret: RegistrySecret | None = None
    artifact_types: tuple[ArtifactType, ...] = field(name="artifactTypeEnums", default=())


def login_user(value: str) -> str:
    """Return the user of a login. Raises InvalidRecord unless it is base64 of `user:password`."""
    try:
        user, separator, password = base64.b64decode(value, validate=True).decode().partition(":")
    except (binascii.Error, ValueError):
        raise InvalidRecord("value", "expected the base64 of user:password") from None
    if not user or not separator or not password or any(map(str.isspace, user + password)):
        raise InvalidRecord("value", "expected the base64 of user:password, without white space in it")
    return user


def check_login(hostname: str, secret: RegistrySecret) -> None:
    """Raise InvalidRecord for a login that the registry would not take."""
    is_ngc = hostname == NGC_HOST or hostname.endswith((f".{NGC_HOST}", ".ngc.nvidia.com"))
    if is_ngc and login_user(secret.value) != NGC_USER:
        raise InvalidRecord("secret.value", f"for NGC the user is {NGC_USER}, the password an NGC API key")
