"""Who calls, and what a caller may do."""

from __future__ import annotations

import hmac
import random
from collections.abc import Mapping
from dataclasses import dataclass

from nvcf_gateway.errors import HttpProblem
from nvcf_gateway.registry import Registry
from nvcf_gateway.routing import Target
from nvcf_proto.apikeys import api_key_id, hash_api_key
from nvcf_proto.errors import InvalidToken
from nvcf_proto.models import ApiKey, FunctionVersion, Scope

_CHALLENGE = {"WWW-Authenticate": "Bearer"}


@dataclass(frozen=True)
class Caller:
    """An authenticated caller."""

    nca_id: str
    subject: str
    key: ApiKey

    def require(self, scope: Scope) -> None:
        """Raise HttpProblem 403 unless the caller's key carries `scope`."""
        if not self.key.allows(scope):
            raise HttpProblem(403, f"the API key lacks the scope '{scope.value}'")


def bearer_token(headers: Mapping[str, str]) -> str:
    """The token of an `Authorization: Bearer` header. Raises HttpProblem 401."""
    value = headers.get("Authorization")
    if value is None:
        raise HttpProblem(401, "header Authorization: Bearer <token> is missing", headers=_CHALLENGE)
    scheme, _, token = value.partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token or not token.isascii():
        raise HttpProblem(401, "header Authorization must be: Bearer <token>", headers=_CHALLENGE)
    return token


class Authenticator:
    """Checks API keys against their stored hashes."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def caller(self, headers: Mapping[str, str]) -> Caller:
        """The caller whose API key the request carries. Raises HttpProblem 401."""
        token = bearer_token(headers)
        try:
            record = self._registry.keys.get(api_key_id(token))
        except InvalidToken:
            record = None
        # The comparison runs for unknown keys too, so that its time tells nothing.
        expected = record.secret_hash if record is not None else "0" * 64
        if not hmac.compare_digest(expected, hash_api_key(token)) or record is None:
            raise HttpProblem(401, "the API key is not valid", headers=_CHALLENGE)
        return Caller(record.nca_id, f"apikey:{record.id}", record)


class Authorizer:
    """Decides which version of a function a caller gets."""

    def __init__(self, registry: Registry, chooser: random.Random | None = None) -> None:
        self._registry = registry
        # Not for secrets: it only spreads calls over versions.
        self._chooser = chooser or random.Random()  # noqa: S311

    def version(self, caller: Caller, target: Target) -> FunctionVersion:
        """The version to invoke; with none named, a random one of the active ones.

        Raises HttpProblem 403 (no invoke scope, or another account's function) and 404 (no such
        function, or no deployed version).
        """
        caller.require(Scope.INVOKE)
        versions, index = self._registry.versions, self._registry.index
        if target.version_id is not None:
            version = versions.get(target.version_id)
            if version is None or version.function_id != target.function_id:
                raise HttpProblem(404, f"function {target.function_id} has no version {target.version_id}")
            self._own(caller, version.nca_id)
            if not index.is_deployed(version.id):
                raise HttpProblem(404, f"version {version.id} is not deployed")
            return version
        function = self._registry.functions.get(target.function_id)
        if function is None:
            raise HttpProblem(404, f"no function {target.function_id}")
        self._own(caller, function.nca_id)
        deployed = index.deployed(target.function_id)
        # While none runs yet, a deployed one takes the request and keeps it until an instance is up.
        candidates = [version_id for version_id in deployed if index.is_running(version_id)] or deployed
        chosen = versions.get(self._chooser.choice(candidates)) if candidates else None
        if chosen is None:
            raise HttpProblem(404, f"function {target.function_id} has no active version; deploy one")
        return chosen

    @staticmethod
    def _own(caller: Caller, nca_id: str) -> None:
        if caller.nca_id != nca_id:
            raise HttpProblem(403, "the API key belongs to another account than the function")
