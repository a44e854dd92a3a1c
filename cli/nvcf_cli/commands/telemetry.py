"""`nvcf telemetry add`, `list`, `rm`, `render`."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from nvcf_cli.access import Access, DataOption, JsonOption, KeyFileOption, UrlOption
from nvcf_cli.api import Api, Json
from nvcf_cli.errors import UsageError
from nvcf_cli.screen import cell, console, print_json, print_table
from nvcf_cli.secret_values import secret_value
from nvcf_cli.telemetry import chosen, creation, find_endpoint, missing_files, pairs, render, word
from nvcf_otel.byoo import Placement
from nvcf_otel.byoo.collector import SECRETS_DIRECTORY
from nvcf_proto.models import TelemetryAuth, TelemetryProvider

app = typer.Typer(
    help="Where logs, metrics and traces go: your own backends.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

EndpointArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="The endpoint's name.", show_default=False)
]


@app.command()
def add(
    name: EndpointArgument,
    endpoint: Annotated[
        str, typer.Option(metavar="URL", help="Its URL; for Datadog the site.", show_default=False)
    ],
    provider: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="otel-collector (anything that speaks OTLP), prometheus, victoriametrics, grafana-cloud, "
            "datadog, splunk, azure-monitor, dynatrace, servicenow, kratos or kratos-thanos.",
        ),
    ] = "otel-collector",
    protocol: Annotated[
        str | None, typer.Option(metavar="http|grpc", help="[default: http]", show_default=False)
    ] = None,
    type_: Annotated[
        list[str] | None,
        typer.Option(
            "--type", metavar="logs|metrics|traces", help="Repeatable. [default: all the provider takes]"
        ),
    ] = None,
    secret: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Name of the secret.", show_default=False),
    ] = None,
    secret_from: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[KEY=]FILE",
            help="File with the secret, or with one key of it (repeatable): the platform keeps it, sealed. "
            "[default: files on the clusters]",
            show_default=False,
        ),
    ] = None,
    auth: Annotated[
        str | None,
        typer.Option(metavar="none|bearer|basic|mtls", help="If the provider takes several."),
    ] = None,
    header: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A header; repeatable.")
    ] = None,
    secret_header: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=KEY", help="A header whose value is a key of the secret; repeatable."),
    ] = None,
    private_ca: Annotated[
        bool, typer.Option("--private-ca", help="The secret has the certificate authority, caFile.")
    ] = False,
    allow_metric: Annotated[
        list[str] | None,
        typer.Option(metavar="REGEX", help="Platform metrics and matching ones only; repeatable."),
    ] = None,
    sampled_percent: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=100,
            help="Traces to keep besides slow and failed ones. [default: what callers and the "
            "platform sample]",
            show_default=False,
        ),
    ] = None,
    slow_seconds: Annotated[
        float | None,
        typer.Option(min=0.001, max=3600, help="From when it is slow. [default: 1]", show_default=False),
    ] = None,
    data: DataOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a telemetry endpoint that functions can send to.

    With --secret-from the platform keeps its secret, sealed. Without, the secret stays out of the platform:
    each key of it is a file NAME-KEY (NAME, if it is one value) in the account's part of the agents' folder
    of telemetry secrets.

    \b
    Examples:
      nvcf telemetry add tempo --endpoint http://127.0.0.1:4317 --protocol grpc
      nvcf telemetry add grafana --provider grafana-cloud --secret grafana \\
          --endpoint https://otlp-gateway-prod-eu-west-2.grafana.net/otlp --sampled-percent 10
      nvcf telemetry add vendor --endpoint https://ingest.example.com --secret vendor \\
          --auth mtls --secret-header x-api-key=apiKey
      nvcf telemetry add datadog --provider datadog --endpoint datadoghq.com --secret dd --secret-from key.txt
    """
    body = creation(
        name,
        provider=word(TelemetryProvider, "--provider", provider),
        endpoint=endpoint,
        protocol=protocol,
        types=type_ or (),
        secret=secret,
        configuration={
            "auth": word(TelemetryAuth, "--auth", auth).value if auth is not None else None,
            "headers": pairs("--header", header or ()),
            "secretHeaders": pairs("--secret-header", secret_header or ()),
            "privateCa": private_ca,
            "allowMetrics": allow_metric,
            "sampledPercent": sampled_percent,
            "slowSeconds": slow_seconds,
        },
    )
    if secret_from:
        if secret is None:
            raise UsageError("--secret-from needs --secret NAME")
        body["secret"]["value"] = secret_value(secret_from)
    access = Access(data, url, key_file)
    answer = access.run(lambda api: api.call("POST", "/v2/nvcf/telemetries", body))
    made: Json = answer["telemetry"]
    if as_json:
        print_json(made)
        return
    out = console()
    out.print(Text(f"{name}: functions can use it now (nvcf deploy --telemetry {name})"))
    folder = None if url is not None else access.installation.telemetry_secrets
    if not secret_from and (files := missing_files(made, folder)):
        place = "the agents' folder of telemetry secrets" if folder is None else str(folder)
        out.print(Text(f"  to be put into {place}: {', '.join(files)}", style="dim"))


