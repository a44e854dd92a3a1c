"""What does not work, since when, and what that means for calls."""

from nvcf_gateway.readiness import AUTOSCALER, BROKER, PATIENCE, STORE, Readiness


def test_a_store_without_writes_refuses_at_once_and_says_since_when() -> None:
    now = [1_000_000.0]
    readiness = Readiness(lambda: now[0])
    assert readiness.ready
    assert readiness.refusal() is None
    assert readiness.document() == {"status": "ok", "troubles": []}
    readiness.report(STORE, "the disk is full")
    now[0] += 60
    readiness.report(STORE, "the disk is full")
    assert not readiness.ready
    assert readiness.refusal() == "the disk is full (since 1970-01-12T13:46:40Z)"
    assert readiness.document()["troubles"] == [
        {"part": "store", "detail": "the disk is full", "since": "1970-01-12T13:46:40Z"}
    ]
    readiness.report(STORE, None)
    assert readiness.refusal() is None


def test_calls_wait_for_a_broker_that_is_away_but_not_for_long() -> None:
    now = [0.0]
    readiness = Readiness(lambda: now[0])
    readiness.report(BROKER, "away", patience=PATIENCE)
    assert not readiness.ready
    assert readiness.refusal() is None
    now[0] = PATIENCE
    assert readiness.refusal() is not None


def test_without_an_autoscaler_calls_are_served() -> None:
    readiness = Readiness(lambda: 0.0)
    readiness.report(AUTOSCALER, "nobody leads", serious=False)
    assert readiness.ready
    assert readiness.refusal() is None
    assert readiness.document()["status"] == "degraded"
