"""One session of an HTTP/2 caller: its calls, and the endpoint of the worker once a worker has connected."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from h2.errors import ErrorCodes

from nvcf_gateway.errors import HttpProblem
from nvcf_gateway.sessions.h2_call import H2Call
from nvcf_gateway.sessions.h2_endpoint import H2Endpoint
from nvcf_gateway.sessions.opening import Admission, Opened, worker_left
from nvcf_gateway.sessions.routing import RawHeader, encode_headers
from nvcf_gateway.sessions.turns import Turns


class H2Session:
    """Calls that share one tunnel. Implements `h2_protocol.Events` for the worker's endpoint.

    `call_over(call)` is called when a call is complete, `session_over(self)` when the session takes no
    further calls.
    """

    def __init__(
        self,
        admission: Admission,
        call_over: Callable[[H2Call], None],
        session_over: Callable[[H2Session], None],
        turns: Turns,
    ) -> None:
        self._turns = turns
        self.admission = admission
        self.opened: Opened | None = None
        self.over = False
        self._call_over = call_over
        self._session_over = session_over
        self._endpoint: H2Endpoint | None = None
        self._waiting: deque[H2Call] = deque()
        self._calls: dict[int, H2Call] = {}
        self._request_additions: list[RawHeader] = []
        self._response_additions: list[RawHeader] = []

    @property
    def busy(self) -> bool:
        """Whether calls wait or run."""
        return bool(self._waiting or self._calls)

    # --- from the caller's side

    def add(self, call: H2Call) -> None:
        """Add a call."""
        call.session = self
        self._waiting.append(call)
        self._start_waiting()

    def connect(self, opened: Opened) -> None:
        """Use the tunnel of a worker."""
        self.opened = opened
        self._request_additions = encode_headers(opened.additions)
        self._response_additions = encode_headers(opened.response_additions)
        self._endpoint = H2Endpoint(opened.wire, self, self._turns, client=True)
        self._endpoint.start()
        self._start_waiting()

    def fail(self, problem: HttpProblem) -> None:
        """Fail all calls: there will be no worker."""
        self.over = True
        waiting, self._waiting = self._waiting, deque()
        for call in waiting:
            call.fail(problem)
            self._maybe_over(call)
        self._session_over(self)

    def drop(self, call: H2Call, code: int) -> None:
        if call.worker_id is None:
            self._waiting = deque(each for each in self._waiting if each is not call)
        elif self._calls.pop(call.worker_id, None) is not None and self._endpoint is not None:
            self._endpoint.reset(call.worker_id, code)
        call.to_caller.drop()
        self._after_call()

    def more(self, worker_id: int) -> None:
        if self._endpoint is not None:
            self._endpoint.more(worker_id)

    def credit(self, worker_id: int, size: int) -> None:
        if self._endpoint is not None:
            self._endpoint.credit(worker_id, size)

    def close(self, *, broken: bool) -> None:
        """Close the session: the caller is gone. With `broken` the worker waits for its return."""
        self.over = True
        if self._endpoint is not None:
            self._endpoint.close(broken=broken)

    def _start_waiting(self) -> None:
        endpoint = self._endpoint
        while endpoint is not None and not self.over and self._waiting and endpoint.room():
            call = self._waiting.popleft()
            call.worker_id = endpoint.open_stream([*call.head, *self._request_additions], call.to_worker)
            self._calls[call.worker_id] = call

    # --- events of the worker's endpoint

    def on_head(self, stream_id: int, headers: list[RawHeader], ended: bool) -> None:
        call = self._calls.get(stream_id)
        if call is not None:
            call.response_head([*headers, *self._response_additions], ended)
            self._maybe_over(call)
            if ended:
                self._start_waiting()

    def on_informational(self, stream_id: int, headers: list[RawHeader]) -> None:
        call = self._calls.get(stream_id)
        if call is not None:
            call.caller.send_head(call.caller_id, headers, None)

    def on_data(self, stream_id: int, data: bytes) -> None:
        call = self._calls.get(stream_id)
        if call is None:
            self.credit(stream_id, len(data))
        else:
            call.response_data(data)

    def on_end(self, stream_id: int, trailers: list[RawHeader] | None) -> None:
        call = self._calls.get(stream_id)
        if call is not None:
            call.response_end(trailers)
            self._start_waiting()

    def on_reset(self, stream_id: int, code: int) -> None:
        """Reset the call; after a complete response only stop sending the request."""
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
        call = self._calls.get(stream_id)
        if call is not None:
            self._maybe_over(call)

    def on_room(self) -> None:
        self._start_waiting()

    def on_goaway(self, last_stream_id: int) -> None:
        """Take no further calls, and refuse those that the function has not processed."""
        self._leave()
        for worker_id in [number for number in self._calls if number > last_stream_id]:
            self._refused(self._calls.pop(worker_id))
        waiting, self._waiting = self._waiting, deque()
        for call in waiting:
            self._refused(call)
        self._after_call()

    def on_eof(self) -> None:
        """Close the tunnel: the function or the worker has closed it."""
        if self._endpoint is not None:
            self._endpoint.close()
        self.on_lost(None)

    def on_lost(self, error: Exception | None) -> None:
        self._leave()
        calls = [*self._calls.values(), *self._waiting]
        self._calls.clear()
        self._waiting.clear()
        extra = self.opened.response_additions if self.opened is not None else ()
        for call in calls:
            call.fail(worker_left(), extra)
            self._maybe_over(call)

    # --- ends

    def response_sent(self, call: H2Call) -> None:
        self._maybe_over(call)

    def _refused(self, call: H2Call) -> None:
        # REFUSED_STREAM says that the call was not processed: gRPC clients retry it by themselves.
        call.give_up(ErrorCodes.REFUSED_STREAM)
        self._maybe_over(call)

    def _maybe_over(self, call: H2Call) -> None:
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
        if self.over and not self.busy and self._endpoint is not None:
            self._endpoint.close()
