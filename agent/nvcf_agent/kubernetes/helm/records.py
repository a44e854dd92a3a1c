"""What the agent keeps of an instance in Secrets of its own namespace: order and installed objects. Pure."""

import base64
import gzip
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from nvcf_agent.backends.environment import InstanceSpec, WorkerTelemetry
from nvcf_agent.kubernetes.client.api import Object
from nvcf_agent.kubernetes.client.kinds import SECRET
from nvcf_agent.kubernetes.helm.errors import ChartError
from nvcf_agent.kubernetes.helm.names import MINI_SERVICE_LABEL
from nvcf_agent.kubernetes.pods.collector import collector_of, collector_record
from nvcf_agent.state.inventory import Limits, Share
from nvcf_proto.icms.messages import CreationMessage

MOST_BYTES = 900 * 2**10
"""Of a Secret with installed objects; etcd takes 1.5 MiB in all."""
_KEY = "value"


@dataclass(frozen=True)
class Rendered:
    """The objects of a chart as they are installed, of one `generation` of its MiniService."""

    objects: tuple[Object, ...]
    generation: int
    notes: tuple[str, ...] = ()

    @property
    def hash(self) -> str:
        """Digest of the objects."""
        return hashlib.sha256(msgspec.json.encode(self.objects, order="sorted")).hexdigest()


def order_record(spec: InstanceSpec) -> Any:
    """Return what an instance is rendered from, as JSON."""
    return {
        "order": spec.order.to_dict(),
        "index": spec.index,
        "zone": spec.zone,
        "trace": spec.trace,
        "metrics": spec.telemetry.metrics,
        "variables": dict(spec.telemetry.variables),
        "files": dict(spec.telemetry.files),
        "collector": collector_record(spec.telemetry.collector),
    }


def spec_of(record: Any) -> InstanceSpec:
    """Return the instance of a record. Raises `ChartError`."""
    try:
        return InstanceSpec(
            order=CreationMessage.from_dict(record["order"]),
            share=Share(),
            limits=Limits(),
            index=record["index"],
            zone=record["zone"],
            trace=record["trace"],
            telemetry=WorkerTelemetry(
                record["metrics"],
                record["variables"],
                collector_of(record.get("collector")),
                record.get("files", {}),
            ),
        )
    except (ValueError, LookupError, TypeError) as error:
        raise ChartError(f"the order's Secret cannot be read: {error}") from error


def rendered_record(rendered: Rendered) -> Any:
    """Return installed objects as JSON."""
    return {"objects": rendered.objects, "generation": rendered.generation, "notes": rendered.notes}


def rendered_of(record: Any) -> Rendered:
    """Return the installed objects of a record. Raises `ChartError`."""
    try:
        return Rendered(tuple(record["objects"]), record["generation"], tuple(record["notes"]))
    except (LookupError, TypeError) as error:
        raise ChartError(f"the Secret of installed objects cannot be read: {error}") from error


def secret(name: str, namespace: str, mini_service: str, record: Any) -> Object:
    """Return a Secret with a record. Raises `ChartError` if it is too large."""
    packed = gzip.compress(msgspec.json.encode(record), mtime=0)
    if len(packed) > MOST_BYTES:
        raise ChartError(
            f"the chart's objects have {len(packed) // 2**10} KiB compressed, more than "
            f"{MOST_BYTES // 2**10}: leave large files to the image or to a model"
        )
    data = {_KEY: base64.b64encode(packed).decode()}
    return SECRET.new(name, namespace, {MINI_SERVICE_LABEL: mini_service}, type="Opaque", data=data)


def unpacked(found: Object) -> Any:
    """Return the record of a Secret. Raises `ChartError`."""
    try:
        packed = base64.b64decode(found["data"][_KEY])
        return msgspec.json.decode(gzip.decompress(packed))
    except (LookupError, TypeError, ValueError, OSError, EOFError) as error:
        raise ChartError(f"Secret {found['metadata']['name']} cannot be read: {error}") from error


def counts(objects: Sequence[Object]) -> list[tuple[str, int]]:
    """Return how many objects there are of each kind: `apps/v1/Deployment`, 2."""
    found: dict[str, int] = {}
    for each in objects:
        name = f"{each['apiVersion']}/{each['kind']}"
        found[name] = found.get(name, 0) + 1
    return sorted(found.items())
