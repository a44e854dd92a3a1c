"""Griffe extension for the API reference: what docstrings say about parameters becomes a list.

The docstrings describe parameters as `name: text`, at the start of a line or after a sentence.
"""

from __future__ import annotations

import re
from typing import Any

import griffe


def listed(text: str, names: list[str]) -> str:
    """Return a docstring whose descriptions of these parameters are items of a list."""
    if not names:
        return text
    pattern = rf"(?:^ *|(?<=[.;]) +)({'|'.join(map(re.escape, names))}): "
    return re.sub(r"\n+(?=- `)", "\n", re.sub(pattern, r"\n- `\1`: ", text, flags=re.MULTILINE)).replace(
        "\n- `", "\n\n- `", 1
    )


class Parameters(griffe.Extension):
    """Rewrites the docstrings of functions and classes."""

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        """Rewrite a function's docstring."""
        if func.docstring is not None:
            func.docstring.value = listed(func.docstring.value, [each.name for each in func.parameters])

    def on_class_members(self, *, cls: griffe.Class, **_: Any) -> None:
        """Rewrite a class' docstring by the parameters of its constructor."""
        if cls.docstring is not None:
            cls.docstring.value = listed(cls.docstring.value, [each.name for each in cls.parameters])
