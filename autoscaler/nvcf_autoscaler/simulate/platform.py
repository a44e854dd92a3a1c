"""`nvcf-simulate record` and `advise`: what a running platform has kept of its versions' load."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import sys
import time
from collections import defaultdict
from contextlib import AsyncExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from nvcf_autoscaler.errors import InvalidTrace
from nvcf_autoscaler.simulate.advise import outcomes, report
from nvcf_autoscaler.simulate.recorded import Recorded, recorded
from nvcf_autoscaler.simulate.trace import write_csv
from nvcf_broker.configuration import BrokerFiles
from nvcf_broker.connection import connect_broker
from nvcf_broker.jetstream import JetStream
from nvcf_broker.requests import ReplyInbox
from nvcf_proto.errors import InvalidRecord
from nvcf_proto.scaling_history import HOUR, STREAM, HistoryBlock, history_subject

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_AT_ONCE = 16
_MOST_VERSIONS = 1000


def add_commands(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `record` and `advise` to the parser's commands."""
    shared = argparse.ArgumentParser(add_help=False)
    add = shared.add_argument
    text = "data folder of `nvcf up` (default: $NVCF_HOME, or ~/.nvcf)"
    add("--data", type=Path, metavar="DIR", help=text)
    add("--nats", metavar="URL", help="URL of the platform's broker, in place of --data")
    add("--nats-credentials", type=Path, metavar="FILE",
        help="for --nats: line user:password of the broker account of the control plane")  # fmt: skip
    add("--account", default="", metavar="ID", help="only functions of this account")
    add("--days", type=float, default=7.0, help="how far to look back (at most 8)")
    text = "write what the platform kept of its functions' load as a trace"
    add = commands.add_parser("record", parents=[shared], help=text).add_argument
    add("trace", type=Path, metavar="FILE", help="CSV for `replay`; settings go to FILE.json")
    add("--function", default="", metavar="NAME", help="only this function name, function id or version id")
    text = "replay a function's last days against other settings"
    add = commands.add_parser("advise", parents=[shared], help=text).add_argument
    add("function", metavar="NAME", help="function name, function id or version id")
    add("--price", type=float, default=0.0, metavar="MONEY", help="of one GPU-hour: adds what it costs")
    add("--seed", type=int, default=1, help="of start-up times")


def run(options: argparse.Namespace) -> int:
    """Run `record` or `advise` and return the exit code. Raises AutoscalerError, BrokerError and OSError."""
    if options.days <= 0:
        raise InvalidTrace("--days must be above 0")
    found = asyncio.run(_read(options))
    if not found:
        wanted = options.function or "any function"
        raise InvalidTrace(
            f"the platform has recorded no requests of {wanted} in this time; "
            "the autoscaler writes every 30 s"
        )
    if options.command == "record":
        write_csv(options.trace, [each.function for each in found])
        settings = options.trace.with_name(options.trace.name + ".json")
        settings.write_text(
            json.dumps([_settings(each) for each in found], indent=2) + "\n", encoding="utf-8"
        )
        requests = sum(len(each.function.arrivals) for each in found)
        sys.stdout.write(f"{requests} requests of {len(found)} versions in {options.trace}\n")
        return 0
    if options.price < 0:
        raise InvalidTrace("--price must be at least 0")
    texts = [report(each, outcomes(each, options.seed), options.price) for each in found]
    sys.stdout.write("\n\n".join(texts) + "\n")
    return 0


def _settings(one: Recorded) -> dict[str, object]:
    """Return a version's settings, start-up times and measured GPU time, for people and for `replay`."""
    return {
        "function": one.function.name,
        "functionVersionId": one.version_id,
        "beginsAt": one.begins_at,
        "seconds": one.function.horizon,
        "profile": one.profile,
        "waitSlo": one.function.wait_slo,
        "specification": asdict(one.function.specifications[0]),
        "measuredGpuSeconds": round(one.gpu_seconds, 1),
        "measuredMeanWait": round(one.mean_wait, 3),
    }


def _broker(options: argparse.Namespace) -> tuple[str, Path | None]:
    """Return the URL and the credentials of the broker. Raises InvalidTrace."""
    if options.nats is not None:
        return options.nats, options.nats_credentials
    data = options.data or Path(os.environ.get("NVCF_HOME") or Path.home() / ".nvcf")
    try:
        url = str(json.loads((data / "state.json").read_text(encoding="utf-8"))["nats"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidTrace(
            f"no platform runs with the data folder {data}: start it (nvcf up), or give --data or --nats"
        ) from error
    credentials = BrokerFiles(data / "broker").control
    return url, credentials if credentials.exists() else options.nats_credentials


async def _read(options: argparse.Namespace) -> list[Recorded]:
    """Return all versions that match and had requests, in order of their names."""
    async with AsyncExitStack() as stack:
        client = await connect_broker(*_broker(options), name="nvcf-simulate")
        stack.push_async_callback(client.close)
        requests = ReplyInbox(client)
        await requests.start()
        blocks = await _blocks(JetStream(requests), time.time() - options.days * 86400, options.function)
    by_version: dict[str, list[HistoryBlock]] = defaultdict(list)
    for block in blocks:
        known = (block.name, block.function_id, block.version_id)
        if options.function in ("", *known) and options.account in ("", block.nca_id):
            by_version[block.version_id].append(block)
    called = [each for each in by_version.values() if any(step[1] > 0 for one in each for step in one.steps)]
    found = [recorded(each) for each in called]
    return sorted(found, key=lambda each: (each.name, each.version_id))[:_MOST_VERSIONS]


async def _blocks(jetstream: JetStream, since: float, wanted: str) -> list[HistoryBlock]:
    one_version = re.fullmatch(r"[0-9a-f-]{36}", wanted)
    there = await jetstream.stream_info(STREAM, subjects_filter=history_subject("*"))
    if there is None:
        return []
    hours = [each for each in there.subjects if int(each.rpartition(".")[2]) >= since // HOUR]
    if one_version and any(f".{wanted}." in each for each in hours):
        hours = [each for each in hours if f".{wanted}." in each]
    found: list[HistoryBlock] = []

    async def read(subject: str) -> None:
        message = await jetstream.message(STREAM, last_by_subj=subject)
        if message is None:
            return
        try:
            found.append(HistoryBlock.from_bytes(message.data))
        except InvalidRecord as error:
            sys.stderr.write(f"nvcf-simulate: {subject} is left out: {error}\n")

    for begin in range(0, len(hours), _AT_ONCE):
        async with asyncio.TaskGroup() as tasks:
            for subject in hours[begin : begin + _AT_ONCE]:
                tasks.create_task(read(subject))
    return found
