"""Callers reach models, and nothing else of the server, however a path is written."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvcf_worker.run.tritonserver.access import refusal

ADMINISTRATION = re.compile(
    r"/v2(/repository(/[^/]+)?/(index|models/[^/]+/(load|unload))"
    r"|/(system|cuda)sharedmemory(/region/[^/]+)?/(status|register|unregister)"
    r"|(/models/[^/]+)?/trace/setting|/logging)"
)
"""The paths by which Triton changes itself, as it matches them: without decoding or shortening them."""
PIECES = (
    *(
        "v2",
        "repository",
        "index",
        "models",
        "m",
        "load",
        "systemsharedmemory",
        "region",
        "register",
        "trace",
    ),
    *("setting", "logging", "..", ".", "%2e%2e", "%2f..%2f..", "infer", "ready", "stats", ""),
)


@pytest.mark.parametrize(
    "path",
    [
        "/v2",
        "/v2/health/live",
        "/v2/models/stats",
        "/v2/models/bert",
        "/v2/models/bert/versions/3/config",
        "/v2/models/bert/infer?x=1",
        "/v2/models/a%20b/versions/1/generate_stream",
    ],
)
def test_models_are_open(path: str) -> None:
    assert refusal("POST", path, model_control=False) is None


@pytest.mark.parametrize(
    "path",
    [
        "/v2/repository/index",
        "/v2/repository/../index",
        "/v2/repository/%2e%2e/models/bert/unload",
        "/v2/systemsharedmemory/region/%2e%2e%2f%2e%2e%2f%2e%2e/register",
        "/v2/systemsharedmemory/status",
        "/v2/models/%2e%2e%2flogging/infer",
        "/v2/models/bert/trace/setting",
        "/v2/logging#/../models/bert/infer",
        "//v2/logging",
        "/",
    ],
)
def test_the_rest_is_closed(path: str) -> None:
    reason = refusal("POST", path, model_control=False)
    assert reason is not None
    assert reason.startswith("Callers may not use POST /")
    assert "--allow-model-control" in reason


@given(st.lists(st.sampled_from(PIECES), min_size=2, max_size=7))
def test_no_path_to_the_administration_is_open(pieces: list[str]) -> None:
    path = "/" + "/".join(pieces)

    if ADMINISTRATION.fullmatch(path):
        assert refusal("POST", path, model_control=False) is not None


def test_model_control_opens_the_repository_alone() -> None:
    assert refusal("POST", "/v2/repository/models/bert/load", model_control=True) is None
    assert refusal("POST", "/v2/repository/index", model_control=True) is None
    assert refusal("POST", "/v2/repository/../index", model_control=True) is not None
    assert refusal("POST", "/v2/logging", model_control=True) is not None
