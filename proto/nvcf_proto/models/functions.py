"""Functions and their immutable versions."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Self

from nvcf_proto.errors import InvalidRecord
from nvcf_proto.models.base import Record
from nvcf_proto.models.kinds import FunctionType
from nvcf_proto.models.telemetries import Telemetries
from nvcf_proto.records import Fields

FUNCTIONS_BUCKET = "nvcf_functions"
VERSIONS_BUCKET = "nvcf_versions"

NAME_PATTERN = r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}"
ACCOUNT_PATTERN = r"[a-zA-Z0-9_.:@-]{1,128}"
RATE_PATTERN = r"[0-9]{1,9}-[SMHD](,[0-9]{1,9}-[SMHD]){0,7}"
MAX_ACCOUNTS_IN_LIST = 256


@dataclass(frozen=True)
class ProcessSource(Record):
    """What the process backend runs: `python -m nvcf_worker FILE[:HANDLER]` in a folder."""

    python: str
    file: str
    working_directory: str
    handler: str | None = None
    environment: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {
            "python": self.python,
            "file": self.file,
            "handler": self.handler,
            "workingDirectory": self.working_directory,
            "environment": self.environment,
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        return cls(
            python=fields.text("python", pattern=r"/.+"),
            file=fields.text("file", pattern=r"/.+"),
            working_directory=fields.text("workingDirectory", pattern=r"/.*"),
            handler=fields.optional_text("handler", pattern=r"[A-Za-z_][A-Za-z0-9_]*"),
            environment=fields.text_map("environment"),
        )


def account_list(fields: Fields, name: str) -> tuple[str, ...]:
    """A list of account ids without repetitions, in its order. Raises InvalidRecord."""
    values = fields.texts(name)
    if len(values) > MAX_ACCOUNTS_IN_LIST:
        raise InvalidRecord(fields.path(name), f"more than {MAX_ACCOUNTS_IN_LIST} accounts")
    for index, value in enumerate(values):
        if not re.fullmatch(ACCOUNT_PATTERN, value):
            raise InvalidRecord(f"{fields.path(name)}[{index}]", f"does not match {ACCOUNT_PATTERN}")
    return tuple(dict.fromkeys(values))


@dataclass(frozen=True)
class RateLimit(Record):
    """Rate limits of a version; JSON as RateLimitPolicyResponse (protocol.md section 1), and `syncCheck`.

    A rate is `N-S`, `N-M`, `N-H` or `N-D`, calls per second, minute, hour or day, or several of them with
    commas, all of which hold. `rate` is what each account may call unless `account_rates` has an
    entry for it; `excluded` accounts are exempt from `rate`; `user_rate` holds for each caller in addition.
    With `sync_check` every call waits for the answer that all replicas share.
    """

    rate: str | None = None
    excluded: tuple[str, ...] = ()
    account_rates: tuple[tuple[str, str], ...] = ()
    user_rate: str | None = None
    sync_check: bool = False

    def to_dict(self) -> dict[str, Any]:
        members = {
            "rate": self.rate,
            "excludedNcaIds": list(self.excluded),
            "perNcaIdConfigs": [{"ncaId": account, "rate": rate} for account, rate in self.account_rates],
            "perUserRate": self.user_rate,
            "syncCheck": self.sync_check,
        }
        return {key: value for key, value in members.items() if value is not None}

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        rates = fields.objects("perNcaIdConfigs", _account_rate)
        if len(rates) > MAX_ACCOUNTS_IN_LIST:
            raise InvalidRecord(fields.path("perNcaIdConfigs"), f"more than {MAX_ACCOUNTS_IN_LIST} accounts")
        known: set[str] = set()
        for index, (account, _) in enumerate(rates):
            if account in known:
                raise InvalidRecord(
                    fields.path(f"perNcaIdConfigs[{index}].ncaId"), f"a second entry for {account}"
                )
            known.add(account)
        return cls(
            rate=fields.optional_text("rate", pattern=RATE_PATTERN),
            excluded=account_list(fields, "excludedNcaIds"),
            account_rates=rates,
            user_rate=fields.optional_text("perUserRate", pattern=RATE_PATTERN),
            sync_check=fields.boolean("syncCheck", False),
        )


def _account_rate(fields: Fields) -> tuple[str, str]:
    fields.only(("ncaId", "rate"))
    return fields.text("ncaId", pattern=ACCOUNT_PATTERN), fields.text("rate", pattern=RATE_PATTERN)


@dataclass(frozen=True)
class Function(Record):
    """A function: a name under which versions are published. Key: its id.

    The accounts in `authorized` may invoke it as its own account may.
    """

    id: str
    name: str
    nca_id: str
    created_at: float
    authorized: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "name": self.name,
            "ncaId": self.nca_id,
            "createdAt": self.created_at,
            "authorizedNcaIds": list(self.authorized),
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        return cls(
            id=fields.id("id"),
            name=fields.text("name"),
            nca_id=fields.text("ncaId"),
            created_at=fields.number("createdAt"),
            authorized=account_list(fields, "authorizedNcaIds"),
        )

    def may_be_invoked_by(self, nca_id: str) -> bool:
        """Whether the function is the account's own or shared with it."""
        return nca_id == self.nca_id or nca_id in self.authorized


@dataclass(frozen=True)
class FunctionVersion(Record):
    """One immutable version of a function. Key: its id.

    Exactly one of `process` and `container_image` is set.
    """

    id: str
    function_id: str
    name: str
    nca_id: str
    created_at: float
    inference_url: str = "/"
    description: str | None = None
    tags: tuple[str, ...] = ()
    function_type: FunctionType = FunctionType.DEFAULT
    container_image: str | None = None
    process: ProcessSource | None = None
    rate_limit: RateLimit | None = None
    telemetries: Telemetries | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "functionId": self.function_id,
            "name": self.name,
            "ncaId": self.nca_id,
            "createdAt": self.created_at,
            "inferenceUrl": self.inference_url,
            "description": self.description,
            "tags": list(self.tags),
            "functionType": self.function_type.value,
            "containerImage": self.container_image,
            "process": self.process.to_dict() if self.process else None,
            "rateLimit": self.rate_limit.to_dict() if self.rate_limit else None,
            "telemetries": self.telemetries.to_dict() if self.telemetries else None,
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        return cls(
            id=fields.id("id"),
            function_id=fields.id("functionId"),
            name=fields.text("name"),
            nca_id=fields.text("ncaId"),
            created_at=fields.number("createdAt"),
            inference_url=fields.text("inferenceUrl", "/"),
            description=fields.optional_text("description"),
            tags=fields.texts("tags"),
            function_type=FunctionType(fields.text("functionType", "DEFAULT", choices=list(FunctionType))),
            container_image=fields.optional_text("containerImage"),
            process=ProcessSource.from_fields(fields.object("process")) if fields.has("process") else None,
            rate_limit=RateLimit.from_fields(fields.object("rateLimit")) if fields.has("rateLimit") else None,
            telemetries=Telemetries.from_fields(fields.object("telemetries"))
            if fields.has("telemetries")
            else None,
        )
