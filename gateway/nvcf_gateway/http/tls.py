"""TLS of all listeners: one certificate, read again when its files change, without a restart."""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import grpc

from nvcf_gateway.config import GatewayConfig
from nvcf_gateway.errors import SetupError

_log = logging.getLogger(__name__)

CHECK_SECONDS = 1.0

Stamp = tuple[int, ...]


class CertificateFiles:
    """The files of a certificate chain and its private key, checked for changes.

    The check runs inside a TLS handshake, at most once in `CHECK_SECONDS`. It takes microseconds, little
    beside the handshake itself, and needs no task of its own.
    """

    def __init__(self, chain: Path, key: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.chain = chain
        self.key = key
        self._clock = clock
        self._checked = clock()
        self._stamp = self._now()

    def changed(self) -> bool:
        """Whether the files have changed since this last returned True."""
        now = self._clock()
        if now - self._checked < CHECK_SECONDS:
            return False
        self._checked = now
        try:
            stamp = self._now()
        except OSError as error:
            _log.warning(
                "cannot check the certificate files: %s; the previous certificate stays in use", error
            )
            return False
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        return True

    def _now(self) -> Stamp:
        found = [path.stat() for path in (self.chain, self.key)]
        # The inode too: an installer may rename a new file into place within the clock's resolution.
        return tuple(part for each in found for part in (each.st_ino, each.st_mtime_ns, each.st_size))


def server_context(config: GatewayConfig, *, alpn: Sequence[str] = ()) -> ssl.SSLContext | None:
    """Return the TLS context of a listener, or None when the gateway serves without TLS.

    TLS 1.2 and newer. Every handshake uses the newest certificate. If it cannot be read, this is logged and
    the previous one stays in use. `alpn` are the protocols offered, best first. Raises SetupError.
    """
    files = _files(config)
    if files is None:
        return None
    current = context = _load(files, alpn)

    def choose(connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        nonlocal current
        if files.changed():
            try:
                current = _load(files, alpn)
                _log.info("certificate read again", extra={"file": str(files.chain)})
            except SetupError as error:
                _log.error("%s; the previous certificate stays in use", error)
        # Each certificate gets its own context: loading a key of another kind into the previous one would
        # keep both certificates.
        connection.context = current

    context.sni_callback = choose
    return context


def grpc_credentials(config: GatewayConfig) -> grpc.ServerCredentials | None:
    """Return the TLS credentials of a gRPC server, or None without TLS. Raises SetupError."""
    files = _files(config)
    if files is None:
        return None
    _load(files, ())

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        if not files.changed():
            return None
        try:
            _load(files, ())
            return _grpc_pair(files)
        except (SetupError, OSError) as error:
            _log.error("%s; the previous certificate stays in use", error)
            return None

    try:
        return grpc.dynamic_ssl_server_credentials(
            _grpc_pair(files),
            fetch,  # type: ignore[arg-type] # None = as before, says its documentation
        )
    except OSError as error:
        raise SetupError(f"cannot read {error.filename}: {error.strerror}") from error


def _grpc_pair(files: CertificateFiles) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(files.key.read_bytes(), files.chain.read_bytes())])


def _files(config: GatewayConfig) -> CertificateFiles | None:
    if config.tls_cert is None or config.tls_key is None:
        return None
    try:
        return CertificateFiles(config.tls_cert, config.tls_key)
    except OSError as error:
        raise SetupError(f"cannot read {error.filename}: {error.strerror}") from error


def _load(files: CertificateFiles, alpn: Sequence[str]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if alpn:
        context.set_alpn_protocols(list(alpn))
    try:
        # Without the callback a protected key would ask for its password on the terminal.
        context.load_cert_chain(files.chain, files.key, password=lambda: b"")
    except OSError as error:
        reason = getattr(error, "reason", None) or error.strerror or str(error)
        raise SetupError(
            f"cannot use the certificate {files.chain} with the key {files.key}: {reason}"
        ) from error
    return context
