"""Which child gets what, which GPUs it sees, what follows from its death."""

from __future__ import annotations

import pytest
from hypothesis import event, given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nvcf_worker.run.processes.dispatch import (
    MAX_SUSPECTS,
    CrashAction,
    Dispatcher,
    Suspects,
    crash_policy,
    describe_death,
    next_failures,
)
from nvcf_worker.run.processes.setup import attached_gpus, child_environments, split


@pytest.mark.parametrize(
    ("environ", "gpus"),
    [
        ({}, []),
        ({"ATTACHED_GPU_COUNT": "2"}, ["0", "1"]),
        ({"ATTACHED_GPU_COUNT": ""}, []),
        ({"ATTACHED_GPU_COUNT": "many"}, []),
        ({"CUDA_VISIBLE_DEVICES": "3, 5", "ATTACHED_GPU_COUNT": "8"}, ["3", "5"]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-aa,MIG-bb"}, ["GPU-aa", "MIG-bb"]),
        ({"CUDA_VISIBLE_DEVICES": "", "ATTACHED_GPU_COUNT": "8"}, []),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, []),
        ({"CUDA_VISIBLE_DEVICES": "1,-1,2"}, ["1"]),
    ],
)
def test_attached_gpus(environ: dict[str, str], gpus: list[str]) -> None:
    assert attached_gpus(environ) == gpus


@given(st.integers(0, 12), st.integers(1, 12))
def test_all_gpus_are_used_in_equal_shares(count: int, processes: int) -> None:
    gpus = [str(index) for index in range(count)]
    shares = split(gpus, processes)
    assert len(shares) == processes
    event("shared GPUs" if processes > count else "own GPUs")
    if processes <= count:
        assert [gpu for share in shares for gpu in share] == gpus
    elif count:
        assert {gpu for share in shares for gpu in share} == set(gpus)
        assert all(len(share) == 1 for share in shares)
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1


def test_one_child_per_gpu_by_default() -> None:
    environments = child_environments({"CUDA_VISIBLE_DEVICES": "4,6"}, None)
    assert [one["CUDA_VISIBLE_DEVICES"] for one in environments] == ["4", "6"]
    assert [one["NVCF_PROCESS_INDEX"] for one in environments] == ["0", "1"]
    assert len(child_environments({}, None)) == 1
    assert "CUDA_VISIBLE_DEVICES" not in child_environments({}, 3)[0]


@pytest.mark.parametrize(
    ("tries", "alone", "retry", "repeatable", "expected"),
    [
        (1, True, True, True, CrashAction.RETRY),
        (1, False, True, True, CrashAction.RETRY),
        (1, False, True, False, CrashAction.REQUEUE),
        (2, True, True, True, CrashAction.FAIL),
        (2, False, True, True, CrashAction.RETRY),
        (2, False, True, False, CrashAction.REQUEUE),
        (3, False, True, True, CrashAction.FAIL),
        (1, False, False, True, CrashAction.FAIL),
    ],
)
def test_crash_policy(tries: int, alone: bool, retry: bool, repeatable: bool, expected: CrashAction) -> None:
    assert crash_policy(tries, alone=alone, retry=retry, repeatable=repeatable) is expected


def test_suspects_are_remembered_up_to_a_number() -> None:
    suspects = Suspects()
    suspects.add("first")
    assert suspects.must_run_alone("first", 2)
    assert not suspects.must_run_alone("other", 2)
    assert suspects.must_run_alone("other", 3)
    for number in range(MAX_SUSPECTS):
        suspects.add(str(number))
    assert not suspects.must_run_alone("first", 2)


@pytest.mark.parametrize(
    ("code", "text"), [(3, "exit code 3"), (-11, "SIGSEGV"), (-9, "memory runs out"), (-200, "signal 200")]
)
def test_descriptions_of_deaths(code: int, text: str) -> None:
    assert text in describe_death(code)


def test_the_backoff_starts_again_after_a_child_that_lived_long() -> None:
    assert [next_failures(4, lived) for lived in (0.0, 59.0, 60.0)] == [5, 5, 0]


def test_the_least_loaded_child_is_chosen() -> None:
    dispatcher: Dispatcher[int] = Dispatcher(2, 2)
    dispatcher.came_up(0)
    dispatcher.came_up(1)
    for number in range(5):
        dispatcher.add(number, alone=False)
    placed = [dispatcher.place() for _ in range(5)]
    assert placed == [(0, 0), (1, 1), (2, 0), (3, 1), None]
    dispatcher.ended(1)
    assert dispatcher.place() == (4, 1)


