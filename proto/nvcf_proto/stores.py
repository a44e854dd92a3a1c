"""Every stream, bucket and object store of the platform: who writes it, its bounds, what happens at a bound.

Whoever creates one takes its bounds from here. docs/operate/reliability.md shows this table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nvcf_proto.budget import DEFAULT_DATA_BUDGET, KIB, MIB


@dataclass(frozen=True)
class Store:
    """Bounds of one store, or of one kind of store. R is a region, V a version.

    `max_message` is in bytes. `share` is its part of the budget of tenants' data; without one only the limit
    of its broker account bounds its bytes, or `most`. `max_age` is said in words.
    """

    name: str
    account: Literal["control", "data"]
    writer: str
    max_message: int
    max_age: str
    at_bound: str
    share: float = 0.0
    most: int = 0
    per_subject: int | None = None

    def bounds(self, budget: int | None = None, *, parts: int = 1) -> dict[str, int]:
        """Return the JetStream settings that bound it; `parts` such stores share the data budget."""
        bounds = {"max_msg_size": self.max_message}
        if self.per_subject is not None:
            bounds["max_msgs_per_subject"] = self.per_subject
        if self.share:
            bounds["max_bytes"] = int((budget or DEFAULT_DATA_BUDGET) * self.share) // parts
        elif self.most:
            bounds["max_bytes"] = self.most
        return bounds


_REFUSED = "writes fail; tenants' data cannot cause it"
_OLDEST_GO = "the oldest go"

RECORDS = Store("KV_nvcf_*", "control", "gateway, autoscaler, agents", MIB, "none", _REFUSED, per_subject=1)
SECRETS = Store(
    "KV_nvcf_secrets",
    "control",
    "gateway",
    MIB,
    "as their owner",
    "507 to the caller at an eighth of the account",
    per_subject=1,
)
TASKS = Store(
    "KV_nvcf_tasks, KV_nvcf_task_results",
    "control",
    "gateway, autoscaler",
    MIB,
    "7 days after the end",
    "507 to the caller at the quota `tasks`, or at a quarter of the account",
    per_subject=1,
)
COMMANDS = Store(
    "CreateNvcaFunctionTaskStream, TerminateNvcaStream",
    "control",
    "gateway, autoscaler",
    MIB,
    "96 h",
    _OLDEST_GO,
    most=16 * MIB,
)
EVENTS = Store(
    "nvcf_events", "control", "gateway, autoscaler, agents", 64 * KIB, "7 days", _OLDEST_GO, most=16 * MIB
)
SCALING_HISTORY = Store(
    "nvcf_scaling_history",
    "control",
    "autoscaler",
    64 * KIB,
    "8 days",
    _OLDEST_GO + "; 100 versions of an account in an hour; an eighth of the broker account",
    most=64 * MIB,
    per_subject=1,
)
PROBE = Store("nvcf_probe", "control", "gateway", 64 * KIB, "none", _OLDEST_GO)
QUEUE = Store(
    "rq_R_V",
    "data",
    "gateway",
    6 * MIB,
    "none",
    "429 to the caller",
    per_subject=1,
)
TRACKING = Store(
    "requestToFunctionVersion_R",
    "data",
    "gateway",
    64 * KIB,
    "1 h",
    "the next stream takes it",
    share=0.02,
    per_subject=1,
)
MORE_TRACKING = Store(
    "nvcf_tracking_R",
    "data",
    "gateway",
    4 * KIB,
    "1 h",
    "503 to the caller",
    share=0.01,
    per_subject=1,
)
IDEMPOTENCY = Store(
    "KV_nvcf_idempotency",
    "data",
    "gateway",
    64 * KIB,
    "`--results-ttl`",
    "503 to the caller",
    share=0.05,
    per_subject=1,
)
SESSIONS = Store(
    "stateful_session_lookup_R",
    "data",
    "workers",
    4 * KIB,
    "1 h",
    _OLDEST_GO,
    share=0.01,
    per_subject=1,
)
OWN_SESSIONS = Store(
    "nvcf_sessions_R",
    "data",
    "gateway",
    4 * KIB,
    "24 h",
    _OLDEST_GO,
    share=0.01,
    per_subject=1,
)
# The metadata message of an object carries the headers of a response: less than 512 KiB.
RESULTS = Store(
    "OBJ_nvcf_results_R", "data", "gateway", MIB, "`--results-ttl`", "503 to the worker", share=0.25
)
LARGE_RESULTS = Store(
    "OBJ_nvcf_large_R", "data", "gateway, for workers", MIB, "`--results-ttl`", "507 to the worker", share=0.1
)
BODIES = Store("OBJ_nvcf_bodies_R", "data", "gateway", MIB, "`--results-ttl`", "503 to the caller", share=0.1)
ASSETS = Store(
    "OBJ_nvcf_assets_R", "data", "gateway, for callers", MIB, "30 days", "507 to the caller", share=0.2
)

CONTROL_STREAMS = (
    *(
        f"KV_nvcf_{records}"
        for records in (
            "functions",
            "versions",
            "deployments",
            "instances",
            "api_keys",
            "clusters",
            "registered_clusters",
            "telemetries",
            "secrets",
            "registries",
            "leases",
            "scaling_orders",
            "tasks",
            "task_results",
        )
    ),
    "CreateNvcaFunctionTaskStream",
    "TerminateNvcaStream",
    "nvcf_events",
    "nvcf_scaling_history",
    "nvcf_probe",
)
"""Streams in the broker account of the control plane."""

ASSET_INDEX = Store(
    "KV_nvcf_asset_index", "data", "gateway", MIB, "as its asset", "503 to the caller", per_subject=1
)

KEPT_COUNTS = Store(
    "KV_nvcf_kept_answers", "data", "gateway", 64 * KIB, "`--results-ttl`", "counts are late", per_subject=1
)

STORES = (
    ASSET_INDEX,
    KEPT_COUNTS,
    RECORDS,
    SECRETS,
    TASKS,
    COMMANDS,
    EVENTS,
    SCALING_HISTORY,
    PROBE,
    QUEUE,
    TRACKING,
    MORE_TRACKING,
    IDEMPOTENCY,
    SESSIONS,
    OWN_SESSIONS,
    RESULTS,
    LARGE_RESULTS,
    BODIES,
    ASSETS,
)
