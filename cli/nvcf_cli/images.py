"""Functions that are container images or Helm charts: the body of their creation. Pure."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from nvcf_cli.api import Json
from nvcf_cli.charts import name_from_chart
from nvcf_cli.errors import UsageError

TYPES = ("DEFAULT", "STREAMING", "LLM")


@dataclass(frozen=True)
class Artifact:
    """What an agent of a Kubernetes cluster runs: an image or a chart, never both."""

    image: str | None = None
    chart: str | None = None
    chart_service: str | None = None
    arguments: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    port: int | None = None
    inference_url: str | None = None
    health: str | None = None
    library: bool = False

    def __post_init__(self) -> None:
        if (self.image is None) == (self.chart is None):
            raise UsageError("give either --image or --helm-chart")
        if (self.chart is None) != (self.chart_service is None):
            raise UsageError("--helm-chart and --helm-service belong together: the chart's service to call")
        if self.chart is not None and (self.arguments or self.environment):
            raise UsageError("--args and --env belong to an image; a chart has its values")
        if self.chart is not None and self.library:
            raise UsageError("--library belongs to an image: a chart gets a worker beside it")

    def check_deployment(self, *, values: bool, prefetch: bool) -> None:
        """Raise `UsageError` for options of a deployment that it does not have."""
        if values and self.chart is None:
            raise UsageError("--values belongs to --helm-chart")
        if prefetch and self.image is None:
            raise UsageError("--prefetch belongs to --image: images of a chart are known once it is rendered")

    @property
    def own_name(self) -> str:
        """Name of a function that is given none."""
        return name_from_image(self.image) if self.image is not None else name_from_chart(self.chart or "")

    def members(self) -> Json:
        """Return the members of the management API's creation call."""
        health = {"protocol": "HTTP", "uri": self.health, "port": self.port} if self.health else None
        members = {
            "containerImage": self.image,
            "helmChart": self.chart,
            "helmChartServiceName": self.chart_service,
            "containerArgs": self.arguments,
            "containerEnvironment": [
                {"key": name, "value": value} for name, value in self.environment.items()
            ],
            "workerMode": "library" if self.library else None,
            "inferencePort": self.port,
            "inferenceUrl": self.inference_url,
            "health": {name: value for name, value in health.items() if value is not None}
            if health
            else None,
        }
        return {name: value for name, value in members.items() if value not in (None, [])}


def name_from_image(image: str) -> str:
    """Return a function's name made from its image's: `registry/team/echo:1.2` is `echo`."""
    last = image.rsplit("/", 1)[-1]
    stem = re.split(r"[:@]", last, maxsplit=1)[0]
    return re.sub(r"[^a-zA-Z0-9_-]", "-", stem).lstrip("_-")[:128] or "function"


def creation(
    artifact: Artifact, *, name: str, kind: str, description: str | None, tags: Iterable[str]
) -> Json:
    """Return the body that creates a function. Raises `UsageError`."""
    if kind not in TYPES:
        raise UsageError(f"--type {kind}: one of {', '.join(TYPES)} expected")
    more = {"description": description, "tags": list(tags)}
    return {
        "name": name,
        "functionType": kind,
        **artifact.members(),
        **{member: value for member, value in more.items() if value},
    }


def served_models(options: Sequence[str], kind: str, token_rate: str | None) -> Json:
    """Return the member `models` of `--model NAME=PATH[,PATH]`, if there is any. Raises `UsageError`."""
    if (kind == "LLM") != bool(options):
        raise UsageError("--type LLM needs --model NAME=PATH[,PATH], and --model needs --type LLM")
    if token_rate is not None and not options:
        raise UsageError("--token-rate belongs to --model")
    models = []
    for option in options:
        name, _, paths = option.partition("=")
        uris = [path.strip() for path in paths.split(",")]
        if not name or not all(path.startswith("/") for path in uris):
            raise UsageError(f"--model {option}: NAME=PATH[,PATH] expected, as tiny=/v1/chat/completions")
        rate = {} if token_rate is None else {"tokenRateLimit": token_rate}
        models.append({"name": name, "llmConfig": {"uris": uris, **rate}})
    return {"models": models} if models else {}
