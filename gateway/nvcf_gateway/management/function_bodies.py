"""Bodies of requests that create and change functions and versions, and what must hold among their fields."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from typing import Annotated

from msgspec import Meta
from msgspec.structs import force_setattr

from nvcf_gateway.management.secret_bodies import SecretList, values_of
from nvcf_proto.charts.source import InvalidSource, chart_source
from nvcf_proto.errors import InvalidRecord
from nvcf_proto.models import MAX_ACCOUNTS_IN_LIST, NAME_PATTERN, FunctionType, ProcessSource, RateLimit
from nvcf_proto.models.containers import Image, TaskContainer, VersionSettings
from nvcf_proto.models.functions import Account, Rate
from nvcf_proto.models.llm import LlmConfigUpdate, LlmInvocationConfig
from nvcf_proto.models.record import Record, matching

MAX_TAGS = 64
MAX_UPDATES = 256

Name = Annotated[str, matching(NAME_PATTERN)]
Tag = Annotated[str, matching(r"[a-zA-Z0-9_:=-]+", max_length=128)]
Tags = Annotated[tuple[Tag, ...], Meta(max_length=MAX_TAGS)]
VersionDescription = Annotated[str, Meta(max_length=256)]


class RateLimitSetting(Record, frozen=True, forbid_unknown_fields=True):
    """What each account may call, but for those that are exempt."""

    rate_limit: Rate
    exempted_nca_ids: Annotated[tuple[Account, ...], Meta(max_length=MAX_ACCOUNTS_IN_LIST)] = ()
    sync_check: bool = False

    def applied_to(self, policy: RateLimit | None) -> RateLimit:
        """Return the policy with these settings; the rates of single accounts and users stay."""
        return (policy or RateLimit()).replace(
            rate=self.rate_limit, excluded=self.exempted_nca_ids, sync_check=self.sync_check
        )


class VersionCreation(VersionSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A new version. Give one of containerImage, helmChart, models and process."""

    name: Name | None = None
    inference_url: Annotated[str, matching(r"/[\x21-\x7e]*", max_length=2048)] = "/"
    inference_port: Annotated[int, Meta(ge=0, le=65_535, description="0 counts as absent.")] | None = None
    description: VersionDescription | None = None
    tags: Tags = ()
    function_type: FunctionType = FunctionType.DEFAULT
    container_image: Image | None = None
    process: ProcessSource | None = None
    rate_limit: RateLimitSetting | None = None
    secrets: SecretList = ()

    def __post_init__(self) -> None:
        values_of(self.secrets)
        if self.inference_port == 0:
            force_setattr(self, "inference_port", None)
        force_setattr(self, "tags", tuple(dict.fromkeys(self.tags)))
        self._check_source()
        self._check_models()
        check_container(self)
        if self.telemetries is not None and not self.telemetries.by_type():
            raise InvalidRecord("telemetries", "name at least one telemetry endpoint")

    def _check_source(self) -> None:
        sources = {
            "containerImage": self.container_image,
            "helmChart": self.helm_chart,
            "process": self.process,
        }
        given = [name for name, value in sources.items() if value is not None]
        if len(given) > 1:
            raise InvalidRecord(given[0], f"cannot be given together with {given[1]}")
        if not given and not self.models:
            raise InvalidRecord("containerImage", "give one of containerImage, helmChart, models and process")
        if (self.helm_chart is None) != (self.helm_chart_service_name is None):
            reason = "helmChart and helmChartServiceName belong together: give both or none"
            raise InvalidRecord("helmChartServiceName", reason)
        if self.worker_mode is not None and self.container_image is None:
            raise InvalidRecord("workerMode", "only for versions with containerImage")
        if self.helm_chart is not None:
            try:
                chart_source(self.helm_chart)
            except InvalidSource as error:
                raise InvalidRecord("helmChart", str(error)) from None
            for name, value in (
                ("containerArgs", self.container_args),
                ("containerEnvironment", self.container_environment),
            ):
                if value:
                    raise InvalidRecord(name, "cannot be given together with helmChart")

    def _check_models(self) -> None:
        llm = self.function_type is FunctionType.LLM
        if llm and not self.models and self.process is None:
            raise InvalidRecord("models", "needed when functionType is LLM")
        if self.llm_invocation_config is not None and not llm:
            raise InvalidRecord("llmInvocationConfig", "only for functions whose functionType is LLM")
        for index, model in enumerate(self.models):
            if llm and (model.llm_config is None or not model.llm_config.uris):
                raise InvalidRecord(f"models[{index}].llmConfig.uris", "needed when functionType is LLM")
            if not llm and (model.version is None or model.uri is None):
                missing = "version" if model.version is None else "uri"
                raise InvalidRecord(
                    f"models[{index}].{missing}", "version and uri are needed unless functionType is LLM"
                )


def check_container(wanted: VersionSettings | TaskContainer) -> None:
    """Raise InvalidRecord for names given twice, and for arguments that are not words of a shell."""
    _require_unique("containerEnvironment", "key", (each.key for each in wanted.container_environment))
    _require_unique("resources", "name", (each.name for each in wanted.resources))
    _require_unique("models", "name", (each.name for each in wanted.models))
    try:
        shlex.split(wanted.container_args or "")
    except ValueError as error:
        raise InvalidRecord("containerArgs", f"not words of a shell: {error}") from None


def _require_unique(field: str, member: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for index, name in enumerate(names):
        if name in seen:
            raise InvalidRecord(f"{field}[{index}].{member}", f"a second entry for {name}")
        seen.add(name)


class FunctionCreation(VersionCreation, frozen=True, kw_only=True):
    """A new function with its first version. Give one of containerImage, helmChart, models and process."""

    name: Name


class MetadataUpdate(Record, frozen=True, forbid_unknown_fields=True):
    """The new tags of a version."""

    tags: Tags

    def __post_init__(self) -> None:
        force_setattr(self, "tags", tuple(dict.fromkeys(self.tags)))


class ModelUpdate(Record, frozen=True, forbid_unknown_fields=True):
    """New rates or another routing of one model."""

    model_name: str
    llm_config: LlmConfigUpdate

    def __post_init__(self) -> None:
        if not self.llm_config.to_dict():
            raise InvalidRecord("llmConfig", "name at least one field to change")


class VersionUpdate(Record, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What can be changed of a version. What is left out stays."""

    description: VersionDescription | None = None
    tags: Tags | None = None
    rate_limit: RateLimitSetting | None = None
    model_updates: Annotated[tuple[ModelUpdate, ...], Meta(max_length=MAX_UPDATES)] = ()
    llm_invocation_config: LlmInvocationConfig | None = None

    def __post_init__(self) -> None:
        if self.tags is not None:
            force_setattr(self, "tags", tuple(dict.fromkeys(self.tags)))
        _require_unique("modelUpdates", "modelName", (each.model_name for each in self.model_updates))
        optional = (self.description, self.tags, self.rate_limit, self.llm_invocation_config)
        if not self.model_updates and all(value is None for value in optional):
            known = "tags, rateLimit, modelUpdates, llmInvocationConfig and description"
            raise InvalidRecord("tags", f"name at least one field to change: {known}")


class RateLimitUpdate(Record, frozen=True, forbid_unknown_fields=True):
    """A version's new rate limit."""

    rate_limit: RateLimitSetting
