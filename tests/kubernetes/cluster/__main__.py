"""Start a test cluster by hand: `python -m tests.kubernetes.cluster build | api [FAKE_NODES] | node`.

`build` makes the programs that no other place has. `api` runs an API server, with fake nodes if a number is
given, `node` runs a real node; both print how to use them, and end with Ctrl-C.
"""

from __future__ import annotations

import contextlib
import signal
import sys

from tests.kubernetes.cluster import clusters, kwok, programs
from tests.kubernetes.cluster.clusters import CONSENT, Cluster
from tests.kubernetes.cluster.errors import ClusterError
from tests.kubernetes.cluster.node import real_node


def main(arguments: list[str]) -> None:
    """Do what the command line says. Ends the process with a message if it cannot be done."""
    try:
        match arguments:
            case ["build"]:
                for group in programs.ALL:
                    programs.find(group)
            case ["api", *count]:
                with clusters.api_server() as cluster, kwok.fake_nodes(cluster) as nodes:
                    nodes.add(int(count[0]) if count else 0)
                    _wait(cluster)
            case ["node"]:
                with real_node() as node:
                    node.add_gpus(8)
                    _wait(node.cluster)
            case _:
                sys.exit(__doc__)
    except ClusterError as error:
        sys.exit(str(error))


def _wait(cluster: Cluster) -> None:
    folder = cluster.tools["kubectl"].parent
    print(f"export KUBECONFIG={cluster.kubeconfig} {CONSENT}=yes PATH={folder}:$PATH", flush=True)  # noqa: T201
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        signal.pause()


if __name__ == "__main__":
    main(sys.argv[1:])
