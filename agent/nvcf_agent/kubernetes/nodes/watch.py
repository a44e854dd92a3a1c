"""Follows the cluster's nodes: what they offer becomes the inventory, and their types become labels."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field, replace

from nvcf_agent.kubernetes.client.api import Api, Object
from nvcf_agent.kubernetes.client.errors import ApiError
from nvcf_agent.kubernetes.client.informer import Informer
from nvcf_agent.kubernetes.client.kinds import NODE
from nvcf_agent.kubernetes.nodes.inventory import ClusterInventory
from nvcf_agent.kubernetes.nodes.node import INSTANCE_TYPE, GpuNode, read_node, usable

_log = logging.getLogger(__name__)

# Nodes change often, and many at once when a cluster starts.
_PAUSE_SECONDS = 0.5
_RETRY_SECONDS = 10.0


@dataclass(eq=False)
class NodeWatch:
    """Keeps the nodes of `inventory` up to date, and calls `on_change` with each new one.

    Without `dynamic`, the inventory stays as it is. `passthrough`: GPUs passed through to virtual machines
    are used.
    """

    api: Api
    inventory: ClusterInventory
    _: KW_ONLY
    dynamic: bool = True
    passthrough: bool = False
    on_change: Callable[[ClusterInventory], None] = lambda _: None
    _nodes: dict[str, GpuNode] = field(default_factory=dict)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        selector = "nvidia.com/gpu.present=true"
        self.informer = Informer(self.api, NODE, labels=selector, on_change=self._on_node)

    def _on_node(self, old: Object | None, new: Object | None) -> None:
        name = (new or old or {})["metadata"]["name"]
        read = None
        if new is not None:
            read = read_node(new, self.inventory.provider, passthrough=self.passthrough)
        if read == self._nodes.get(name):
            return
        if read is None:
            del self._nodes[name]
        else:
            self._nodes[name] = read
        self._changed.set()

    async def start(self, deadline: float) -> None:
        """Wait for the first list of nodes, while `run` runs. Without one in time, go on without GPUs."""
        if not self.dynamic:
            return
        try:
            async with asyncio.timeout(deadline):
                await self.informer.synced.wait()
        except TimeoutError:
            _log.warning("the cluster's nodes are not known yet: the API server does not answer")
        self._update()

    async def run(self) -> None:
        """Follow nodes until cancelled."""
        if not self.dynamic:
            return
        async with asyncio.TaskGroup() as group:
            group.create_task(self.informer.run())
            while True:
                await self._changed.wait()
                self._changed.clear()
                self._update()
                labelled = await self._label()
                if not labelled:
                    self._changed.set()
                await asyncio.sleep(_PAUSE_SECONDS if labelled else _RETRY_SECONDS)

    def _update(self) -> None:
        known = self.inventory.known | {
            kind.name for gpu in self.inventory.registered() for kind in gpu.instance_types
        }
        nodes = usable(self._nodes.values())
        if nodes == self.inventory.nodes:
            return
        self.inventory = replace(self.inventory, nodes=nodes, known=known)
        usable_ones = [each for each in nodes if each.is_usable]
        gpus = sum(each.gpus for each in usable_ones)
        _log.info("%d of %d nodes with GPUs are usable, with %d GPUs", len(usable_ones), len(nodes), gpus)
        self.on_change(self.inventory)

    async def _label(self) -> bool:
        """Give nodes the label by which pods find them. Return False if one still lacks it."""
        complete = True
        for node in self.inventory.nodes:
            if node.is_labelled or not node.is_usable:
                continue
            patch = {"metadata": {"labels": {INSTANCE_TYPE: node.kind}}}
            try:
                await self.api.patch(NODE, node.name, None, patch)
            except ApiError as error:
                if not error.is_missing:
                    complete = False
                    _log.warning("node %s does not get its label %s: %s", node.name, INSTANCE_TYPE, error)
        return complete
