"""How instances and decisions are shown."""

from nvcf_cli.commands.scaling import instances_text
from nvcf_cli.snapshot import decision_text


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


def test_decisions_say_their_number_once_and_tell_kinds_apart() -> None:
    text = "3 instances: 9 queued: really"
    assert decision_text({"text": text, "data": {"desired": "3", "kinds": "3 SIM"}}) == (
        "3",
        "9 queued: really",
    )
    several = {"text": text, "data": {"desired": "3", "kinds": "2 FAST, 1 SLOW"}}
    assert decision_text(several) == ("2 FAST, 1 SLOW", "9 queued: really")


def test_what_was_no_decision_is_shown_as_it_is() -> None:
    event = {"text": "no place for 1 (one: full)", "data": None}
    assert decision_text(event) == ("", "no place for 1 (one: full)")
    assert decision_text({}) == ("", "")
