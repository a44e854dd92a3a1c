"""How many instances of which kind `nvcf deploy` asks for. Pure."""

from dataclasses import dataclass
from enum import StrEnum

from nvcf_cli.api import Json
from nvcf_cli.errors import UsageError

CPU = "CPU"
PROCESS = "process"
"""Instance type of a cluster that is one machine."""


class Profile(StrEnum):
    """GPU time against waits."""

    ECONOMY = "economy"
    BALANCED = "balanced"
    FAST = "fast"


@dataclass(frozen=True)
class Scale:
    """The one GPU specification of a deployment, and its scaling preferences; None: the platform's choice.

    Without an instance type, one is chosen (places.py). Delays and waits are seconds,
    `target_utilisation` is a share (0..1).
    """

    minimum: int = 1
    maximum: int = 1
    concurrency: int = 1
    gpu: str = CPU
    gpus_per_instance: int = 0
    instance_type: str | None = None
    clusters: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    cluster_group: str | None = None
    scale_to_zero_delay: float | None = None
    target_utilisation: float | None = None
    wait_slo: float | None = None
    keep_warm: int | None = None
    profile: str | None = None
    wait_price: float | None = None
    max_execution_seconds: int | None = None
    prefetch: bool = False
    configuration: Json | None = None
    """A Helm chart's values."""

    def deployment(self) -> Json:
        """Return the body of the management API's deployment call."""
        specification: Json = {
            "gpu": self.gpu,
            "instanceType": self.instance_type or PROCESS,
            "minInstances": self.minimum,
            "maxInstances": self.maximum,
            "maxRequestConcurrency": self.concurrency,
            "clusters": list(self.clusters),
            "regions": list(self.regions),
        }
        if self.cluster_group is not None:
            specification["clusterGroup"] = self.cluster_group
        if self.gpus_per_instance:
            specification["gpusPerInstance"] = self.gpus_per_instance
        if self.prefetch:
            specification["prefetch"] = True
        if self.configuration is not None:
            specification["configuration"] = self.configuration
        scaling = {
            "scaleToZeroDelay": self.scale_to_zero_delay,
            "targetUtilisation": self.target_utilisation,
            "waitSlo": self.wait_slo,
            "keepWarm": self.keep_warm,
            "profile": self.profile,
            "waitPrice": self.wait_price,
        }
        chosen = {name: value for name, value in scaling.items() if value is not None}
        body: Json = {"deploymentSpecifications": [specification], **({"scaling": chosen} if chosen else {})}
        if self.max_execution_seconds is not None:
            body["maxExecutionSeconds"] = self.max_execution_seconds
        return body

    @property
    def text(self) -> str:
        """How many instances, for people: `2 instances`, `0 to 4 instances`."""
        if self.minimum == self.maximum:
            return f"{self.minimum} instance{'s' * (self.minimum != 1)}"
        return f"{self.minimum} to {self.maximum} instances"


def bounds(instances: int | None, minimum: int | None, maximum: int | None) -> tuple[int, int]:
    """Return least and most instances from `--instances`, `--min` and `--max`. Raises `UsageError`."""
    if instances is not None:
        if minimum is not None or maximum is not None:
            raise UsageError("--instances sets both bounds: give either it or --min and --max")
        return instances, max(1, instances)
    low = minimum if minimum is not None else 1 if maximum is None else min(1, maximum)
    high = maximum if maximum is not None else max(1, low)
    if high < low:
        raise UsageError(f"--max {high} is below --min {low}")
    return low, high


# What of a deployment an answer has and a request may have.
_CHANGEABLE = (
    "deploymentSpecifications", "keepQueued", "scaling",
    "maxQueueDepth", "maxBodyBytes", "maxExecutionSeconds",
)  # fmt: skip


def rescaled(
    deployment: Json, place: int, minimum: int | None, maximum: int | None, concurrency: int | None
) -> Json:
    """Return the body that changes one specification (counted from 1) and nothing else.

    Raises `UsageError`.
    """
    body = {name: deployment[name] for name in _CHANGEABLE if deployment.get(name) is not None}
    specifications = [dict(each) for each in body.get("deploymentSpecifications") or ()]
    if place > len(specifications):
        raise UsageError(f"--specification {place}: the deployment has {len(specifications)}")
    each = specifications[place - 1]
    low = each["minInstances"] if minimum is None else minimum
    high = maximum if maximum is not None else max(each["maxInstances"], low, 1)
    if high < low:
        raise UsageError(f"--max {high} is below the least number of instances, {low}: give --min, too")
    each |= {"minInstances": low, "maxInstances": high}
    if concurrency is not None:
        each["maxRequestConcurrency"] = concurrency
    return {**body, "deploymentSpecifications": specifications}


def gpus(gpu: str | None, gpus_per_instance: int | None) -> tuple[str, int]:
    """Return GPU name and count of one instance. Raises `UsageError`."""
    if gpu is None or gpu == CPU:
        if gpus_per_instance:
            raise UsageError("--gpus-per-instance needs --gpu NAME: nvcf clusters shows what there is")
        return CPU, 0
    return gpu, 1 if gpus_per_instance is None else gpus_per_instance
