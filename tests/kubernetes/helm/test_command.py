"""The real helm as a child process: what it renders, and what a chart cannot make it do."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from nvcf_agent.errors import AgentError
from nvcf_agent.kubernetes.helm.command import Helm, Release
from nvcf_agent.kubernetes.helm.errors import ChartError, ChartUnavailable
from nvcf_agent.kubernetes.helm.manifests import parse_manifests
from nvcf_proto.charts.policy import Policy
from nvcf_proto.charts.rules import Target, check_chart
from tests.kubernetes.cluster import programs
from tests.support.charts import example_chart, pack
from tests.support.waiting import eventually

RELEASE = Release("function", "sr-1", {"name": "x"}, "v1.35.4", ("example.com/v1",))
ENDLESS = "{{ range until 100000 }}{{ range until 100000 }}{{ end }}{{ end }}"


@pytest.fixture(scope="module")
def helm() -> Helm:
    """The program."""
    return Helm(str(programs.find(programs.TOOLS)["helm"]))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where calls make their folders; nothing may be left in it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield tmp_path
    assert not list(tmp_path.iterdir())


async def test_the_example_is_rendered_and_keeps_the_rules(helm: Helm) -> None:
    await helm.check()
    release = Release("function", "sr-1", {"replicas": 2, "gpus": 1})
    objects = parse_manifests(await helm.template(example_chart(), release))
    found = check_chart(objects, Policy(), Target("words", 8000, "sr-1", 2))
    assert [each["kind"] for each in found.objects] == ["ConfigMap", "Service", "Deployment"]
    assert not found.notes


async def test_a_chart_sees_its_release_and_the_cluster(helm: Helm) -> None:
    text = "{{ .Release.Name }} {{ .Release.Namespace }} {{ .Values.name }} {{ .Capabilities.KubeVersion }}"
    text = f'a: {text} {{{{ .Capabilities.APIVersions.Has "example.com/v1" }}}}'
    [found] = parse_manifests(await helm.template(pack({"templates/a.yaml": text}), RELEASE))
    assert found == {"a": "function sr-1 x v1.35.4 true"}


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"templates/a.yaml": "{{ .Values.x.y.z }}"}, "nil pointer evaluating"),
        ({"templates/a.yaml": "{{ fail `choose a model` }}"}, "choose a model"),
        ({"templates/a.yaml": "a: ["}, "YAML parse error on chart/templates/a.yaml"),
        ({"templates/a.yaml": '{{ env "HOME" }}'}, 'function "env" not defined'),
        ({"values.schema.json": '{"required": ["model"]}'}, "missing property 'model'"),
        ({"Chart.yaml": "name: chart\n"}, "chart.metadata.version is required"),
    ],
)
async def test_what_is_wrong_with_a_chart_is_said_in_helms_words(
    helm: Helm, files: dict[str, str], reason: str
) -> None:
    with pytest.raises(ChartError) as caught:
        await helm.template(pack(files), RELEASE)
    assert reason in str(caught.value)
    assert "/nvcf-helm-" not in str(caught.value)
    assert "--debug" not in str(caught.value)


async def test_what_is_no_chart_is_refused(helm: Helm) -> None:
    with pytest.raises(ChartError, match="gzip"):
        await helm.template(b"no archive", RELEASE)


async def test_a_chart_reads_nothing_of_the_agents_machine(
    helm: Helm, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.setenv("KUBECONFIG", "/somewhere")
    text = """
a: {{ .Files.Get "../../../../../../etc/hostname" | quote }}
b: {{ lookup "v1" "Secret" "default" "x" | toJson }}
c: {{ getHostByName "localhost" | quote }}
"""
    [found] = parse_manifests(await helm.template(pack({"templates/a.yaml": text}), RELEASE))
    assert found == {"a": "", "b": {}, "c": ""}


async def test_a_chart_that_renders_without_end_is_stopped(helm: Helm) -> None:
    quick = Helm(helm.program, seconds=1.0)
    with pytest.raises(ChartError, match="took longer than 1 s"):
        await quick.template(pack({"templates/a.yaml": ENDLESS * 20}), RELEASE)
    assert not _children()


async def test_a_chart_that_writes_without_end_is_stopped(helm: Helm) -> None:
    long = pack({"templates/a.yaml": "a: {{ repeat 9000000 `x` }}"})
    with pytest.raises(ChartError, match="renders more than 8 MiB"):
        await helm.template(long, RELEASE)
    assert not _children()


async def test_a_chart_that_takes_all_memory_is_stopped(helm: Helm) -> None:
    text = "{{ $a := repeat 1000000 `abcdefgh` }}{{ range until 10000 }}{{ $a = cat $a $a }}{{ end }}"
    with pytest.raises(ChartError, match="more than 2 GiB to render"):
        await helm.template(pack({"templates/a.yaml": text}), RELEASE)


async def test_a_cancelled_call_leaves_no_process(helm: Helm) -> None:
    call = asyncio.create_task(helm.template(pack({"templates/a.yaml": ENDLESS * 20}), RELEASE))
    await eventually(_children, "helm runs")
    call.cancel()
    await asyncio.wait({call})
    assert call.cancelled()
    assert not _children()


async def test_a_program_that_is_no_helm_4_is_named(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ChartUnavailable, match="cannot start /nowhere/helm"):
        await Helm("/nowhere/helm").check()
    with pytest.raises(AgentError, match=r"/bin/echo is helm version .* version 4 is needed"):
        await Helm("/bin/echo").check()


def _children() -> list[str]:
    found = psutil.Process(os.getpid()).children()
    return [each.name() for each in found if each.name().startswith("helm")]
