"""For all tests: in CI the property tests draw the same examples each time, elsewhere new ones."""

from __future__ import annotations

import os

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
