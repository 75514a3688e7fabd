#!/usr/bin/env python3
"""What `kiln set-option` promises, on images that upstream made.

    test_set_option.py KILN

$KILN_UPSTREAM, if set, names upstream's tool: its fsck sees the images afterwards.
"""
import functools
import os
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "lib"))

import images
import tap

KILN = sys.argv[1]
OK, FAILED, USAGE = 0, 1, 2


def kiln(*args, status=OK):
    p = subprocess.run([KILN, *args], capture_output=True, text=True)
    assert p.returncode == status, "%s: status %d, %s" % (args, p.returncode, p.stderr)
    return p


def unpacked(name, work):
    for folder in images.folders():
        if name in images.names(folder):
            return images.unpack(folder, name, work)
    raise tap.Skip("no image %s" % name)


def options(fs):
    """What show-super says, as a dict of texts."""
    lines = (line.split(":", 1) for line in kiln("show-super", fs).stdout.splitlines() if ":" in line)
    return {name.strip(): value.strip() for name, value in lines}


def upstream_says_nothing(devices):
    if os.environ.get("KILN_UPSTREAM"):
        p = subprocess.run([os.environ["KILN_UPSTREAM"], "fsck", "-n", *devices], capture_output=True, text=True, timeout=120)
        assert p.returncode == 0, p.stdout + p.stderr


def options_are_stored_one_update_each(work):
    devices = unpacked("v1.4-empty", work)
    before = options(devices[0])
    tree = kiln("ls", "-lR", devices[0], "/").stdout
    kiln("set-option", devices[0], "errors=continue", "metadata-checksum=xxhash", "gc_reserve_percent=9", "acl=0")
    after = options(devices[0])
    assert after["errors"] == "[continue] ro panic" and after["gc_reserve_percent"] == "9" and after["acl"] == "0"
    assert after["metadata_checksum"] == "none crc32c crc64 [xxhash]"
    assert int(after["Sequence number"]) == int(before["Sequence number"]) + 4
    assert after["Clean"] == "1"
    assert kiln("ls", "-lR", devices[0], "/").stdout == tree
    upstream_says_nothing(devices)


def all_members_are_written(work):
    devices = unpacked("v1.4-replicas2", work)
    fs = ":".join(devices)
    message = kiln("set-option", devices[0], "acl=0", status=FAILED).stderr
    assert "--degraded" in message, message
    kiln("set-option", fs, "data_replicas=1", "foreground_target=" + devices[1])
    for device in devices:
        shown = options(device)
        assert shown["data_replicas"] == "1" and shown["foreground_target"] == "dev 1"
    upstream_says_nothing(devices)


def mistakes_change_nothing(work):
    devices = unpacked("v1.4-empty", work)
    before = images.fingerprint(devices[0])
    for status, says, *args in (
        (USAGE, "no option", "colour=red"),
        (USAGE, "once a filesystem is made", "block_size=512"),
        (USAGE, "one of mounting", "verbose=1"),
        (USAGE, "not from 1 to 3", "acl=0", "data_replicas=4"),
        (USAGE, "a value is needed", "data_replicas"),
        (USAGE, "no such device or label", "foreground_target=ssd"),
        (FAILED, "erasure_code", "erasure_code=1"),
        (USAGE, "NAME=VALUE",),
        (USAGE, "by force", "--force", "acl=0"),
    ):
        message = kiln("set-option", devices[0], *args, status=status).stderr
        assert says in message, (args, message)
        assert images.fingerprint(devices[0]) == before, args


def newer_filesystems_are_left_alone(work):
    for name, says in (("v1.39-casefold", "1.39"),):
        devices = unpacked(name, work)
        before = images.fingerprint(devices[0])
        message = kiln("set-option", devices[0], "acl=0", status=FAILED).stderr
        assert says in message, message
        assert images.fingerprint(devices[0]) == before


def copies_that_can_not_be_made_are_warned_of(work):
    image = os.path.join(work, "a.img")
    kiln("format", "-q", "--size", "32M", image)
    for args, says in ((["data_replicas=2"], "data_replicas: 2 copies can't be made on 1 device"),
                       (["metadata_replicas=3"], "metadata_replicas: 3 copies"), (["data_replicas=1"], "")):
        message = kiln("set-option", image, *args).stderr
        assert says in message and message.count("\n") == bool(says), message
    assert options(image)["metadata_replicas"] == "3"


def compression_of_pieces_that_are_one_block_is_warned_of(work):
    image = os.path.join(work, "a.img")
    small = ["--encoded-extent-max=4k", "--block-size=4k"]
    for args, is_warned in ((["--compression=lz4", *small], True), (["--compression=lz4", *small[:1]], True), (small, False), (["--compression=lz4"], False),
                            (["--compression=lz4", *small[:1], "--block-size=2k"], False)):
        message = kiln("format", "-f", "-q", "--size", "32M", *args, image).stderr
        assert ("nothing is compressed" in message) == is_warned == bool(message), message
    for args, is_warned in ((small, True), (small[:1] + ["--block-size=512"], False)):
        kiln("format", "-f", "-q", "--size", "32M", *args, image)
        message = kiln("set-option", image, "compression=zstd").stderr
        assert ("nothing is compressed" in message) == is_warned == bool(message), message
        assert not kiln("set-option", image, "compression=none").stderr


def options_that_nothing_acts_on_are_kept_and_warned_of(work):
    image = os.path.join(work, "a.img")
    for command in (["format", "-q", "--size", "32M", "--label=ssd", "--promote-target=ssd", "--errors=panic", "--root-reserve-percent=5", image],
                    ["set-option", image, "promote_target=ssd", "errors=panic", "root_reserve_percent=6"]):
        message = kiln(*command).stderr
        for name in ("promote_target", "errors", "root_reserve_percent"):
            assert "warning: %s" % name in message, (command, message)
        assert options(image)["promote_target"] == "ssd" and options(image)["errors"] == "continue ro [panic]"
    kiln("touch", image, "f")
    for name, value in (("promote_target", "dev 0"), ("background_compression", "lz4")):
        assert "warning: " + name in kiln("setfattr", "-n", "bcachefs." + name, "-v", value, image, "f").stderr
    assert "warning: errors" in kiln("set-option", image, "errors=continue").stderr
    assert not kiln("set-option", image, "promote_target=none", "errors=ro", "background_compression=none", "root_reserve_percent=0").stderr


def in_directory(test):
    with tempfile.TemporaryDirectory(prefix="kiln-set-option-") as work:
        test(work)


TESTS = [options_are_stored_one_update_each, all_members_are_written, mistakes_change_nothing,
         newer_filesystems_are_left_alone, copies_that_can_not_be_made_are_warned_of,
         compression_of_pieces_that_are_one_block_is_warned_of, options_that_nothing_acts_on_are_kept_and_warned_of]

if __name__ == "__main__":
    sys.exit(tap.run([(t.__name__, functools.partial(in_directory, t)) for t in TESTS]))
