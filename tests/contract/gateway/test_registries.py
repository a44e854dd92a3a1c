"""Registry credentials over HTTP, and the form in which a cluster gets them."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from nvcf_proto.ids import new_id
from tests.support.platform.gateways import ACCOUNT, Platform

pytestmark = pytest.mark.asyncio(loop_scope="module")

PATH = "/v2/nvcf/registry-credentials"
PASSWORD = "hunter2-of-the-registry"


def login(user: str = "robot", password: str = PASSWORD) -> str:
    return base64.b64encode(f"{user}:{password}".encode()).decode()


def body(**changes: Any) -> dict[str, Any]:
    secret = {"name": "robot", "value": login()}
    return {"registryHostname": "ghcr.io", "secret": secret, "artifactTypes": ["CONTAINER"], **changes}


async def create(platform: Platform, *, key: str = "admin", **changes: Any) -> dict[str, Any]:
    answer = await platform.call("POST", PATH, body(**changes), key=key)
    return dict(answer["registryCredential"])


async def test_life_of_a_credential(platform: Platform) -> None:
    made = await create(platform, tags=["team=a"], description="images")
    one = f"{PATH}/{made['registryCredentialId']}"
    assert made["ncaId"] == ACCOUNT
    assert (made["registryName"], made["registryHostname"]) == ("GitHub", "ghcr.io")
    assert (made["registryCredentialName"], made["provisionedBy"]) == ("robot", "USER")
    assert (await platform.call("GET", one, key="list"))["registryCredential"] == made
    assert (await platform.call("GET", PATH, key="list"))["registryCredentials"] == [made]
    refused = await platform.call("POST", PATH, body(), expect=409)
    assert made["registryCredentialId"] in refused["detail"]

    secret = {"name": "robot-2", "value": login(password="another")}
    change = {"secret": secret, "artifactTypeEnums": ["HELM", "CONTAINER"]}
    changed = (await platform.call("PATCH", one, change))["registryCredential"]
    assert changed["artifactTypes"] == ["CONTAINER", "HELM"]
    assert changed["registryCredentialName"] == "robot-2"
    await platform.call("POST", PATH, body(artifactTypes=["HELM"]), expect=409)
    model = await create(platform, artifactTypes=["MODEL"])

    def ids(answer: dict[str, Any]) -> set[str]:
        return {each["registryCredentialId"] for each in answer["registryCredentials"]}

    both = {made["registryCredentialId"], model["registryCredentialId"]}
    assert ids(await platform.call("GET", f"{PATH}?artifactType=HELM&artifactType=MODEL")) == both
    assert ids(await platform.call("GET", f"{PATH}?artifactType=HELM")) == {made["registryCredentialId"]}
    assert ids(await platform.call("GET", f"{PATH}?provisionedBy=SYSTEM")) == set()
    await platform.call("GET", f"{PATH}?artifactType=IMAGE", expect=400)

    for each in both:
        await platform.call("DELETE", f"{PATH}/{each}", expect=204)
    await platform.call("GET", one, expect=404)
    assert (await platform.call("GET", PATH))["registryCredentials"] == []


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"registryHostname": "https://ghcr.io"}, "registryHostname"),
        ({"registryHostname": "ghcr.io/team"}, "registryHostname"),
        ({"registryHostname": ""}, "registryHostname"),
        ({"artifactTypes": []}, "artifactTypes"),
        ({"artifactTypes": ["IMAGE"]}, "artifactTypes[0]"),
        ({"secret": {"name": "robot"}}, "secret.value"),
        ({"secret": {"name": "robot", "value": f"robot:{PASSWORD}"}}, "secret.value"),
        ({"secret": {"name": "robot", "value": login(user="")}}, "secret.value"),
        ({"secret": {"name": "robot", "value": login(password="")}}, "secret.value"),
        ({"secret": {"name": "robot", "value": login(password=PASSWORD + "\n")}}, "secret.value"),
        ({"secret": {"name": "robot", "value": base64.b64encode(b"\xff:x").decode()}}, "secret.value"),
        ({"registryHostname": "nvcr.io"}, "secret.value"),
        ({"registryHostname": "helm.ngc.nvidia.com"}, "secret.value"),
    ],
)
async def test_what_no_registry_takes_is_refused_without_repeating_it(
    platform: Platform, changes: dict[str, Any], field: str
) -> None:
    refused = await platform.call("POST", PATH, body(**changes), expect=400)
    assert refused["field"] == field
    assert PASSWORD not in json.dumps(refused)


async def test_ngc_takes_its_own_user(platform: Platform) -> None:
    secret = {"name": "ngc", "value": login("$oauthtoken", "nvapi-x")}
    made = await create(platform, registryHostname="nvcr.io", secret=secret)
    assert made["registryName"] == "NGC"
    one = f"{PATH}/{made['registryCredentialId']}"
    wrong = {"secret": {"name": "ngc", "value": login()}}
    assert (await platform.call("PATCH", one, wrong, expect=400))["field"] == "secret.value"
    await platform.call("DELETE", one, expect=204)


async def test_another_account_sees_and_changes_nothing(platform: Platform) -> None:
    made = await create(platform, registryHostname="registry.example.com:5000")
    one = f"{PATH}/{made['registryCredentialId']}"
    assert (await platform.call("GET", PATH, key="foreign"))["registryCredentials"] == []
    change = {"secret": {"name": "robot", "value": login(password="stolen")}}
    for method, sent in (("GET", None), ("PATCH", change), ("DELETE", None)):
        await platform.call(method, one, sent, key="foreign", expect=404)
        await platform.call(method, f"{PATH}/{new_id()}", sent, expect=404)
    for method, sent in (("PATCH", change), ("DELETE", None)):
        await platform.call(method, one, sent, key="list", expect=403)
    await platform.call("POST", PATH, body(), key="list", expect=403)
    await platform.call("GET", PATH, key="invoke", expect=403)
    # Each account has logins of its own for the same host.
    await create(platform, registryHostname="registry.example.com:5000", key="foreign")


async def test_recognized_registries(platform: Platform) -> None:
    found = (await platform.call("GET", "/v2/nvcf/recognized-registries"))["recognizedRegistries"]
    assert set(found) == {"CONTAINER", "HELM", "MODEL", "RESOURCE"}
    assert {"registryName": "NGC", "registryHostname": "nvcr.io"} in found["CONTAINER"]
