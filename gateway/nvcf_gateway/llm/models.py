"""Which function a model's name stands for, and the models that a caller may use.

A name is `functionId/name` or `functionId/versionId/name`; the function gets `name`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from nvcf_gateway.access.authorization import Authorizer, Caller
from nvcf_gateway.errors import HttpProblem
from nvcf_gateway.http.routing import Target
from nvcf_gateway.llm.errors import bad_request, model_not_found
from nvcf_gateway.registry import Registry
from nvcf_proto.ids import is_id
from nvcf_proto.models import Function, FunctionType, FunctionVersion, Scope

MAX_MODEL_CHARACTERS = 512
_FORM = "the model is functionId/name or functionId/versionId/name"


@dataclass(frozen=True, slots=True)
class ModelName:
    """A model as a caller names it: the function, its version if named, and the function's own name."""

    target: Target
    name: str


def parse_model(text: str) -> ModelName:
    """Read the name of a model. Raises HttpProblem 400 for another form."""
    if len(text) > MAX_MODEL_CHARACTERS:
        raise bad_request(f"the model has at most {MAX_MODEL_CHARACTERS} characters", "model")
    function_id, _, name = text.partition("/")
    if not is_id(function_id.lower()):
        raise bad_request(_FORM, "model", "invalid_model")
    version_id, slash, rest = name.partition("/")
    version: str | None = None
    if slash and is_id(version_id.lower()):
        version, name = version_id.lower(), rest
    if not name:
        raise bad_request(_FORM, "model", "invalid_model")
    return ModelName(Target(function_id.lower(), version), name)


def served_names(version: FunctionVersion) -> list[str]:
    """Return the models that a version says it serves.

    A version of type LLM without any serves the name of its function; others say nothing.
    """
    names = [model.name for model in version.models if model.llm_config is not None]
    if not names and version.function_type is FunctionType.LLM:
        return [version.name]
    return names


def may_serve(version: FunctionVersion, name: str) -> bool:
    """Return whether a version takes calls of a model: it declares no models, or this one."""
    declared = [model.name for model in version.models if model.llm_config is not None]
    return not declared or name in declared


def check_endpoint(version: FunctionVersion, name: str, path: str) -> None:
    """Raise HttpProblem 400 unless the model is served at a path; one without declared paths is at all."""
    for model in version.models:
        config = model.llm_config
        if model.name == name and config is not None and config.uris and path not in config.uris:
            served = ", ".join(config.uris)
            text = f"the model is not served at {path}, but at {served}"
            raise bad_request(text, code="endpoint_not_served")


class Models:
    """Resolves and lists models."""

    def __init__(self, registry: Registry, authorizer: Authorizer) -> None:
        self._registry = registry
        self._authorizer = authorizer
        self._chooser = random.SystemRandom()

    def version(self, caller: Caller, model: ModelName, path: str) -> FunctionVersion:
        """Return a version that serves the model at a path, a random one of several.

        Raises HttpProblem 400, 403 and 404.
        """
        try:
            found = self._authorizer.versions(caller, model.target)
        except HttpProblem as problem:
            if problem.status != 404:
                raise
            raise model_not_found(str(problem)) from None
        found = [version for version in found if may_serve(version, model.name)]
        if not found:
            raise model_not_found(f"the function serves no model '{model.name}'")
        version = self._chooser.choice(found)
        check_endpoint(version, model.name, path)
        return version

    def listed(self, caller: Caller) -> list[dict[str, Any]]:
        """Return the models that the caller may use now. Raises HttpProblem 403."""
        caller.require(Scope.INVOKE)
        return sorted(self._listed(caller), key=lambda model: str(model["id"]))

    def _listed(self, caller: Caller) -> Iterator[dict[str, Any]]:
        for function in self._registry.functions.values():
            if function.may_be_invoked_by(caller.nca_id) and caller.key.covers(function.id):
                yield from self._of_function(caller, function)

    def _of_function(self, caller: Caller, function: Function) -> Iterator[dict[str, Any]]:
        found: dict[str, float] = {}
        for version_id in self._registry.index.deployed(function.id):
            version = self._registry.versions.get(version_id)
            if version is not None and caller.key.covers_version(function.id, version_id):
                for name in served_names(version):
                    found[name] = min(version.created_at, found.get(name, version.created_at))
        for name, created in found.items():
            yield {
                "id": f"{function.id}/{name}",
                "object": "model",
                "created": int(created),
                "owned_by": function.nca_id,
            }
