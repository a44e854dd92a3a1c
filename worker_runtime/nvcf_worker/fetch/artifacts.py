"""What to download, and with which logins. Pure."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

from nvcf_worker.errors import ConfigurationError

FOLDERS = ("models", "resources")
SCHEMES = ("http", "https", "s3", "oci", "file")
_NAME = re.compile(r"[^\s/\x00-\x1f\x7f][^/\x00-\x1f\x7f]*")
_CHECKSUM = re.compile(r"sha256[=:]([0-9a-f]{64})")
_DOCKER_HUB = ("docker.io", "index.docker.io", "registry-1.docker.io")


@dataclass(frozen=True)
class Artifact:
    """A model or resource. `sha256` is the checksum of its only file, if its URI ends with `#sha256=HEX`.

    `path` is the file's path below the artifact's folder; None: as in the URI.
    """

    folder: str
    name: str
    uri: str
    sha256: str | None = None
    path: str | None = None

    @property
    def label(self) -> str:
        """The artifact, for people. URIs may hold credentials, so they are never shown."""
        return f"{self.folder.removesuffix('s')} {self.name}"


def parse_artifacts(text: str | bytes) -> list[Artifact]:
    """Return the artifacts of a JSON object with `models` and `resources`. Raises ConfigurationError."""
    try:
        members = json.loads(text)
        return [artifact(folder, each) for folder in FOLDERS for each in members.get(folder) or ()]
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        raise ConfigurationError(f"the list of models and resources is not readable: {error}") from error


def artifact(folder: str, members: Mapping[str, Any]) -> Artifact:
    """Return one artifact of a list. Raises ConfigurationError."""
    name, uri = str(members["name"]), str(members["uri"])
    if not _NAME.fullmatch(name) or name in (".", ".."):
        raise ConfigurationError(f"{name!r} cannot be the name of a folder")
    address, mark, fragment = uri.partition("#")
    scheme = urlsplit(address).scheme
    if scheme not in SCHEMES:
        raise ConfigurationError(f"{name}: URIs begin with {', '.join(SCHEMES)}, not {scheme[:16]!r}")
    match = _CHECKSUM.fullmatch(fragment)
    if mark and match is None:
        raise ConfigurationError(f"{name}: after '#' only sha256=HEX is known")
    return Artifact(folder, name, address, match[1] if match is not None else None, members.get("path"))


def file_name(uri: str, default: str) -> str:
    """Return the name of the file at an address."""
    name = unquote(urlsplit(uri).path).rpartition("/")[2]
    return name if _NAME.fullmatch(name) and name not in (".", "..") else default


@dataclass(frozen=True)
class Logins:
    """Logins by host, as in Docker's config.json. For S3, user and password are the two parts of a key."""

    by_host: Mapping[str, tuple[str, str]] = field(default_factory=dict, repr=False)

    @classmethod
    def parse(cls, text: str | bytes) -> Logins:
        """Return the logins of a config.json. Raises ConfigurationError."""
        try:
            auths = json.loads(text).get("auths") or {}
            return cls({_host(name): _pair(value) for name, value in auths.items()})
        except (ValueError, AttributeError, TypeError, KeyError, binascii.Error) as error:
            raise ConfigurationError("the logins are not readable") from error

    def of(self, host: str) -> tuple[str, str] | None:
        """Return user and password for a host, with or without port; None if there is no login."""
        known = self.by_host.get(host.lower())
        return known if known is not None else self.by_host.get(host.partition(":")[0].lower())


def _host(address: str) -> str:
    host = (address.partition("://")[2] or address).partition("/")[0].lower()
    return _DOCKER_HUB[0] if host in _DOCKER_HUB else host


def _pair(value: Mapping[str, str]) -> tuple[str, str]:
    if "auth" not in value:
        return value["username"], value["password"]
    user, _, password = base64.b64decode(value["auth"], validate=True).decode().partition(":")
    return user, password
