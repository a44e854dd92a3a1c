"""How often an agent may call."""

from nvcf_gateway.clusters.call_rates import MOST_CLUSTERS, CallRates


def test_a_burst_and_then_a_rate_for_each_cluster() -> None:
    now = 100.0
    rates = CallRates(2.0, 3.0, lambda: now)
    assert [rates.wait("a") for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]
    assert rates.wait("b") == 0.0, "another one's calls count for itself"
    now += 0.5
    assert [rates.wait("a") for _ in range(2)] == [0.0, 0.5]
    now += 1000.0
    assert [bool(rates.wait("a")) for _ in range(4)] == [False, False, False, True]


def test_the_clusters_of_long_ago_are_forgotten() -> None:
    rates = CallRates(1.0, 1.0, lambda: 0.0)
    for number in range(MOST_CLUSTERS + 1):
        rates.wait(str(number))
    assert rates.wait("1")
    assert not rates.wait("0")
