"""One HTTP/2 call between caller and worker, and the forms in which it can fail."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from h2.errors import ErrorCodes

from nvcf_gateway.errors import HttpProblem
from nvcf_gateway.http.grpc_status import grpc_trailers, is_grpc
from nvcf_gateway.sessions.h2_endpoint import H2Endpoint
from nvcf_gateway.sessions.h2_sender import Outgoing
from nvcf_gateway.sessions.routing import Header, RawHeader, encode_headers
from nvcf_proto.headers import PROBLEM_JSON


class CallSession(Protocol):
    """The part of a session that a call needs."""

    def more(self, worker_id: int) -> None:
        """Continue with a call that has something for the worker."""

    def credit(self, worker_id: int, size: int) -> None:
        """Let the worker send more: the caller has taken `size` bytes."""

    def drop(self, call: H2Call, code: int) -> None:
        """End a call that the caller has reset."""

    def response_sent(self, call: H2Call) -> None:
        """Record that the caller has the whole response."""


class H2Call:
    """The call on the caller's stream `caller_id`. Used on the event loop only."""

    __slots__ = (
        "bodiless",
        "caller",
        "caller_id",
        "discards",
        "grpc",
        "head",
        "request_ended",
        "response_ended",
        "response_started",
        "session",
        "to_caller",
        "to_worker",
        "worker_id",
    )

    def __init__(self, caller: H2Endpoint, caller_id: int, *, grpc: bool, bodiless: bool) -> None:
        self.caller = caller
        self.caller_id = caller_id
        self.grpc = grpc
        self.bodiless = bodiless
        self.head: list[RawHeader] = []
        self.session: CallSession | None = None
        self.worker_id: int | None = None
        self.to_worker = Outgoing(lambda size: caller.credit(caller_id, size))
        self.to_caller = Outgoing(self._credit_worker)
        self.request_ended = False
        self.response_started = False
        self.response_ended = False
        self.discards = False

    def _credit_worker(self, size: int) -> None:
        if self.session is not None and self.worker_id is not None:
            self.session.credit(self.worker_id, size)

    @property
    def over(self) -> bool:
        """Whether both halves are complete."""
        return self.to_caller.finished and (self.request_ended or self.discards)

    # --- from the caller

    def request_data(self, data: bytes) -> None:
        """Pass data of the caller to the worker."""
        if self.discards:
            self.caller.credit(self.caller_id, len(data))
            return
        self.to_worker.append(data)
        self._more_to_worker()

    def request_end(self, trailers: list[RawHeader] | None) -> None:
        """Pass the end of the request to the worker."""
        if self.request_ended:
            return
        self.request_ended = True
        self.to_worker.trailers = trailers
        self.to_worker.ended = True
        self._more_to_worker()

    def _more_to_worker(self) -> None:
        if self.session is not None and self.worker_id is not None:
            self.session.more(self.worker_id)

    # --- from the worker

    def response_head(self, headers: list[RawHeader], ended: bool) -> None:
        """Pass the head of the response to the caller."""
        self.response_started = True
        self.response_ended = ended
        self.caller.send_head(self.caller_id, headers, self.to_caller, end=ended)

    def response_data(self, data: bytes) -> None:
        """Pass data of the function to the caller."""
        self.to_caller.append(data)
        self.caller.more(self.caller_id)

    def response_end(self, trailers: list[RawHeader] | None) -> None:
        """Pass the end of the response to the caller."""
        if self.response_ended:
            return
        self.response_ended = True
        self.to_caller.trailers = trailers
        self.to_caller.ended = True
        self.caller.more(self.caller_id)

    # --- failing

    def discard_request(self) -> None:
        """Drop what the caller still sends."""
        self.discards = True
        self.to_worker.drop()

    def fail(self, problem: HttpProblem, extra: Iterable[Header] = ()) -> None:
        """Report an error to the caller, in the form that the state of the response allows."""
        self.discard_request()
        if self.response_ended:
            return
        if not self.response_started:
            self._refuse(problem, extra)
        elif self.grpc:
            self.response_end(encode_headers(grpc_trailers(problem)))
        else:
            self.give_up(ErrorCodes.INTERNAL_ERROR)

    def _refuse(self, problem: HttpProblem, extra: Iterable[Header]) -> None:
        if self.grpc:
            head = [(":status", "200"), ("content-type", "application/grpc"), *extra]
            trailers = grpc_trailers(problem)
            self.response_head(encode_headers([*head, *trailers]), True)
            return
        body = problem.problem.to_json()
        head = [
            (":status", str(problem.status)),
            ("content-type", PROBLEM_JSON),
            ("content-length", str(len(body))),
            *((name.lower(), value) for name, value in problem.headers.items()),
            *extra,
        ]
        self.response_head(encode_headers(head), self.bodiless)
        if self.bodiless:
            return
        # The data is not the worker's, so nobody waits for a credit.
        self.to_caller.credit = _no_credit
        self.response_data(body)
        self.response_end(None)

    def give_up(self, code: int) -> None:
        """Reset the caller's stream."""
        self.discard_request()
        self.to_caller.finished = True
        self.caller.reset(self.caller_id, code)


def _no_credit(_size: int) -> None:
    return


def new_call(caller: H2Endpoint, caller_id: int, headers: list[RawHeader]) -> H2Call:
    """Return a new call with the head of its request."""
    content_type, method = b"", b""
    for name, value in headers:
        if name == b"content-type":
            content_type = value
        elif name == b":method":
            method = value
    return H2Call(caller, caller_id, grpc=is_grpc(content_type.decode("latin-1")), bodiless=method == b"HEAD")
