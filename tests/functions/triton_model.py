"""A model of the Triton server at TRITON_URL, served as JSON."""

from __future__ import annotations

import os

from nvcf_worker import serve
from nvcf_worker.triton import Triton

handler = Triton(os.environ["TRITON_URL"]).handler(os.environ["TRITON_MODEL"])

if __name__ == "__main__":
    serve(handler)
