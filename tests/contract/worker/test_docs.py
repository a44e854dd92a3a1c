"""The Python of docs/functions runs, and each page's exchanges return what the page shows."""

from __future__ import annotations

import asyncio
import inspect
import json
import re
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import nvcf_worker
from nvcf_worker.function.handlers import is_asgi
from nvcf_worker.run.asgi.host import AsgiHost
from nvcf_worker.run.sidecar.settings import SidecarSettings, read_settings
from tests.contract.worker.conftest import StartWorker
from tests.support.peers.calls import Call
from tests.support.peers.gateway import PeerGateway

FOLDER = Path(__file__).parents[3] / "docs" / "functions"
ELSEWHERE = {"llm.md", "sessions.md", "tasks.md", "triton-library.md"}  # they have tests of their own
PAGES = sorted(page for page in FOLDER.glob("*.md") if page.name not in ELSEWHERE)
_BLOCK = re.compile(r"^```(python|http)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_STATUS = "/v2/nvcf/pexec/status/"


@dataclass
class Snippet:
    """A block of Python and the exchanges that follow it."""

    page: str
    source: str
    line: int
    exchanges: list[tuple[str, str]] = field(default_factory=list)


def snippets() -> list[Snippet]:
    """Return all Python of the pages."""
    found: list[Snippet] = []
    for page in PAGES:
        text = page.read_text()
        for match in _BLOCK.finditer(text):
            if match.group(1) == "python":
                line = text[: match.start()].count("\n") + 2
                found.append(Snippet(page.name, match.group(2), line))
            else:
                for exchange in match.group(2).strip().split("\n\n"):
                    request, answer = exchange.splitlines()
                    found[-1].exchanges.append((request, answer))
    return found


async def ask(gateway: PeerGateway, request: str, earlier: Call | None) -> Call:
    """Do what an exchange's first line says: METHOD PATH [JSON]."""
    method, path, *body = request.split(" ", 2)
    if path.startswith(_STATUS):
        assert earlier is not None
        return await gateway.poll(earlier)
    headers = {"Content-Type": "application/json"} if body else {}
    return await gateway.invoke("".join(body).encode(), method=method, path=path, headers=headers, large=True)


def settings_of(port: int, *, concurrency: int = 1, **options: Any) -> SidecarSettings:
    """Return the settings that follow from a call of `sidecar`."""
    return read_settings({}, port=port, **options)


def run_tests_of(module: types.ModuleType) -> None:
    """Run the tests that a snippet defines; those with the whole platform are in tests/e2e."""
    for name, test in vars(module).items():
        if name.startswith("test_") and not inspect.signature(test).parameters:
            test()


@pytest.mark.parametrize("snippet", snippets(), ids=lambda snippet: f"{snippet.page}-{snippet.line}")
async def test_what_the_page_says(
    gateway: PeerGateway, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch, snippet: Snippet
) -> None:
    served: list[tuple[Any, dict[str, Any]]] = []
    monkeypatch.setattr(nvcf_worker, "serve", lambda handler, **options: served.append((handler, options)))
    sidecars: list[SidecarSettings] = []
    monkeypatch.setattr(
        nvcf_worker, "sidecar", lambda *args, **options: sidecars.append(settings_of(*args, **options))
    )
    module = types.ModuleType(f"{Path(snippet.page).stem.replace('-', '_')}_md_{snippet.line}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    code = compile(snippet.source, f"{snippet.page}:{snippet.line}", "exec", dont_inherit=True)
    exec(code, module.__dict__)  # noqa: S102 # that is what is tested
    for one in sidecars:
        assert one.command
    await asyncio.to_thread(run_tests_of, module)
    for handler, options in served:
        if is_asgi(handler):
            handler = AsgiHost(handler).handle
        known = {
            name: options[name]
            for name in ("concurrency", "media_type")
            if isinstance(options.get(name), int | str)
        }
        await start_worker(handler, **known).ready()
    call: Call | None = None
    for request, expected in snippet.exchanges:
        call = await ask(gateway, request, call)
        answer = await call.answer()
        status, _, body = expected.partition(" ")
        assert answer.status == int(status), request
        if body:
            assert json.loads(answer.body) == json.loads(body), request


def test_the_pages_have_snippets() -> None:
    assert len(snippets()) >= 20
    assert sum(len(snippet.exchanges) for snippet in snippets()) >= 20
