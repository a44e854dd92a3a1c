"""What registering a cluster takes, and what it shows: ids, the agent's key once, and its command line."""

import json
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path

from rich.text import Text

from nvcf_broker.files import write_private
from nvcf_cli.api import Json
from nvcf_cli.errors import CliError, UsageError
from nvcf_cli.local.state import Installation, read_state
from nvcf_cli.screen import cell, console, print_json


def registration(options: Mapping[str, object]) -> Json:
    """Return the body of a registration; options that were not given are left out."""
    return {name: value for name, value in options.items() if value not in (None, (), [], {})}


def attributes(texts: Iterable[str]) -> dict[str, str]:
    """Return the pairs of --attribute. Raises `UsageError`."""
    found = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise UsageError(f"--attribute {text}: NAME=VALUE expected")
        found[name] = value
    return found


def read_key_set(path: Path | None) -> str | None:
    """Return the text of a file with a JSON Web Key Set. Raises `CliError`."""
    if path is None:
        return None
    try:
        text = path.read_text(encoding="utf-8")
        document = json.loads(text)
    except OSError as error:
        raise CliError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"--jwks {path}: not JSON") from error
    if not isinstance(document, dict) or not isinstance(document.get("keys"), list):
        raise UsageError(f"--jwks {path}: an object with a list `keys` expected")
    return text


def next_steps(answer: Json, address: str, here: Installation, key_out: Path | None) -> str:
    """Return the command line that starts the agent of a new cluster."""
    state = read_state(here)
    nats = state.nats if state is not None and state.url == address else "nats://BROKER:4222"
    identity = (
        "--token-file /var/run/secrets/tokens/token"
        if "clusterKey" not in answer
        else f"--key-file {shlex.quote(str(key_out)) if key_out else 'cluster.key'}"
    )
    return (
        f"nvcf-agent --icms {address} --nats {nats} --cluster-id {cell(answer, 'clusterId')} \\\n"
        f"    {identity} --data ./nvcf-agent"
    )


def show_key(answer: Json, key_out: Path | None, name: str, steps: str | None, as_json: bool) -> None:
    """Print ids, the key once, and what to do next; with `key_out` the key goes to that file."""
    key = answer.get("clusterKey")
    if key_out is not None and isinstance(key, str):
        try:
            write_private(key_out, key + "\n")
        except OSError as error:
            raise CliError(f"cannot write {key_out}: {error.strerror}; the key is {key}") from error
        answer = {member: value for member, value in answer.items() if member != "clusterKey"}
    if as_json:
        print_json(answer)
        return
    lines = [f"{name}: registered" if steps else f"{name}: has a new key", ""]
    for label, member in (("cluster id", "clusterId"), ("group id", "clusterGroupId")):
        if member in answer:
            lines.append(f"  {label:<12}{answer[member]}")
    if key is not None:
        where = f"in {key_out}" if key_out is not None else f"{key}    (shown this once)"
        lines.append(f"  key         {where}")
    if steps is not None:
        put = (
            "with this key in the file cluster.key"
            if key is not None and key_out is None
            else "on that cluster"
        )
        lines += ["", f"Start its agent, {put}:", "", *(f"  {line}" for line in steps.splitlines())]
    console().print(Text("\n".join(lines)))
