"""An object store behind the contract's URLs: assets, uploads of large results, failures."""

from __future__ import annotations

import io
import zipfile

from aiohttp import web


class PeerStore:
    """Routes of an aiohttp application. The first requests get the statuses in `failures`."""

    def __init__(self) -> None:
        self.url = ""
        self.assets: dict[str, bytes] = {}
        self.uploads: dict[str, bytes] = {}
        self.lengths: list[int | None] = []
        self.failures: list[int] = []
        self.refreshes = 0
        self.targets: list[str] = []

    def add_routes(self, application: web.Application) -> None:
        """Serve GET of assets and PUT of results."""
        application.router.add_get("/store/assets/{signature}/{id}", self._get)
        application.router.add_put("/store/results/{signature}/{id}", self._put)

    def asset_url(self, asset_id: str, signature: str = "good") -> str:
        """Return the URL of an asset. Every signature but `good` is expired."""
        return f"{self.url}/store/assets/{signature}/{asset_id}"

    def fresh_asset_url(self, asset_id: str) -> str:
        """Return a renewed URL."""
        self.refreshes += 1
        return self.asset_url(asset_id)

    def upload_url(self, request_id: str) -> str:
        """Return the upload URL of a large result."""
        return f"{self.url}/store/results/first/{request_id}"

    def refreshed_url(self, request_id: str) -> str:
        """Return a renewed URL."""
        self.refreshes += 1
        return f"{self.url}/store/results/second/{request_id}"

    def download_url(self, request_id: str) -> str:
        """Return the download URL of an uploaded result."""
        return f"{self.url}/store/downloads/{request_id}"

    def archive(self, request_id: str) -> dict[str, bytes]:
        """Return the files of an uploaded zip archive."""
        with zipfile.ZipFile(io.BytesIO(self.uploads[request_id])) as archive:
            assert archive.testzip() is None
            return {name: archive.read(name) for name in archive.namelist()}

    async def _get(self, request: web.Request) -> web.Response:
        self.targets.append(request.raw_path)
        if self.failures:
            return web.Response(status=self.failures.pop(0))
        if request.match_info["signature"] != "good":
            return web.Response(status=403)
        data = self.assets.get(request.match_info["id"])
        return web.Response(status=404) if data is None else web.Response(body=data)

    async def _put(self, request: web.Request) -> web.Response:
        self.targets.append(request.raw_path)
        data = await request.read()
        if self.failures:
            return web.Response(status=self.failures.pop(0))
        assert request.headers["Content-Type"] == "application/zip"
        assert "Authorization" not in request.headers
        self.lengths.append(request.content_length)
        self.uploads[request.match_info["id"]] = data
        return web.Response(status=200)
