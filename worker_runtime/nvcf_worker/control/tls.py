"""TLS settings of a worker: it trusts the authorities of the system and of NVCF_ROOT_CA_FILE."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from pathlib import Path

from nvcf_worker.errors import ConfigurationError

ROOT_CA_FILE = "NVCF_ROOT_CA_FILE"
"""[ext] PEM file of a certificate authority to trust beside the system's. Default: none."""

_SYSTEM_FILE = "SSL_CERT_FILE"
"""[ext] PEM file to trust instead of the system's, without NVCF_ROOT_CA_FILE. Default: none."""
_GRPC_FILE = "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"
"""[ext] PEM file for gRPC; without NVCF_ROOT_CA_FILE it wins over SSL_CERT_FILE there. Default: none."""


def client_context(environ: Mapping[str, str] = os.environ) -> ssl.SSLContext:
    """Return the TLS context for HTTP and broker connections. Raises ConfigurationError."""
    context = ssl.create_default_context()
    file = environ.get(ROOT_CA_FILE)
    if file:
        try:
            context.load_verify_locations(cafile=file)
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(
                f"{ROOT_CA_FILE} is {file!r}, which cannot be used: {error.strerror or error}. "
                "It must be a file of certificates in PEM format."
            ) from error
    return context


def grpc_roots(environ: Mapping[str, str] = os.environ) -> bytes | None:
    """Return the root certificates for gRPC in PEM format; None: the certificates that gRPC includes.

    gRPC does not use the system's certificates. The file is NVCF_ROOT_CA_FILE, else SSL_CERT_FILE unless
    gRPC's own variable names a file. Raises ConfigurationError.
    """
    private = environ.get(ROOT_CA_FILE)
    file = private or ("" if environ.get(_GRPC_FILE) else environ.get(_SYSTEM_FILE))
    if not file:
        return None
    try:
        return Path(file).read_bytes()
    except OSError as error:
        name = ROOT_CA_FILE if private else _SYSTEM_FILE
        raise ConfigurationError(f"{name} is {file!r}, which cannot be read: {error.strerror}") from error
