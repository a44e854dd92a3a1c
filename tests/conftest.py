"""For all tests: in CI the property tests draw the same examples each time, elsewhere new ones.

A test that fails shortly before its time limit gets the time to be reported.
"""

from __future__ import annotations

import os
import signal

import pytest
from hypothesis import HealthCheck, settings

# Read when gRPC is imported. Tests start processes while gRPC's threads run; what gRPC would do in the child
# between fork and exec can end it. The processes under test get what they would get without this.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
import grpc  # noqa: F401

os.environ.pop("GRPC_ENABLE_FORK_SUPPORT", None)

# A busy machine is no failure: neither a deadline for an example nor one for drawing it.
settings.register_profile("any-speed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("any-speed"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "any-speed")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests that share a module's platform in one worker: each would start one.

    First, since xdist reads the groups in the same hook.
    """
    for item in items:
        if item.get_closest_marker("xdist_group") is None and _shares_with_its_module(item):
            item.add_marker(pytest.mark.xdist_group(item.location[0].removesuffix(".py").replace("/", ".")))


def _shares_with_its_module(item: pytest.Item) -> bool:
    found = getattr(item, "_fixtureinfo", None)
    known = {} if found is None else found.name2fixturedefs
    return any(fixture.scope == "module" for each in known.values() for fixture in each)


REPORT_SECONDS = 60.0


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(call: pytest.CallInfo[None]) -> None:
    """Put the alarm of pytest-timeout off: within pytest's own code it would end the whole run."""
    left, _ = signal.getitimer(signal.ITIMER_REAL)
    if call.excinfo is not None and left > 0:
        signal.setitimer(signal.ITIMER_REAL, left + REPORT_SECONDS)
