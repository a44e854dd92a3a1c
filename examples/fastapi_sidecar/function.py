"""A sidecar: an unmodified FastAPI application (app.py) behind the worker.

    nvcf deploy examples/fastapi_sidecar/function.py --name words --concurrency 16
    nvcf invoke words -H Content-Type=application/json --data '{"text": "one two"}'

In a container image you can do the same without Python code:

    nvcf-worker sidecar --port 8000 --health /health -- uvicorn app:app --port 8000
"""

from __future__ import annotations

import sys
from pathlib import Path

from nvcf_worker import sidecar

SERVER = (
    *(sys.executable, "-m", "uvicorn", "app:app", "--app-dir", str(Path(__file__).parent)),
    *("--port", "{port}", "--log-level", "warning"),
)

if __name__ == "__main__":
    # Port 0 means any free port, so several instances can run on one machine.
    sidecar(0, command=SERVER, health="/health")
