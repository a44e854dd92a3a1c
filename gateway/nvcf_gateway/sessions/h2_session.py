"""One session of an HTTP/2 caller: its calls, and the worker's end once a worker has dialled in."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from h2.errors import ErrorCodes

from nvcf_gateway.errors import HttpProblem
from nvcf_gateway.sessions.failures import worker_left
from nvcf_gateway.sessions.h2_call import Call
from nvcf_gateway.sessions.h2_end import H2End
from nvcf_gateway.sessions.h2_parts import RawHeader
from nvcf_gateway.sessions.opening import Admission, Opened
from nvcf_gateway.sessions.routing import response_additions


class H2Session:
    """Calls that share one worker link. Implements `h2_parts.Events` for the worker's end.

    `call_over(call)` is told when a call needs nothing more of its session, `session_over(self)` when the
    session takes no further calls.
    """

    def __init__(
        self,
        admission: Admission,
        call_over: Callable[[Call], None],
        session_over: Callable[[H2Session], None],
    ) -> None:
        self.admission = admission
        self.opened: Opened | None = None
        self.over = False
        self._call_over = call_over
        self._session_over = session_over
        self._end: H2End | None = None
        self._waiting: deque[Call] = deque()
        self._calls: dict[int, Call] = {}
        self._request_additions: list[RawHeader] = []
        self._response_additions: list[RawHeader] = []

    @property
    def busy(self) -> bool:
        """Whether calls are waiting or running."""
        return bool(self._waiting or self._calls)

    # --- from the caller's side

    def add(self, call: Call) -> None:
        """One more call."""
        call.session = self
        self._waiting.append(call)
        self._start_waiting()

    def link(self, opened: Opened) -> None:
        """A worker has dialled in."""
        self.opened = opened
        self._request_additions = _raw(opened.additions)
        self._response_additions = _raw(response_additions(opened.request_id))
        self._end = H2End(opened.wire, self, client=True)
        self._end.start()
        self._start_waiting()

    def fail(self, problem: HttpProblem) -> None:
        """There will be no worker."""
        self.over = True
        waiting, self._waiting = self._waiting, deque()
        for call in waiting:
            call.fail(problem)
            self._maybe_over(call)
        self._session_over(self)

    def drop(self, call: Call, code: int) -> None:
        """The caller gave a call up."""
        if call.worker_id is None:
            self._waiting = deque(each for each in self._waiting if each is not call)
        elif self._calls.pop(call.worker_id, None) is not None and self._end is not None:
            self._end.reset(call.worker_id, code)
        call.to_caller.drop()
        self._after_call()

    def more(self, worker_id: int) -> None:
        """A call has something for the worker."""
        if self._end is not None:
            self._end.more(worker_id)

    def credit(self, worker_id: int, size: int) -> None:
        """The caller has taken `size` bytes."""
        if self._end is not None:
            self._end.credit(worker_id, size)

    def close(self, *, broken: bool) -> None:
        """The caller is gone; `broken` lets the worker wait for its return."""
        self.over = True
        if self._end is not None:
            self._end.close(broken=broken)

    def _start_waiting(self) -> None:
        end = self._end
        while end is not None and not self.over and self._waiting and end.room():
            call = self._waiting.popleft()
            call.worker_id = end.open_stream([*call.head, *self._request_additions], call.to_worker)
            self._calls[call.worker_id] = call

    # --- Events of the worker's end

    def on_head(self, stream_id: int, headers: list[RawHeader], ended: bool) -> None:
        """The function answers."""
        call = self._calls.get(stream_id)
        if call is not None:
            call.response_head([*headers, *self._response_additions], ended)
            self._maybe_over(call)
            if ended:
                self._start_waiting()

    def on_informational(self, stream_id: int, headers: list[RawHeader]) -> None:
        """The function says 1xx."""
        call = self._calls.get(stream_id)
        if call is not None:
            call.caller.send_head(call.caller_id, headers, None)

    def on_data(self, stream_id: int, data: bytes) -> None:
        """The function sends data."""
        call = self._calls.get(stream_id)
        if call is None:
            self.credit(stream_id, len(data))
        else:
            call.response_data(data)

    def on_end(self, stream_id: int, trailers: list[RawHeader] | None) -> None:
        """The function has answered."""
        call = self._calls.get(stream_id)
        if call is not None:
            call.response_end(trailers)
            self._start_waiting()

    def on_reset(self, stream_id: int, code: int) -> None:
        """The function gave the call up; after a complete answer it only wants to hear no more."""
        call = self._calls.pop(stream_id, None)
        if call is None:
            return
        if call.response_ended:
            call.discard_request()
        else:
            call.give_up(code)
        self._maybe_over(call)
        self._after_call()

    def on_finished(self, stream_id: int) -> None:
        """The worker has the whole request."""
        call = self._calls.get(stream_id)
        if call is not None:
            self._maybe_over(call)

    def on_room(self) -> None:
        """The function takes more streams."""
        self._start_waiting()

    def on_goaway(self, last_stream_id: int) -> None:
        """The function takes no further streams; those above the last one it will not look at."""
        self._leave()
        for worker_id in [number for number in self._calls if number > last_stream_id]:
            self._refused(self._calls.pop(worker_id))
        waiting, self._waiting = self._waiting, deque()
        for call in waiting:
            self._refused(call)
        self._after_call()

    def on_eof(self) -> None:
        """The function, or the worker, closed the link."""
        if self._end is not None:
            self._end.close()
        self.on_lost(None)

    def on_lost(self, error: Exception | None) -> None:
        """The link is gone."""
        self._leave()
        calls = [*self._calls.values(), *self._waiting]
        self._calls.clear()
        self._waiting.clear()
        told = response_additions(self.opened.request_id) if self.opened is not None else ()
        for call in calls:
            call.fail(worker_left(), told)
            self._maybe_over(call)

    # --- ends

    def response_sent(self, call: Call) -> None:
        """The caller has the whole response."""
        self._maybe_over(call)

    def _refused(self, call: Call) -> None:
        # Tells a caller that the call was not looked at: gRPC tries it again by itself.
        call.give_up(ErrorCodes.REFUSED_STREAM)
        self._maybe_over(call)

    def _maybe_over(self, call: Call) -> None:
        if not call.over:
            return
        if call.worker_id is not None and call.to_worker.finished:
            self._calls.pop(call.worker_id, None)
        self._call_over(call)
        self._after_call()

    def _leave(self) -> None:
        if not self.over:
            self.over = True
            self._session_over(self)

    def _after_call(self) -> None:
        if self.over and not self.busy and self._end is not None:
            self._end.close()


def _raw(headers: list[tuple[str, str]]) -> list[RawHeader]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
