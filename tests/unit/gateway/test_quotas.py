"""Quotas of accounts."""

from __future__ import annotations

import pytest

from nvcf_gateway.errors import SetupError
from nvcf_gateway.quotas.limits import GIB, Quota, QuotaExceeded, parse_limits


def test_defaults_are_shares_of_the_budget_and_counts() -> None:
    limits = parse_limits([], 100 * GIB)
    assert limits.of("a", Quota.ASSET_BYTES) == 10 * GIB
    assert all(limits.of("a", quota) for quota in Quota)


def test_an_operator_sets_them_for_all_and_for_some() -> None:
    limits = parse_limits(["functions=3", "rich:functions=30", "a:b:keys=1"], GIB)
    assert limits.of("poor", Quota.FUNCTIONS) == 3
    assert limits.of("rich", Quota.FUNCTIONS) == 30
    assert limits.of("a:b", Quota.KEYS) == 1


@pytest.mark.parametrize("text", ["", "functions", "functions=x", "functions=-1", "nothing=1", "a:=1"])
def test_a_wrong_setting_says_what_is_expected(text: str) -> None:
    with pytest.raises(SetupError, match="--quota"):
        parse_limits([text], GIB)


@pytest.mark.parametrize(("quota", "status"), [(Quota.QUEUED_REQUESTS, 429), (Quota.ASSETS, 507)])
def test_at_a_quota_the_problem_names_it(quota: Quota, status: int) -> None:
    limits = parse_limits([f"{quota}=2"], GIB)
    limits.require("a", quota, 1)
    with pytest.raises(QuotaExceeded) as caught:
        limits.require("a", quota, 2)
    problem = caught.value
    assert problem.problem.status == status
    assert dict(problem.problem.extra) == {"quota": quota.value, "limit": 2, "used": 2}
    assert ("Retry-After" in problem.headers) == (status == 429)
