"""Which platform a command means: a remote one that is named, else the local one."""

import os
from pathlib import Path

from nvcf_cli.api import Target
from nvcf_cli.errors import CliError, UsageError
from nvcf_cli.keys import read_key
from nvcf_cli.state import Installation, read_state

URL_VARIABLE = "NVCF_URL"
"""URL of a platform elsewhere. Default: the local platform."""
KEY_VARIABLE = "NVCF_API_KEY"
"""API key for that platform. Default: the local admin key."""


def find_target(installation: Installation, url: str | None, key_file: Path | None) -> Target:
    """`--url` or NVCF_URL with `--key-file` or NVCF_API_KEY, else what `nvcf up` says of itself.

    Raises `CliError`.
    """
    address = url or os.environ.get(URL_VARIABLE) or None
    key = read_key(key_file) if key_file is not None else os.environ.get(KEY_VARIABLE) or None
    if address is None:
        state = read_state(installation)
        if state is None:
            raise CliError(
                f"no platform runs on {installation.data}: start one with nvcf up, or name one with --url"
            )
        return Target(state.url, key or read_key(Path(state.key_file)))
    if not address.startswith(("http://", "https://")):
        raise UsageError(f"{address} is no address: it must begin with http:// or https://")
    if key is None:
        raise UsageError(f"a key is needed for {address}: give --key-file FILE or set {KEY_VARIABLE}")
    return Target(address.rstrip("/"), key)
