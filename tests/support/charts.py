"""Packed charts for tests, and a registry that serves them as OCI registries do."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web

EXAMPLE = Path(__file__).parents[2] / "examples" / "helm" / "words"


def pack(files: Mapping[str, str], name: str = "chart") -> bytes:
    """Return a chart as a `.tgz`; `files` are beside a Chart.yaml."""
    chart = {"Chart.yaml": f"apiVersion: v2\nname: {name}\nversion: 0.1.0\n", **files}
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for path, text in chart.items():
            about = tarfile.TarInfo(f"{name}/{path}")
            about.size = len(text.encode())
            archive.addfile(about, io.BytesIO(text.encode()))
    return packed.getvalue()


def example_chart(**changed: str) -> bytes:
    """Return the example of the documentation; `changed` are other texts of its templates, by name."""
    found = {
        str(path.relative_to(EXAMPLE)): path.read_text()
        for path in EXAMPLE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    return pack(found | {f"templates/{name}.yaml": text for name, text in changed.items()}, "words")


@dataclass
class ChartRegistry:
    """Serves `charts` by `NAME:TAG`, at `/v2/` and as `/NAME-TAG.tgz`.

    With a `login` (base64 of user:password) both want it; `/v2/` by a token. `seen` are the paths that were
    asked for, with the kind of their authorization.
    """

    host: str = ""
    charts: dict[str, bytes] = field(default_factory=dict)
    login: str | None = None
    damaged: bool = False
    blobs_at: str | None = None
    images: dict[str, bytes] = field(default_factory=dict)
    """Configurations of images by `NAME:TAG`. A client gets an index first."""
    manifest: bytes | None = None
    """What every image has in place of an index."""
    gzipped: bool = False
    seen: list[tuple[str, str]] = field(default_factory=list)

    def url(self, chart: str) -> str:
        """The chart's URL in the OCI registry."""
        return f"oci://{self.host}/charts/{chart}"

    def file_url(self, chart: str) -> str:
        """The chart's URL as a file."""
        return f"http://{self.host}/{chart.replace(':', '-')}.tgz"

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Handle all requests."""
        given, path = request.headers.get("Authorization", ""), request.path
        self.seen.append((path, given.partition(" ")[0]))
        if path == "/token":
            right = given == f"Basic {self.login}"
            return web.json_response({"token": "abc"}) if right else web.Response(status=401)
        wanted = f"Basic {self.login}" if not path.startswith("/v2/") else "Bearer abc"
        if self.login is not None and given != wanted:
            challenge = f'Bearer realm="http://{self.host}/token",service="charts"'
            return web.Response(status=401, headers={"WWW-Authenticate": challenge})
        for name, chart in self.charts.items():
            digest = _digest(chart)
            if path == f"/{name.replace(':', '-')}.tgz":
                if self.gzipped:
                    headers = {"Content-Encoding": "gzip"}
                    return web.Response(body=gzip.compress(chart), headers=headers)
                return web.Response(body=chart)
            if path.endswith(digest):
                if self.blobs_at is not None:
                    return web.Response(status=307, headers={"Location": f"{self.blobs_at}{path}"})
                return web.Response(body=chart[:-1] if self.damaged else chart)
            if path == f"/v2/charts/{name.replace(':', '/manifests/')}":
                kind = "application/vnd.cncf.helm.chart.content.v1.tar+gzip"
                layers = [{"mediaType": kind, "digest": digest, "size": len(chart)}]
                return web.Response(body=json.dumps({"schemaVersion": 2, "layers": layers}))
        return self._image(path)

    def _image(self, path: str) -> web.Response:
        if self.manifest is not None:
            return web.Response(body=self.manifest)
        for name, config in self.images.items():
            digest = _digest(config)
            manifest = json.dumps({"config": {"digest": digest}, "layers": []}).encode()
            if path.endswith(digest):
                return web.Response(body=config)
            if path.endswith(_digest(manifest)):
                return web.Response(body=manifest)
            if path == f"/v2/{name.replace(':', '/manifests/')}":
                listed = [
                    {"digest": "sha256:" + 64 * "0", "platform": {"os": "unknown"}},
                    {"digest": _digest(manifest), "platform": {"os": "linux"}},
                ]
                return web.json_response({"manifests": listed})
        return web.Response(status=404)


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@asynccontextmanager
async def chart_registry(
    charts: Mapping[str, bytes], login: str | None = None
) -> AsyncIterator[ChartRegistry]:
    """Run a registry on a free port of this machine."""
    registry = ChartRegistry(charts=dict(charts), login=login)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", registry.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        host, port = runner.addresses[0][:2]
        registry.host = f"{host}:{port}"
        yield registry
    finally:
        await runner.cleanup()
