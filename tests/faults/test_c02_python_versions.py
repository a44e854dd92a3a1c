"""C2: what is locked can be installed on each Python that the project names."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import distributions
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]


def named_versions() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = (re.fullmatch(r".*:: (3\.\d+)", each) for each in project["classifiers"])
    return [each[1] for each in found if each is not None]


@pytest.mark.parametrize("version", named_versions())
def test_c02_locked_packages_take_each_python(version: str) -> None:
    locked = set(re.findall(r"^([A-Za-z0-9._-]+)==", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    names = {canonicalize_name(each) for each in locked}
    checked = set()
    for each in distributions():
        name = canonicalize_name(each.metadata["Name"])
        if name in names:
            checked.add(name)
            wanted = SpecifierSet(each.metadata["Requires-Python"] or "")
            assert wanted.contains(f"{version}.0", prereleases=True), f"{name} wants Python {wanted}"
    assert len(checked) > 50
