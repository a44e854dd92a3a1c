"""Files of a local installation's broker, and the configuration of its nats-server."""

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nkeys

from nvcf_broker.errors import BrokerError
from nvcf_broker.files import private_directory, write_private
from nvcf_broker.network import ROUTE_USER, BrokerNetwork
from nvcf_proto.budget import DiskBudget
from nvcf_proto.icms.names import AGENT_BROKER_ACCOUNT, PRIVATE_AGENT_ACCOUNT, STREAM_SUBJECTS

PLATFORM_ACCOUNT = "NVCF"
# The control plane's records have an account of their own: tenants' data cannot take its reserve of the disk.
CONTROL_ACCOUNT = "NVCF_CONTROL"
# Workers have an account of their own: the broker sends the reply to a JetStream request to any subject that
# the request names, without checking permissions. Within this account it can do no harm.
WORKER_ACCOUNT = "WORKERS"
# Agents have accounts for the same reason, and those that hear all inboxes are among themselves.
_AGENT_ACCOUNTS = f"[{AGENT_BROKER_ACCOUNT}, {PRIVATE_AGENT_ACCOUNT}]"
PLATFORM_USER = "platform"
CONTROL_USER = "control"
SYSTEM_USER = "system"
MAX_PAYLOAD_BYTES = 8 * 1024 * 1024
# While no gateway answers the auth callout, a worker's connect attempt waits this long before it is refused.
AUTHENTICATION_TIMEOUT_SECONDS = 3
# First byte of an account's key in the broker's key format (3 of its bits encode the leading "A").
_ACCOUNT_PREFIX = nkeys.PREFIX_BYTE_ACCOUNT


class BrokerFiles:
    """Paths of a local broker's files. Only their owner can read them.

    `credentials` and `control` hold one line `user:password` each: for gateway and autoscaler in the account
    of tenants' data, and for these and the agent in the account of the control plane. `system` is the same
    for the gateway's look at the workers' connections, `route` for the nodes of a cluster. `callout_seed` is
    the seed of the account key with which a gateway signs auth callout responses. `identity` holds the
    broker's port and name, `budget` its disk budget; they survive restarts. `store` is the folder of
    JetStream's data.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.configuration = directory / "nats.conf"
        self.credentials = directory / "platform.credentials"
        self.control = directory / "control.credentials"
        self.system = directory / "system.credentials"
        self.route = directory / "route.credentials"
        self.callout_seed = directory / "callout.seed"
        self.identity = directory / "server.json"
        self.budget = directory / "budget.json"
        self.store = directory / "jetstream"
        self.log = directory / "nats.log"


@dataclass(frozen=True)
class BrokerIdentity:
    """Identity of one installation's broker, the same after restarts."""

    server_name: str
    port: int


def new_account_seed() -> str:
    """Return a new seed of an account key pair: text that starts with `SA`."""
    return bytes(nkeys.encode_seed(secrets.token_bytes(32), _ACCOUNT_PREFIX)).decode()


def public_key(seed: str) -> str:
    """Return the public key of a seed. Raises `BrokerError` for text that is no seed."""
    try:
        return bytes(nkeys.from_seed(bytearray(seed.encode())).public_key).decode()
    except Exception as error:
        # The library raises a dozen unrelated types for malformed text.
        raise BrokerError(
            "the callout seed is damaged: delete the file callout.seed to get a new one"
        ) from error


def read_credentials(path: Path) -> tuple[str, str]:
    """Return user and password from a credentials file (one line `user:password`). Raises `BrokerError`."""
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BrokerError(f"cannot read the broker credentials file {path}: {error}") from error
    user, separator, password = text.partition(":")
    if not separator or not user or not password or "\n" in text:
        raise BrokerError(f"{path} does not hold one line user:password")
    return user, password


def ensure_credentials(files: BrokerFiles) -> None:
    """Create the folder, the password and the callout key if they are missing; keep existing ones."""
    private_directory(files.directory)
    private_directory(files.store)
    users = (
        (files.credentials, PLATFORM_USER),
        (files.control, CONTROL_USER),
        (files.system, SYSTEM_USER),
        (files.route, ROUTE_USER),
    )
    for file, user in users:
        if not file.exists():
            write_private(file, f"{user}:{secrets.token_urlsafe(32)}\n")
    if not files.callout_seed.exists():
        write_private(files.callout_seed, new_account_seed() + "\n")


