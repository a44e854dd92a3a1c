"""The `nvcf` command."""

import io
import os
import sys
from typing import Annotated

import typer
from rich.text import Text

from nvcf_broker.errors import BrokerError
from nvcf_cli.commands import (
    calls,
    cluster,
    compute,
    dashboard,
    deploy,
    function,
    functions,
    keys,
    local,
    quotas,
    registry,
    requests,
    scale,
    scaling,
    secret,
    status,
    task,
    telemetry,
    top,
)
from nvcf_cli.errors import CliError
from nvcf_cli.screen import console
from nvcf_proto.launch import version_text

app = typer.Typer(
    name="nvcf",
    help="Serve Python functions from a durable queue, on this machine or elsewhere.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(version_text("nvcf"))
        raise typer.Exit


@app.callback()
def root(
    debug: Annotated[bool, typer.Option("--debug", hidden=True)] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Serve Python functions from a durable queue, on this machine or elsewhere.

    \b
    First steps:
      nvcf up                             in one terminal
      nvcf deploy function.py             in another
      nvcf invoke function --data hello
    """
    if debug:
        os.environ["NVCF_DEBUG"] = "1"


app.command("new")(functions.new)
app.command("up")(local.up)
app.command("down")(local.down)
app.command("status")(status.status)
app.command("deploy")(deploy.deploy_command)
app.command("undeploy")(functions.undeploy)
app.command("delete", hidden=True)(functions.delete)
app.command("functions")(functions.functions)
app.command("instances")(compute.instances)
app.add_typer(function.app, name="function")
app.add_typer(keys.app, name="key")
app.add_typer(cluster.app, name="cluster")
app.command("clusters")(cluster.list_clusters)
app.command("quotas")(quotas.quotas)
app.command("scale")(scale.scale)
app.command("scaling")(scaling.scaling)
app.command("events")(scaling.events)
app.command("top")(top.top)
app.command("dashboard")(dashboard.dashboard)
app.add_typer(telemetry.app, name="telemetry")
app.add_typer(secret.app, name="secret")
app.add_typer(registry.app, name="registry")
app.add_typer(task.app, name="task")
app.command("invoke")(calls.invoke_command)
app.add_typer(requests.app, name="request")
app.command("logs")(calls.logs)
app.command("metrics")(status.metrics)


def main() -> None:
    """Run the command. Exit codes: 0 done, 1 it went wrong, 2 wrong use, 130 ctrl-c."""
    sys.exit(run())


def run(arguments: list[str] | None = None) -> int:
    """Run a command line and return its exit code; what users do wrong raises nothing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A log line may hold text that cannot be encoded, e.g. an unpaired surrogate.
            stream.reconfigure(errors="backslashreplace")
    try:
        app(arguments)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 0
    except CliError as error:
        return _failed(error, error.exit_code)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader ended (`nvcf logs | head`): nobody reads further output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (BrokerError, OSError) as error:
        return _failed(error, 1)
    return 0


def _failed(error: Exception, code: int) -> int:
    if os.environ.get("NVCF_DEBUG"):
        raise error
    console(stderr=True).print(Text.assemble(("error: ", "bold red"), str(error)))
    return code
