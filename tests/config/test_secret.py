"""The identifier secret: made once, kept private, never shown."""

from __future__ import annotations

import base64
import contextlib
import os
import threading
from pathlib import Path

import pytest

from freshscore.config.errors import SettingsError
from freshscore.config.secret import (
    FILE_NAME,
    FORMER_FILE_NAME,
    Secret,
    keep_secret,
    load_secret,
    random_seed,
    shared_secret,
    write_secret,
)

HEX = "00112233445566778899aabbccddeeff"


def test_memory_needs_none_and_gets_a_random_one(tmp_path: Path) -> None:
    first, second = load_secret(None, {}), load_secret(None, {})
    assert first.key("entity") != second.key("entity")
    assert keep_secret(first, tmp_path) == tmp_path / FILE_NAME


def test_secret_is_made_beside_the_store_once_it_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "store"
    first = load_secret(folder, {})
    assert not folder.exists()
    assert keep_secret(first, folder) == folder / FILE_NAME
    second = load_secret(folder, {})
    assert keep_secret(second, folder) is None
    assert first.key("entity") == second.key("entity")
    assert second.origin == str(folder / FILE_NAME)
    assert (folder / FILE_NAME).stat().st_mode & 0o777 == 0o600
    assert [path.name for path in folder.iterdir()] == [FILE_NAME]


def test_another_secret_is_never_replaced(tmp_path: Path) -> None:
    first, second = load_secret(tmp_path, {}), load_secret(tmp_path, {})
    keep_secret(first, tmp_path)
    with pytest.raises(SettingsError, match="another process made one"):
        keep_secret(second, tmp_path)
    assert load_secret(tmp_path, {}).key_id == first.key_id


def test_the_variable_counts_before_the_file(tmp_path: Path) -> None:
    written = load_secret(tmp_path, {})
    keep_secret(written, tmp_path)
    given = load_secret(tmp_path, {"FRESHSCORE_SECRET": HEX})
    assert given.origin == "FRESHSCORE_SECRET"
    assert given.key_id != written.key_id


def test_with_the_variable_nothing_is_written(tmp_path: Path) -> None:
    assert keep_secret(load_secret(tmp_path, {"FRESHSCORE_SECRET": HEX}), tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_hexadecimal_and_base64_of_the_same_bytes_are_one_secret() -> None:
    text = base64.b64encode(bytes.fromhex(HEX)).decode()
    secrets = [load_secret(None, {"FRESHSCORE_SECRET": one}) for one in (HEX, text, f" {HEX}\n")]
    assert len({one.key("entity") for one in secrets}) == 1


def test_keys_differ_by_purpose_and_never_change() -> None:
    """Stored tokens depend on them: a change here makes every store unreadable."""
    secret = load_secret(None, {"FRESHSCORE_SECRET": HEX})
    assert secret.key("entity").hex() == "de861c87caabd051e6c9663d64225f96"
    assert secret.key("record").hex() == "98aead644f53697ead3d9de5ea39381b"
    assert secret.key_id == "b2a1c719"
    assert len(secret.key("entity", 32)) == 32


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0011", "2 bytes; 16 to 64"),
        ("not a secret at all!", "neither hexadecimal nor base64"),
        ("00" * 65, "65 bytes; 16 to 64"),
    ],
)
def test_bad_secret_is_refused_without_showing_it(text: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said) as caught:
        load_secret(None, {"FRESHSCORE_SECRET": text})
    assert text not in str(caught.value)


def test_secret_is_not_in_its_representation() -> None:
    secret = load_secret(None, {"FRESHSCORE_SECRET": HEX})
    assert HEX not in repr(secret)
    assert repr(bytes.fromhex(HEX)) not in repr(secret)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o606])
def test_file_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    keep_secret(load_secret(tmp_path, {}), tmp_path)
    (tmp_path / FILE_NAME).chmod(mode)
    with pytest.raises(SettingsError, match=f"{mode:04o}.*0600"):
        load_secret(tmp_path, {})


@pytest.mark.parametrize("content", ["", "zz\n", "0011\n"])
def test_damaged_file_is_refused_and_left_as_it_is(tmp_path: Path, content: str) -> None:
    """A new secret in its place would make the store beside it unreadable for good."""
    file = tmp_path / FILE_NAME
    file.write_text(content, encoding="ascii")
    file.chmod(0o600)
    with pytest.raises(SettingsError):
        load_secret(tmp_path, {})
    assert file.read_text(encoding="ascii") == content


