"""Engines and their command lines, paths that callers may use, error events, lines of logs."""

from __future__ import annotations

import json
import logging

import pytest

from nvcf_worker.errors import ConfigurationError
from nvcf_worker.run.llm.access import refusal
from nvcf_worker.run.llm.engines import ENGINES, engine_of, slots_in
from nvcf_worker.run.llm.events import error_event
from nvcf_worker.run.llm.output import parse
from nvcf_worker.run.llm.settings import settings


@pytest.mark.parametrize(
    ("command", "name", "slots"),
    [
        ("vllm serve m --max-num-seqs 64", "vllm", 64),
        ("python3 -m vllm.entrypoints.openai.api_server --max_num_seqs=7", "vllm", 7),
        ("python -m sglang.launch_server --max-running-requests 9", "sglang", 9),
        ("text-generation-launcher --model-id m", "tgi", None),
        ("trtllm-serve m --max_batch_size 16", "tensorrt-llm", 16),
        ("/opt/llama-server -m x -np 3", "llama.cpp", 3),
        ("llama-server --parallel auto", "llama.cpp", None),
        ("python server.py --parallel 3", "other", None),
    ],
)
def test_the_command_line_names_the_engine_and_its_slots(command: str, name: str, slots: int | None) -> None:
    words = command.split()
    assert engine_of(words).name == name
    assert slots_in(engine_of(words), words) == slots


def test_the_port_is_that_of_the_command_or_a_free_one() -> None:
    assert settings(None, ["vllm", "serve", "m", "--port", "81"], None, []).port == 81
    added = settings(None, ["vllm", "serve", "m"], None, [])
    assert added.command[-2:] == ("--port", str(added.port))
    placed = settings(None, ["sh", "run.sh", "{port}"], None, [])
    assert placed.command == ("sh", "run.sh", str(placed.port))
    assert settings(None, ["sh", "run.sh"], "nim", []).command == ("sh", "run.sh")
    attached = settings("http://[::1]:7", [], "vllm", ["a"])
    assert (attached.url, attached.models) == ("http://[::1]:7", ("a",))
    assert settings("engine", [], "sglang", []).port == ENGINES["sglang"].port


@pytest.mark.parametrize(
    ("url", "command", "engine"),
    [
        (None, [], None), ("http://a", ["vllm"], None), ("http://a/v1", [], None), ("https://a", [], None),
        ("http://a:99999", [], None), ("http://a", [], "gpt"), (None, ["vllm", "--port", "x"], None),
    ],
)  # fmt: skip
def test_wrong_settings_are_named(url: str | None, command: list[str], engine: str | None) -> None:
    with pytest.raises(ConfigurationError, match=r"--engine|--port"):
        settings(url, command, engine, [])


@pytest.mark.parametrize(
    ("path", "passes"),
    [
        ("/v1/chat/completions?x=1", True), ("/v1/models/org/name", True), ("/v1/responses", True),
        ("/v1/audio/transcriptions", True), ("/health", True), ("/slots", False),
        ("/v1/models/../slots", False),
        ("/v1/models/%2e%2e/slots", False), ("/v1//models", False), ("//v1/models", False),
        ("/v1/load_lora_adapter", False), ("/flush_cache", False), ("/v1/models/a/../../../slots", False),
    ],
)  # fmt: skip
def test_only_known_paths_reach_the_engine(path: str, passes: bool) -> None:
    refused = refusal("POST", path, frozenset())
    assert (refused is None) == passes
    if refused is not None:
        assert refused.status == 404
        assert json.loads(refused.body)["error"]["code"] == "unknown_url"


def test_an_opened_path_passes() -> None:
    assert refusal("GET", "/slots?model=a", frozenset(("/slots",))) is None


def test_the_error_event_has_the_form_of_its_route() -> None:
    chat = error_event("/v1/chat/completions?a", 3)
    assert json.loads(chat.removeprefix(b"data: "))["error"]["code"] == "engine_lost"
    first, second = error_event("/v1/responses", 3).decode().strip().split("\n")
    assert first == "event: error"
    assert json.loads(second.removeprefix("data: "))["sequence_number"] == 3


@pytest.mark.parametrize(
    ("line", "level", "text"),
    [
        ("0.03.051.623 W slot  release: id 3", logging.WARNING, "slot  release: id 3"),
        ("INFO 12-01 16:00:00 [api_server.py:1] up", logging.INFO, None),
        ("(EngineCore pid=1) ERROR 12-01 16:00:00 out of memory", logging.ERROR, None),
        ("[2026-12-01 16:00:00] WARNING: slow", logging.WARNING, None),
        ("Traceback (most recent call last):", logging.INFO, None),
    ],
)
def test_lines_have_levels(line: str, level: int, text: str | None) -> None:
    assert parse(line) == (level, text or line)
