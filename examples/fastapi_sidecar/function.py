"""An unmodified FastAPI application (app.py) behind the worker: a sidecar.

    nvcf deploy examples/fastapi_sidecar/function.py --name words --concurrency 16
    nvcf invoke words -H Content-Type=application/json --data '{"text": "one two"}'

In an image no Python of your own is needed for this:

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
    # Port 0 is any free one: several instances fit on one machine.
    sidecar(0, command=SERVER, health="/health")
