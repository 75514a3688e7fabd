#!/usr/bin/env python3
"""Filesystems that Kiln made, with all layouts: after random changes they hold what they should, and every judge is silent.

    test_made.py KILN READ_TREE CHANGE_FS

A sample of the layouts and seeds; all of them with KILN_TEST_ALL=1. $KILN_TEST_SEED: another seed. $KILN_UPSTREAM names
upstream's tool (bcachefs of version 1.4.1): with it, its fsck and fusemount see the results too.
"""
import os
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

import changes  # noqa: E402
import images  # noqa: E402
import manifest  # noqa: E402
import tap  # noqa: E402

KILN, READ_TREE, CHANGE_FS = (os.path.abspath(p) for p in sys.argv[1:4])
SEED = int(os.environ.get("KILN_TEST_SEED", "1"))
ALL = bool(os.environ.get("KILN_TEST_ALL"))
OPERATIONS = 1000 if ALL else 200


def layouts():
    """(devices, options): each checksum with each block size, and buckets, nodes, devices, replicas, compression and encryption in turn."""
    buckets, nodes, counts = ("32k", "128k", "512k", "1M"), ("16k", "64k", "256k", "4k"), ((1, 1), (2, 2), (3, 1), (4, 2))
    compressions = ([], ["--compression=lz4"], ["--compression=gzip:4", "--background-compression=zstd"],
                    ["--compression=zstd", "--encoded-extent-max=128k"])
    out = []
    for i, csum in enumerate(("none", "crc32c", "crc64", "xxhash")):
        for j, block in enumerate(("512", "4k")):
            for k, bucket in enumerate(buckets):
                node = nodes[(i + j + k) % 4]
                devices, replicas = counts[(i + 2 * j + k) % 4]
                if size_of(node) > size_of(bucket):
                    node = bucket
                if size_of(node) < 8 * size_of(block):  # the least there is
                    node = "32k"
                encrypted = i % 2 and not j
                out.append((devices, ["--data-checksum=" + csum, "--metadata-checksum=" + csum, "--block-size=" + block,
                                      "--bucket-size=" + bucket, "--btree-node-size=" + node,
                                      "--replicas=%d" % replicas, *compressions[len(out) % 4]] +
                            (["--nocow"] if len(out) % 10 == 5 else []) +
                            (["--encrypted", "--no-passphrase"] if encrypted else [])))
    return out if ALL else out[::5]


def size_of(text):
    return int(text.rstrip("kM")) * {"k": 1 << 10, "M": 1 << 20}.get(text[-1], 1)


def format_all(devices, options, size="128M"):
    p = subprocess.run([KILN, "format", "--size", size, *options, *devices], capture_output=True, text=True, timeout=120)
    assert p.returncode == 0, "format: %s" % p.stderr


def all_judges_are_silent(devices, what, with_tree=False):
    found = changes.kiln_check(KILN, devices)
    assert not found, "%s: kiln check: %s" % (what, found)
    if changes.has_upstream():
        lines = changes.upstream_fsck(devices)
        assert not lines, "%s: upstream's fsck:\n%s" % (what, "\n".join(lines[:20]))
    shown = changes.upstream_tree(devices) if with_tree and changes.has_upstream() else None
    if shown is not None:
        ignore = ("xattrs", "nlink", "uid", "gid", "mtime_ns", "rdev")
        have = changes.own_tree(READ_TREE, devices)["entries"]
        tap.same("%s: upstream's fusemount" % what, manifest.differences(have, shown, ignore=ignore))


def changed_at_random(count, options):
    with images.temporary() as work:
        devices = [os.path.join(work, "dev%d" % i) for i in range(count)]
        format_all(devices, options)
        all_judges_are_silent(devices, "fresh")
        model = changes.Model(changes.own_tree(READ_TREE, devices)["entries"])
        for round in range(2):
            with changes.Filesystem(CHANGE_FS, devices) as fs:
                changer = changes.Changer(fs, model, "top-%d" % round, SEED * 10 + round)
                changer.start()
                changer.run(OPERATIONS)
            have = changes.own_tree(READ_TREE, devices)
            tap.same("read back", changes.differences(model, have["entries"]))
            assert have["usage"]["is_clean"], "not clean"
        all_judges_are_silent(devices, "changed", with_tree=True)


def main():
    cases = []
    for count, options in layouts():
        name = "%d devices %s" % (count, " ".join(o.lstrip("-") for o in options if "metadata" not in o))
        cases.append((name, lambda count=count, options=options: changed_at_random(count, options)))
    print("# seed %d" % SEED)
    return tap.run(cases)


sys.exit(main())
