"""Checks of pydantic and msgspec for annotations of their own, where these libraries are already imported."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

from nvcf_worker.function.typed.checks import Converter, Invalid, Where


class Form(NamedTuple):
    """How an annotation is checked. structured: an object with named members, which may be a whole body."""

    convert: Converter
    structured: bool = False


def library_form(annotation: Any) -> Form | None:
    """Return how a library checks an annotation of its own; None when no library does."""
    metadata = getattr(annotation, "__metadata__", ())
    modules = {type(item).__module__.partition(".")[0] for item in metadata}
    base = annotation.__origin__ if metadata else annotation
    pydantic: Any = sys.modules.get("pydantic")
    if pydantic is not None:
        is_model = isinstance(base, type) and issubclass(base, pydantic.BaseModel)
        is_dataclass = isinstance(base, type) and hasattr(base, "__pydantic_validator__")
        if is_model or is_dataclass or modules & {"pydantic", "annotated_types"}:
            return Form(_by_pydantic(pydantic, annotation), structured=is_model or is_dataclass)
    msgspec: Any = sys.modules.get("msgspec")
    if msgspec is not None:
        is_struct = isinstance(base, type) and issubclass(base, msgspec.Struct)
        if is_struct or "msgspec" in modules:
            return Form(_by_msgspec(msgspec, annotation), structured=is_struct)
    return None


def _by_pydantic(pydantic: Any, annotation: Any) -> Converter:
    adapter = pydantic.TypeAdapter(annotation)

    def convert(value: Any, where: Where) -> Any:
        try:
            return adapter.validate_python(value)
        except pydantic.ValidationError as error:
            found = error.errors(include_url=False, include_context=False, include_input=False)
            raise Invalid([((*where, *item["loc"]), item["msg"]) for item in found]) from None

    return convert


def _by_msgspec(msgspec: Any, annotation: Any) -> Converter:
    def convert(value: Any, where: Where) -> Any:
        try:
            return msgspec.convert(value, annotation, strict=not isinstance(value, str))
        except msgspec.ValidationError as error:
            # `Expected `int`, got `str` - at `$.items[0].price``: the form msgspec documents.
            message, _, place = str(error).partition(" - at `$")
            inner = place.rstrip("`").replace("[", ".").replace("]", "").strip(".")
            raise Invalid([((*where, *inner.split(".")) if inner else where, message)]) from None

    return convert
