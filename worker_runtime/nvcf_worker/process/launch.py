"""First program of every child process, run as a script: bind the child's life to the worker, then exec.

It is a program of its own because a worker has threads (gRPC's among them): after a fork, a child inherits
their locks in whatever state they are, so only exec is safe. Arguments: the worker's pid, the command line.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Replace this process with the command; exit with 125 if the worker has already ended."""
    worker, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # The worker may have ended before prctl; then the signal would never arrive.
    if os.getppid() != worker:
        sys.exit(125)
    os.execv(command[0], command)  # noqa: S606 - the worker's own command line


if __name__ == "__main__":
    main()
