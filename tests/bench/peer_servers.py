"""The peers of tests/bench/peers.py: how each is installed, and the program of its JSON echo."""

from __future__ import annotations

from dataclasses import dataclass

LITSERVE = """
import sys
import litserve as ls

class Echo(ls.LitAPI):
    def setup(self, device):
        pass
    def decode_request(self, request):
        return request
    def predict(self, x):
        return x
    def encode_response(self, output):
        return output

if __name__ == "__main__":
    server = ls.LitServer(Echo(), accelerator="cpu", workers_per_device=1)
    server.run(port=int(sys.argv[1]), host="127.0.0.1", log_level="error", generate_client_file=False)
"""

BENTOML = """
import sys
import bentoml

@bentoml.service(workers=1)
class Echo:
    @bentoml.api(route="/predict")
    async def predict(self, data: str) -> dict:
        return {"data": data}

if __name__ == "__main__":
    import subprocess
    command = [sys.executable, "-m", "bentoml", "serve", "peer:Echo", "--host", "127.0.0.1"]
    raise SystemExit(subprocess.call([*command, "--port", sys.argv[1]]))
"""

MOSEC = """
import sys
from mosec import Server, Worker

class Echo(Worker):
    def forward(self, data):
        return data

if __name__ == "__main__":
    sys.argv = [sys.argv[0], "--address", "127.0.0.1", "--port", sys.argv[1], "--log-level", "error"]
    server = Server()
    server.append_worker(Echo, num=1)
    server.run()
"""

RAY = """
import sys, time
import ray
from ray import serve
from starlette.requests import Request

@serve.deployment(num_replicas=1, max_ongoing_requests=128, ray_actor_options={"num_cpus": 0.1})
class Echo:
    async def __call__(self, request: Request):
        return await request.json()

if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    serve.run(Echo.bind(), route_prefix="/predict")
    while True:
        time.sleep(1)
"""


@dataclass(frozen=True)
class Peer:
    """One other server. `packages` are installed into its own environment. It serves POST `path`."""

    name: str
    packages: tuple[str, ...]
    program: str
    path: str


PEERS = (
    Peer("LitServe", ("litserve>=0.2,<0.3",), LITSERVE, "/predict"),
    Peer("BentoML", ("bentoml>=1.4,<1.5",), BENTOML, "/predict"),
    Peer("mosec", ("mosec>=0.9,<0.10",), MOSEC, "/inference"),
    Peer("Ray Serve", ("ray[serve]>=2.40,<3",), RAY, "/predict"),
)
