"""The agent's persisted state."""

import asyncio
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvcf_agent.errors import StoreError
from nvcf_agent.state import transitions
from nvcf_agent.state.inventory import Share
from nvcf_agent.state.managed_instance import Category, ManagedInstance, Phase
from nvcf_agent.state.persisted_state import EndedInstance, FileStore, PersistedState, StoredInstance
from nvcf_proto.icms.causes import Cause
from nvcf_proto.icms.reports import InstanceState
from tests.unit.agent.orders import CLUSTER, order


def stored(*instances: ManagedInstance) -> dict[str, StoredInstance]:
    return {each.id: StoredInstance.of(each, CLUSTER) for each in instances}


times = st.floats(0, 1e10)
anything = st.builds(
    ManagedInstance,
    order=st.builds(
        lambda gpu, count: order(gpu=gpu, requested_gpu_count=count), st.text(max_size=9), st.integers(0, 9)
    ),
    phase=st.sampled_from(Phase),
    created_at=times,
    updated_at=times,
    share=st.builds(Share, st.integers(0, 1), st.lists(st.integers(0, 99), max_size=4).map(tuple)),
    category=st.none() | st.sampled_from(Category),
    reason=st.none() | st.text(max_size=50),
    restarts=st.integers(0, 99),
    has_run=st.booleans(),
    log_path=st.none() | st.just("/log"),
    ready_at=st.none() | times,
    draining_since=st.none() | times,
    grace=times,
    index=st.integers(0, 9),
    acknowledged=st.booleans(),
    cause=st.none() | st.sampled_from(Cause),
    cleaned=st.booleans(),
    held=st.lists(st.just("$JS.ACK.x"), max_size=2).map(tuple),
    reported=st.none() | st.sampled_from(InstanceState),
    has_process=st.booleans(),
    pid=st.none() | st.integers(1, 9),
    failures=st.integers(0, 5),
)


@given(anything)
def test_what_is_stored_is_read_back(instance: ManagedInstance) -> None:
    members = json.loads(json.dumps(StoredInstance.of(instance, CLUSTER).to_dict()))
    persisted = replace(instance, has_process=False, pid=None, failures=0)
    assert StoredInstance.from_dict(members).restored() == persisted
    assert StoredInstance.of(persisted, CLUSTER) == StoredInstance.of(instance, CLUSTER)


async def test_instances_and_ended_ids_outlive_the_agent(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "requests")
    assert await store.load() == ([], {})
    first = transitions.accepted(order(), Share(slots=1), 1.0)
    second = transitions.accepted(order(), Share(devices=(1,)), 2.0)
    await store.save(stored(first, second))
    await store.save(stored(transitions.terminating(first, "x", 9.0, 3.0)))
    await store.save_ended({"a": EndedInstance(request_id="r", until=5.0)})
    again = FileStore(tmp_path / "requests")
    found, ended = await again.load()
    assert {each.restored().id: each.phase for each in found} == {
        first.id: Phase.TERMINATING,
        second.id: Phase.PENDING,
    }
    assert ended == {"a": EndedInstance(request_id="r", until=5.0)}
    file = tmp_path / "requests" / f"{first.id}.json"
    # A function's declared environment may hold its secrets.
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    await again.forget(first.id)
    await again.forget(first.id)
    assert [each.restored().id for each in (await again.load())[0]] == [second.id]


async def test_what_cannot_be_read_is_set_aside_and_not_lost(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    good = transitions.accepted(order(), Share(slots=1), 1.0)
    await store.save(stored(good))
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "older.json").write_text("{}")
    (tmp_path / "ended").write_text("[1]")
    found, ended = await store.load()
    assert [each.restored().id for each in found] == [good.id]
    assert ended == {}
    assert {"broken.unreadable", "older.unreadable"} <= set(os.listdir(tmp_path))


async def test_requests_of_older_versions_are_dropped_for_the_control_plane_orders_again(
    tmp_path: Path,
) -> None:
    old = {"order": {"messageId": "m", "clusterId": "local", "instanceIds": ["x"]}, "phase": "RUNNING"}
    (tmp_path / "x.json").write_text(json.dumps(old))
    (tmp_path / "ended").write_text('{"y": 5.0}')
    assert await FileStore(tmp_path).load() == ([], {})
    assert os.listdir(tmp_path) == ["ended"]


async def test_a_file_under_the_name_of_another_instance_is_not_believed(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    good = transitions.accepted(order(), Share(slots=1), 1.0)
    await store.save(stored(good))
    (tmp_path / f"{good.id}.json").rename(tmp_path / "0-sr-other.json")
    assert (await store.load())[0] == []


async def test_a_folder_that_cannot_be_used_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = FileStore(tmp_path / "file" / "requests")
    with pytest.raises(StoreError, match="cannot use the agent's folder"):
        await store.save(stored(transitions.accepted(order(), Share(), 1.0)))


async def test_a_write_that_ends_after_a_newer_one_hides_no_later_change() -> None:
    """The store writes several instances in one call, so an older call may end later."""
    disk: dict[str, StoredInstance] = {}
    slow = asyncio.Event()

    class Store(FileStore):
        async def save(self, instances: Mapping[str, StoredInstance]) -> None:
            disk.update(instances)
            if len(instances) > 1:
                await slow.wait()

    state = PersistedState(Store(Path("/nowhere")), CLUSTER)
    first, other = (transitions.accepted(order(), Share(slots=1), 1.0) for _ in range(2))
    older = asyncio.create_task(state.save([first, other]))
    await asyncio.sleep(0)
    await state.save([replace(first, restarts=1)])
    slow.set()
    await older
    assert state.has(replace(first, restarts=1))
    # As it was at first, but the store has something else.
    await state.save([replace(first)])
    assert disk[first.id].restarts == 0
