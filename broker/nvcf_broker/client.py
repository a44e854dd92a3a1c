"""The `nats` client under all of our connections: a faster parser of headers, and no death of its reader."""

import logging

import nats.errors
from nats.aio.client import Client

from nvcf_broker.message_headers import parse_header_lines

_log = logging.getLogger(__name__)


class BaseClient(Client):
    """A `nats` client that goes on after a flush that timed out.

    The library fails on the late answer to such a flush. Its reader then ends, while the client counts as
    connected: nothing arrives any more until the server closes the connection for that, after minutes.
    """

    _parse_header_lines = staticmethod(parse_header_lines)

    async def _process_pong(self) -> None:
        if self._pongs and self._pongs[0].done():
            self._pongs.pop(0)
            self._pings_outstanding = 0
            return
        await super()._process_pong()

    async def _read_loop(self) -> None:
        await super()._read_loop()
        if self.is_connected:
            _log.error("the broker's data can be read no further; connecting anew")
            await self._process_op_err(nats.errors.ProtocolError())
