"""What an agent believes of a worker's exit reason."""

import os
from pathlib import Path

import pytest

from nvcf_agent.backends.exit_reason import FILE, ExitReason, explained, forget_exit_reason, read_exit_reason
from nvcf_agent.state.managed_instance import Category

UNHEALTHY = ExitReason(3, "unhealthy", "slots are lost")


@pytest.mark.parametrize(
    ("category", "code", "reason", "expected"),
    [
        (Category.CRASH, 3, UNHEALTHY, (Category.UNHEALTHY, "slots are lost (how)")),
        (Category.CRASH, 3, ExitReason(3, "fatal", "x"), (Category.UNHEALTHY, "x (how)")),
        (Category.CRASH, 1, ExitReason(1, "startup", "no model"), (Category.CRASH, "no model (how)")),
        (Category.CRASH, -9, UNHEALTHY, (Category.CRASH, "how")),
        (Category.CRASH, 0, ExitReason(0, "drained", "x"), (Category.CRASH, "how")),
        (Category.OUT_OF_MEMORY, 3, UNHEALTHY, (Category.OUT_OF_MEMORY, "how")),
        (Category.CRASH, 3, None, (Category.CRASH, "how")),
    ],
)
def test_a_reason_counts_only_for_its_exit_code(
    category: Category, code: int, reason: ExitReason | None, expected: tuple[Category, str]
) -> None:
    assert explained(category, "how", code, reason) == expected


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"3", b'{"code": 3}', b"[" * 60_000, b'{"code":"3","category":1,"text":2}']
)
def test_nonsense_is_no_reason(content: bytes, tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(content)
    assert read_exit_reason(tmp_path) is None


def test_only_a_plain_file_is_read(tmp_path: Path) -> None:
    assert read_exit_reason(tmp_path) is None
    good = b'{"code": 3, "category": "unhealthy", "text": "slots\\nare lost"}'
    (tmp_path / FILE).write_bytes(good)
    assert read_exit_reason(tmp_path) == UNHEALTHY
    forget_exit_reason(tmp_path)
    os.mkfifo(tmp_path / FILE)
    assert read_exit_reason(tmp_path) is None
    forget_exit_reason(tmp_path)
    (tmp_path / "other").write_bytes(good)
    (tmp_path / FILE).symlink_to(tmp_path / "other")
    assert read_exit_reason(tmp_path) is None
