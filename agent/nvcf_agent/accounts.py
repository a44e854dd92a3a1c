"""The telemetry of an account's functions: environment variables or a collector for each instance."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from nvcf_agent.backends.environment import CollectorOrder, WorkerTelemetry
from nvcf_otel import names
from nvcf_otel.byoo import Plan, account_folder, plan, secret_files
from nvcf_otel.byoo.plan import direct_environment
from nvcf_proto.compute import CreationMessage
from nvcf_proto.models import FunctionVersion, TelemetryEndpoint, TelemetryType

_log = logging.getLogger(__name__)

# Variables with the destination and credentials of telemetry.
_DESTINATION = "OTEL_EXPORTER_OTLP_"
_SWITCHES = frozenset(f"OTEL_{kind.value}_EXPORTER" for kind in TelemetryType)


@dataclass(frozen=True)
class AccountTelemetry:
    """Resolves telemetry endpoints of accounts.

    `lookup` finds endpoints. Their secrets are files in `secrets`/ACCOUNT, so no account can use another
    one's. `operator` is the telemetry of all workers.
    """

    lookup: Callable[[str], TelemetryEndpoint | None]
    secrets: Path
    operator: WorkerTelemetry
    cluster: str

    async def of(self, version: FunctionVersion | None, order: CreationMessage) -> WorkerTelemetry:
        """Return the telemetry settings of a new instance.

        Telemetry never prevents a start: an unusable endpoint is logged and left out.
        """
        if version is None or version.telemetries is None:
            return self.operator
        wanted = plan(version.telemetries, self.lookup, version.nca_id)
        folder = self.secrets / account_folder(version.nca_id)
        usable = await asyncio.to_thread(_usable, folder, wanted, version)
        variables = without_destination(self.operator.variables)
        if not usable.endpoints:
            return replace(self.operator, variables=variables)
        if usable.direct:
            try:
                own = await asyncio.to_thread(
                    direct_environment,
                    usable.endpoints,
                    lambda name: _read(folder, name),
                    lambda name: str(folder / name),
                )
            except (OSError, UnicodeDecodeError) as error:
                _log.warning("telemetry of %s is left out: cannot read its secret: %s", version.name, error)
                own = {}
            return replace(self.operator, variables={**variables, **own})
        collector = CollectorOrder(usable.endpoints, str(folder), self._resource(version, order))
        return replace(self.operator, variables=variables, collector=collector)

    def _resource(self, version: FunctionVersion, order: CreationMessage) -> dict[str, str]:
        return {
            names.CLUSTER: self.cluster,
            names.FUNCTION_ID: version.function_id,
            names.FUNCTION_NAME: version.name,
            names.FUNCTION_VERSION_ID: version.id,
            names.INSTANCE_ID: order.instance_ids[0],
        }


def _usable(folder: Path, wanted: Plan, version: FunctionVersion) -> Plan:
    for each in wanted.unknown:
        _log.warning("%s of %s are left out: %s", each.kind.lower(), version.name, each.why)
    found: dict[TelemetryType, TelemetryEndpoint] = {}
    for kind, endpoint in wanted.endpoints.items():
        problem = _unusable(folder, secret_files(endpoint))
        if problem is None:
            found[kind] = endpoint
        else:
            _log.warning("%s of %s are left out: %s", kind.lower(), version.name, problem)
    return Plan(found, wanted.unknown)


def _unusable(folder: Path, files: tuple[str, ...]) -> str | None:
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        return f"{folder} has no {', '.join(missing)}"
    for name in files:
        try:
            _read(folder, name)
        except OSError as error:
            return f"{folder / name} cannot be read: {error.strerror or error}"
        except UnicodeDecodeError:
            return f"{folder / name} is no text (certificates and keys must be in PEM form)"
    return None


def _read(folder: Path, name: str) -> str:
    return (folder / name).read_text(encoding="utf-8")


def without_destination(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the operator's variables without destination and credentials, for an account with its own."""
    return {
        name: value
        for name, value in variables.items()
        if not name.startswith(_DESTINATION) and name not in _SWITCHES
    }
