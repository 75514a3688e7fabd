#!/usr/bin/env python3
"""What `kiln format` promises about devices, options and what it prints.

    test_format.py KILN

$KILN_UPSTREAM names upstream's tool (bcachefs of version 1.4.1): with it, filesystems are also shown to its fsck.
"""
import functools
import json
import os
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "lib"))

import doors
import tap

KILN = sys.argv[1]
OK, FAILED, USAGE = 0, 1, 2
MIB = 1 << 20


def kiln(*args, status=OK):
    p = subprocess.run([KILN, *args], capture_output=True, text=True)
    assert p.returncode == status, "%s: status %d, %s" % (args, p.returncode, p.stderr)
    return p


def fmt(*args, status=OK):
    """Format without initialising; what it made, from --json."""
    p = kiln("format", "--no-initialize", "--json", *args, status=status)
    return json.loads(p.stdout) if status == OK else p.stderr


def head(path):
    with open(path, "rb") as f:
        return f.read(2 * MIB)


def image_files_are_made_and_grow(work):
    image = os.path.join(work, "a.img")
    made = fmt("--size", "64M", image)
    assert os.path.getsize(image) == 64 * MIB
    assert os.stat(image).st_blocks * 512 < MIB, "not sparse"
    assert made["devices"][0]["buckets"] == 512 and made["devices"][0]["bucket_bytes"] == 128 << 10
    fmt("--force", "--size", "100M", image)
    assert os.path.getsize(image) == 100 * MIB
    assert "larger" in fmt("--force", "--size", "50M", image, status=FAILED)
    assert os.path.getsize(image) == 100 * MIB


def what_is_there_is_overwritten_by_force_only(work):
    image = os.path.join(work, "a.img")
    fmt("--size", "64M", "-L", "precious", image)
    before = head(image)
    message = fmt(image, status=FAILED)
    assert 'a.img holds bcachefs labelled "precious"; --force formats over it, and what it holds is lost' in message, message
    other = os.path.join(work, "b.img")
    fmt("--size", "64M", "-L", "second", other)
    message = fmt(image, other, status=FAILED)
    assert 'labelled "precious", ' in message and 'b.img holds bcachefs labelled "second"; --force' in message, message
    assert head(image) == before
    fmt("-f", image)

    swap = os.path.join(work, "swap")
    with open(swap, "wb") as f:
        f.truncate(64 * MIB)
        f.seek(1024)
        f.write((1).to_bytes(4, "little") + (16383).to_bytes(4, "little"))
        f.seek(4086)
        f.write(b"SWAPSPACE2")
    before = head(swap)
    assert "swap" in fmt(swap, status=FAILED)
    assert head(swap) == before
    fmt("-f", swap)
    assert b"SWAPSPACE2" not in head(swap)


def a_failure_leaves_nothing_behind(work):
    image, other = os.path.join(work, "a.img"), os.path.join(work, "b.img")
    fmt("--size", "64M", "--durability", "2", "--bucket-size", "100000", image, other, status=FAILED)
    assert not os.path.exists(image) and not os.path.exists(other)
    with open(other, "wb") as f:
        f.truncate(MIB)
    fmt("--replicas", "3", "--size", "64M", image, other, status=FAILED)
    assert not os.path.exists(image) and os.path.getsize(other) == MIB


def nothing_of_a_filesystem_that_was_not_finished_is_left(work):
    """Where there is no room: for the journal of a new filesystem, then for its superblocks."""
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M", "tmpfs", work], capture_output=True).returncode:
        raise tap.Skip("FULL DISK NOT TESTED: needs root, to mount a small one")
    try:
        image, other, ballast = (os.path.join(work, name) for name in ("a.img", "b.img", "ballast"))
        for room in (80 << 10, 12 << 10):
            with open(ballast, "wb") as f:
                f.write(bytes((1 << 20) - room))
            message = kiln("format", "--size", "64M", image, status=FAILED).stderr
            assert not os.path.exists(image), message
            for path in (image, other):
                with open(path, "wb") as f:
                    f.truncate(64 * MIB)
            message = kiln("format", image, other, status=FAILED).stderr
            for path in (image, other):
                with open(path, "rb") as f:
                    assert not any(f.read(8192)) and os.path.getsize(path) == 64 * MIB, message
                assert "superblock" in kiln("show-super", path, status=FAILED).stderr
                os.unlink(path)
    finally:
        doors.umount(work)


