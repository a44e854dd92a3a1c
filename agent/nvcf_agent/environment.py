"""The environment of a worker process (protocol.md section 5). Pure."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from nvcf_agent.desired import Slot
from nvcf_proto import environment as names
from nvcf_proto.models import FunctionVersion, ProcessSource

# Taken over from the agent; everything else it knows, above all its credentials, stays with it.
_INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR")


@dataclass(frozen=True)
class Endpoints:
    """What workers dial."""

    grpc: str
    nats: str


@dataclass(frozen=True)
class InstanceSpec:
    """Everything a backend needs to run one instance."""

    instance_id: str
    version: FunctionVersion
    source: ProcessSource
    slot: Slot
    cluster: str
    endpoints: Endpoints
    worker_token: str

    def command(self) -> list[str]:
        """The worker's command line. It carries no secret: everyone on the machine can read it."""
        target = self.source.file + (f":{self.source.handler}" if self.source.handler else "")
        return [self.source.python, "-m", "nvcf_worker", target]


@dataclass(frozen=True)
class InstancePlaces:
    """Folders and port that the backend chose for one instance."""

    shared: Path
    assets: Path
    responses: Path
    health_port: int


def worker_environment(
    spec: InstanceSpec, places: InstancePlaces, inherited: Mapping[str, str], virtual_env: Path | None
) -> dict[str, str]:
    """All variables of the worker process. The platform's win over what the function declares."""
    result = {name: inherited[name] for name in _INHERITED if name in inherited}
    programs = str(PurePosixPath(spec.source.python).parent)
    result["PATH"] = f"{programs}:{result['PATH']}" if result.get("PATH") else programs
    if virtual_env is not None:
        result["VIRTUAL_ENV"] = str(virtual_env)
    result["PYTHONUNBUFFERED"] = "1"
    result |= spec.source.environment
    return result | {
        names.NVCF_WORKER_TOKEN: spec.worker_token,
        names.NVCF_FQDN_GRPC: spec.endpoints.grpc,
        names.NVCF_FQDN_NATS: spec.endpoints.nats,
        names.INSTANCE_ID: spec.instance_id,
        names.FUNCTION_ID: spec.version.function_id,
        names.FUNCTION_VERSION_ID: spec.version.id,
        names.FUNCTION_NAME: spec.version.name,
        names.FUNCTION_TAGS: json.dumps(list(spec.version.tags)),
        names.NCA_ID: spec.version.nca_id,
        names.MAX_REQUEST_CONCURRENCY: str(spec.slot.concurrency),
        names.HEALTH_PORT: str(places.health_port),
        names.SHARED_CONFIG_DIR: str(places.shared),
        names.BASE_ASSET_DIR: str(places.assets),
        names.BASE_RESPONSE_DIR: str(places.responses),
        names.INSTANCE_TYPE: spec.slot.instance_type,
        names.GPU_NAME: spec.slot.gpu,
        names.ZONE_NAME: spec.cluster,
        names.ICMS_ENVIRONMENT: "local",
        names.CLOUD_PROVIDER: "local",
    }
