"""Users of accounts."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nvcf_agent.backends.users import DEFAULT_RANGE, InstanceUsers, UidRange, parse_range
from nvcf_agent.errors import AgentError, Refused, StartError


def test_an_account_keeps_its_user_and_shares_it_with_nobody(tmp_path: Path) -> None:
    users = InstanceUsers(tmp_path / "users.json", UidRange(5000, 5002))
    found = {account: users.uid(account) for account in ("a", "b", "c")}
    assert sorted(found.values()) == [5000, 5001, 5002]
    again = InstanceUsers(tmp_path / "users.json", UidRange(7000, 8000))
    assert {account: again.uid(account) for account in found} == found
    with pytest.raises(Refused, match="--instance-uid-range"):
        users.uid("d")
    assert (tmp_path / "users.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("text", ["", "[]", "null", '{"a": "x"}'])
def test_a_damaged_file_is_not_replaced(tmp_path: Path, text: str) -> None:
    (tmp_path / "users.json").write_text(text)
    with pytest.raises(StartError, match=r"users\.json"):
        InstanceUsers(tmp_path / "users.json", DEFAULT_RANGE).uid("a")
    assert (tmp_path / "users.json").read_text() == text


def test_the_option() -> None:
    assert parse_range(None) == DEFAULT_RANGE
    assert parse_range("none") is None
    assert parse_range("2000-2000") == UidRange(2000, 2000)
    for text in ("", "5", "0-5", "3000-2000", "a-b", "1000-4294967295", "999-2000"):
        with pytest.raises(AgentError, match="--instance-uid-range"):
            parse_range(text)


def test_instances_that_start_at_once_get_the_same_user(tmp_path: Path) -> None:
    users = InstanceUsers(tmp_path / "users.json", UidRange(10_000, 60_000))
    accounts = [f"account-{number % 3}" for number in range(60)]
    with ThreadPoolExecutor(20) as pool:
        found = list(pool.map(users.uid, accounts))
    assert len(set(zip(accounts, found, strict=True))) == 3
