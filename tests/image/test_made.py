#!/usr/bin/env python3
"""Filesystems that Kiln made, with all layouts, and with a device that counts for no copy: after random changes they hold what they should, and every judge is silent.

    test_made.py KILN READ_TREE CHANGE_FS

Layouts that have all pairs of choices; every combination with KILN_TEST_ALL=1. $KILN_TEST_SEED: other seeds, with commas. $KILN_UPSTREAM names
upstream's tool (bcachefs of version 1.4.1): with it, its fsck and fusemount see the results too.
"""
import functools
import itertools
import json
import os
import random
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

import changes  # noqa: E402
import doors  # noqa: E402
import images  # noqa: E402
import manifest  # noqa: E402
import tap  # noqa: E402

KILN, READ_TREE, CHANGE_FS = (os.path.abspath(p) for p in sys.argv[1:4])
SEEDS = tap.seeds()
ALL = bool(os.environ.get("KILN_TEST_ALL"))
OPERATIONS = 500 if ALL else 150


CHOICES = (
    ("none", "crc32c", "crc64", "xxhash"),
    ("512", "4k"),
    ([], ["--compression=lz4"], ["--compression=gzip:4", "--background-compression=zstd"],
     ["--compression=zstd", "--encoded-extent-max=128k"]),
    ([], ["--encrypted", "--no-passphrase"]),
    (1, 2, 3),
)


def pairs_of(picks):
    return {(i, a, j, b) for (i, a), (j, b) in itertools.combinations(enumerate(picks), 2)}


def sample(everything):
    """Few of them, that have every pair of choices nevertheless."""
    left = set().union(*(pairs_of(picks) for picks in everything))
    out = []
    while left:
        out.append(max(everything, key=lambda picks: len(pairs_of(picks) & left)))
        left -= pairs_of(out[-1])
    return out


def layouts():
    """(devices, options): checksums, blocks, compressions, encryption and replicas in every combination, or every pair of
    them; buckets, nodes, more devices and nocow as the first seed has it."""
    rng = random.Random(SEEDS[0])
    everything = list(itertools.product(*(range(len(c)) for c in CHOICES)))
    rng.shuffle(everything)
    out = []
    for picks in everything if ALL else sample(everything):
        csum, block, compression, encryption, replicas = (c[i] for c, i in zip(CHOICES, picks))
        bucket = rng.choice(("32k", "128k", "512k", "1M"))
        nodes = [n for n in ("4k", "16k", "32k", "64k", "256k") if 8 * size_of(block) <= size_of(n) <= size_of(bucket)]
        out.append((replicas + rng.randrange(2),
                    ["--data-checksum=" + csum, "--metadata-checksum=" + csum, "--block-size=" + block,
                     "--bucket-size=" + bucket, "--btree-node-size=" + rng.choice(nodes), "--replicas=%d" % replicas,
                     *compression, *encryption, *(["--nocow"] if rng.randrange(10) == 0 else [])]))
    return out


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


def changed_at_random(seed, count, options):
    with images.temporary() as work:
        devices = [os.path.join(work, "dev%d" % i) for i in range(count)]
        format_all(devices, options)
        all_judges_are_silent(devices, "fresh")
        model = changes.Model(changes.own_tree(READ_TREE, devices)["entries"])
        for round in range(2):
            with changes.Filesystem(CHANGE_FS, devices) as fs:
                changer = changes.Changer(fs, model, "top-%d" % round, seed * 10 + round)
                changer.start()
                changer.run(OPERATIONS)
            have = changes.own_tree(READ_TREE, devices)
            tap.same("read back", changes.differences(model, have["entries"]))
            assert have["usage"]["is_clean"], "not clean"
        all_judges_are_silent(devices, "changed", with_tree=True)


def used_bytes(devices):
    """By device, of each kind."""
    p = subprocess.run([KILN, "usage", "--json", ":".join(devices)], capture_output=True, text=True, timeout=60)
    assert p.returncode == 0, p.stderr
    return [{kind: member["types"].get(kind, {"bytes": 0})["bytes"] for kind in ("cached", "user", "btree")}
            for member in json.loads(p.stdout)["devices"]]


