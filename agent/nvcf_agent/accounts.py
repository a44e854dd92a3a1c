"""The telemetry of an account's functions: environment variables or a collector for each instance."""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nvcf_agent.backends.environment import CollectorOrder, InstanceOf, SecretFiles, WorkerTelemetry
from nvcf_agent.errors import StartError
from nvcf_agent.state import order as orders
from nvcf_agent.state.managed_instance import ManagedInstance
from nvcf_broker.files import private_directory, replace_file
from nvcf_otel import names
from nvcf_otel.byoo import Plan, account_folder, secret_files
from nvcf_otel.byoo.plan import direct_environment
from nvcf_otel.byoo.providers import file_name
from nvcf_proto.errors import InvalidRecord
from nvcf_proto.icms.messages import CreationMessage, decode_base64
from nvcf_proto.ids import new_id
from nvcf_proto.models import TelemetryEndpoint, TelemetryType
from nvcf_proto.models.record import decode_object

_log = logging.getLogger(__name__)

# Variables with the destination and credentials of telemetry.
_DESTINATION = "OTEL_EXPORTER_OTLP_"
_FILE_NAME = r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}"
_SWITCHES = frozenset(f"OTEL_{kind.value}_EXPORTER" for kind in TelemetryType)


@dataclass(frozen=True)
class AccountTelemetry:
    """Resolves telemetry endpoints of accounts, which come with the creation message.

    Their secrets are files in `secrets`/ACCOUNT, so no account can use another
    one's; what `given` returns for an instance, by name, wins and becomes files in `kept`/ACCOUNT. `operator`
    is the telemetry of all workers. `mounted` is the folder in which instances have the certificates of their
    telemetry; None: they read the agent's files.
    """

    secrets: Path
    operator: WorkerTelemetry
    cluster: str
    given: Callable[[InstanceOf], Awaitable[dict[str, Any]]] | None = None
    kept: Path | None = None
    mounted: str | None = None

    async def of(self, instance: ManagedInstance) -> WorkerTelemetry:
        """Return the telemetry settings of a new instance.

        Telemetry never prevents a start: an unusable endpoint is logged and left out.
        """
        order, name = instance.order, instance.function_name
        if not order.launch_specification.telemetries:
            return self.operator
        files = await self._files(instance)
        usable = await asyncio.to_thread(_usable, files, endpoints_of(order, name), name)
        variables = without_destination(self.operator.variables)
        if not usable.endpoints:
            return replace(self.operator, variables=variables)
        if usable.direct:
            try:
                own, texts = await asyncio.to_thread(self._direct, usable, files)
            except (OSError, UnicodeDecodeError) as error:
                _log.warning("telemetry of %s is left out: cannot read its secret: %s", name, error)
                own, texts = {}, {}
            return replace(self.operator, variables={**variables, **own}, files=texts)
        collector = CollectorOrder(usable.endpoints, files, self._resource(instance))
        return replace(self.operator, variables=variables, collector=collector)

    def _direct(self, usable: Plan, files: SecretFiles) -> tuple[dict[str, str], dict[str, str]]:
        """Return the variables of the SDK's exporters, and the files that they name. Blocking."""
        texts: dict[str, str] = {}

        def path(name: str) -> str:
            if self.mounted is None:
                return str(files.path(name))
            texts[name] = files.read(name)
            return f"{self.mounted}/{name}"

        return direct_environment(usable.endpoints, files.read, path), texts

    async def _files(self, instance: ManagedInstance) -> SecretFiles:
        """Return the secret files of an account, and write those that it gave to the platform."""
        order = instance.order
        account = account_folder(order.nca_id)
        local = SecretFiles(self.secrets / account)
        if self.given is None or self.kept is None:
            return local
        try:
            texts = texts_of(await self.given(InstanceOf.of(instance.id, order)))
            if not texts:
                return local
            await asyncio.to_thread(_keep, self.kept / account, texts)
        except (StartError, OSError) as error:
            name = instance.function_name
            _log.warning("secrets of the telemetry of %s cannot be fetched: %s", name, error)
            return local
        return replace(local, kept=self.kept / account, given=frozenset(texts))

    def _resource(self, instance: ManagedInstance) -> dict[str, str]:
        return {
            names.CLUSTER: self.cluster,
            names.FUNCTION_ID: orders.function_id(instance.order),
            names.FUNCTION_NAME: instance.function_name,
            names.FUNCTION_VERSION_ID: instance.version_id,
            names.INSTANCE_ID: instance.id,
        }


def endpoints_of(order: CreationMessage, name: str) -> Plan:
    """Return the endpoints in a message's `telemetries`. One that cannot be read is logged and left out."""
    found: dict[TelemetryType, TelemetryEndpoint] = {}
    try:
        text = decode_base64(order.launch_specification.telemetries or "", "launchSpecification.telemetries")
        members = decode_object(text.encode(), "telemetries").get("telemetries") or {}
        listed = {kind: members.get(f"{kind.lower()}Telemetry") for kind in TelemetryType}
    except (InvalidRecord, AttributeError) as error:
        _log.warning("telemetry of %s is left out: %s", name, error)
        return Plan()
    for kind, value in listed.items():
        if value is None:
            continue
        try:
            # NVIDIA's message has protocol, provider, endpoint and name; the rest of a record is [ext].
            own = {"telemetryId": new_id(), "createdAt": 0.0, "types": [kind.value]}
            found[kind] = TelemetryEndpoint.from_dict(own | dict(value) | {"ncaId": order.nca_id})
        except (InvalidRecord, TypeError, ValueError) as error:
            _log.warning("%s of %s are left out: %s", kind.lower(), name, error)
    return Plan(found)


def _usable(files: SecretFiles, wanted: Plan, name: str) -> Plan:
    found: dict[TelemetryType, TelemetryEndpoint] = {}
    for kind, endpoint in wanted.endpoints.items():
        problem = _unusable(files, secret_files(endpoint))
        if problem is None:
            found[kind] = endpoint
        else:
            _log.warning("%s of %s are left out: %s", kind.lower(), name, problem)
    return Plan(found)


def _unusable(files: SecretFiles, names: tuple[str, ...]) -> str | None:
    missing = [name for name in names if not files.path(name).is_file()]
    if missing:
        return f"{files.local} has no {', '.join(missing)}"
    for name in names:
        try:
            files.read(name)
        except OSError as error:
            return f"{files.path(name)} cannot be read: {error.strerror or error}"
        except UnicodeDecodeError:
            return f"{files.path(name)} is no text (certificates and keys must be in PEM form)"
    return None


def texts_of(secrets: Mapping[str, Any]) -> dict[str, str]:
    """Return the texts of secrets by file name: NAME of a text, NAME-KEY of each text of an object. Pure.

    What cannot be a file's name is left out: it comes from outside.
    """
    found: dict[str, str] = {}
    for name, value in secrets.items():
        if isinstance(value, str):
            found[name] = value
        elif isinstance(value, dict):
            found |= {file_name(name, key): text for key, text in value.items() if isinstance(text, str)}
    return {name: text for name, text in found.items() if re.fullmatch(_FILE_NAME, name)}


def _keep(folder: Path, texts: Mapping[str, str]) -> None:
    private_directory(folder)
    for name, text in texts.items():
        replace_file(folder / name, text.encode())


def without_destination(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the operator's variables without destination and credentials, for an account with its own."""
    return {
        name: value
        for name, value in variables.items()
        if not name.startswith(_DESTINATION) and name not in _SWITCHES
    }
