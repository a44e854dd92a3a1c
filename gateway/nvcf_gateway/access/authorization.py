"""Authentication of callers, and authorization of what they ask for."""

from __future__ import annotations

import hmac
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from nvcf_gateway.access.signed_tokens import (
    DashboardTokens,
    InvalidDashboardToken,
    TokenKind,
    is_dashboard_token,
)
from nvcf_gateway.errors import HttpProblem
from nvcf_gateway.http.routing import Target
from nvcf_gateway.registry import Registry
from nvcf_proto.errors import InvalidToken
from nvcf_proto.models import ApiKey, FunctionVersion, Scope
from nvcf_proto.models.keys import api_key_id, hash_api_key

_OTHER_VERSIONS = "the API key is limited to other versions of this function"
_CHALLENGE = {"WWW-Authenticate": "Bearer"}
_INVALID = {"WWW-Authenticate": 'Bearer error="invalid_token"'}


@dataclass(frozen=True)
class Caller:
    """An authenticated caller. If `viewing`, it has shown a dashboard session, not its API key."""

    nca_id: str
    subject: str
    key: ApiKey
    viewing: bool = False

    def require(self, scope: Scope) -> None:
        """Raise HttpProblem 403 unless the caller's key carries `scope`."""
        if not self.key.allows(scope):
            raise HttpProblem(403, f"the API key lacks the scope '{scope.value}'")

    def require_function(self, function_id: str) -> None:
        """Raise HttpProblem 403 unless the caller's key covers the function."""
        if not self.key.covers(function_id):
            raise HttpProblem(403, f"the API key is limited to other functions than {function_id}")

    def require_unlimited(self, what: str) -> None:
        """Raise HttpProblem 403 if the key is limited to some functions, which forbids `what`."""
        if self.key.function_ids:
            raise HttpProblem(403, f"an API key that is limited to some functions cannot {what}")


def bearer_token(headers: Mapping[str, str]) -> str:
    """Return the token of the `Authorization: Bearer` header. Raises HttpProblem 401."""
    value = headers.get("Authorization")
    if value is None:
        raise HttpProblem(401, "header Authorization: Bearer <token> is missing", headers=_CHALLENGE)
    return read_bearer(value)


def read_bearer(value: str) -> str:
    """Return the token of `Bearer <token>`. Raises HttpProblem 401."""
    scheme, _, token = value.partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token or not token.isascii():
        raise HttpProblem(401, "header Authorization must be: Bearer <token>", headers=_CHALLENGE)
    return token


