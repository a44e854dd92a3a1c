"""Instance types of nodes: `NCP.GPU.H100_2x` is two GPUs of a node and their share of all else. Pure."""

from collections.abc import Iterable, Sequence

from nvcf_agent.kubernetes.nodes.node import GpuNode
from nvcf_agent.kubernetes.nodes.quantity import in_bytes, in_processors
from nvcf_agent.state.inventory import SINGLE
from nvcf_proto.icms.messages import MOST_GPUS
from nvcf_proto.icms.reports import InstanceType

MULTI = "MULTI"
"""Node type of an instance on several whole nodes."""
# Each type becomes a pool at the control plane. Above this, only powers of two of nodes have one.
_EACH_COUNT_UP_TO = 8


def instance_types(nodes: Sequence[GpuNode], *, multi_node: bool = True) -> tuple[InstanceType, ...]:
    """Return the types of the nodes of one GPU, the smallest first, which is the default.

    Usable nodes make types, the others count as unschedulable capacity. Where nodes with different numbers of
    GPUs make one type, it has the shares of the largest.
    """
    shapes: dict[tuple[str, int, int], list[GpuNode]] = {}
    for node in nodes:
        if node.is_usable:
            shapes.setdefault((node.kind, node.gpus, node.gpu_memory), []).append(node)
    found: dict[str, InstanceType] = {}
    for (kind, gpus, _), members in sorted(shapes.items(), key=lambda item: (-item[0][1], item[0])):
        for size in _sizes(gpus):
            found.setdefault(f"{kind}_{size}x", _single(kind, size, members, nodes))
        for count in _node_counts(len(members)) if multi_node else ():
            if gpus * count <= MOST_GPUS:
                found.setdefault(f"{kind}_{gpus}x.x{count}", _multi(kind, count, members))
    listed = sorted(found.values(), key=lambda each: (each.value, each.node_type == MULTI, each.gpu_count))
    return tuple([each.replace(default=True) for each in listed[:1]] + listed[1:])


def _sizes(gpus: int) -> list[int]:
    """Return 1, 2, 4 and so on below a node's number of GPUs, and that number."""
    return [2**power for power in range(gpus.bit_length()) if 2**power < gpus] + [gpus]


def _node_counts(nodes: int) -> list[int]:
    return [each for each in range(2, nodes + 1) if each <= _EACH_COUNT_UP_TO or each & (each - 1) == 0]


def _single(kind: str, size: int, members: Sequence[GpuNode], nodes: Iterable[GpuNode]) -> InstanceType:
    same = [each for each in nodes if each.kind == kind]
    return _type(members, f"{kind}_{size}x", size, members[0].gpus, 1).replace(
        node_type=SINGLE,
        max_instances=sum(each.gpus // size for each in same if each.is_usable),
        unschedulable_capacity=sum(each.gpus // size for each in same if not each.is_usable),
    )


def _multi(kind: str, count: int, members: Sequence[GpuNode]) -> InstanceType:
    gpus = members[0].gpus
    made = _type(members, f"{kind}_{gpus}x.x{count}", gpus, gpus, count)
    return made.replace(
        description=f"{made.description}, {count} nodes",
        node_type=MULTI,
        max_instances=len(members) // count,
    )


def _type(members: Sequence[GpuNode], name: str, size: int, of: int, nodes: int) -> InstanceType:
    """Return the type that has `size` of each node's `of` GPUs, on so many nodes."""
    first = members[0]
    millis = max(each.milli_cpus for each in members) * size // of * nodes
    return InstanceType(
        name=name,
        value=first.kind,
        description=first.description,
        cpu=in_processors(millis),
        cpu_cores=-(-millis // 1000),
        system_memory=in_bytes(max(each.memory for each in members) * size // of * nodes),
        gpu_memory=in_bytes(first.gpu_memory * size * nodes) if first.gpu_memory else None,
        gpu_count=size * nodes,
        cpu_arch=first.architecture,
        storage=in_bytes(max(each.storage for each in members) * size // of * nodes),
        os=first.os,
        driver_version=first.driver,
    )
