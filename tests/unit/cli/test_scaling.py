"""How instances and decisions are shown."""

from nvcf_cli.commands.scaling import instances_text


def test_instances_are_counted_by_state_and_cluster() -> None:
    states = [
        ("RUNNING", "two"),
        ("RUNNING", "one"),
        ("RUNNING", "one"),
        ("PENDING", "one"),
        ("FAILED", "one"),
    ]
    instances = [{"state": state, "clusterId": cluster} for state, cluster in states]
    assert instances_text(instances) == "3 running (2 on one, 1 on two), 1 pending (1 on one)"


def test_ended_instances_are_no_instances() -> None:
    assert instances_text([{"state": "COMPLETED", "clusterId": "one"}]) == "no instances"
