"""Rendered text becomes objects, whatever it is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvcf_agent.kubernetes.helm.errors import ChartError
from nvcf_agent.kubernetes.helm.manifests import parse_manifests


def test_documents_and_lists_become_objects() -> None:
    text = """
---
# Source: a
kind: ConfigMap
---
apiVersion: v1
kind: List
items:
- kind: Secret
- kind: Service
---
"""
    assert [each["kind"] for each in parse_manifests(text)] == ["ConfigMap", "Secret", "Service"]


def test_values_are_read_as_kubernetes_reads_them() -> None:
    [found] = parse_manifests("{a: 22:22, b: 2001-01-01, c: 0x10, d: 1e3, e: yes, f: ~, g: '1', 1: x}")
    assert found == {
        "a": "22:22", "b": "2001-01-01", "c": 16, "d": "1e3", "e": True, "f": None, "g": "1", 1: "x",
    }  # fmt: skip


@pytest.mark.parametrize("text", ["- " * 200_000, "[" * 1000 + "]" * 1000, "--- a\n" * 2000])
def test_what_would_end_the_agent_is_refused(text: str) -> None:
    with pytest.raises(ChartError, match="too many or too deeply nested"):
        parse_manifests(text)


def test_merged_mappings_cannot_grow_without_end() -> None:
    lines = ["a0: &a0 {" + ", ".join(f"k{n}: 1" for n in range(10)) + "}"]
    lines += [f"a{n}: &a{n}\n  <<: [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    with pytest.raises(ChartError, match="more than 1000 entries"):
        parse_manifests("\n".join(lines))


@pytest.mark.parametrize("text", ["a: [", "a: !!python/object:os.system x", "a: *b", "\x00"])
def test_what_is_no_yaml_is_refused(text: str) -> None:
    with pytest.raises(ChartError, match="not YAML"):
        parse_manifests(text)


@given(st.text(alphabet="ab:-[]{}&*<>!|'\"\n #?,%@~01", max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        parse_manifests(text)
    except ChartError as error:
        refused = str(error)
    else:
        refused = "no"
    assert refused
