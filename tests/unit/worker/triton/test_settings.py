"""Flags of `nvcf-worker triton` become settings, or an error that names the flag."""

from __future__ import annotations

import pytest

from nvcf_worker.errors import ConfigurationError
from nvcf_worker.run.tritonserver.settings import attached, choices


def test_a_model_is_named_once() -> None:
    assert [each.version for each in choices(["a:1", "b"], [])] == ["1", None]
    with pytest.raises(ConfigurationError, match="--model a:2: a is given twice"):
        choices(["a:1", "a:2"], [])


def test_a_server_of_somebody_else_has_an_address() -> None:
    assert attached("http://[::1]:8000", None, ()).url == "http://[::1]:8000"
    assert attached("triton", None, ()).url == "http://triton:8000"
    with pytest.raises(ConfigurationError, match="--url https://triton"):
        attached("https://triton", None, ())
