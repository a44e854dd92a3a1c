"""Testing functions: `TestClient` calls a handler in memory, `testing.plugin` has the real platform.

from nvcf_worker.testing import TestClient

def test_greets():
    with TestClient(handler) as client:
        assert client.post(json={"name": "Ada"}).json() == {"greeting": "Hello, Ada!"}
"""

from nvcf_worker.testing.client import CallFailed, Pending, Result, Stream, StreamFailed, TestClient

__all__ = ["CallFailed", "Pending", "Result", "Stream", "StreamFailed", "TestClient"]
