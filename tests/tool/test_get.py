#!/usr/bin/env python3
"""What `kiln get` promises, on real images.

    test_get.py KILN [PART OF A TEST'S NAME]

Images come from tests/images, and a few more from $KILN_FIXTURES if it is there (tests/lib/images.py).
"""
import json
import os
import signal
import stat
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "lib"))

import extracted
import images
import manifest
from extracted import DAMAGE, FAILED, IS_ROOT, OK, USAGE, Image, kiln


def get_all(image, directory, *options, status=OK):
    """Everything of an image into a new directory. The JSON summary, and the messages."""
    if not extracted.holds_huge_files(os.path.dirname(directory)) and image.files(extracted.HUGE_BYTES) and status == OK:
        status = FAILED
    p = kiln("get", "-r", "--json", *options, *image.args, "/", directory, status=status)
    return json.loads(p.stdout), p.text


def trees_are_what_their_manifests_say(work):
    for name in extracted.good_names():
        image = Image(extracted.has(name), name, work)
        directory = os.path.join(work, "out-" + name)
        get_all(image, directory)
        lines = extracted.differences(image, directory)
        assert not lines, "%s: %s" % (name, lines[:5])


def holes_stay_holes_and_links_links(work):
    for name in ("v1.4-snapshots", "small-zstd-replicas2", "v1.4-default"):
        if not extracted.has(name):
            continue
        image = Image(extracted.has(name), name, work)
        directory = os.path.join(work, "out-" + name)
        get_all(image, directory)
        listed = {}
        for line in kiln("ls", "-R", "--json", *image.args, "/").stdout.splitlines():
            e = json.loads(line)
            listed[e["path"].lstrip("/")] = e

        inodes, sparse = {}, 0
        for e in image.files():
            path = os.path.join(os.fsencode(directory), manifest.decode(e["path"]))
            if not os.path.lexists(path):
                continue
            st = os.lstat(path)
            if e["nlink"] > 1:
                key = (e.get("subvol", 1), e["ino"])
                assert inodes.setdefault(key, st.st_ino) == st.st_ino, "%s is no hardlink" % e["path"]
            if e["size"] >= 65536 and e["path"] in listed and listed[e["path"]]["sectors"] * 512 < e["size"] / 2:
                sparse += 1
                assert st.st_blocks * 512 < e["size"] / 2, "%s has lost its holes" % e["path"]
        assert inodes or sparse, name


def the_summary_counts_everything(work):
    image = Image(extracted.has("small-zstd-replicas2"), "small-zstd-replicas2", work)
    summary, messages = get_all(image, os.path.join(work, "out"))
    kinds = {}
    inodes = set()
    for e in image.entries:
        kind = "hardlink" if e["type"] == "file" and e["ino"] in inodes else e["type"]
        inodes.add(e["ino"])
        kinds[kind] = kinds.get(kind, 0) + 1
    assert summary["files"] == kinds["file"] and summary["directories"] == kinds["dir"], summary
    assert summary["symlinks"] == kinds["symlink"] and summary["hardlinks"] == kinds.get("hardlink", 0), summary
    assert summary["specials"] == kinds.get("fifo", 0) + kinds.get("chr", 0) + kinds.get("blk", 0), summary
    assert 0 < summary["bytes"] <= sum(e["size"] for e in image.files()), summary
    for empty in ("damaged", "lost", "refused", "failed", "skipped"):
        assert summary[empty] == [], summary
    assert not summary["interrupted"] and not summary["lists_are_cut"]
    if IS_ROOT:
        assert messages == "" and summary["not_kept"] == {}, messages


def single_files_go_into_directories_or_to_new_names(work):
    image = Image(extracted.has("small-zstd-replicas2"), "small-zstd-replicas2", work)
    into = os.path.join(work, "into")
    os.mkdir(into)

    def content(*path):
        with open(os.path.join(*path), "rb") as f:
            return f.read()

    kiln("get", *image.args, "/text", into)
    kiln("get", *image.args, "text", os.path.join(work, "new"))
    kiln("get", *image.args, "/README", "/noise", "/link", into)
    want = kiln("cat", *image.args, "/text").stdout
    assert content(into, "text") == want and content(work, "new") == want
    assert sorted(os.listdir(into)) == ["README", "link", "noise", "text"]
    assert os.path.islink(os.path.join(into, "link"))
    kiln("get", "-H", *image.args, "/link", os.path.join(work, "followed"))
    assert os.path.isfile(os.path.join(work, "followed")) and not os.path.islink(os.path.join(work, "followed"))

    # Trees: under their own name in what exists, else under the new name.
    kiln("get", "-r", *image.args, "/dir", into)
    kiln("get", "-r", *image.args, "/dir/", os.path.join(work, "tree"))
    assert sorted(os.listdir(os.path.join(into, "dir"))) == sorted(os.listdir(os.path.join(work, "tree"))) != []
    # The root has no name of its own.
    os.mkdir(os.path.join(work, "root"))
    kiln("get", "-r", *image.args, "/", os.path.join(work, "root"))
    assert "README" in os.listdir(os.path.join(work, "root"))


