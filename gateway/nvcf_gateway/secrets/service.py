"""Start what keeps secrets: keys, store, audit and upkeep."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from nvcf_broker.jetstream import Requester
from nvcf_gateway.background import end_task
from nvcf_gateway.config import GatewayConfig
from nvcf_gateway.quotas.usage import Usage
from nvcf_gateway.registry import Registry
from nvcf_gateway.secrets.audit import SecretAudit
from nvcf_gateway.secrets.keys import FileKeys
from nvcf_gateway.secrets.store import SecretStore, secrets_room
from nvcf_gateway.secrets.upkeep import SecretUpkeep


async def start_secrets(
    stack: AsyncExitStack, config: GatewayConfig, registry: Registry, usage: Usage, requests: Requester
) -> SecretStore:
    """Return the store of secrets; what runs for it ends with `stack`. Raises SetupError and BrokerError.

    `requests` reaches the broker account of the control plane.
    """
    keys = None if config.sealing_keys is None else await asyncio.to_thread(FileKeys, config.sealing_keys)
    audit = SecretAudit(requests, config.replicas)
    store = SecretStore(registry.secrets, keys, usage, audit, await secrets_room(requests))
    upkeep = SecretUpkeep(store, registry)
    stack.push_async_callback(end_task, asyncio.create_task(upkeep.run(), name="upkeep of secrets"))
    if keys is not None:
        stack.push_async_callback(end_task, asyncio.create_task(keys.follow(), name="sealing keys"))
    return store
