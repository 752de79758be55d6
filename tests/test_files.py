"""Files: whole or not there, sealed to the last bit, stored once, held by one process."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from vitseg import files
from vitseg.errors import RunError

# ---------------------------------------------------------------------- sealed


@pytest.fixture
def sealed(tmp_path) -> Path:
    file = tmp_path / "file.safetensors"
    save_file({"w": torch.arange(3.0)}, file, {"vitseg": files.UNSEALED + '{"step": 1}'})
    files.seal(file)
    return file


def test_a_sealed_file_is_still_read_by_safetensors_and_the_same_content_has_the_same_bytes(sealed):
    before = sealed.read_bytes()
    assert torch.equal(load_file(sealed)["w"], torch.arange(3.0))
    with safe_open(sealed, "pt") as opened:
        assert opened.metadata()["vitseg"].endswith('{"step": 1}')
    save_file({"w": torch.arange(3.0)}, sealed, {"vitseg": files.UNSEALED + '{"step": 1}'})
    assert files.flaw(sealed) == "it is not what was written", "no digest is in it yet"
    files.seal(sealed)
    assert sealed.read_bytes() == before


def test_a_flipped_bit_in_any_byte_of_a_sealed_file_is_seen(sealed):
    content = sealed.read_bytes()
    assert files.flaw(sealed) == ""
    for place in range(len(content)):
        spoilt = bytearray(content)
        spoilt[place] ^= 1 << place % 8
        sealed.write_bytes(spoilt)
        assert files.flaw(sealed)


@pytest.mark.parametrize("spoil", [lambda c: c[:-1], lambda c: c + b"\0", lambda c: b""])
def test_a_sealed_file_that_is_shorter_or_longer_is_seen(spoil, sealed):
    sealed.write_bytes(spoil(sealed.read_bytes()))
    assert files.flaw(sealed) == "it is not what was written"


def test_a_file_is_the_old_one_until_the_new_one_is_whole(tmp_path):
    files.write_text(tmp_path / "file", "old")
    with pytest.raises(KeyError), files.whole_file(tmp_path / "file") as aside:
        aside.write_text("half")
        raise KeyError
    assert (tmp_path / "file").read_text() == "old"
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


# ---------------------------------------------------------------------- folders with a manifest


def write(folder: Path, contents: dict[str, bytes], store: Path | None = None) -> Path:
    with files.whole_folder(folder, store or folder.with_name("store")) as aside:
        for name, content in contents.items():
            (aside / name).parent.mkdir(parents=True, exist_ok=True)
            (aside / name).write_bytes(content)
    return folder


def test_a_folder_is_what_was_written_or_says_what_is_not(tmp_path):
    folder = write(tmp_path / "folder", {"a": b"1", "b/c": b"2"})
    assert files.flaw(folder) == ""
    (folder / "new").touch()
    assert files.flaw(folder) == "new was put there"
    (folder / "b" / "c").write_bytes(b"3")
    assert files.flaw(folder) == "b/c is not what was written"
    (folder / "b" / "c").unlink()
    assert files.flaw(folder) == "c cannot be read (No such file or directory)"
    for text in ("{", "[]", '{"a": 1}'):
        (folder / files.MANIFEST).write_text(text)
        assert files.flaw(folder) == "manifest.json is torn"


def same(*paths: Path) -> bool:
    return len({path.stat().st_ino for path in paths}) == 1


def test_equal_weights_are_stored_once(tmp_path):
    """Within a folder, and across folders; what is no weights is left alone."""
    store = tmp_path / "store"
    first = {"a.safetensors": b"w", "b.safetensors": b"w", "key": b"k"}
    one = write(tmp_path / "one", first, store=store)
    second = {"x/c.safetensors": b"w", "d.safetensors": b"v", "key": b"k"}
    two = write(tmp_path / "two", second, store=store)
    assert same(one / "a.safetensors", one / "b.safetensors", two / "x" / "c.safetensors")
    assert not same(one / "key", two / "key")
    assert {name: (two / name).read_bytes() for name in second} == second
    assert files.flaw(one) == files.flaw(two) == ""
    assert not list(tmp_path.rglob(".*"))


def test_the_store_drops_what_no_folder_has_any_more_and_may_be_deleted_itself(tmp_path):
    store = tmp_path / "store"
    one = write(tmp_path / "one", {"a.safetensors": b"w"}, store=store)
    two = write(tmp_path / "two", {"a.safetensors": b"w", "b.safetensors": b"v"}, store=store)
    assert len(list(store.iterdir())) == 2
    shutil.rmtree(two)
    three = write(tmp_path / "three", {"a.safetensors": b"w"}, store=store)
    assert [p.name for p in store.iterdir()] == [files.sha256_of(one / "a.safetensors")]
    shutil.rmtree(store)
    assert files.flaw(one) == files.flaw(three) == ""


def test_what_is_damaged_in_the_store_is_not_linked_to_but_replaced(tmp_path):
    store = tmp_path / "store"
    one = write(tmp_path / "one", {"a.safetensors": b"w"}, store=store)
    (one / "a.safetensors").write_bytes(b"x")  # and so in the store
    two = write(tmp_path / "two", {"a.safetensors": b"w"}, store=store)
    three = write(tmp_path / "three", {"a.safetensors": b"w"}, store=store)
    assert [files.flaw(f) for f in (two, three)] == ["", ""]
    assert same(two / "a.safetensors", three / "a.safetensors")


@pytest.mark.parametrize("copy", ["copytree", "zip"])
def test_a_copy_is_a_folder_of_its_own(copy, tmp_path):
    store = tmp_path / "store"
    one = write(tmp_path / "one", {"a.safetensors": b"w"}, store=store)
    if copy == "copytree":
        other = Path(shutil.copytree(one, tmp_path / "other"))
    else:
        archive = shutil.make_archive(str(tmp_path / "archive"), "zip", one)
        shutil.unpack_archive(archive, tmp_path / "other")
        other = tmp_path / "other"
    shutil.rmtree(one)
    shutil.rmtree(store)
    assert files.flaw(other) == ""


def test_where_the_file_system_has_no_links_there_are_copies(tmp_path, monkeypatch):
    def refuse(path: Path, target: Path) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    store = tmp_path / "store"
    one = write(tmp_path / "one", {"a.safetensors": b"w", "b.safetensors": b"w"}, store=store)
    assert files.flaw(one) == "" and not same(one / "a.safetensors", one / "b.safetensors")
    assert not list(store.iterdir())


# ---------------------------------------------------------------------- held


def test_another_process_sees_that_a_folder_is_held_and_does_not_disturb(tmp_path):
    asked = (
        "import pathlib, sys; from vitseg.files import is_held; "
        "print(is_held(pathlib.Path(sys.argv[1])))"
    )

    def ask() -> str:
        command = [sys.executable, "-c", asked, str(tmp_path)]
        return subprocess.check_output(command, text=True).strip()

    assert ask() == "False"
    assert list(tmp_path.iterdir()) == []
    with files.held(tmp_path):
        assert (ask(), files.is_held(tmp_path)) == ("True", True)
        with pytest.raises(RunError, match="is being trained by process"), files.held(tmp_path):
            pass
    assert not files.is_held(tmp_path)


# ---------------------------------------------------------------------- signals


def test_a_signal_that_was_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with files.held_back() as asked:
            signal.raise_signal(signal.SIGHUP)
        assert asked == [] and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_interrupt_takes_effect_at_once():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), files.held_back() as asked:
            signal.raise_signal(signal.SIGINT)
            assert asked == [signal.SIGINT]
            signal.raise_signal(signal.SIGINT)
            pytest.fail("it was held back")
    finally:
        signal.signal(signal.SIGINT, before)
