"""A worker's environment and command line."""

from dataclasses import replace
from pathlib import Path

from nvcf_agent.backends.environment import (
    InstancePlaces,
    InstanceSpec,
    WorkerTelemetry,
    worker_command,
    worker_environment,
)
from nvcf_agent.state.inventory import Limits, Share
from nvcf_proto.models import ProcessSource
from tests.unit.agent.orders import FUNCTION, order

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
    order=order(
        "r",
        gpu="L40S",
        requested_gpu_count=2,
        process=SOURCE,
        variables={"HEALTH_PORT": "1", "SIDECAR_REGISTRY_CREDENTIAL": "x"},
    ),
    share=Share(devices=(1, 3)),
    limits=Limits(),
    zone="a-cluster",
)
PLACES = InstancePlaces(Path("/d/shared"), Path("/d/assets"), Path("/d/responses"), 8080)


def test_the_command_names_file_and_handler_and_no_secret() -> None:
    assert worker_command(SOURCE) == ["/venv/bin/python", "-m", "nvcf_worker", "/code/f.py:run"]
    assert worker_command(SOURCE.replace(handler=None))[-1] == "/code/f.py"


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
    assert made["FUNCTION_TAGS"] == "a,b"
    assert made["FUNCTION_ID"] == FUNCTION
    assert made["NVCF_FQDN_NATS"] == "nats://127.0.0.1:2"
    assert (made["INSTANCE_ID"], made["ZONE_NAME"]) == ("0-sr-r", "a-cluster")
    assert made["HEALTH_PORT"] == "8080"
    assert "SIDECAR_REGISTRY_CREDENTIAL" not in made
    assert made["SHARED_CONFIG_DIR"] == "/d/shared"
    assert not {"AWS_SECRET_ACCESS_KEY", "NVCF_API_KEY"} & made.keys()


def test_an_instance_without_a_gpu_sees_what_the_function_declares() -> None:
    spec = replace(SPEC, share=Share(slots=1))
    assert worker_environment(spec, SOURCE, PLACES, {}, None)["CUDA_VISIBLE_DEVICES"] == "7"
    bare = SOURCE.replace(environment={})
    assert "CUDA_VISIBLE_DEVICES" not in worker_environment(spec, bare, PLACES, {}, None)


def test_programs_of_the_functions_python_come_first() -> None:
    source = SOURCE.replace(environment={})
    made = worker_environment(SPEC, source, PLACES, {"PATH": "/usr/bin"}, None)
    assert made["PATH"] == "/venv/bin:/usr/bin"
    bare = worker_environment(SPEC, source, PLACES, {}, None)
    assert bare["PATH"] == "/venv/bin"
    assert "VIRTUAL_ENV" not in bare


def test_a_start_continues_its_trace_and_knows_the_decision_behind_it() -> None:
    spec = replace(SPEC, trace="00-a-b-01", order=SPEC.order.replace(trace_parent="00-a-c-01"))
    made = worker_environment(spec, SOURCE, replace(PLACES, metrics="127.0.0.1:9"), {}, None)
    assert (made["TRACEPARENT"], made["NVCF_SCALING_TRACEPARENT"]) == ("00-a-b-01", "00-a-c-01")
    assert made["NVCF_METRICS_ADDRESS"] == "127.0.0.1:9"
    bare = worker_environment(SPEC, SOURCE, PLACES, {}, None)
    assert not {"TRACEPARENT", "NVCF_SCALING_TRACEPARENT", "NVCF_METRICS_ADDRESS"} & bare.keys()


def test_telemetry_variables_reach_functions_only_where_the_operator_says_so() -> None:
    environ = {
        "OTEL_EXPORTER_OTLP_HEADERS": "api-key=secret",
        "OTEL_TRACES_SAMPLER_ARG": "0.5",
        "OTEL_SERVICE_NAME": "my-agent",
        "HOME": "/home/u",
    }
    assert WorkerTelemetry.of(environ, metrics=True, passed_on=False) == WorkerTelemetry(metrics=True)
    passed_on = WorkerTelemetry.of(environ, metrics=False, passed_on=True)
    source = SOURCE.replace(environment={"OTEL_TRACES_SAMPLER_ARG": "1"})
    made = worker_environment(replace(SPEC, telemetry=passed_on), source, PLACES, {}, None)
    assert made["OTEL_EXPORTER_OTLP_HEADERS"] == "api-key=secret"
    assert made["OTEL_TRACES_SAMPLER_ARG"] == "1"
    assert "OTEL_SERVICE_NAME" not in made
