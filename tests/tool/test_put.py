#!/usr/bin/env python3
"""What `kiln put` and `kiln format --source` promise.

    test_put.py KILN

$KILN_UPSTREAM names upstream's tool (bcachefs of version 1.4.1): with it, filesystems are also shown to its fsck.
$KILN_FIXTURES is a folder with make_tree.py, which makes a tree of everything there is.
"""
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "lib"))

import changed
import changes
import manifest
import tap
from changed import FAILED, IS_ROOT, OK, USAGE, kiln, new_image

MIB = 1 << 20


def without_links_of_directories(entries):
    return [{k: v for k, v in e.items() if k != "nlink" or e["type"] != "dir"} for e in entries]


def same_tree(image, path, want, work, without=()):
    """What is in the image is what is in directory @want, in everything."""
    out = os.path.join(work, "out")
    kiln("get", "-r", image, path, out)
    have, want = (without_links_of_directories(e for e in manifest.tree(d)
                                               if e["path"] not in ("lost+found", *without)) for d in (out, want))
    tap.same(path, manifest.differences(want, have))
    shutil.rmtree(out)


def tree(work):
    top = os.path.join(work, "tree")
    changed.make_tree(top)
    return top


def trees_come_back_as_they_were(work):
    top, image = tree(work), new_image(work)
    kiln("put", "-r", image, top, "/")
    same_tree(image, "/tree", top, work)
    kiln("put", "-r", image, top, "/new/name", status=FAILED)
    kiln("put", "-r", image, top + "/", "/new")
    same_tree(image, "/new", top, work)
    changed.check(image)


def what_is_in_a_directory_goes_into_another(work):
    top = tree(work)
    for image in (new_image(work), new_image(work, "--source", top, name="source.img")):
        if image.endswith("a.img"):
            kiln("put", "-r", image, top + "/.", "/")
        same_tree(image, "/", top, work)
        changed.check(image)
    # What came from there goes there again: lost+found exists everywhere.
    out = os.path.join(work, "out-with-lost+found")
    kiln("get", "-r", image, "/", out)
    image = new_image(work)
    kiln("put", "-r", image, out + "/.", "/")
    same_tree(image, "/", top, work)


def options_of_the_format_hold_trees_too(work):
    top = tree(work)
    for options in changed.some((["--block-size", "512", "--btree-node-size", "64k"], ["--data-checksum", "xxhash"],
                                 ["--bucket-size", "1M", "--data-checksum", "none"])):
        image = os.path.join(work, "options.img")
        kiln("format", "-q", "-f", "--size", "256M", *options, "--source", top, image)
        same_tree(image, "/", top, work)
        changed.check(image)
        if "xxhash" in options:
            upstream_sees(image, top)


def upstream_sees(image, top):
    """Upstream's fusemount, where there is one, shows what was copied (what it can tell of it)."""
    shown = changes.upstream_tree([image]) if changes.has_upstream() else None
    if shown is not None:
        want, have = ([e for e in entries if e["path"] != "lost+found"] for entries in (manifest.tree(top), shown))
        ignore = ("xattrs", "nlink", "uid", "gid", "mtime_ns", "rdev", "ino")
        tap.same("upstream's fusemount", manifest.differences(want, have, ignore=ignore))


def the_tree_of_everything(work):
    maker = os.path.join(os.environ.get("KILN_FIXTURES", "/nowhere"), "make_tree.py")
    if not os.path.exists(maker):
        raise tap.Skip("no make_tree.py")
    top, out = os.path.join(work, "top"), os.path.join(work, "out")
    os.mkdir(top)
    subprocess.run([sys.executable, maker, "build", top, "--scale", "small"], check=True, capture_output=True)
    subprocess.run([sys.executable, maker, "manifest", top, os.path.join(work, "m.json")], check=True, capture_output=True)
    image = new_image(work, "--source", top, size="256M")
    kiln("get", "-r", image, "/", out)
    p = subprocess.run([sys.executable, maker, "verify", out, os.path.join(work, "m.json"), "--partial"],
                       capture_output=True, text=True)
    assert p.returncode == 0, p.stdout
    changed.check(image)


