"""Bring your own observability: from an account's telemetry endpoints to the exporters that send to them.

Pure: it returns environment variables or a collector's configuration. `providers` lists what each provider
accepts and needs, `plan` chooses between the SDK's exporters and a collector, `collector` renders its
configuration.
"""

from nvcf_otel.byoo.collector import Placement, collector_configuration, collector_text
from nvcf_otel.byoo.plan import Plan, Unknown, plan
from nvcf_otel.byoo.providers import PROVIDERS, Provider, account_folder, check_endpoint, secret_files

__all__ = [
    "PROVIDERS",
    "Placement",
    "Plan",
    "Provider",
    "Unknown",
    "account_folder",
    "check_endpoint",
    "collector_configuration",
    "collector_text",
    "plan",
    "secret_files",
]
