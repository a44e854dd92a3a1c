"""`python -m nvcf_broker.node`: write the configuration of a broker in a container, then leave.

The credentials are files in one folder, as `ensure_credentials` makes them; the broker itself is an image of
nats-server that reads the result.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from nvcf_broker.configuration import (
    BrokerFiles,
    BrokerIdentity,
    public_key,
    read_credentials,
    render_configuration,
)
from nvcf_broker.errors import BrokerError
from nvcf_broker.files import write_private
from nvcf_broker.network import CLIENT_PORT, BrokerNetwork
from nvcf_proto.budget import LEAST_BUDGET, MIB, DiskBudget, size_text


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        prog="python -m nvcf_broker.node", description="Write the configuration of one broker node."
    )
    add = parser.add_argument
    add("--secrets", type=Path, required=True, metavar="DIR", help="folder of the credentials")
    add("--output", type=Path, required=True, metavar="FILE", help="the configuration to write")
    add("--store", type=Path, required=True, metavar="DIR", help="folder of JetStream's data")
    add("--data-max", type=_mebibytes, required=True, metavar="MIB", help="data that this node may store")
    add("--name", required=True, help="unique name of this node, the same after restarts")
    add("--nodes", default="", metavar="HOSTS", help="all nodes, separated by commas (default: this one)")
    add("--tag", action="append", default=[], metavar="KEY:VALUE", help="for the placement of streams")
    add("--sync-always", action="store_true", help="wait for the disk after each message")
    add("--tls-cert", type=Path, metavar="FILE", help="certificate chain (PEM) of the clients' port")
    add("--tls-key", type=Path, metavar="FILE", help="private key (PEM) of --tls-cert")
    add("--pid-file", type=Path, metavar="FILE", help="where the broker writes its process id")
    return parser.parse_args(arguments)


def _mebibytes(text: str) -> int:
    size = int(text) * MIB
    if size < LEAST_BUDGET:
        raise argparse.ArgumentTypeError(f"at least {size_text(LEAST_BUDGET)} needed")
    return size


def configuration(options: argparse.Namespace) -> str:
    """Return the text of the configuration. Raises `BrokerError`."""
    files = BrokerFiles(options.secrets)
    try:
        seed = files.callout_seed.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise BrokerError(f"cannot read {files.callout_seed}: {error.strerror}") from error
    nodes = tuple(each.strip() for each in options.nodes.split(",") if each.strip())
    network = BrokerNetwork(
        nodes,
        read_credentials(files.route)[1] if len(nodes) > 1 else "",
        options.tls_cert,
        options.tls_key,
        options.pid_file,
    )
    return render_configuration(
        BrokerIdentity(options.name, CLIENT_PORT),
        store=options.store,
        budget=DiskBudget(options.data_max),
        password=read_credentials(files.credentials)[1],
        control_password=read_credentials(files.control)[1],
        system_password=read_credentials(files.system)[1],
        callout_public_key=public_key(seed),
        tags=options.tag,
        sync_always=options.sync_always,
        network=network,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the file and return the exit code."""
    options = parse_arguments(arguments)
    try:
        write_private(options.output, configuration(options))
    except (BrokerError, OSError) as error:
        sys.stderr.write(f"nvcf_broker.node: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    os.umask(0o077)
    sys.exit(main())
