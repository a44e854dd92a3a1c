"""The informer, at a real API server that is slow, silent, away, and back again."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from nvcf_agent.kubernetes.client.api import Api, Object
from nvcf_agent.kubernetes.client.informer import Informer
from nvcf_agent.kubernetes.client.kinds import CONFIG_MAP, ICMS_REQUEST
from tests.kubernetes.cluster.clusters import api_server
from tests.kubernetes.frozen_relay import FrozenRelay
from tests.support.waiting import eventually


class Seen:
    """An informer's calls, as names with what was and what is."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str | None, str | None]] = []

    def __call__(self, old: Object | None, new: Object | None) -> None:
        name = (new or old or {})["metadata"]["name"]
        self.calls.append((name, _data(old), _data(new)))


def _data(item: Object | None) -> str | None:
    return None if item is None else str(item["data"]["a"])


@asynccontextmanager
async def running(informer: Informer) -> AsyncIterator[None]:
    task = asyncio.create_task(informer.run())
    try:
        async with asyncio.timeout(60):
            await informer.synced.wait()
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
    assert task.cancelled()


async def put(api: Api, namespace: str, name: str, value: str, **labels: str) -> None:
    metadata = {"name": name, "namespace": namespace, "labels": labels}
    await api.apply(CONFIG_MAP, {"metadata": metadata, "data": {"a": value}})


async def test_all_changes_are_seen_across_many_watches(api: Api, namespace: str) -> None:
    seen = Seen()
    await put(api, namespace, "old", "1", of="us")
    await put(api, namespace, "foreign", "1", of="them")
    informer = Informer(
        api, CONFIG_MAP, namespace=namespace, labels="of=us", on_change=seen, watch_seconds=1, slack_seconds=5
    )
    async with running(informer):
        expected: list[tuple[str, str | None, str | None]] = [("old", None, "1")]
        for number in range(2, 7):
            await put(api, namespace, "new", str(number), of="us")
            expected.append(("new", None if number == 2 else str(number - 1), str(number)))
            await eventually(
                lambda: seen.calls == expected, "the change is seen", story=lambda: str(seen.calls)
            )
            # Longer than a watch, so that each change comes in another one.
            began = informer.heard_at
            await eventually(lambda: informer.heard_at >= began + 1.0, "a watch has ended")  # noqa: B023
        assert informer.objects[namespace, "new"]["data"] == {"a": "6"}
        assert "managedFields" not in informer.objects[namespace, "new"]["metadata"]
        await put(api, namespace, "old", "1", of="them")
        await api.delete(CONFIG_MAP, "new", namespace)
        expected += [("old", "1", None), ("new", "6", None)]
        await eventually(lambda: seen.calls == expected, "both are gone", story=lambda: str(seen.calls))
        assert not informer.objects


async def test_a_silent_connection_is_noticed_and_replaced(
    api: Api, frozen: FrozenRelay, namespace: str
) -> None:
    seen = Seen()
    async with await Api.open(str(frozen.kubeconfig)) as through:
        informer = Informer(
            through,
            CONFIG_MAP,
            namespace=namespace,
            labels="of=us",
            on_change=seen,
            watch_seconds=2,
            slack_seconds=1,
        )
        async with running(informer):
            await put(api, namespace, "one", "1", of="us")
            await eventually(lambda: seen.calls, "the watch works")
            frozen.freeze()
            # New connections pass; that of the watch stays open, and nothing says that it is dead.
            frozen.start()
            await put(api, namespace, "one", "2", of="us")
            await eventually(lambda: len(seen.calls) == 2, "the change is seen", timeout=30)
            assert seen.calls[-1] == ("one", "1", "2")


async def test_what_happened_while_no_watch_was_open_is_seen(
    api: Api, frozen: FrozenRelay, namespace: str
) -> None:
    seen = Seen()
    for name in ("kept", "changed", "deleted", "replaced"):
        await put(api, namespace, name, "1", of="us")
    async with await Api.open(str(frozen.kubeconfig)) as through:
        informer = Informer(through, CONFIG_MAP, namespace=namespace, labels="of=us", on_change=seen)
        async with running(informer):
            frozen.end()
            seen.calls.clear()
            await put(api, namespace, "changed", "2", of="us")
            await api.delete(CONFIG_MAP, "deleted", namespace)
            await api.delete(CONFIG_MAP, "replaced", namespace)
            await put(api, namespace, "replaced", "2", of="us")
            await put(api, namespace, "new", "1", of="us")
            frozen.start()
            await eventually(lambda: ("new", None, "1") in seen.calls, "the list is read again")
            assert sorted(seen.calls, key=str) == sorted(
                [
                    ("changed", "1", "2"),
                    ("deleted", "1", None),
                    ("replaced", "1", None),
                    ("replaced", None, "2"),
                    ("new", None, "1"),
                ],
                key=str,
            )
            assert {name for _, name in informer.objects} == {"kept", "changed", "replaced", "new"}


@pytest.mark.usefixtures("crds")
async def test_a_version_that_is_too_old_leads_to_a_new_list(api: Api, namespace: str) -> None:
    informer = Informer(api, ICMS_REQUEST, namespace=namespace)
    # As after a gap longer than what the API server remembers.
    informer._version = "1"
    async with running(informer):
        assert informer._version != "1"


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_killed_api_server_is_found_again() -> None:
    with api_server() as cluster:
        control = cluster.control_plane
        if control is None:
            pytest.skip("the API server of a cluster that the environment names is not killed")
        seen = Seen()
        async with await Api.open(str(cluster.kubeconfig)) as api:
            await put(api, "default", "one", "1", of="us")
            informer = Informer(
                api, CONFIG_MAP, namespace="default", labels="of=us", on_change=seen, watch_seconds=5
            )
            async with running(informer):
                assert seen.calls == [("one", None, "1")]
                old, heard = informer._version, informer.heard_at
                pid = control.processes.pids()["kube-apiserver"]
                command = Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:-1]  # noqa: ASYNC240
                os.kill(pid, signal.SIGKILL)
                control.processes.start("kube-apiserver", command)
                await eventually(cluster.client.ready, "the API server is back", interval=0.2)
                await put(api, "default", "one", "2", of="us")
                await eventually(lambda: ("one", "1", "2") in seen.calls, "the change is seen")
                assert informer.heard_at > heard
                assert informer._version != old
                assert set(informer.objects) == {("default", "one")}