def wrong_arguments_and_failures_have_their_exit_status(work):
    image = Image(extracted.has("small-zstd-replicas2"), "small-zstd-replicas2", work)
    out = os.path.join(work, "out")
    kiln("get", status=USAGE)
    kiln("get", *image.args, "/text", status=USAGE)
    kiln("get", "--no-such-option", *image.args, "/text", out, status=USAGE)
    assert b"usage: kiln get" in kiln("get", "--help").stdout
    # A directory without -r, several into no directory, no such parent, no such file; others are got all the same.
    assert "-r" in kiln("get", *image.args, "/dir", out, status=FAILED).text
    kiln("get", *image.args, "/text", "/README", out, status=FAILED)
    kiln("get", *image.args, "/text", os.path.join(work, "no", "such"), status=FAILED)
    kiln("get", *image.args, "/text", os.path.join(work, "new") + "/", status=FAILED)
    assert not os.path.lexists(out)
    os.mkdir(out)
    p = kiln("get", *image.args, "/no-such", "/text", out, status=FAILED)
    assert "/no-such" in p.text and os.listdir(out) == ["text"]


def what_exists_is_replaced_only_when_asked(work):
    image = Image(extracted.has("small-zstd-replicas2"), "small-zstd-replicas2", work)
    out = os.path.join(work, "out")
    mine = os.path.join(out, "text")
    os.mkdir(out)
    with open(mine, "w") as f:
        f.write("mine")
    p = kiln("get", *image.args, "/text", out, status=FAILED)
    assert "--overwrite" in p.text and open(mine).read() == "mine"
    kiln("get", "--overwrite", *image.args, "/text", out)
    assert open(mine, "rb").read() == kiln("cat", *image.args, "/text").stdout
    # Directories are entered without that: what is missing there comes, of all else each is told.
    os.unlink(mine)
    kiln("get", "-r", *image.args, "/", out)
    missing = next(e["path"] for e in image.files() if "/" in e["path"] and "\\" not in e["path"] and e["nlink"] == 1)
    os.unlink(os.path.join(out, missing))
    assert "text: exists at the destination (--overwrite" in kiln("get", "-r", *image.args, "/", out, status=FAILED).text
    assert os.path.exists(os.path.join(out, missing))
    # A second time over a whole tree: nothing is lost, nothing left behind.
    kiln("get", "-r", "--overwrite", *image.args, "/", out)
    kiln("get", "-r", "--overwrite", *image.args, "/", out)
    lines = extracted.differences(image, out)
    assert not lines, lines[:5]


def damaged_data_is_told_and_the_rest_is_right(work):
    for name in ("corrupt/snapshots-data-bitflip", "corrupt/replicas2-data-both-replicas", "corrupt/data-bitflip"):
        folder = extracted.has(name)
        if not folder:
            continue
        image = Image(folder, name, work)
        good = Image(folder, images.damage(folder, name[len("corrupt/"):])["base"], work)
        out, reference = os.path.join(work, "out" + name[8:]), os.path.join(work, "ref" + name[8:])
        get_all(good, reference)
        summary, messages = get_all(image, out, status=DAMAGE)

        damaged = {}
        for d in summary["damaged"]:
            damaged.setdefault(d["path"].lstrip("/"), []).append((d["offset"], d["length"]))
            assert "%s: %d bytes at offset %d" % (d["path"], d["length"], d["offset"]) in messages, messages
        assert damaged and summary["damaged_files"] == len(damaged), summary
        assert summary["damaged_bytes"] == sum(length for ranges in damaged.values() for _, length in ranges)
        lines = extracted.differences(image, out, without=damaged)
        assert not lines, lines[:5]
        for path, ranges in damaged.items():
            with open(os.path.join(out, path), "rb") as f, open(os.path.join(reference, path), "rb") as r:
                have, want = f.read(), bytearray(r.read())
            for offset, length in ranges:
                want[offset:offset + length] = bytes(length)
            assert have == want, "%s differs outside of what is damaged" % path


def damaged_trees_lose_what_is_told_and_nothing_else(work):
    names = ["corrupt/" + n for f in images.folders() for n in images.damaged_names(f)
             if n.endswith(("inodes-leaf", "xattrs-leaf", "extents-leaf", "dirents-leaf"))]
    for name in names:
        image = Image(extracted.has(name), name, work)
        out = os.path.join(work, "out")
        summary, _ = get_all(image, out, status=DAMAGE)
        told = {t["path"].lstrip("/") or "." for kind in ("damaged", "lost") for t in summary[kind]}
        assert told, summary
        if not os.path.exists(out):
            assert told == {"."}
            continue
        # A file with several names is told under the first.
        inodes = {(e.get("subvol", 1), e["ino"]) for e in image.entries if e["path"] in told}
        told |= {e["path"] for e in image.entries if (e.get("subvol", 1), e["ino"]) in inodes}
        for line in extracted.differences(image, out):
            path = line.split(": ")[0]
            above = path
            while above not in told and "/" in above:
                above = above.rsplit("/", 1)[0]
            # Below a directory whose entries are lost, names are missing; links to what is missing are fewer.
            assert above in told or "." in told or ": nlink: " in line or "size" in line, (name, line)
        subprocess.run(["rm", "-rf", out], check=True)


