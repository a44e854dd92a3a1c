"""Headers and query parameters as handlers see them (protocol.md, section 5.4)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from nvcf_proto import headers as names
from nvcf_worker.control.config import WorkerConfig


class MultiMap(Mapping[str, str]):
    """Ordered names with one or more values each; `map[name]` is the first value."""

    __slots__ = ("_index", "_pairs")

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        self._pairs = tuple(pairs)
        index: dict[str, list[str]] = {}
        for name, value in self._pairs:
            index.setdefault(self._key(name), []).append(value)
        self._index = index

    @staticmethod
    def _key(name: str) -> str:
        return name

    def __getitem__(self, name: str) -> str:
        return self._index[self._key(name)][0]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._key(name) in self._index

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)

    def get_all(self, name: str) -> list[str]:
        """Return every value of a name, in the order of the request."""
        return list(self._index.get(self._key(name), ()))

    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Return every name and value as it came."""
        return self._pairs

    def __repr__(self) -> str:
        return f"{type(self).__name__}({list(self._pairs)!r})"


class Headers(MultiMap):
    """HTTP headers: names compare without regard to case and iterate in lower case."""

    __slots__ = ()

    @staticmethod
    def _key(name: str) -> str:
        return name.lower()


class NamedFiles(NamedTuple):
    """Directories that the headers name. An empty list and an empty output directory are left out.

    Without assets the asset directory is a name only.
    """

    asset_dir: str
    asset_ids: tuple[str, ...]
    output_dir: str


def constant_headers(config: WorkerConfig, region: str) -> list[tuple[str, str]]:
    """Return the headers that are the same for each request; those without a value are left out."""
    candidates = (
        (names.NVCF_FUNCTION_NAME, config.function_name),
        (names.NVCF_FUNCTION_ID, config.function_id),
        (names.NVCF_FUNCTION_VERSION_ID, config.version_id),
        (names.NVCF_BACKEND, config.backend),
        (names.NVCF_INSTANCETYPE, config.instance_type),
        (names.NVCF_REGION, config.zone or region),
        (names.NVCF_ENV, config.environment),
    )
    return [(name, value) for name, value in candidates if value]


def function_headers(
    sent: Iterable[tuple[str, str]],
    constant: Iterable[tuple[str, str]],
    *,
    request_id: str,
    subject: str,
    nca_id: str,
    max_response_bytes: int,
    seconds_left: float,
    files: NamedFiles | None = None,
) -> list[tuple[str, str]]:
    """Return all headers that the handler sees.

    Names of WORKER_SET, in any form that servers fold, are dropped from what the caller sent.
    NVCF-POLL-SECONDS becomes the time left, in whole seconds, at least 1.
    """
    poll = names.NVCF_POLL_SECONDS.lower()
    kept = [
        (name, value)
        for name, value in names.strip_hop_by_hop(sent)
        if (reserved := names.folded(name)) not in names.WORKER_SET and reserved != poll
    ]
    kept += constant
    kept.append((names.NVCF_REQID, request_id))
    kept.append((names.NVCF_POLL_SECONDS, str(max(1, math.ceil(seconds_left)))))
    if subject:
        kept.append((names.NVCF_SUB, subject))
    if nca_id:
        kept.append((names.NVCF_NCAID, nca_id))
    if max_response_bytes:
        kept.append((names.NVCF_MAX_RESPONSE_SIZE_BYTES, str(max_response_bytes)))
    if files is not None:
        kept.append((names.NVCF_ASSET_DIR, files.asset_dir))
        if files.asset_ids:
            kept.append((names.NVCF_FUNCTION_ASSET_IDS, ",".join(files.asset_ids)))
        if files.output_dir:
            kept.append((names.NVCF_LARGE_OUTPUT_DIR, files.output_dir))
    return kept
