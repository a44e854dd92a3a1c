"""The served description of the HTTP API, and a crowd of generated requests that hold the gateway to it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support.platform.gateways import Platform, running_platform

# The work is counted, in examples for each operation. The time it takes is the machine's.
pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[3]
CHECKS = ",".join(
    (
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_schema_conformance",
        "response_headers_conformance",
        "negative_data_rejection",
        "ignored_auth",
        "allow_header_conformance",
    )
)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def described(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Platform]:
    """A platform of its own: what is generated may do anything that an admin key can."""
    async with running_platform(tmp_path_factory.mktemp("described")) as running:
        yield running


async def test_the_document_is_served_to_anybody(described: Platform) -> None:
    async with described.session.get(described.gateway.url + "/openapi.json") as response:
        assert response.status == 200
        assert response.headers["content-type"] == "application/json"
        document = await response.json()
    assert document["openapi"].startswith("3.1")
    assert "/v2/nvcf/pexec/functions/{function_id}" in document["paths"]


# A body that breaks its schema by its size may be refused for its size alone.
REJECTIONS = ["400", "401", "403", "404", "405", "406", "409", "413", "415", "422", "428", "429", "5xx"]


async def run(described: Platform, *arguments: str, settings: str = "") -> None:
    """Generate requests; fails with the tool's own report."""
    settings = f"{settings}\n[checks.negative_data_rejection]\nexpected-statuses = {json.dumps(REJECTIONS)}\n"
    (described.directory / "schemathesis.toml").write_text(settings)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "schemathesis.cli",
        "run",
        described.gateway.url + "/openapi.json",
        "--header",
        f"Authorization: {described.authorization()['Authorization']}",
        "--checks",
        CHECKS,
        "--max-examples",
        "8",
        "--seed",
        "1",
        "--phases",
        "examples,coverage,fuzzing",
        "--request-timeout",
        "20",
        "--no-shrink",
        # The same handlers as without the account.
        "--exclude-path-regex",
        "^/v2/nvcf/accounts/.nca_id./",
        "--continue-on-failure",
        "--warnings",
        "off",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd=described.directory,
        env={
            **os.environ,
            "SCHEMATHESIS_HOOKS": "tests.support.http.schemathesis_hooks",
            "PYTHONPATH": str(ROOT),
        },
    )
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, output.decode()[-12_000:]


def without(*names: str) -> tuple[str, ...]:
    """Options that leave operations out."""
    return tuple(word for name in names for word in ("--exclude-operation-id", name))


@pytest.mark.slow
async def test_generated_requests_meet_no_500_and_nothing_undocumented(described: Platform) -> None:
    # What is generated would find the very key it uses, and revoke it.
    await run(described, *without("revokeKey"))


@pytest.mark.slow
async def test_generated_requests_about_things_that_exist(described: Platform) -> None:
    version = await described.create_version()
    settings = f'[parameters]\nfunction_id = "{version.function_id}"\nversion_id = "{version.id}"\n'
    # Neither deployed, for its callers would wait as long as they are told to, nor deleted on the way.
    await run(
        described, *without("revokeKey", "deploy", "deleteFunction", "deleteVersion"), settings=settings
    )


async def test_generated_revocations(described: Platform) -> None:
    await run(described, "--include-operation-id", "revokeKey")
