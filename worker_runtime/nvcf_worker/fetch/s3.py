"""Signatures of requests to S3 (AWS Signature Version 4). Pure."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from urllib.parse import parse_qsl, quote, urlsplit
from xml.etree import ElementTree

_EMPTY = hashlib.sha256(b"").hexdigest()
_SERVICE = "s3"


@dataclass(frozen=True)
class S3Settings:
    """Endpoint and key. Without a key, requests are not signed; without an endpoint, it is AWS'."""

    region: str = "us-east-1"
    endpoint: str | None = None
    key: str | None = None
    secret: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)

    @classmethod
    def of(cls, environ: Mapping[str, str], login: tuple[str, str] | None) -> S3Settings:
        """Return the settings of AWS' standard variables; the account's login wins over their key."""
        key, secret = login or (environ.get("AWS_ACCESS_KEY_ID"), environ.get("AWS_SECRET_ACCESS_KEY"))
        return cls(
            environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION") or cls.region,
            environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL") or None,
            key or None,
            secret or None,
            None if login else environ.get("AWS_SESSION_TOKEN") or None,
        )

    def url(self, bucket: str, key: str = "", query: str = "") -> str:
        """Return the URL of an object or of a bucket."""
        path = quote(key, safe="/~-._")
        if self.endpoint is not None:
            base = f"{self.endpoint.rstrip('/')}/{bucket}"
        elif "." in bucket:
            # No certificate of AWS is for such a host.
            base = f"https://s3.{self.region}.amazonaws.com/{bucket}"
        else:
            base = f"https://{bucket}.s3.{self.region}.amazonaws.com"
        return f"{base}/{path}" + (f"?{query}" if query else "")


def parse_s3(uri: str) -> tuple[str, str]:
    """Return bucket and key of `s3://BUCKET/KEY`."""
    parts = urlsplit(uri)
    return parts.netloc, parts.path.lstrip("/")


def signed_headers(settings: S3Settings, url: str, now: datetime | None = None) -> dict[str, str]:
    """Return the headers that sign a GET of a URL."""
    if settings.key is None or settings.secret is None:
        return {}
    at = now or datetime.now(UTC)
    stamp, day = at.strftime("%Y%m%dT%H%M%SZ"), at.strftime("%Y%m%d")
    parts = urlsplit(url)
    headers = {"host": parts.netloc, "x-amz-content-sha256": _EMPTY, "x-amz-date": stamp}
    if settings.token is not None:
        headers["x-amz-security-token"] = settings.token
    names = ";".join(sorted(headers))
    pairs = sorted((quote(name, safe="~"), quote(value, safe="~")) for name, value in parse_qsl(parts.query))
    request = [
        "GET",
        parts.path or "/",
        "&".join(f"{name}={value}" for name, value in pairs),
        *(f"{name}:{headers[name]}" for name in sorted(headers)),
        "",
        names,
        _EMPTY,
    ]
    scope = f"{day}/{settings.region}/{_SERVICE}/aws4_request"
    digest = hashlib.sha256("\n".join(request).encode()).hexdigest()
    text = "\n".join(("AWS4-HMAC-SHA256", stamp, scope, digest))
    key = f"AWS4{settings.secret}".encode()
    for part in (day, settings.region, _SERVICE, "aws4_request"):
        key = _mac(key, part)
    signature = _mac(key, text).hex()
    del headers["host"]
    headers["Authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={settings.key}/{scope}, SignedHeaders={names}, Signature={signature}"
    )
    return headers


def _mac(key: bytes, text: str) -> bytes:
    return hmac.new(key, text.encode(), hashlib.sha256).digest()


@dataclass(frozen=True)
class S3Page:
    """One page of a list: keys with sizes, and where the next one begins."""

    keys: tuple[tuple[str, int], ...]
    next_token: str | None


def list_query(prefix: str, token: str | None) -> str:
    """Return the query that lists the keys with a prefix."""
    query = f"list-type=2&prefix={quote(prefix, safe='')}"
    return query + (f"&continuation-token={quote(token, safe='')}" if token else "")


def parse_page(text: bytes) -> S3Page:
    """Return a page of keys. Raises ValueError."""
    if b"<!DOCTYPE" in text or b"<!ENTITY" in text:
        raise ValueError("the list of keys has declarations")
    try:
        root = ElementTree.fromstring(text)  # noqa: S314 - without declarations nothing can be expanded
    except ElementTree.ParseError as error:
        raise ValueError("the list of keys is no XML") from error
    keys = tuple(
        (each.findtext("{*}Key") or "", int(each.findtext("{*}Size") or 0))
        for each in root.findall("{*}Contents")
    )
    return S3Page(keys, root.findtext("{*}NextContinuationToken"))
