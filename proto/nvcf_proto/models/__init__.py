"""Records of the platform's state: JetStream key-value buckets, their keys and their JSON values.

Times are Unix seconds. `from_json` raises InvalidRecord naming the field; fields that a newer writer
added are ignored.
"""

from nvcf_proto.models.base import Record
from nvcf_proto.models.deployments import (
    DEPLOYMENTS_BUCKET,
    Deployment,
    DeploymentSpecification,
    ScalingPreferences,
    ScalingRule,
)
from nvcf_proto.models.functions import (
    ACCOUNT_PATTERN,
    FUNCTIONS_BUCKET,
    MAX_ACCOUNTS_IN_LIST,
    NAME_PATTERN,
    RATE_PATTERN,
    VERSIONS_BUCKET,
    Function,
    FunctionVersion,
    ProcessSource,
    RateLimit,
    account_list,
)
from nvcf_proto.models.instances import INSTANCES_BUCKET, Instance
from nvcf_proto.models.keys import API_KEYS_BUCKET, ApiKey
from nvcf_proto.models.kinds import FunctionType, InstanceState, Scope, VersionStatus
from nvcf_proto.models.telemetries import (
    TELEMETRIES_BUCKET,
    Telemetries,
    TelemetryAuth,
    TelemetryEndpoint,
    TelemetryProtocol,
    TelemetryProvider,
    TelemetrySettings,
    TelemetryType,
)

__all__ = [
    "ACCOUNT_PATTERN",
    "API_KEYS_BUCKET",
    "DEPLOYMENTS_BUCKET",
    "FUNCTIONS_BUCKET",
    "INSTANCES_BUCKET",
    "MAX_ACCOUNTS_IN_LIST",
    "NAME_PATTERN",
    "RATE_PATTERN",
    "TELEMETRIES_BUCKET",
    "VERSIONS_BUCKET",
    "ApiKey",
    "Deployment",
    "DeploymentSpecification",
    "Function",
    "FunctionType",
    "FunctionVersion",
    "Instance",
    "InstanceState",
    "ProcessSource",
    "RateLimit",
    "Record",
    "ScalingPreferences",
    "ScalingRule",
    "Scope",
    "Telemetries",
    "TelemetryAuth",
    "TelemetryEndpoint",
    "TelemetryProtocol",
    "TelemetryProvider",
    "TelemetrySettings",
    "TelemetryType",
    "VersionStatus",
    "account_list",
]