def archives_are_unpacked(work):
    top, image = tree(work), new_image(work, "--source", tree_path(work))
    other = new_image(work, name="other.img")
    archive = os.path.join(work, "a.tar")
    with open(archive, "wb") as f:
        subprocess.run([changed.KILN, "tar", image, "/"], stdout=f, stderr=subprocess.DEVNULL, check=True)
    with open(archive, "rb") as f:
        kiln("put", other, "-", "/", stdin=f)
    same_tree(other, "/", top, work, without=["socket"])
    changed.check(other)


def tree_path(work):
    return os.path.join(work, "tree")


def archives_of_others_are_unpacked(work):
    top, image = tree(work), new_image(work)
    archive = os.path.join(work, "a.tar.gz")
    p = subprocess.run(["tar", "-czf", archive, "--format=pax", "--xattrs", "--acls", "--sparse", "-C", top, "."],
                       capture_output=True, text=True)
    if p.returncode:
        raise tap.Skip("no GNU tar")
    kiln("mkdir", image, "/d")
    with open(archive, "rb") as f:
        summary = json.loads(kiln("put", "--json", image, "-", "/d", stdin=f).stdout)
    assert summary["failed"] == [] and summary["hardlinks"] == 1
    same_tree(image, "/d", top, work, without=["socket"])
    changed.check(image)


def archives_stay_in_their_directory(work):
    image, archive = new_image(work), os.path.join(work, "a.tar")
    kiln("mkdir", image, "/d", "/outside")
    with tarfile.open(archive, "w") as t:
        for name, kind, link in (("../escaped", tarfile.REGTYPE, ""), ("a/../../escaped", tarfile.REGTYPE, ""),
                                 ("link", tarfile.SYMTYPE, "/outside"), ("link/escaped", tarfile.REGTYPE, ""),
                                 ("hard", tarfile.LNKTYPE, "../outside"), ("..", tarfile.DIRTYPE, ""),
                                 ("/good/made/on/the/way", tarfile.REGTYPE, "")):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, link
            t.addfile(member)
    with open(archive, "rb") as f:
        p = kiln("put", "--json", image, "-", "/d", stdin=f, status=FAILED)
    assert len(json.loads(p.stdout)["failed"]) == 5, p.stdout
    names = set(changed.entries(image))
    assert {"outside", "d/link", "d/good/made/on/the/way"} <= names and not [n for n in names if "escaped" in n]
    # An archive that ends too early.
    with open(archive, "r+b") as f:
        f.truncate(1000)
    with open(archive, "rb") as f:
        kiln("put", "--overwrite", image, "-", "/d", stdin=f, status=FAILED)
    for nothing in ("no archive " * 1000, ""):
        message = kiln("put", image, "-", "/d", input=nothing, stdin=None, status=FAILED).stderr
        assert "the archive: is no tar archive" in message and "Input/output" not in message, message
    for compression in ("", "gz"):
        with tarfile.open(archive, "w:" + compression) as t:
            member = tarfile.TarInfo("cut")
            member.size = 100000
            t.addfile(member, io.BytesIO(os.urandom(100000)))
        with open(archive, "r+b") as f:
            f.truncate(50000)
        with open(archive, "rb") as f:
            p = kiln("put", "--json", "--overwrite", image, "-", "/d", stdin=f, status=FAILED)
        assert "ends in the middle" in p.stderr and ("kiln: cut: " in p.stderr or compression) and len(json.loads(p.stdout)["failed"]) == 1, p.stderr
    assert changed.stat(image, "/d/cut")["size"] < 50000
    changed.check(image)


