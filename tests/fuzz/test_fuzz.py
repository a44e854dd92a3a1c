"""Damaged input is refused, without a crash or an HTTP 500. The long form is `make fuzz`."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.fuzz.listeners import LISTENERS, attack
from tests.fuzz.parsers import PARSERS, Parser, fuzz
from tests.fuzz.target import Target, running_target

SEED = 4
INPUTS = 1500
SECONDS = 0.8


@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.name)
def test_parser_accepts_or_refuses(parser: Parser) -> None:
    assert fuzz(parser, INPUTS, SEED) == []


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def target(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Target]:
    async with running_target(tmp_path_factory.mktemp("fuzz"), SEED) as running:
        yield running


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.xdist_group("fuzz")
@pytest.mark.parametrize("listener", LISTENERS)
async def test_listener_survives(target: Target, listener: str) -> None:
    report = await attack(target, listener, INPUTS, SECONDS)
    assert report.sent > 0
    assert report.faults == []
