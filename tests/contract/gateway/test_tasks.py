"""The HTTP API of tasks and the service nvct.Worker, without any agent: tasks stay queued."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from nvcf_proto.ids import new_id
from nvcf_proto.pb import nvct_pb2, nvct_pb2_grpc
from tests.support.platform.gateways import ACCOUNT, Platform

pytestmark = pytest.mark.asyncio(loop_scope="module")
TASKS = "/v1/nvct/tasks"


def body(name: str = "training", **fields: Any) -> dict[str, Any]:
    """Return the body of a task."""
    process = {"python": sys.executable, "file": "/tmp/task.py", "workingDirectory": "/tmp"}
    return {"name": name, "process": process} | fields


async def test_tasks_are_submitted_listed_cancelled_and_deleted(platform: Platform) -> None:
    call = platform.call
    first = (await call("POST", TASKS, body(tags=["a", "b"], secrets=[{"name": "S", "value": "1"}])))["task"]
    assert (first["status"], first["ncaId"], first["instances"]) == ("QUEUED", ACCOUNT, [])
    assert (first["maxQueuedDuration"], first["terminationGracePeriodDuration"]) == ("PT72H", "PT1H")
    assert first["secrets"] == ["S"]
    short = (await call("POST", TASKS, body(maxRuntimeDuration="PT5M")))["task"]
    assert short["terminationGracePeriodDuration"] == "PT5M"
    several = (await call("POST", f"{TASKS}/bulk", {"tasks": [body("one"), body("two", tags=["a"])]}))[
        "tasks"
    ]
    below = f"/v1/nvct/accounts/{ACCOUNT}/tasks"

    async def listed(query: str) -> list[str]:
        return [each["name"] for each in (await call("GET", f"{below}{query}"))["tasks"]]

    assert sorted(await listed("?tag=a")) == ["training", "two"]
    assert await listed("?name=one&status=QUEUED,RUNNING") == ["one"]
    page = await call("GET", f"{TASKS}?limit=3")
    rest = await call("GET", f"{TASKS}?limit=1&cursor={page['cursor']}")
    ids = [each["id"] for each in (*page["tasks"], *rest["tasks"])]
    assert set(ids) == {first["id"], short["id"], *(each["id"] for each in several)}
    whole = await call("GET", f"{TASKS}?limit=1000")
    assert "cursor" not in whole
    assert [each["id"] for each in whole["tasks"][:4]] == ids

    one = f"{TASKS}/{first['id']}"
    await call("DELETE", one, expect=409)
    for _ in range(2):
        assert (await call("POST", f"{one}/cancel"))["task"]["status"] == "CANCELED"
    events = (await call("GET", f"{one}/events"))["events"]
    assert [each["message"].split(" ")[0] for each in events] == ["canceled:", "queued"]
    assert (await call("GET", f"{one}/results"))["results"] == []
    await call(
        "PUT", f"/v1/nvct/secrets/tasks/{first['id']}", {"secrets": [{"name": "T", "value": 1}]}, expect=204
    )
    assert (await call("GET", one))["task"]["secrets"] == ["S", "T"]
    secrets = {"secrets": [{"name": "T", "value": 1}]}
    calls: tuple[tuple[str, str, Any], ...] = (
        ("GET", one, None),
        ("DELETE", one, None),
        ("POST", f"{one}/cancel", None),
        ("GET", f"{one}/events", None),
        ("GET", f"{one}/results", None),
        ("PUT", f"/v1/nvct/secrets/tasks/{first['id']}", secrets),
    )
    for method, path, sent in calls:
        for key, status in (("foreign", 404), ("invoke", 403)):
            await call(method, path, sent, key=key, expect=status)
    await call("DELETE", one, expect=204)
    await call("GET", one, expect=404)
    await call("GET", "/v1/nvct/accounts/other/tasks", expect=404)
    quotas = (await call("GET", "/v2/nvcf/quotas"))["quotas"]
    assert next(each["used"] for each in quotas if each["quota"] == "tasks") == len(whole["tasks"]) - 1


IMAGE: dict[str, Any] = {
    "process": None,
    "containerImage": "nvcr.io/x:1",
    "gpuSpecification": {"gpu": "H100", "instanceType": "NCP.GPU.H100_1x"},
}
REFUSED: tuple[tuple[dict[str, Any], int, str], ...] = (
    ({"name": ""}, 400, "name"),
    ({"process": None}, 400, "process"),
    ({"containerImage": "nvcr.io/x:1"}, 400, "process"),
    ({"process": None, "containerImage": "nvcr.io/x:1"}, 400, "gpuSpecification.instanceType"),
    ({**IMAGE, "containerArgs": "train 'x"}, 400, "containerArgs"),
    ({**IMAGE, "containerArgs": "-c 'import os\nos.abort()'"}, 400, "containerArgs"),
    ({**IMAGE, "models": [{"name": "m"}]}, 400, "models[0].version"),
    ({"helmChart": "https://x/charts/a-1.tgz"}, 501, "helmChart"),
    ({"containerArgs": "x"}, 400, "containerArgs"),
    ({"resultHandlingStrategy": "UPLOAD", "resultsLocation": "org/model"}, 400, "resultsLocation"),
    ({"resultHandlingStrategy": "UPLOAD", "resultsLocation": "s3://models/x"}, 400, "secrets"),
    ({"resultsLocation": "s3://models/x"}, 400, "resultsLocation"),
    ({"maxRuntimeDuration": "1h"}, 400, "maxRuntimeDuration"),
    ({"maxRuntimeDuration": "PT0S"}, 400, "maxRuntimeDuration"),
    ({"maxQueuedDuration": "P31D"}, 400, "maxQueuedDuration"),
    (
        {"maxRuntimeDuration": "PT1M", "terminationGracePeriodDuration": "PT2M"},
        400,
        "terminationGracePeriodDuration",
    ),
    ({"gpuSpecification": {"configuration": {}}}, 400, "gpuSpecification.configuration"),
    ({"tags": ["not a tag"]}, 400, "tags[0]"),
    ({"unknown": 1}, 400, "unknown"),
)


async def test_what_cannot_run_is_refused(platform: Platform) -> None:
    for fields, status, field in REFUSED:
        wanted = {name: value for name, value in (body("bad") | fields).items() if value is not None}
        problem = await platform.call("POST", TASKS, wanted, expect=status)
        assert problem["field"] == field, problem
        several = await platform.call(
            "POST", f"{TASKS}/bulk", {"tasks": [body("bad"), wanted]}, expect=status
        )
        assert several["field"] == f"tasks[1].{field}"
    assert (await platform.call("GET", f"{TASKS}?name=bad"))["tasks"] == []


async def test_a_repeated_call_with_a_key_submits_one_task(platform: Platform) -> None:
    url, headers = platform.gateway.url + TASKS, {**platform.authorization(), "Idempotency-Key": "once"}
    found = set()
    for _ in range(3):
        async with platform.session.post(url, json=body("repeated"), headers=headers) as response:
            found.add(json.loads(await response.text())["task"]["id"])
    async with platform.session.post(url, json=body("repeated-otherwise"), headers=headers) as response:
        assert response.status == 422
    assert [each["id"] for each in (await platform.call("GET", f"{TASKS}?name=repeated"))["tasks"]] == list(
        found
    )


async def test_a_worker_needs_a_token_of_its_task(platform: Platform, tmp_path: Path) -> None:
    async with grpc.aio.insecure_channel(platform.gateway.grpc) as channel:
        stub = nvct_pb2_grpc.WorkerStub(channel)
        request = nvct_pb2.HeartbeatRequest(taskId=new_id(), instanceId="0-sr-x-task")
        for token in ("nothing", "a.b.c"):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.SendHeartbeat(request, metadata=[("authorization", f"Bearer {token}")])
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
