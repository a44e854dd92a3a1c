"""Where the worker of an image is, by the image's label in its registry."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from nvcf_agent.backends.environment import InstanceSpec
from nvcf_agent.kubernetes.helm.fetch import Fetcher, FetchSettings
from nvcf_agent.kubernetes.pods.render import render
from nvcf_agent.kubernetes.worker_modes import LABEL, WorkerModes, basic_logins, image_source, mode_of
from nvcf_proto.models.containers import WorkerMode
from tests.support.charts import ChartRegistry, chart_registry
from tests.unit.agent.kubernetes.pods import SETTINGS, logins, spec

LOGIN = "dTpw"
"""What the account's logins of these tests are."""
LIBRARY = json.dumps({"config": {"Labels": {LABEL: "library"}}}).encode()


def modes_of(registry: ChartRegistry, said: list[str]) -> WorkerModes:
    hosts = frozenset((registry.host,))
    fetcher = Fetcher(FetchSettings(private=hosts, plain=hosts))
    return WorkerModes(fetcher, lambda _, text: said.append(text))


def of_image(registry: ChartRegistry, name: str, mode: WorkerMode | None = None) -> InstanceSpec:
    variables = {"CONTAINER_REGISTRIES_CREDENTIALS": logins(registry.host)}
    return spec(container_image=f"{registry.host}/own/{name}", variables=variables, worker_mode=mode)


async def found(modes: WorkerModes, wanted: InstanceSpec) -> str | None:
    return (await modes.completed(wanted)).order.launch_specification.worker_mode


@pytest.mark.parametrize("login", [None, LOGIN])
async def test_the_label_says_whether_the_worker_is_in_the_image(login: str | None) -> None:
    said: list[str] = []
    async with chart_registry({}, login) as registry:
        registry.images = {
            "own/words:1": LIBRARY,
            "own/server:1": json.dumps({"config": {"Labels": None}}).encode(),
            "own/odd:1": json.dumps({"config": {"Labels": {LABEL: "other"}}}).encode(),
        }
        modes = modes_of(registry, said)
        words = of_image(registry, "words:1")
        assert await found(modes, words) is WorkerMode.LIBRARY
        for name in ("server:1", "odd:1"):
            assert await found(modes, of_image(registry, name)) is WorkerMode.SIDECAR
        asked = len(registry.seen)
        pod = render(await modes.completed(words), SETTINGS).pod
        assert [each["name"] for each in pod["spec"]["containers"]] == ["inference"]
        assert len(registry.seen) == asked, "it is known for a while"
        assert not said


async def test_a_registry_that_cannot_be_read_makes_it_a_sidecar_and_is_told_once() -> None:
    said: list[str] = []
    async with chart_registry({}, "another") as registry:
        registry.images = {"own/words:1": LIBRARY}
        modes = modes_of(registry, said)
        for _ in range(2):
            assert await found(modes, of_image(registry, "words:1")) is WorkerMode.SIDECAR
        (text,) = said
        assert "refuses the image: add or renew the account's login" in text
        seen = len(registry.seen)
        told = of_image(registry, "other:1", WorkerMode.LIBRARY)
        assert await found(modes, told) is WorkerMode.LIBRARY
        assert len(registry.seen) == seen, "what the record says holds"


async def test_what_one_account_cannot_read_says_nothing_to_another_and_little_later() -> None:
    said: list[str] = []
    now = 0.0
    async with chart_registry({}, LOGIN) as registry:
        registry.images = {"own/words:1": LIBRARY}
        hosts = frozenset((registry.host,))
        modes = WorkerModes(
            Fetcher(FetchSettings(private=hosts, plain=hosts)), lambda _, text: said.append(text), lambda: now
        )
        owner = of_image(registry, "words:1")
        stranger = replace(owner, order=spec(container_image=f"{registry.host}/own/words:1").order)
        stranger = replace(stranger, order=stranger.order.replace(nca_id="another"))
        assert await found(modes, stranger) is WorkerMode.SIDECAR
        assert await found(modes, owner) is WorkerMode.LIBRARY
        registry.login = None
        assert await found(modes, stranger) is WorkerMode.SIDECAR
        now = 31.0
        assert await found(modes, stranger) is WorkerMode.LIBRARY
        assert len(said) == 1


@pytest.mark.parametrize(
    "manifest",
    [
        b"[" * 100_000,
        b'{"manifests": [5, null, {"platform": "linux"}, {"platform": {"os": ["linux"]}, "digest": {}}]}',
        b'{"manifests": {}, "config": []}',
        b'{"config": {"digest": 5}}',
        b"\xff",
    ],
)
async def test_no_answer_of_a_registry_ends_the_agent(manifest: bytes) -> None:
    said: list[str] = []
    async with chart_registry({}) as registry:
        registry.manifest = manifest
        assert await found(modes_of(registry, said), of_image(registry, "words:1")) is WorkerMode.SIDECAR
        assert len(said) == 1


def test_no_configuration_of_an_image_ends_the_agent() -> None:
    for config in (b"[" * 100_000, b"[]", b"\xff", b'{"config": {"Labels": []}}', b'{"config": 5}'):
        assert mode_of(config) is WorkerMode.SIDECAR


@pytest.mark.parametrize(
    ("image", "host", "repository", "reference"),
    [
        ("nginx", "registry-1.docker.io", "library/nginx", "latest"),
        ("docker.io/own/words:1", "registry-1.docker.io", "own/words", "1"),
        ("own/words:1@sha256:ab", "registry-1.docker.io", "own/words", "sha256:ab"),
        ("registry.example:5000/a/b/c:1.2", "registry.example:5000", "a/b/c", "1.2"),
        ("localhost/a", "localhost", "a", "latest"),
    ],
)
def test_where_an_image_is(image: str, host: str, repository: str, reference: str) -> None:
    source = image_source(image)
    assert (source.host, source.repository, source.reference) == (host, repository, reference)


def test_the_hubs_login_goes_to_its_registry() -> None:
    auths = {"https://index.docker.io/v1/": {"auth": "a"}, "other.example": {"auth": "b"}}
    assert basic_logins("own/words:1", (auths,)) == {"registry-1.docker.io": "a"}
