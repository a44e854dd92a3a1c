"""Which of Triton's HTTP calls a function's callers may make. No I/O."""

from __future__ import annotations

import re

_NAME = r"([^/#%]|%(?!2[ef]))+"
"""A model or version. Encoded slashes and dots are left out: a proxy in front of Triton may decode them."""
_MODELS = re.compile(
    rf"/v2/?|/v2/health/(live|ready)|/v2/models/{_NAME}(/versions/{_NAME})?"
    r"(/(config|ready|stats|infer|generate|generate_stream))?",
    re.IGNORECASE,
)
_REPOSITORY = re.compile(rf"/v2/repository/(index|models/{_NAME}/(load|unload))", re.IGNORECASE)
_LONGEST_PATH = 200


def refusal(method: str, target: str, *, model_control: bool) -> str | None:
    """Return why a call is refused, or None if it is passed on.

    Only known paths are passed on, so that no way of writing a path reaches the rest: shared memory, the
    settings of log and trace, and without `model_control` the model repository.
    """
    path = target.partition("?")[0]
    if _MODELS.fullmatch(path) or (model_control and _REPOSITORY.fullmatch(path)):
        return None
    hint = "" if model_control else " (nvcf-worker triton --allow-model-control opens the model repository)"
    return f"Callers may not use {method} {path[:_LONGEST_PATH]}, only calls of models{hint}."
