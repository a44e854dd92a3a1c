"""Sends the cluster's key set to the control plane, which checks the agent's projected token by it."""

import asyncio
import json
import logging

from nvcf_agent.errors import AgentError
from nvcf_agent.icms.client import IcmsClient
from nvcf_agent.kubernetes.client.api import Api
from nvcf_agent.kubernetes.client.errors import ApiError
from nvcf_agent.timings import Timings

_log = logging.getLogger(__name__)

PATH = "/openid/v1/jwks"
_LOOK_SECONDS = 300.0


async def publish_keys(api: Api, client: IcmsClient, timings: Timings) -> None:
    """Send the key set now and whenever it changes, until cancelled."""
    sent: str | None = None
    while True:
        pause = _LOOK_SECONDS
        try:
            text = json.dumps(await api.read(PATH), sort_keys=True)
            if text != sent:
                await client.put_jwks(text)
                sent = text
        except ApiError as error:
            _log.info("the key set of the cluster cannot be read: %s", error)
        except AgentError as error:
            pause = timings.retry_longest
            _log.warning("the control plane does not take the cluster's key set: %s", error)
        await asyncio.sleep(pause)
