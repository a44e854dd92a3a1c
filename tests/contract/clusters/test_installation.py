"""The installation's own images in creation messages (docs/reference/protocol.md, section 6.3)."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from nvcf_broker.files import write_private
from nvcf_gateway.clusters.installation import InstallationImages, parse_images, read_login
from nvcf_gateway.errors import SetupError
from tests.support.platform.icms import ComputePlane, running_compute_plane

IMAGE = "registry.example/echo:1"
NAMES = {
    "utils": "UTILS_CONTAINER",
    "init": "INIT_CONTAINER",
    "ess-agent": "ESS_AGENT_CONTAINER",
    "otel": "OTEL_CONTAINER",
    "byoo-otel-collector": "BYOO_OTEL_COLLECTOR_CONTAINER",
}
module = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def login(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A docker configuration as a registry's tool writes it."""
    path = tmp_path_factory.mktemp("login") / "config.json"
    path.write_text(json.dumps({"auths": {"registry.example": {"auth": "Zmlyc3Q="}}, "credsStore": "x"}))
    return path


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def plane(tmp_path_factory: pytest.TempPathFactory, login: Path) -> AsyncIterator[ComputePlane]:
    """A gateway with images and a login."""
    flags = [f"--sidecar-image={name}=registry.example/{name}:2" for name in NAMES]
    flags.append(f"--sidecar-registry-login={login}")
    async with running_compute_plane(tmp_path_factory.mktemp("icms"), *flags) as running:
        yield running


@module
async def test_the_images_and_their_login_travel_with_every_image(plane: ComputePlane, login: Path) -> None:
    """6.3: without UTILS_CONTAINER, NVIDIA's agent makes no pod. A renewed login is seen at once."""
    agent, version = await plane.cluster(), await plane.version(containerImage=IMAGE)
    await plane.order(version, agent.cluster_id)
    found = (await agent.creation()).environment
    assert {line: found[line] for line in NAMES.values()} == {
        line: f"registry.example/{name}:2" for name, line in NAMES.items()
    }
    sent = json.loads(base64.b64decode(found["SIDECAR_REGISTRY_CREDENTIAL"]))
    assert sent == {"auths": {"registry.example": {"auth": "Zmlyc3Q="}}}
    write_private(login, json.dumps({"auths": {"registry.example": {"auth": "c2Vjb25k"}}}))
    await plane.order(version, agent.cluster_id)
    again = (await agent.creation()).environment
    assert "c2Vjb25k" in base64.b64decode(again["SIDECAR_REGISTRY_CREDENTIAL"]).decode()


@module
async def test_a_versions_own_utils_image_goes_before(plane: ComputePlane) -> None:
    """6.3: utilsContainerImage; GO and PYTHON are the installation's."""
    agent = await plane.cluster()
    for wanted, expected in (("registry.example/mine:1", "mine"), ("GO", "utils"), ("PYTHON", "utils")):
        version = await plane.version(containerImage=IMAGE, utilsContainerImage=wanted)
        await plane.order(version, agent.cluster_id)
        assert expected in (await agent.creation()).environment["UTILS_CONTAINER"]


@module
async def test_a_process_gets_none_of_it(plane: ComputePlane) -> None:
    """6.3: these lines are for images and charts, and the login is a secret."""
    process = {"python": "/usr/bin/python3", "file": "/srv/f.py", "workingDirectory": "/srv"}
    agent, version = await plane.cluster(), await plane.version(containerImage=None, process=process)
    await plane.order(version, agent.cluster_id)
    found = (await agent.creation()).environment
    assert not {*NAMES.values(), "SIDECAR_REGISTRY_CREDENTIAL"} & set(found)


@pytest.mark.parametrize("text", ["utils", "utils=", "=x", "other=x", "utils=a b", "utils=a\n"])
def test_an_image_that_cannot_be_read_ends_the_start(text: str) -> None:
    """The text names the option."""
    with pytest.raises(SetupError, match="--sidecar-image"):
        parse_images([text])


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"auths": []}', '"auths"', "[" * 5000])
def test_a_login_that_cannot_be_read_ends_the_start(tmp_path: Path, text: str) -> None:
    """The text names the file."""
    path = tmp_path / "config.json"
    with pytest.raises(SetupError, match=r"config\.json"):
        read_login(path)
    path.write_text(text)
    with pytest.raises(SetupError, match=r"config\.json"):
        InstallationImages({}, path)


@pytest.mark.asyncio
async def test_a_login_that_is_lost_later_stays(tmp_path: Path) -> None:
    """A file that is being replaced must not stop all orders."""
    path = tmp_path / "config.json"
    write_private(path, '{"auths": {}}')
    images = InstallationImages({"utils": "u"}, path)
    before = await images.variables()
    os.unlink(path)
    assert await images.variables() == before
