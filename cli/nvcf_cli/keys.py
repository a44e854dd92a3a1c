"""The API keys that a local platform makes for itself, once."""

import json
import time
from pathlib import Path

from nvcf_broker.files import write_private
from nvcf_cli.errors import CliError
from nvcf_cli.state import Installation
from nvcf_proto.errors import ContractError
from nvcf_proto.models import ApiKey, Scope
from nvcf_proto.models.keys import api_key_id, hash_api_key, new_api_key

LOCAL_ACCOUNT = "local"


def ensure_keys(installation: Installation) -> None:
    """Make the admin key, the agent's key, and the records (hashes only) that a gateway takes them from."""
    records = [
        _ensure_key(installation.admin_key, Scope.ADMIN, "made by nvcf up for its user"),
        _ensure_key(installation.agent_key, Scope.AGENT, "made by nvcf up for its agent"),
    ]
    document = json.dumps([record.to_dict() for record in records], indent=1)
    write_private(installation.bootstrap_keys, document + "\n")


def _ensure_key(path: Path, scope: Scope, description: str) -> ApiKey:
    if not path.exists():
        write_private(path, new_api_key() + "\n")
    text = read_key(path)
    try:
        key_id = api_key_id(text)
    except ContractError as error:
        raise CliError(f"{path} holds no API key: delete it to get a new one") from error
    return ApiKey(
        id=key_id,
        secret_hash=hash_api_key(text),
        nca_id=LOCAL_ACCOUNT,
        scopes=(scope,),
        created_at=time.time(),
        description=description,
    )


def read_key(path: Path) -> str:
    """The API key in a file. Raises `CliError`."""
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise CliError(f"cannot read the key file {path}: {error}") from error
    if not text or any(character.isspace() for character in text):
        raise CliError(f"{path} does not hold one API key")
    return text
