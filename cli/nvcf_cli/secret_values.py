"""Values of secrets, from a file, standard input or the terminal; never from the command line."""

import base64
import getpass
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nvcf_cli.api import Json
from nvcf_cli.errors import UsageError
from nvcf_proto.models.secrets import MAX_SECRET_BYTES, SECRET_NAME_PATTERN


def read_value(file: Path | None, what: str) -> str:
    """Return the text in a file, else of standard input, else what is typed without being shown.

    One line break at its end is no part of it. Raises `UsageError`.
    """
    if file is not None and str(file) != "-":
        try:
            text = file.expanduser().read_bytes().decode()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
            raise UsageError(f"cannot read {file}: {reason}") from error
    elif sys.stdin.isatty():
        return getpass.getpass(f"{what}: ")
    else:
        try:
            text = sys.stdin.buffer.read(2 * MAX_SECRET_BYTES).decode()
        except UnicodeDecodeError as error:
            raise UsageError("standard input is no UTF-8 text") from error
    return text.removesuffix("\n").removesuffix("\r")


def parsed(text: str, *, is_json: bool) -> Any:
    """Return the value: the text itself, or the JSON in it. Raises `UsageError`, without the text."""
    if not is_json:
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise UsageError("the value is no JSON: leave --value-json out for a text") from None


def check_secret_name(name: str) -> str:
    """Return the name. Raises `UsageError` for one that the platform refuses."""
    if not re.fullmatch(SECRET_NAME_PATTERN, name):
        raise UsageError(
            f"{name}: at most 48 letters, digits, '_', '.' and '-', a letter or digit first; "
            "the value comes from standard input or --from-file"
        )
    return name


def named_files(texts: Iterable[str]) -> list[Json]:
    """Return the secrets of `NAME=FILE` texts. Raises `UsageError`."""
    found: list[Json] = []
    for text in texts:
        name, separator, file = text.partition("=")
        if not separator or not file:
            raise UsageError(f"--secret {name}: NAME=FILE expected")
        found.append({"name": check_secret_name(name), "value": read_value(Path(file), name)})
    return found


def secret_value(texts: Iterable[str]) -> str | dict[str, str]:
    """Return the secret of `FILE`, or the object of `KEY=FILE` texts. Raises `UsageError`."""
    listed = list(texts)
    if len(listed) == 1 and "=" not in listed[0]:
        return read_value(Path(listed[0]), "secret")
    found = {}
    for text in listed:
        key, separator, file = text.partition("=")
        if not separator:
            raise UsageError(f"--secret-from {text}: KEY=FILE expected, as for the other ones")
        found[key] = read_value(Path(file), key)
    return found


def login(user: str, password: str) -> str:
    """Return the login for a registry: base64 of `user:password`."""
    return base64.b64encode(f"{user}:{password}".encode()).decode()
