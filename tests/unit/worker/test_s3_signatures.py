"""Signatures of requests to S3."""

from __future__ import annotations

from datetime import UTC, datetime

from nvcf_worker.fetch import s3


def test_signatures_are_those_of_aws() -> None:
    """The example "Get Bucket (List Objects)" of AWS' documentation of Signature Version 4."""
    key, secret = "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
    settings = s3.S3Settings("us-east-1", None, key, secret)
    at = datetime(2013, 5, 24, tzinfo=UTC)
    url = "https://examplebucket.s3.amazonaws.com/?max-keys=2&prefix=J"
    headers = s3.signed_headers(settings, url, at)
    expected = "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"
    assert headers["Authorization"].endswith(f"Signature={expected}")


def test_signatures_of_uploads_are_those_of_aws() -> None:
    """The example "PUT Object" of the same page."""
    key, secret = "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
    settings = s3.S3Settings("us-east-1", None, key, secret)
    headers = s3.signed_headers(
        settings,
        "https://examplebucket.s3.amazonaws.com/test%24file.text",
        datetime(2013, 5, 24, tzinfo=UTC),
        method="PUT",
        body=b"Welcome to Amazon S3.",
        headers={"Date": "Fri, 24 May 2013 00:00:00 GMT", "x-amz-storage-class": "REDUCED_REDUNDANCY"},
    )
    expected = "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd"
    assert headers["Authorization"].endswith(f"Signature={expected}")
