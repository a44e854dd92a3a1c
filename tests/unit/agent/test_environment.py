"""A worker's environment and command line."""

from dataclasses import replace
from pathlib import Path

from nvcf_agent.environment import (
    Endpoints,
    InstancePlaces,
    InstanceSpec,
    worker_command,
    worker_environment,
)
from nvcf_agent.inventory import Limits, Share
from nvcf_proto.models import ProcessSource
from tests.unit.agent.orders import order

SOURCE = ProcessSource(
    python="/venv/bin/python",
    file="/code/f.py",
    working_directory="/code",
    handler="run",
    environment={
        "MODEL": "x",
        "NVCF_WORKER_TOKEN": "forged",
        "PATH": "/mine",
        "CUDA_VISIBLE_DEVICES": "7",
    },
)
SPEC = InstanceSpec(
    order=order(gpu="L40S", gpus_per_instance=2, max_request_concurrency=3, process=SOURCE),
    share=Share(devices=(1, 3)),
    limits=Limits(),
    endpoints=Endpoints("127.0.0.1:1", "nats://127.0.0.1:2"),
    worker_token="secret",
    tags=("a",),
)
PLACES = InstancePlaces(Path("/d/shared"), Path("/d/assets"), Path("/d/responses"), 8080)


def test_the_command_names_file_and_handler_and_no_secret() -> None:
    assert worker_command(SOURCE) == ["/venv/bin/python", "-m", "nvcf_worker", "/code/f.py:run"]
    assert worker_command(replace(SOURCE, handler=None))[-1] == "/code/f.py"


def test_the_platform_wins_over_the_function_and_keeps_its_own() -> None:
    inherited = {"PATH": "/usr/bin", "HOME": "/home/u", "AWS_SECRET_ACCESS_KEY": "x", "NVCF_API_KEY": "y"}
    made = worker_environment(SPEC, SOURCE, PLACES, inherited, Path("/venv"))
    assert made["NVCF_WORKER_TOKEN"] == "secret"
    assert made["MODEL"] == "x"
    assert made["PATH"] == "/mine"
    assert made["VIRTUAL_ENV"] == "/venv"
    assert made["HOME"] == "/home/u"
    assert made["GPU_NAME"] == "L40S"
    assert made["CUDA_VISIBLE_DEVICES"] == "1,3"
    assert made["ATTACHED_GPU_COUNT"] == "2"
    assert made["MAX_REQUEST_CONCURRENCY"] == "3"
    assert made["FUNCTION_TAGS"] == '["a"]'
    assert made["SHARED_CONFIG_DIR"] == "/d/shared"
    assert not {"AWS_SECRET_ACCESS_KEY", "NVCF_API_KEY"} & made.keys()


def test_an_instance_without_a_gpu_sees_what_the_function_declares() -> None:
    spec = replace(SPEC, share=Share(slots=1))
    assert worker_environment(spec, SOURCE, PLACES, {}, None)["CUDA_VISIBLE_DEVICES"] == "7"
    bare = replace(SOURCE, environment={})
    assert "CUDA_VISIBLE_DEVICES" not in worker_environment(spec, bare, PLACES, {}, None)


def test_programs_of_the_functions_python_come_first() -> None:
    source = replace(SOURCE, environment={})
    made = worker_environment(SPEC, source, PLACES, {"PATH": "/usr/bin"}, None)
    assert made["PATH"] == "/venv/bin:/usr/bin"
    bare = worker_environment(SPEC, source, PLACES, {}, None)
    assert bare["PATH"] == "/venv/bin"
    assert "VIRTUAL_ENV" not in bare
