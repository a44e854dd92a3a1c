"""The sealed secrets of all accounts: read, changed and removed. Values are plain only in memory, briefly."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

import msgspec

from nvcf_broker.errors import BrokerError, KeyExistsError, RevisionConflictError
from nvcf_broker.jetstream import JetStream, Requester
from nvcf_broker.kv import KvMirror
from nvcf_broker.records import Entry
from nvcf_gateway.errors import HttpProblem, StoreUnavailable
from nvcf_gateway.quotas.limits import Quota
from nvcf_gateway.quotas.usage import Usage
from nvcf_gateway.secrets.audit import SecretAudit
from nvcf_gateway.secrets.keys import KeyService
from nvcf_gateway.secrets.owners import Owner
from nvcf_gateway.secrets.sealing import Context, Unsealable
from nvcf_proto.models import SecretSet
from nvcf_proto.models.secrets import MAX_SEALED_BYTES, MAX_SECRETS

ATTEMPTS = 5
CHANGE_TIMEOUT = 0.5
ROOM_SHARE = 8
DEFAULT_ROOM = 64 * 1024 * 1024
NO_SECRETS = '"none"'


async def secrets_room(requests: Requester) -> int:
    """Return how many sealed bytes all accounts may have together: an eighth of the broker account."""
    limit = (await JetStream(requests).account_info()).limit
    return DEFAULT_ROOM if limit is None else min(DEFAULT_ROOM, limit // ROOM_SHARE)


class SecretStore:
    """Sealed secrets by owner. Without `keys` there is nothing to seal them with, and none are accepted."""

    def __init__(
        self,
        mirror: KvMirror[SecretSet],
        keys: KeyService | None,
        usage: Usage,
        audit: SecretAudit,
        room: int = DEFAULT_ROOM,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.mirror = mirror
        self.keys = keys
        self._usage = usage
        self._audit = audit
        self._room = room
        self._clock = clock

    def names(self, key: str) -> list[str]:
        """Return the names of an owner's secrets."""
        found = self.mirror.get(key)
        return [] if found is None else sorted(found.sealed)

    def tag(self, key: str) -> str:
        """Return a text (an HTTP entity tag) that changes with the secrets of an owner."""
        entry = self.mirror.entry(key)
        # A bucket that was made anew counts revisions from 1 again.
        return NO_SECRETS if entry is None else f'"{entry.revision}-{entry.value.updated_at:.3f}"'

    def require_keys(self) -> KeyService:
        """Return the key service. Raises HttpProblem 501 without one."""
        if self.keys is None:
            detail = "this gateway has no sealing keys, so it takes no secrets: give it --sealing-keys"
            raise HttpProblem(501, detail)
        return self.keys

    def require_known(self, key: str, *, expected: bool) -> None:
        """Raise HttpProblem 503 if an owner is `expected` to have a record of secrets, and has none.

        One whose secrets were all removed has an empty record. So the broker has lost it, or it was restored
        from an older backup: that is not the same as no secrets.
        """
        if expected and key not in self.mirror and not self.mirror.is_deleted(key):
            raise HttpProblem(503, "the secrets are lost: set them again")

    async def values(self, key: str) -> dict[str, Any]:
        """Return the secrets of an owner. Raises HttpProblem 503 if they cannot be opened."""
        found = self.mirror.get(key)
        if found is None:
            return {}
        keys = self.require_keys()
        opened = {}
        for name, text in found.sealed.items():
            try:
                value = await keys.unseal(text, Context(found.nca_id, found.owner, name))
            except Unsealable as error:
                raise HttpProblem(503, f"the secret {name} cannot be opened: {error}") from None
            opened[name] = msgspec.json.decode(value)
        return opened

    async def merge(self, owner: Owner, values: Mapping[str, Any], by: str, *, only: bool = False) -> None:
        """Add secrets to those of an owner, or replace those of the same name; with `only` drop all others.

        `by` is who asked. Raises HttpProblem 400 (too many for one owner), 409, 501, 503 and 507.
        """
        if not values:
            return
        keys = self.require_keys()
        sealed = {
            name: await keys.seal(msgspec.json.encode(value), Context(owner.nca_id, owner.key, name))
            for name, value in values.items()
        }

        def changed(before: Mapping[str, str]) -> dict[str, str]:
            return sealed if only else {**before, **sealed}

        before = await self._change(owner, changed)
        added, replaced = sorted(sealed.keys() - before), sorted(sealed.keys() & before)
        if added:
            await self._audit.record(owner, "set", added, by)
        if replaced:
            await self._audit.record(owner, "rotate", replaced, by)

    async def remove(self, owner: Owner, by: str, names: Collection[str] | None = None) -> list[str]:
        """Remove secrets of an owner, without `names` all of them; return the names of the removed ones.

        Raises HttpProblem 409 and 503.
        """

        def changed(before: Mapping[str, str]) -> dict[str, str]:
            gone = before.keys() if names is None else names
            return {name: text for name, text in before.items() if name not in gone}

        before = await self._change(owner, changed)
        removed = sorted(before if names is None else before & set(names))
        if removed:
            await self._audit.record(owner, "delete", removed, by)
        return removed

    async def reseal(self, key: str) -> bool:
        """Seal the secrets under `key` with the current key; return whether any had another one.

        Raises Unsealable and BrokerError; a change by somebody else in the same moment is one of these.
        """
        entry, keys = self.mirror.entry(key), self.keys
        if entry is None or keys is None or all(map(keys.is_current, entry.value.sealed.values())):
            return False
        found = entry.value
        sealed = {}
        for name, text in found.sealed.items():
            context = Context(found.nca_id, found.owner, name)
            sealed[name] = await keys.seal(await keys.unseal(text, context), context)
        await self.mirror.update(key, found.replace(sealed=sealed), entry.revision)
        return True

    async def _change(self, owner: Owner, changed: Callable[[Mapping[str, str]], dict[str, str]]) -> set[str]:
        """Write what `changed` makes of the newest secrets; return the names that were there before."""
        for _ in range(ATTEMPTS):
            entry = self.mirror.entry(owner.key)
            before = {} if entry is None else entry.value.sealed
            after = changed(before)
            if after == before:
                return set(before)
            made = SecretSet(owner.key, owner.nca_id, self._clock(), after)
            self._admit(owner, made, entry)
            try:
                if entry is None:
                    await self.mirror.create(owner.key, made)
                else:
                    # Also if none are left: without a record nobody could tell that from a loss.
                    await self.mirror.update(owner.key, made, entry.revision)
            except (RevisionConflictError, KeyExistsError):
                # Another replica was faster: its change is on the way to this mirror.
                await self.mirror.wait_change(CHANGE_TIMEOUT)
            except BrokerError as error:
                raise StoreUnavailable(str(error)) from None
            else:
                return set(before)
        raise HttpProblem(409, "the secrets are being changed by others, try again")

    def _admit(self, owner: Owner, made: SecretSet, entry: Entry[SecretSet] | None) -> None:
        """Raise HttpProblem 400 or 507 unless the secrets fit."""
        count, size = (0, 0) if entry is None else (len(entry.value.sealed), entry.value.size)
        if len(made.sealed) <= count and made.size <= size:
            return
        if len(made.sealed) > MAX_SECRETS or made.size > MAX_SEALED_BYTES:
            limits = f"{MAX_SECRETS} secrets and {MAX_SEALED_BYTES // 1024} KiB of sealed ones"
            raise HttpProblem(400, f"{owner.what} may have {limits}", field="secrets")
        self._usage.require(owner.nca_id, Quota.SECRETS, len(made.sealed) - count)
        self._usage.require(owner.nca_id, Quota.SECRET_BYTES, made.size - size)
        if sum(each.size for each in self.mirror.values()) + made.size - size > self._room:
            raise HttpProblem(507, f"all accounts together may have {self._room // 2**20} MiB of secrets")
