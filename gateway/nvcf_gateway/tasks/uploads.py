"""Results of tasks in the platform's own store (protocol.md, section 12.7): they are assets of the account.

So quota, life and download are those of assets. The id of a file follows from task and path: another run of
the task replaces it. The asset with the task's own id is the list of the files, which the worker writes.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated

from aiohttp import web
from msgspec import Meta

from nvcf_gateway.access.authorization import bearer_token
from nvcf_gateway.access.task_access import TaskAccess
from nvcf_gateway.errors import HttpProblem
from nvcf_gateway.http.bodies import read_record
from nvcf_gateway.http.responses import json_response
from nvcf_gateway.http.routing import Route
from nvcf_gateway.management.routes import with_problems
from nvcf_gateway.objects.assets import Assets
from nvcf_proto import tasks
from nvcf_proto.models import ResultHandling
from nvcf_proto.models.record import Record

PATH = "/v1/nvct/uploads/{task_id}"
_FILE, _LIST = "application/octet-stream", "application/json"


class ResultFile(Record, frozen=True, forbid_unknown_fields=True):
    """A file that is to be uploaded: its path below the results; the empty one is the list of files."""

    path: Annotated[str, Meta(max_length=4096)]


@dataclass(frozen=True)
class TaskUploads:
    """Handler of the calls of tasks' workers. `refresh` brings the newest record of a task."""

    access: TaskAccess
    assets: Assets
    refresh: Callable[[str], Awaitable[None]]
    clock: Callable[[], float] = time.time

    def routes(self) -> list[Route]:
        """Return the only route."""
        return [("POST", PATH, with_problems(self.announce))]

    async def announce(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle POST /v1/nvct/uploads/{taskId}: return where a file of the results is uploaded."""
        now = self.clock()
        token = bearer_token(request.headers)
        task = await self.access.authorize(token, values["task_id"], now, self.refresh)
        if task.result_handling_strategy is not ResultHandling.UPLOAD or task.results_location is not None:
            raise HttpProblem(403, "the results of this task are not uploaded to the platform")
        if tasks.is_gone(task, now):
            raise HttpProblem(412, f"the task is {task.status}")
        path = (await read_record(request, ResultFile)).path
        asset_id = str(uuid.uuid5(uuid.UUID(task.id), path)) if path else task.id
        url = await self.assets.announce(
            task.nca_id, asset_id, _FILE if path else _LIST, f"result of task {task.id}: {path}"[:1024]
        )
        return json_response(200, {"assetId": asset_id, "uploadUrl": url})
