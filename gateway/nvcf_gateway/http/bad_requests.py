"""What the HTTP server says about bytes that are no HTTP and callers that leave: one line, no traceback.

Anybody who reaches the port can send such bytes, so they must neither look like a fault of the gateway nor
fill its log.
"""

from __future__ import annotations

import logging

from aiohttp.http_exceptions import HttpProcessingError

SERVER_LOG = logging.getLogger("nvcf_gateway.server")


class BadRequests(logging.Filter):
    """Turns the record of a request that could not be parsed or answered into one line of level DEBUG."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is to be logged."""
        error = record.exc_info[1] if record.exc_info else None
        malformed = isinstance(error, HttpProcessingError) and error.code < 500
        if not malformed and not isinstance(error, ConnectionError):
            return True
        record.exc_info, record.exc_text = None, None
        what = "request that is no HTTP/1.1" if malformed else "connection lost"
        lines = str(error).splitlines() or [type(error).__name__]
        record.msg, record.args = "%s: %s", (what, " ".join(line.strip() for line in lines[:3])[:200])
        record.levelno, record.levelname = logging.DEBUG, "DEBUG"
        return SERVER_LOG.isEnabledFor(logging.DEBUG)


SERVER_LOG.addFilter(BadRequests())
