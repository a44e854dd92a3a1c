"""`nvcf status`, `nvcf metrics`: what runs of the platform on this machine, and where its metrics are."""

from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.text import Text

from nvcf_cli.access import Access, DataOption, JsonOption
from nvcf_cli.errors import CliError
from nvcf_cli.instance_ids import short_id
from nvcf_cli.local.scrape import configuration, instance_targets
from nvcf_cli.local.state import PlatformState, read_state, running_pid
from nvcf_cli.local.troubles import troubles_of
from nvcf_cli.screen import age, console, print_json, print_table


def status(data: DataOption = None, as_json: JsonOption = False) -> None:
    """Show the platform on this machine, and what does not work there.

    Exit code 1 if there is none.

    \b
    Examples:
      nvcf status
      nvcf status --json
    """
    installation = Access(data=data).installation
    state = read_state(installation)
    troubles = troubles_of(state) if state is not None else []
    if as_json:
        members = {**state.to_dict(), "troubles": troubles} if state is not None else {}
        print_json({"running": state is not None, **members})
    elif state is None:
        pid = running_pid(installation)
        text = f"starting or stopping (process {pid})" if pid else "not running: nvcf up starts it"
        console().print(Text(text))
    else:
        _show(state)
        for each in troubles:
            since = f" (since {each['since']})" if each["since"] else ""
            console().print(Text(f"\n{each['part']}: {each['detail']}{since}"))
    if state is None:
        raise typer.Exit(1)


def _show(state: PlatformState) -> None:
    out = console()
    since = age(datetime.fromtimestamp(state.started_at, UTC).isoformat())
    out.print(Text(f"up for {since} at {state.url}, data in {state.data}"))
    out.print(Text(f"broker: {state.broker or state.nats}\n"))
    rows = [
        (name, child.state, str(child.pid or ""), str(child.restarts))
        for name, child in state.children.items()
    ]
    print_table(("PROCESS", "STATE", "PID", "RESTARTS"), rows, "")


def metrics(
    data: DataOption = None,
    config: Annotated[bool, typer.Option("--config", help="Print Prometheus' configuration.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show where the platform on this machine serves its metrics, and how Prometheus collects them.

    \b
    Examples:
      nvcf metrics
      prometheus --config.file=$HOME/.nvcf/prometheus.yml
      nvcf metrics --config
    """
    installation = Access(data=data).installation
    if config:
        typer.echo(configuration(installation), nl=False)
        return
    state = read_state(installation)
    if state is None:
        raise CliError(f"no platform runs on {installation.data}: nvcf up starts it")
    instances = instance_targets(installation)
    if as_json:
        found = [{"address": address, **labels} for labels, address in instances]
        print_json(
            {"platform": state.metrics, "instances": found, "prometheus": str(installation.prometheus)}
        )
        return
    if not state.metrics:
        raise CliError("the platform serves no metrics: it was started with --no-metrics")
    rows = [(name, f"http://{address}/metrics") for name, address in state.metrics.items()]
    rows += [
        (
            f"{labels.get('nvcf_function_name', '?')} {short_id(labels.get('nvcf_instance_id', ''))}",
            f"http://{address}/metrics",
        )
        for labels, address in instances
    ]
    print_table(("PROCESS", "METRICS"), rows, "")
    console().print(Text(f"\nprometheus --config.file={installation.prometheus}"))
