"""Names of GPUs in NVIDIA's form. Pure."""

import re

_VENDOR = frozenset(("NVIDIA", "GEFORCE", "TESLA", "QUADRO"))
_JOINED = frozenset(("RTX", "GTX"))
_MEMORY = re.compile(r"\d+(GB|G|GIB)")
# A part of a GPU (MIG, strategy "single") has its profile in its name.
_MIG = re.compile(r"-MIG-(\d+g[.-]\d+gb)(?=$|-)", re.IGNORECASE)


def gpu_name(product: str) -> str:
    """Return the name of a product: `NVIDIA H100 80GB HBM3` is H100, `A100-MIG-1g.5gb` A100-MIG-1g-5gb."""
    mig = _MIG.search(product)
    suffix = f"-MIG-{mig[1].lower().replace('.', '-')}" if mig is not None else ""
    whole = product[: mig.start()] if mig is not None else product
    parts = [part for part in re.split(r"[\s-]+", whole.upper()) if part and part not in _VENDOR]
    parts = [part for part in parts if not _MEMORY.fullmatch(part)]
    if not parts:
        return "GPU"
    first = parts[0] + parts[1] if parts[0] in _JOINED and len(parts) > 1 else parts[0]
    return (re.sub(r"[^A-Z0-9_]", "", first) or "GPU") + suffix
