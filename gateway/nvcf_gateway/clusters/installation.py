"""The installation's own images, which agents run beside a function's (protocol.md, section 6.3)."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Iterable
from pathlib import Path

from nvcf_gateway.clusters.launch import as_base64
from nvcf_gateway.errors import SetupError

_log = logging.getLogger(__name__)

VARIABLES = {
    "utils": "UTILS_CONTAINER",
    "init": "INIT_CONTAINER",
    "ess-agent": "ESS_AGENT_CONTAINER",
    "otel": "OTEL_CONTAINER",
    "byoo-otel-collector": "BYOO_OTEL_COLLECTOR_CONTAINER",
}
"""Lines of a creation message's environment, by the name of the image."""
LOGIN = "SIDECAR_REGISTRY_CREDENTIAL"
LARGEST_LOGIN = 64 * 1024
_IMAGE = re.compile(r"[\x21-\x7e]{1,1024}")


def parse_images(texts: Iterable[str]) -> dict[str, str]:
    """Return images by name from texts `NAME=IMAGE`. Raises SetupError."""
    images: dict[str, str] = {}
    for text in texts:
        name, _, image = text.partition("=")
        if name not in VARIABLES or _IMAGE.fullmatch(image) is None:
            raise SetupError(
                f"--sidecar-image {text}: NAME=IMAGE expected, NAME one of {', '.join(VARIABLES)}"
            )
        images[name] = image
    return images


def read_login(path: Path) -> str:
    """Return the value of `LOGIN` from a docker configuration file. Raises SetupError."""
    try:
        text = path.read_bytes()
        auths = json.loads(text)["auths"] if len(text) <= LARGEST_LOGIN else None
    except OSError as error:
        raise SetupError(f"cannot read the registry login {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RecursionError):
        auths = None
    if not isinstance(auths, dict):
        raise SetupError(f"{path} is no docker configuration: an object with the member auths expected")
    return as_base64({"auths": auths})


class InstallationImages:
    """What every creation message of an image or a chart says about the images beside it."""

    def __init__(self, images: dict[str, str], login: Path | None) -> None:
        """Raise SetupError if the login cannot be read."""
        self._variables = {VARIABLES[name]: image for name, image in images.items()}
        self._path = login
        self._login = None if login is None else read_login(login)

    async def variables(self) -> dict[str, str]:
        """Return the lines for the environment. The login is read anew each time, as it may be renewed."""
        if self._path is None or self._login is None:
            return dict(self._variables)
        try:
            self._login = await asyncio.to_thread(read_login, self._path)
        except SetupError as error:
            _log.warning("the registry login stays as it was: %s", error)
        return {**self._variables, LOGIN: self._login}
