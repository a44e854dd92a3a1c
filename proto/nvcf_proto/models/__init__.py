"""Records of the platform's state: JetStream key-value buckets, their keys and their JSON values.

Times are Unix seconds. `from_json` raises InvalidRecord, which names the field; fields that a newer writer
added are ignored. These modules need msgspec: a worker imports none of them.
"""

from nvcf_proto.models.deployments import (
    DEPLOYMENTS_BUCKET,
    INSTANCES_BUCKET,
    Deployment,
    Instance,
    InstanceState,
)
from nvcf_proto.models.functions import (
    ACCOUNT_PATTERN,
    FUNCTIONS_BUCKET,
    MAX_ACCOUNTS_IN_LIST,
    NAME_PATTERN,
    RATE_PATTERN,
    VERSIONS_BUCKET,
    AccountRate,
    Function,
    FunctionType,
    FunctionVersion,
    ProcessSource,
    RateLimit,
    VersionStatus,
)
from nvcf_proto.models.keys import API_KEYS_BUCKET, ApiKey, Scope
from nvcf_proto.models.record import Record
from nvcf_proto.models.registries import (
    REGISTRIES_BUCKET,
    ArtifactType,
    RegistryCredential,
)
from nvcf_proto.models.scaling import ScalingPreferences, ScalingRule, Stickiness
from nvcf_proto.models.secrets import SECRETS_BUCKET, SecretSet
from nvcf_proto.models.specifications import DeploymentSpecification
from nvcf_proto.models.tasks import (
    TASK_RESULTS_BUCKET,
    TASKS_BUCKET,
    ResultHandling,
    RetryOn,
    RetryPolicy,
    Task,
    TaskResults,
    TaskStatus,
)
from nvcf_proto.models.telemetries import (
    TELEMETRIES_BUCKET,
    Telemetries,
    TelemetryAuth,
    TelemetryEndpoint,
    TelemetryProtocol,
    TelemetryProvider,
    TelemetrySecret,
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
    "REGISTRIES_BUCKET",
    "SECRETS_BUCKET",
    "TASKS_BUCKET",
    "TASK_RESULTS_BUCKET",
    "TELEMETRIES_BUCKET",
    "VERSIONS_BUCKET",
    "AccountRate",
    "ApiKey",
    "ArtifactType",
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
    "RegistryCredential",
    "ResultHandling",
    "RetryOn",
    "RetryPolicy",
    "ScalingPreferences",
    "ScalingRule",
    "Scope",
    "SecretSet",
    "Stickiness",
    "Task",
    "TaskResults",
    "TaskStatus",
    "Telemetries",
    "TelemetryAuth",
    "TelemetryEndpoint",
    "TelemetryProtocol",
    "TelemetryProvider",
    "TelemetrySecret",
    "TelemetrySettings",
    "TelemetryType",
    "VersionStatus",
]
