"""Which images a cluster is told to prefetch when there are more than one answer has room for."""

from __future__ import annotations

from nvcf_gateway.clusters.prefetch import WantedImage, fair_part


def test_one_account_with_many_images_leaves_room_to_the_others() -> None:
    many = [WantedImage("a", f"image-{number}", "type") for number in range(100)]
    others = [WantedImage("b", "one", "type"), WantedImage("c", "one", "type")]
    part = fair_part([*many, *others], 10)
    assert len(part) == 10
    assert set(others) <= set(part)
    assert set(fair_part([*many, *others], 1000)) == {*many, *others}
