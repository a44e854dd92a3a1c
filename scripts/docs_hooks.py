"""Hooks of mkdocs (see mkdocs.yml): fail when a built page would load something from another host."""

from __future__ import annotations

import re
from typing import Any

from mkdocs.exceptions import PluginError

_LOADED = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["']?(?:https?:)?//[^"'\s>]+|"""
    r"""<link\b[^>]*\brel=["']?(?:stylesheet|preconnect|preload|icon)[^>]*href=["']?(?:https?:)?//"""
)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Raise PluginError for an element that a browser fetches from another host."""
    found = _LOADED.search(output)
    if found:
        raise PluginError(f"{page.file.src_uri} loads from another host: {found.group(0)[:200]}")
    return output
