"""`nvcf task`: work that runs once to its end."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from nvcf_cli import tasks
from nvcf_cli.access import Access, DataOption, JsonOption, KeyFileOption, UrlOption
from nvcf_cli.api import Api, Json
from nvcf_cli.commands.task_run import run
from nvcf_cli.errors import CliError
from nvcf_cli.screen import age, cell, console, print_json, print_table, visible
from nvcf_cli.tailing import LogFile, readable
from nvcf_cli.task_results import StoredFile, is_uploaded, location_of, remove, stored_files
from nvcf_cli.task_results import download as fetch_results

app = typer.Typer(no_args_is_help=True, help="Run tasks: work that runs once to its end.")

TaskArgument = Annotated[
    str, typer.Argument(metavar="TASK", help="Id of the task, its beginning, or the newest task's name.")
]
_NOT_UPLOADED = "submit it with nvcf task run --results"
app.command("run")(run)


@app.command("list")
def list_command(
    status: Annotated[
        str | None,
        typer.Option(metavar="STATUS", help="Only of this status; several with commas.", show_default=False),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="Most tasks.")] = 50,
    as_json: JsonOption = False,
    data: DataOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
) -> None:
    """List tasks, the newest first.

    \b
    Examples:
      nvcf task list
      nvcf task list --status QUEUED,RUNNING --json
    """
    wanted = None if status is None else status.upper()

    async def work(api: Api) -> list[Json]:
        return await tasks.list_tasks(api, wanted, limit)

    found = Access(data, url, key_file).run(work)
    if as_json:
        print_json(found)
        return
    rows = [
        (
            str(each.get("id", ""))[:8],
            cell(each, "name"),
            cell(each, "status"),
            f"{each['percentComplete']} %" if each.get("percentComplete") is not None else "",
            age(each.get("createdAt")),
            cell(each, "clusterName"),
            (tasks.error_of(each) or cell(each, "waitingFor")).partition("\n")[0],
        )
        for each in found
    ]
    columns = ("ID", "NAME", "STATUS", "DONE", "AGE", "CLUSTER", "REASON")
    print_table(columns, rows, "there are no tasks: nvcf task run FILE submits one")


@app.command("show")
def show(
    task: TaskArgument,
    as_json: JsonOption = False,
    data: DataOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
) -> None:
    """Show a task: its status, limits, where it runs or why it waits, and what has happened.

    \b
    Examples:
      nvcf task show train
      nvcf task show 5b1c0a52 --json
    """

    async def work(api: Api) -> tuple[Json, list[Json]]:
        found = await tasks.find(api, task)
        return found, await tasks.events(api, found)

    found, events = Access(data, url, key_file).run(work)
    if as_json:
        print_json({**found, "events": events})
        return
    out = console()
    lines = {
        "id": cell(found, "id"),
        "status": tasks.progress_text(found).partition(": ")[2],
        "GPU": str(found["gpuSpecification"].get("gpu", "")),
        "cluster": cell(found, "clusterName"),
        "longest run time": cell(found, "maxRuntimeDuration"),
        "longest wait": cell(found, "maxQueuedDuration"),
        "priority": cell(found, "priority"),
        "runs": _runs(found),
        "last heartbeat": age(found.get("lastHeartbeatAt")),
        "tags": ", ".join(found.get("tags") or ()),
        "secrets": ", ".join(found.get("secrets") or ()),
        "error": tasks.error_of(found),
    }
    for label, value in lines.items():
        if value:
            out.print(Text.assemble((f"{label}: ", "bold"), value))
    for each in events:
        out.print(Text(f"  {cell(each, 'createdAt')[11:19]} {cell(each, 'message')}", style="dim"))


def _runs(task: Json) -> str:
    """Return how often a task was launched, and what for; empty for the first run."""
    launches, retries = int(task.get("launches") or 0), int(task.get("retries") or 0)
    preemptions = int(task.get("preemptions") or 0)
    return f"{launches} ({retries} retries, {preemptions} preemptions)" if retries or preemptions else ""


@app.command("logs")
def logs(
    task: TaskArgument,
    following: Annotated[
        bool, typer.Option("--follow", "-f", help="Show lines until the task is over.")
    ] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="Last lines.")] = 50,
    data: DataOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
) -> None:
    """Show what a task prints. Its agent must be on this machine.

    \b
    Examples:
      nvcf task logs train
      nvcf task logs train -f
    """
    access = Access(data, url, key_file)

    async def work(api: Api) -> None:
        found = await tasks.find(api, task)
        if following:
            await tasks.follow(api, found, access.installation)
            return
        path = tasks.log_path(found, access.installation)
        if path is None:
            where = f" of cluster {found['clusterName']}" if found.get("clusterName") else ""
            raise CliError(f"this machine has no log of the task: look at its agent's{where}")
        for line in await asyncio.to_thread(LogFile(path).last_lines, lines):
            sys.stdout.write(readable(line) + "\n")

    access.run(work)


@app.command("cancel")
def cancel(
    task: TaskArgument, data: DataOption = None, url: UrlOption = None, key_file: KeyFileOption = None
) -> None:
    """End a task, whether it waits or runs; it gets its grace period.

    \b
    Examples:
      nvcf task cancel train
    """

    async def work(api: Api) -> Json:
        return await tasks.cancel(api, await tasks.find(api, task))

    canceled = Access(data, url, key_file).run(work)
    console().print(Text(f"task {canceled['id']} is canceled"))


@app.command("results")
def results(
    task: TaskArgument,
    download: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Download what the task has uploaded into this folder.", show_default=False
        ),
    ] = None,
    as_json: JsonOption = False,
    data: DataOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
) -> None:
    """List what a task has reported, and the files of its results.

    Those in an S3 store are read with the key in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; a store other
    than AWS is named by AWS_ENDPOINT_URL_S3. A download that was interrupted is continued, and checked.

    \b
    Examples:
      nvcf task results train
      nvcf task results train --download trained
    """
    access = Access(data, url, key_file)

    async def work(api: Api) -> tuple[Json, list[Json], list[StoredFile]]:
        found = await tasks.find(api, task)
        if download is not None and not is_uploaded(found):
            raise CliError(f"task {found['id']} uploads no results: {_NOT_UPLOADED}")
        stored = await stored_files(api, found)
        if stored and download is not None:
            await fetch_results(api, found, download.resolve())
        return found, await tasks.results(api, found), stored

    found, reported, stored = access.run(work)
    folder: Path | None = tasks.results_path(found, access.installation)
    if as_json:
        files = [{"path": each.path, "size": each.size} for each in stored]
        shown = {"results": reported, "folder": None if folder is None else str(folder)}
        print_json(shown | ({"location": location_of(found), "files": files} if is_uploaded(found) else {}))
        return
    rows = [(cell(each, "name"), age(each.get("createdAt")), _metadata(each)) for each in reported]
    print_table(("NAME", "AGE", "METADATA"), rows, "the task has reported no results")
    out = console()
    if is_uploaded(found):
        listed = [(visible(each.path), f"{each.size:,}") for each in stored]
        out.print(Text(f"\nuploaded to {location_of(found) or 'the platform'}"))
        print_table(("FILE", "BYTES"), listed, "nothing is uploaded yet")
    if download is not None:
        out.print(Text(f"files in {download}: {len(stored)}"))
    elif folder is not None:
        out.print(Text(f"files: {folder}"))


def _metadata(result: Json) -> str:
    metadata = result.get("metadata")
    return visible(metadata if isinstance(metadata, str) else json.dumps(metadata)) if metadata else ""


@app.command("delete")
def delete(
    task: TaskArgument, data: DataOption = None, url: UrlOption = None, key_file: KeyFileOption = None
) -> None:
    """Remove the record of a task that is over, and its results in the platform's store.

    Its folder on the agent's machine stays for a week.

    \b
    Examples:
      nvcf task delete train
    """

    async def work(api: Api) -> str:
        found = await tasks.find(api, task)
        if tasks.is_over(found):
            await remove(api, found)
        await tasks.delete(api, found)
        return str(found["id"])

    console().print(Text(f"task {Access(data, url, key_file).run(work)} is deleted"))
