"""A public set is fetched once, whole or not at all, and nothing but what was published is
unpacked.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import sys
import tarfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from PIL import Image

import vitseg
from vitseg import cli
from vitseg.data import fetch
from vitseg.data.folder import read_folder
from vitseg.errors import ConfigError, DataError
from vitseg.settings import Folder

ANSWERS = {"whole": 200, "cut off": 200, "refused": 503}


class Server(ThreadingHTTPServer):
    """Serves what is in `files`; `answer` is one of ANSWERS, `asked` lists the paths that were
    asked for.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.answer = "whole"
        self.at = f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        self.server.asked.append(self.path)
        content = self.server.files[self.path.strip("/")]
        self.send_response(ANSWERS[self.server.answer])
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(
            content[: len(content) // 2] if self.server.answer == "cut off" else content
        )

    def log_message(self, *_):
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as it:
        thread = Thread(target=it.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield it
        it.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """The cache of a test, and no proxy between it and its server."""
    monkeypatch.setenv("VITSEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path / "cache" / "data"


def tar_of(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def encoded(image: Image.Image, kind: str) -> bytes:
    packed = io.BytesIO()
    image.save(packed, kind)
    return packed.getvalue()


def photo(number: int, width: int = 40, height: int = 30) -> Image.Image:
    rng = np.random.default_rng(number)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def grey(rows: list[list[int]], width: int = 40, height: int = 30) -> Image.Image:
    """The values of `rows` (2 x 2), enlarged."""
    values = np.array(rows, dtype=np.uint8).repeat(height // 2, axis=0).repeat(width // 2, axis=1)
    return Image.fromarray(values)


def publish(
    server: Server, monkeypatch: pytest.MonkeyPatch, name: str, archives: dict[str, bytes]
) -> None:
    """Serve archives as those of a set, with their hashes."""
    server.files = archives
    listed = {f"{server.at}/{k}": hashlib.sha256(v).hexdigest() for k, v in archives.items()}
    monkeypatch.setitem(fetch.SETS, name, fetch.SETS[name]._replace(archives=listed))


def without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """The archives of the pets at a port that nobody listens at."""
    pets = fetch.SETS["oxford-pets"]
    nowhere = {f"http://127.0.0.1:9/{Path(k).name}": v for k, v in pets.archives.items()}
    monkeypatch.setitem(fetch.SETS, "oxford-pets", pets._replace(archives=nowhere))


def about(folder: Path) -> dict:
    """What a fetched folder says of itself."""
    return json.loads((folder / "about.json").read_text(encoding="utf-8"))


TRIMAP = [[1, 2], [3, 2]]


@pytest.fixture
def pets(server, monkeypatch) -> Server:
    """Six training and two test images, with what the published set has too: a PNG by the name of
    .jpg, a GIF, a broken file; and a trimap with a value of its own, and one of another size.
    """
    images = {f"Birman_{i}": encoded(photo(i), "JPEG") for i in range(8)}
    images["Birman_1"] = encoded(photo(1).convert("RGBA"), "PNG")
    images["Birman_2"] = encoded(photo(2).convert("P"), "GIF")
    images["Birman_3"] = images["Birman_3"][:-200]
    trimaps = {name: encoded(grey(TRIMAP), "PNG") for name in images}
    trimaps["Birman_4"] = encoded(grey([[1, 2], [7, 2]]), "PNG")
    trimaps["Birman_6"] = encoded(grey(TRIMAP, width=20), "PNG")
    lists = {"trainval": range(6), "test": (6, 7)}
    annotations = {f"annotations/trimaps/{k}.png": v for k, v in trimaps.items()} | {
        f"annotations/{k}.txt": "".join(f"Birman_{i} 7 1 3\n" for i in v).encode()
        for k, v in lists.items()
    }
    archives = {
        "images.tar.gz": tar_of({f"images/{k}.jpg": v for k, v in images.items()}),
        "annotations.tar.gz": tar_of(
            annotations | {"annotations/trimaps/._Birman_0.png": b"not an image"}
        ),
    }
    publish(server, monkeypatch, "oxford-pets", archives)
    return server


def test_pets_become_a_folder_with_the_published_lists_as_train_and_test(pets, own_folder):
    folder = vitseg.fetch("oxford-pets")
    assert folder == own_folder / "oxford-pets"
    found = read_folder(Folder(path=str(folder)))
    assert [pair.name for pair in found.pairs] == [
        "train/Birman_0",
        "train/Birman_1",
        "train/Birman_2",
        "train/Birman_5",
        "test/Birman_7",
    ]
    assert found.code.classes == ("background", "pet")
    data = vitseg.SegmentationData(vitseg.Data(source=Folder(path=str(folder))))
    _, ids = data.load("test/Birman_7")
    assert (ids == np.asarray(grey([[1, 0], [255, 0]]))).all()
    assert data.mode == "binary" and len(data.splits["validation"]) == 1


def test_images_that_are_no_rgb_jpegs_are_kept_as_png_and_the_others_bit_for_bit(pets):
    images = vitseg.fetch("oxford-pets") / "train" / "images"
    assert sorted(p.name for p in images.iterdir()) == [
        "Birman_0.jpg",
        "Birman_1.png",
        "Birman_2.png",
        "Birman_5.jpg",
    ]
    assert (images / "Birman_0.jpg").read_bytes() == encoded(photo(0), "JPEG")
    assert (np.asarray(Image.open(images / "Birman_1.png")) == np.asarray(photo(1))).all()


def test_what_cannot_be_used_is_left_out_by_name_with_its_reason(pets, capsys):
    assert cli.main(["fetch", "oxford-pets"]) == 0
    said = capsys.readouterr()
    assert "3 left out, see about.json: Birman_3, Birman_4, Birman_6\n" in said.err
    folder = said.out.strip().splitlines()[-1]
    left_out = about(vitseg.fetch("oxford-pets"))["left_out"]
    assert folder == str(vitseg.fetch("oxford-pets"))
    assert "truncated" in left_out["Birman_3"]
    assert left_out["Birman_4"] == "the mask holds 7, which stands for no class"
    assert left_out["Birman_6"] == "image (40, 30), mask (20, 30) pixels"
    assert vitseg.check(folder).ok


def test_voc_takes_the_three_published_lists_and_the_palette_s_indices(server, monkeypatch):
    mask = grey([[0, 15], [255, 20]])
    mask.putpalette([channel for i in range(256) for channel in (255 - i, i, i)])
    root = "VOCdevkit/VOC2007"

    def archive(lists: dict[str, str]) -> bytes:
        files = {
            f"{root}/ImageSets/Segmentation/{k}.txt": f"{v}\n".encode() for k, v in lists.items()
        }
        for number in lists.values():
            files[f"{root}/JPEGImages/{number}.jpg"] = encoded(photo(int(number)), "JPEG")
            files[f"{root}/SegmentationClass/{number}.png"] = encoded(mask, "PNG")
        return tar_of(files | {f"{root}/JPEGImages/000099.jpg": b"an image without a mask"})

    archives = {
        "trainval.tar": archive({"train": "000001", "val": "000002"}),
        "test.tar": archive({"test": "000003"}),
    }
    publish(server, monkeypatch, "voc2007", archives)
    data = vitseg.SegmentationData(vitseg.Data(source=Folder(path=str(vitseg.fetch("voc2007")))))
    assert data.splits == {
        "train": ["train/000001"],
        "validation": ["validation/000002"],
        "test": ["test/000003"],
    }
    assert data.classes[15] == "person" and data.classes[20] == "tvmonitor"
    assert (data.load("test/000003")[1] == np.asarray(grey([[0, 15], [255, 20]]))).all()


def test_the_second_call_asks_no_network_and_nothing_else_is_left(pets, own_folder):
    first = vitseg.fetch("oxford-pets")
    assert pets.asked == ["/images.tar.gz", "/annotations.tar.gz"]
    pets.answer = "refused"
    assert vitseg.fetch("oxford-pets") == first
    assert len(pets.asked) == 2
    assert {p.name for p in own_folder.iterdir()} <= {"oxford-pets", "oxford-pets.lock"}
    assert about(first)["archives"].keys() == {
        f"{pets.at}/images.tar.gz",
        f"{pets.at}/annotations.tar.gz",
    }


def test_another_hash_is_refused(pets, own_folder):
    pets.files["annotations.tar.gz"] = tar_of({"annotations/test.txt": b"something else"})
    with pytest.raises(DataError, match=r"annotations\.tar\.gz: cannot be fetched .*SHA256 hash"):
        vitseg.fetch("oxford-pets")
    assert not (own_folder / "oxford-pets").exists()
    assert not (own_folder / "oxford-pets.archives" / "annotations").exists()


@pytest.mark.parametrize(
    ("answer", "why"), [("refused", "HTTPError: 503"), ("cut off", "ChunkedEncodingError")]
)
def test_a_failed_download_says_what_it_was_and_the_next_fetch_succeeds(answer, why, pets):
    pets.answer = answer
    with pytest.raises(
        DataError, match=rf"cannot be fetched \({why}.*put it into .*oxford-pets\.archives"
    ):
        vitseg.fetch("oxford-pets")
    pets.answer = "whole"
    assert vitseg.fetch("oxford-pets").is_dir()


def test_without_a_network_the_archives_can_be_brought_by_hand(pets, own_folder, monkeypatch):
    by_hand = own_folder / "oxford-pets.archives"
    by_hand.mkdir(parents=True)
    for name, content in pets.files.items():
        (by_hand / name).write_bytes(content)
    without_network(monkeypatch)
    assert (vitseg.fetch("oxford-pets") / "classes.json").is_file()


def test_no_network_is_a_sentence(pets, monkeypatch, capsys):
    without_network(monkeypatch)
    assert cli.main(["fetch", "oxford-pets"]) == 2
    assert "images.tar.gz: cannot be fetched (ConnectionError: " in capsys.readouterr().err


def test_a_conversion_that_was_cut_off_is_begun_again_without_a_download(
    pets, own_folder, monkeypatch
):
    def interrupted(mask):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(fetch, "palette_image", interrupted)
        vitseg.fetch("oxford-pets")
    assert not (own_folder / "oxford-pets").exists()
    left = own_folder / ".oxford-pets.new" / "train" / "images"  # as if it had been killed
    left.mkdir(parents=True)
    (left / "stray.jpg").write_bytes(b"of the first try")
    folder = vitseg.fetch("oxford-pets")
    assert len(pets.asked) == 2
    assert not (folder / "train" / "images" / "stray.jpg").exists()
    assert vitseg.check(folder).ok


def test_a_member_that_leads_out_of_the_folder_is_refused(server, tmp_path, monkeypatch):
    publish(
        server,
        monkeypatch,
        "oxford-pets",
        {"images.tar.gz": tar_of({"images/../../../outside.txt": b"out"})},
    )
    with pytest.raises(DataError, match=r"images\.tar\.gz: cannot be fetched .*outside"):
        vitseg.fetch("oxford-pets")
    assert not list(tmp_path.rglob("outside.txt"))


def test_a_link_that_leads_out_of_the_folder_is_refused(server, tmp_path, monkeypatch):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        link = tarfile.TarInfo("images")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path)
        tar.addfile(link)
    publish(server, monkeypatch, "oxford-pets", {"images.tar.gz": packed.getvalue()})
    with pytest.raises(DataError, match=r"images\.tar\.gz: cannot be fetched .*link"):
        vitseg.fetch("oxford-pets")


def test_an_archive_that_is_none_is_a_sentence(server, monkeypatch):
    publish(server, monkeypatch, "oxford-pets", {"images.tar.gz": b"<html>Please log in</html>"})
    with pytest.raises(DataError, match=r"images\.tar\.gz: cannot be fetched \(ReadError"):
        vitseg.fetch("oxford-pets")


def test_a_full_disk_says_how_much_room_is_needed(pets, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "extractall", full)
    with pytest.raises(
        DataError,
        match=r"\(No space left on device\)\. Make room for 1\.8 GB, or name another place in "
        r"\$VITSEG_CACHE",
    ):
        vitseg.fetch("oxford-pets")


def test_an_unknown_name_is_refused_with_the_nearest(own_folder):
    with pytest.raises(
        ConfigError,
        match=r"got 'oxfordpets'; allowed: oxford-pets, voc2007, mni-brain\. .*'oxford-pets'\?",
    ):
        vitseg.fetch("oxfordpets")
    assert not own_folder.exists()


def test_published_hashes_are_whole():
    hashes = [sha256 for s in fetch.SETS.values() for sha256 in s.archives.values()]
    assert len(set(hashes)) == 4 and all(len(bytes.fromhex(h)) == 32 for h in hashes)


def test_the_brain_has_four_classes_in_every_split_and_no_neighbours_across_splits():
    pytest.importorskip("nilearn")
    folder = vitseg.fetch("mni-brain")
    report = vitseg.check(folder)
    assert report.ok and not report.check.warnings
    assert report.check.splits == {"train": 64, "validation": 16, "test": 16}
    assert [c.name for c in report.check.classes] == [
        "background",
        "grey matter",
        "white matter",
        "rest of brain",
    ]
    assert all(images == report.check.splits for images in (c.images for c in report.check.classes))
    split_of = {int(p.stem[1:]): p.parts[-3] for p in folder.glob("*/images/*.png")}
    near = [
        (a, b) for a in split_of for b in split_of if 0 < b - a < 5 and split_of[a] != split_of[b]
    ]
    assert near == []
    assert {
        split_of[z] for z in split_of if z + 5 in split_of and split_of[z + 5] != split_of[z]
    } == set(split_of.values())
    with Image.open(folder / "validation" / "images" / "z034.png") as image:
        assert (image.mode, image.size) == ("RGB", (197, 233))
    assert json.loads((folder / "classes.json").read_text())["classes"] == list(
        fetch.SETS["mni-brain"].code.classes
    )


def test_without_nilearn_the_brain_says_what_to_install(monkeypatch, own_folder):
    monkeypatch.setitem(sys.modules, "nilearn", None)
    with pytest.raises(
        DataError, match=r"nilearn is not installed\. Install it: pip install nilearn\."
    ):
        vitseg.fetch("mni-brain")
    assert not (own_folder / "mni-brain").exists()
