"""Write docs/reference.md out of the docstrings of what `nvcf_worker` exports.

`--check` exits 1 when the file is not current.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from pathlib import Path
from typing import Any

import nvcf_worker

TARGET = Path(__file__).resolve().parent.parent / "docs" / "reference.md"
HEAD = """# API reference of nvcf_worker

Made from the docstrings by `python scripts/generate_reference.py`. [functions.md](functions.md) explains,
this page only lists.
"""


def render() -> str:
    """The whole page."""
    return "\n".join([HEAD, *(_entry(name, getattr(nvcf_worker, name)) for name in nvcf_worker.__all__)])


def _entry(name: str, value: Any) -> str:
    if inspect.isclass(value):
        kind = "exception" if issubclass(value, BaseException) else "class"
        members = "".join(_member(member, found) for member, found in _members(value))
        listed = f"{members}\n" if members else ""
        return f"## {kind} `{name}`\n\n{_docstring(value)}\n{listed}"
    if callable(value):
        return f"## `{name}`\n\n```python\n{name}{_signature(value)}\n```\n\n{_docstring(value)}\n"
    return f"## `{name}`\n\n{_docstring(type(value))}\n"


def _members(value: type) -> list[tuple[str, Any]]:
    found = []
    for base in reversed(value.__mro__):
        if base.__module__.startswith("nvcf_worker"):
            found += [(name, member) for name, member in vars(base).items() if not name.startswith("_")]
    return sorted(dict(found).items())


def _member(name: str, member: Any) -> str:
    if isinstance(member, property):
        return f"\n- **`{name}`**: {_one_line(member.fget)}"
    function = member.__func__ if isinstance(member, classmethod | staticmethod) else member
    if inspect.isfunction(function):
        return f"\n- **`{name}{_signature(function)}`**: {_one_line(function)}"
    return ""


def _signature(function: Any) -> str:
    try:
        return str(inspect.signature(function)).replace("'", "")
    except (TypeError, ValueError):
        return "(...)"


def _docstring(value: Any) -> str:
    return inspect.getdoc(value) or ""


def _one_line(value: Any) -> str:
    return " ".join(_docstring(value).split())


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare only")
    text = render()
    if not parser.parse_args().check:
        TARGET.write_text(text)
        return 0
    if TARGET.exists() and TARGET.read_text() == text:
        return 0
    print("docs/reference.md is not current; run: python scripts/generate_reference.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
