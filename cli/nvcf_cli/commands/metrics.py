"""`nvcf metrics`: where a local platform serves its metrics."""

from typing import Annotated

import typer
from rich.text import Text

from nvcf_cli.errors import CliError
from nvcf_cli.options import Access, DataOption, JsonOption
from nvcf_cli.scrape import configuration, instance_targets
from nvcf_cli.screen import console, print_json, print_table
from nvcf_cli.state import read_state


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
            f"{labels.get('nvcf_function_name', '?')} {labels.get('nvcf_instance_id', '')[:8]}",
            f"http://{address}/metrics",
        )
        for labels, address in instances
    ]
    print_table(("PROCESS", "METRICS"), rows, "")
    console().print(Text(f"\nprometheus --config.file={installation.prometheus}"))
