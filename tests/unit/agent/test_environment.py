"""A worker's environment and command line."""

from dataclasses import replace
from pathlib import Path

from nvcf_agent.desired import Slot
from nvcf_agent.environment import Endpoints, InstancePlaces, InstanceSpec, worker_environment
from nvcf_proto.models import FunctionVersion, ProcessSource

SOURCE = ProcessSource(
    python="/venv/bin/python",
    file="/code/f.py",
    working_directory="/code",
    handler="run",
    environment={"MODEL": "x", "NVCF_WORKER_TOKEN": "forged", "PATH": "/mine"},
)
SPEC = InstanceSpec(
    instance_id="i",
    version=FunctionVersion(
        id="v", function_id="f", name="hello", nca_id="account", created_at=0.0, process=SOURCE, tags=("a",)
    ),
    source=SOURCE,
    slot=Slot(gpu="L40S", concurrency=3),
    cluster="c",
    endpoints=Endpoints("127.0.0.1:1", "nats://127.0.0.1:2"),
    worker_token="secret",
)
PLACES = InstancePlaces(Path("/d/shared"), Path("/d/assets"), Path("/d/responses"), 8080)


def test_the_command_names_file_and_handler_and_no_secret() -> None:
    assert SPEC.command() == ["/venv/bin/python", "-m", "nvcf_worker", "/code/f.py:run"]
    plain = replace(SPEC, source=replace(SOURCE, handler=None))
    assert plain.command()[-1] == "/code/f.py"


def test_the_platform_wins_over_the_function_and_keeps_its_own() -> None:
    inherited = {"PATH": "/usr/bin", "HOME": "/home/u", "AWS_SECRET_ACCESS_KEY": "x", "NVCF_API_KEY": "y"}
    made = worker_environment(SPEC, PLACES, inherited, Path("/venv"))
    assert made["NVCF_WORKER_TOKEN"] == "secret"
    assert made["MODEL"] == "x"
    assert made["PATH"] == "/mine"
    assert made["VIRTUAL_ENV"] == "/venv"
    assert made["HOME"] == "/home/u"
    assert made["GPU_NAME"] == "L40S"
    assert made["MAX_REQUEST_CONCURRENCY"] == "3"
    assert made["FUNCTION_TAGS"] == '["a"]'
    assert made["SHARED_CONFIG_DIR"] == "/d/shared"
    assert not {"AWS_SECRET_ACCESS_KEY", "NVCF_API_KEY"} & made.keys()


def test_programs_of_the_functions_python_come_first() -> None:
    spec = replace(SPEC, source=replace(SOURCE, environment={}))
    assert worker_environment(spec, PLACES, {"PATH": "/usr/bin"}, None)["PATH"] == "/venv/bin:/usr/bin"
    bare = worker_environment(spec, PLACES, {}, None)
    assert bare["PATH"] == "/venv/bin"
    assert "VIRTUAL_ENV" not in bare
