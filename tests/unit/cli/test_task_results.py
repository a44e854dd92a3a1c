"""Which objects of an account the commands about a task's results touch."""

from __future__ import annotations

import uuid
from typing import Any, cast

import pytest

from nvcf_cli.api import Api
from nvcf_cli.task_results import remove, stored_files

TASK = {"id": "3b241101-e2bb-4255-8caf-4136c566a962", "resultHandlingStrategy": "UPLOAD"}


class StandInApi:
    """Stands in for the platform: it serves a list of results, and notes what is deleted."""

    def __init__(self, *files: dict[str, Any]) -> None:
        self.files = list(files)
        self.deleted: list[str] = []

    async def call(self, method: str, path: str) -> Any:
        if method == "DELETE":
            self.deleted.append(path)
        return {"files": self.files}


@pytest.mark.asyncio
async def test_ids_in_a_list_that_a_task_has_written_are_not_trusted() -> None:
    file = {"path": "a.bin", "size": 1, "sha256": "00", "assetId": "../functions/f/versions/v"}
    own = str(uuid.uuid5(uuid.UUID(TASK["id"]), "a.bin"))
    stand_in = StandInApi(file)
    api = cast(Api, stand_in)
    assert [each.asset_id for each in await stored_files(api, TASK)] == [own]
    await remove(api, TASK)
    assert stand_in.deleted == [f"/v2/nvcf/assets/{own}", f"/v2/nvcf/assets/{TASK['id']}"]
