"""A control loop and an agent that may stay silent at any step: nothing is doubled, lost or stuck.

The records are those of a gateway that applies reports as they come; the loop is the autoscaler's plan.
"""

from __future__ import annotations

from hypothesis import settings as examples
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from nvcf_autoscaler.controller.plan import GiveUp, OrderAgain, ResendEnd, Terminate, housekeeping, shrink
from nvcf_autoscaler.placement.place import Capacity, Cluster, Requirement, place
from nvcf_autoscaler.placement.timings import timings_of
from nvcf_autoscaler.placement.usage import OVER, usage_of
from nvcf_autoscaler.placement.view import clusters_for, group_instances
from nvcf_proto.models import DeploymentSpecification, Instance, InstanceState
from tests.unit.autoscaler.records import NOW, SPECIFICATIONS, instance

KEY = SPECIFICATIONS[0]
TOTAL = 4


class UntrustedAgent(RuleBasedStateMachine):
    """One cluster with TOTAL GPUs. `running` are what it really holds, `ghosts` what it has dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.now = NOW
        self.records: dict[str, Instance] = {}
        self.messages: set[str] = set()
        self.running: set[str] = set()
        self.ending: set[str] = set()
        self.desired = 0
        self.size = 1
        self.allocated = 0
        self.heartbeat_at = NOW
        self.orders = 0
        self.heartbeat_seconds = 2.0

    @initialize(seconds=st.sampled_from((2.0, 300.0)), size=st.integers(1, 2))
    def choose(self, seconds: float, size: int) -> None:
        self.heartbeat_seconds, self.size = seconds, size

    def cluster(self) -> Cluster:
        pool = Capacity("A", "process", TOTAL - self.allocated, TOTAL, gpus_per_instance=self.size)
        times = timings_of(self.heartbeat_seconds, 30.0)
        return Cluster(
            "one", "local", self.heartbeat_at, (pool,), heartbeat_at=self.heartbeat_at, timings=times
        )

    # --- the autoscaler

    @rule(count=st.integers(0, 3))
    def wish(self, count: int) -> None:
        self.desired = count

    @rule()
    def reconcile(self) -> None:
        there = (self.cluster(),)
        requirement = Requirement("A", "process")
        groups = group_instances(self.now, self.records.values(), {KEY: requirement}, there)
        for action in housekeeping(self.now, groups, there):
            match action:
                case OrderAgain():
                    self.messages.add(action.instance.request_id)
                case GiveUp():
                    self.change(action.instance.request_id, state=InstanceState.FAILED)
                case ResendEnd():
                    self.ending.add(action.instance.request_id)
        groups = group_instances(self.now, self.records.values(), {KEY: requirement}, there)
        missing = self.desired - len(groups.current[KEY])
        usages = usage_of(self.now, self.records.values(), there)
        spec = DeploymentSpecification(gpu="A")
        placement = place(self.now, max(0, missing), requirement, clusters_for(spec, there, usages))
        for _ in range(sum(count for _, count in placement.assigned)):
            self.order()
        for action in shrink(groups, {KEY: self.desired}, placement.unplaced):
            if isinstance(action, Terminate):
                for each in action.instances:
                    self.change(each.request_id, draining_since=self.now)
                    self.ending.add(each.request_id)

    def order(self) -> None:
        request_id = f"r{self.orders}"
        self.orders += 1
        self.records[request_id] = instance(
            self.orders,
            state=InstanceState.PENDING,
            created_at=self.now,
            updated_at=self.now,
            request_id=request_id,
            devices=self.size,
        )
        self.messages.add(request_id)

    def change(self, request_id: str, **changes: object) -> None:
        self.records[request_id] = self.records[request_id].changed(self.now, **changes)

    # --- the agent, and how the gateway answers it

    @precondition(lambda self: self.messages)
    @rule(data=st.data(), create=st.booleans())
    def take_up(self, data: st.DataObject, create: bool) -> None:
        """Acknowledge an order, and perhaps forget it afterwards."""
        request_id = data.draw(st.sampled_from(sorted(self.messages)))
        self.messages.discard(request_id)
        record = self.records[request_id]
        if record.state in OVER or record.draining_since is not None:
            return
        if record.acknowledged_at is None:
            self.change(request_id, acknowledged_at=self.now)
        if create:
            self.running.add(request_id)

    @precondition(lambda self: self.messages)
    @rule(data=st.data())
    def lose_message(self, data: st.DataObject) -> None:
        self.messages.discard(data.draw(st.sampled_from(sorted(self.messages))))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def report(self, data: st.DataObject) -> None:
        """Report that an instance runs; the answer 412 for a closed record ends it."""
        request_id = data.draw(st.sampled_from(sorted(self.running)))
        if self.records[request_id].state in OVER:
            self.running.discard(request_id)
            self.change(request_id, released_at=self.now)
            return
        self.change(request_id, state=InstanceState.RUNNING, reported_at=self.now)

    @precondition(lambda self: self.ending)
    @rule(data=st.data(), gone=st.booleans())
    def end(self, data: st.DataObject, gone: bool) -> None:
        """Report an end, perhaps while the instance still holds its GPUs."""
        request_id = data.draw(st.sampled_from(sorted(self.ending)))
        self.ending.discard(request_id)
        record = self.records[request_id]
        changes = {} if record.state in OVER else {"state": InstanceState.COMPLETED, "reported_at": self.now}
        if gone or request_id not in self.running:
            self.running.discard(request_id)
            changes["released_at"] = self.now
        self.change(request_id, **changes)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.running)))
        self.running.discard(request_id)
        if self.records[request_id].state not in OVER:
            self.change(request_id, state=InstanceState.FAILED, reported_at=self.now, released_at=self.now)

    @rule()
    def heartbeat(self) -> None:
        self.heartbeat_at = self.now
        self.allocated = min(TOTAL, self.size * len(self.running))

    @rule(seconds=st.sampled_from((0.5, 4.0, 25.0, 200.0)))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    # --- what always holds

    @invariant()
    def never_more_is_ordered_than_there_is(self) -> None:
        live = [each for each in self.records.values() if each.state not in OVER]
        assert self.size * len(live) <= TOTAL

    @invariant()
    def an_agent_that_reports_in_time_is_never_over_capacity(self) -> None:
        """Only what was given up, or reported ended too early, may still hold GPUs that are given again."""
        closed = [each for each in self.running if self.records[each].state in OVER]
        assert self.size * (len(self.running) - len(closed)) <= TOTAL

    def teardown(self) -> None:
        """Nothing is stuck: with an agent that works, everything becomes as it should be."""
        for _ in range(60):
            self.now += self.cluster().timings.acknowledgement
            self.heartbeat()
            self.reconcile()
            for request_id in sorted(self.messages):
                self.messages.discard(request_id)
                record = self.records[request_id]
                if record.state not in OVER and record.draining_since is None:
                    self.change(request_id, acknowledged_at=record.acknowledged_at or self.now)
                    self.running.add(request_id)
            for request_id in sorted(self.running):
                if self.records[request_id].state in OVER or request_id in self.ending:
                    self.running.discard(request_id)
                    self.change(request_id, released_at=self.now)
                else:
                    self.change(request_id, state=InstanceState.RUNNING, reported_at=self.now)
            for request_id in sorted(self.ending):
                self.change(request_id, state=InstanceState.COMPLETED, released_at=self.now)
            self.ending.clear()
        serving = [each for each in self.records.values() if each.state is InstanceState.RUNNING]
        assert len(serving) == min(self.desired, TOTAL // self.size)
        assert {each.request_id for each in serving} == self.running
        assert all(
            each.state in OVER for each in self.records.values() if each.request_id not in self.running
        )


TestUntrustedAgent = UntrustedAgent.TestCase
TestUntrustedAgent.settings = examples(max_examples=60, stateful_step_count=40, deadline=None)