def options_of_the_table_are_stored(work):
    image = os.path.join(work, "a.img")
    words = {"errors": "continue", "metadata_checksum": "xxhash", "data_checksum": "crc64", "str_hash": "crc64"}
    numbers = {"gc_reserve_percent": 12, "root_reserve_percent": 5, "encoded_extent_max": 131072,
               "block_size": 512, "btree_node_size": 65536}
    bools = {"acl": False, "usrquota": True, "inodes_32bit": False, "shard_inode_numbers": False}
    args = ["--%s=%s" % (name.replace("_", "-"), value) for name, value in words.items()]
    args += ["--%s=%s" % (name, value) for name, value in numbers.items()]
    args += ["--%s=%d" % (name, value) for name, value in bools.items()]
    made = fmt("--size", "64M", *args, image)
    for name, value in {**words, **numbers, **bools}.items():
        assert made["options"][name] == value, (name, made["options"][name])
    shown = kiln("show-super", image).stdout
    assert "none crc32c crc64 [xxhash]" in shown, shown


def device_options_hold_for_devices_behind_them(work):
    a, b, c = (os.path.join(work, name) for name in ("a", "b", "c"))
    made = fmt("--size=64M", "--label=ssd.fast", "--durability=2", a, "--label", "hdd", "--durability=1", "--discard",
               "--fs-size", "32M", b, "--data-allowed=journal,btree", c, "--foreground-target=ssd",
               "--background_target=" + b, "-U", "01234567-89ab-cdef-0123-456789abcdef", "--fs_label", "a label")
    d = made["devices"]
    assert [x["label"] for x in d] == ["ssd.fast", "hdd", "hdd"]
    assert [x["durability"] for x in d] == [2, 1, 1]
    assert [x["discard"] for x in d] == [False, True, True]
    assert [x["size_bytes"] for x in d] == [64 * MIB, 32 * MIB, 64 * MIB]
    assert d[2]["data_allowed"] == ["journal", "btree"]
    assert made["options"]["foreground_target"] == "ssd"
    assert made["options"]["background_target"] == "dev 1"
    assert made["uuid"] == "01234567-89ab-cdef-0123-456789abcdef" and made["label"] == "a label"
    assert made["version"] == "1.4" and len(d) == 3
    shown = kiln("show-super", ":".join((a, b, c))).stdout
    assert "01234567-89ab-cdef-0123-456789abcdef" in shown


def what_is_not_built_is_refused_by_name(work):
    image = os.path.join(work, "a.img")
    p = kiln("format", "--size", "64M", "--erasure_code", image, status=FAILED)
    assert "erasure_code" in p.stderr.replace("-", "_"), p.stderr
    assert not os.path.exists(image)
    fmt("--size", "64M", "--erasure-code=0", image)


def mistakes_are_told(work):
    image = os.path.join(work, "a.img")
    for args, says in (
        ([], "at least one device"),
        ([image, "--label", "x"], "behind the last device"),
        (["--data-replicas=4", image], "1 to 3"),
        (["--acl=yes", image], "neither 0 nor 1"),
        (["--durability=3", image], "0, 1 or 2"),
        (["--data-allowed=cached", image], "journal, btree and user"),
        (["--uuid=1234", image], "UUID"),
        (["--size=0", image], "size"),
        (["--source", work, image], "contradict"),
    ):
        message = fmt(*args, status=USAGE)
        assert says in message, (args, message)
    for args, says in (
        ([image], "doesn't exist"),
        (["--size=64M", image, image], "twice"),
        (["--size=64M", "--foreground-target=ssd", image], "'ssd'"),
        (["--size=1M", image], "10 MiB is enough"),
        (["--size=64M", "--bucket-size=3k", image], "Buckets of 3.00 KiB are too small"),
        (["--size=64M", "--btree-node-size=2k", image], "Btree nodes have at least 8 blocks"),
        (["--size=10M", "/dev/no-such-device"], "no device"),
        (["/dev/null"], "neither a file"),
        (["--size=64M", "--version=1.5", image], "1.4"),
    ):
        message = fmt(*args, status=FAILED)
        assert says in message, (args, message)
        assert not os.path.exists(image)