def test_folder_that_cannot_be_made_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="ascii")
    with pytest.raises(SettingsError, match="file"):
        keep_secret(Secret(bytes(32), "this process"), tmp_path / "file" / "store")


def test_of_many_that_keep_a_secret_at_once_one_does(tmp_path: Path) -> None:
    kept: list[Secret] = []
    start = threading.Barrier(8)

    def open_store() -> None:
        secret = load_secret(tmp_path, {})
        start.wait()
        with contextlib.suppress(SettingsError):
            keep_secret(secret, tmp_path)
            kept.append(secret)

    threads = [threading.Thread(target=open_store) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [one.key_id for one in kept] == [load_secret(tmp_path, {}).key_id]
    assert os.listdir(tmp_path) == [FILE_NAME]


def test_seeds_are_not_repeated() -> None:
    assert random_seed() != random_seed()
    assert 0 <= random_seed() < 2**63


SINCE_MS = 1_764_547_200_000


def written(secret: Secret, path: Path) -> str:
    write_secret(secret, path)
    return path.read_text("ascii").strip()


def test_a_successor_has_tokens_of_its_own_and_the_same_records(tmp_path: Path) -> None:
    """Two rotations: the first secret's keys of records come through both."""
    first = load_secret(None, {"FRESHSCORE_SECRET": HEX})
    texts = [HEX]
    secrets = [first]
    for number in range(2):
        made = secrets[-1].successor(SINCE_MS + number)
        texts.append(written(made, tmp_path / f"{number}"))
        variables = {"FRESHSCORE_SECRET": texts[-1], "FRESHSCORE_FORMER_SECRET": texts[-2]}
        read = shared_secret(None, variables)
        assert read.key_id == made.key_id
        assert read.since_ms == SINCE_MS + number
        assert read.former is not None
        assert read.former.key_id == secrets[-1].key_id
        secrets.append(read)
    for purpose in ("record", "digest", "dead letter"):
        assert len({one.key(purpose) for one in secrets}) == 1
    assert len({one.key("token") for one in secrets}) == 3
    assert len({one.key_id for one in secrets}) == 3
    assert {one.record_id for one in secrets} == {first.key_id}
    alone = shared_secret(None, {"FRESHSCORE_SECRET": texts[-1]})
    assert (alone.former, alone.key_id) == (None, secrets[-1].key_id)


def test_two_secrets_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    successor = written(
        load_secret(None, {"FRESHSCORE_SECRET": HEX}).successor(SINCE_MS), tmp_path / "1"
    )
    other = "ff" * 16
    for given, former in ((HEX, other), (successor, other), (HEX, successor), (HEX, HEX)):
        with pytest.raises(SettingsError, match="is no successor of") as caught:
            shared_secret(None, {"FRESHSCORE_SECRET": given, "FRESHSCORE_FORMER_SECRET": former})
        assert successor[:16] not in str(caught.value)
    with pytest.raises(SettingsError, match="are the same secret"):
        shared_secret(None, {"FRESHSCORE_SECRET": successor, "FRESHSCORE_FORMER_SECRET": successor})


def test_a_successor_that_lost_a_part_is_refused_or_another(tmp_path: Path) -> None:
    first = load_secret(None, {"FRESHSCORE_SECRET": HEX})
    made = first.successor(SINCE_MS)
    text = written(made, tmp_path / "next")
    for at in range(0, len(text), 7):
        damaged = text[:at] + text[at + 1 :]
        with contextlib.suppress(SettingsError):
            assert load_secret(None, {"FRESHSCORE_SECRET": damaged}).key_id != made.key_id
    assert text[:16] not in repr(made)
    with pytest.raises(SettingsError, match="there is one already"):
        write_secret(first.successor(SINCE_MS), tmp_path / "next")


def test_the_former_secret_may_be_a_file_beside_the_secret(tmp_path: Path) -> None:
    first = load_secret(None, {"FRESHSCORE_SECRET": HEX})
    write_secret(first, tmp_path / FORMER_FILE_NAME)
    write_secret(first.successor(SINCE_MS), tmp_path / FILE_NAME)
    found = shared_secret(tmp_path, {})
    assert found.former is not None
    assert found.former.key_id == first.key_id


@pytest.mark.parametrize("since_ms", [0, -1, 4_102_444_800_000])
def test_no_secret_begins_at_an_instant_that_no_payment_has(since_ms: int) -> None:
    with pytest.raises(
        SettingsError, match=r"no secret begins at (\d{4}-\d\d-\d\d .* UTC|-1 ms): "
    ):
        load_secret(None, {"FRESHSCORE_SECRET": HEX}).successor(since_ms)
