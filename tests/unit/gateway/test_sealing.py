"""Sealed secrets: what opens them, and that nothing else does."""

from __future__ import annotations

import base64
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvcf_gateway.errors import SetupError
from nvcf_gateway.secrets.keys import FileKeys, create_sealing_key
from nvcf_gateway.secrets.sealing import (
    Context,
    SealingKey,
    UnknownKey,
    Unsealable,
    seal,
    sealed_with,
    unseal,
)

KEY = SealingKey.of(bytes(range(32)))
OTHER = SealingKey.of(bytes(32))
KEYS = {KEY.key_id: KEY, OTHER.key_id: OTHER}
CONTEXT = Context("account", "versions.one", "TOKEN")
texts = st.text(max_size=40)
contexts = st.builds(Context, texts, texts, texts)


@given(st.binary(max_size=2000), contexts, st.sampled_from([KEY, OTHER]))
def test_what_is_sealed_opens_with_its_key_and_context(
    value: bytes, context: Context, key: SealingKey
) -> None:
    text = seal(key, value, context)
    assert unseal(KEYS, text, context) == value
    assert sealed_with(text) == key.key_id
    assert text.isascii()


@given(st.binary(min_size=8, max_size=100))
def test_the_same_value_is_never_sealed_to_the_same_text_and_does_not_show(value: bytes) -> None:
    first, second = seal(KEY, value, CONTEXT), seal(KEY, value, CONTEXT)
    assert first != second
    data = base64.urlsafe_b64decode(first.rpartition(".")[2] + "==")
    assert value not in data


@given(contexts, contexts)
def test_it_does_not_open_in_another_context(sealed: Context, tried: Context) -> None:
    text = seal(KEY, b"value", sealed)
    if sealed == tried:
        assert unseal(KEYS, text, tried) == b"value"
        return
    with pytest.raises(Unsealable):
        unseal(KEYS, text, tried)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Context("a", "b", "cd"), Context("a", "bc", "d")),
        (Context("ab", "c", "d"), Context("a", "bc", "d")),
        (Context('a", "b', "c", "d"), Context("a", "b", "c")),
        (Context("account", "versions.one", "A"), Context("account", "versions.two", "A")),
        (Context("account", "versions.one", "A"), Context("account-two", "versions.one", "A")),
        (Context("account", "versions.one", "A"), Context("account", "versions.one", "B")),
    ],
)
def test_the_parts_of_a_context_are_kept_apart(one: Context, other: Context) -> None:
    with pytest.raises(Unsealable):
        unseal(KEYS, seal(KEY, b"value", one), other)


def test_another_key_does_not_open_it() -> None:
    text = seal(KEY, b"value", CONTEXT)
    with pytest.raises(UnknownKey, match=KEY.key_id):
        unseal({OTHER.key_id: OTHER}, text, CONTEXT)
    # Not even if it claims to be the one that sealed it.
    form, _, data = text.split(".")
    with pytest.raises(Unsealable):
        unseal(KEYS, f"{form}.{OTHER.key_id}.{data}", CONTEXT)
    with pytest.raises(Unsealable):
        unseal({KEY.key_id: OTHER}, text, CONTEXT)


@given(st.data())
def test_an_altered_text_does_not_open(data: st.DataObject) -> None:
    text = seal(KEY, b"a value of some length", CONTEXT)
    place = data.draw(st.integers(0, len(text) - 1))
    character = data.draw(st.characters(codec="utf-8").filter(lambda each: each != text[place]))
    with pytest.raises(Unsealable):
        unseal(KEYS, text[:place] + character + text[place + 1 :], CONTEXT)


@given(st.data())
def test_a_part_of_a_text_does_not_open(data: st.DataObject) -> None:
    text = seal(KEY, b"a value of some length", CONTEXT)
    end = data.draw(st.integers(0, len(text) - 1))
    for part in (text[:end], text[end + 1 :], text + "A", text + text):
        with pytest.raises(Unsealable):
            unseal(KEYS, part, CONTEXT)


@given(st.text())
def test_any_other_text_is_no_sealed_value(text: str) -> None:
    with pytest.raises(Unsealable):
        unseal(KEYS, text, CONTEXT)


def test_a_key_does_not_show() -> None:
    secret = os.urandom(32)
    assert repr(secret)[2:-1] not in repr(SealingKey.of(secret))
    with pytest.raises(ValueError, match="32 bytes"):
        SealingKey.of(b"short")


async def test_the_last_file_by_name_seals_and_all_open(tmp_path: Path) -> None:
    create_sealing_key(tmp_path / "2.key")
    keys = FileKeys(tmp_path)
    old = await keys.seal(b"value", CONTEXT)
    assert keys.is_current(old)
    # A file that comes later with an earlier name only opens: so all gateways agree, whatever came first.
    create_sealing_key(tmp_path / "1.key")
    assert keys.refresh()
    assert keys.is_current(old)
    create_sealing_key(tmp_path / "3.key")
    os.utime(tmp_path / "3.key", (0, 0))
    assert keys.refresh()
    assert not keys.is_current(old)
    new = await keys.seal(b"value", CONTEXT)
    assert sealed_with(new) != sealed_with(old)
    assert await keys.unseal(old, CONTEXT) == await keys.unseal(new, CONTEXT) == b"value"
    (tmp_path / "2.key").unlink()
    keys.refresh()
    with pytest.raises(UnknownKey):
        await keys.unseal(old, CONTEXT)


async def test_a_value_of_a_key_that_has_just_been_added_opens_at_once(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    create_sealing_key(here / "1.key")
    one = FileKeys(here)
    create_sealing_key(there / "2.key")
    text = await FileKeys(there).seal(b"value", CONTEXT)
    (here / "2.key").write_bytes((there / "2.key").read_bytes())
    one._checked -= 1
    assert await one.unseal(text, CONTEXT) == b"value"


def test_a_key_file_is_its_owners_alone_and_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "one.key"
    create_sealing_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    content = path.read_bytes()
    create_sealing_key(path)
    assert path.read_bytes() == content
    assert len(base64.b64decode(content)) == 32


@pytest.mark.parametrize("content", [b"", b"not base64!", base64.b64encode(b"short"), b"\xff" * 44])
def test_a_file_without_a_key_is_refused_without_repeating_it(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "one.key"
    path.write_bytes(content)
    with pytest.raises(SetupError, match="openssl rand -base64 32") as refused:
        FileKeys(path)
    if content:
        assert content.decode("latin-1") not in str(refused.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SetupError, match="no sealing key"):
        FileKeys(tmp_path / "empty")
