"""Functions, their immutable versions and their rate limits."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar

from msgspec import Meta, field
from msgspec.structs import force_setattr

from nvcf_proto.errors import InvalidRecord
from nvcf_proto.models.containers import VersionSettings
from nvcf_proto.models.record import Id, Record, Text, matching

FUNCTIONS_BUCKET = "nvcf_functions"
VERSIONS_BUCKET = "nvcf_versions"

NAME_PATTERN = r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}"
ACCOUNT_PATTERN = r"[a-zA-Z0-9_.:@-]{1,128}"
RATE_PATTERN = r"[0-9]{1,9}-[SMHD](,[0-9]{1,9}-[SMHD]){0,7}"
MAX_ACCOUNTS_IN_LIST = 256

Account = Annotated[str, matching(ACCOUNT_PATTERN)]
Rate = Annotated[
    str,
    matching(
        RATE_PATTERN,
        examples=["100-S", "5-S,300-H"],
        description="N-S, N-M, N-H or N-D: calls per second, minute, hour or day; several with commas.",
    ),
]
Accounts = Annotated[tuple[Account, ...], Meta(max_length=MAX_ACCOUNTS_IN_LIST)]


class FunctionType(StrEnum):
    """How callers use a version."""

    DEFAULT = "DEFAULT"
    STREAMING = "STREAMING"
    LLM = "LLM"


class VersionStatus(StrEnum):
    """Life of a version, as the management API shows it."""

    INACTIVE = "INACTIVE"
    DEPLOYING = "DEPLOYING"
    ACTIVE = "ACTIVE"
    DEGRADING = "DEGRADING"
    DEGRADED = "DEGRADED"
    ERROR = "ERROR"
    DELETING = "DELETING"


class ProcessSource(Record, frozen=True):
    """What the process backend runs: `python -m nvcf_worker FILE[:HANDLER]` in a folder."""

    python: Annotated[str, matching(r"/.+")]
    file: Annotated[str, matching(r"/.+")]
    working_directory: Annotated[str, matching(r"/.*")]
    handler: Annotated[str, matching(r"[A-Za-z_][A-Za-z0-9_]*")] | None = None
    environment: dict[str, str] = field(default_factory=dict)


class AccountRate(Record, frozen=True, forbid_unknown_fields=True):
    """The rate that replaces the general one for one account."""

    nca_id: Account
    rate: Rate


class RateLimit(Record, frozen=True):
    """Rate limits of a version; JSON as RateLimitPolicyResponse (protocol.md, section 1.5), and `syncCheck`.

    A rate is `N-S`, `N-M`, `N-H` or `N-D`, calls per second, minute, hour or day, or several of them with
    commas, all of which hold. `rate` is what each account may call unless `account_rates` has an
    entry for it; `excluded` accounts are exempt from `rate`; `user_rate` holds for each caller in addition.
    With `sync_check` every call waits for the answer that all replicas share.
    """

    rate: Rate | None = None
    excluded: Accounts = field(name="excludedNcaIds", default=())
    account_rates: Annotated[tuple[AccountRate, ...], Meta(max_length=MAX_ACCOUNTS_IN_LIST)] = field(
        name="perNcaIdConfigs", default=()
    )
    user_rate: Rate | None = field(name="perUserRate", default=None)
    sync_check: bool = False

    def __post_init__(self) -> None:
        accounts = [each.nca_id for each in self.account_rates]
        for index, account in enumerate(accounts):
            if account in accounts[:index]:
                raise InvalidRecord(f"perNcaIdConfigs[{index}].ncaId", f"a second entry for {account}")
        force_setattr(self, "excluded", tuple(dict.fromkeys(self.excluded)))


class Function(Record, frozen=True):
    """A function: a name under which versions are published. Key: its id.

    The accounts in `authorized` may invoke it as its own account may.
    """

    id: Id
    name: Text
    nca_id: Text
    created_at: float
    authorized: Accounts = field(name="authorizedNcaIds", default=())

    def __post_init__(self) -> None:
        force_setattr(self, "authorized", tuple(dict.fromkeys(self.authorized)))

    def may_be_invoked_by(self, nca_id: str) -> bool:
        """Return whether the function is the account's own or shared with it."""
        return nca_id == self.nca_id or nca_id in self.authorized


class FunctionVersion(VersionSettings, frozen=True):
    """One version of a function. Key: its id.

    Exactly one of `process`, `container_image` and `helm_chart` is set, or there are `models` alone. Tags,
    rate limits and the models' rates can change; everything else stays as it is.
    """

    if_given: ClassVar[frozenset[str]] = frozenset(
        ("containerEnvironment", "models", "resources", "hasSecrets")
    )

    id: Id
    function_id: Id
    name: Text
    nca_id: Text
    created_at: float
    inference_url: Text = "/"
    description: Text | None = None
    tags: tuple[str, ...] = ()
    function_type: FunctionType = FunctionType.DEFAULT
    container_image: Text | None = None
    process: ProcessSource | None = None
    rate_limit: RateLimit | None = None
    has_secrets: bool = False
    """It has or had secrets: if there is no record of them, that was lost."""
