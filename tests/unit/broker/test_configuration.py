"""Credentials and the configuration text of the local broker."""

from pathlib import Path

import pytest

from nvcf_broker.configuration import (
    BrokerFiles,
    BrokerIdentity,
    ensure_credentials,
    new_account_seed,
    public_key,
    read_credentials,
    read_identity,
    render_configuration,
    write_identity,
)
from nvcf_broker.errors import BrokerError
from nvcf_proto.budget import GIB, DiskBudget


def test_credentials_are_made_once(tmp_path: Path) -> None:
    files = BrokerFiles(tmp_path / "broker")
    ensure_credentials(files)
    first = read_credentials(files.credentials), files.callout_seed.read_text()
    ensure_credentials(files)
    assert (read_credentials(files.credentials), files.callout_seed.read_text()) == first
    assert first[0][0] == "platform"
    assert len(first[0][1]) >= 40


def test_account_keys_have_the_brokers_form() -> None:
    seed = new_account_seed()
    assert seed.startswith("SA")
    assert public_key(seed).startswith("A")
    with pytest.raises(BrokerError, match="damaged"):
        public_key("nonsense")


def test_values_cannot_break_out_of_their_quotes() -> None:
    text = render_configuration(
        BrokerIdentity('a"\nhttp: 0.0.0.0:80', 4222),
        store=Path('/data/"}'),
        budget=DiskBudget(GIB),
        password='p"; }',
        control_password='c"; }',
        system_password='s"; }',
        callout_public_key="A",
        tags=['x"]'],
    )
    assert "\nhttp" not in text
    assert r"\"; }" in text


def test_a_damaged_identity_is_replaced(tmp_path: Path) -> None:
    files = BrokerFiles(tmp_path)
    assert read_identity(files) is None
    write_identity(files, BrokerIdentity("name", 4222))
    assert read_identity(files) == BrokerIdentity("name", 4222)
    for damaged in ("", "[]", '{"serverName": "x"}', "{"):
        files.identity.write_text(damaged)
        assert read_identity(files) is None
