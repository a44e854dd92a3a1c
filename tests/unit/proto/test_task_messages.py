"""Messages of nvct.Worker byte by byte, as another party encodes them: numbers and types are a contract."""

from __future__ import annotations

from nvcf_proto.pb import nvct_pb2


def test_the_status_of_a_response_is_text() -> None:
    response = nvct_pb2.TaskResponse(taskId="t", executionStatus="CANCELED")
    assert response.SerializeToString() == b"\x0a\x01t\x12\x08CANCELED"


def test_the_error_of_a_result_is_a_message() -> None:
    details = b"\x0a\x01y\x12\x02no\x18\xf4\x03\x22\x08the disk"
    data = b"\x0a\x01t\x20\x00\x28\x32" + b"\x42" + bytes([len(details)]) + details
    request = nvct_pb2.ResultMetadataRequest.FromString(data)
    assert (request.percentComplete, request.WhichOneof("content")) == (50, "errorDetails")
    error = request.errorDetails
    assert (error.type, error.title, error.status, error.detail) == ("y", "no", 500, "the disk")


def test_artifacts_have_files() -> None:
    response = nvct_pb2.ArtifactsResponse.FromString(
        b"\x0a\x17\x0a\x01m\x12\x011\x18\x01\x22\x0d\x0a\x01p\x12\x08https://"
    )
    (artifact,) = response.artifacts
    assert (artifact.name, artifact.version, artifact.kind) == ("m", "1", nvct_pb2.ArtifactsResponse.RESOURCE)
    assert [(each.path, each.url) for each in artifact.files] == [("p", "https://")]
