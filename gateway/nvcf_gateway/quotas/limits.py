"""Limits of accounts, and the decision whether something more fits. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from opentelemetry import metrics

from nvcf_gateway.errors import HttpProblem, SetupError

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

_refused = metrics.get_meter("nvcf_gateway").create_counter(
    "nvcf.gateway.quota.refused", unit="{request}", description="Requests refused at a quota of their account"
)


class Quota(StrEnum):
    """What an account may have a limited amount of. Sizes are in bytes."""

    FUNCTIONS = "functions"
    VERSIONS = "versions"
    KEYS = "keys"
    QUEUED_REQUESTS = "queued-requests"
    QUEUED_BYTES = "queued-bytes"
    KEPT_ANSWERS = "kept-answers"
    KEPT_BYTES = "kept-bytes"
    ASSETS = "assets"
    ASSET_BYTES = "asset-bytes"
    SECRETS = "secrets"
    SECRET_BYTES = "secret-bytes"
    REGISTRY_CREDENTIALS = "registry-credentials"
    TASKS = "tasks"
    CONNECTIONS = "connections"
    SPOOLED_BYTES = "spooled-bytes"
    PUBLISHED_MESSAGES = "published-messages"
    PUBLISHED_BYTES = "published-bytes"

    @property
    def is_bytes(self) -> bool:
        """Return whether it counts bytes."""
        return self.value.endswith("-bytes")

    @property
    def passes(self) -> bool:
        """Return whether use goes down by itself; else somebody has to delete something."""
        return self.value.startswith(("queued-", "kept-", "connections", "spooled-", "published-"))


COUNTS = {
    Quota.FUNCTIONS: 1_000,
    Quota.VERSIONS: 2_000,
    Quota.KEYS: 1_000,
    Quota.QUEUED_REQUESTS: 100_000,
    Quota.KEPT_ANSWERS: 500_000,
    Quota.ASSETS: 10_000,
    Quota.SECRETS: 2_000,
    Quota.SECRET_BYTES: 4 * MIB,
    Quota.REGISTRY_CREDENTIALS: 100,
    Quota.TASKS: 20_000,
    Quota.CONNECTIONS: 10_000,
    Quota.PUBLISHED_MESSAGES: 50_000,
    Quota.PUBLISHED_BYTES: 128 * MIB,
}
"""Default numbers of things, and sizes that do not depend on the data budget."""
SHARES = {Quota.QUEUED_BYTES: 0.1, Quota.KEPT_BYTES: 0.1, Quota.ASSET_BYTES: 0.1}
"""Default sizes, as parts of the data budget."""


class QuotaExceeded(HttpProblem):
    """429 for what passes by itself, 507 for what the account has to delete. Names quota, limit and use."""

    reason = "quota"

    def __init__(self, quota: Quota, limit: int, used: int) -> None:
        unit = " bytes" if quota.is_bytes else ""
        way_out = "try again later" if quota.passes else "delete what is not needed"
        super().__init__(
            429 if quota.passes else 507,
            f"quota {quota}: the account has {used} of {limit}{unit}: {way_out}, or ask for more",
            headers={"Retry-After": "5"} if quota.passes else None,
            quota=quota.value,
            limit=limit,
            used=used,
        )


def count_refusal(quota: Quota) -> None:
    """Count something that was refused at a quota."""
    _refused.add(1, {"quota": quota.value})


@dataclass(frozen=True)
class Limits:
    """Limits of all accounts: `default` for each, `accounts` for some. A quota without a limit is absent."""

    default: Mapping[Quota, int]
    accounts: Mapping[tuple[str, Quota], int] = field(default_factory=dict)

    def of(self, account: str, quota: Quota) -> int | None:
        """Return the limit of an account, None without one."""
        if self.accounts and (account, quota) in self.accounts:
            return self.accounts[account, quota]
        return self.default.get(quota)

    def least(self, quota: Quota) -> int | None:
        """Return the lowest limit that any account has, None without one."""
        limits = [limit for (_, each), limit in self.accounts.items() if each is quota]
        return min([*limits, *([self.default[quota]] if quota in self.default else [])], default=None)

    def require(self, account: str, quota: Quota, used: int, adding: int = 1) -> None:
        """Raise QuotaExceeded unless `adding` more fits beside `used`."""
        limit = self.of(account, quota)
        if limit is not None and used + adding > limit:
            count_refusal(quota)
            raise QuotaExceeded(quota, limit, used)

    def require_of(self, quota: Quota, account: str, used: int, adding: int) -> None:
        """Do as `require`, with the quota first."""
        self.require(account, quota, used, adding)


def parse_limits(texts: Iterable[str], data_budget: int, spool: int = 2 * GIB) -> Limits:
    """Read settings `QUOTA=N` and `ACCOUNT:QUOTA=N` over the defaults. Raises SetupError."""
    default = {**COUNTS, **{quota: int(share * data_budget) for quota, share in SHARES.items()}}
    default[Quota.SPOOLED_BYTES] = spool // 2
    accounts: dict[tuple[str, Quota], int] = {}
    for text in texts:
        name, _, number = text.partition("=")
        account, _, word = name.rpartition(":")
        try:
            quota, limit = Quota(word), int(number)
        except ValueError:
            known = ", ".join(Quota)
            raise SetupError(f"--quota {text}: [ACCOUNT:]QUOTA=N expected, QUOTA one of {known}") from None
        if limit < 0:
            raise SetupError(f"--quota {text}: N must not be negative")
        if account:
            accounts[account, quota] = limit
        else:
            default[quota] = limit
    return Limits(default, accounts)
