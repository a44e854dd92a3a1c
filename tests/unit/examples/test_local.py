"""How the demo shows the platform's logs."""

from __future__ import annotations

import pytest
from examples.demo.local import readable


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (
            '{"time": "2026-11-24T06:41:42.488Z", "level": "WARNING", "message": "no broker", "logger": "x"}',
            "06:41:42 warning no broker",
        ),
        ("[26283] Server is ready", "[26283] Server is ready"),
        ('{"message": "no time"}', '{"message": "no time"}'),
        ('{"time": 3, "level": "info", "message": ""}', '{"time": 3, "level": "info", "message": ""}'),
        ("[1]", "[1]"),
        ("", ""),
    ],
)
def test_log_lines_are_made_readable(line: str, shown: str) -> None:
    assert readable(line) == shown
