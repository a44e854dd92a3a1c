"""Signatures of requests to S3 (AWS Signature Version 4). Pure."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from urllib.parse import parse_qsl, quote, urlsplit
from xml.etree import ElementTree

CHECKSUM_HEADER = "x-amz-meta-sha256"
"""[ext] Of each uploaded result: the SHA-256 of the whole file, in hex."""
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


def signed_headers(
    settings: S3Settings,
    url: str,
    now: datetime | None = None,
    *,
    method: str = "GET",
    body: bytes = b"",
    headers: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return the headers of a request to a URL, the given ones and those that sign it."""
    given = {name.lower(): value for name, value in (headers or {}).items()}
    if settings.key is None or settings.secret is None:
        return given
    digest = hashlib.sha256(body).hexdigest()
    at = now or datetime.now(UTC)
    stamp, day = at.strftime("%Y%m%dT%H%M%SZ"), at.strftime("%Y%m%d")
    parts = urlsplit(url)
    signed = given | {"host": parts.netloc, "x-amz-content-sha256": digest, "x-amz-date": stamp}
    if settings.token is not None:
        signed["x-amz-security-token"] = settings.token
    names = ";".join(sorted(signed))
    members = parse_qsl(parts.query, keep_blank_values=True)
    pairs = sorted((quote(name, safe="~"), quote(value, safe="~")) for name, value in members)
    request = [
        method,
        parts.path or "/",
        "&".join(f"{name}={value}" for name, value in pairs),
        *(f"{name}:{signed[name]}" for name in sorted(signed)),
        "",
        names,
        digest,
    ]
    scope = f"{day}/{settings.region}/{_SERVICE}/aws4_request"
    canonical = hashlib.sha256("\n".join(request).encode()).hexdigest()
    text = "\n".join(("AWS4-HMAC-SHA256", stamp, scope, canonical))
    key = f"AWS4{settings.secret}".encode()
    for part in (day, settings.region, _SERVICE, "aws4_request"):
        key = _mac(key, part)
    signature = _mac(key, text).hex()
    del signed["host"]
    signed["Authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={settings.key}/{scope}, SignedHeaders={names}, Signature={signature}"
    )
    return signed


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
    root = parse_xml(text)
    keys = tuple(
        (each.findtext("{*}Key") or "", int(each.findtext("{*}Size") or 0))
        for each in root.findall("{*}Contents")
    )
    return S3Page(keys, root.findtext("{*}NextContinuationToken"))


def parse_xml(text: bytes) -> ElementTree.Element:
    """Return the root of a response's XML. Raises ValueError."""
    if b"<!DOCTYPE" in text or b"<!ENTITY" in text:
        raise ValueError("the response has declarations")
    try:
        return ElementTree.fromstring(text)  # noqa: S314 - without declarations nothing can be expanded
    except ElementTree.ParseError as error:
        raise ValueError("the response is no XML") from error
