"""Models of a Triton Inference Server, called from handlers: `from nvcf_worker.triton import Triton`."""

from __future__ import annotations

try:
    import numpy as _numpy
    import tritonclient as _tritonclient
except ImportError as error:  # pragma: no cover - the tests have both
    raise ImportError(f"{error}; nvcf_worker.triton needs: pip install 'nvcf-worker[triton]'") from error

from nvcf_worker.triton.connection import Triton
from nvcf_worker.triton.errors import TritonError, TritonUnavailable
from nvcf_worker.triton.model import Model, Sequence

__all__ = ["Model", "Sequence", "Triton", "TritonError", "TritonUnavailable"]

del _numpy, _tritonclient
