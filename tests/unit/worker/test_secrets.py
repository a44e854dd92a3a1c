"""Secrets: where they come from, that changes are seen and values do not show."""

from __future__ import annotations

from pathlib import Path

import pytest

from nvcf_worker.function.secrets import Secrets


def replace(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


def test_files_come_first_and_changes_are_seen(tmp_path: Path) -> None:
    own, agent = tmp_path / "own", tmp_path / "agent"
    own.mkdir()
    agent.mkdir()
    secrets = Secrets({"NVCF_SECRETS_DIR": str(own), "ESS_AGENT_CONFIG_DIR": str(agent)})
    assert len(secrets) == 0
    assert "TOKEN" not in secrets
    (own / "TOKEN").write_text("one\n")
    assert secrets["TOKEN"] == "one"
    replace(own / "TOKEN", "two")
    assert secrets["TOKEN"] == "two"
    (agent / "secrets.json").write_text('{"TOKEN": "hidden", "KEY": "k", "OBJECT": {"a": 1}}')
    assert (secrets["TOKEN"], secrets["KEY"], secrets["OBJECT"]) == ("two", "k", '{"a": 1}')
    assert list(secrets) == ["TOKEN", "KEY", "OBJECT"]
    assert "two" not in repr(secrets)
    (own / "TOKEN").unlink()
    assert secrets["TOKEN"] == "hidden"
    replace(agent / "secrets.json", "{broken")
    assert secrets.get("KEY") is None


@pytest.mark.parametrize("name", ["", "..", ".hidden", "a/b", "../x", "a\0b"])
def test_names_are_no_paths(tmp_path: Path, name: str) -> None:
    (tmp_path / ".hidden").write_text("x")
    with pytest.raises(KeyError):
        Secrets({"NVCF_SECRETS_DIR": str(tmp_path)})[name]


def test_a_missing_one_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="no secret 'KEY' in"):
        Secrets({"NVCF_SECRETS_DIR": str(tmp_path)})["KEY"]
