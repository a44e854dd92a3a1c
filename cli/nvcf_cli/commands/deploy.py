"""`nvcf deploy`."""

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from nvcf_cli.access import Access, DataOption, JsonOption, KeyFileOption, UrlOption
from nvcf_cli.api import Api
from nvcf_cli.charts import read_values
from nvcf_cli.deploying import (
    Deployed,
    DeployFailed,
    DeployRequest,
    check_name,
    deploy,
    find_file,
    find_model_repository,
    find_python,
    name_from_file,
    parse_environment,
    split_target,
)
from nvcf_cli.errors import UsageError
from nvcf_cli.images import Artifact
from nvcf_cli.scale import Profile, Scale, bounds, gpus
from nvcf_cli.screen import StatusLine, console, print_json
from nvcf_cli.secret_values import named_files
from nvcf_cli.tailing import why_it_failed


def deploy_command(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="[FILE[:HANDLER] | DIR]",
            help="A Python file, or with --triton a folder.",
            show_default=False,
        ),
    ] = None,
    image: Annotated[
        str | None,
        typer.Option(metavar="IMAGE", help="A container image instead of a file.", show_default=False),
    ] = None,
    helm_chart: Annotated[
        str | None, typer.Option(metavar="URL", help="A Helm chart instead of a file.", show_default=False)
    ] = None,
    helm_service: Annotated[
        str | None, typer.Option(metavar="NAME", help="The chart's service to call.", show_default=False)
    ] = None,
    values: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The chart's values, YAML or JSON.", show_default=False),
    ] = None,
    triton: Annotated[
        bool, typer.Option("--triton", help="DIR is a model repository, for a Triton server.")
    ] = False,
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:VERSION]", help="With --triton: a model to load; repeatable. [default: all]"
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            min=1, max=65535, help="Port of the image's server or the chart's service.", show_default=False
        ),
    ] = None,
    health: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Path of that server's health check.", show_default=False),
    ] = None,
    library: Annotated[
        bool,
        typer.Option("--library", help="The image calls serve() itself: no worker beside it."),
    ] = False,
    prefetch: Annotated[
        bool,
        typer.Option("--prefetch", help="Pull the image on all nodes that may run it."),
    ] = False,
    name: Annotated[
        str | None, typer.Option(help="The function's name. [default: the file's]", show_default=False)
    ] = None,
    instances: Annotated[
        int | None,
        typer.Option(
            "--instances", "-n", min=0, max=1000, help="Fixed number. [default: 1]", show_default=False
        ),
    ] = None,
    minimum: Annotated[
        int | None,
        typer.Option("--min", min=0, max=1000, help="Least instances; 0: scale to zero.", show_default=False),
    ] = None,
    maximum: Annotated[
        int | None,
        typer.Option("--max", min=1, max=1000, help="Largest number of instances.", show_default=False),
    ] = None,
    concurrency: Annotated[
        int,
        typer.Option(
            "--concurrency", "-c", min=1, max=16384, help="Requests that one instance runs at once."
        ),
    ] = 1,
    gpu: Annotated[
        str | None, typer.Option(metavar="NAME", help="Kind of GPU. [default: none]", show_default=False)
    ] = None,
    gpus_per_instance: Annotated[
        int | None,
        typer.Option(min=1, max=64, help="GPUs for each instance. [default: 1]", show_default=False),
    ] = None,
    instance_type: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Instance type of the cluster. [default: process; for an image the one with so many GPUs]",
            show_default=False,
        ),
    ] = None,
    cluster: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only in this cluster; repeatable, the preferred one first."),
    ] = None,
    region: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only here; repeatable, the preferred one first."),
    ] = None,
    cluster_group: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only in clusters of this group.", show_default=False)
    ] = None,
    scale_to_zero_delay: Annotated[
        float | None,
        typer.Option(
            min=0, metavar="SECONDS", help="Idle time until zero. [default: learnt]", show_default=False
        ),
    ] = None,
    target_utilisation: Annotated[
        float | None,
        typer.Option(min=0.01, max=1, metavar="SHARE", help="Share of busy slots.", show_default=False),
    ] = None,
    wait_slo: Annotated[
        float | None,
        typer.Option(
            min=0.001, max=3600, metavar="SECONDS", help="Time to a request's start.", show_default=False
        ),
    ] = None,
    keep_warm: Annotated[
        int | None,
        typer.Option(min=0, max=1000, help="Instances that always stay.", show_default=False),
    ] = None,
    profile: Annotated[
        Profile | None,
        typer.Option(
            metavar="NAME",
            help="economy, balanced or fast: GPU time or waits. [default: balanced]",
            show_default=False,
        ),
    ] = None,
    wait_price: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1000,
            metavar="GPU_SECONDS",
            help="What a second of one waiting request is worth. [default: by --profile]",
            show_default=False,
        ),
    ] = None,
    max_execution_seconds: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=86_400,
            metavar="SECONDS",
            help="Longest run of one request. [default: 3600]",
            show_default=False,
        ),
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option("--env", "-e", metavar="NAME=VALUE", help="A variable for the function; repeatable."),
    ] = None,
    python: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="The function's Python. [default: nvcf's own]", show_default=False),
    ] = None,
    telemetry: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A telemetry endpoint to send to; repeatable."),
    ] = None,
    secret: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FILE", help="A secret, its value in a file; repeatable."),
    ] = None,
    wait: Annotated[bool, typer.Option(help="Wait until --min instances are ready.")] = True,
    timeout: Annotated[float, typer.Option(min=1, metavar="SECONDS", help="Longest wait.")] = 1800.0,
    data: DataOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Deploy a Python file, a container image or a Helm chart as a function.

    The same name again makes a new version of it.
    The version before serves until the new one is ready. A new one that does not start is taken back.

    \b
    Examples:
      nvcf deploy hello.py
      nvcf deploy models.py:Summarizer --name summarize --instances 2 --concurrency 4
      nvcf deploy app.py --python ./venv/bin/python --env MODEL=small
      nvcf deploy --image registry.example.com/echo:1 --gpu H100
      nvcf deploy --helm-chart oci://registry.example/rag:1.0.0 --helm-service api --port 8000 --gpu H100
      nvcf deploy models --triton --model bert --name bert
      nvcf deploy app.py --secret API_TOKEN=token.txt
      nvcf deploy app.py --min 0 --max 4 --gpu SIM --scale-to-zero-delay 60
    """
    low, high = bounds(instances, minimum, maximum)
    kind, count = gpus(gpu, gpus_per_instance)
    scale = Scale(
        minimum=low,
        maximum=high,
        concurrency=concurrency,
        gpu=kind,
        gpus_per_instance=count,
        instance_type=instance_type,
        clusters=tuple(cluster or ()),
        regions=tuple(region or ()),
        cluster_group=cluster_group,
        scale_to_zero_delay=scale_to_zero_delay,
        target_utilisation=target_utilisation,
        wait_slo=wait_slo,
        keep_warm=keep_warm,
        profile=profile.value if profile is not None else None,
        wait_price=wait_price,
        max_execution_seconds=max_execution_seconds,
        prefetch=prefetch,
        configuration=read_values(values),
    )
    variables = parse_environment(env or [])
    telemetries = tuple(telemetry or ())
    secrets = tuple(named_files(secret or ()))
    if image is not None or helm_chart is not None:
        if target is not None or python is not None or triton:
            raise UsageError("images and charts bring their own program: give one of file, image and chart")
        artifact = Artifact(
            image=image,
            chart=helm_chart,
            chart_service=helm_service,
            environment=variables,
            port=port,
            health=health,
            library=library,
        )
        artifact.check_deployment(values=values is not None, prefetch=prefetch)
        request = DeployRequest(
            name=check_name(name or artifact.own_name),
            artifact=artifact,
            scale=scale,
            telemetry=telemetries,
            secrets=secrets,
        )
    else:
        if target is None:
            raise UsageError("give a file, FILE[:HANDLER], --image or --helm-chart: nvcf deploy hello.py")
        if model and not triton:
            raise UsageError("--model belongs to --triton")
        if any((port, health, library, prefetch, helm_service, values)):
            text = "--port, --health, --library and --prefetch belong to --image"
            raise UsageError(f"{text}, --helm-service and --values to --helm-chart")
        inference_url, handler = None, None
        if triton:
            file, inference_url = find_model_repository(target, model or [])
            variables |= {"NVCF_TRITON_MODELS": ",".join(model)} if model else {}
        else:
            file_text, handler = split_target(target)
            file = find_file(file_text)
        request = DeployRequest(
            name=check_name(name) if name else name_from_file(file),
            file=file,
            handler=handler,
            python=find_python(python),
            environment=variables,
            scale=scale,
            telemetry=telemetries,
            secrets=secrets,
            inference_url=inference_url,
        )

    async def work(api: Api) -> Deployed:
        with StatusLine() as status:
            return await deploy(
                api,
                request,
                wait=wait,
                timeout=timeout,
                show=lambda text: status.show(f"{request.name}: {text}"),
            )

    try:
        done = Access(data, url, key_file).run(work)
    except DeployFailed as failure:
        out = console(stderr=True)
        for line in why_it_failed(failure.words):
            out.print(Text(f"  {line}", style="dim"))
        raise
    except KeyboardInterrupt:
        name = shlex.quote(request.name)
        text = f"no longer waiting for {name}; what is deployed stays: nvcf undeploy {name} ends it"
        console(stderr=True).print(Text(text))
        raise
    _report(done, request, as_json=as_json)


def _report(done: Deployed, request: DeployRequest, *, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "name": done.name,
                "functionId": done.function_id,
                "functionVersionId": done.version_id,
                "readySeconds": None if done.seconds is None else round(done.seconds, 3),
                "replacedVersions": done.replaced,
                **({"missingSecrets": list(done.missing)} if done.missing else {}),
                **({"warning": done.warning} if done.warning else {}),
            }
        )
        return
    outcome = "deployed" if done.seconds is None else f"ready in {done.seconds:.1f} s"
    text = f"{done.name}: {outcome}"
    if (request.scale.minimum, request.scale.maximum) != (1, 1):
        text += f", {request.scale.text}"
    if done.replaced:
        text += ", the version before is ending"
    out = console()
    out.print(Text(text))
    out.print(Text(f"  function {done.function_id}  version {done.version_id}", style="dim"))
    if done.warning:
        out.print(Text(f"  {done.warning} (nvcf clusters)", style="yellow"))
    if done.missing:
        text = f"  the version before has secrets that this one has not: {', '.join(done.missing)}"
        out.print(Text(f"{text} (nvcf secret set, or nvcf deploy --secret)", style="yellow"))
