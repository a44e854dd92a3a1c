"""`nvcf secret`, `nvcf registry` and secrets of `nvcf telemetry` against a real gateway."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

from tests.support.platform.gateways import Platform, running_platform
from tests.support.platform.secrets import agent_token, ess_path, read_secrets

VALUE = "hunter2-of-the-command-line"


async def nvcf(platform: Platform, *arguments: str, given: str = "", code: int = 0) -> str:
    """Run a command that ends with `code`, `given` on its standard input. Returns output and errors."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "nvcf_cli", *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "NVCF_URL": platform.gateway.url, "NVCF_API_KEY": platform.keys["admin"]},
    )  # fmt: skip
    async with asyncio.timeout(60):
        output, _ = await process.communicate(given.encode())
    assert process.returncode == code, output.decode()
    assert VALUE not in output.decode()
    return output.decode()


@pytest.mark.slow
async def test_from_set_to_delete(tmp_path: Path) -> None:
    file = tmp_path / "value.json"
    file.write_text(json.dumps({"key": VALUE}) + "\n")
    async with running_platform(tmp_path) as platform:
        version = await platform.deployed_version("hello")
        own = await agent_token(platform, version)

        async def values() -> object:
            return (await read_secrets(platform, own, ess_path(version)))[1]["data"]

        assert "hello has no secrets" in await nvcf(platform, "secret", "list", "hello")
        said = await nvcf(platform, "secret", "set", "hello", "TOKEN", given=VALUE + "\n")
        assert said == "hello: TOKEN is set (1 version)\n"
        set_json = ["secret", "set", "hello", "CONFIG", "--from-file", str(file), "--value-json", "--json"]
        assert json.loads(await nvcf(platform, *set_json)) == {
            "name": "CONFIG",
            "functionVersionIds": [version.id],
        }
        assert await values() == {"TOKEN": VALUE, "CONFIG": {"key": VALUE}}
        (listed,) = json.loads(await nvcf(platform, "secret", "list", "hello", "--json"))
        assert listed["secrets"] == ["CONFIG", "TOKEN"]
        lines = (await nvcf(platform, "secret", "list", "hello")).splitlines()
        assert [line.split()[0] for line in lines] == ["SECRET", "CONFIG", "TOKEN"]
        await nvcf(platform, "secret", "delete", "hello", "CONFIG")
        assert await values() == {"TOKEN": VALUE}
        said = await nvcf(platform, "secret", "delete", "hello", "CONFIG", code=1)
        assert "hello has no secret CONFIG" in said
        said = await nvcf(platform, "secret", "set", "hello", f"TOKEN={'x' * 5}", code=2)
        assert "comes from standard input" in said
        assert "secret" in await nvcf(platform, "events", "hello", "--kind", "secret")

        add = [
            "registry",
            "add",
            "ghcr.io",
            "--user",
            "robot",
            "--artifact",
            "container",
            "--artifact",
            "helm",
        ]
        assert await nvcf(platform, *add, given=VALUE) == "ghcr.io: added for container, helm\n"
        assert "the user is $oauthtoken" in await nvcf(
            platform, "registry", "add", "nvcr.io", "--user", "me", given=VALUE, code=1
        )
        lines = (await nvcf(platform, "registry", "list")).splitlines()
        assert lines[1].split()[:4] == ["ghcr.io", "container", "helm", "registry-login"]
        (found,) = json.loads(await nvcf(platform, "registry", "list", "--json"))
        await nvcf(platform, "registry", "delete", found["registryCredentialId"])
        assert "there is no login for ghcr.io" in await nvcf(
            platform, "registry", "delete", "ghcr.io", code=1
        )

        key = tmp_path / "key"
        key.write_text(VALUE)
        telemetry = ["telemetry", "add", "dd", "--provider", "datadog", "--endpoint", "datadoghq.com"]
        said = await nvcf(platform, *telemetry, "--secret-from", str(key), code=2)
        assert "needs --secret" in said
        said = await nvcf(platform, *telemetry, "--secret", "dd", "--secret-from", str(key))
        assert "to be put into" not in said
