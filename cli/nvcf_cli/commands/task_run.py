"""`nvcf task run`."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from nvcf_cli import tasks
from nvcf_cli.access import Access, DataOption, KeyFileOption, UrlOption
from nvcf_cli.api import Api, Json
from nvcf_cli.charts import name_from_chart, read_values
from nvcf_cli.deploying import find_file, find_python, name_from_file, parse_environment
from nvcf_cli.errors import CliError, UsageError
from nvcf_cli.images import Artifact
from nvcf_cli.screen import console
from nvcf_cli.secret_values import named_files
from nvcf_proto.models import RetryOn, TaskStatus
from nvcf_proto.models.tasks import MOST_RETRIES, PRIORITIES

_SECONDS = "SECONDS"
DEFAULT_GRACE = 30.0


def run(
    file: Annotated[
        str | None, typer.Argument(metavar="FILE", help="A Python file.", show_default=False)
    ] = None,
    image: Annotated[
        str | None,
        typer.Option(metavar="IMAGE", help="A container image instead of a file.", show_default=False),
    ] = None,
    helm_chart: Annotated[
        str | None, typer.Option(metavar="URL", help="A Helm chart instead of a file.", show_default=False)
    ] = None,
    values: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The chart's values, YAML or JSON.", show_default=False),
    ] = None,
    arguments: Annotated[
        str | None, typer.Option("--args", metavar="TEXT", help="Arguments of the image.", show_default=False)
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="The task's name. [default: the file's]", show_default=False)
    ] = None,
    gpu: Annotated[
        str | None, typer.Option(metavar="NAME", help="Kind of GPU. [default: none]", show_default=False)
    ] = None,
    gpus: Annotated[
        int | None, typer.Option(min=1, max=64, help="Number of GPUs. [default: 1]", show_default=False)
    ] = None,
    instance_type: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Instance type of the cluster; for images and charts.", show_default=False
        ),
    ] = None,
    cluster: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only in this cluster; repeatable.")
    ] = None,
    max_runtime: Annotated[
        float | None,
        typer.Option(min=1, metavar=_SECONDS, help="Longest run time. [default: none]", show_default=False),
    ] = None,
    max_queued: Annotated[
        float | None,
        typer.Option(min=1, metavar=_SECONDS, help="Longest wait. [default: 72 hours]", show_default=False),
    ] = None,
    grace: Annotated[
        float, typer.Option(min=1, metavar=_SECONDS, help="Time to end after it was canceled.")
    ] = DEFAULT_GRACE,
    env: Annotated[
        list[str] | None,
        typer.Option("--env", "-e", metavar="NAME=VALUE", help="Environment variable; repeatable."),
    ] = None,
    secret: Annotated[
        list[str] | None, typer.Option(metavar="NAME=FILE", help="Secret in a file; repeatable.")
    ] = None,
    results: Annotated[
        str | None,
        typer.Option(
            metavar="PLACE",
            help="Upload the results: platform, or s3://BUCKET/PREFIX. [default: no]",
            show_default=False,
        ),
    ] = None,
    priority: Annotated[
        int, typer.Option(min=PRIORITIES[0], max=PRIORITIES[1], help="Among the account's tasks; high first.")
    ] = 0,
    preemptible: Annotated[
        bool, typer.Option("--preemptible", help="May be ended for others, and run again later.")
    ] = False,
    retries: Annotated[
        int, typer.Option(min=0, max=MOST_RETRIES, help="Runs after the loss of a node or agent.")
    ] = 0,
    retry_failures: Annotated[
        bool, typer.Option("--retry-failures", help="Also retry after a failure of the task itself.")
    ] = False,
    tag: Annotated[list[str] | None, typer.Option(metavar="TAG", help="Tag; repeatable.")] = None,
    python: Annotated[
        str | None,
        typer.Option(metavar="PROGRAM", help="Interpreter. [default: this one]", show_default=False),
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Print the id and return, do not wait for the end.")
    ] = False,
    data: DataOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
) -> None:
    """Submit a file, an image or a Helm chart as a task, and show its progress and output until its end.

    \b
    Examples:
      nvcf task run train.py
      nvcf task run train.py --gpu H100 --max-runtime 3600 --env EPOCHS=3
      nvcf task run report.py --detach --results platform
      nvcf task run --image registry.example.com/train:1 --gpu H100 --instance-type ON-PREM.GPU.H100_1x
      nvcf task run train.py --results s3://models/runs \\
        --secret AWS_ACCESS_KEY_ID=id.txt --secret AWS_SECRET_ACCESS_KEY=key.txt
    """
    own_name, source = _source(file, image, helm_chart, arguments, python, parse_environment(env or ()))
    specification: Json = {"clusters": cluster or []}
    if gpu is not None:
        specification |= {"gpu": gpu, "gpusPerInstance": gpus or 1}
    if (file is None) != (instance_type is not None):
        text = "--image or --helm-chart, and --instance-type, belong together"
        raise UsageError(f"{text}: nvcf clusters list shows what there is")
    if instance_type is not None:
        specification["instanceType"] = instance_type
    if values is not None:
        if helm_chart is None:
            raise UsageError("--values belongs to --helm-chart")
        specification["configuration"] = read_values(values)
    request = tasks.TaskRequest(
        name=name or own_name,
        source=source,
        specification=specification,
        max_runtime=max_runtime,
        max_queued=max_queued,
        grace=grace if max_runtime is None else min(grace, max_runtime),
        results=results,
        tags=tuple(tag or ()),
        secrets=tuple(named_files(secret or ())),
        scheduling=_scheduling(priority, preemptible, retries, retry_failures),
    )
    access = Access(data, url, key_file)
    submitted: list[str] = []

    async def work(api: Api) -> Json:
        task = await tasks.submit(api, request)
        submitted.append(str(task["id"]))
        console(stderr=True).print(Text(f"task {task['id']} is submitted"))
        return task if detach else await tasks.follow(api, task, access.installation)

    try:
        task = access.run(work)
    except KeyboardInterrupt:
        for each in submitted:
            console(stderr=True).print(Text(f"the task goes on; to end it: nvcf task cancel {each}"))
        raise
    if detach:
        sys.stdout.write(f"{task['id']}\n")
    elif task["status"] != TaskStatus.COMPLETED:
        reason = tasks.error_of(task)
        raise CliError(f"the task is {task['status']}" + (f": {reason}" if reason else ""))


def _source(
    file: str | None,
    image: str | None,
    chart: str | None,
    arguments: str | None,
    python: str | None,
    environment: dict[str, str],
) -> tuple[str, Json]:
    """Return the name and the source of a task. Raises UsageError."""
    if [file, image, chart].count(None) != 2:
        raise UsageError("give one of a file, --image and --helm-chart: nvcf task run train.py")
    if file is None and python is not None:
        raise UsageError("--python belongs to a file")
    if chart is not None:
        if arguments is not None or environment:
            raise UsageError("--args and --env do not belong to a chart: it has its values")
        return name_from_chart(chart), {"helmChart": chart}
    if image is not None:
        artifact = Artifact(image=image, arguments=arguments, environment=environment)
        return artifact.own_name, artifact.members()
    if arguments is not None:
        raise UsageError("--args belongs to --image; a file gets its settings by --env")
    path = find_file(file or "")
    return name_from_file(path), tasks.process_source(path, find_python(python), environment)


def _scheduling(priority: int, preemptible: bool, retries: int, failures: bool) -> Json:
    if failures and not retries:
        raise UsageError("--retry-failures needs --retries")
    causes = list(RetryOn) if failures else [RetryOn.INFRASTRUCTURE]
    found: Json = {"priority": priority} if priority else {}
    if preemptible:
        found["preemptible"] = True
    if retries:
        found["retry"] = {"limit": retries, "on": [each.value for each in causes]}
    return found
