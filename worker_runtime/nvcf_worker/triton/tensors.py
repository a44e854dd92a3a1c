"""Values become tensors by a model's own description, and are checked before anything is sent. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from tritonclient.utils import (
    deserialize_bytes_tensor,
    serialize_byte_tensor,
    triton_to_np_dtype,
)

from nvcf_worker.errors import InvalidInput
from nvcf_worker.run.tritonserver.spec import ModelSpec, TensorSpec

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Tensor:
    """A checked input. Of BF16 the array has float32, of BYTES the array has `bytes`."""

    name: str
    datatype: str
    array: Array

    def content(self) -> bytes:
        """Return it as the protocol's raw bytes."""
        if self.datatype == "BYTES":
            made = serialize_byte_tensor(self.array)
            return bytes(made.item()) if made.size else b""
        if self.datatype == "BF16":
            return bf16_of(self.array).tobytes()
        return self.array.tobytes()


def bf16_of(array: Array) -> Array:
    """Return float32 numbers as the upper halves of their bits, rounded to the nearest."""
    bits = np.ascontiguousarray(array).view(np.uint32)
    rounded = (bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16
    # What is no number must not be rounded to infinity.
    return np.where(np.isnan(array), (bits >> 16) | 0x40, rounded).astype("<u2")


def array_of(content: bytes | memoryview, datatype: str, shape: tuple[int, ...]) -> Array:
    """Return the array of an output's raw bytes. Of BYTES it has `bytes`, of BF16 float32."""
    if datatype == "BYTES":
        return np.asarray(deserialize_bytes_tensor(content), dtype=np.object_).reshape(shape)
    if datatype == "BF16":
        return (np.frombuffer(content, "<u2").astype(np.uint32) << 16).view(np.float32).reshape(shape)
    return np.frombuffer(content, dtype=numpy_type(datatype)).reshape(shape)


def numpy_type(datatype: str) -> np.dtype[Any]:
    """Return the type of the arrays of one of Triton's data types."""
    if datatype == "BF16":
        return np.dtype(np.float32)
    found = triton_to_np_dtype(datatype)
    if found is None:
        raise ValueError(f"Triton's data type {datatype} has no form in numpy")
    made: np.dtype[Any] = np.dtype(found)
    return made


def tensors_of(spec: ModelSpec, given: Any) -> list[Tensor]:
    """Return the tensors of a call. Raises InvalidInput, which names each input that does not fit.

    given: values by name, or the value itself for a model with one input.
    """
    values = _named(spec, given)
    known = [each.name for each in spec.inputs]
    unknown = f"model {spec.name} has no such input; it has {', '.join(known)}"
    errors = [(str(name), unknown) for name in values if name not in known]
    tensors = []
    for each in spec.inputs:
        value = values.get(each.name)
        if value is None:
            if not each.optional:
                errors.append((each.name, f"missing; expected {each.describe()}"))
            continue
        try:
            tensors.append(Tensor(each.name, each.datatype, tensor_array(each, value)))
        except ValueError as error:
            errors.append((each.name, str(error)))
    if not errors and spec.max_batch:
        errors = _batch_errors(spec, tensors)
    if errors:
        raise InvalidInput(errors)
    return tensors


def _named(spec: ModelSpec, given: Any) -> Mapping[str, Any]:
    if isinstance(given, Mapping):
        return given
    required = [each for each in spec.inputs if not each.optional] or spec.inputs
    if len(required) == 1:
        return {required[0].name: given}
    names = ", ".join(each.name for each in spec.inputs)
    raise InvalidInput([("", f"model {spec.name} has several inputs; give them by name: {names}")])


def tensor_array(spec: TensorSpec, value: Any) -> Array:
    """Return one input as an array of its type and shape. Raises ValueError that says what is expected.

    A value with fewer dimensions gets leading dimensions of size 1.
    """
    array = _typed(spec, value)
    missing = len(spec.shape) - array.ndim
    if missing > 0:
        array = array.reshape((1,) * missing + array.shape)
    fits = len(spec.shape) == array.ndim and all(
        wanted in (-1, size) for wanted, size in zip(spec.shape, array.shape, strict=True)
    )
    if not fits:
        raise ValueError(f"has the shape {list(array.shape)}; expected {spec.describe()}")
    return array


def _typed(spec: TensorSpec, value: Any) -> Array:
    if spec.datatype == "BYTES":
        return _texts(spec, value)
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, OverflowError):
        raise ValueError(f"is no regular array; expected {spec.describe()}") from None
    wanted = numpy_type(spec.datatype)
    if array.size == 0 and not isinstance(value, np.ndarray):
        array = array.astype(wanted)  # an empty list has no type of its own
    if array.dtype == wanted:
        return np.ascontiguousarray(array)
    if not _same_family(array.dtype, wanted):
        raise ValueError(f"has {_described(array)}; expected {spec.describe()}")
    with np.errstate(over="ignore", invalid="ignore"):
        cast = array.astype(wanted)
    if _lost(cast, array):
        raise ValueError(f"has a number that {spec.datatype} cannot hold; expected {spec.describe()}")
    return cast


def _lost(cast: Array, array: Array) -> bool:
    """Return whether numbers have become others, apart from the precision of fractions."""
    if cast.dtype.kind in "iu":
        return not np.array_equal(cast, array)
    infinite = np.isinf(cast)
    return bool(infinite.any()) and not bool(np.isinf(array[infinite].astype(np.float64)).all())


def _same_family(given: np.dtype[Any], wanted: np.dtype[Any]) -> bool:
    """Return whether only a number's size changes: booleans, whole numbers and fractions stay apart."""
    if wanted.kind == "f":
        # The kind V has the types of ml_dtypes, such as bfloat16.
        return given.kind in "iuf" or given.name == "bfloat16"
    return wanted.kind in "iu" and given.kind in "iu"


def _described(array: Array) -> str:
    kinds = {
        "b": "booleans",
        "i": "whole numbers",
        "u": "whole numbers",
        "f": "fractions",
        "U": "text",
        "S": "bytes",
    }
    return kinds.get(array.dtype.kind, f"values of the type {array.dtype}")


def _texts(spec: TensorSpec, value: Any) -> Array:
    if isinstance(value, np.ndarray):
        array = value.astype(np.object_)
    else:
        if isinstance(value, str | bytes):
            array = np.empty((), np.object_)
            array[()] = value
        else:
            try:
                array = np.array(value, dtype=np.object_)
            except ValueError:
                raise ValueError(f"is no regular array; expected {spec.describe()}") from None
    flat = array.reshape(-1)
    encoded = np.empty(flat.shape, np.object_)
    for at, item in enumerate(flat):
        if isinstance(item, str):
            encoded[at] = item.encode()
        elif isinstance(item, bytes):
            encoded[at] = item
        else:
            raise ValueError(f"has {type(item).__name__} among its items; expected text: {spec.describe()}")
    return encoded.reshape(array.shape)


def _batch_errors(spec: ModelSpec, tensors: list[Tensor]) -> list[tuple[str, str]]:
    sizes = {each.name: each.array.shape[0] for each in tensors}
    if len(set(sizes.values())) > 1:
        text = ", ".join(f"{name} {size}" for name, size in sizes.items())
        return [
            ("", f"the batch has different sizes: {text}; the first dimension of all inputs must be equal")
        ]
    most = spec.max_batch
    return [
        (name, f"has {size} items; model {spec.name} takes at most {most}")
        for name, size in sizes.items()
        if size > most
    ]
