"""The contract of agents with their control plane holds for pods as it does for processes.

The tests are those of tests/contract/agent. Here their functions are pods of a fake node.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.contract.agent import test_acknowledgement as acknowledgement
from tests.contract.agent import test_cluster as cluster
from tests.contract.agent import test_messages as messages
from tests.contract.agent import test_reports as reports
from tests.contract.agent import test_sequence as sequence
from tests.kubernetes.agent_site import KubeSite, kube_site
from tests.kubernetes.cluster.kwok import FakeNodes, Shape


@pytest.fixture
async def site(
    tmp_path: Path, kwok_nodes: FakeNodes, fake_crds: None, namespace: str
) -> AsyncIterator[KubeSite]:
    """A control plane without agents, for a cluster that runs instances without a GPU."""
    kwok_nodes.add(1, Shape(gpu=None, pods=500))
    async with kube_site(tmp_path, kwok_nodes.cluster.kubeconfig, namespace) as made:
        made.cpu_slots = 256
        yield made


test_acknowledged_after_200 = acknowledgement.test_the_message_is_acknowledged_only_after_the_answer_200
test_404 = acknowledgement.test_404_is_not_yet
test_412_for_the_acknowledgement = acknowledgement.test_412_makes_nothing_and_says_so
test_copies_of_a_message = (
    acknowledgement.test_copies_of_a_message_that_waits_make_one_instance_and_are_all_acknowledged
)
test_a_known_request = acknowledgement.test_a_known_request_is_acknowledged_at_once_and_reported_again
test_an_order_that_expires = (
    acknowledgement.test_an_order_that_expires_before_the_answer_is_dropped_and_a_repeated_one_runs
)
test_self_destruct = cluster.test_self_destruct_ends_everything_reports_each_once_and_falls_silent
test_cordoned = cluster.test_while_cordoned_creations_wait_and_terminations_pass
test_capacity_at_once = cluster.test_capacity_that_changed_is_told_at_once
test_reconciliation_ends = cluster.test_reconciliation_ends_what_the_control_plane_wants_ended
test_reconciliation_of_the_unknown = cluster.test_reconciliation_reports_what_does_not_exist_here
test_a_restarted_agent = cluster.test_a_restarted_agent_registers_and_reports_everything_again
test_termination_of_the_unknown = messages.test_a_termination_of_an_unknown_id_is_reported_terminated
test_termination_first = messages.test_a_termination_that_overtakes_its_creation_is_remembered
test_copies_of_a_termination = messages.test_copies_of_a_termination_end_an_instance_once
test_a_late_copy = messages.test_a_copy_that_comes_after_the_end_makes_nothing
test_over_capacity = messages.test_over_capacity_a_message_goes_back_and_runs_when_there_is_room
test_no_report_overtakes = reports.test_no_report_overtakes_another_however_often_the_control_plane_fails
test_two_instances = reports.test_both_instances_of_a_request_are_reported_for_as_long_as_they_run
test_from_order_to_end = sequence.test_one_instance_from_order_to_end
test_rights = sequence.test_the_broker_is_used_with_the_contracts_rights_alone
test_consumers = sequence.test_the_consumers_are_those_of_the_contract
