"""JSON objects become a model's inputs, and its outputs JSON. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from nvcf_worker.errors import InvalidInput
from nvcf_worker.run.tritonserver.spec import ModelSpec, TensorSpec
from nvcf_worker.triton.errors import TritonError
from nvcf_worker.triton.tensors import Array


class Given(NamedTuple):
    """The inputs of a JSON request; `single`: it is one item of a model that takes batches."""

    inputs: dict[str, Any]
    single: bool


def item_shape(tensor: TensorSpec, max_batch: int) -> tuple[int, ...]:
    """Return the shape of one item; empty for a single value, which is no list in JSON."""
    shape = tensor.shape[1:] if max_batch else tensor.shape
    return () if shape == (1,) else shape


def inputs_of(spec: ModelSpec, body: Any) -> Given:
    """Return the inputs of a request. Raises InvalidInput.

    body: an object with a member for each input. Of a model that takes batches it is one item, or a batch
    where each value has one dimension more.
    """
    if not isinstance(body, Mapping):
        raise InvalidInput([("", f"expected an object with {', '.join(each.name for each in spec.inputs)}")])
    known = {each.name: each for each in spec.inputs}
    depths = {
        name: _depth(value) - len(item_shape(known[name], spec.max_batch))
        for name, value in body.items()
        if name in known and value is not None
    }
    single = bool(spec.max_batch) and bool(depths) and all(depth == 0 for depth in depths.values())
    if spec.max_batch and not single and any(depth == 0 for depth in depths.values()):
        texts = [
            (name, "is one item, while others are a batch") for name, depth in depths.items() if depth == 0
        ]
        raise InvalidInput(texts)
    inputs = {
        name: value if name not in known else _with_lists(known[name], value, spec.max_batch, single=single)
        for name, value in body.items()
    }
    return Given(inputs, single)


def _depth(value: Any) -> int:
    depth = 0
    while isinstance(value, list):
        depth += 1
        if not value:
            break
        value = value[0]
    return depth


def _with_lists(tensor: TensorSpec, value: Any, max_batch: int, *, single: bool) -> Any:
    """Return a value with the dimensions that its JSON form leaves out."""
    if value is None:
        return None
    if item_shape(tensor, max_batch) == () and tensor.shape and tensor.shape[-1] == 1:
        value = [value] if single or not max_batch else [[each] for each in _list(value)]
    return [value] if single else value


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def outputs_of(spec: ModelSpec, outputs: Mapping[str, Array], *, single: bool) -> dict[str, Any]:
    """Return the response to a request. Raises TritonError for bytes that are no text."""
    known = {each.name: each for each in spec.outputs}
    return {
        name: _value(known.get(name), array, spec.max_batch, single=single) for name, array in outputs.items()
    }


def _value(tensor: TensorSpec | None, array: Array, max_batch: int, *, single: bool) -> Any:
    if single and array.ndim and array.shape[0] == 1:
        array = array[0]
    if tensor is not None and item_shape(tensor, max_batch) == () and array.ndim and array.shape[-1] == 1:
        array = array[..., 0]
    found = array.tolist()
    return _texts(tensor, found) if array.dtype.kind == "O" else found


def _texts(tensor: TensorSpec | None, value: Any) -> Any:
    if isinstance(value, list):
        return [_texts(tensor, each) for each in value]
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError:
        name = "an output" if tensor is None else f"output {tensor.name}"
        raise TritonError(f"{name} is no text in UTF-8, and JSON has no bytes") from None
