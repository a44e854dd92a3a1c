"""Telemetry endpoints as a user writes them. Pure."""

import re
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from nvcf_cli.api import Json
from nvcf_cli.errors import CliError, UsageError
from nvcf_otel.byoo import Placement, account_folder, collector_text, secret_files
from nvcf_otel.byoo.providers import PROVIDERS
from nvcf_proto.errors import InvalidRecord
from nvcf_proto.models import TelemetryEndpoint, TelemetryProtocol, TelemetryProvider, TelemetryType
from nvcf_proto.models.telemetries import TELEMETRY_NAME_PATTERN

W = TypeVar("W", bound=StrEnum)


def word(kind: type[W], option: str, text: str) -> W:
    """Return a word of `kind`, which may be in any case and with dashes. Raises `UsageError`."""
    wanted = text.strip().upper().replace("-", "_")
    try:
        return kind(wanted)
    except ValueError:
        known = ", ".join(each.value.lower().replace("_", "-") for each in kind)
        raise UsageError(f"{option} {text}: expected one of {known}") from None


def pairs(option: str, texts: Iterable[str]) -> dict[str, str]:
    """Read `NAME=VALUE` texts. Raises `UsageError`."""
    found = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not name or not separator:
            raise UsageError(f"{option} {text}: NAME=VALUE expected")
        found[name] = value
    return found


def creation(
    name: str,
    *,
    provider: TelemetryProvider,
    endpoint: str,
    protocol: str | None,
    types: Sequence[str],
    secret: str | None,
    configuration: Mapping[str, object],
) -> Json:
    """Return the body of the management API's creation call. Raises `UsageError`."""
    if not re.fullmatch(TELEMETRY_NAME_PATTERN, name):
        raise UsageError(f"{name}: letters, digits, '_' and '-' only, at most 48 of them")
    about = PROVIDERS[provider]
    wanted = [word(TelemetryType, "--type", each) for each in types] or sorted(about.types)
    given = TelemetryProtocol.HTTP if protocol is None else word(TelemetryProtocol, "--protocol", protocol)
    body: Json = {
        "name": name,
        "endpoint": endpoint,
        "provider": provider.value,
        "protocol": given.value,
        "types": [each.value for each in wanted],
    }
    if secret is not None:
        body["secret"] = {"name": secret}
    # 0 is a wish like any other number.
    settings = {
        key: value
        for key, value in configuration.items()
        if value is not None and value is not False and value not in ([], {})
    }
    if settings:
        body["configuration"] = settings
    return body


def find_endpoint(endpoints: Iterable[Json], wanted: str) -> Json:
    """Return the endpoint of this name or id. Raises `CliError`, which lists the names."""
    everything = list(endpoints)
    for each in everything:
        if wanted in (each.get("name"), each.get("telemetryId")):
            return each
    names = ", ".join(sorted(str(each.get("name")) for each in everything))
    known = f"there are: {names}" if names else "make one with nvcf telemetry add"
    raise CliError(f"there is no telemetry endpoint {wanted}; {known}")


def chosen(endpoints: Iterable[Json], names: Iterable[str]) -> dict[TelemetryType, TelemetryEndpoint]:
    """Choose endpoints: each kind of telemetry goes to the first named one that takes it.

    Raises `CliError` for an unknown name, and for one that has nothing left to take.
    """
    everything = list(endpoints)
    found: dict[TelemetryType, TelemetryEndpoint] = {}
    for name in names:
        endpoint = _record(find_endpoint(everything, name))
        left = [kind for kind in endpoint.types if kind not in found]
        if not left:
            takes = ", ".join(kind.value.lower() for kind in endpoint.types)
            raise CliError(f"telemetry endpoint {name} takes {takes}, which go to another one already")
        found |= dict.fromkeys(left, endpoint)
    return found


def reference(found: Mapping[TelemetryType, TelemetryEndpoint]) -> Json:
    """Return a version's `telemetries`."""
    return {f"{kind.value.lower()}TelemetryId": endpoint.id for kind, endpoint in found.items()}


def _record(shown: Json) -> TelemetryEndpoint:
    try:
        return TelemetryEndpoint.from_dict({**shown, "createdAt": 0.0})
    except InvalidRecord as error:
        raise CliError(f"the platform describes an endpoint that this nvcf does not know: {error}") from error


def render(found: Mapping[TelemetryType, TelemetryEndpoint], placement: Placement) -> str:
    """Return the collector's configuration. Raises `CliError`."""
    if not found:
        raise UsageError("name at least one telemetry endpoint")
    return collector_text(found, placement)


def missing_files(endpoint: Json, folder: Path | None) -> list[str]:
    """Return the secret's files, as ACCOUNT/NAME, that are not in `folder`; all of them without one."""
    record = _record(endpoint)
    paths = [f"{account_folder(record.nca_id)}/{name}" for name in secret_files(record)]
    return [path for path in paths if folder is None or not (folder / path).is_file()]
