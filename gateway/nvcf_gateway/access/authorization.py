"""Who calls, and what a caller may do."""

from __future__ import annotations

import hmac
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from nvcf_gateway.access.dashboard_tickets import InvalidTicket, Purpose, Seals, looks_sealed
from nvcf_gateway.errors import HttpProblem
from nvcf_gateway.http.routing import Target
from nvcf_gateway.registry import Registry
from nvcf_proto.apikeys import api_key_id, hash_api_key
from nvcf_proto.errors import InvalidToken
from nvcf_proto.models import ApiKey, FunctionVersion, Scope

_CHALLENGE = {"WWW-Authenticate": "Bearer"}
_INVALID = {"WWW-Authenticate": 'Bearer error="invalid_token"'}


@dataclass(frozen=True)
class Caller:
    """An authenticated caller; one that is `viewing` has a session of the dashboard in place of its key."""

    nca_id: str
    subject: str
    key: ApiKey
    viewing: bool = False

    def require(self, scope: Scope) -> None:
        """Raise HttpProblem 403 unless the caller's key carries `scope`."""
        if not self.key.allows(scope):
            raise HttpProblem(403, f"the API key lacks the scope '{scope.value}'")

    def require_function(self, function_id: str) -> None:
        """Raise HttpProblem 403 unless the caller's key is good for the function."""
        if not self.key.covers(function_id):
            raise HttpProblem(403, f"the API key is limited to other functions than {function_id}")

    def require_unlimited(self, what: str) -> None:
        """Raise HttpProblem 403 for a key that is limited to some functions: it may not do `what`."""
        if self.key.function_ids:
            raise HttpProblem(403, f"an API key that is limited to some functions cannot {what}")


def bearer_token(headers: Mapping[str, str]) -> str:
    """The token of an `Authorization: Bearer` header. Raises HttpProblem 401."""
    value = headers.get("Authorization")
    if value is None:
        raise HttpProblem(401, "header Authorization: Bearer <token> is missing", headers=_CHALLENGE)
    return read_bearer(value)


def read_bearer(value: str) -> str:
    """The token of `Bearer <token>`. Raises HttpProblem 401."""
    scheme, _, token = value.partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token or not token.isascii():
        raise HttpProblem(401, "header Authorization must be: Bearer <token>", headers=_CHALLENGE)
    return token


class Authenticator:
    """Checks API keys against their stored hashes, which every replica mirrors."""

    def __init__(
        self, registry: Registry, clock: Callable[[], float] = time.time, seals: Seals | None = None
    ) -> None:
        self._registry = registry
        self._clock = clock
        self._seals = seals

    def caller(self, headers: Mapping[str, str]) -> Caller:
        """The caller whose API key the request carries. Raises HttpProblem 401."""
        return self.identify(bearer_token(headers))

    def identify(self, token: str) -> Caller:
        """Whose API key or session this is. Raises HttpProblem 401: unknown, revoked or expired."""
        if looks_sealed(token):
            return replace(self._sealed(token, Purpose.SESSION), viewing=True)
        try:
            record = self._registry.keys.get(api_key_id(token))
        except InvalidToken:
            record = None
        # The comparison runs for unknown keys too, so that its time tells nothing.
        expected = record.secret_hash if record is not None else "0" * 64
        if not hmac.compare_digest(expected, hash_api_key(token)) or record is None:
            raise HttpProblem(401, "the API key is not valid", headers=_INVALID)
        # Said only to somebody who has the whole key.
        if not record.is_live(self._clock()):
            raise HttpProblem(401, "the API key has expired", headers=_INVALID)
        return Caller(record.nca_id, f"apikey:{record.id}", record)

    def ticket_holder(self, token: str) -> Caller | None:
        """The caller whose ticket this is; None if it is something else. Raises HttpProblem 401."""
        if not token.startswith(f"nvcf-{Purpose.TICKET}-"):
            return None
        return self._sealed(token, Purpose.TICKET)

    def _sealed(self, token: str, purpose: Purpose) -> Caller:
        """Somebody who may read what the key behind a sealed text may read, while that key is good."""
        if self._seals is None:
            raise HttpProblem(401, "the API key is not valid", headers=_INVALID)
        try:
            record = self._registry.keys.get(self._seals.read(token, purpose, self._clock()))
        except InvalidTicket as error:
            raise HttpProblem(401, str(error), headers=_INVALID) from None
        if record is None or not record.is_live(self._clock()):
            raise HttpProblem(401, f"the API key of this {purpose} is no longer valid", headers=_INVALID)
        scopes = (Scope.LIST,) if record.allows(Scope.LIST) else ()
        return Caller(record.nca_id, f"apikey:{record.id}", replace(record, scopes=scopes))


class Authorizer:
    """Decides which version of a function a caller gets."""

    def __init__(self, registry: Registry, chooser: random.Random | None = None) -> None:
        self._registry = registry
        # Not for secrets: it only spreads calls over versions.
        self._chooser = chooser or random.Random()  # noqa: S311

    def version(self, caller: Caller, target: Target) -> FunctionVersion:
        """The version to invoke; with none named, a random one of the active ones.

        Raises HttpProblem 403 (no invoke scope, another account's function, or a key limited to other
        functions) and 404 (no such function, or no deployed version).
        """
        return self._chooser.choice(self.versions(caller, target))

    def versions(self, caller: Caller, target: Target) -> list[FunctionVersion]:
        """The versions a call may go to, at least one. Raises HttpProblem 403 and 404 as `version` does."""
        caller.require(Scope.INVOKE)
        if target.version_id is not None:
            version = self._invocable(caller, target.function_id, target.version_id)
            if not self._registry.index.is_deployed(version.id):
                raise HttpProblem(404, f"version {version.id} is not deployed")
            return [version]
        if self._registry.functions.get(target.function_id) is None:
            raise HttpProblem(404, f"no function {target.function_id}")
        self._own(caller, target.function_id)
        index = self._registry.index
        deployed = index.deployed(target.function_id)
        # While none runs yet, a deployed one takes the request and keeps it until an instance is up.
        candidates = [version_id for version_id in deployed if index.is_running(version_id)] or deployed
        found = [each for name in candidates if (each := self._registry.versions.get(name)) is not None]
        if not found:
            raise HttpProblem(404, f"function {target.function_id} has no active version; deploy one")
        return found

    def followed(self, caller: Caller, function_id: str, version_id: str) -> FunctionVersion:
        """The version of a request that is asked after, deployed or not. Raises HttpProblem 403 and 404."""
        caller.require(Scope.INVOKE)
        version = self._registry.versions.get(version_id)
        if version is None or version.function_id != function_id:
            raise HttpProblem(404, "the function version of this request is gone")
        self._own(caller, function_id)
        return version

    def _invocable(self, caller: Caller, function_id: str, version_id: str) -> FunctionVersion:
        version = self._registry.versions.get(version_id)
        if version is None or version.function_id != function_id:
            raise HttpProblem(404, f"function {function_id} has no version {version_id}")
        self._own(caller, function_id)
        return version

    def _own(self, caller: Caller, function_id: str) -> None:
        function = self._registry.functions.get(function_id)
        if function is None:
            raise HttpProblem(404, f"no function {function_id}")
        if not function.may_be_invoked_by(caller.nca_id):
            raise HttpProblem(403, "the function belongs to another account and is not shared with this one")
        caller.require_function(function_id)
