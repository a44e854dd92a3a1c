"""The `health` hook of handler classes: what counts as unhealthy."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest

from nvcf_worker.function.loading import Loading


async def run(job: Callable[[], Any]) -> Any:
    """Run a blocking step at once."""
    return job()


@pytest.mark.parametrize("value", [None, True, 1, object()])
async def test_an_object_is_healthy_unless_its_hook_says_otherwise(value: object) -> None:
    assert await _check(lambda: value) is None


@pytest.mark.parametrize("value", [False, 0, "", "the GPU is lost"])
async def test_false_and_a_text_are_unhealthy(value: object) -> None:
    assert await _check(lambda: value) == f"Model: health returned {value!r}"


async def test_an_exit_is_unhealthy_and_ends_nothing() -> None:
    assert await _check(lambda: sys.exit(7)) == "Model: health raised SystemExit: 7"


async def _check(health: Callable[[], object]) -> str | None:
    model = type("Model", (), {"health": staticmethod(health)})
    loading = Loading(model, "Model")
    await loading.begin(run)
    return await loading.check(run)
