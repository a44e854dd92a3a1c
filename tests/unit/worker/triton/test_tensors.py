"""Values become tensors, or errors that name the input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nvcf_worker.errors import InvalidInput
from nvcf_worker.run.tritonserver.spec import ModelSpec, TensorSpec
from nvcf_worker.triton.tensors import Array, array_of, numpy_type, tensors_of

TYPES = (
    "BOOL",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "FP16",
    "FP32",
    "FP64",
)


def model(*inputs: TensorSpec, max_batch: int = 0) -> ModelSpec:
    return ModelSpec("bert", "", inputs, (), max_batch)


def only(spec: ModelSpec, value: Any) -> Array:
    [tensor] = tensors_of(spec, value)
    return tensor.array


def refused(spec: ModelSpec, value: Any) -> str:
    with pytest.raises(InvalidInput) as caught:
        tensors_of(spec, value)
    return caught.value.detail


@pytest.mark.parametrize(
    ("spec", "value", "shape"),
    [
        (TensorSpec("x", "FP32", (-1, 4)), [1, 2, 3, 4], (1, 4)),
        (TensorSpec("x", "FP32", (-1, 4)), [[1, 2, 3, 4.5]] * 3, (3, 4)),
        (TensorSpec("x", "INT64", (-1, 1)), 7, (1, 1)),
        (TensorSpec("x", "INT32", (-1,)), [], (0,)),
        (TensorSpec("x", "BYTES", (-1, 1)), "text", (1, 1)),
        (TensorSpec("x", "BYTES", (-1,)), ["a", b"\xff"], (2,)),
        (TensorSpec("x", "BF16", (2,)), [1.5, 2], (2,)),
        (TensorSpec("x", "FP32", (2, 0)), np.zeros((2, 0), np.float32), (2, 0)),
    ],
)
def test_values_become_arrays_of_the_models_type(
    spec: TensorSpec, value: Any, shape: tuple[int, ...]
) -> None:
    array = only(model(spec), {"x": value})

    assert array.shape == shape
    assert array.dtype == numpy_type(spec.datatype)
    assert array.tolist() == only(model(spec), value).tolist()


@pytest.mark.parametrize(
    ("spec", "value", "says"),
    [
        (TensorSpec("x", "FP32", (-1, 4)), [1, 2], "x: has the shape [1, 2]; expected FP32 [any, 4]"),
        (TensorSpec("x", "FP32", (-1, 4)), "text", "x: has text; expected FP32"),
        (TensorSpec("x", "INT8", (1,)), [300], "x: has a number that INT8 cannot hold"),
        (TensorSpec("x", "UINT8", (1,)), [-1], "x: has a number that UINT8 cannot hold"),
        (TensorSpec("x", "FP16", (1,)), [1e6], "x: has a number that FP16 cannot hold"),
        (TensorSpec("x", "INT32", (1,)), [1.5], "x: has fractions; expected INT32 [1]"),
        (TensorSpec("x", "INT32", (1,)), [True], "x: has booleans; expected INT32 [1]"),
        (TensorSpec("x", "INT32", (2, 2)), [[1, 2], [3]], "x: is no regular array; expected INT32 [2, 2]"),
        (TensorSpec("x", "BYTES", (1,)), [1], "x: has int among its items; expected text: BYTES [1]"),
        (TensorSpec("x", "FP32", (1,)), None, "x: missing; expected FP32 [1]"),
    ],
)
def test_an_error_names_the_input_and_what_is_expected(spec: TensorSpec, value: Any, says: str) -> None:
    assert says in refused(model(spec), {"x": value})


def test_all_errors_are_told_at_once() -> None:
    spec = model(
        TensorSpec("a", "FP32", (1,)),
        TensorSpec("b", "FP32", (1,)),
        TensorSpec("c", "BOOL", (1,), optional=True),
    )

    assert refused(spec, {"a": "x", "d": 1}) == (
        "d: model bert has no such input; it has a, b, c; "
        "a: has text; expected FP32 [1]; b: missing; expected FP32 [1]"
    )
    assert "several inputs; give them by name: a, b, c" in refused(spec, [1.0])


def test_a_batch_has_one_size_and_a_limit() -> None:
    spec = model(TensorSpec("a", "FP32", (-1, 1)), TensorSpec("b", "FP32", (-1, 1)), max_batch=2)

    assert "different sizes: a 1, b 2" in refused(spec, {"a": [[1]], "b": [[1], [2]]})
    assert "a: has 3 items; model bert takes at most 2" in refused(spec, {"a": [[1]] * 3, "b": [[1]] * 3})


@given(st.data(), st.sampled_from(TYPES))
def test_raw_bytes_bring_an_array_back(data: st.DataObject, datatype: str) -> None:
    array = data.draw(hnp.arrays(numpy_type(datatype), hnp.array_shapes(min_side=0, max_dims=3)))
    spec = model(TensorSpec("x", datatype, (-1,) * array.ndim))

    [tensor] = tensors_of(spec, array)
    found = array_of(tensor.content(), datatype, array.shape)

    assert found.dtype == array.dtype
    assert found.tobytes() == array.tobytes()


@given(st.lists(st.one_of(st.text(), st.binary()), max_size=5))
def test_texts_come_back_as_their_bytes(texts: list[str | bytes]) -> None:
    [tensor] = tensors_of(model(TensorSpec("x", "BYTES", (-1,))), texts)

    found = array_of(tensor.content(), "BYTES", (len(texts),))

    assert found.tolist() == [each.encode() if isinstance(each, str) else each for each in texts]


@given(st.floats(width=32))
def test_bf16_keeps_a_number_to_one_part_in_256(number: float) -> None:
    [tensor] = tensors_of(model(TensorSpec("x", "BF16", (1,))), [number])

    [found] = array_of(tensor.content(), "BF16", (1,)).tolist()

    if np.isnan(number):
        assert np.isnan(found)
    elif np.isinf(found):
        assert abs(number) > 3.38e38
    else:
        assert found == pytest.approx(number, rel=1 / 256, abs=1e-38)
