"""The Python of docs/functions/triton-library.md runs on a real server, and returns what the page shows."""

from __future__ import annotations

import json
import re
import types
from pathlib import Path
from typing import Any

import pytest

import nvcf_worker
from nvcf_worker import TestClient
from tests.triton.server import TritonServer

PAGE = Path(__file__).parents[2] / "docs" / "functions" / "triton-library.md"
_BLOCK = re.compile(r"^```python\n(.*?)^```$(?:\n\n^```http\n(.*?)^```$)?", re.MULTILINE | re.DOTALL)


def test_what_the_page_says(triton_server: TritonServer, monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[tuple[Any, dict[str, Any]]] = []
    monkeypatch.setattr(nvcf_worker, "serve", lambda handler, **options: served.append((handler, options)))
    blocks = _BLOCK.findall(PAGE.read_text())
    assert len(blocks) == 5
    for source, exchanges in blocks:
        source = source.replace("grpc://127.0.0.1:8001", f"grpc://{triton_server.grpc}")
        module = types.ModuleType("page")
        exec(compile(source, PAGE.name, "exec", dont_inherit=True), module.__dict__)  # noqa: S102 # it is tested
        handler, options = served.pop()
        with TestClient(handler, **options) as client:
            for exchange in filter(None, exchanges.strip().split("\n\n")):
                request, expected = exchange.splitlines()
                method, path, body = request.split(" ", 2)
                status, _, text = expected.partition(" ")
                result = client.request(method, path, data=body)
                assert result.status == int(status), result.text
                assert result.json() == json.loads(text)
            if not exchanges:
                assert client([1, 2, 3]) == "1 2 3 "
