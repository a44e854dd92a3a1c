"""The inventory of a cluster of nodes. Pure.

What is taken counts from the acceptance of a request until its instances are gone. An order is accepted only
if single nodes have room for its instances: the sum of free GPUs says nothing about that.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from nvcf_agent.errors import NoCapacity, Unsupported
from nvcf_agent.kubernetes.nodes.fit import free_gpus, take
from nvcf_agent.kubernetes.nodes.instance_types import MULTI, instance_types
from nvcf_agent.kubernetes.nodes.node import PLAIN_RESOURCE, GpuNode
from nvcf_agent.kubernetes.nodes.quantity import quantity
from nvcf_agent.state import order as orders
from nvcf_agent.state.inventory import CPU, NO_LIMITS, SINGLE, Limits, Share
from nvcf_proto.icms.messages import CreationMessage
from nvcf_proto.icms.reports import Gpu, GpuUsage, InstanceType


@dataclass(frozen=True)
class ClusterInventory:
    """What the nodes of a cluster offer.

    `static` replaces what their labels say: GPUs with their capacity and instance types. `cpu_slots` is the
    largest number of instances without a GPU. `known` are names of instance types
    that were here before: an order for one of them waits until its nodes are back. With `enforced`, instances
    are limited to their type's share of processors and memory.
    """

    nodes: tuple[GpuNode, ...] = ()
    static: tuple[Gpu, ...] = ()
    provider: str = "NCP"
    cpu_slots: int = 0
    multi_node: bool = True
    enforced: bool = False
    known: frozenset[str] = frozenset()

    @cached_property
    def _types(self) -> Mapping[str, tuple[str, InstanceType]]:
        """All instance types by name, with the name of their GPU."""
        return {kind.name: (gpu.name, kind) for gpu in self.registered() for kind in gpu.instance_types}

    @cached_property
    def _registered(self) -> tuple[Gpu, ...]:
        gpus = self.static or tuple(self._discovered())
        return (*gpus, *self._cpu())

    def _discovered(self) -> Iterable[Gpu]:
        for gpu in sorted({each.gpu for each in self.nodes if each.is_usable}):
            mine = [each for each in self.nodes if each.gpu == gpu]
            yield Gpu(
                name=gpu,
                capacity=sum(each.gpus for each in mine if each.is_usable),
                instance_types=instance_types(mine, multi_node=self.multi_node),
            )

    def _cpu(self) -> tuple[Gpu, ...]:
        if not self.cpu_slots:
            return ()
        kind = InstanceType(
            name=f"{self.provider}.CPU_1x",
            value=f"{self.provider}.CPU",
            description="an instance without a GPU",
            default=True,
            node_type=SINGLE,
            max_instances=self.cpu_slots,
        )
        return (Gpu(name=CPU, capacity=self.cpu_slots, instance_types=(kind,)),)

    def registered(self) -> tuple[Gpu, ...]:
        return self._registered

    def limits(self, instance_type: str) -> Limits:
        gpu, kind = self._types.get(instance_type, (CPU, None))
        if gpu == CPU or kind is None or not self.enforced:
            return NO_LIMITS
        memory, millis = int(quantity(kind.system_memory)), quantity(kind.cpu)
        return Limits(memory or None, float(millis) or None)

    def nodes_of(self, kind: str) -> list[str]:
        """Return the names of the nodes that take instances of a value of instance types."""
        return [each.name for each in self.nodes if each.is_usable and each.kind == kind]

    def resource(self, gpu: str) -> str:
        """Return the name of the resource by which pods request GPUs of a name."""
        return next((each.resource for each in self.nodes if each.gpu == gpu), PLAIN_RESOURCE)

    def place(self, order: CreationMessage, taken: Iterable[Share], count: int = 1) -> list[Share]:
        name = orders.instance_type(order)
        if name not in self._types:
            self._raise_missing(name)
        gpu, kind = self._types[name]
        if gpu == CPU:
            return self._place_cpu(taken, count)
        nodes = int(name.rpartition(".x")[2]) if kind.node_type == MULTI else 1
        gpus = (kind.gpu_count or max(1, order.requested_gpu_count)) // nodes
        pool = self._pool(gpu, kind.value)
        free = free_gpus(pool, self._of(gpu, taken), named=not self.static)
        for number in range(count):
            if not take(free, gpus, nodes):
                most = max(free.values(), default=0)
                where = "no node has" if nodes == 1 else f"no {nodes} nodes have"
                text = f"{count - number} of {name} wanted, {where} {gpus} {gpu} free (at most {most})"
                raise NoCapacity(text)
        return [Share(gpu=gpu, gpus=gpus, nodes=nodes)] * count

    def _raise_missing(self, name: str) -> None:
        if name in self.known:
            raise NoCapacity(f"no node with instance type {name} is ready now")
        names = ", ".join(self._types) or "none"
        raise Unsupported(f"this cluster has no instance type {name or 'without a name'}, only: {names}")

    def _place_cpu(self, taken: Iterable[Share], count: int) -> list[Share]:
        free = self.cpu_slots - sum(share.slots for share in taken)
        if count > self.cpu_slots:
            raise Unsupported(f"{count} CPU slots wanted, this cluster has {self.cpu_slots}")
        if count > free:
            raise NoCapacity(f"{count} CPU slots wanted, {max(0, free)} of {self.cpu_slots} free")
        return [Share(slots=1)] * count

    @staticmethod
    def _of(gpu: str, taken: Iterable[Share]) -> list[Share]:
        return [share for share in taken if share.gpu == gpu]

    def _pool(self, gpu: str, kind: str | None = None) -> dict[str, int]:
        """Return the GPUs of each node with a GPU, of those of one kind if it is given."""
        if not self.static:
            return {
                each.name: each.gpus
                for each in self.nodes
                if each.is_usable and each.gpu == gpu and kind in (None, each.kind)
            }
        # What is written down names no nodes. They are as large as the largest type on one node.
        written = next(each for each in self.static if each.name == gpu)
        single = [each.gpu_count for each in written.instance_types if each.node_type != MULTI]
        size, left = max(single, default=0) or 1, written.capacity or 0
        sizes = [size] * (left // size) + ([left % size] if left % size else [])
        return {str(number): each for number, each in enumerate(sizes)}

    def usage(self, taken: Iterable[Share]) -> dict[str, GpuUsage]:
        held = list(taken)
        found = {}
        for gpu in self.registered():
            if gpu.name == CPU:
                slots = sum(share.slots for share in held)
                found[CPU] = GpuUsage(self.cpu_slots, slots, max(0, self.cpu_slots - slots))
                continue
            mine = self._of(gpu.name, held)
            pool = self._pool(gpu.name)
            free = sum(free_gpus(pool, mine, named=not self.static).values())
            allocated = sum(share.gpus * share.nodes for share in mine)
            found[gpu.name] = GpuUsage(sum(pool.values()), allocated, free)
        return found
