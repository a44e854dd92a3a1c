"""Streams, subjects, consumers and broker rights of agents (protocol.md, section 6.2). Pure.

Every name here is NVIDIA's; its agent and its control plane use the same ones.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from nvcf_proto.errors import InvalidToken
from nvcf_proto.stores import COMMANDS
from nvcf_proto.subjects import API_PREFIX, Permissions, next_message_subject

CREATION_STREAM = "CreateNvcaFunctionTaskStream"
TERMINATION_STREAM = "TerminateNvcaStream"
CREATION_SUBJECTS = "Create.NVCA.>"
TERMINATION_SUBJECTS = "Terminate.NVCA.>"
STREAM_SUBJECTS = {CREATION_STREAM: CREATION_SUBJECTS, TERMINATION_STREAM: TERMINATION_SUBJECTS}

MESSAGE_MAX_AGE_SECONDS = 96 * 3600
MOST_MESSAGES = 1_000_000
CREATION_ACK_WAIT_SECONDS = 360.0
TERMINATION_ACK_WAIT_SECONDS = 30.0
FETCH_MESSAGES = 10

ORDER_SUBJECT = "nvcf.icms.order"
"""[ext] The autoscaler asks a gateway here to publish the creation message of one request."""

AGENT_CONNECTION_PREFIX = "nvca-queue-client/"
# NVIDIA's agent says "APP"; a broker of several accounts puts the connection where its rights are.
AGENT_ACCOUNT = "APP"
AGENT_PLUGIN = "oidc"
OWN_INBOX = "own"
AGENT_BROKER_ACCOUNT = "AGENTS"
"""[ext] The broker account of agents' connections: what they reach of the streams is imported."""
PRIVATE_AGENT_ACCOUNT = "AGENTS_PRIVATE"
"""[ext] The same for agents with inboxes of their own, out of hearing of those that listen to all inboxes."""

_NANOSECONDS = 1_000_000_000
# A token of a subject has no dot, blank or wildcard.
_TOKEN = re.compile(r"[^.*>\s]{1,128}")
_CLUSTER_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")


class Workload(StrEnum):
    """What a creation message starts; the third token of its subject."""

    FUNCTION = "Function"
    TASK = "Task"


def subject_token(text: str) -> str:
    """Return text as one token of a subject: `.` becomes `|`. Raises ValueError for what cannot be one."""
    token = text.replace(".", "|")
    if _TOKEN.fullmatch(token) is None:
        raise ValueError(f"{text!r} cannot be part of a subject")
    return token


def creation_subject(workload: Workload, cluster_id: str, gpu: str, instance_type: str) -> str:
    """Return the subject of a creation message; `instance_type` is the type's value, `NCP.GPU.H100`."""
    return f"Create.NVCA.{workload}.{cluster_id}.{subject_token(gpu)}.{subject_token(instance_type)}"


def creation_filter(cluster_id: str) -> str:
    """Return the filter of a cluster's creation consumer."""
    return f"Create.NVCA.*.{cluster_id}.*.*"


def termination_subject(cluster_id: str) -> str:
    """Return the subject of a cluster's termination messages."""
    return f"Terminate.NVCA.{cluster_id}"


def cluster_consumer(stream: str, cluster_id: str) -> str:
    """Return the durable consumer of one cluster on one of the two streams."""
    return f"{stream}-{cluster_id}"


def is_cluster_id(text: str) -> bool:
    """Return whether text can be a cluster's id: letters, digits, `-` and `_`, at most 128."""
    return _CLUSTER_ID.fullmatch(text) is not None


def stream_config(stream: str, replicas: int = 1) -> dict[str, Any]:
    """Return the JetStream settings of one of the two streams.

    The storage is `file`, where NVIDIA's is memory: messages and their sequences outlive the broker.
    """
    return {
        "name": stream,
        "subjects": [STREAM_SUBJECTS[stream]],
        "retention": "workqueue",
        "storage": "file",
        "num_replicas": replicas,
        "discard": "old",
        **COMMANDS.bounds(),
        "max_msgs": MOST_MESSAGES,
        "max_age": MESSAGE_MAX_AGE_SECONDS * _NANOSECONDS,
        "duplicate_window": 120 * _NANOSECONDS,
    }