def what_can_not_be_made_is_told_in_words(work):
    image = os.path.join(work, "a.img")
    for args, says in ((["--size=8M"], "too small for a filesystem. With the usual options"),
                       (["--size=24M", "--bucket=4k", "--block-size=512", "--btree-node-size=4k"], "they need at least 16.0 KiB.")):
        assert says in kiln("format", *args, image, status=FAILED).stderr
        assert not os.path.exists(image)


def a_source_that_does_not_fit_is_no_success(work):
    image, source = os.path.join(work, "a.img"), os.path.join(work, "source")
    os.mkdir(source)
    with open(os.path.join(source, "f"), "wb") as f:
        f.write(os.urandom(12 * MIB))
    p = kiln("format", "--size=10M", "--source", source, image, status=FAILED)
    assert "doesn't hold all" in p.stderr and not p.stdout, p.stdout + p.stderr


def what_has_no_room_for_files_is_warned_of(work):
    image = os.path.join(work, "a.img")
    assert "warning: no file can be written" in kiln("format", "-q", "--size=12M", image).stderr
    assert not kiln("format", "-q", "-f", "--size=24M", image).stderr
    message = kiln("format", "-q", "-f", "--size=16M", image, status=FAILED).stderr
    assert "Leave the size out" in message, message


def table_for_people(work):
    image = os.path.join(work, "a.img")
    p = kiln("format", "--no-initialize", "--size=64M", "--label=hdd", image)
    assert "512 x 128 KiB" in p.stdout and "hdd" in p.stdout and "64.0 MiB" in p.stdout, p.stdout
    assert "encrypted" not in p.stdout
    assert not kiln("format", "--no-initialize", "-f", "-q", image).stdout
    p = kiln("format", "--no-initialize", "-f", "--encrypted", "--no-passphrase", image)
    assert ", encrypted without passphrase\n" in p.stdout, p.stdout
    usage = kiln("format", "--help").stdout
    for word in ("--data-replicas=1-3 ", "--block-size=512-32k ", "--errors=continue|ro|panic ", "--compression=none|lz4|gzip|zstd[:LEVEL]\n",
                 "(default crc32c)", "--nocow[=0|1] ", "--source", "--durability"):
        assert word in usage, word
    assert "erasure" not in usage, "what is always refused isn't offered"


def the_root_directory_is_of_who_made_it(work):
    user = {}
    if os.geteuid() == 0:
        user = {"user": 65534, "group": 65534, "extra_groups": []}
        os.chown(work, 65534, 65534)
        if subprocess.run(["test", "-x", os.path.abspath(KILN)], **user).returncode or subprocess.run(["test", "-w", work], **user).returncode:
            return
    image = os.path.join(work, "a.img")
    p = subprocess.run([KILN, "format", "-q", "--size", "32M", image], capture_output=True, text=True, **user)
    assert p.returncode == OK, p.stderr
    st = json.loads(kiln("stat", "--json", image, "/").stdout)
    st = st[0] if isinstance(st, list) else st
    assert (st["uid"], st["gid"]) == (user.get("user", os.geteuid()), user.get("group", os.getegid())), st
    kiln("check", image)


def all_devices_that_are_missing_are_named(work):
    images = [os.path.join(work, name) for name in "abcdefgh"]
    args = [arg for image in images for arg in ("--label=ssd." + image[-1], image)]
    kiln("format", "-q", "--size=32M", "--replicas=3", *args)
    sections = json.loads(kiln("show-super", "--json", "--field-only", "members_v2", ":".join(images)).stdout)["sections"]
    uuids = [m["uuid"] for m in sections["members_v2"]]
    # Of two there is another copy of all; of six, where each has three of eight, there isn't.
    for there, option, other in ((6, "--degraded", "--very"), (2, "--very-degraded", "--degraded")):
        text = kiln("ls", ":".join(images[:there]), status=FAILED).stderr
        assert "%d of the filesystem's 8 devices" % (8 - there) in text and "joined by colons" in text, text
        assert " %s " % option in text and other not in text, text
        named = [nr for nr in range(8) if "device %d (label ssd.%s, uuid %s)" % (nr, images[nr][-1], uuids[nr]) in text]
        more = 8 - there - len(named)
        assert named[:2] == [there, there + 1] and not more or "and %d more" % more in text, (named, text)
        assert there == 2 or kiln("ls", option, ":".join(images[:there])).stdout == "lost+found\n"


