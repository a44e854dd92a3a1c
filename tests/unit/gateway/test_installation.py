"""Secrets of an installation: what is made, and that nothing that is there is replaced."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from nvcf_broker.configuration import BrokerFiles, public_key, read_credentials
from nvcf_gateway.access.signing_keys import SigningKeys
from nvcf_gateway.errors import SetupError
from nvcf_gateway.installation import main, manifests, new_secrets, write
from nvcf_gateway.secrets.keys import FileKeys
from nvcf_proto.models.keys import ApiKey, Scope, hash_api_key

Stored = dict[str, dict[str, Any]]


def by_name(objects: list[dict[str, Any]]) -> Stored:
    return {each["metadata"]["name"]: each for each in objects}


def test_the_programs_read_what_is_made(tmp_path: Path) -> None:
    for name, entries in new_secrets("acme", 5.0).items():
        (tmp_path / name).mkdir()
        for key, value in entries.items():
            (tmp_path / name / key).write_bytes(value)
    SigningKeys(tmp_path / "signing")
    assert len(FileKeys(tmp_path / "sealing").ring) == 1
    files = BrokerFiles(tmp_path / "broker")
    logins = [
        read_credentials(each) for each in (files.credentials, files.control, files.system, files.route)
    ]
    assert [user for user, _ in logins] == ["platform", "control", "system", "route"]
    assert public_key(files.callout_seed.read_text().strip()).startswith("A")
    [record] = json.loads((tmp_path / "admin" / "bootstrap-keys.json").read_text())
    record_of_key: ApiKey = ApiKey.from_dict(record, "")
    assert (record_of_key.nca_id, record_of_key.scopes) == ("acme", (Scope.ADMIN, Scope.OPERATOR))
    assert record_of_key.secret_hash == hash_api_key((tmp_path / "admin" / "admin.key").read_text())


def test_print_gives_kubectl_what_it_applies(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--name", "nvcf", "--namespace", "gpu", "--print"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["kind"] == "List"
    assert set(by_name(document["items"])) == {"nvcf-signing", "nvcf-sealing", "nvcf-broker", "nvcf-admin"}
    assert {each["metadata"]["namespace"] for each in document["items"]} == {"gpu"}


def test_outside_a_pod_it_says_what_to_do(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert main(["--name", "nvcf", "--namespace", "gpu"]) == 1
    assert "--print" in capsys.readouterr().err


class StandInApiServer:
    """Stores Secrets like an API server. The real one is tried in tests/kubernetes."""

    def __init__(self) -> None:
        self.stored: Stored = {}
        self.refuse = False

    async def handle(self, request: web.Request) -> web.Response:
        name = request.match_info.get("name", "")
        if self.refuse:
            return web.Response(status=403, text="secrets is forbidden")
        if request.method == "GET":
            found = self.stored.get(name)
            return web.json_response(found or {}, status=200 if found else 404)
        body = json.loads(await request.read())
        if request.method == "PATCH":
            assert request.content_type == "application/merge-patch+json"
            self.stored[name]["data"] |= body["data"]
            return web.json_response(self.stored[name])
        self.stored[body["metadata"]["name"]] = body
        return web.json_response(body, status=201)


@pytest.fixture
async def server() -> AsyncIterator[tuple[StandInApiServer, str]]:
    stand_in, app = StandInApiServer(), web.Application()
    path = "/api/v1/namespaces/gpu/secrets"
    app.add_routes([web.post(path, stand_in.handle), web.route("*", path + "/{name}", stand_in.handle)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield stand_in, f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


async def test_a_second_run_keeps_everything(server: tuple[StandInApiServer, str]) -> None:
    stand_in, url = server
    first, second = (manifests("nvcf", "gpu", new_secrets("local", 0.0)) for _ in range(2))
    async with aiohttp.ClientSession() as session:
        assert (await write(session, url, first))[0] == "nvcf-signing: created"
        assert stand_in.stored == by_name(first)
        assert set(await write(session, url, second)) == {f"{name}: is there" for name in stand_in.stored}
    assert stand_in.stored == by_name(first)


async def test_only_the_broker_gets_entries_of_a_later_release(server: tuple[StandInApiServer, str]) -> None:
    stand_in, url = server
    first = manifests("nvcf", "gpu", new_secrets("local", 0.0))
    async with aiohttp.ClientSession() as session:
        await write(session, url, first)
        del stand_in.stored["nvcf-broker"]["data"]["route.credentials"]
        # Operators put the first key elsewhere and rotate the others.
        del stand_in.stored["nvcf-admin"]["data"]["admin.key"]
        stand_in.stored["nvcf-signing"]["data"] = {"2027.pem": base64.b64encode(b"x").decode()}
        lines = await write(session, url, manifests("nvcf", "gpu", new_secrets("local", 0.0)))
    assert "nvcf-broker: has now route.credentials" in lines
    assert "admin.key" not in stand_in.stored["nvcf-admin"]["data"]
    assert set(stand_in.stored["nvcf-signing"]["data"]) == {"2027.pem"}


async def test_a_refusal_is_reported(server: tuple[StandInApiServer, str]) -> None:
    stand_in, url = server
    stand_in.refuse = True
    async with aiohttp.ClientSession() as session:
        with pytest.raises(SetupError, match="403 secrets is forbidden"):
            await write(session, url, manifests("nvcf", "gpu", new_secrets("local", 0.0)))