def test_one_that_must_be_alone_gets_a_child_that_runs_empty_for_it() -> None:
    dispatcher: Dispatcher[int] = Dispatcher(1, 4)
    dispatcher.came_up(0)
    dispatcher.add(1, alone=False)
    assert dispatcher.place() == (1, 0)
    dispatcher.add(2, alone=True)
    assert dispatcher.place() is None
    dispatcher.add(3, alone=False)
    assert dispatcher.place() is None
    dispatcher.ended(1)
    assert dispatcher.place() == (2, 0)
    assert dispatcher.place() is None
    dispatcher.ended(2)
    assert dispatcher.place() == (3, 0)


def test_a_child_takes_others_again_when_the_exclusive_one_is_withdrawn() -> None:
    dispatcher: Dispatcher[int] = Dispatcher(1, 4)
    dispatcher.came_up(0)
    dispatcher.add(1, alone=False)
    dispatcher.place()
    dispatcher.add(2, alone=True)
    assert dispatcher.place() is None
    assert dispatcher.withdraw(2)
    dispatcher.add(3, alone=False)
    assert dispatcher.place() == (3, 0)


def test_a_child_takes_others_again_when_the_exclusive_one_got_another_child() -> None:
    dispatcher: Dispatcher[int] = Dispatcher(2, 4)
    dispatcher.came_up(0)
    dispatcher.came_up(1)
    for number in range(2):
        dispatcher.add(number, alone=False)
        assert dispatcher.place() == (number, number)
    dispatcher.add(2, alone=True)
    assert dispatcher.place() is None, "child 0 runs empty"
    dispatcher.ended(1)
    assert dispatcher.place() == (2, 1)
    dispatcher.add(3, alone=False)
    assert dispatcher.place() == (3, 0)


class Dispatch(RuleBasedStateMachine):
    """Requests that come, end and are withdrawn; children that die and come back."""

    CHILDREN, PER_CHILD = 3, 2

    def __init__(self) -> None:
        super().__init__()
        self.dispatcher: Dispatcher[int] = Dispatcher(self.CHILDREN, self.PER_CHILD)
        self.up: set[int] = set()
        self.waiting: dict[int, bool] = {}
        self.running: dict[int, int] = {}
        self.exclusive: set[int] = set()
        self.number = 0

    @rule(alone=st.booleans())
    def arrive(self, alone: bool) -> None:
        self.dispatcher.add(self.number, alone=alone)
        self.waiting[self.number] = alone
        self.number += 1

    @rule(data=st.data())
    def come_up(self, data: st.DataObject) -> None:
        down = sorted(set(range(self.CHILDREN)) - self.up)
        if down:
            index = data.draw(st.sampled_from(down))
            self.dispatcher.came_up(index)
            self.up.add(index)

    @precondition(lambda self: self.up)
    @rule(data=st.data())
    def go_down(self, data: st.DataObject) -> None:
        index = data.draw(st.sampled_from(sorted(self.up)))
        lost, alone = self.dispatcher.went_down(index)
        assert lost == {request for request, child in self.running.items() if child == index}
        assert alone == (len(lost) == 1)
        self.up.remove(index)
        for request in lost:
            del self.running[request]

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(sorted(self.waiting)))
        assert self.dispatcher.withdraw(request)
        del self.waiting[request]

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(sorted(self.running)))
        assert not self.dispatcher.withdraw(request)
        self.dispatcher.ended(request)
        del self.running[request]

    @rule()
    def place(self) -> None:
        while (placed := self.dispatcher.place()) is not None:
            request, index = placed
            assert index in self.up
            if self.waiting.pop(request):
                self.exclusive.add(request)
            self.running[request] = index
        # Whoever waits does so for a reason: never while nothing runs anywhere.
        assert not (self.up and self.waiting and not self.running)

    @invariant()
    def bounds_are_kept_and_nothing_is_lost(self) -> None:
        assert self.dispatcher.waiting == len(self.waiting)
        assert self.dispatcher.capacity == self.PER_CHILD * len(self.up)
        for index in range(self.CHILDREN):
            load = [request for request, child in self.running.items() if child == index]
            assert len(load) <= self.PER_CHILD
            assert len(load) <= 1 or not self.exclusive & set(load)


TestDispatch = Dispatch.TestCase
