"""The time limit of a deployment on its way from the command line to an instance."""

from nvcf_cli.scale import Scale
from nvcf_proto.models import Deployment, DeploymentSpecification
from nvcf_proto.models.deployments import execution_seconds, specifications_of

ID = "6f1d0a52-0d6c-4a0e-9c3b-2f7f8f2b1c02"


def deployment(seconds: int | None) -> Deployment:
    return Deployment(ID, ID, 1.0, (DeploymentSpecification(),), max_execution_seconds=seconds)


def test_the_command_line_says_nothing_by_default() -> None:
    assert "maxExecutionSeconds" not in Scale().deployment()
    assert Scale(max_execution_seconds=30).deployment()["maxExecutionSeconds"] == 30


def test_the_default_keeps_instances_and_a_change_replaces_them() -> None:
    usual = list(specifications_of(deployment(None)))
    assert execution_seconds(deployment(None)) == 3600
    assert list(specifications_of(deployment(3600))) == usual
    assert list(specifications_of(deployment(30))) != usual
    assert Deployment.from_json(deployment(30).to_json()) == deployment(30)