def consumer_config(stream: str, cluster_id: str) -> dict[str, Any]:
    """Return the settings of a cluster's consumer; agent and control plane create the same one."""
    creation = stream == CREATION_STREAM
    wanted = creation_filter(cluster_id) if creation else termination_subject(cluster_id)
    wait = CREATION_ACK_WAIT_SECONDS if creation else TERMINATION_ACK_WAIT_SECONDS
    return {
        "durable_name": cluster_consumer(stream, cluster_id),
        "description": f"Consumer for {wanted} NVCA cluster {cluster_id}",
        "deliver_policy": "all",
        "ack_policy": "explicit",
        "ack_wait": int(wait * _NANOSECONDS),
        "max_deliver": -1,
        # Not `filter_subject`: the broker would then expect it in the subject of the request.
        "filter_subjects": [wanted],
        "replay_policy": "instant",
    }


def create_consumer_subject(stream: str, cluster_id: str) -> str:
    """Return where the consumer is created: the form without a filter, the only one that agents may use."""
    return f"{API_PREFIX}.CONSUMER.CREATE.{stream}.{cluster_consumer(stream, cluster_id)}"


def agent_inbox_prefix(cluster_id: str) -> str:
    """[ext] Return the prefix of the inboxes of an agent whose token says that it has its own."""
    return f"_INBOX.agent.{cluster_id}"


def agent_permissions(cluster_id: str, *, own_inbox: bool = False) -> Permissions:
    """Return the least rights of an agent's broker connection: its two consumers and nothing else."""
    publish: list[str] = []
    for stream in STREAM_SUBJECTS:
        consumer = cluster_consumer(stream, cluster_id)
        publish += [
            create_consumer_subject(stream, cluster_id),
            next_message_subject(stream, consumer),
            f"$JS.ACK.{stream}.{consumer}.>",
            f"$JS.ACK.*.*.{stream}.{consumer}.>",
        ]
    inboxes = agent_inbox_prefix(cluster_id) if own_inbox else "_INBOX"
    return Permissions(tuple(publish), (f"{inboxes}.>",))


@dataclass(frozen=True)
class AgentToken:
    """What an agent sends when it connects to the broker: its identity, a JWT or its cluster's key."""

    cluster_id: str
    credential: str
    own_inbox: bool = False


def agent_connection_name(cluster_id: str) -> str:
    """Return the name of an agent's broker connection."""
    return AGENT_CONNECTION_PREFIX + cluster_id


def encode_agent_token(credential: str, *, own_inbox: bool = False) -> str:
    """Return the CONNECT token that carries an agent's JWT or key: unpadded base64url of a JSON object.

    With `own_inbox` [ext] the agent listens below `agent_inbox_prefix` only, where no other agent can.
    """
    members = {"account": AGENT_ACCOUNT, "pluginName": AGENT_PLUGIN, "payload": credential}
    if own_inbox:
        members["inbox"] = OWN_INBOX
    text = json.dumps(members, separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()


def decode_agent_token(connection_name: str, text: str) -> AgentToken:
    """Return who connects, from the connection's name and token; unverified. Raises InvalidToken."""
    cluster_id = connection_name.removeprefix(AGENT_CONNECTION_PREFIX)
    if cluster_id == connection_name or not is_cluster_id(cluster_id):
        raise InvalidToken(f"connection name {connection_name[:64]!r}: {AGENT_CONNECTION_PREFIX}ID expected")
    try:
        padded = text.encode() + b"=" * (-len(text) % 4)
        members = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
        payload = members["payload"]
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error) as error:
        raise InvalidToken("not a broker token: unpadded base64url of a JSON object expected") from error
    if not isinstance(payload, str) or not payload:
        raise InvalidToken("broker token has no payload")
    return AgentToken(cluster_id, payload, members.get("inbox") == OWN_INBOX)