def sources_that_overlap_share_their_hardlinks(work):
    top, image = os.path.join(work, "linked"), new_image(work)
    os.makedirs(top + "/sub")
    os.makedirs(work + "/other")
    with open(top + "/sub/1", "wb") as f:
        f.write(b"shared")
    for name in ("2", "3", "../other/4"):
        os.link(top + "/sub/1", os.path.join(top, name))
    kiln("mkdir", image, "/d")
    kiln("put", "-r", image, top + "/sub", top, work + "/other", "/d")
    e = changed.entries(image)
    names = ["d/sub/1", "d/other/4"] + ["d/linked/" + name for name in ("sub/1", "2", "3")]
    assert [e[name]["nlink"] for name in names] == [5] * 5, [e[name]["nlink"] for name in names]
    changed.check(image)


def what_exists_is_replaced_only_when_asked(work):
    top, image = tree(work), new_image(work)
    kiln("put", image, top + "/file", "/f")
    p = kiln("put", image, top + "/dir/large", "/f", status=FAILED)
    assert "--overwrite" in p.stderr
    assert changed.stat(image, "/f")["size"] == 9
    kiln("put", "--overwrite", image, top + "/dir/large", "/f")
    assert changed.stat(image, "/f")["size"] == 256 * 20000
    for _ in range(1 if changed.QUICK else 2):
        kiln("put", "-r", "--overwrite", image, top, "/")
        same_tree(image, "/tree", top, work)
    changed.check(image)


def directories_that_exist_are_merged_into(work):
    """Of trees and of archives, in the same way; files are replaced only when that is asked for."""
    top, archive = os.path.join(work, "top"), os.path.join(work, "a.tar")
    os.makedirs(top + "/d/sub")
    for name in ("d/old", "d/sub/new", "file"):
        with open(os.path.join(top, name), "w") as f:
            f.write("of the source")
    os.symlink("file", top + "/link")
    os.chmod(top + "/d", 0o2711)
    os.utime(top + "/d", ns=(10**18, 10**18))
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as t:
        t.add(top, ".")
    for overwrite in (False, True):
        for is_archive in (False, True):
            image = new_image(work)
            kiln("mkdir", image, "/d", "/d/stays", "/link")
            for name in ("/d/old", "/file"):
                kiln("touch", image, name)
            kiln("chmod", "700", image, "/d")
            with open(archive, "rb") as f:
                p = kiln("put", "--json", *(["--overwrite"] if overwrite else []), image,
                         *(["-"] if is_archive else ["-r", top + "/."]), "/", stdin=f, status=FAILED)
            failed = sorted(os.path.basename(e["path"]) for e in json.loads(p.stdout)["failed"])
            # A directory isn't replaced by a symlink.
            assert failed == (["link"] if overwrite else ["file", "link", "old"]), (is_archive, failed)
            assert ("--overwrite replaces it" in p.stderr) != overwrite and ("don't replace" in p.stderr) == overwrite, p.stderr
            e = changed.entries(image)
            assert (e["d"]["mode"], e["d"]["mtime"]) == (0o2711, 10**9), (is_archive, e["d"])
            assert e["link"]["type"] == "dir" and "d/stays" in e and e["d/sub/new"]["size"] == 13
            assert e["d/old"]["size"] == e["file"]["size"] == (13 if overwrite else 0)
            changed.check(image)


