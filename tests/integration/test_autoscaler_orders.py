"""Orders of the autoscaler, with a stand-in gateway: nothing is lost or doubled, whatever stays silent."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from nvcf_autoscaler.controller.loop import MAX_RECONCILE_INTERVAL
from nvcf_proto.compute import wake_subject
from nvcf_proto.icms.messages import InstanceOrder, instance_id_of
from nvcf_proto.icms.names import termination_subject
from nvcf_proto.models import InstanceState
from tests.support.platform.orders import ACCOUNT, OrderSite, running_order_site


async def test_an_order_names_everything_that_its_creation_message_needs(tmp_path: Path) -> None:
    async with running_order_site(tmp_path) as site:
        cluster = await site.add_cluster("one")
        await site.start_autoscaler()
        version = await site.deploy(gpus_per_instance=2, clusters=("one",))
        await site.until(lambda: bool(site.orders), "an order")
        order = site.orders[0][1]
        assert (order.cluster_id, order.function_version_id, order.attempt) == (cluster.id, version.id, 0)
        assert order.gpu_specification_id == "0-SIM-process-1x2"
        assert "1 instance" in str(order.reason)
        await site.until(lambda: bool(site.of(version)), "the record")
        (record,) = site.of(version)
        assert (record.state, record.devices) == (InstanceState.PENDING, 2)
        assert record.request_id == order.request_id
        assert record.id == instance_id_of(order.request_id)
        assert record.key == f"{version.id}.{order.request_id}"
        assert order.expires_at == record.created_at + 20.0


async def test_the_record_exists_before_its_order(tmp_path: Path) -> None:
    async with running_order_site(tmp_path) as site:
        known: list[bool] = []

        def look(order: InstanceOrder) -> bytes:
            key = f"{order.function_version_id}.{order.request_id}"
            known.append(site.instances.get(key) is not None)
            return b"{}"

        site.answer = look
        await site.add_cluster("one")
        await site.start_autoscaler()
        version = await site.deploy(min_instances=4, max_instances=4)
        await site.until(lambda: len(known) == 4, "four orders")
        # One instance a message.
        assert len({order.request_id for _, order in site.orders}) == 4
        assert {each.request_id for each in site.of(version)} == {one.request_id for _, one in site.orders}


async def test_an_order_without_acknowledgement_is_sent_again_under_the_same_request(tmp_path: Path) -> None:
    async with running_order_site(tmp_path) as site:
        await site.add_cluster("one")
        await site.start_autoscaler()
        version = await site.deploy()
        await site.until(lambda: len(site.orders) >= 2, "ordered again")
        (record,) = site.of(version)
        assert set(site.ordered(record.request_id)[:2]) == {0, 1}
        await site.run(record)
        seen = len(site.orders)
        await site.redeploy(version, min_instances=2, max_instances=2)
        await site.until(lambda: len(site.of(version)) == 2, "another one")
        # What runs is not ordered again.
        assert site.ordered(record.request_id) == [order.attempt for _, order in site.orders[:seen]]


async def test_a_gateway_that_dies_over_an_order_delays_it_and_doubles_nothing(tmp_path: Path) -> None:
    async with running_order_site(tmp_path) as site:
        silent: list[InstanceOrder] = []

        def dies_once(order: InstanceOrder) -> bytes | None:
            if silent:
                return b"{}"
            silent.append(order)
            return None

        site.answer = dies_once
        await site.add_cluster("one")
        await site.start_autoscaler()
        version = await site.deploy()
        await site.until(lambda: len(site.orders) >= 2, "the order reaches another gateway")
        # The same message id: what the first one may have published is not published again.
        assert site.ordered(silent[0].request_id)[:2] == [0, 0]
        assert len(site.of(version)) == 1


async def test_what_a_gateway_refuses_is_known_by_its_reason(tmp_path: Path) -> None:
    async with running_order_site(tmp_path) as site:
        site.answer = lambda _: b'{"error": "the stream is full"}'
        await site.add_cluster("one")
        child = await site.start_autoscaler()
        await site.deploy()
        await site.until(lambda: "the gateway refuses it: the stream is full" in child.text(), "a log record")


async def test_the_next_leader_orders_what_the_last_one_wrote_down(tmp_path: Path) -> None:
    async with running_order_site(tmp_path) as site:
        # Nobody answers, so nothing is known of the orders.
        site.answer = lambda _: None
        await site.add_cluster("one")
        first = await site.start_autoscaler()
        await site.until(lambda: "this replica leads" in first.text(), "a leader")
        await site.start_autoscaler()
        version = await site.deploy(min_instances=3, max_instances=3)
        await site.until(lambda: len(site.of(version)) == 3, "three records")
        first.kill(signal.SIGKILL)
        before = {each.request_id for each in site.of(version)}
        site.orders.clear()
        site.answer = lambda _: b"{}"
        await site.until(lambda: {one.request_id for _, one in site.orders} == before, "ordered again")
        assert {each.request_id for each in site.of(version)} == before


async def running(site: OrderSite, count: int = 1) -> None:
    """Report that all ordered instances run."""
    await site.until(lambda: len(site.instances.values()) == count, f"{count} ordered")
    for each in site.instances.values():
        await site.run(each)


async def test_an_end_goes_to_the_cluster_as_the_contract_has_it(tmp_path: Path) -> None:
    async with running_order_site(tmp_path) as site:
        cluster = await site.add_cluster("one")
        await site.start_autoscaler()
        version = await site.deploy()
        await running(site)
        (record,) = site.of(version)
        # The agent has another id for it than the one that was expected.
        await site.change(record, id="0-sr-other")
        await site.deployments.delete(version.id)
        await site.until(lambda: bool(site.terminations), "a termination message")
        subject, message = site.terminations[0]
        assert subject == termination_subject(cluster.id)
        assert (message.request_id, message.instance_ids) == (record.request_id, ("0-sr-other",))
        assert (message.nca_id, message.availability_zone) == (ACCOUNT, "one")
        assert message.action == "TerminateInstances"


async def test_a_drained_cluster_is_left_once_others_serve(tmp_path: Path) -> None:
    async with running_order_site(tmp_path) as site:
        one = await site.add_cluster("one", 2)
        await site.start_autoscaler()
        version = await site.deploy(min_instances=2, max_instances=2)
        await running(site, 2)
        await site.clusters.put(one.id, one.replace(draining=True, heartbeat_at=time.time()))
        two = await site.add_cluster("two", 2)
        await site.until(lambda: len(site.of(version)) == 4, "successors are ordered")
        successors = site.of(version)[2:]
        assert {each.cluster_id for each in successors} == {two.id}
        assert not site.terminations, "they serve until others do"
        for each in successors:
            await site.run(each)
        await site.until(
            lambda: len({message.request_id for _, message in site.terminations}) == 2, "the old ones end"
        )
        assert {subject for subject, _ in site.terminations} == {termination_subject(one.id)}


async def test_clusters_are_used_only_by_authorized_accounts_and_by_name(tmp_path: Path) -> None:
    async with running_order_site(tmp_path) as site:
        await site.add_cluster("foreign", authorized_nca_ids=("somebody",), nca_id="somebody")
        mine = await site.add_cluster("mine", 1, authorized_nca_ids=(ACCOUNT,), nca_id="somebody")
        cordoned = await site.add_cluster("cordoned", cordoned=True)
        await site.start_autoscaler()
        version = await site.deploy(
            min_instances=1, max_instances=3, clusters=("foreign", "mine", "cordoned")
        )
        await running(site)
        wanted = ("foreign", "mine", "cordoned")
        await site.redeploy(version, min_instances=3, max_instances=3, clusters=wanted)
        await site.clusters.put(cordoned.id, cordoned.replace(cordoned=False, heartbeat_at=time.time()))
        await site.until(lambda: len(site.of(version)) == 3, "three")
        assert [each.cluster_id for each in site.of(version)] == [mine.id, cordoned.id, cordoned.id]


async def test_a_wake_up_orders_at_once(tmp_path: Path) -> None:
    async with running_order_site(tmp_path) as site:
        await site.add_cluster("one")
        child = await site.start_autoscaler()
        version = await site.deploy(min_instances=0, max_instances=1)
        await site.until(lambda: "0 instances" in child.text(), "the deployment has been seen")
        await site.queue_request(version)
        began = time.monotonic()
        await site.client.publish(wake_subject(version.id), b"request")
        await site.until(lambda: bool(site.orders), "an order")
        assert time.monotonic() - began < MAX_RECONCILE_INTERVAL / 2, "not by the next look at everything"
