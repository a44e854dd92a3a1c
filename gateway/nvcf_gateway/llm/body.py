"""The body of a call: which model it names, what it asks for, and the bytes that the function gets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nvcf_gateway.llm.errors import bad_request
from nvcf_gateway.llm.json_members import InvalidBody, Span, members_in_slices, replaced
from nvcf_gateway.llm.models import MAX_MODEL_CHARACTERS, ModelName, parse_model

READ = (
    "model", "stream", "stream_options", "max_completion_tokens", "max_output_tokens", "max_tokens", "n",
)  # fmt: skip
"""The members that the gateway reads."""
MAX_CHOICES = 128
_VALUE_BYTES = 6 * MAX_MODEL_CHARACTERS + 2
"""Longest value that is read, as written: each character may be an escape."""


@dataclass(frozen=True, slots=True)
class ModelCallBody:
    """A caller's body. `raw` is as it came, `found` says where the members are that the gateway reads."""

    raw: bytes
    found: Mapping[str, Span]
    model: ModelName

    @property
    def streams(self) -> bool:
        """Whether a stream is asked for."""
        return self.value("stream") is True

    @property
    def asks_for_usage(self) -> bool:
        """Whether the usage is wanted at the end of the stream."""
        options = self.value("stream_options")
        return isinstance(options, dict) and options.get("include_usage") is True

    @property
    def output_bound(self) -> int | None:
        """Most tokens that the call makes, over all choices; None if it names no bound."""
        choices = self._count("n")
        # Engines differ in which one they obey.
        names = ("max_completion_tokens", "max_output_tokens", "max_tokens")
        bounds = [bound for name in names if (bound := self._count(name)) is not None]
        return max(bounds) * min(max(1, choices or 1), MAX_CHOICES) if bounds else None

    def value(self, name: str) -> Any:
        """Return the value of a short member, None for one that is missing, long or malformed."""
        span = self.found.get(name)
        return None if span is None else _short(self.raw, span)

    def data(self, *, add_usage: bool = False) -> bytes:
        """Return the bytes for the function: `model` has its spelling.

        With `add_usage` the usage is asked for at the end of the stream.
        """
        model = json.dumps(self.model.name).encode()
        changes: dict[Span, bytes] = {}
        if add_usage:
            span, options = self.found.get("stream_options"), self.value("stream_options")
            if span is None:
                model += b',"stream_options":{"include_usage":true}'
            elif options is None or isinstance(options, dict):
                changes[span] = json.dumps({**(options or {}), "include_usage": True}).encode()
        changes[self.found["model"]] = model
        return replaced(self.raw, changes)

    def _count(self, name: str) -> int | None:
        value = self.value(name)
        return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


async def parse_body(raw: bytes) -> ModelCallBody:
    """Read the members that matter here. Raises HttpProblem 400."""
    try:
        found = await members_in_slices(raw, READ)
    except InvalidBody as error:
        raise bad_request(str(error)) from None
    if "model" not in found:
        raise bad_request("the body names no model", "model", "missing_model")
    name = _short(raw, found["model"])
    if not isinstance(name, str):
        detail = f"the model is a string of at most {MAX_MODEL_CHARACTERS} characters"
        raise bad_request(detail, "model", "invalid_model")
    return ModelCallBody(raw, found, parse_model(name))


def _short(raw: bytes, span: Span) -> Any:
    if span.end - span.start > _VALUE_BYTES:
        return None
    try:
        return json.loads(raw[span.start : span.end])
    except (ValueError, RecursionError):
        return None
