"""Records: what earlier releases stored stays readable, and what is refused is named.

`stored_records.json` was written before the records became msgspec structs: for each kind JSON as it may be
stored (with nulls, with fields of newer versions, with upper-case ids), and what the code of then made of it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nvcf_proto import compute, models
from nvcf_proto.errors import InvalidRecord
from nvcf_proto.models import Record, TelemetryEndpoint

STORED: list[tuple[str, dict[str, Any], dict[str, Any]]] = json.loads(
    (Path(__file__).parent / "stored_records.json").read_text()
)


def kind_of(name: str) -> type[Record]:
    found: type[Record] = getattr(models, name, None) or getattr(compute, name)
    return found


def without_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_null(each) for name, each in value.items() if each is not None}
    return [without_null(each) for each in value] if isinstance(value, list) else value


@pytest.mark.parametrize(("name", "given", "written"), STORED)
def test_what_earlier_releases_stored_is_read_and_written_as_it_was(
    name: str, given: dict[str, Any], written: dict[str, Any]
) -> None:
    record = kind_of(name).from_json(json.dumps(given).encode())
    assert json.loads(record.to_json()) == without_null(written)
    assert kind_of(name).from_json(record.to_json()) == record
    assert kind_of(name).from_json(json.dumps(written).encode()) == record


@pytest.mark.parametrize(
    ("name", "changes", "text"),
    [
        ("Deployment", {"functionId": 7}, "functionId: expected a string, got a number"),
        ("Deployment", {"functionId": "x"}, "functionId: not a UUID"),
        ("Deployment", {"functionId": None}, "functionId: missing; expected a string"),
        ("Deployment", {"createdAt": "x"}, "createdAt: expected a number, got a string"),
        ("Deployment", {"keepQueued": 1}, "keepQueued: expected true or false, got a number"),
        ("Deployment", {"maxQueueDepth": 0}, "maxQueueDepth: expected 1 to 100000, got 0"),
        ("Deployment", {"maxQueueDepth": True}, "maxQueueDepth: expected a whole number, got a boolean"),
        ("Deployment", {"maxQueueDepth": 1.5}, "maxQueueDepth: expected a whole number, got a number"),
        ("Deployment", {"scaling": []}, "scaling: expected an object, got a list"),
        ("Deployment", {"scaling": {"waitSlo": 0}}, "scaling.waitSlo: expected 0.001 to 3600, got 0"),
        (
            "Deployment",
            {"scaling": {"x": None}},
            "scaling.x: unknown field; known are keepWarm, profile, scaleDownDetails, scaleToZeroDelay, "
            "scaleUpDetails, targetUtilisation, waitPrice, waitSlo",
        ),
        (
            "Deployment",
            {"deploymentSpecifications": [{}, {"attributes": {"a": "b", "c": 1}}]},
            "deploymentSpecifications[1].attributes.c: expected a string, got a number",
        ),
        (
            "Deployment",
            {"deploymentSpecifications": [{"minInstances": 3, "maxInstances": 2}]},
            "deploymentSpecifications[0].maxInstances: expected 3 to 1000, got 2",
        ),
        ("Deployment", {"deploymentSpecifications": {}}, "expected a list of objects, got an object"),
        ("FunctionVersion", {"name": "x" * 5000}, "name: longer than 4096 characters"),
        ("FunctionVersion", {"process": {"python": "p"}}, "process.python: does not match /.+"),
        ("FunctionVersion", {"tags": "x"}, "tags: expected a list of strings, got a string"),
        ("Instance", {"state": "LOST"}, "state: expected one of COMPLETED, FAILED, PENDING, RUNNING"),
        ("TelemetryEndpoint", {"types": []}, "types: name at least one of LOGS, METRICS, TRACES"),
        (
            "TelemetryEndpoint",
            {"configuration": {"headers": {str(number): "x" for number in range(17)}}},
            "configuration.headers: more than 16 entries",
        ),
    ],
)
def test_what_is_refused_is_named_with_what_is_wrong_and_what_is_allowed(
    name: str, changes: dict[str, Any], text: str
) -> None:
    given = next(given for kind, given, _ in STORED if kind == name)
    with pytest.raises(InvalidRecord) as caught:
        kind_of(name).from_json(json.dumps({**given, **changes}).encode())
    assert text in str(caught.value)


@pytest.mark.parametrize("name", ["x` - at `$.foo", "x - at `$.name`", "$", "a.b[0]", "` - at `$.types[9]"])
def test_a_name_that_looks_like_a_place_is_refused_like_any_other(name: str) -> None:
    given = next(given for kind, given, _ in STORED if kind == "TelemetryEndpoint")
    for changes in ({"configuration": {name: 1}}, {"protocol": name}, {"secret": {name: 1}}):
        with pytest.raises(InvalidRecord):
            TelemetryEndpoint.from_dict({**given, **changes})


def test_a_worker_does_not_import_msgspec() -> None:
    """The worker runs beside models whose images have packages of their own."""
    program = (
        "import importlib, pkgutil, sys, nvcf_worker\n"
        "for each in pkgutil.walk_packages(nvcf_worker.__path__, 'nvcf_worker.'):\n"
        "    if not each.name.endswith('__main__'):\n"
        "        importlib.import_module(each.name)\n"
        "print(sorted({'msgspec', 'nvcf_proto.models', 'nvcf_proto.compute'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
