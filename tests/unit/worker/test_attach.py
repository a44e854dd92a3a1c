"""Gateways whose machine is gone."""

from __future__ import annotations

import socket
import sys

import pytest

from nvcf_worker.errors import GatewayGone
from nvcf_worker.exchange.attach import AttachClient
from nvcf_worker.message import AttachTarget


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a full backlog refuses connections")
async def test_a_gateway_that_answers_no_connection_is_gone_and_not_slow() -> None:
    """So that the body is asked for elsewhere."""
    with socket.socket() as silent, socket.socket() as first, socket.socket() as second:
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        # The backlog is full with these: further packets are dropped, as of a machine that is off.
        for each in (first, second):
            each.setblocking(False)
            each.connect_ex(silent.getsockname())
        client = AttachClient()
        try:
            target = AttachTarget(f"http://127.0.0.1:{silent.getsockname()[1]}/", None, "one", "two")
            with pytest.raises(GatewayGone):
                await client.fetch(target, whole_request=False, attempt=1)
        finally:
            await client.close()
