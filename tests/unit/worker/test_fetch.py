"""Downloads of models and resources, from servers of this machine."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from hypothesis import given
from hypothesis import strategies as st

from nvcf_worker.errors import ConfigurationError
from nvcf_worker.fetch.addresses import AddressRefused, check_address
from nvcf_worker.fetch.artifacts import Artifact, Logins, artifact, file_name, parse_artifacts
from nvcf_worker.fetch.client import Client, FetchError
from nvcf_worker.fetch.command import parser, run
from nvcf_worker.fetch.download import Budget, Downloader
from nvcf_worker.fetch.sources import Sources, parse_oci

DATA = bytes(range(256)) * 4096
BIG = DATA * 16
"""More than what buffers hold."""
DIGEST = hashlib.sha256(DATA).hexdigest()

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """An HTTP server whose routes the test gives; `asked` are the requests' ranges."""

    def __init__(self) -> None:
        self.application = web.Application()
        self.asked: list[str | None] = []
        self.server = TestServer(self.application)

    def route(self, path: str, handler: Handler) -> None:
        self.application.router.add_get(path, handler)

    def url(self, path: str) -> str:
        return str(self.server.make_url(path))

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server.port}"


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    made = Server()
    yield made
    await made.server.close()


async def fetch(
    to: Path,
    *artifacts: Artifact,
    logins: Logins | None = None,
    environ: dict[str, str] | None = None,
    budget: Budget | None = None,
    allow_private: bool = True,
    plain: frozenset[str] = frozenset(),
    folders: tuple[Path, ...] = (),
) -> None:
    async with Client(allow_private=allow_private, plain=plain) as client:
        sources = Sources(client, logins or Logins(), environ or {}, folders)
        await Downloader(client, sources, to, budget or Budget(), pause=0.001).fetch(artifacts)


def files_of(folder: Path) -> set[str]:
    return {str(each.relative_to(folder)) for each in folder.rglob("*") if each.is_file()}


def model(uri: str, name: str = "m") -> Artifact:
    return artifact("models", {"name": name, "uri": uri})


async def whole(request: web.Request) -> web.Response:
    return web.Response(body=DATA)


async def test_a_file_is_downloaded_and_its_checksum_checked(server: Server, tmp_path: Path) -> None:
    server.route("/a/weights.bin", whole)
    await server.server.start_server()
    await fetch(tmp_path, model(server.url("/a/weights.bin") + f"#sha256={DIGEST}"))
    assert (tmp_path / "models/m/weights.bin").read_bytes() == DATA
    with pytest.raises(FetchError, match=r"model other.*checksum"):
        await fetch(tmp_path, model(server.url("/a/weights.bin") + f"#sha256={'0' * 64}", "other"))
    assert list((tmp_path / "models/other").iterdir()) == []


async def test_a_broken_download_goes_on_where_it_broke(server: Server, tmp_path: Path) -> None:
    async def breaking(request: web.Request) -> web.StreamResponse:
        wanted = request.headers.get("Range")
        server.asked.append(wanted)
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        assert (request.headers.get("If-Range") == '"one"') == bool(wanted)
        headers = {"Content-Length": str(len(BIG) - start), "ETag": '"one"'}
        if wanted:
            headers["Content-Range"] = f"bytes {start}-{len(BIG) - 1}/{len(BIG)}"
        response = web.StreamResponse(status=206 if wanted else 200, headers=headers)
        await response.prepare(request)
        await response.write(BIG[start : start + 5_000_000])
        if start + 5_000_000 < len(BIG):
            assert request.transport is not None
            request.transport.close()
        return response

    server.route("/f", breaking)
    await server.server.start_server()
    await fetch(tmp_path, model(server.url("/f")))
    assert (tmp_path / "models/m/f").read_bytes() == BIG
    assert len(server.asked) > 1
    starts = [
        0 if each is None else int(each.removeprefix("bytes=").removesuffix("-")) for each in server.asked
    ]
    assert starts == sorted(set(starts))


async def test_a_file_that_has_changed_meanwhile_starts_anew(server: Server, tmp_path: Path) -> None:
    async def changing(request: web.Request) -> web.StreamResponse:
        server.asked.append(request.headers.get("Range"))
        if len(server.asked) > 1:
            return web.Response(body=DATA, headers={"ETag": '"two"'})
        response = web.StreamResponse(headers={"Content-Length": "999999", "ETag": '"one"'})
        await response.prepare(request)
        await response.write(b"x" * 1000)
        assert request.transport is not None
        request.transport.close()
        return response

    server.route("/f", changing)
    await server.server.start_server()
    await fetch(tmp_path, model(server.url("/f")))
    assert (tmp_path / "models/m/f").read_bytes() == DATA


