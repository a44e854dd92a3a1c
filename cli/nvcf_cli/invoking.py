"""`nvcf invoke`: one request to a function, its answer to standard output."""

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import aiohttp

from nvcf_cli.api import Api, problem_text
from nvcf_cli.errors import CliError, UsageError
from nvcf_proto.headers import FUNCTION_ID, NVCF_REQID
from nvcf_proto.settings import POLL_SECONDS_MAX

# The platform answers a little after the poll time; the connection must outlive that.
_EXTRA_SECONDS = 10.0


@dataclass(frozen=True)
class Call:
    """A request to a function. With a path or another method it passes through to the function as it is."""

    function_id: str
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    method: str | None = None
    path: str | None = None
    timeout: float = 60.0
    stream: bool = False

    @property
    def passes_through(self) -> bool:
        """Whether the call goes to the function as it is."""
        return self.path is not None or (self.method or "POST").upper() != "POST"


def parse_headers(pairs: Iterable[str]) -> dict[str, str]:
    """Read `Name: value` or `Name=value` texts. Raises `UsageError`."""
    headers = {}
    for pair in pairs:
        colon, equals = pair.find(":"), pair.find("=")
        cut = min((place for place in (colon, equals) if place > 0), default=-1)
        if cut < 0 or any(character in pair for character in "\r\n"):
            raise UsageError(f"--header {pair}: NAME=VALUE expected")
        headers[pair[:cut].strip()] = pair[cut + 1 :].strip()
    return headers


def guess_content_type(body: bytes) -> str:
    """Return JSON, text or bytes, by what the body can be read as."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return "application/octet-stream"
    try:
        json.loads(text)
    except ValueError:
        return "text/plain; charset=utf-8"
    except RecursionError:
        pass  # deeper than this program reads, so it has begun as JSON
    return "application/json"


def request_of(call: Call) -> tuple[str, str, dict[str, str]]:
    """Return method, path and headers of a call's HTTP request. Pure."""
    headers = dict(call.headers)
    present = {name.lower() for name in headers}
    if call.body and "content-type" not in present:
        headers["Content-Type"] = guess_content_type(call.body)
    if "nvcf-poll-seconds" not in present:
        headers["NVCF-POLL-SECONDS"] = str(max(1, min(POLL_SECONDS_MAX, round(call.timeout))))
    if call.stream and "accept" not in present:
        headers["Accept"] = "text/event-stream"
    if not call.passes_through:
        return "POST", f"/v2/nvcf/pexec/functions/{call.function_id}", headers
    headers[FUNCTION_ID] = call.function_id
    path = call.path or "/"
    return (call.method or "POST").upper(), path if path.startswith("/") else f"/{path}", headers


async def invoke(
    api: Api,
    call: Call,
    *,
    write: Callable[[bytes], None],
    head: Callable[[aiohttp.ClientResponse], None] | None = None,
) -> None:
    """Send it and write the answer's body piece by piece as it comes. Raises `CliError` if it failed."""
    method, path, headers = request_of(call)
    deadline = time.monotonic() + call.timeout
    # A stream may last as long as it likes once it has begun.
    limit = None if call.stream else call.timeout + _EXTRA_SECONDS
    async with api.request(method, path, headers=headers, body=call.body, timeout=limit) as response:
        if response.status != 202:
            await _take(response, write, head)
            return
        request_id = response.headers.get(NVCF_REQID)
        await response.read()
    if request_id is None:
        raise CliError("the function answered 202 without a request id: there is nothing to wait for")
    await fetch(api, request_id, deadline, write=write, head=head, stream=call.stream)


async def fetch(
    api: Api,
    request_id: str,
    deadline: float,
    *,
    write: Callable[[bytes], None],
    head: Callable[[aiohttp.ClientResponse], None] | None = None,
    stream: bool = False,
) -> None:
    """Poll for the answer of a request until `deadline` (monotonic), and write it. Raises `CliError`."""
    path = f"/v2/nvcf/pexec/status/{request_id}"
    result = f"nvcf request result {request_id}"
    while (left := deadline - time.monotonic()) > 0:
        headers = {"NVCF-POLL-SECONDS": str(max(1, min(POLL_SECONDS_MAX, round(left))))}
        limit = None if stream else left + _EXTRA_SECONDS
        try:
            async with api.request("GET", path, headers=headers, timeout=limit) as response:
                if response.status != 202:
                    await _take(response, write, head)
                    return
                await response.read()
        except CliError as error:
            if request_id in str(error):
                raise
            raise CliError(f"{error} Request {request_id} may go on: {result} asks again") from error
    raise CliError(
        f"no answer yet, and request {request_id} goes on: {result} waits for it, "
        f"nvcf request cancel {request_id} ends it"
    )


async def cancel(api: Api, request_id: str) -> None:
    """Cancel a request that is queued or in flight. Raises `CliError`."""
    await api.call("DELETE", f"/v2/nvcf/pexec/status/{request_id}")


async def _take(
    response: aiohttp.ClientResponse,
    write: Callable[[bytes], None],
    head: Callable[[aiohttp.ClientResponse], None] | None,
) -> None:
    if head is not None:
        head(response)
    if response.status >= 400:
        text = problem_text(response.status, await response.read())
        if response.status == 504 and "limit" not in text.lower():
            text += ": give more with --timeout, or see nvcf logs"
        if response.status == 500:
            text += ": nvcf logs shows why"
        request_id = response.headers.get(NVCF_REQID)
        # Most problem documents name the request themselves.
        told = request_id is None or request_id in text
        raise CliError(text if told else f"{text} (request {request_id})")
    async for chunk in response.content.iter_any():
        write(chunk)
