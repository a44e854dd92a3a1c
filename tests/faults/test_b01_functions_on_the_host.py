"""B1: a function of one account reached the platform's keys, and whatever else the platform's user may read.

These run as root, as the platform does in CI; elsewhere instances have no user of their own.
"""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from nvcf_agent.backends.isolation import why_not_isolated
from nvcf_proto.models import Scope
from tests.support.platform.accounts import Account, account_key
from tests.support.platform.nvcf_up import LocalUp, local_up
from tests.support.waiting import eventually

pytestmark = [
    pytest.mark.skipif(why_not_isolated() is not None, reason=str(why_not_isolated())),
    pytest.mark.xdist_group("b01"),
    pytest.mark.asyncio(loop_scope="module"),
]

VICTIM = """
import os
from pathlib import Path
from nvcf_worker import serve
def victim(request):
    (Path(os.environ["HOME"]) / "secret").write_text("of the victim")
    (Path(os.environ["SHARED_CONFIG_DIR"]) / "secret").write_text("of the victim")
    return {"pid": os.getpid(), "uid": os.getuid(), "home": os.environ["HOME"],
            "shared": os.environ["SHARED_CONFIG_DIR"]}
serve(victim)
"""

ATTACKER = """
import ctypes, os, signal, subprocess, sys, tempfile
from nvcf_worker import serve
def tried(what, *arguments):
    try:
        return repr(what(*arguments))[:400]
    except Exception as error:
        return None
def read(path):
    with open(path, "rb") as file:
        return file.read(64)
def trace(pid):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(16, pid, None, None) != 0:
        raise OSError(ctypes.get_errno(), "ptrace")
def attack(request):
    wanted = request.json()
    status = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
    found = {"read " + path: tried(read, path) for path in wanted["files"]}
    found |= {"list " + path: tried(os.listdir, path) for path in wanted["folders"]}
    for pid in wanted["pids"]:
        for number in (0, signal.SIGCONT):
            found[f"kill {pid} {number}"] = tried(os.kill, pid, number)
        found[f"trace {pid}"] = tried(trace, pid)
        for name in ("environ", "mem", "maps", "cwd", "root", "fd"):
            path = f"/proc/{pid}/{name}"
            found["read " + path] = tried(os.readlink if name in ("cwd", "root") else
                os.listdir if name == "fd" else read, path)
    for function, argument in ((os.setuid, 0), (os.setgid, 0), (os.setgroups, [0]), (os.chroot, "/")):
        found[function.__name__] = tried(function, argument)
    return {
        "found": {name: value for name, value in found.items() if value is not None},
        "uid": os.getuid(), "groups": os.getgroups(), "capabilities": status["CapEff"].strip(),
        "no_new_privs": status["NoNewPrivs"].strip(), "environment": dict(os.environ),
        "files": [tried(os.readlink, f"/proc/self/fd/{each}") for each in os.listdir("/proc/self/fd")],
        "child": subprocess.check_output([sys.executable, "-c", "import os; print(os.getuid())"]).decode(),
        "temporary": tempfile.gettempdir(), "home": os.path.expanduser("~"),
    }
serve(attack)
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def up(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalUp]:
    async with local_up(tmp_path_factory.mktemp("b01"), "--no-metrics", NVCF_SECRET="of the agent") as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def other(up: LocalUp) -> Account:
    scopes = (Scope.INVOKE, Scope.LIST, Scope.MANAGE, Scope.DEPLOY)
    return Account(up.url, await account_key(up, "other", *scopes))


def written(up: LocalUp, name: str, text: str) -> dict[str, str]:
    folder = up.folder / name
    folder.mkdir(mode=0o755, exist_ok=True)
    (folder / "function.py").write_text(text)
    return {"file": str(folder / "function.py"), "workingDirectory": str(folder)}


async def test_a_function_reaches_nothing_of_the_platform_or_of_another_account(
    up: LocalUp, other: Account
) -> None:
    await up.deploy("victim", VICTIM, "--env", "SECRET=of the victim")
    victim = json.loads(await up.ok("invoke", "victim", "--data", "x"))
    function, _ = await other.deploy("attacker", **written(up, "attacker", ATTACKER))
    files = [str(each) for each in up.data.rglob("*") if each.is_file()]
    names = {Path(each).name for each in files}
    assert {"admin.key", "agent.key", "signing-key.pem", "platform.credentials", "callout.seed"} <= names
    assert {"secret", "nvcf-worker-token.json"} <= names
    pids = [child["pid"] for child in up.state["children"].values()]
    folders = [str(up.data), victim["home"], victim["shared"], "/root", "/dev/tty"]
    wanted = {"files": files, "folders": folders, "pids": [*pids, up.process.pid, victim["pid"], 1]}
    seen = await other.invoke(function, wanted)
    own = [each for each in seen["found"] if "/instances/" in each and seen["temporary"][:-4] in each]
    assert {name: value for name, value in seen["found"].items() if name not in own} == _empty_folders(seen)
    assert seen["uid"] not in (0, victim["uid"])
    assert victim["uid"] != 0
    assert seen["groups"] == []
    assert int(seen["capabilities"], 16) == 0
    assert seen["no_new_privs"] == "1"
    assert int(seen["child"]) == seen["uid"]
    assert seen["home"] != victim["home"]
    assert "NVCF_SECRET" not in seen["environment"]
    key = up.key
    assert key not in json.dumps(seen)
    opened = [each for each in seen["files"] if each and str(up.data) in each]
    assert all("/instances/" in each for each in opened), opened


def _empty_folders(seen: dict[str, Any]) -> dict[str, str]:
    """The covers of the view itself: folders in which only what the instance needs can be seen."""
    shown = {name: value for name, value in seen["found"].items() if name.startswith("list ")}
    # The way to the interpreter and to the packages is seen, wherever they are on this machine.
    needed = (Path(sys.prefix), Path(sys.base_prefix), Path(__file__).parents[2])
    for name, value in shown.items():
        folder = Path(name.removeprefix("list "))
        ways = {each.relative_to(folder).parts[0] for each in needed if folder in each.parents}
        assert set(json.loads(value.replace("'", '"'))) <= {"instances", "homes"} | ways, name
    return shown


_REFUSALS = {
    "data": "is in a folder of the platform",
    "hidden": "is in a hidden folder of the home",
    "elsewhere": "is not in an allowed folder",
    "link": "is not in an allowed folder",
    "interpreter": "is not an allowed interpreter",
}


@pytest.mark.parametrize("where", _REFUSALS)
async def test_a_path_that_is_not_allowed_is_refused_in_words(up: LocalUp, where: str) -> None:
    file = up.folder / f"{where}.py"
    flags: list[str] = []
    if where == "data":
        file = up.data / "function.py"
    elif where == "hidden":
        file = Path.home() / ".nvcf-b01-test" / "function.py"
        file.parent.mkdir(exist_ok=True)
    elif where == "elsewhere":
        file = Path("/etc/hosts")
    elif where == "interpreter":
        flags = ["--python", "/bin/sh"]
    try:
        if where == "link":
            # The command follows links itself; a caller of the API need not.
            file.parent.joinpath("out").symlink_to("/usr/lib")
        elif where != "elsewhere":
            file.write_text(VICTIM)
        if where == "link":
            await _refused_link(up)
            return
        code, _, errors = await up.run("deploy", str(file), "--name", f"refused-{where}", *flags)
        assert code != 0
        assert _REFUSALS[where] in " ".join(errors.split())
        assert where == "data" or "--allow-" in errors
    finally:
        if where == "hidden":
            file.unlink()
            file.parent.rmdir()


async def _refused_link(up: LocalUp) -> None:
    account = Account(up.url, up.key)
    folder = str(up.folder / "out")
    _, version = await account.deploy("linked", file=str(up.folder / "victim.py"), workingDirectory=folder)

    async def refused() -> bool:
        _, listed = await account.call("GET", f"/v2/nvcf/instances?functionVersionId={version}")
        return "not in an allowed folder" in json.dumps(listed)

    await eventually(refused, "the instance is refused")


async def test_what_an_account_may_not_do_to_another_one(up: LocalUp, other: Account) -> None:
    victim = await up.deploy("private", VICTIM)
    _, listed = await other.call("GET", "/v2/nvcf/functions")
    assert victim not in json.dumps(listed)
    owner = Account(up.url, up.key)
    _, versions = await owner.call("GET", f"/v2/nvcf/functions/{victim}/versions")
    version = versions["functions"][0]["versionId"]
    attempts = [
        ("POST", f"/v2/nvcf/pexec/functions/{victim}", {}),
        ("GET", f"/v2/nvcf/functions/{victim}/versions", None),
        ("DELETE", f"/v2/nvcf/functions/{victim}/versions/{version}", None),
        ("DELETE", f"/v2/nvcf/deployments/functions/{victim}/versions/{version}", None),
        ("PUT", f"/v2/nvcf/functions/{victim}/authorizations", {"authorizedParties": [{"ncaId": "other"}]}),
        ("POST", f"/v2/nvcf/functions/{victim}/versions", {"name": "private", "process": {}}),
        ("GET", "/v2/nvcf/keys", None),
        ("POST", "/v2/nvcf/keys", {"scopes": ["admin"]}),
    ]
    for method, path, body in attempts:
        status, answer = await other.call(method, path, body)
        assert status in (400, 403, 404), (method, path, status, answer)
    _, instances = await other.call("GET", "/v2/nvcf/instances")
    assert version not in json.dumps(instances)