class Authenticator:
    """Checks API keys against their stored hashes, of which every replica has a copy.

    Without `dashboard_tokens` no tickets and sessions of the dashboard are accepted.
    """

    def __init__(
        self,
        registry: Registry,
        dashboard_tokens: DashboardTokens | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._registry = registry
        self._tokens = dashboard_tokens
        self._clock = clock

    def caller(self, headers: Mapping[str, str]) -> Caller:
        """Return the caller whose API key the request carries. Raises HttpProblem 401."""
        return self.identify(bearer_token(headers))

    def identify(self, token: str) -> Caller:
        """Return the owner of an API key or session. Raises HttpProblem 401: unknown, revoked or expired."""
        if is_dashboard_token(token):
            return replace(self._dashboard_caller(token, TokenKind.SESSION), viewing=True)
        try:
            record = self._registry.keys.get(api_key_id(token))
        except InvalidToken:
            record = None
        # Compare for unknown keys too, so that the time of the comparison reveals nothing.
        expected = record.secret_hash if record is not None else "0" * 64
        if not hmac.compare_digest(expected, hash_api_key(token)) or record is None:
            raise HttpProblem(401, "the API key is not valid", headers=_INVALID)
        # Only a caller that has the whole key learns that it has expired.
        if not record.is_live(self._clock()):
            raise HttpProblem(401, "the API key has expired", headers=_INVALID)
        return Caller(record.nca_id, f"apikey:{record.id}", record)

    def ticket_holder(self, token: str) -> Caller | None:
        """Return the owner of a ticket; None if the token is something else. Raises HttpProblem 401."""
        if not token.startswith(f"nvcf-{TokenKind.TICKET}-"):
            return None
        return self._dashboard_caller(token, TokenKind.TICKET)

    def _dashboard_caller(self, token: str, kind: TokenKind) -> Caller:
        """Return a caller that may list what the API key behind the token may list."""
        if self._tokens is None:
            raise HttpProblem(401, "the API key is not valid", headers=_INVALID)
        try:
            record = self._registry.keys.get(self._tokens.read(token, kind, self._clock()))
        except InvalidDashboardToken as error:
            raise HttpProblem(401, str(error), headers=_INVALID) from None
        if record is None or not record.is_live(self._clock()):
            raise HttpProblem(401, f"the API key of this {kind} is no longer valid", headers=_INVALID)
        scopes = (Scope.LIST,) if record.allows(Scope.LIST) else ()
        return Caller(record.nca_id, f"apikey:{record.id}", record.replace(scopes=scopes))


def _require_version(caller: Caller, version: FunctionVersion) -> None:
    if not caller.key.covers_version(version.function_id, version.id):
        raise HttpProblem(403, _OTHER_VERSIONS)


class Authorizer:
    """Decides which version of a function serves a call."""

    def __init__(self, registry: Registry, chooser: random.Random | None = None) -> None:
        self._registry = registry
        # Not a secret: it only spreads calls over versions.
        self._chooser = chooser or random.Random()  # noqa: S311

    def version(self, caller: Caller, target: Target) -> FunctionVersion:
        """Return the version to invoke: the named one, else a random one of the active ones.

        Raises HttpProblem 403 (no invoke scope, or a key limited to other functions) and 404 (no such
        function in the account or shared with it, or no deployed version).
        """
        found = self.versions(caller, target)
        return found[0] if len(found) == 1 else self._chooser.choice(found)

    def versions(self, caller: Caller, target: Target) -> list[FunctionVersion]:
        """Return the versions that may serve a call, at least one. Raises HttpProblem as `version` does."""
        caller.require(Scope.INVOKE)
        if target.version_id is not None:
            version = self._invocable(caller, target.function_id, target.version_id)
            if not self._registry.index.is_deployed(version.id):
                raise HttpProblem(404, f"version {version.id} is not deployed")
            return [version]
        self._own(caller, target.function_id)
        index = self._registry.index
        deployed = index.deployed(target.function_id)
        # While none runs, a deployed version queues the request until an instance is up.
        candidates = [version_id for version_id in deployed if index.is_running(version_id)] or deployed
        known = [each for name in candidates if (each := self._registry.versions.get(name)) is not None]
        found = [each for each in known if caller.key.covers_version(each.function_id, each.id)]
        if known and not found:
            raise HttpProblem(403, _OTHER_VERSIONS)
        if not found:
            raise HttpProblem(404, f"function {target.function_id} has no active version; deploy one")
        return found

    def followed(self, caller: Caller, function_id: str, version_id: str) -> FunctionVersion:
        """Return the version of a request of the caller, deployed or not. Raises HttpProblem 403 and 404."""
        caller.require(Scope.INVOKE)
        version = self._registry.versions.get(version_id)
        if version is None or version.function_id != function_id:
            raise HttpProblem(404, "the function version of this request is gone")
        self._own(caller, function_id)
        _require_version(caller, version)
        return version

    def require_invocable(self, caller: Caller, function_id: str, version_id: str | None) -> None:
        """Raise HttpProblem 403 or 404 unless the caller may invoke a function, or one version of it."""
        if version_id is not None:
            self._invocable(caller, function_id, version_id)
            return
        self._own(caller, function_id)
        if any(function == function_id for function, _ in caller.key.versions):
            raise HttpProblem(403, _OTHER_VERSIONS)

    def owner(self, function_id: str) -> str:
        """Return the account that owns a function, an empty text if there is no such function."""
        function = self._registry.functions.get(function_id)
        return "" if function is None else function.nca_id

    def _invocable(self, caller: Caller, function_id: str, version_id: str) -> FunctionVersion:
        self._own(caller, function_id)
        version = self._registry.versions.get(version_id)
        if version is None or version.function_id != function_id:
            raise HttpProblem(404, f"function {function_id} has no version {version_id}")
        _require_version(caller, version)
        return version

    def _own(self, caller: Caller, function_id: str) -> None:
        function = self._registry.functions.get(function_id)
        # Nobody learns which ids exist in other accounts.
        if function is None or not function.may_be_invoked_by(caller.nca_id):
            raise HttpProblem(404, f"no function {function_id}")
        caller.require_function(function_id)
