"""Registration: which token is used, when the start is given up; subjects that the broker denies."""

from __future__ import annotations

from typing import cast

import pytest

from nvcf_worker.control import registration
from nvcf_worker.control.registration import connect_at_start
from nvcf_worker.control.worker_service import Connected, WorkerService
from nvcf_worker.errors import ControlError, StartupError
from nvcf_worker.process.durations import Backoff
from nvcf_worker.queue.connect import denied_subject


@pytest.mark.parametrize(
    ("text", "subject"),
    [
        ('nats: permissions violation for publish to "nvcf.attach.v"', "nvcf.attach.v"),
        ("nats: 'Permissions Violation for Subscription to \"rq_polling.v.*\"'", "rq_polling.v.*"),
        ("nats: authorization violation", None),
        ("nats: maximum payload violation", None),
        ("", None),
    ],
)
def test_what_the_broker_does_not_permit(text: str, subject: str | None) -> None:
    assert denied_subject(text) == subject


class Refusing:
    """Refuses with each of `errors` in turn, then takes whatever comes; `shown` are the tokens it saw."""

    def __init__(self, *errors: ControlError) -> None:
        self._errors = list(errors)
        self.shown: list[str] = []

    async def connect_once(self, token: str) -> Connected:
        """As the real one."""
        self.shown.append(token)
        if self._errors:
            raise self._errors.pop(0)
        return Connected("local", (), token, None)


FORBIDDEN = ControlError("PERMISSION_DENIED", permanent=True, forbidden=True)
UNKNOWN = ControlError("UNAUTHENTICATED", permanent=True)
AWAY = ControlError("UNAVAILABLE", permanent=False)


@pytest.mark.parametrize(
    ("errors", "shown"),
    [
        ([UNKNOWN], ["cached", "given"]),
        ([AWAY], ["cached", "cached"]),
        ([FORBIDDEN], ["cached", "given"]),
        # Either may be the one that is accepted when the version has become active.
        ([FORBIDDEN] * 3, ["cached", "given", "cached", "given"]),
        ([FORBIDDEN, UNKNOWN], ["cached", "given", "cached"]),
    ],
)
async def test_which_token_is_shown_at_the_start(
    errors: list[ControlError], shown: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registration, "START_BACKOFF", Backoff(first=0.001, limit=0.001))
    control = Refusing(*errors)
    await connect_at_start(cast(WorkerService, control), ["cached", "given"])
    assert control.shown == shown


@pytest.mark.parametrize(
    ("errors", "limit", "tries"), [([UNKNOWN], 300, 1), ([FORBIDDEN] * 9, 0, 1), ([AWAY] * 9, 0, 1)]
)
async def test_when_the_start_is_given_up(errors: list[ControlError], limit: float, tries: int) -> None:
    control = Refusing(*errors)
    with pytest.raises(StartupError):
        await connect_at_start(cast(WorkerService, control), ["given"], limit=limit)
    assert len(control.shown) == tries
