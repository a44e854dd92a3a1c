"""A2, A9, A18: the short form of `make soak`: what keyed calls leave behind goes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soak import run as soak


@pytest.mark.timeout(300)
async def test_stores_and_processes_come_back(tmp_path: Path) -> None:
    report = await soak.run(tmp_path, 300, functions=2, keys=2, callers=8, life=5)
    assert report.failed == 0
    top = {name: messages for name, (messages, _) in report.top.streams.items()}
    after = {name: messages for name, (messages, _) in report.after.streams.items()}
    assert top["KV_nvcf_idempotency"] > 0
    assert top["requestToFunctionVersion_local"] == top["nvcf_tracking_local"] == 0
    for name in ("KV_nvcf_idempotency", "OBJ_nvcf_results_local", "requestToFunctionVersion_local"):
        assert after[name] == 0, report.table()
    assert "rq_R_V (all)" not in after, report.table()
    for name, (_, descriptors) in report.after.processes.items():
        assert descriptors <= report.before.processes[name][1] + 20, report.table()
