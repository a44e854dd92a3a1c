"""When a worker token that has not expired is void."""

from __future__ import annotations

import pytest

from nvcf_gateway.access.worker_access import why_revoked
from nvcf_gateway.access.worker_connections import claims_of, connection_name
from nvcf_proto.ids import new_id
from nvcf_proto.models import Deployment, Instance, InstanceState
from nvcf_proto.tokens import WorkerClaims

VERSION, FUNCTION, INSTANCE = new_id(), new_id(), new_id()
RECORD = object()
DEPLOYMENT = Deployment(version_id=VERSION, function_id=FUNCTION, created_at=1000.5)


def claims(*, issued_at: float = 2000.0, has_record: bool = True) -> WorkerClaims:
    return WorkerClaims(INSTANCE, FUNCTION, VERSION, "a", 9e9, issued_at, has_record)


def record(state: InstanceState) -> Instance:
    return Instance(
        id=INSTANCE,
        function_id=FUNCTION,
        version_id=VERSION,
        cluster_id="c",
        state=state,
        created_at=1.0,
        updated_at=1.0,
    )


@pytest.mark.parametrize("state", list(InstanceState))
@pytest.mark.parametrize("has_record", [True, False])
@pytest.mark.parametrize("deployment", [DEPLOYMENT, None])
def test_a_token_is_good_until_its_instance_has_ended(
    state: InstanceState, has_record: bool, deployment: Deployment | None
) -> None:
    over = state in (InstanceState.COMPLETED, InstanceState.FAILED)
    reason = why_revoked(claims(has_record=has_record), RECORD, deployment, record(state), deleted=False)
    assert (reason is not None) == over


def test_without_a_record_it_depends_on_whether_there_was_one() -> None:
    assert why_revoked(claims(), RECORD, DEPLOYMENT, None, deleted=True) == "its instance is gone"
    assert why_revoked(claims(), RECORD, DEPLOYMENT, None, deleted=False) is None, "the record may be lost"
    assert why_revoked(claims(), RECORD, None, None, deleted=False) == "its version is not deployed"
    assert why_revoked(claims(has_record=False), RECORD, DEPLOYMENT, None, deleted=True) is None
    assert why_revoked(claims(), None, None, None, deleted=True) == "its version was deleted"
    early = claims(has_record=False, issued_at=990.0)
    assert why_revoked(early, RECORD, DEPLOYMENT, None, deleted=True) == "it is of an earlier deployment"
    same_second = claims(has_record=False, issued_at=1000.0)
    assert why_revoked(same_second, RECORD, DEPLOYMENT, None, deleted=True) is None


def test_the_name_of_a_connection_says_all_that_is_checked() -> None:
    for instance in (INSTANCE, "any.name.with dots"):
        made = WorkerClaims(instance, FUNCTION, VERSION, "a", 9e9, 2000.0, True)
        found = claims_of(connection_name(made))
        assert found == WorkerClaims(instance, "", VERSION, "", 0.0, 2000.0, True)
    for text in ("", "platform", "a.b", "a.1.x.i", "a.2.5.i", "a.1.5."):
        assert claims_of(text) is None
