"""The agent's state as objects of a cluster, at a real API server."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest

from nvcf_agent.errors import StoreError
from nvcf_agent.kubernetes.client.api import Api, Object
from nvcf_agent.kubernetes.client.errors import ApiError
from nvcf_agent.kubernetes.client.kinds import CONFIG_MAP, EVENT, ICMS_REQUEST, SECRET
from nvcf_agent.kubernetes.events import EventRecorder
from nvcf_agent.kubernetes.names import request_name
from nvcf_agent.kubernetes.request_objects import request_object, secret_name
from nvcf_agent.kubernetes.store import ENDED, RequestStore
from nvcf_agent.state import transitions
from nvcf_agent.state.inventory import Share
from nvcf_agent.state.managed_instance import Category, ManagedInstance, Phase
from nvcf_agent.state.persisted_state import MOST_ENDED, EndedInstance, StoredInstance
from nvcf_proto.ids import new_id
from tests.kubernetes.cluster.clusters import Cluster
from tests.support.waiting import eventually
from tests.unit.agent.orders import CLUSTER, order

pytestmark = pytest.mark.usefixtures("crds")


def accepted(**changes: Any) -> ManagedInstance:
    return transitions.accepted(order(f"sr-{new_id()}", **changes), Share(devices=(1, 2)), 1700000000.25)


def stored(*instances: ManagedInstance) -> dict[str, StoredInstance]:
    return {each.id: StoredInstance.of(each, CLUSTER) for each in instances}


async def loaded(store: RequestStore) -> dict[str, StoredInstance]:
    found, _ = await store.load()
    return {each.restored().id: each for each in found}


@contextlib.asynccontextmanager
async def watching(store: RequestStore | EventRecorder) -> AsyncIterator[None]:
    task = asyncio.create_task(store.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
    assert task.cancelled()


async def test_instances_outlive_the_agent(api: Api, namespace: str) -> None:
    store = RequestStore(api, namespace)
    assert await store.load() == ([], {})
    many = [accepted(gpu="H100", configuration="e30=") for _ in range(30)]
    await store.save(stored(*many))
    assert await loaded(RequestStore(api, namespace)) == stored(*many)
    running = transitions.ready(
        replace(transitions.creating(many[0], wall=2.0), has_process=True, has_run=True), 3.0
    )
    failed = transitions.rejected(transitions.acknowledged(many[1]), Category.UNSUPPORTED, "why", 3.0)
    await store.save(stored(running, failed))
    later = await loaded(RequestStore(api, namespace))
    assert later == stored(*many) | stored(running, failed)
    # A value that is gone is gone in the object too.
    await store.save(stored(replace(failed, reason=None, category=None, cause=None)))
    assert (await loaded(RequestStore(api, namespace)))[failed.id].reason is None
    for each in many:
        await store.forget(each.id)
    assert await store.load() == ([], {})
    assert not (await api.list(ICMS_REQUEST, namespace)).items


@pytest.mark.slow
async def test_a_messages_secret_goes_with_its_request(api: Api, namespace: str) -> None:
    """The garbage collector does it; it learns of a new kind after half a minute."""
    store, instance = RequestStore(api, namespace), accepted()
    await store.save(stored(instance))
    await store.forget(instance.id)

    async def gone() -> bool:
        return await api.get(SECRET, secret_name(instance.request_id), namespace) is None

    await eventually(gone, "the Secret is gone", timeout=120, interval=0.2)


async def test_instances_of_one_request_share_its_object(api: Api, namespace: str) -> None:
    store, message = RequestStore(api, namespace), order(f"sr-{new_id()}", instance_count=2)
    first, second = (transitions.accepted(message, Share(), 1.0, index) for index in (0, 1))
    await store.save(stored(first, second))
    (request,) = (await api.list(ICMS_REQUEST, namespace)).items
    assert set(request["status"]["instances"]) == {first.id, second.id}
    await store.forget(first.id)
    assert await loaded(RequestStore(api, namespace)) == stored(second)
    await store.forget(second.id)
    assert not (await api.list(ICMS_REQUEST, namespace)).items


async def test_a_renewed_message_replaces_the_old_one(api: Api, namespace: str) -> None:
    store, instance = RequestStore(api, namespace), accepted(models="old", message_batch_id="b")
    await store.save(stored(instance))
    fresh = instance.order.replace(
        expires_at=99.0,
        message_batch_id=None,
        launch_specification=instance.order.launch_specification.replace(environment="QT1i", models=None),
    )
    await store.save(stored(replace(instance, order=fresh)))
    assert await loaded(RequestStore(api, namespace)) == stored(replace(instance, order=fresh))


async def test_a_request_deleted_by_hand_ends_first(api_server: Cluster, api: Api, namespace: str) -> None:
    deleted: list[str] = []
    store, instance = RequestStore(api, namespace, on_deleted=deleted.append), accepted()
    await store.save(stored(instance))
    async with watching(store):
        name = str((await api.list(ICMS_REQUEST, namespace)).items[0]["metadata"]["name"])
        await asyncio.to_thread(
            api_server.kubectl, "delete", "icmsrequest", name, "-n", namespace, "--wait=false"
        )
        await eventually(lambda: instance.request_id in deleted, "the hook is called")
        # It can still be written, as long as its instances end.
        ending = transitions.terminating(instance, "deleted", 1.0, 2.0)
        await store.save(stored(ending))
        assert await api.get(ICMS_REQUEST, name, namespace) is not None
        # An agent that starts meanwhile learns of it too.
        again: list[str] = []
        other = RequestStore(api, namespace, on_deleted=again.append)
        assert await loaded(other) == stored(ending)
        async with watching(other):
            await eventually(lambda: again, "the hook is called after a restart")
        await store.forget(instance.id)
        assert await api.get(ICMS_REQUEST, name, namespace) is None


async def test_own_deletions_are_no_orders_to_end(api: Api, namespace: str) -> None:
    deleted: list[str] = []
    store = RequestStore(api, namespace, on_deleted=deleted.append)
    first, second = accepted(), accepted()
    await store.save(stored(first, second))
    async with watching(store):
        await store.forget(first.id)
        await api.delete(
            ICMS_REQUEST, str(request_object(second.order, namespace)["metadata"]["name"]), namespace
        )
        await eventually(lambda: deleted, "the hook is called for the other one")
        assert set(deleted) == {second.request_id}
    await store.forget(second.id)


async def test_a_request_removed_by_force_is_told_and_stored_again(api: Api, namespace: str) -> None:
    deleted: list[str] = []
    store, instance = RequestStore(api, namespace, on_deleted=deleted.append), accepted()
    await store.save(stored(instance))
    async with watching(store):
        (request,) = (await api.list(ICMS_REQUEST, namespace)).items
        name = request["metadata"]["name"]
        await api.patch(ICMS_REQUEST, name, namespace, {"metadata": {"finalizers": None}})
        await api.delete(ICMS_REQUEST, name, namespace)
        await eventually(lambda: deleted, "the hook is called")
        ending = transitions.terminating(instance, "deleted", 1.0, 2.0)
        await store.save(stored(ending))
        assert await loaded(RequestStore(api, namespace)) == stored(ending)
        await store.forget(instance.id)


async def test_what_others_write_is_kept(api: Api, namespace: str) -> None:
    store, instance = RequestStore(api, namespace), accepted()
    await store.save(stored(instance))
    (request,) = (await api.list(ICMS_REQUEST, namespace)).items
    name = request["metadata"]["name"]
    theirs = {
        "metadata": {"labels": {"team": "blue"}, "finalizers": [*request["metadata"]["finalizers"], "a.b/c"]}
    }
    await api.patch(ICMS_REQUEST, name, namespace, theirs)
    await api.patch(ICMS_REQUEST, name, namespace, {"status": {"cacheReferenceName": "pvc"}}, part="status")
    await store.save(stored(transitions.acknowledged(instance)))
    found = await api.get(ICMS_REQUEST, name, namespace)
    assert found is not None
    assert found["metadata"]["labels"]["team"] == "blue"
    assert found["status"]["cacheReferenceName"] == "pvc"
    await store.forget(instance.id)
    found = await api.get(ICMS_REQUEST, name, namespace)
    assert found is not None
    assert found["metadata"]["finalizers"] == ["a.b/c"]
    await api.patch(ICMS_REQUEST, name, namespace, {"metadata": {"finalizers": []}})


async def test_a_request_that_was_not_stored_to_its_end_is_removed(api: Api, namespace: str) -> None:
    """The agent was killed between two writes; its message was not acknowledged, and comes again."""
    await api.apply(ICMS_REQUEST, request_object(accepted().order, namespace))
    instance = accepted()
    await RequestStore(api, namespace).save(stored(instance))
    await api.delete(SECRET, secret_name(instance.request_id), namespace)
    again = RequestStore(api, namespace)
    assert await loaded(again) == {}
    assert not (await api.list(ICMS_REQUEST, namespace)).items
    await again.save(stored(instance))
    assert await loaded(RequestStore(api, namespace)) == stored(instance)


async def test_an_unreadable_request_is_left_alone(api: Api, namespace: str) -> None:
    store, good, bad = RequestStore(api, namespace), accepted(), accepted()
    await store.save(stored(good, bad))
    name = request_name(bad.request_id)
    broken = {"status": {"instances": {bad.id: {"agent": {"phase": "FLYING"}}}}}
    await api.patch(ICMS_REQUEST, name, namespace, broken, part="status")
    assert await loaded(RequestStore(api, namespace)) == stored(good)
    assert await api.get(ICMS_REQUEST, name, namespace) is not None


class Unsure:
    """A client whose calls reach the API server; the answer to a write is lost when `loses` says so."""

    def __init__(self, api: Api, loses: Callable[[], bool]) -> None:
        self._api = api
        self._loses = loses

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._api, name)
        if name not in ("apply", "patch", "delete"):
            return method

        async def call(*args: Any, **options: Any) -> Any:
            answer = await method(*args, **options)
            if self._loses():
                raise ApiError(0, "ServerDisconnectedError", "the answer is lost")
            return answer

        return call


async def test_a_write_whose_answer_is_lost_is_just_made_again(api: Api, namespace: str) -> None:
    """Many answers are lost; the API server has done all of it."""
    chance = random.Random(1)
    lost = 0

    def loses() -> bool:
        nonlocal lost
        loses = chance.random() < 0.4
        lost += loses
        return loses

    store, instance = RequestStore(Unsure(api, loses), namespace), accepted()  # type: ignore[arg-type]

    async def until_done(work: Callable[[], Any]) -> None:
        for _ in range(100):
            with contextlib.suppress(StoreError):
                await work()
                return
        raise AssertionError("it never succeeds")

    await until_done(lambda: store.save(stored(instance)))
    await until_done(lambda: store.save(stored(transitions.acknowledged(instance))))
    assert await loaded(RequestStore(api, namespace)) == stored(transitions.acknowledged(instance))
    await until_done(lambda: store.forget(instance.id))
    assert lost > 3
    assert not (await api.list(ICMS_REQUEST, namespace)).items


async def test_only_the_leader_writes(api_server: Cluster, namespace: str) -> None:
    leads = True
    async with await Api.open(str(api_server.kubeconfig)) as api:
        api.leads = lambda: leads
        store, instance = RequestStore(api, namespace), accepted()
        await store.save(stored(instance))
        leads = False
        for work in (
            store.save(stored(transitions.acknowledged(instance))),
            store.forget(instance.id),
            store.save_ended({}),
        ):
            with pytest.raises(StoreError, match="without the lease"):
                await work
        assert await loaded(RequestStore(api, namespace)) == stored(instance)


async def test_writes_that_wait_for_their_turn_become_one(api: Api, namespace: str) -> None:
    written: list[Phase] = []
    store = RequestStore(
        api, namespace, on_saved=lambda _request, _before, after: written.append(after.phase)
    )
    waiting = transitions.acknowledged(accepted())
    made = transitions.creating(waiting, wall=2.0)
    steps = [waiting, made, replace(made, phase=Phase.STARTING)]
    await asyncio.gather(*(store.save(stored(each)) for each in steps))
    assert written == [Phase.PENDING, Phase.STARTING]
    assert await loaded(RequestStore(api, namespace)) == stored(steps[-1])


async def test_ended_instances_are_stored_however_many(api: Api, namespace: str) -> None:
    ended = {
        f"0-sr-{new_id()}": EndedInstance(
            request_id=f"sr-{new_id()}", until=1800000000.5, reported=bool(each % 2)
        )
        for each in range(MOST_ENDED)
    }
    store = RequestStore(api, namespace)
    await store.save_ended(ended)
    assert (await RequestStore(api, namespace).load())[1] == ended
    found = await api.get(CONFIG_MAP, ENDED, namespace)
    assert len(str(found)) < 900_000
    await store.save_ended({})
    assert (await RequestStore(api, namespace).load())[1] == {}


async def test_events_say_what_happens(api_server: Cluster, api: Api, namespace: str) -> None:
    recorder = EventRecorder(api, "agent-0")
    store, instance = RequestStore(api, namespace, on_saved=recorder.record_saved), accepted()

    async def events() -> list[Object]:
        return (await api.list(EVENT, namespace)).items

    async with watching(recorder):
        await store.save(stored(instance))
        await store.save(stored(transitions.acknowledged(instance)))
        await store.save(stored(transitions.terminating(instance, "scaled down", 1.0, 2.0)))
        (request,) = (await api.list(ICMS_REQUEST, namespace)).items
        recorder.record(request, "Again", "and again", warning=True)
        recorder.record(request, "Again", "and again", warning=True)

        async def counted() -> bool:
            return any(each.get("count") == 2 for each in await events())

        await eventually(counted, "a repeated event is counted up", interval=0.1)
    found = {each["reason"]: each for each in await events()}
    assert set(found) == {"InstanceCreation", "InstanceTermination", "Again"}
    assert found["Again"]["type"] == "Warning"
    assert found["InstanceCreation"]["source"] == {"component": "nvca"}
    name = request["metadata"]["name"]
    told = api_server.kubectl("describe", "icmsrequest", name, "-n", namespace)
    assert "InstanceTermination" in told
    assert "scaled down" in told
    await store.forget(instance.id)