async def test_errors_are_tried_again_or_named(server: Server, tmp_path: Path) -> None:
    async def busy(request: web.Request) -> web.Response:
        server.asked.append(None)
        return web.Response(status=503) if len(server.asked) < 3 else web.Response(body=DATA)

    async def missing(request: web.Request) -> web.Response:
        return web.Response(status=404)

    server.route("/busy", busy)
    server.route("/missing", missing)
    await server.server.start_server()
    await fetch(tmp_path, model(server.url("/busy")))
    assert len(server.asked) == 3
    with pytest.raises(FetchError, match=r"cannot fetch model m: HTTP 404: there is no such file"):
        await fetch(tmp_path, model(server.url("/missing?signature=secret")))


async def test_limits_of_size_hold(server: Server, tmp_path: Path) -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(DATA)

    server.route("/f", whole)
    server.route("/endless", endless)
    await server.server.start_server()
    for path in ("/f", "/endless"):
        with pytest.raises(FetchError, match="allowed 1000 bytes"):
            await fetch(tmp_path, model(server.url(path)), budget=Budget(1000))


async def test_redirects_stay_away_from_private_addresses(server: Server, tmp_path: Path) -> None:
    async def away(request: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": "/f"})

    async def metadata(request: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": "http://169.254.169.254/token"})

    server.route("/away", away)
    server.route("/metadata", metadata)
    server.route("/f", whole)
    await server.server.start_server()
    with pytest.raises(FetchError, match=r"private address 127\.0\.0\.1"):
        await fetch(tmp_path, model(server.url("/away")), allow_private=False)
    await fetch(tmp_path, model(server.url("/away")))
    assert (tmp_path / "models/m/away").read_bytes() == DATA
    with pytest.raises(FetchError, match="no address to download from"):
        await fetch(tmp_path, model(server.url("/metadata"), "n"))


async def test_credentials_stay_with_their_host(server: Server, tmp_path: Path) -> None:
    other = TestServer(web.Application())
    seen: dict[str, str | None] = {}

    async def first(request: web.Request) -> web.Response:
        seen["first"] = request.headers.get("Authorization")
        return web.Response(status=307, headers={"Location": str(other.make_url("/f"))})

    async def second(request: web.Request) -> web.Response:
        seen["second"] = request.headers.get("Authorization")
        return web.Response(body=DATA)

    other.app.router.add_get("/f", second)
    server.route("/f", first)
    await server.server.start_server()
    await other.start_server()
    try:
        await fetch(tmp_path, model(server.url("/f")), logins=Logins({server.host: ("u", "p")}))
    finally:
        await other.close()
    assert seen == {"first": "Basic dTpw", "second": None}


async def test_an_oci_artifact_comes_with_a_token_that_is_renewed(server: Server, tmp_path: Path) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name in ("config/model.json", "../outside"):
            member = tarfile.TarInfo(name)
            member.size = 2
            if name.startswith("config"):
                archive.addfile(member, io.BytesIO(b"{}"))
    blobs = {hashlib.sha256(each).hexdigest(): each for each in (DATA, packed.getvalue())}
    tokens: list[str] = []

    async def token(request: web.Request) -> web.Response:
        assert request.headers["Authorization"] == "Basic dTpw"
        assert request.query["scope"] == "repository:team/model:pull"
        tokens.append(f"t{len(tokens)}")
        return web.json_response({"token": tokens[-1]})

    def checked(request: web.Request, valid: str) -> web.Response | None:
        if request.headers.get("Authorization") == f"Bearer {valid}":
            return None
        challenge = f'Bearer realm="{server.url("/token")}",service="s"'
        return web.Response(status=401, headers={"WWW-Authenticate": challenge})

    async def manifest(request: web.Request) -> web.Response:
        title = {"org.opencontainers.image.title": "sub/weights.bin"}
        one, two = blobs
        layers = [
            {"mediaType": "x", "digest": f"sha256:{one}", "size": len(DATA), "annotations": title},
            {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": f"sha256:{two}"},
        ]
        return checked(request, tokens[-1] if tokens else "") or web.json_response({"layers": layers})

    async def blob(request: web.Request) -> web.Response:
        digest = request.match_info["digest"].removeprefix("sha256:")
        # The first token has expired by now.
        return checked(request, tokens[-1] if len(tokens) > 1 else "") or web.Response(body=blobs[digest])

    server.route("/token", token)
    server.route("/v2/team/model/manifests/1", manifest)
    server.route("/v2/team/model/blobs/{digest}", blob)
    await server.server.start_server()
    uri, plain = f"oci://{server.host}/team/model:1", frozenset((server.host,))
    for _ in range(2):
        await fetch(tmp_path, model(uri), logins=Logins({server.host: ("u", "p")}), plain=plain)
    visible = {each for each in files_of(tmp_path) if not each.rpartition("/")[2].startswith(".")}
    assert visible == {"models/m/sub/weights.bin", "models/m/config/model.json"}
    assert (tmp_path / "models/m/sub/weights.bin").read_bytes() == DATA


async def test_a_prefix_of_a_bucket_is_listed_and_signed(server: Server, tmp_path: Path) -> None:
    async def bucket(request: web.Request) -> web.Response:
        assert "Credential=key/" in request.headers["Authorization"]
        assert request.query["prefix"] == "models/a b/"
        second = "continuation-token" in request.query
        key = "two.bin" if second else "sub/one.bin"
        more = "" if second else "<NextContinuationToken>n+1</NextContinuationToken>"
        text = (
            '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Contents><Key>models/a b/{key}</Key><Size>{len(DATA)}</Size></Contents>"
            f"<Contents><Key>models/a b/</Key><Size>0</Size></Contents>{more}</ListBucketResult>"
        )
        return web.Response(text=text)

    server.route("/bucket/", bucket)
    server.route("/bucket/models/{rest:.*}", whole)
    await server.server.start_server()
    environ = {"AWS_ENDPOINT_URL": server.url("/")}
    login = Logins({"bucket": ("key", "secret")})
    await fetch(tmp_path, model("s3://bucket/models/a%20b/"), environ=environ, logins=login)
    assert files_of(tmp_path) == {"models/m/sub/one.bin", "models/m/two.bin"}


async def test_files_of_this_machine_need_a_folder_that_is_allowed(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "sub/a").write_bytes(DATA)
    uri = source.as_uri()
    with pytest.raises(FetchError, match="only allowed below --files"):
        await fetch(tmp_path, model(uri))
    await fetch(tmp_path, model(uri), folders=(tmp_path,))
    assert (tmp_path / "models/m/sub/a").read_bytes() == DATA


async def test_the_command_reads_list_and_logins(server: Server, tmp_path: Path) -> None:
    async def guarded(request: web.Request) -> web.Response:
        known = request.headers.get("Authorization") == "Basic dTpw"
        return web.Response(body=DATA) if known else web.Response(status=401)

    server.route("/f", guarded)
    await server.server.start_server()
    listed = tmp_path / "artifacts.json"
    listed.write_text(json.dumps({"models": [], "resources": [{"name": "r", "uri": server.url("/f")}]}))
    auth = base64.b64encode(b"u:p").decode()
    (tmp_path / "config.json").write_text(
        json.dumps({"auths": {f"http://{server.host}/v1/": {"auth": auth}}})
    )
    await run(parser().parse_args(["--artifacts", str(listed), "--to", str(tmp_path)]))
    assert (tmp_path / "resources/r/f").read_bytes() == DATA


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "?",
        json.dumps({"models": [{"name": "../x", "uri": "https://a/b"}]}),
        json.dumps({"models": [{"name": "..", "uri": "https://a/b"}]}),
        json.dumps({"models": [{"name": "x", "uri": "ftp://a/b"}]}),
        json.dumps({"models": [{"name": "x", "uri": "https://a/b#md5=1"}]}),
        json.dumps({"models": [{"uri": "https://a/b"}]}),
    ],
)
def test_lists_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_artifacts(text)


@pytest.mark.parametrize(
    ("address", "private", "public"),
    [
        ("8.8.8.8", True, True),
        ("10.0.0.1", True, False),
        ("127.0.0.1", True, False),
        ("::ffff:10.0.0.1", True, False),
        ("169.254.169.254", False, False),
        ("[fe80::1%eth0]", False, False),
        ("0.0.0.0", False, False),  # noqa: S104
        ("example.com", True, True),
    ],
)
def test_closed_addresses(address: str, private: bool, public: bool) -> None:
    for allowed, passes in ((True, private), (False, public)):
        if passes:
            check_address(address, allow_private=allowed)
        else:
            with pytest.raises(AddressRefused):
                check_address(address, allow_private=allowed)


@given(st.text(max_size=40))
def test_names_of_files_stay_in_their_folder(text: str) -> None:
    name = file_name(f"https://a/{text}", "default")
    assert "/" not in name
    assert name not in ("", ".", "..")


def test_names_of_oci_artifacts() -> None:
    assert parse_oci("oci://Host:5000/a/b:1") == ("host:5000", "a/b", "1")
    assert parse_oci("oci://host/a") == ("host", "a", "latest")
    assert parse_oci("oci://host/a:1@sha256:0") == ("host", "a", "sha256:0")
    with pytest.raises(FetchError):
        parse_oci("oci://host")


async def test_many_files_come_together(server: Server, tmp_path: Path) -> None:
    server.route("/{name}", whole)
    await server.server.start_server()
    async with asyncio.timeout(60):
        await fetch(tmp_path, *(model(server.url(f"/{n}"), f"m{n}") for n in range(12)))
    assert len(files_of(tmp_path)) == 12
