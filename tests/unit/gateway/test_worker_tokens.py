"""Worker tokens: which keys sign, which verify, and what is refused."""

from __future__ import annotations

import base64
import json
import os
import stat
import time
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from nvcf_gateway.access.signing_keys import FIRST_KEY_NAME, SigningKeys, create_key
from nvcf_gateway.access.worker_tokens import InvalidWorkerToken, WorkerTokens
from nvcf_gateway.errors import SetupError
from nvcf_proto.ids import new_id

NOW = 1_800_000_000.0
FUNCTION, VERSION, INSTANCE = new_id(), new_id(), new_id()


def issue(tokens: WorkerTokens, now: float = NOW) -> str:
    return tokens.issue(function_id=FUNCTION, version_id=VERSION, instance_id=INSTANCE, nca_id="a", now=now)[
        0
    ]


def add(folder: Path, name: str, age: float) -> None:
    create_key(folder / name)
    changed = time.time() - age
    os.utime(folder / name, (changed, changed))


def kid(token: str) -> str:
    return str(jwt.get_unverified_header(token)["kid"])


def test_a_first_key_is_created_and_private(tmp_path: Path) -> None:
    for path, file in ((tmp_path / "one.pem", tmp_path / "one.pem"), (tmp_path, tmp_path / FIRST_KEY_NAME)):
        if path == tmp_path:
            (tmp_path / "one.pem").unlink()
        first = SigningKeys(path).ring.signer.key_id
        assert SigningKeys(path).ring.signer.key_id == first
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_the_newest_key_signs_and_all_verify(tmp_path: Path) -> None:
    add(tmp_path, "b.pem", age=300)
    old = WorkerTokens(SigningKeys(tmp_path))
    old_token = issue(old)
    add(tmp_path, "a.pem", age=200)
    add(tmp_path, "c.pem", age=400)
    both = WorkerTokens(SigningKeys(tmp_path))
    token = issue(both)
    assert kid(token) != kid(old_token)
    assert both.verify(token, NOW) == both.verify(old_token, NOW)
    (tmp_path / "b.pem").unlink()
    with pytest.raises(InvalidWorkerToken):
        WorkerTokens(SigningKeys(tmp_path)).verify(old_token, NOW)


def test_of_files_of_the_same_second_the_last_name_signs(tmp_path: Path) -> None:
    for name in ("2026-02.pem", "2026-03.pem", "2026-01.pem"):
        create_key(tmp_path / name)
        os.utime(tmp_path / name, (1_700_000_000.1, 1_700_000_000.9))
    alone = SigningKeys(tmp_path / "2026-03.pem").ring.signer.key_id
    assert SigningKeys(tmp_path).ring.signer.key_id == alone


def test_keys_that_come_are_used_and_broken_files_change_nothing(tmp_path: Path) -> None:
    add(tmp_path, "a.pem", age=300)
    keys = SigningKeys(tmp_path)
    tokens = WorkerTokens(keys)
    first = kid(issue(tokens))
    assert not keys.refresh()
    add(tmp_path, "b.pem", age=200)
    assert keys.refresh()
    second = kid(issue(tokens))
    assert second != first
    (tmp_path / "c.pem").write_text("nothing of the kind")
    assert not keys.refresh()
    assert kid(issue(tokens)) == second
    for file in tmp_path.iterdir():
        file.unlink()
    assert not keys.refresh()
    assert kid(issue(tokens)) == second


def test_tokens_of_before_that_name_no_key_are_good(tmp_path: Path) -> None:
    add(tmp_path, "a.pem", age=300)
    old = SigningKeys(tmp_path)
    old_key = old.ring.signer.private
    claims = jwt.decode(issue(WorkerTokens(old)), options={"verify_signature": False})
    nameless = jwt.encode(claims, old_key, algorithm="EdDSA")
    add(tmp_path, "b.pem", age=200)
    assert WorkerTokens(SigningKeys(tmp_path)).verify(nameless, NOW).instance_id == INSTANCE


def test_forged_tokens_are_refused(tmp_path: Path) -> None:
    add(tmp_path, "a.pem", age=300)
    keys = SigningKeys(tmp_path)
    tokens = WorkerTokens(keys)
    good = issue(tokens)
    claims = jwt.decode(good, options={"verify_signature": False})
    public = keys.ring.signer.public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    head, body, signature = good.split(".")
    none = base64.urlsafe_b64encode(json.dumps({"alg": "none", "kid": kid(good)}).encode()).decode()
    create_key(tmp_path / "foreign.key")
    foreign = SigningKeys(tmp_path / "foreign.key").ring.signer.private
    forged = [
        "",
        "x.y.z",
        f"{head}.{body}.",
        f"{head}.{body}.{signature[:-4]}AAAA",
        f"{none.rstrip('=')}.{body}.",
        jwt.encode(claims, public, algorithm="HS256", headers={"kid": kid(good)}),
        jwt.encode(claims, foreign, algorithm="EdDSA", headers={"kid": kid(good)}),
        jwt.encode(claims, foreign, algorithm="EdDSA", headers={"kid": "unknown"}),
        jwt.encode(claims, foreign, algorithm="EdDSA"),
        jwt.encode({**claims, "aud": "caller"}, keys.ring.signer.private, algorithm="EdDSA"),
        jwt.encode({**claims, "iss": "else"}, keys.ring.signer.private, algorithm="EdDSA"),
    ]
    for token in forged:
        with pytest.raises(InvalidWorkerToken):
            tokens.verify(token, NOW)


def test_a_token_ends(tmp_path: Path) -> None:
    tokens = WorkerTokens(SigningKeys(tmp_path / "a.pem"), life=60)
    token = issue(tokens)
    assert tokens.verify(token, NOW + 59)
    with pytest.raises(InvalidWorkerToken, match="expired"):
        tokens.verify(token, NOW + 60)


def test_a_file_without_an_ed25519_key_is_reported_in_one_line(tmp_path: Path) -> None:
    other = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for content in (b"", b"x", other):
        (tmp_path / "a.pem").write_bytes(content)
        with pytest.raises(SetupError) as caught:
            SigningKeys(tmp_path)
        assert "\n" not in str(caught.value)
