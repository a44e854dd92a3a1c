"""JSON objects become inputs and outputs; the schema says the same as the conversion."""

from __future__ import annotations

from typing import Any

import jsonschema
import numpy as np
import pytest

from nvcf_worker.errors import InvalidInput
from nvcf_worker.run.tritonserver.spec import ModelSpec, TensorSpec, spec_of
from nvcf_worker.triton.errors import TritonError
from nvcf_worker.triton.json_tensors import inputs_of, outputs_of
from nvcf_worker.triton.schema import openapi, request_schema, response_schema
from nvcf_worker.triton.tensors import tensors_of

CLASSIFIER = ModelSpec(
    "reviews",
    "",
    (TensorSpec("text", "BYTES", (-1, 1)), TensorSpec("words", "INT32", (-1, 2), optional=True)),
    (TensorSpec("label", "BYTES", (-1, 1)), TensorSpec("scores", "FP32", (-1, 2))),
    max_batch=8,
)
PLAIN = ModelSpec("plain", "", (TensorSpec("x", "FP32", (-1, 2)),), (TensorSpec("y", "FP32", (1,)),))


@pytest.mark.parametrize(
    ("spec", "body", "shapes"),
    [
        (CLASSIFIER, {"text": "good"}, {"text": (1, 1)}),
        (CLASSIFIER, {"text": "good", "words": [1, 2]}, {"text": (1, 1), "words": (1, 2)}),
        (CLASSIFIER, {"text": ["good", "bad"], "words": [[1, 2], [3, 4]]}, {"text": (2, 1), "words": (2, 2)}),
        (PLAIN, {"x": [[1, 2], [3, 4], [5, 6]]}, {"x": (3, 2)}),
    ],
)
def test_what_fits_the_schema_becomes_tensors(
    spec: ModelSpec, body: dict[str, Any], shapes: dict[str, tuple[int, ...]]
) -> None:
    jsonschema.validate(body, request_schema(spec))

    tensors = tensors_of(spec, inputs_of(spec, body).inputs)

    assert {each.name: each.array.shape for each in tensors} == shapes


@pytest.mark.parametrize(
    "body",
    [
        [],
        {},
        {"text": 1},
        {"text": "good", "words": [1]},
        {"text": "good", "words": [1, 1.5]},
        {"text": "good", "more": 1},
        {"text": ["good"], "words": [1, 2]},
        {"text": ["good"] * 9},
    ],
)
def test_what_does_not_fit_the_schema_is_refused(body: Any) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(body, request_schema(CLASSIFIER))
    with pytest.raises(InvalidInput):
        tensors_of(CLASSIFIER, inputs_of(CLASSIFIER, body).inputs)


def test_outputs_have_the_form_of_the_request() -> None:
    label, scores = np.array([[b"good"]], np.object_), np.array([[0.25, 0.75]], np.float32)

    one = outputs_of(CLASSIFIER, {"label": label, "scores": scores}, single=True)
    batch = outputs_of(CLASSIFIER, {"label": label, "scores": scores}, single=False)

    assert one == {"label": "good", "scores": [0.25, 0.75]}
    assert batch == {"label": ["good"], "scores": [[0.25, 0.75]]}
    for each in (one, batch):
        jsonschema.validate(each, response_schema(CLASSIFIER))
    assert outputs_of(PLAIN, {"y": np.array([2], np.float32)}, single=False) == {"y": 2}


def test_bytes_that_are_no_text_are_an_error() -> None:
    with pytest.raises(TritonError, match="output label is no text"):
        outputs_of(CLASSIFIER, {"label": np.array([[b"\xff"]], np.object_)}, single=True)


def test_the_openapi_document_names_the_model() -> None:
    document = openapi(CLASSIFIER)

    assert document["info"] == {"title": "reviews", "version": "latest"}
    jsonschema.Draft202012Validator.check_schema(
        document["paths"]["/"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    )


@pytest.mark.parametrize(
    ("config", "capacity"),
    [
        (
            {
                "max_batch_size": 8,
                "dynamic_batching": {},
                "instance_group": [{"kind": "KIND_CPU", "count": 2}],
            },
            16,
        ),
        ({"max_batch_size": 8, "dynamic_batching": {"preferred_batch_size": [2, 4]}}, 4),
        ({"max_batch_size": 8}, 1),
        ({"max_batch_size": 8, "ensemble_scheduling": {}}, 8),
        ({"instance_group": [{"kind": "KIND_GPU", "count": 2, "gpus": [0, 1]}]}, 4),
        ({"instance_group": [{"count": 1}, {"count": 4, "passive": True}]}, 1),
        ({}, 1),
    ],
)
def test_capacity_is_what_runs_at_once_in_full_batches(config: dict[str, Any], capacity: int) -> None:
    assert spec_of({"name": "m"}, config).capacity == capacity
