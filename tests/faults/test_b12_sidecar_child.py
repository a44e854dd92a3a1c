"""B12: a sidecar's server read the worker's token from /proc and from the shared folder."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nvcf_agent.backends.isolation import why_not_isolated
from tests.support.platform.nvcf_up import LocalUp, local_up

# As root a server reads everything of its worker, whatever the worker does.
pytestmark = pytest.mark.skipif(why_not_isolated() is not None, reason=str(why_not_isolated()))

FUNCTION = """
import os, sys
from pathlib import Path
from nvcf_worker import sidecar
here = Path(__file__).parent
sidecar(0, command=[sys.executable, str(here / "server.py"), "{port}"])
"""

SERVER = """
import ctypes, http.server, json, os, sys
from pathlib import Path
def attack():
    found = {}
    def look(name, what):
        try:
            found[name] = what()
        except OSError as error:
            found[name] = error.strerror
    for name in ("environ", "cmdline", "mem", "maps", "fd", "cwd", "root", "task/%d/environ" % os.getppid()):
        path = Path("/proc") / str(os.getppid()) / name
        look(name, lambda: os.listdir(path) if path.is_dir() else path.read_bytes().decode("latin-1"))
    shared = Path(os.environ["SHARED_CONFIG_DIR"])
    for path in shared.rglob("*"):
        if path.is_file():
            look(str(path), lambda: path.read_bytes().decode("latin-1"))
    look("own", lambda: dict(os.environ))
    libc = ctypes.CDLL(None, use_errno=True)
    found["trace"] = libc.ptrace(16, os.getppid(), None, None)
    return found
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.dumps(attack()).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture
async def up(tmp_path: Path) -> AsyncIterator[LocalUp]:
    async with local_up(tmp_path, "--no-metrics") as made:
        yield made


async def test_the_server_of_a_sidecar_finds_no_token(up: LocalUp) -> None:
    (up.folder / "server.py").write_text(SERVER)
    await up.deploy("beside", FUNCTION)
    found = json.loads(await up.ok("invoke", "beside", "--data", "{}"))
    text = json.dumps(found)
    # A token is a JWT: three parts, the first of which begins like this.
    assert "NVCF_WORKER_TOKEN" not in text
    assert "eyJ" not in text, [name for name, value in found.items() if "eyJ" in json.dumps(value)]
    assert found["environ"] == "Permission denied"
    assert found["trace"] == -1
