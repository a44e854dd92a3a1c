"""The documentation is complete: alerts have runbook entries, exports are in the reference."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import nvcf_worker

ROOT = Path(__file__).resolve().parents[3]
DOCS = ROOT / "docs"


def headings(path: Path) -> list[str]:
    """Return the headings of a page, without code blocks."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"^#+ (.+)$", text, re.MULTILINE)


def test_each_alert_has_a_runbook_entry() -> None:
    rules = yaml.safe_load((ROOT / "otel" / "prometheus" / "alerts.yml").read_text(encoding="utf-8"))
    alerts = {rule["alert"] for group in rules["groups"] for rule in group["rules"]}
    entries = {each for each in headings(DOCS / "operate" / "runbook.md") if each.startswith("Nvcf")}
    assert entries == alerts


def test_each_export_is_in_the_reference() -> None:
    listed = set(
        re.findall(r"^::: nvcf_worker\.(\w+)$", (DOCS / "reference" / "api.md").read_text(), re.MULTILINE)
    )
    assert set(nvcf_worker.__all__) - listed == set()


@pytest.mark.parametrize("path", sorted(DOCS.rglob("*.md")), ids=lambda path: str(path.relative_to(DOCS)))
def test_prose_has_short_lines(path: Path) -> None:
    fenced = False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        fenced ^= line.startswith("```")
        if not fenced and not line.startswith(("|", "    ", "```", "<")):
            assert len(line) <= 140, f"{path.name}:{number} has {len(line)} characters"