def with_a_cache(seed, options):
    """The last of three devices has durability 0: what it holds never counts as a copy, so nothing is lost with it."""
    with images.temporary() as work:
        devices = [os.path.join(work, "dev%d" % i) for i in range(3)]
        durable = devices[:2]
        named = ["--label=slow.a", devices[0], "--label=fast.b", devices[1], "--size=8M", "--label=fast.c", "--durability=0", devices[2]]
        format_all(named, ["--replicas=2", "--bucket-size=64k", "--btree-node-size=64k", *options], size="40M")
        model = changes.Model(changes.own_tree(READ_TREE, devices)["entries"])

        def change(given, round, more):
            with changes.Filesystem(CHANGE_FS, given, options=more) as fs:
                changer = changes.Changer(fs, model, "top-%d" % round, seed * 10 + round)
                changer.start()
                changer.run(OPERATIONS // 3)
                changer.top, changer.count = "top-0", 1000 * (round + 1)  # and what was there before
                changer.run(OPERATIONS // 5)
            r = doors.library(READ_TREE, given, *more)
            assert "error" not in r and not [x for x in r["reports"] if x["level"] != "info"], r
            tap.same("read back", changes.differences(model, r["entries"]))
            assert r["usage"]["is_degraded"] == bool(more), r["usage"]

        for round in range(2):
            change(devices, round, [])
        all_judges_are_silent(devices, "changed", with_tree=ALL)
        *others, cache = used_bytes(devices)
        assert not cache["user"] and not cache["btree"], "%s on the cache" % cache
        # What is overwritten in place has no copies there: they couldn't be.
        assert bool(cache["cached"]) == (any("foreground" in o for o in options) and "--nocow" not in options), "%s on the cache" % cache
        assert all(d["user"] for d in others), others
        # Without it: everything is there, and it can be changed. When it is back what it holds is used again, if it still holds.
        refused = doors.library(READ_TREE, durable)
        assert refused.get("error") == "ENODEV" and "--degraded" in refused["why"], refused
        change(durable, 2, ["--degraded"])
        change(devices, 3, [])
        all_judges_are_silent(devices, "after it was away", with_tree=True)


def targets_hold(options):
    """Metadata and data are where they are to be, until there is no more room."""
    with images.temporary() as work:
        devices = [os.path.join(work, "dev%d" % i) for i in range(3)]
        labels = [arg for label, device in zip(("meta.a", "fast.b", "slow.c"), devices) for arg in ("--label=" + label, device)]
        format_all(labels, ["--bucket-size=64k", "--btree-node-size=32k", "--metadata-target=meta", "--foreground-target=fast", *options], size="32M")
        with changes.Filesystem(CHANGE_FS, devices) as fs:
            for name in ("fast", "slow"):
                fs.must("mknod", name, changes.S_IFDIR | 0o755, 0, 0, 0)
            fs.must("setxattr", "slow", "bcachefs.foreground_target", "slow.c")
            count = fs.must("fill", "fast", 0, 10, 1 << 20)
        meta, fast, slow = used_bytes(devices)
        assert meta["btree"] and not fast["btree"] and not slow["btree"], (meta, fast, slow)
        assert fast["user"] >= count << 20 and not meta["user"] and not slow["user"], (meta, fast, slow)
        with changes.Filesystem(CHANGE_FS, devices) as fs:
            assert fs.must("fill", "slow", 0, 10, 1 << 20) == 10
        meta, fast, slow = used_bytes(devices)
        assert slow["user"] >= 10 << 20 and not meta["user"], (meta, fast, slow)
        with changes.Filesystem(CHANGE_FS, devices) as fs:
            assert fs.must("fill", "fast", 100, 200, 1 << 20) > 30
        all_judges_are_silent(devices, "full")
        assert all(d["user"] > 8 << 20 for d in used_bytes(devices)), used_bytes(devices)


def the_smallest_buckets_do(count, replicas, smallest):
    """An entry of the journal must fit a bucket: smaller ones are refused, and with these a filesystem can be filled and emptied."""
    with images.temporary() as work:
        devices = [os.path.join(work, "dev%d" % i) for i in range(count)]
        small = ["--block-size=512", "--btree-node-size=4k", "--superblock-size=64k", "--replicas=%d" % replicas]
        p = subprocess.run([KILN, "format", "--size=24M", *small, "--bucket-size=%dk" % (smallest // 2), *devices],
                           capture_output=True, text=True, timeout=60)
        assert p.returncode == 1 and "at least %d.0 KiB" % smallest in p.stderr, p.stderr
        format_all(devices, [*small, "--bucket-size=%dk" % smallest], size="24M")
        tree = os.path.join(work, "tree")
        os.mkdir(tree)
        rng = random.Random(SEEDS[0])
        for i in range(200):
            with open(os.path.join(tree, "file%d" % i), "wb") as f:
                f.write(rng.randbytes(rng.randrange(1, 50000)))
        for command in (["put", "-r", ":".join(devices), tree, "/"], ["rm", "-r", ":".join(devices), "/tree"]):
            p = subprocess.run([KILN, *command], capture_output=True, text=True, timeout=120)
            assert p.returncode == 0 and not p.stderr, "%s: %s" % (command[0], p.stderr)
            all_judges_are_silent(devices, command[0])


def main():
    cases = [("a_cache %s" % " ".join(options), functools.partial(with_a_cache, SEEDS[0], options))
             for options in ([], ["--foreground-target=fast.c"], ["--foreground-target=fast", "--nocow"])]
    cases += [("targets_hold %s" % " ".join(options), functools.partial(targets_hold, options)) for options in ([], ["--nocow", "--block-size=512"])]
    cases += [("the_smallest_buckets_do %d" % count, functools.partial(the_smallest_buckets_do, count, replicas, smallest))
              for count, replicas, smallest in ((1, 1, 16), (4, 3, 32), (40, 3, 64))]
    for count, options in layouts():
        name = "%d devices %s" % (count, " ".join(o.lstrip("-") for o in options if "metadata" not in o))
        cases.append((name, functools.partial(changed_at_random, SEEDS[len(cases) % len(SEEDS)], count, options)))
    return tap.run(cases)


sys.exit(main())
