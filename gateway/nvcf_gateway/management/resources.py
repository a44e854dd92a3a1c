"""What the handlers of the management API share: authorization, and writing records."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from aiohttp import web

from nvcf_broker.errors import BrokerError, KeyExistsError, RevisionConflictError
from nvcf_broker.kv import KvMirror
from nvcf_gateway.access.authorization import Authenticator, Caller
from nvcf_gateway.errors import HttpProblem
from nvcf_proto.models import Scope

T = TypeVar("T")

ATTEMPTS = 5
CHANGE_TIMEOUT = 0.5


def authorized(authenticator: Authenticator, request: web.BaseRequest, scope: Scope) -> Caller:
    """Return the caller, who has `scope`. Raises HttpProblem 401 and 403."""
    caller = authenticator.caller(request.headers)
    caller.require(scope)
    return caller


async def stored(write: Awaitable[object]) -> None:
    """Await a write to the registry. Raises HttpProblem 409 and 503."""
    try:
        await write
    except (KeyExistsError, RevisionConflictError) as error:
        raise HttpProblem(409, str(error)) from None
    except BrokerError as error:
        raise unavailable(error) from None


def unavailable(error: Exception) -> HttpProblem:
    """Return the 503 of something that the broker did not do; the caller shall try again in a second."""
    return HttpProblem(503, str(error), headers={"Retry-After": "1"})


async def update(mirror: KvMirror[T], key: str, change: Callable[[T], T]) -> T | None:
    """Apply `change` to the newest record under `key` and return what was written; None without a record.

    Raises HttpProblem 409 when others change the record again and again, and 503.
    """
    for _ in range(ATTEMPTS):
        entry = mirror.entry(key)
        if entry is None:
            return None
        changed = change(entry.value)
        if changed == entry.value:
            return changed
        try:
            await mirror.update(key, changed, entry.revision)
        except RevisionConflictError:
            # Another replica was faster: its change is on the way to this mirror.
            await mirror.wait_change(CHANGE_TIMEOUT)
        except BrokerError as error:
            raise unavailable(error) from None
        else:
            return changed
    raise HttpProblem(409, "the record is being changed by others, try again")