def undamaged_copies_serve(work):
    for name in ("corrupt/replicas2-extents-leaf-one-replica", "corrupt/snapshots-sb-primary-zeroed"):
        image = Image(extracted.has(name), name, work)
        out = os.path.join(work, "out" + name[8:])
        summary, _ = get_all(image, out)
        lines = extracted.differences(image, out)
        assert summary["damaged"] == [] and not lines, lines[:5]


def without_root_what_needs_it_is_told_and_left(work):
    name = "v1.4-default" if extracted.has("v1.4-default") else "v1.4-snapshots"
    image = Image(extracted.has(name), name, work)
    out = os.path.join(work, "out")
    options = {}
    if IS_ROOT:
        # As nobody, who must reach the image and the tool.
        os.chmod(work, 0o777)
        for path in (image.work, image.args[-1]):
            os.chown(path, 65534, 65534)
        options = {"user": 65534, "group": 65534, "extra_groups": []}
        if subprocess.run(["true"], **options).returncode or not reachable(sys.argv[1], options):
            return
    huge_fails = image.files(extracted.HUGE_BYTES) and not extracted.holds_huge_files(work)
    p = kiln("get", "-r", "--json", *image.args, "/", out, status=FAILED if huge_fails else OK, **options)
    summary = json.loads(p.stdout)
    owned = [e for e in image.entries if e["uid"] != 65534]
    assert summary["not_kept"]["owner"] >= len(owned) // 2, summary["not_kept"]
    for e in image.entries:
        path = os.path.join(os.fsencode(out), manifest.decode(e["path"]))
        if e["type"] in ("chr", "blk"):
            assert not os.path.lexists(path)
            assert any(s["path"].lstrip("/") == e["path"] for s in summary["skipped"])
        elif e["type"] != "symlink" and os.path.lexists(path):
            assert stat.S_IMODE(os.lstat(path).st_mode) == e["mode"] & ~(stat.S_ISUID | stat.S_ISGID), e["path"]


def reachable(path, options):
    return subprocess.run(["test", "-x", os.path.abspath(path)], **options).returncode == 0


def a_full_destination_stops_without_half_files(work):
    if not IS_ROOT or subprocess.run(["unshare", "-m", "true"], stderr=subprocess.DEVNULL).returncode:
        return
    image = Image(extracted.has("small-zstd-replicas2"), "small-zstd-replicas2", work)
    full = os.path.join(work, "full")
    os.mkdir(full)
    script = ('mount -t tmpfs -o size=64k none "$0" || exit 99; cd "$0"; "$@"; echo status $?; '
              'find . -type f -printf "%s %p\\n"')
    p = subprocess.run(["unshare", "-m", "sh", "-c", script, full, os.path.abspath(sys.argv[1]), "get", "-r", *image.args, "/",
                        "./new"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if p.returncode == 99:
        return
    lines = p.stdout.splitlines()
    assert lines[0] == b"status 1" and b"No space left" in p.stderr, (lines, p.stderr)
    sizes = {manifest.decode(e["path"]): e["size"] for e in image.files()}
    for line in lines[1:]:
        size, path = line.split(b" ", 1)
        assert sizes[path[len("./new/"):]] == int(size), line


def an_interrupt_leaves_no_half_file(work):
    device, out = os.path.join(work, "big.img"), os.path.join(work, "big")
    subprocess.run([os.environ["KILN_BUILD_IMAGE"], device, "--files", "1", "--file-bytes", str(256 << 20)], check=True)
    # The copy may be done before the signal comes: then once more.
    for _ in range(100):
        p = subprocess.Popen([os.path.abspath(sys.argv[1]), "get", "--json", device, "/f0", out],
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        while not os.path.lexists(out) and p.poll() is None:
            time.sleep(0.001)
        p.send_signal(signal.SIGINT)
        stdout, stderr = p.communicate()
        if p.returncode:
            break
        os.unlink(out)
    extracted.check_ended("get", p.returncode, stderr.decode(), FAILED)
    assert json.loads(stdout)["interrupted"] and b"interrupted" in stderr
    assert not os.path.lexists(out)
    os.unlink(device)


if __name__ == "__main__":
    sys.exit(extracted.run_all([
        trees_are_what_their_manifests_say, holes_stay_holes_and_links_links, the_summary_counts_everything,
        single_files_go_into_directories_or_to_new_names, wrong_arguments_and_failures_have_their_exit_status,
        what_exists_is_replaced_only_when_asked, damaged_data_is_told_and_the_rest_is_right,
        damaged_trees_lose_what_is_told_and_nothing_else, undamaged_copies_serve,
        without_root_what_needs_it_is_told_and_left, a_full_destination_stops_without_half_files,
        an_interrupt_leaves_no_half_file]))
