"""The gateway's look at the connections of workers and agents, where it has the broker's system account."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from nvcf_gateway.access.agent_identity import AgentAccess
from nvcf_gateway.access.publish_rates import PublishRates
from nvcf_gateway.access.worker_access import WorkerAccess
from nvcf_gateway.access.worker_connections import Connections
from nvcf_gateway.background import connect, end_task
from nvcf_gateway.config import GatewayConfig
from nvcf_gateway.invocation.republish import Answering, all_of, none_of
from nvcf_gateway.quotas.limits import Limits
from nvcf_gateway.quotas.usage import Usage


async def watch_workers(
    stack: AsyncExitStack,
    config: GatewayConfig,
    gateway_id: str,
    workers: WorkerAccess,
    agents: AgentAccess,
    limits: Limits,
    usage: Usage,
) -> Answering:
    """Watch connections to the broker where the gateway may; return what knows which workers answer."""
    if config.nats_system_credentials is None:
        return none_of if config.wide_inbox else all_of
    system = await connect(stack, config.nats, config.nats_system_credentials, f"gateway_{gateway_id}_system")
    rates = PublishRates(limits)
    usage.of_this_gateway.update(rates.uses())
    connections = Connections(system, workers, agents, rates)
    stack.push_async_callback(end_task, asyncio.create_task(connections.watch(), name="workers"))
    return connections.answering if config.wide_inbox else all_of
