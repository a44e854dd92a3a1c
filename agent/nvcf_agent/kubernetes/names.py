"""Names and label values that Kubernetes takes, and labels that many objects have. Pure."""

import hashlib
import re

from nvcf_proto.icms.messages import instance_id_of

MANAGED_BY = "app.kubernetes.io/managed-by"
MANAGER = "nvcf-agent"
COMPONENT = "app.kubernetes.io/component"

# A pod's name becomes its host name.
_LONGEST = 63
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?")
_DIGEST = 10


def object_name(*parts: str) -> str:
    """Return the parts joined by "-", as a valid name of any object (a DNS label).

    What is no such name is cut and gets a digest, so two different names never become one.
    """
    whole = "-".join(parts)
    if _NAME.fullmatch(whole):
        return whole
    digest = hashlib.sha256(whole.encode()).hexdigest()[:_DIGEST]
    kept = re.sub(r"[^a-z0-9-]", "-", whole.lower())[: _LONGEST - _DIGEST - 1].strip("-")
    return f"{kept}-{digest}" if kept else digest


def label_value(text: str) -> str:
    """Return a text as the value of a label; a valid one stays as it is."""
    return text if _VALUE.fullmatch(text) else object_name(text)


def account_label(nca_id: str) -> str:
    """Return an account's label value, in NVIDIA's form."""
    return label_value(f"nca-{nca_id}-nca")


def request_name(request_id: str) -> str:
    """Return the name of a request's own objects: `sr-…`."""
    return object_name(instance_id_of(request_id).partition("-")[2])
