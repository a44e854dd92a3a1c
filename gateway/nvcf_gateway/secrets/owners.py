"""Whose a set of secrets is."""

from __future__ import annotations

from dataclasses import dataclass

from nvcf_proto.compute import account_event_id
from nvcf_proto.models import FunctionVersion, RegistryCredential, Task, TelemetryEndpoint
from nvcf_proto.models.secrets import registry_owner, task_owner, telemetry_owner, version_owner


@dataclass(frozen=True)
class Owner:
    """A function version, task, telemetry endpoint or registry credential.

    `key` is the key of its secrets. Changes are recorded under `event_id`, `what` names it there.
    """

    key: str
    nca_id: str
    event_id: str
    what: str
    function_name: str | None = None

    @classmethod
    def version(cls, version: FunctionVersion) -> Owner:
        """Return a function version as an owner."""
        what = f"version {version.id} of {version.name}"
        return cls(version_owner(version.id), version.nca_id, version.id, what, version.name)

    @classmethod
    def task(cls, task: Task) -> Owner:
        """Return a task as an owner."""
        return cls(
            task_owner(task.id), task.nca_id, account_event_id(task.nca_id), f"task {task.id} ({task.name})"
        )

    @classmethod
    def telemetry(cls, endpoint: TelemetryEndpoint) -> Owner:
        """Return a telemetry endpoint as an owner."""
        what = f"the telemetry endpoint {endpoint.name}"
        return cls(telemetry_owner(endpoint.id), endpoint.nca_id, account_event_id(endpoint.nca_id), what)

    @classmethod
    def registry(cls, credential: RegistryCredential) -> Owner:
        """Return a registry credential as an owner."""
        what = f"the registry credential {credential.id} for {credential.hostname}"
        return cls(
            registry_owner(credential.id), credential.nca_id, account_event_id(credential.nca_id), what
        )
