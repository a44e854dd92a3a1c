"""Secrets: values that the platform keeps in files and may change while the worker runs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from nvcf_proto.environment import ESS_AGENT_CONFIG_DIR, NVCF_SECRETS_DIR

DEFAULT_DIRECTORY = "/var/secrets"
JSON_FILE = "secrets.json"


class Secrets(Mapping[str, str]):
    """Secrets by name: a file of that name in a folder, else a member of the folder's secrets.json.

    Folders: NVCF_SECRETS_DIR (default /var/secrets), ESS_AGENT_CONFIG_DIR. A file is read again when it has
    changed. A trailing line break is no part of a value; members of secrets.json that are no text come as
    JSON. Usable from any thread. Values never show in `repr`.
    """

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        self._environ = os.environ if environ is None else environ
        # The mark of a file (time, size, inode) and its values.
        self._read: dict[Path, tuple[tuple[int, int, int], dict[str, str]]] = {}

    def directories(self) -> list[Path]:
        """Return the folders that are searched for secrets."""
        first, second = self._environ.get(NVCF_SECRETS_DIR), self._environ.get(ESS_AGENT_CONFIG_DIR)
        return [Path(text) for text in (first or DEFAULT_DIRECTORY, second) if text]

    def __getitem__(self, name: str) -> str:
        # Half a surrogate pair is no file's name either.
        if not name or "/" in name or "\0" in name or name.startswith(".") or not _encodable(name):
            raise KeyError(name)
        for directory in self.directories():
            for path in (directory / name, directory / JSON_FILE):
                found = self._values(path, name).get(name)
                if found is not None:
                    return found
        places = ", ".join(str(directory) for directory in self.directories())
        raise KeyError(f"no secret {name!r} in {places}")

    def __iter__(self) -> Iterator[str]:
        names: dict[str, None] = {}
        for directory in self.directories():
            if directory.is_dir():
                for path in sorted(directory.iterdir()):
                    if path.is_file() and path.name != JSON_FILE and not path.name.startswith("."):
                        names[path.name] = None
            names.update(dict.fromkeys(self._values(directory / JSON_FILE, "")))
        return iter(names)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return f"<secrets: {', '.join(self) or 'none'}>"

    def _values(self, path: Path, name: str) -> dict[str, str]:
        try:
            status = path.stat()
            if not path.is_file():
                return {}
            mark = (status.st_mtime_ns, status.st_size, status.st_ino)
            known = self._read.get(path)
            if known is not None and known[0] == mark:
                return known[1]
            text = path.read_text()
        except OSError:
            return {}
        values = _members(text) if path.name == JSON_FILE else {name: text.removesuffix("\n")}
        self._read[path] = mark, values
        return values


def _encodable(name: str) -> bool:
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return True


def _members(text: str) -> dict[str, str]:
    try:
        members = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(members, dict):
        return {}
    return {
        str(name): value if isinstance(value, str) else json.dumps(value) for name, value in members.items()
    }


secrets = Secrets()
"""The worker's secrets."""


def secret(name: str) -> str:
    """Return the present value of a secret, as `secrets[name]`. Raises KeyError when there is none."""
    return secrets[name]