@app.command("list")
def list_all(
    data: DataOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the account's telemetry endpoints.

    \b
    Examples:
      nvcf telemetry list
      nvcf telemetry list --json
    """
    endpoints = Access(data, url, key_file).run(lambda api: api.telemetries())
    if as_json:
        print_json(endpoints)
        return
    rows = [
        (
            cell(each, "name"),
            cell(each, "provider"),
            " ".join(str(kind).lower() for kind in each.get("types", [])),
            cell(each, "protocol").lower(),
            cell(each.get("secret") or {}, "name"),
            cell(each, "endpoint"),
        )
        for each in endpoints
    ]
    columns = ("NAME", "PROVIDER", "TAKES", "OVER", "SECRET", "ENDPOINT")
    print_table(columns, rows, "no telemetry endpoints: try nvcf telemetry add")


@app.command("rm")
def remove(
    name: EndpointArgument,
    data: DataOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
) -> None:
    """Remove a telemetry endpoint that no function uses.

    \b
    Example:
      nvcf telemetry rm grafana
    """

    async def work(api: Api) -> None:
        found = find_endpoint(await api.telemetries(), name)
        await api.call("DELETE", f"/v2/nvcf/telemetries/{found['telemetryId']}")

    Access(data, url, key_file).run(work)
    console().print(Text(f"{name}: removed"))


@app.command("render")
def render_command(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME...",
            help="Endpoints; each kind of telemetry goes to the first one that takes it.",
            show_default=False,
        ),
    ],
    host: Annotated[str, typer.Option(help="Address of the collector.")] = Placement.host,
    secrets: Annotated[str, typer.Option(metavar="DIR", help="Its secret files.")] = SECRETS_DIRECTORY,
    storage: Annotated[str, typer.Option(metavar="DIR", help="Folder of queues.")] = Placement.storage,
    memory: Annotated[int, typer.Option(min=32, metavar="MIB", help="Its memory limit.")] = (
        Placement.memory_mib
    ),
    scrape: Annotated[
        list[str] | None,
        typer.Option(metavar="HOST:PORT", help="A Prometheus endpoint (/metrics) to read; repeatable."),
    ] = None,
    attribute: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="A resource attribute for everything; repeatable."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="[default: standard output]")
    ] = None,
    data: DataOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
) -> None:
    """Write the OpenTelemetry Collector's configuration for some endpoints.

    \b
    Examples:
      nvcf telemetry render grafana > collector.yaml
      nvcf telemetry render splunk prometheus --host 0.0.0.0 --scrape gateway:9464
    """
    placement = Placement(
        host=host,
        secrets=secrets,
        storage=storage,
        memory_mib=memory,
        scrape=tuple(scrape or ()),
        resource=pairs("--attribute", attribute or ()),
    )
    endpoints = Access(data, url, key_file).run(lambda api: api.telemetries())
    text = render(chosen(endpoints, names), placement)
    if output is None:
        sys.stdout.write(text)
    else:
        output.write_text(text, encoding="utf-8")