def single_files_and_wrong_arguments(work):
    top, image = tree(work), new_image(work)
    kiln("mkdir", image, "/d")
    kiln("put", image, top + "/file", top + "/fifo", top + "/dangling", "/d")
    assert {"d/file", "d/fifo", "d/dangling"} < set(changed.entries(image))
    assert "is a fifo, not a regular file" in kiln("cat", image, "/d/fifo", status=FAILED).stderr
    kiln("put", "-H", image, top + "/dir/symlink", "/followed")
    kiln("put", image, top + "/dir/symlink", "/copied")
    e = changed.entries(image)
    assert e["followed"]["type"] == "file" and e["copied"]["type"] == "symlink"
    assert "-r" in kiln("put", image, top + "/dir", "/", status=FAILED).stderr
    kiln("put", image, top + "/nowhere", "/", status=FAILED)
    message = kiln("put", image, "nowhere", "/", status=FAILED, cwd=work).stderr
    assert message.startswith("kiln: nowhere: No such file"), message
    kiln("put", image, top + "/file", top + "/fifo", "/nowhere", status=FAILED)
    assert "/nowhere/: No such" in kiln("put", image, top + "/file", "/nowhere/", status=FAILED).stderr
    kiln("put", image, top + "/file", "", status=FAILED)
    kiln("put", "-r", image, top + "/dir", "/newdir/")
    # The filesystem's own image isn't put into it.
    own = os.path.join(work, "own")
    os.mkdir(own)
    os.link(image, own + "/other-name")
    for args in ([image], ["-r", own]):
        options, source = args[:-1], args[-1]
        message = kiln("put", *options, image, source, "/", status=FAILED).stderr
        assert "is the filesystem that it would be copied into" in message, message
    kiln("put", image, top + "/file", status=USAGE)
    kiln("put", "--owner", "nobody-known", image, top + "/file", "/", status=USAGE)
    kiln("put", "--owner", "7:8", image, top + "/file", "/mine")
    assert not {"nowhere", "a.img", "own/other-name"} & set(changed.entries(image))
    assert (changed.stat(image, "/mine")["uid"], changed.stat(image, "/mine")["gid"]) == (7, 8)
    changed.check(image)


def a_full_filesystem_is_told_once_and_stays_consistent(work):
    image, top = new_image(work, size="32M"), os.path.join(work, "large")
    os.mkdir(top)
    for i in range(40):
        with open(os.path.join(top, str(i)), "wb") as f:
            f.write(os.urandom(MIB))
    p = kiln("put", "-r", image, top, "/", status=FAILED)
    assert p.stderr.count("No space left") == 1, p.stderr
    changed.check(image)
    kiln("rm", "-r", image, "/large")
    changed.check(image)


def many_files(work):
    top = os.path.join(work, "large")
    os.mkdir(top)
    for i in range(4000):
        with open(os.path.join(top, str(i)), "wb") as f:
            f.write(b"%d" % i * 3000)
    return top


class Moment:
    """When a command is at work, however fast the machine is: as nobody knows, it is looked for."""

    def __init__(self):
        self.seconds = 0.05

    def was(self, too_late):
        self.seconds *= random.uniform(0.4, 0.9) if too_late else random.uniform(1.2, 2)


def interrupted_it_leaves_what_it_did(work):
    image, top = new_image(work, size="512M"), many_files(work)
    put, rm = ["put", "-r", "--overwrite", image, top, "/"], ["rm", "-r", image, "/large"]
    for sig, args, undo, says in ((signal.SIGINT, put, rm, "interrupted; copied"), (signal.SIGTERM, put, rm, "interrupted; copied"),
                                  (signal.SIGINT, rm, put, "interrupted")):
        if args is rm:
            kiln(*put)
        moment = Moment()
        for _ in range(40):
            p = subprocess.Popen([changed.KILN, *args], stderr=subprocess.PIPE, text=True)
            time.sleep(moment.seconds)
            p.send_signal(sig)
            _, text = p.communicate(timeout=60)
            changed.check(image)
            if p.returncode == FAILED and says in text:
                break
            assert p.returncode in (0, -sig), (p.returncode, text)
            moment.was(too_late=p.returncode == 0)
            if p.returncode == 0:
                kiln(*undo)
        assert says in text, "it was never interrupted"
        assert args is rm or "`kiln put --overwrite` goes on" in text, text


