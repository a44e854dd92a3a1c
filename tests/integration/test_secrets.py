"""Secrets from the API to a running function, and nowhere else: a whole platform with real processes."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import secrets as random
import stat
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from nvcf_proto.secrets import function_secrets_path
from tests.support.platform.compute_plane import Plane, running_plane
from tests.support.waiting import eventually

# It answers with digests: answers pass through the broker.
FUNCTION = """
import hashlib, os
from nvcf_worker import secrets
def handler(request):
    return {
        "seen": {name: hashlib.sha256(secrets[name].encode()).hexdigest() for name in secrets},
        "shown": repr(secrets),
        "folder": os.environ["NVCF_SECRETS_DIR"],
        "uid": os.getuid(),
        "telemetry": sorted(name for name in os.environ if name.startswith("OTEL_EXPORTER")),
    }
"""


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[Plane]:
    async with running_plane(tmp_path) as made:
        await made.start_agent()
        yield made


def new_value(what: str) -> str:
    """Return a value that is nowhere else."""
    return f"{what}-{random.token_hex(16)}"


def digest(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest()


def files_with(folder: Path, *texts: str) -> Iterator[str]:
    """Yield the files below a folder that contain one of the texts."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            content = path.read_bytes()
            if any(text.encode() in content for text in texts):
                yield str(path)


async def test_a_running_function_sees_a_rotation_and_no_value_stays_anywhere(plane: Plane) -> None:
    first, second = new_value("first"), new_value("second")
    vendor, login = new_value("vendor"), new_value("login")
    telemetry = {
        "name": "vendor",
        "endpoint": "http://127.0.0.1:1",
        "protocol": "HTTP",
        "provider": "OTEL_COLLECTOR",
        "types": ["TRACES"],
        "secret": {"name": "vendor", "value": vendor},
    }
    platform = plane.platform
    made = (await platform.call("POST", "/v2/nvcf/telemetries", telemetry))["telemetry"]
    given = [{"name": "TOKEN", "value": first}, {"name": "CONFIG", "value": {"key": first}}]
    version = await plane.deploy(
        {"minInstances": 1, "maxInstances": 1},
        source=FUNCTION,
        fields={"secrets": given, "telemetries": {"tracesTelemetryId": made["telemetryId"]}},
    )

    async def answer() -> dict[str, object]:
        return (await plane.ask(version)).body

    seen = await answer()
    as_text = json.dumps({"key": first})
    assert seen["seen"] == {"TOKEN": digest(first), "CONFIG": digest(as_text)}
    assert "first" not in str(seen["shown"])
    assert "OTEL_EXPORTER_OTLP_TRACES_HEADERS" in list(seen["telemetry"])  # type: ignore[call-overload]
    folder = Path(str(seen["folder"]))
    status = (folder / "secrets.json").stat()
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert status.st_uid == seen["uid"]

    path = f"/v2/nvcf/secrets/{function_secrets_path(version.function_id, version.id)}"
    body = {"secrets": [{"name": "TOKEN", "value": second}]}
    await platform.call("PUT", path, body, expect=204)
    changed = time.monotonic()

    async def rotated() -> bool:
        return (await answer())["seen"] == {"TOKEN": digest(second), "CONFIG": digest(as_text)}

    await eventually(rotated, "the function sees the new value")
    # Two seconds as a rule; a busy machine may need longer.
    assert time.monotonic() - changed < 30
    registry = {
        "registryHostname": "ghcr.io",
        "secret": {"name": "robot", "value": _login(login)},
        "artifactTypes": ["CONTAINER"],
    }
    await platform.call("POST", "/v2/nvcf/registry-credentials", registry)

    shown = [
        await platform.call("GET", "/v2/nvcf/functions"),
        await platform.call("GET", "/v2/nvcf/telemetries"),
        await platform.call("GET", "/v2/nvcf/events?limit=1000"),
        await platform.call("GET", "/v2/nvcf/instances"),
        await platform.call("GET", path),
        await platform.call("GET", "/v2/nvcf/registry-credentials"),
    ]
    values = (first, second, vendor, login, _login(login))
    for value in values:
        assert value not in json.dumps(shown)
    assert {each.data["action"] for each in plane.events if each.kind == "secret"} == {"set", "rotate"}
    # All stores of the broker, all logs, the agent's folder with its instances.
    in_memory = not str(folder).startswith(str(platform.directory))
    found = set(files_with(platform.directory, *values))
    assert found == (set() if in_memory else {str(folder / "secrets.json")})
    assert list(files_with(platform.directory, "TOKEN")), "names are in what was searched"

    deployment = f"/v2/nvcf/deployments/{function_secrets_path(version.function_id, version.id)}"
    await platform.call("DELETE", deployment)
    await eventually(lambda: not folder.exists(), "the secrets are gone with their instance")


def _login(password: str) -> str:
    return base64.b64encode(f"robot:{password}".encode()).decode()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives instances a user of their own")
async def test_an_instance_does_not_read_the_secrets_of_another_account(plane: Plane) -> None:
    """As its own user it can neither list nor open what is not its own."""
    value = new_value("mine")
    spying = FUNCTION + (
        "\nimport glob\n"
        "def handler(request):\n"
        "    folder = os.path.dirname(os.environ['NVCF_SECRETS_DIR'])\n"
        "    def tried(do):\n"
        "        try:\n"
        "            return str(do())\n"
        "        except OSError as error:\n"
        "            return type(error).__name__\n"
        "    other = os.environ['OTHER']\n"
        "    return {\n"
        "        'uid': os.getuid(), 'folder': os.environ['NVCF_SECRETS_DIR'],\n"
        "        'list': tried(lambda: os.listdir(folder)),\n"
        "        'other': tried(lambda: open(other + '/secrets.json').read()),\n"
        "        'write': tried(lambda: open(os.environ['NVCF_SECRETS_DIR'] + '/x', 'w')),\n"
        "        'replace': tried(lambda: os.unlink(os.environ['NVCF_SECRETS_DIR'] + '/secrets.json')),\n"
        "    }\n"
    )
    specification = {"minInstances": 1, "maxInstances": 1}
    given = {"secrets": [{"name": "TOKEN", "value": value}]}
    mine = await plane.deploy(specification, source=spying, fields=given, OTHER="/nowhere")
    own = (await plane.ask(mine)).body
    if own["uid"] == 0:
        pytest.skip("this machine gives instances no user of their own")
    platform = plane.platform
    platform.keys["mine"], platform.keys["admin"] = platform.keys["admin"], platform.keys["foreign"]
    theirs = await plane.deploy(specification, source=spying, fields=given, OTHER=own["folder"])
    seen = (await plane.ask(theirs)).body
    assert seen["uid"] != own["uid"]
    assert seen["other"] == "PermissionError"
    for each in (own, seen):
        assert each["list"] in ("PermissionError", "FileNotFoundError")
        assert each["write"] == each["replace"] == "PermissionError"
