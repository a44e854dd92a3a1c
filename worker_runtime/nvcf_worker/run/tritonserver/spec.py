"""What a model takes and gives, by its metadata and configuration. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output. `shape` has the batch dimension, if the model has one; -1 is any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    optional: bool = False

    def describe(self) -> str:
        """Return type and shape as text: `FP32 [any, 4]`."""
        sizes = ", ".join("any" if size < 0 else str(size) for size in self.shape)
        return f"{self.datatype} [{sizes}]"


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model. `max_batch` is 0 for a model without a batch dimension.

    batch: the number of requests that one execution takes at best. instances: executions at a time.
    """

    name: str
    version: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch: int = 0
    batch: int = 1
    instances: int = 1
    decoupled: bool = False
    sequential: bool = False
    text_sequence_ids: bool = False

    @property
    def capacity(self) -> int:
        """Return the number of requests that run at the same time in full batches."""
        return max(1, self.instances) * max(1, self.batch)


def spec_of(metadata: Mapping[str, Any], config: Mapping[str, Any], version: str = "") -> ModelSpec:
    """Return the description of a model from what Triton says about it, as JSON objects."""
    max_batch = int(config.get("max_batch_size", 0))
    sequence = config.get("sequence_batching")
    optional = {each["name"] for each in config.get("input", ()) if each.get("optional")}
    return ModelSpec(
        str(metadata["name"]),
        version,
        tuple(_tensor(each, optional) for each in metadata.get("inputs", ())),
        tuple(_tensor(each, ()) for each in metadata.get("outputs", ())),
        max_batch,
        _batch(config, max_batch),
        sum(_instances(group) for group in config.get("instance_group", ())) or 1,
        bool(config.get("model_transaction_policy", {}).get("decoupled")),
        sequence is not None,
        sequence is not None and _text_ids(sequence),
    )


def _tensor(described: Mapping[str, Any], optional: Any) -> TensorSpec:
    shape = tuple(int(size) for size in described.get("shape", ()))
    return TensorSpec(described["name"], described["datatype"], shape, described["name"] in optional)


def _batch(config: Mapping[str, Any], max_batch: int) -> int:
    batching = config.get("dynamic_batching")
    if batching is None:
        # An ensemble passes requests to the batchers of its models; a sequence batcher batches sequences.
        gathers = "ensemble_scheduling" in config or "sequence_batching" in config
        return max(1, max_batch) if gathers else 1
    preferred = [int(size) for size in batching.get("preferred_batch_size", ())]
    return max(preferred, default=max(1, max_batch))


def _instances(group: Mapping[str, Any]) -> int:
    if group.get("passive"):
        return 0
    gpus = len(group.get("gpus", ())) if group.get("kind") in ("KIND_GPU", "KIND_AUTO") else 1
    return int(group.get("count", 1)) * max(1, gpus)


def _text_ids(sequence: Mapping[str, Any]) -> bool:
    return any(
        control.get("kind") == "CONTROL_SEQUENCE_CORRID" and control.get("data_type") == "TYPE_STRING"
        for given in sequence.get("control_input", ())
        for control in given.get("control", ())
    )
