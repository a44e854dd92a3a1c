"""First step of a child process, run as a file: die with the worker, then become the function's process.

A step of its own, because anything but exec after a fork is unsafe in a worker: it has threads, gRPC's among
them, whose locks a forked child would inherit as they stand. Arguments: the worker's pid, the command line.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Replace this process; exits with 125 when the worker is gone already."""
    worker, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # It may have died before prctl; then no signal would ever come.
    if os.getppid() != worker:
        sys.exit(125)
    os.execv(command[0], command)  # noqa: S606 - the worker's own command line


if __name__ == "__main__":
    main()
