"""Sample functions, and how each is created: with its own server and a sidecar, or with the library."""

from __future__ import annotations

from typing import Any

from tests.kubernetes.real.images import name

MODES: dict[str, dict[str, Any]] = {
    "sidecar": {
        "containerImage": name("plain-function"),
        "inferenceUrl": "/echo",
        "inferencePort": 8000,
        "health": {
            "protocol": "HTTP",
            "uri": "/health",
            "port": 8000,
            "timeout": "PT5S",
            "expectedStatusCode": 200,
        },
    },
    "library": {"containerImage": name("library-function"), "workerMode": "library"},
}
