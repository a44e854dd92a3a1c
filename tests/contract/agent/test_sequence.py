"""The sequence of calls and messages in an agent's life (protocol.md, sections 6.1 to 6.5)."""

from __future__ import annotations

from tests.support.peers.icms import CREATION, TERMINATION
from tests.support.platform.agent_site import CLUSTER, Site


async def test_one_instance_from_order_to_end(site: Site) -> None:
    """protocol.md, section 6.1."""
    await site.start_agent()
    ordered = await site.create(site.version())
    (seen,) = await site.running(ordered)
    assert seen.report["status"] == "fulfilled"
    await site.settled(CREATION)
    await site.end(ordered)
    over = await site.terminated(ordered)
    assert over.report["status"] == "instance-terminated-by-user"
    await site.settled(TERMINATION)
    await site.free("CPU", 256)
    assert CLUSTER in site.icms.of_kind("register")[0].path
