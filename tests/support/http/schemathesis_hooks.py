"""What the generator of HTTP requests has to know of this API."""

from __future__ import annotations

from typing import Any

import schemathesis


@schemathesis.serializer("application/octet-stream+h1")
def as_it_is(context: schemathesis.SerializationContext, value: Any) -> bytes:
    """Bytes as they are, anything else as text."""
    return value if isinstance(value, bytes) else str(value).encode()
