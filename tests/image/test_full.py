#!/usr/bin/env python3
"""A full filesystem says so, can be emptied, and is then as it was when it was new.

    test_full.py KILN READ_TREE CHANGE_FS

$KILN_TEST_ROUNDS: how often it is filled and emptied, at least 2 (6). $KILN_TEST_SOAK: how often the same tree is made and deleted,
at least 10 (10). KILN_TEST_QUICK=1: few rounds of one layout. $KILN_UPSTREAM: upstream's tool; with it, its fsck sees the
filesystem when it is full and when it is empty.
"""
import collections
import functools
import json
import os
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

import changes  # noqa: E402
import images  # noqa: E402
import tap  # noqa: E402

KILN, READ_TREE, CHANGE_FS = (os.path.abspath(p) for p in sys.argv[1:4])
QUICK = bool(os.environ.get("KILN_TEST_QUICK"))
ROUNDS = int(os.environ.get("KILN_TEST_ROUNDS", "4" if QUICK else "6"))
SOAK_ROUNDS = int(os.environ.get("KILN_TEST_SOAK", "10"))
SOAK_FILES = 300
FILES_MAX = 1 << 14
LAYOUTS = (["--block-size=4k"], ["--block-size=512", "--bucket-size=128k", "--btree-node-size=64k"])


def format_one(device, options, size):
    p = subprocess.run([KILN, "format", "--size", size, *options, device], capture_output=True, text=True, timeout=120)
    assert p.returncode == 0, "format: %s" % p.stderr


def usage_of(device):
    p = subprocess.run([KILN, "usage", "--json", device], capture_output=True, text=True, timeout=60)
    assert p.returncode == 0, p.stderr
    return json.loads(p.stdout)


def judges_are_silent(device, what):
    found = changes.kiln_check(KILN, [device])
    assert not found, "%s: kiln check: %s" % (what, found)
    if changes.has_upstream():
        lines = changes.upstream_fsck([device])
        assert not lines, "%s: upstream's fsck:\n%s" % (what, "\n".join(lines[:20]))


def fill(fs, directory, first, size, names, files_max=FILES_MAX):
    """Small or large files until there is no space."""
    count = fs.must("fill", directory, first, files_max, size)
    names.append((directory, first, first + count + 1))
    return count


def empty(fs, names):
    for directory, first, end in names:
        fs.must("empty", directory, first, end)
    fs.must("settle")


def full_with_small_then_large_files(options):
    with images.temporary() as work:
        device = os.path.join(work, "dev")
        format_one(device, options, "32M")
        with changes.Filesystem(CHANGE_FS, [device]) as fs:
            fs.must("mknod", "d", changes.S_IFDIR | 0o755, 0, 0)
        fresh = facts(device)
        for size in (4096, 100, 20 << 20):
            with changes.Filesystem(CHANGE_FS, [device]) as fs:
                count = fill(fs, "d", 0, size, [])
                assert count > 0 or size > 1 << 20, "no file of %d bytes was made" % size
                assert fs.do("write", "d/file-0", 0, 10, data=b"x" * 10) in (10, "ENOSPC")
            judges_are_silent(device, "full of files of %d bytes" % size)
            with changes.Filesystem(CHANGE_FS, [device]) as fs:
                # Still full: what is made now isn't much, and deleting works.
                more = fs.must("fill", "d", 1 << 20, FILES_MAX, size)
                fs.must("empty", "d", 0, count + 1)
                fs.must("empty", "d", 1 << 20, (1 << 20) + more + 1)
                fs.must("settle")
            judges_are_silent(device, "emptied of files of %d bytes" % size)
            now = facts(device)
            assert now["user"] == 0 and now["inodes"] == fresh["inodes"], "%d bytes: %s, fresh: %s" % (size, now, fresh)


