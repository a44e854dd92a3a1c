"""Instance and cluster records for tests, fixed and generated."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from nvcf_autoscaler.placement.place import Capacity, Cluster
from nvcf_proto.models import Instance, InstanceState

VERSION = "11111111-1111-4111-8111-111111111111"
NOW = 1000.0
SPECIFICATIONS = ("0-A-process-1x0", "1-B-process-1x0")
CLUSTERS = ("one", "two", "three")


def instance(number: int = 0, **changes: Any) -> Instance:
    """A running instance of the first specification in cluster `one`."""
    values: dict[str, Any] = {
        "id": f"00000000-0000-4000-8000-{number:012d}",
        "function_id": VERSION,
        "version_id": VERSION,
        "cluster_id": "one",
        "state": InstanceState.RUNNING,
        "updated_at": NOW - 10,
        "created_at": NOW - 20,
        "specification_id": SPECIFICATIONS[0],
        "gpu": "A",
        **changes,
    }
    return Instance(**values)


def cluster(
    cluster_id: str = "one",
    heard_ago: float = 0.0,
    free: int = 4,
    gpu: str = "A",
    total: int | None = None,
    **changes: Any,
) -> Cluster:
    """A cluster with some free GPUs; by default nothing is in use, and its agent is one of this project's."""
    capacity = Capacity(gpu, "process", free, free if total is None else total)
    values = {"heartbeat_at": NOW - heard_ago, **changes}
    return Cluster(cluster_id, "local", NOW - heard_ago, (capacity,), **values)


ages = st.floats(0, 200)


@st.composite
def instance_lists(draw: st.DrawFn) -> list[Instance]:
    """Records in any state."""
    count = draw(st.integers(0, 12))
    found = []
    for number in range(count):
        created = NOW - draw(ages)
        found.append(
            instance(
                number,
                state=draw(st.sampled_from(list(InstanceState))),
                created_at=created,
                updated_at=min(NOW, created + draw(ages)),
                request_id=f"{number:032d}",
                acknowledged_at=draw(st.none() | st.just(min(NOW, created + 1.0))),
                reported_at=draw(st.none() | st.just(min(NOW, created + 2.0))),
                released_at=draw(st.none() | st.just(NOW)),
                ready_at=draw(st.none() | st.just(min(NOW, created + 3.0))),
                cluster_id=draw(st.sampled_from(CLUSTERS)),
                specification_id=draw(st.sampled_from((*SPECIFICATIONS, "2-old-process-1x0", None))),
                draining_since=draw(st.none() | ages.map(lambda age: NOW - age)),
                reason=draw(
                    st.sampled_from((None, "capacity: full", "lost: silent", "unsupported: no B", "crash: 1"))
                ),
                restarts=draw(st.integers(0, 1)),
                category=draw(st.sampled_from((None, "capacity", "lost", "crash"))),
            )
        )
    return found


cluster_lists = st.lists(
    st.builds(cluster, st.sampled_from(CLUSTERS), heard_ago=ages, free=st.integers(0, 5)),
    max_size=3,
    unique_by=lambda one: one.id,
)
