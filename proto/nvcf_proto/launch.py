"""Start the commands of this distribution, or say which packages a command needs."""

import sys
from collections.abc import Callable
from importlib import import_module, metadata

DISTRIBUTION = "nvcf-worker"
# Each command: the module whose `main` runs it, and the extra that holds its packages.
_COMMANDS = {
    "nvcf": ("nvcf_cli.main", "local"),
    "nvcf-gateway": ("nvcf_gateway.__main__", "gateway"),
    "nvcf-agent": ("nvcf_agent.__main__", "agent"),
    "nvcf-autoscaler": ("nvcf_autoscaler.__main__", "autoscaler"),
    "nvcf-simulate": ("nvcf_autoscaler.simulate.__main__", "autoscaler"),
}


def version_text(command: str) -> str:
    """Return what `COMMAND --version` prints."""
    return f"{command} {metadata.version(DISTRIBUTION)}"


def launch(command: str) -> int | None:
    """Run a command and return its exit code. Exits with code 1 if a package that it needs is missing."""
    module, extra = _COMMANDS[command]
    try:
        main: Callable[[], int | None] = import_module(module).main
    except ModuleNotFoundError as error:
        if (error.name or "nvcf_").startswith("nvcf_"):
            raise
        sys.exit(
            f"{command}: the package {error.name} is missing; "
            f"this command needs: pip install '{DISTRIBUTION}[{extra}]'"
        )
    return main()


def nvcf() -> int | None:
    """Run `nvcf`."""
    return launch("nvcf")


def gateway() -> int | None:
    """Run `nvcf-gateway`."""
    return launch("nvcf-gateway")


def agent() -> int | None:
    """Run `nvcf-agent`."""
    return launch("nvcf-agent")


def autoscaler() -> int | None:
    """Run `nvcf-autoscaler`."""
    return launch("nvcf-autoscaler")


def simulate() -> int | None:
    """Run `nvcf-simulate`."""
    return launch("nvcf-simulate")