def the_first_change_makes_the_rest(work):
    """Of filesystems that are superblocks alone, of one and more devices, encrypted too."""
    secret = os.path.join(work, "secret")
    with open(secret, "w") as f:
        f.write("secret\n")
    for nr, args, opening in ((1, [], []), (2, ["--replicas=2", "--label=a.b", "--metadata-target=a"], []),
                              (1, ["--encrypted", "--passphrase-file", secret], ["--passphrase-file", secret])):
        images = [os.path.join(work, "first%d.img" % i) for i in range(nr)]
        fs = ":".join(images)
        fmt("-f", "--size=64M", *args, *images)
        assert "Mount it once" in kiln("ls", *opening, fs, "/", status=FAILED).stderr
        if nr > 1:
            assert "missing" in kiln("mkdir", "--degraded", images[0], "/dir", status=FAILED).stderr
        kiln("mkdir", *opening, fs, "/dir")
        assert kiln("ls", *opening, fs, "/").stdout.split() == ["dir", "lost+found"]
        kiln("check", *opening, fs)
        if not opening:
            status, text = upstream_fsck("-n", images) if os.environ.get("KILN_UPSTREAM") else (0, "")
            assert status == 0, text


def upstream_fsck(option, images):
    """Output and status of upstream's fsck, which initialises a filesystem that isn't yet, too."""
    if not os.environ.get("KILN_UPSTREAM"):
        raise tap.Skip("KILN_UPSTREAM isn't set")
    p = subprocess.run([os.environ["KILN_UPSTREAM"], "fsck", option, *images], capture_output=True, text=True, timeout=120)
    return p.returncode, p.stdout + p.stderr


def upstream_initialises_superblocks_in_silence(work):
    layouts = (
        (1, []),
        (1, ["--block-size=512", "--metadata-checksum=crc64", "--bucket-size=256k", "--btree-node-size=64k"]),
        (1, ["--metadata-checksum=none", "--superblock-size=256k", "-L", "x" * 32]),
        (2, ["--replicas=2", "--metadata-checksum=xxhash", "--label=a.b", "--foreground-target=a"]),
        (4, ["--replicas=3", "--discard", "--btree-node-size=128k"]),
    )
    for nr, args in layouts:
        images = [os.path.join(work, "%d.img" % i) for i in range(nr)]
        fmt("-f", "--size=128M", *args, *images)
        status, text = upstream_fsck("-y", images)
        assert status == 0 and "initializing new filesystem" in text, (args, text)
        status, text = upstream_fsck("-n", images)
        lines = [line for line in text.splitlines() if "done" not in line and "mounting" not in line]
        assert status == 0 and all(line.startswith(("recovering", "going", "journal read")) for line in lines), (args, text)
        assert kiln("ls", ":".join(images), "/").stdout.split() == ["lost+found"]
        for image in images:
            os.unlink(image)


def in_directory(test):
    with tempfile.TemporaryDirectory(prefix="kiln-format-") as work:
        test(work)


TESTS = [image_files_are_made_and_grow, what_is_there_is_overwritten_by_force_only, a_failure_leaves_nothing_behind,
         nothing_of_a_filesystem_that_was_not_finished_is_left,
         options_of_the_table_are_stored, device_options_hold_for_devices_behind_them,
         what_is_not_built_is_refused_by_name, mistakes_are_told, what_can_not_be_made_is_told_in_words, a_source_that_does_not_fit_is_no_success, table_for_people, what_has_no_room_for_files_is_warned_of,
         the_root_directory_is_of_who_made_it, all_devices_that_are_missing_are_named, the_first_change_makes_the_rest, upstream_initialises_superblocks_in_silence]

if __name__ == "__main__":
    sys.exit(tap.run([(t.__name__, functools.partial(in_directory, t)) for t in TESTS]))
