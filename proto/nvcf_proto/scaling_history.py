"""What the leading autoscaler keeps of each version's load: one block per version and hour.

A block is compressed JSON (zlib), the last message of the subject `nvcf.scaling.V.HOUR`; HOUR is Unix time
divided by 3600. Steps without anything do not exist. See docs/operate/scaling.md.
"""

from __future__ import annotations

import zlib
from typing import Any, Self

from msgspec import field

from nvcf_proto.errors import InvalidRecord
from nvcf_proto.models.record import Id, Record
from nvcf_proto.stores import SCALING_HISTORY

STREAM = "nvcf_scaling_history"
SUBJECTS = "nvcf.scaling.>"
HOUR = 3600
STEP_SECONDS = 5
MAX_STARTUPS = 40
MAX_AGE_DAYS = 8
_LARGEST = 256 * 1024
_NANOSECONDS = 1_000_000_000

Step = tuple[int, int, int, float, float, float]
"""Step number within the hour; requests that came and ended; seconds that requests were in flight and waited
in the queue (sums over requests); device-seconds that instances held."""


class HistoryBlock(Record, frozen=True):
    """One hour of one version. `startups` are measured seconds from creation to ready, oldest first.

    The settings are those of the deployment's preferred GPU specification when the block was last written.
    `write_id` tells a writer whether its last write arrived.
    """

    version_id: Id = field(name="functionVersionId")
    function_id: Id
    name: str
    nca_id: str
    hour: int
    write_id: str = ""
    steps: tuple[Step, ...] = ()
    startups: tuple[float, ...] = ()
    gpu: str = ""
    gpus: int = 1
    slots: int = 1
    min_instances: int = 0
    max_instances: int = 1
    wait_slo: float = 5.0
    profile: str = "balanced"

    def to_bytes(self) -> bytes:
        """Return the stored form."""
        return zlib.compress(self.to_json())

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read the stored form. Raises InvalidRecord."""
        inflater = zlib.decompressobj()
        try:
            body = inflater.decompress(data, _LARGEST)
        except zlib.error as error:
            raise InvalidRecord("block", f"not compressed: {error}") from error
        return cls.from_json(body)

    def merged(self, other: HistoryBlock) -> HistoryBlock:
        """Return the sum with a later part of the same hour, whose settings are taken."""
        steps = {step[0]: step for step in self.steps}
        for step in other.steps:
            steps[step[0]] = added(steps.get(step[0]), step)
        return other.replace(
            steps=tuple(steps[number] for number in sorted(steps)),
            startups=(*self.startups, *other.startups)[-MAX_STARTUPS:],
        )


def added(one: Step | None, other: Step) -> Step:
    """Return the sum of two steps of the same number."""
    if one is None:
        return other
    return (
        one[0],
        one[1] + other[1],
        one[2] + other[2],
        round(one[3] + other[3], 3),
        round(one[4] + other[4], 3),
        round(one[5] + other[5], 3),
    )


def history_subject(version_id: str, hour: int | str = "*") -> str:
    """Return the subject of a version's block of an hour, or of all its blocks."""
    return f"nvcf.scaling.{version_id}.{hour}"


def history_stream_config(replicas: int = 1, account_limit: int | None = None) -> dict[str, Any]:
    """Return the JetStream settings of the stream: at most an eighth of what the broker account may store."""
    bounds = SCALING_HISTORY.bounds()
    if account_limit is not None:
        # JetStream reserves it, and other streams of the account need their bounds too.
        bounds["max_bytes"] = min(bounds["max_bytes"], account_limit // 8)
    return {
        "name": STREAM,
        "subjects": [SUBJECTS],
        "retention": "limits",
        "storage": "file",
        "num_replicas": replicas,
        "discard": "old",
        **bounds,
        "max_age": MAX_AGE_DAYS * 24 * HOUR * _NANOSECONDS,
    }
