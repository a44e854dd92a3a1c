"""Bodies of the administrator's calls about clusters, and the records they become. Pure."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from typing import Annotated

from msgspec import Meta, field

from nvcf_gateway.access.agent_identity import read_key_set
from nvcf_proto.compute import RegisteredCluster
from nvcf_proto.errors import InvalidRecord
from nvcf_proto.models import MAX_ACCOUNTS_IN_LIST, NAME_PATTERN, Record
from nvcf_proto.models.functions import ACCOUNT_PATTERN
from nvcf_proto.models.record import matching

EVERYBODY = "*"
_NAMESPACE = uuid.UUID("5b1a4a0c-3b0f-5c1e-9a53-6f1d1f3c7b21")
_PROVIDERS = r"(OCI|ON-PREM|DGX-CLOUD|AWS|AZURE|GCP|NCP|GFN|GDN)"

ClusterName = Annotated[str, matching(NAME_PATTERN)]
Attribute = Annotated[str, Meta(max_length=256)]


class ClusterChange(Record, frozen=True, kw_only=True):
    """All that an administrator says of a cluster but its name.

    Members that cloud-functions also sends (capabilities, clusterSource and others) are ignored.
    """

    group: Annotated[str, matching(rf"({NAME_PATTERN})?", max_length=128)] = field(
        name="clusterGroupName", default=""
    )
    description: Annotated[str, Meta(max_length=1024)] = field(name="clusterDescription", default="")
    region: Annotated[str, matching(r"[A-Za-z0-9_-]{1,64}")] = "local"
    authorized_nca_ids: (
        Annotated[
            tuple[Annotated[str, matching(rf"(\*|{ACCOUNT_PATTERN})")], ...],
            Meta(
                max_length=MAX_ACCOUNTS_IN_LIST,
                description="Accounts whose functions may run there. Others than the own one, and `*` for "
                "all, need a key with the scope operator. Default: all with that scope, else the own one.",
            ),
        ]
        | None
    ) = field(name="authorizedNCAIds", default=None)
    cloud_provider: Annotated[str, matching(_PROVIDERS)] = "ON-PREM"
    attributes: Annotated[dict[str, Attribute], Meta(max_length=64)] = field(default_factory=dict)
    jwks: Annotated[str, Meta(max_length=64 * 1024, description="A JSON Web Key Set, as text.")] | None = None
    oidc_issuer: Annotated[str, matching(r"https?://[\x21-\x7e]+", max_length=1024)] | None = None

    def __post_init__(self) -> None:
        if self.jwks is not None:
            try:
                read_key_set(self.jwks)
            except ValueError as error:
                raise InvalidRecord("jwks", str(error)) from None


class ClusterCreation(ClusterChange, frozen=True, kw_only=True):
    """A new cluster. Without a key set its agent gets a key."""

    name: ClusterName = field(name="clusterName")


def cluster_id_of(nca_id: str, name: str, generation: int) -> str:
    """Return the id of an account's cluster of that name; earlier generations were deleted.

    Two gateways that register the same name at the same time find the same id, and one of them is refused.
    """
    return str(uuid.uuid5(_NAMESPACE, f"{nca_id}/{name}/{generation}"))


def new_cluster(
    cluster_id: str, nca_id: str, wanted: ClusterCreation, now: float, *, by_operator: bool
) -> RegisteredCluster:
    """Return the record of a new cluster."""
    accounts = (EVERYBODY,) if by_operator else (nca_id,)
    bare = RegisteredCluster(
        id=cluster_id, name=wanted.name, nca_id=nca_id, created_at=now, authorized_nca_ids=accounts
    )
    return changed_cluster(bare, wanted)


def changed_cluster(cluster: RegisteredCluster, wanted: ClusterChange) -> RegisteredCluster:
    """Return the record with what the administrator says now."""
    group_id = str(uuid.uuid5(_NAMESPACE, f"{cluster.nca_id}/{wanted.group}")) if wanted.group else cluster.id
    return cluster.replace(
        group=wanted.group,
        group_id=group_id,
        region=wanted.region,
        description=wanted.description,
        authorized_nca_ids=wanted.authorized_nca_ids or cluster.authorized_nca_ids,
        cloud_provider=wanted.cloud_provider,
        attributes=wanted.attributes,
        jwks=wanted.jwks if wanted.jwks is not None else cluster.jwks,
        jwks_from_agent=cluster.jwks_from_agent and wanted.jwks is None,
        oidc_issuer=wanted.oidc_issuer,
    )


def is_shared(cluster: RegisteredCluster) -> bool:
    """Return whether other accounts' functions may run there."""
    return bool(set(cluster.authorized_nca_ids) - {cluster.nca_id})


def deleted(cluster: RegisteredCluster, key_ids: Iterable[str], now: float) -> RegisteredCluster:
    """Return the record of a deleted cluster, for as long as its agent is told to end everything."""
    if cluster.evicted:
        return cluster
    return cluster.replace(evicted=True, evicted_at=now, evicted_keys=tuple(key_ids))


def remembered(cluster: RegisteredCluster) -> RegisteredCluster:
    """Return what stays of a deleted cluster: no other cluster ever gets its id."""
    return RegisteredCluster(
        id=cluster.id,
        name=cluster.name,
        nca_id=cluster.nca_id,
        created_at=cluster.created_at,
        evicted=True,
        evicted_at=cluster.evicted_at,
        evicted_keys=cluster.evicted_keys,
    )
