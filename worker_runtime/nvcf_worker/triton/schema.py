"""JSON schemas of a model's requests and responses, and the OpenAPI document of its function. Pure."""

from __future__ import annotations

from typing import Any

from nvcf_worker.run.tritonserver.spec import ModelSpec, TensorSpec
from nvcf_worker.triton.json_tensors import item_shape

_PROBLEM = {
    "type": "object",
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"field": {"type": "string"}, "message": {"type": "string"}},
            },
        },
    },
}
_BITS = {"8": 8, "16": 16, "32": 32, "64": 64}


def item_schema(tensor: TensorSpec, max_batch: int) -> dict[str, Any]:
    """Return the schema of one item of a tensor."""
    schema = _value_schema(tensor.datatype)
    for size in reversed(item_shape(tensor, max_batch)):
        schema = {"type": "array", "items": schema}
        if size >= 0:
            schema |= {"minItems": size, "maxItems": size}
    return schema


def _value_schema(datatype: str) -> dict[str, Any]:
    if datatype == "BOOL":
        return {"type": "boolean"}
    if datatype == "BYTES":
        return {"type": "string"}
    if datatype.startswith(("INT", "UINT")):
        bits = _BITS[datatype.removeprefix("U").removeprefix("INT")]
        low, high = (
            (0, 2**bits - 1) if datatype.startswith("U") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        )
        return {"type": "integer", "minimum": low, "maximum": high}
    return {"type": "number"}


def object_schema(
    tensors: tuple[TensorSpec, ...], max_batch: int, *, batch: bool = False, closed: bool = False
) -> dict[str, Any]:
    """Return the schema of an object with a member for each tensor. closed: it has no other members."""
    members: dict[str, Any] = {}
    for tensor in tensors:
        schema = item_schema(tensor, max_batch)
        if batch:
            schema = {"type": "array", "items": schema, "minItems": 1, "maxItems": max_batch}
        members[tensor.name] = schema
    required = [tensor.name for tensor in tensors if not tensor.optional]
    result: dict[str, Any] = {"type": "object", "properties": members}
    if required:
        result["required"] = required
    return {**result, "additionalProperties": False} if closed else result


def request_schema(spec: ModelSpec) -> dict[str, Any]:
    """Return the schema of a request: one item, or a batch if the model takes batches."""
    one = object_schema(spec.inputs, spec.max_batch, closed=True)
    if not spec.max_batch:
        return one
    return {"anyOf": [one, object_schema(spec.inputs, spec.max_batch, batch=True, closed=True)]}


def response_schema(spec: ModelSpec) -> dict[str, Any]:
    """Return the schema of a response, for a decoupled model of one line of it."""
    one = object_schema(spec.outputs, spec.max_batch)
    if not spec.max_batch:
        return one
    return {"anyOf": [one, object_schema(spec.outputs, spec.max_batch, batch=True)]}


def openapi(spec: ModelSpec) -> dict[str, Any]:
    """Return the OpenAPI document of the function of a model."""
    media = "application/x-ndjson" if spec.decoupled else "application/json"
    described = "Its responses, one on each line." if spec.decoupled else "Its outputs."

    def refused(text: str) -> dict[str, Any]:
        return {"description": text, "content": {"application/problem+json": {"schema": _PROBLEM}}}

    return {
        "openapi": "3.1.0",
        "info": {"title": spec.name, "version": spec.version or "latest"},
        "paths": {
            "/": {
                "post": {
                    "operationId": "infer",
                    "summary": f"Run the model {spec.name}.",
                    "requestBody": {
                        "required": True,
                        "content": {"application/json": {"schema": request_schema(spec)}},
                    },
                    "responses": {
                        "200": {
                            "description": described,
                            "content": {media: {"schema": response_schema(spec)}},
                        },
                        "400": refused("The body is no JSON, or Triton refuses it."),
                        "422": refused("An input is missing, or has another type or shape."),
                    },
                }
            }
        },
    }