def read_identity(files: BrokerFiles) -> BrokerIdentity | None:
    """Return the recorded identity; None if it is missing or unreadable, then a new one is made."""
    try:
        document = json.loads(files.identity.read_text(encoding="utf-8"))
        return BrokerIdentity(server_name=str(document["serverName"]), port=int(document["port"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_identity(files: BrokerFiles, identity: BrokerIdentity) -> None:
    """Record the identity for the next start."""
    document = {"serverName": identity.server_name, "port": identity.port}
    write_private(files.identity, json.dumps(document) + "\n")


def _agent_services(line: str) -> str:
    """Return one line for each subject of the control plane's account that agents need.

    The API is imported whole, as for workers: a part of it would be answered by the agents' account itself.
    An agent's permissions name the few subjects of it that it may use.
    """
    forms = ("$JS.ACK.{}.>", "$JS.ACK.*.*.{}.>")
    acks = [form.format(stream) for stream in STREAM_SUBJECTS for form in forms]
    return "\n".join(line.format(subject=json.dumps(subject)) for subject in ("$JS.API.>", *acks))


def _agent_account(name: str) -> str:
    line = f"      {{{{ service: {{{{ account: {CONTROL_ACCOUNT}, subject: {{subject}} }}}} }}}}"
    return f"  {name} {{\n    imports: [\n{_agent_services(line)}\n    ]\n  }}"


def render_configuration(
    identity: BrokerIdentity,
    *,
    store: Path,
    budget: DiskBudget,
    password: str,
    control_password: str,
    system_password: str,
    callout_public_key: str,
    tags: Sequence[str],
    sync_always: bool = False,
    network: BrokerNetwork | None = None,
) -> str:
    """Return the text of nats-server's configuration file. Without `network` it listens on loopback.

    `budget` is that of one node; what an account may store is counted over all of them.

    JSON strings are valid in that format, so every value goes through the JSON encoder: no path and no
    password can end its quotes.
    """
    quote = json.dumps
    host, nodes = ("127.0.0.1", 1) if network is None else ("0.0.0.0", network.size)  # noqa: S104
    return f"""# Written anew at each start of the local broker.
server_name: {quote(identity.server_name)}
listen: {quote(f"{host}:{identity.port}")}
max_payload: {MAX_PAYLOAD_BYTES}
max_connections: 65536
# A connection that cannot keep up is cut when this much waits for it.
max_pending: {128 * 1024 * 1024}
write_deadline: "10s"
ping_interval: "20s"
server_tags: {quote(list(tags))}
jetstream {{
  store_dir: {quote(str(store))}
  sync_interval: {"always" if sync_always else '"2m"'}
  # Without a limit the broker takes a part of what is free when it starts: less at each start.
  max_file_store: {budget.total}
}}
accounts {{
  {PLATFORM_ACCOUNT} {{
    jetstream {{ max_file: {budget.data * nodes} }}
    users: [ {{ user: {quote(PLATFORM_USER)}, password: {quote(password)} }} ]
    exports: [
      # Whole, though a worker's permissions name a few subjects of it: a part of it would be answered by
      # the worker account's own JetStream, which is not enabled.
      {{ service: "$JS.API.>", response_type: stream, accounts: [{WORKER_ACCOUNT}] }}
      {{ service: "$JS.ACK.>", accounts: [{WORKER_ACCOUNT}] }}
      {{ service: "nvcf.reply.>", accounts: [{WORKER_ACCOUNT}] }}
      {{ service: "nvcf.attach.*", accounts: [{WORKER_ACCOUNT}] }}
      {{ service: "stateful_session.lookup.>", accounts: [{WORKER_ACCOUNT}] }}
      {{ stream: "nvcf.cancel.*", accounts: [{WORKER_ACCOUNT}] }}
    ]
    imports: [
      {{ service: {{ account: {WORKER_ACCOUNT}, subject: "rq_polling.>" }} }}
      {{ service: {{ account: {WORKER_ACCOUNT}, subject: "stateful_session.reconnect.>" }} }}
    ]
  }}
  {CONTROL_ACCOUNT} {{
    jetstream {{ max_file: {budget.control * nodes} }}
    users: [ {{ user: {quote(CONTROL_USER)}, password: {quote(control_password)} }} ]
    exports: [
{_agent_services(f"      {{{{ service: {{subject}}, response_type: stream, accounts: {_AGENT_ACCOUNTS} }}}}")}
    ]
  }}
{_agent_account(AGENT_BROKER_ACCOUNT)}
{_agent_account(PRIVATE_AGENT_ACCOUNT)}
  {WORKER_ACCOUNT} {{
    exports: [
      {{ service: "rq_polling.>", accounts: [{PLATFORM_ACCOUNT}] }}
      {{ service: "stateful_session.reconnect.>", accounts: [{PLATFORM_ACCOUNT}] }}
    ]
    imports: [
      {{ service: {{ account: {PLATFORM_ACCOUNT}, subject: "$JS.API.>" }} }}
      {{ service: {{ account: {PLATFORM_ACCOUNT}, subject: "$JS.ACK.>" }} }}
      {{ service: {{ account: {PLATFORM_ACCOUNT}, subject: "nvcf.reply.>" }} }}
      {{ service: {{ account: {PLATFORM_ACCOUNT}, subject: "nvcf.attach.*" }} }}
      {{ service: {{ account: {PLATFORM_ACCOUNT}, subject: "stateful_session.lookup.>" }} }}
      {{ stream: {{ account: {PLATFORM_ACCOUNT}, subject: "nvcf.cancel.*" }} }}
    ]
  }}
  SYS {{
    users: [ {{
      user: {quote(SYSTEM_USER)}, password: {quote(system_password)}
      permissions: {{
        publish: ["$SYS.REQ.SERVER.*.CONNZ", "$SYS.REQ.SERVER.*.KICK", "$SYS.REQ.SERVER.PING.STATSZ"]
        subscribe: "_INBOX.>"
      }}
    }} ]
  }}
}}
system_account: SYS
authorization {{
  timeout: {AUTHENTICATION_TIMEOUT_SECONDS}
  auth_callout {{
    issuer: {quote(callout_public_key)}
    account: {PLATFORM_ACCOUNT}
    auth_users: [ {quote(PLATFORM_USER)}, {quote(CONTROL_USER)}, {quote(SYSTEM_USER)} ]
  }}
}}
{"" if network is None else network.text()}"""
