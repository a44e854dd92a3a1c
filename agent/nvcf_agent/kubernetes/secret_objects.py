"""Secrets of instances as Kubernetes Secrets, which the kubelet brings into running pods (in about 1 min)."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvcf_agent.errors import StartError
from nvcf_agent.kubernetes.client.api import Api
from nvcf_agent.kubernetes.client.errors import ApiError
from nvcf_agent.kubernetes.client.kinds import SECRET
from nvcf_agent.kubernetes.helm import names
from nvcf_agent.kubernetes.pods.names import secret_name
from nvcf_agent.kubernetes.pods.render import encoded
from nvcf_agent.kubernetes.pods.variables import SECRETS
from nvcf_proto.secrets import SECRETS_FILE

Place = Callable[[str], tuple[str, str]]
"""Returns namespace and name of the Secret of an instance's id."""


@dataclass(frozen=True)
class SecretObjects:
    """Writes `secrets.json` of instances into their Secrets, which the backend makes and removes."""

    api: Api
    place: Place

    async def open(self) -> None:
        return None

    async def close(self) -> None:
        return None

    async def make(self, instance_id: str, home: Path | None, uid: int | None) -> Path:
        return Path(SECRETS)

    async def write(self, instance_id: str, values: Mapping[str, Any]) -> None:
        text = encoded(json.dumps(values)) if values else None
        namespace, name = self.place(instance_id)
        try:
            await self.api.patch(SECRET, name, namespace, {"data": {SECRETS_FILE: text}})
        except ApiError as error:
            if not error.is_missing:
                raise StartError(f"the secrets of instance {instance_id} are not written: {error}") from error

    async def remove(self, instance_id: str) -> None:
        return None


def of_pods(namespace: str) -> Place:
    """Return where the Secrets of container functions are."""
    return lambda instance_id: (namespace, secret_name(instance_id, "secrets"))


def of_chart(instance_id: str) -> tuple[str, str]:
    """Return where the Secret of a Helm function's instance is."""
    return names.namespace_of(instance_id), names.FUNCTION_SECRETS
