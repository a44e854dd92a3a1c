"""Damaged input everywhere: refused, never a crash, never an HTTP 500. The long form is `make fuzz`."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.fuzz.listeners import DOORS, attack
from tests.fuzz.parsers import PARSERS, Parser, fuzz
from tests.fuzz.scene import Scene, scene

SEED = 4
INPUTS = 1500
SECONDS = 0.8


@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.name)
def test_a_parser_takes_or_refuses(parser: Parser) -> None:
    assert fuzz(parser, INPUTS, SEED) == []


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def found(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    async with scene(tmp_path_factory.mktemp("fuzz"), SEED) as running:
        yield running


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.xdist_group("fuzz")
@pytest.mark.parametrize("door", DOORS)
async def test_a_door_stands(found: Scene, door: str) -> None:
    report = await attack(found, door, INPUTS, SECONDS)
    assert report.sent > 0
    assert report.faults == []