def rounds_dont_grow(options):
    """Filled and emptied again and again, now and then closed in between."""
    with images.temporary() as work:
        device = os.path.join(work, "dev")
        format_one(device, options, "32M")
        seen, counts = [], []
        done, at_once = 0, min(5, (ROUNDS + 1) // 2)
        while done < ROUNDS:
            with changes.Filesystem(CHANGE_FS, [device], limit=3600) as fs:
                if not done:
                    fs.must("mknod", "d", changes.S_IFDIR | 0o755, 0, 0)
                for _ in range(min(at_once, ROUNDS - done)):
                    names = []
                    counts.append(fill(fs, "d", 0, (4096, 100000, 1200, 3 << 20)[done % 4], names))
                    fill(fs, "d", 2 << 20, 10, names)
                    empty(fs, names)
                    done += 1
            seen.append(facts(device))
            assert seen[-1]["user"] == 0, "round %d: %s" % (done, seen[-1])
        judges_are_silent(device, "after %d rounds" % ROUNDS)
        btree = [s["btree"] for s in seen]
        print("# btrees: %s, files: %s" % (btree, counts))
        # Where each sample has seen every kind of file, nothing is new after the first.
        half = (len(btree) + 1) // 2
        assert at_once < 4 or max(btree[half:], default=0) <= max(btree[:half]) * 1.05, "btree sectors grow: %s" % btree
        assert len({s["inodes"] for s in seen}) == 1, "inodes: %s" % [s["inodes"] for s in seen]
        for kind in range(4):
            made = counts[kind::4]
            # Generations of inode numbers and nodes that aren't full stay, once; then it must not get worse.
            assert not made[2:] or min(made[2:]) * 4 >= made[1] * 3, "fewer and fewer fit: %s" % made


def the_same_tree_again_and_again(options):
    """Made and deleted: metadata is after many rounds what it was after few."""
    with images.temporary() as work:
        device = os.path.join(work, "dev")
        format_one(device, options, "32M")
        with changes.Filesystem(CHANGE_FS, [device]) as fs:
            fs.must("mknod", "d", changes.S_IFDIR | 0o755, 0, 0)
        fresh = facts(device)
        stops = sorted({1, 10, 100, 1000, *range(SOAK_ROUNDS // 10, SOAK_ROUNDS + 1, SOAK_ROUNDS // 10)})
        seen, done = {}, 0
        for stop in (n for n in stops if n <= SOAK_ROUNDS):
            with changes.Filesystem(CHANGE_FS, [device], limit=3600) as fs:
                for done in range(done + 1, stop + 1):
                    names = []
                    assert fill(fs, "d", 0, 3000 + done % 4096, names, SOAK_FILES) == SOAK_FILES
                    empty(fs, names)
            seen[stop] = dict(facts(device), nodes=nodes_of(device))
            print("# round %d: %s" % (stop, seen[stop]))
            assert seen[stop]["user"] == 0 and seen[stop]["inodes"] == fresh["inodes"], "fresh: %s" % fresh
        judges_are_silent(device, "after %d rounds" % SOAK_ROUNDS)
        btree = {n: s["btree"] for n, s in seen.items()}
        early = max(v for n, v in btree.items() if n <= SOAK_ROUNDS // 2)
        assert max(btree.values()) <= early, "btrees grow: %s" % btree


def nodes_of(device):
    """How many nodes each btree has."""
    p = subprocess.run([KILN, "list", "--json", "-b", "all", "-m", "nodes", device], capture_output=True, text=True, timeout=60)
    assert p.returncode == 0, p.stderr
    return collections.Counter(json.loads(line)["btree"] for line in p.stdout.splitlines())


def facts(device):
    """Bytes of user data and btrees, and the number of inodes, as the counters have them."""
    usage = usage_of(device)
    types = {}
    for member in usage["devices"]:
        for name, value in member["types"].items():
            types[name] = types.get(name, 0) + value["bytes"]
    return {"user": types.get("user", 0), "btree": types.get("btree", 0), "inodes": usage["inodes"]}


def main():
    cases = []
    for options in LAYOUTS[1:] if QUICK else LAYOUTS:
        for test in (full_with_small_then_large_files, rounds_dont_grow, the_same_tree_again_and_again):
            cases.append(("%s %s" % (test.__name__, " ".join(options)), functools.partial(test, options)))
    return tap.run(cases)


sys.exit(main())
