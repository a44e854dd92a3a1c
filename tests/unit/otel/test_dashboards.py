"""Dashboards and rules: as generated, and about metrics that somebody exports."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from nvcf_cli.local.scrape import write_scrape_files
from nvcf_cli.local.state import Installation
from nvcf_otel import instruments
from nvcf_otel.dashboards import __main__ as generator
from nvcf_otel.dashboards import promql
from nvcf_otel.dashboards.alerts import RUNBOOK, with_runbook
from nvcf_otel.instruments import Kind
from tests.support.otlp.queries import panel_queries, substituted

ROOT = Path(__file__).resolve().parents[3] / "otel"
BOARDS = sorted((ROOT / "dashboards").glob("*.json"))
RULES = sorted((ROOT / "prometheus").glob("*.yml"))
RULE_TESTS = sorted((ROOT / "prometheus" / "tests").glob("*.yml"))
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="promtool is missing: apt-get install prometheus (Debian)"
)
_RECORDED = re.compile(r"\b[a-z]+:[a-z0-9_]+:[a-z0-9_]+\b")
_METRIC = re.compile(r"\b(?:nvcf|http|hw|process|gen_ai|nv_inference)_[a-z0-9_]+\b")


def exported() -> set[str]:
    """Names under which instruments reach Prometheus."""
    found = set()
    for each in instruments.ALL:
        name = each.prometheus_name
        histogram = each.kind is Kind.HISTOGRAM
        found |= {name + suffix for suffix in ("_bucket", "_count", "_sum")} if histogram else {name}
    return found


def metrics_in(query: str) -> set[str]:
    """Metric names in a query; label names stand in braces or after by, on and group_left."""
    bare = re.sub(r"\{[^}]*\}|\b(?:by|on|group_left)\s*\([^)]*\)", " ", query)
    return set(_METRIC.findall(bare))


def labels_in(query: str) -> set[str]:
    """Label names in a query."""
    inside = re.findall(r"\{([^}]*)\}", query)
    found = {name for part in inside for name in re.findall(r"([a-z0-9_]+)\s*(?:=~|!~|!=|=)", part)}
    for part in re.findall(r"\b(?:by|on|group_left)\s*\(([^)]*)\)", query):
        found |= {name.strip() for name in part.split(",") if name.strip()}
    return found


def test_regenerating_gives_the_same_dashboards() -> None:
    assert {file.name for file in BOARDS} == set(generator.documents())
    for name, text in generator.documents().items():
        assert (ROOT / "dashboards" / name).read_text() == text, "run: python -m nvcf_otel.dashboards"


@pytest.mark.parametrize("board", BOARDS, ids=lambda file: file.stem)
def test_queries_are_about_metrics_and_labels_that_are_exported(board: Path) -> None:
    queries = list(panel_queries(json.loads(board.read_text())))
    assert len(queries) > 15
    labels = {promql.label(name) for each in instruments.ALL for name in each.attributes}
    for panel, query in queries:
        assert metrics_in(query), (panel, query)
        assert metrics_in(query) <= exported(), (panel, query)
        assert labels_in(query) <= labels | {"le", "job", "instance"}, (panel, query)


@pytest.mark.parametrize("board", BOARDS, ids=lambda file: file.stem)
def test_panels_have_titles_descriptions_and_places_of_their_own(board: Path) -> None:
    panels = json.loads(board.read_text())["panels"]
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
        assert panel["title"]
        if panel["type"] != "row":
            assert panel["description"].endswith("."), panel["title"]


def test_dashboards_have_ids_of_their_own_and_let_one_choose_the_data_source() -> None:
    documents = [json.loads(file.read_text()) for file in BOARDS]
    assert len({each["uid"] for each in documents}) == len(documents)
    for each in documents:
        variables = {variable["name"]: variable for variable in each["templating"]["list"]}
        assert variables["datasource"]["query"] == "prometheus"
        assert "id" not in each or each["id"] is None


@needs_promtool
def test_every_query_is_promql(tmp_path: Path) -> None:
    rules = [
        {"record": f"query:number{number}", "expr": substituted(query)}
        for number, (_, query) in enumerate(all_queries())
    ]
    file = tmp_path / "queries.json"
    file.write_text(json.dumps({"groups": [{"name": "queries", "rules": rules}]}))
    run_promtool("check", "rules", str(file))


@needs_promtool
def test_the_configuration_that_nvcf_up_writes_is_one(tmp_path: Path) -> None:
    installation = Installation(tmp_path)
    write_scrape_files(installation, {"gateway": "127.0.0.1:1", "agent-local-2": "127.0.0.1:2"})
    run_promtool("check", "config", str(installation.prometheus))


@needs_promtool
def test_rules_are_valid_and_do_what_their_tests_say() -> None:
    run_promtool("check", "rules", *map(str, RULES))
    run_promtool("test", "rules", *map(str, RULE_TESTS))


def test_rules_are_about_metrics_that_are_exported_and_every_alert_has_a_test() -> None:
    rules = [rule for file in RULES for rule in rules_of(file)]
    recorded = {rule["record"] for rule in rules if "record" in rule}
    labels = {promql.label(name) for each in instruments.ALL for name in each.attributes}
    for rule in rules:
        expression = rule["expr"]
        assert set(_RECORDED.findall(expression)) <= recorded, expression
        assert metrics_in(_RECORDED.sub(" ", expression)) <= exported(), expression
        assert labels_in(expression) <= labels | {"le", "job", "instance"}, expression
    cases = [case for file in RULE_TESTS for case in yaml.safe_load(file.read_text())["tests"]]
    checks = [check for case in cases for check in case.get("alert_rule_test", ())]
    for name in (rule["alert"] for rule in rules if "alert" in rule):
        assert any(check["alertname"] == name and check["exp_alerts"] for check in checks), (
            f"{name} never fires"
        )


def test_every_alert_links_to_its_section_of_the_runbook() -> None:
    text = generator.ALERTS.read_text()
    assert with_runbook(text) == text, "run: python -m nvcf_otel.dashboards"
    moved = yaml.safe_load(with_runbook(text, "https://wiki.example/runbook"))
    for group, page in (
        (rules_of(generator.ALERTS), RUNBOOK),
        (rules_in(moved), "https://wiki.example/runbook"),
    ):
        assert len(group) > 10
        for rule in group:
            assert rule["annotations"]["runbook_url"] == f"{page}#{rule['alert'].lower()}"
    headings = re.findall(r"^#+ (Nvcf\w+)$", (ROOT.parent / RUNBOOK).read_text(), re.MULTILINE)
    assert {rule["alert"] for rule in rules_of(generator.ALERTS)} == set(headings)


@needs_promtool
def test_generated_alerts_with_another_runbook_are_valid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["dashboards", str(tmp_path), "--runbook", "https://wiki.example/page"])
    assert generator.main() == 0
    assert {file.name for file in tmp_path.iterdir()} == {*generator.documents(), "alerts.yml"}
    run_promtool("check", "rules", str(tmp_path / "alerts.yml"))


def all_queries() -> list[tuple[str, str]]:
    """Panels and queries of all dashboards."""
    return [each for file in BOARDS for each in panel_queries(json.loads(file.read_text()))]


def rules_of(file: Path) -> list[dict[str, Any]]:
    """The rules of a file."""
    return rules_in(yaml.safe_load(file.read_text()))


def rules_in(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The rules of a document with groups."""
    return [rule for group in document["groups"] for rule in group["rules"]]


def run_promtool(*arguments: str) -> None:
    """Raises AssertionError with what it says."""
    assert PROMTOOL is not None
    ran = subprocess.run([PROMTOOL, *arguments], capture_output=True, text=True, check=False, timeout=100)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_counters_gauges_and_histograms_are_told_apart() -> None:
    assert (
        promql.rate("nvcf.scaling.decisions") == "sum (rate(nvcf_scaling_decisions_total[$__rate_interval]))"
    )
    assert "nvcf_invocation_duration_seconds_count" in promql.rate("nvcf.invocation.duration")
    with pytest.raises(ValueError, match="no histogram"):
        promql.mean("nvcf.queue.depth")
    with pytest.raises(KeyError):
        promql.total("nvcf.unknown")


def test_a_query_of_a_recorded_document() -> None:
    document: dict[str, Any] = {"panels": [{"title": "a", "targets": [{"expr": "up"}]}, {"type": "row"}]}
    assert list(panel_queries(document)) == [("a", "up")]
    assert substituted('x{a=~"$version"}[$__rate_interval] * $price') == 'x{a=~".*"}[1m] * 2'