def interrupted_it_is_a_filesystem(work):
    """format --source, and an archive on standard input: what was made until then is there, and nothing else is wrong."""
    image, top, archive = os.path.join(work, "new.img"), many_files(work), os.path.join(work, "a.tar")
    new = ["format", "-q", "-f", "--size", "512M", "--source", top, image]
    with tarfile.open(archive, "w") as t:
        t.add(top, "large")
    for args in (new, ["put", "--overwrite", image, "-", "/"]):
        moment = Moment()
        for _ in range(40):
            if args is not new:
                kiln("format", "-q", "-f", "--size", "512M", image)
            with open(archive, "rb") as stdin:
                p = subprocess.Popen([changed.KILN, *args], stdin=stdin, stderr=subprocess.PIPE, text=True)
                time.sleep(moment.seconds)
                p.send_signal(signal.SIGINT)
                _, text = p.communicate(timeout=60)
            if p.returncode in (0, -signal.SIGINT):
                moment.was(too_late=p.returncode == 0)
                continue
            assert p.returncode == FAILED and "interrupted; copied" in text, (p.returncode, text)
            changed.check(image)
            if 0 < sum(e["type"] == "file" for e in changed.entries(image).values()) < 4000:
                break
            moment.was(too_late=False)
        else:
            raise AssertionError("it was never interrupted midway")


def sectors_by_device(fs, data_type):
    return {d["label"]: d["types"][data_type]["bytes"] for d in json.loads(kiln("usage", "--json", fs).stdout)["devices"]}


def targets_say_where_things_go(work):
    """To the group that the filesystem names, or the file; and elsewhere when there is no room."""
    devs = {label: os.path.join(work, label) for label in ("fast.a", "fast.b", "slow.a")}
    args = [arg for label, dev in devs.items() for arg in ("--label=" + label, dev)]
    kiln("format", "-q", "--size", "64M", "--foreground-target=fast", "--metadata-target=fast.b", *args)
    fs, source = ":".join(devs.values()), os.path.join(work, "source")

    def put(name, size):
        with open(source, "wb") as f:
            f.write(os.urandom(size))
        kiln("put", fs, source, name)
        before[name] = open(source, "rb").read()

    before = {}
    put("/first", 20 * MIB)
    user, nodes = sectors_by_device(fs, "user"), sectors_by_device(fs, "btree")
    assert user["fast.a"] and user["fast.b"] and not user["slow.a"], user
    assert sum(user.values()) == 20 * MIB, user
    assert nodes["fast.b"] and not nodes["fast.a"] and not nodes["slow.a"], nodes
    # A file's own target, and a directory's for what is made in it.
    kiln("mkdir", fs, "/slow")
    kiln("setfattr", "-n", "bcachefs.foreground_target", "-v", "slow", fs, "/slow")
    put("/slow/file", 5 * MIB)
    assert sectors_by_device(fs, "user") == {**user, "slow.a": 5 * MIB}, sectors_by_device(fs, "user")
    # More than is left of the target: what is too much goes where there is room.
    put("/second", 100 * MIB)
    user = sectors_by_device(fs, "user")
    assert sum(user.values()) == 125 * MIB and user["slow.a"] > 5 * MIB, user
    for name, data in before.items():
        assert kiln("cat", fs, name, text=False).stdout == data, name
    changed.check(fs)


TESTS = [targets_say_where_things_go, trees_come_back_as_they_were, what_is_in_a_directory_goes_into_another, options_of_the_format_hold_trees_too,
         the_tree_of_everything, archives_are_unpacked, archives_of_others_are_unpacked,
         archives_stay_in_their_directory, sources_that_overlap_share_their_hardlinks,
         what_exists_is_replaced_only_when_asked, directories_that_exist_are_merged_into, single_files_and_wrong_arguments,
         a_full_filesystem_is_told_once_and_stays_consistent, interrupted_it_leaves_what_it_did, interrupted_it_is_a_filesystem]

if __name__ == "__main__":
    sys.exit(changed.run(TESTS))
