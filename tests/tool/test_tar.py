#!/usr/bin/env python3
"""What `kiln tar` promises, on real images: archives that other tools unpack to the same tree.

    test_tar.py KILN [PART OF A TEST'S NAME]

Images come from tests/images, and a few more from $KILN_FIXTURES if it is there (tests/lib/images.py).
"""
import hashlib
import os
import subprocess
import sys
import tarfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "lib"))

import extracted
import manifest
from extracted import DAMAGE, FAILED, IS_ROOT, OK, USAGE, Image, kiln


def archive(image, path, work, status=OK, source="/"):
    """An archive in a file of @work."""
    archive_path = os.path.join(work, path)
    with open(archive_path, "wb") as f:
        p = kiln("tar", *image.args, source, status=status, stdout=f)
    assert os.path.getsize(archive_path) % 10240 == 0
    return archive_path, p.text


def sockets(image):
    return [e["path"] for e in image.entries if e["type"] == "sock"]


def gnu_tar_makes_the_same_tree(work):
    if b"GNU tar" not in subprocess.run(["tar", "--version"], stdout=subprocess.PIPE).stdout:
        return
    for name in extracted.good_names():
        image = Image(extracted.has(name), name, work)
        path, messages = archive(image, name + ".tar", work)
        out = os.path.join(work, "out-" + name)
        os.mkdir(out)
        p = subprocess.run(["tar", "-x", "-f", path, "-C", out, "--xattrs", "--xattrs-include=*", "--acls"],
                           stderr=subprocess.PIPE)
        if IS_ROOT and extracted.holds_huge_files(out):
            assert p.returncode == 0, p.stderr
        lines = extracted.differences(image, out, without=sockets(image))
        assert not lines, "%s: %s" % (name, lines[:5])
        for socket in sockets(image):
            assert socket in messages


TAR_TYPES = {tarfile.REGTYPE: "file", tarfile.DIRTYPE: "dir", tarfile.SYMTYPE: "symlink", tarfile.FIFOTYPE: "fifo",
             tarfile.CHRTYPE: "chr", tarfile.BLKTYPE: "blk", tarfile.GNUTYPE_SPARSE: "file"}


def another_reader_finds_every_member(work):
    for name in ("v1.4-snapshots", "small-encrypted", "v1.39-casefold", "v1.4-default"):
        if not extracted.has(name):
            continue
        image = Image(extracted.has(name), name, work)
        path, _ = archive(image, name + ".tar", work)
        left = {e["path"]: e for e in image.entries if e["type"] != "sock"}
        with tarfile.open(path, errors="surrogateescape") as tar:
            for m in tar:
                raw = m.name.encode("utf-8", "surrogateescape")
                e = left.pop(manifest.encode(raw[2:] if raw.startswith(b"./") else raw))
                if m.islnk():
                    assert e["nlink"] > 1
                    continue
                assert TAR_TYPES[m.type] == e["type"], m.name
                assert (m.mode, m.uid, m.gid) == (e["mode"], e["uid"], e["gid"]), m.name
                if e["type"] == "symlink":
                    assert manifest.encode(m.linkname.encode("utf-8", "surrogateescape")) == e["target"]
                if e["type"] in ("chr", "blk"):
                    assert [m.devmajor, m.devminor] == e["rdev"]
                if e["type"] != "file":
                    continue
                assert m.size == e["size"], m.name
                if "sha256" in e:
                    assert hashlib.sha256(tar.extractfile(m).read()).hexdigest() == e["sha256"], m.name
        assert not left, list(left)[:5]


def holes_take_no_room(work):
    name = "v1.4-default" if extracted.has("v1.4-default") else "small-zstd-replicas2"
    image = Image(extracted.has(name), name, work)
    path, _ = archive(image, "a.tar", work)
    with tarfile.open(path, errors="surrogateescape") as tar:
        assert any(m.issparse() for m in tar) or name == "small-zstd-replicas2"
    assert os.path.getsize(path) < 64 << 20


def a_part_is_named_by_its_last_component(work):
    image = Image(extracted.has("small-zstd-replicas2"), "small-zstd-replicas2", work)
    path, _ = archive(image, "dir.tar", work, source="/dir/")
    with tarfile.open(path) as tar:
        names = tar.getnames()
    assert names[0] == "dir" and len(names) > 1 and all(n == "dir" or n.startswith("dir/") for n in names), names
    path, _ = archive(image, "text.tar", work, source="text")
    with tarfile.open(path) as tar:
        assert tar.getnames() == ["text"]
        assert tar.extractfile("text").read() == kiln("cat", *image.args, "/text").stdout


def damage_becomes_zeroes_and_the_archive_stays_whole(work):
    for name in ("corrupt/snapshots-data-bitflip", "corrupt/replicas2-data-both-replicas", "corrupt/data-bitflip"):
        if not extracted.has(name):
            continue
        image = Image(extracted.has(name), name, work)
        path, messages = archive(image, "damaged.tar", work, status=DAMAGE)
        bad = []
        with tarfile.open(path, errors="surrogateescape") as tar:
            members = {manifest.encode(m.name.encode("utf-8", "surrogateescape")[2:]): m for m in tar}
            for e in image.files():
                m = members[e["path"]]
                if m.islnk() or "sha256" not in e:
                    continue
                content = tar.extractfile(m).read()
                assert len(content) == e["size"], e["path"]
                if hashlib.sha256(content).hexdigest() != e["sha256"]:
                    bad.append(e["path"])
        assert bad and all("%s: " % path in messages and "can't be read" in messages for path in bad), (bad, messages)


def exit_statuses(work):
    image = Image(extracted.has("small-zstd-replicas2"), "small-zstd-replicas2", work)
    kiln("tar", status=USAGE)
    kiln("tar", *image.args, status=USAGE)
    kiln("tar", *image.args, "/", "/dir", status=USAGE)
    kiln("tar", *image.args, "/no-such", status=FAILED)
    assert b"usage: kiln tar" in kiln("tar", "--help").stdout


def a_reader_that_goes_away_is_no_news(work):
    image = Image(extracted.has("small-zstd-replicas2"), "small-zstd-replicas2", work)
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        assert kiln("tar", *image.args, "/", status=FAILED, stdout=write_end).text == ""
    finally:
        os.close(write_end)


def a_full_disk_is_told(work):
    image = Image(extracted.has("small-zstd-replicas2"), "small-zstd-replicas2", work)
    if os.path.exists("/dev/full"):
        with open("/dev/full", "wb") as f:
            assert "No space left" in kiln("tar", *image.args, "/", status=FAILED, stdout=f).text


if __name__ == "__main__":
    sys.exit(extracted.run_all([
        gnu_tar_makes_the_same_tree, another_reader_finds_every_member, holes_take_no_room,
        a_part_is_named_by_its_last_component, damage_becomes_zeroes_and_the_archive_stays_whole, exit_statuses,
        a_reader_that_goes_away_is_no_news, a_full_disk_is_told]))
