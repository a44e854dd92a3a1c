"""Test functions: `TestClient` calls a handler in memory, `testing.plugin` runs a real platform.

from nvcf_worker.testing import TestClient

def test_greets():
    with TestClient(handler) as client:
        assert client.post(json={"name": "Ada"}).json() == {"greeting": "Hello, Ada!"}
"""

from nvcf_worker.testing.client import TestClient
from nvcf_worker.testing.results import CallFailed, Pending, Result, Stream, StreamFailed

__all__ = ["CallFailed", "Pending", "Result", "Stream", "StreamFailed", "TestClient"]
