#!/usr/bin/env python3
"""A full filesystem says so, can be emptied, and is then as it was when it was new.

    test_full.py KILN READ_TREE CHANGE_FS

$KILN_TEST_ROUNDS: how often it is filled and emptied, at least 2 (6). $KILN_TEST_SOAK: how often the same tree is made and deleted,
at least 10 (10). KILN_TEST_ALL=1: everything with all layouts. KILN_TEST_QUICK=1: few rounds of one layout. $KILN_UPSTREAM: upstream's tool; with it, its fsck sees the
filesystem when it is full and when it is empty.
"""
import collections
import functools
import itertools
import json
import os
import random
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

import changes  # noqa: E402
import images  # noqa: E402
import tap  # noqa: E402

KILN, READ_TREE, CHANGE_FS = (os.path.abspath(p) for p in sys.argv[1:4])
QUICK = bool(os.environ.get("KILN_TEST_QUICK"))
ALL = bool(os.environ.get("KILN_TEST_ALL"))
ROUNDS = int(os.environ.get("KILN_TEST_ROUNDS", "4" if QUICK else "6"))
SOAK_ROUNDS = int(os.environ.get("KILN_TEST_SOAK", "10"))
SOAK_FILES = 300
DELETE_ROUNDS = 1 if SOAK_ROUNDS <= 10 else 10
FILES_MAX = 1 << 14
LAYOUTS = (["--block-size=4k"], ["--block-size=512", "--bucket-size=128k", "--btree-node-size=64k"])
# Several devices, where "--replicas" is among them. Small, as each costs time.
SMALL = ["--bucket-size=128k", "--btree-node-size=64k"]
MORE_LAYOUTS = (["--replicas=2", *SMALL], ["--compression=zstd", *SMALL], ["--encrypted", "--no-passphrase", *SMALL],
                ["--block-size=512", "--bucket-size=64k", "--btree-node-size=16k", "--compression=lz4", "--encrypted", "--no-passphrase", "--replicas=2"])
NAMES_LAYOUT = ["--block-size=512", "--bucket-size=64k", "--btree-node-size=16k"]


def format_all(work, options, size):
    devices = [os.path.join(work, "dev%d" % i) for i in range(3 if "--replicas=2" in options else 1)]
    size = size * 3 // 4 if len(devices) > 1 else size
    p = subprocess.run([KILN, "format", "--size", "%dM" % size, *options, *devices], capture_output=True, text=True, timeout=120)
    assert p.returncode == 0, "format: %s" % p.stderr
    return devices


def usage_of(devices):
    p = subprocess.run([KILN, "usage", "--json", ":".join(devices)], capture_output=True, text=True, timeout=60)
    assert p.returncode == 0, p.stderr
    return json.loads(p.stdout)


def judges_are_silent(devices, what):
    found = changes.kiln_check(KILN, devices)
    assert not found, "%s: kiln check: %s" % (what, found)
    if changes.has_upstream():
        lines = changes.upstream_fsck(devices)
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


def full_with_small_then_large_files(options, size=32):
    with images.temporary() as work:
        devices = format_all(work, options, size)
        with changes.Filesystem(CHANGE_FS, devices) as fs:
            fs.must("mknod", "d", changes.S_IFDIR | 0o755, 0, 0, 0)
        fresh = facts(devices)
        for bytes_each in (4096, 100, 20 << 20):
            with changes.Filesystem(CHANGE_FS, devices) as fs:
                count = fill(fs, "d", 0, bytes_each, [])
                assert count > 0 or bytes_each > 1 << 20, "no file of %d bytes was made" % bytes_each
                assert fs.do("write", "d/file-0", 0, 10, data=b"x" * 10) in (10, "ENOSPC")
            judges_are_silent(devices, "full of files of %d bytes" % bytes_each)
            with changes.Filesystem(CHANGE_FS, devices) as fs:
                # Still full: what is made now isn't much, and deleting works.
                more = fs.must("fill", "d", 1 << 20, FILES_MAX, bytes_each)
                fs.must("empty", "d", 0, count + 1)
                fs.must("empty", "d", 1 << 20, (1 << 20) + more + 1)
                fs.must("settle")
            judges_are_silent(devices, "emptied of files of %d bytes" % bytes_each)
            now = facts(devices)
            assert now["user"] == 0 and now["inodes"] == fresh["inodes"], "%d bytes: %s, fresh: %s" % (bytes_each, now, fresh)


def full_where_buckets_hold_many_nodes(options, size):
    """Nodes that are soon full of changes: each that is replaced leaves a hole in a bucket that others are in."""
    with images.temporary() as work:
        devices = format_all(work, options, size)
        with changes.Filesystem(CHANGE_FS, devices) as fs:
            fs.must("mknod", "d", changes.S_IFDIR | 0o755, 0, 0, 0)
            names = []
            assert fill(fs, "d", 0, 4096, names) > 1000
            empty(fs, names)
        judges_are_silent(devices, "emptied")


class Names:
    """Files that are nothing but a long name each, made until there is no space, and deleted in any order."""

    def __init__(self, seed):
        self.draw, self.left, self.made = random.Random(seed), [], 0

    def fill(self, fs):
        got = 0
        while got != "ENOSPC":
            name = "d/%d-" % self.made + "n" * 180
            got = fs.do("mknod", name, changes.S_IFREG | 0o644, 0, 0, 0)
            assert got in (0, "ENOSPC"), "the %dth name: %s" % (self.made, got)
            self.made += 1
            if not got:
                self.left.append(name)

    def delete(self, fs, nr):
        for _ in range(nr):
            i = self.draw.randrange(len(self.left))
            fs.must("unlink", self.left[i], 0)
            self.left[i] = self.left[-1]
            self.left.pop()


def full_of_names_without_a_device(options, size=16):
    """It can be changed and emptied without one of its devices, however full of metadata it is; and gone on with when that is back."""
    with images.temporary() as work:
        devices = format_all(work, [*options, "--replicas=2"], size)
        names = Names(size)
        with changes.Filesystem(CHANGE_FS, devices) as fs:
            fs.must("mknod", "d", changes.S_IFDIR | 0o755, 0, 0, 0)
            names.fill(fs)
        with changes.Filesystem(CHANGE_FS, devices[1:], options=["--degraded"]) as fs:
            names.delete(fs, len(names.left) // 2)
            names.fill(fs)
            names.delete(fs, len(names.left) // 8)
        judges_are_silent(devices, "full without a device")
        with changes.Filesystem(CHANGE_FS, devices[1:], options=["--degraded"]) as fs:
            names.delete(fs, len(names.left))
            names.fill(fs)
        judges_are_silent(devices, "full of others without a device")
        with changes.Filesystem(CHANGE_FS, devices) as fs:
            names.delete(fs, len(names.left))
        judges_are_silent(devices, "emptied")


class Deletable:
    """Things with long names, attributes and data, which are deleted one by one, the filesystem being full each time
    (with KILN_TEST_ALL=1, else for the first ones)."""

    def __init__(self, fs):
        self.fs = fs
        self.top = self.directory("top")
        self.directories = [self.directory("%s/%s" % (self.top, self.name("directory", i))) for i in range(5)]
        self.files = [self.file("%s/%s" % (self.top, self.name("file", i)), 5000 + 60000 * (i % 3)) for i in range(10)]
        self.large = self.file(self.top + "/large", 3 << 20)
        for i, path in enumerate(self.files[:4]):
            fs.must("link", path, "%s/%s" % (self.directories[0], self.name("link", i)))

    @staticmethod
    def name(kind, i):
        return "%s-%02d-" % (kind, i) + "n" * 230

    def attributes(self, path):
        for name, size in (("user.a", 30), ("user.with-a-long-name" + "x" * 150, 900), ("user.large", 1900)):
            self.fs.must("setxattr", path, name, "v" * size)

    def directory(self, path):
        self.fs.must("mknod", path, changes.S_IFDIR | 0o755, 0, 0, 0)
        self.attributes(path)
        return path

    def file(self, path, size):
        self.fs.must("mknod", path, changes.S_IFREG | 0o644, 0, 0, 0)
        assert self.fs.must("write", path, 0, size, data=os.urandom(size)) == size
        self.attributes(path)
        return path

    def size_set(self, size):
        self.fs.must("setattr", self.large, changes.SET_SIZE, 0, 0, 0, size, 0)

    def deletions(self):
        """Each a step, after which it is filled again."""
        fs, files, directories = self.fs, self.files, self.directories
        yield lambda: self.size_set(5 << 19)
        yield lambda: self.size_set((1 << 20) + 1234)
        yield lambda: fs.must("punch", self.large, 12288, 491520)
        yield lambda: [fs.must("unlink", files.pop(), 0) for _ in range(3)]
        yield lambda: fs.must("rename", files.pop(), files[-1], 0)
        yield lambda: fs.must("rename", directories.pop(), directories[-1], 0)
        yield lambda: fs.must("rename", files.pop(), self.large, 0)
        yield lambda: self.size_set(0)
        yield lambda: fs.must("removexattr", files[-1], "user.large")
        yield lambda: fs.must("unlink", directories.pop(), 1)
        yield lambda: [fs.must("unlink", directories[0] + "/" + self.name("link", i), 0) for i in range(4)]
        yield lambda: fs.must("unlink", self.large, 0)
        while files:
            yield lambda: fs.must("unlink", files.pop(), 0)
            if files:
                yield lambda: fs.must("rename", files.pop(), files[-1], 0) if len(files) > 1 else None
        while directories:
            yield lambda: fs.must("unlink", directories.pop(), 1)
        yield lambda: fs.must("unlink", self.top, 1)


def everything_can_be_deleted_when_full(options, size=32):
    with images.temporary() as work:
        devices = format_all(work, options, size)
        for round_nr in range(DELETE_ROUNDS):
            with changes.Filesystem(CHANGE_FS, devices, limit=3600) as fs:
                if not round_nr:
                    fs.must("mknod", "d", changes.S_IFDIR | 0o755, 0, 0, 0)
                names, first = [], 0
                deletable = Deletable(fs)
                for step, delete in enumerate(itertools.chain([lambda: None], deletable.deletions())):
                    delete()
                    # To the last byte: large ones, blocks, and what is in the btrees alone.
                    if step > 3 and not ALL:
                        continue
                    for bytes_each in (1 << 20, 4096, 100, 0):
                        first += 1 + fill(fs, "d", first, bytes_each, names)
                fs.must("sync")
            judges_are_silent(devices, "full of other things")
            with changes.Filesystem(CHANGE_FS, devices) as fs:
                empty(fs, names)
            assert facts(devices)["user"] == 0, facts(devices)
        judges_are_silent(devices, "emptied")


def rounds_dont_grow(options, size=32):
    """Filled and emptied again and again, now and then closed in between."""
    with images.temporary() as work:
        devices = format_all(work, options, size)
        seen, counts = [], []
        done, at_once = 0, min(5, (ROUNDS + 1) // 2)
        while done < ROUNDS:
            with changes.Filesystem(CHANGE_FS, devices, limit=3600) as fs:
                if not done:
                    fs.must("mknod", "d", changes.S_IFDIR | 0o755, 0, 0, 0)
                for _ in range(min(at_once, ROUNDS - done)):
                    names = []
                    counts.append(fill(fs, "d", 0, (4096, 100000, 1200, 3 << 20)[done % 4], names))
                    fill(fs, "d", 2 << 20, 10, names)
                    empty(fs, names)
                    done += 1
            seen.append(facts(devices))
            assert seen[-1]["user"] == 0, "round %d: %s" % (done, seen[-1])
        judges_are_silent(devices, "after %d rounds" % ROUNDS)
        btree = [s["btree"] for s in seen]
        print("# btrees: %s, files: %s" % (btree, counts))
        # Where each sample has seen every kind of file, nothing is new after the first; how well nodes are filled varies.
        half, node = (len(btree) + 1) // 2, btree[-1] // sum(nodes_of(devices).values())
        assert at_once < 4 or max(btree[half:], default=0) <= max(btree[:half]) * 1.05 + 2 * node, "btree sectors grow: %s" % btree
        assert len({s["inodes"] for s in seen}) == 1, "inodes: %s" % [s["inodes"] for s in seen]
        for kind in range(4):
            made = counts[kind::4]
            # Generations of inode numbers and nodes that aren't full stay, once; then it must not get worse.
            assert not made[2:] or min(made[2:]) * 4 >= made[1] * 3, "fewer and fewer fit: %s" % made


def the_same_tree_again_and_again(options, size=32):
    """Made and deleted: metadata is after many rounds what it was after few."""
    with images.temporary() as work:
        devices = format_all(work, options, size)
        with changes.Filesystem(CHANGE_FS, devices) as fs:
            fs.must("mknod", "d", changes.S_IFDIR | 0o755, 0, 0, 0)
        fresh = facts(devices)
        stops = sorted({1, 10, 100, 1000, *range(SOAK_ROUNDS // 10, SOAK_ROUNDS + 1, SOAK_ROUNDS // 10)})
        seen, done = {}, 0
        for stop in (n for n in stops if n <= SOAK_ROUNDS):
            with changes.Filesystem(CHANGE_FS, devices, limit=3600) as fs:
                for done in range(done + 1, stop + 1):
                    names = []
                    assert fill(fs, "d", 0, 3000 + done % 4096, names, SOAK_FILES) == SOAK_FILES
                    empty(fs, names)
            seen[stop] = dict(facts(devices), nodes=nodes_of(devices))
            print("# round %d: %s" % (stop, seen[stop]))
            assert seen[stop]["user"] == 0 and seen[stop]["inodes"] == fresh["inodes"], "fresh: %s" % fresh
        judges_are_silent(devices, "after %d rounds" % SOAK_ROUNDS)
        btree = {n: s["btree"] for n, s in seen.items()}
        early = max(v for n, v in btree.items() if n <= SOAK_ROUNDS // 2)
        # Generations and counters have longer keys the larger they are: in few rounds a node may be split for that.
        spare = 0 if SOAK_ROUNDS >= 1000 else btree[1] // sum(seen[1]["nodes"].values())
        assert max(btree.values()) <= early + spare, "btrees grow: %s" % btree


def promised_and_written(options, sizes, missing=()):
    """Promise a file all the space there is, then write it. How many bytes that were, of a filesystem of devices of these sizes (MiB; 0: a cache)."""
    with images.temporary() as work:
        given, devices = [], []
        for i, size in enumerate(sizes):
            device = os.path.join(work, "dev%d" % i)
            given += ["--durability=%d" % bool(size), "--size=%dM" % (size or 100), device]
            devices += [] if i in missing else [device]
        p = subprocess.run([KILN, "format", *options, *given], capture_output=True, text=True, timeout=120)
        assert p.returncode == 0, "format: %s" % p.stderr
        with changes.Filesystem(CHANGE_FS, devices, options=["--degraded"] if missing else []) as fs:
            fs.must("mknod", "file", changes.S_IFREG | 0o644, 0, 0, 0)
            at, step = 0, 64 << 20
            while step >= 4096:
                got = fs.do("fallocate", "file", 0, at, step)
                assert got in (0, "ENOSPC"), got
                at, step = (at + step, step) if got == 0 else (at, step // 2)
            written = 0
            while written < at:
                n = min(1 << 20, at - written)
                got = fs.do("write", "file", written, n, data=os.urandom(n))
                assert got == n, "%s, where %d of %d bytes had been written that are promised" % (got, written, at)
                written += n
            fs.must("sync")
        if not missing:
            judges_are_silent(devices, "full")
        return at


def what_is_promised_can_be_written(options):
    """Whatever the devices are: a cache, one that is larger than all others have copies for, one that isn't there, offer nothing."""
    for more, plain, with_more, missing in (([], (40,), (40, 0), ()), (["--replicas=2"], (32, 32), (32, 80, 0), ()),
                                            (["--replicas=2"], (32, 32), (32, 32, 48), (2,))):
        usual = promised_and_written([*options, *more], plain)
        got = promised_and_written([*options, *more], with_more, missing)
        assert abs(got - usual) < 1 << 20, "devices of %s MiB: %d bytes; %s: %d" % (plain, usual, with_more, got)
    # Where there are fewer devices than copies, as many are written as there can be.
    usual = promised_and_written(options, (32,))
    got = promised_and_written([*options, "--replicas=2"], (32, 32), (1,))
    assert abs(got - usual) < 1 << 20, "one device: %d bytes; one of two: %d" % (usual, got)


def write_until_full(fs, path):
    """How many bytes fit."""
    size, step = 0, 1 << 20
    while step >= 4096:
        got = fs.do("write", path, size, step, data=os.urandom(step))
        assert got == "ENOSPC" or got > 0, got
        size, step = (size + got, step) if got == step else (size + (0 if got == "ENOSPC" else got), step // 2)
    return size


def overwritten_with_fewer_devices_than_copies(options):
    """What is there can be overwritten on a full filesystem, whether it was written when all devices were there, or not."""
    for lost_before in True, False:
        with images.temporary() as work:
            devices = [os.path.join(work, "dev%d" % i) for i in range(2)]
            p = subprocess.run([KILN, "format", *options, "--replicas=2", "--size=32M", *devices], capture_output=True, text=True, timeout=120)
            assert p.returncode == 0, "format: %s" % p.stderr
            if not lost_before:
                with changes.Filesystem(CHANGE_FS, devices) as fs:
                    fs.must("mknod", "file", changes.S_IFREG | 0o644, 0, 0, 0)
                    size = write_until_full(fs, "file")
            with changes.Filesystem(CHANGE_FS, devices[:1], options=["--degraded"]) as fs:
                if lost_before:
                    fs.must("mknod", "file", changes.S_IFREG | 0o644, 0, 0, 0)
                    size = write_until_full(fs, "file")
                assert size > 8 << 20, "no more than %d bytes fit" % size
                draw = random.Random(size)
                for i in range(600):
                    n = draw.choice((4096, 4096, 65536))
                    got = fs.do("write", "file", draw.randrange((size - n) // 4096) * 4096, n, data=os.urandom(n))
                    assert got == n, "overwriting %d bytes, the %dth time: %s" % (n, i, got)
                    if i % 3 == 0:
                        fs.must("sync")


def nodes_of(devices):
    """How many nodes each btree has."""
    p = subprocess.run([KILN, "list", "--json", "-b", "all", "-m", "nodes", ":".join(devices)], capture_output=True, text=True, timeout=60)
    assert p.returncode == 0, p.stderr
    return collections.Counter(json.loads(line)["btree"] for line in p.stdout.splitlines())


def facts(devices):
    """Bytes of user data and btrees, and the number of inodes, as the counters have them."""
    usage = usage_of(devices)
    types = {}
    for member in usage["devices"]:
        for name, value in member["types"].items():
            types[name] = types.get(name, 0) + value["bytes"]
    return {"user": types.get("user", 0), "btree": types.get("btree", 0), "inodes": usage["inodes"]}


def main():
    cases = []
    for options in LAYOUTS[1:] if QUICK else LAYOUTS:
        for test in TESTS:
            cases.append(("%s %s" % (test.__name__, " ".join(options)), functools.partial(test, options)))
    if not QUICK:
        cases.append(("everything_can_be_deleted_when_full", functools.partial(everything_can_be_deleted_when_full, LAYOUTS[0])))
        cases.append(("full_with_small_then_large_files, of inline data", functools.partial(full_with_small_then_large_files, MORE_LAYOUTS[1], size=20)))
        cases.append(("full_where_buckets_hold_many_nodes", functools.partial(full_where_buckets_hold_many_nodes, MORE_LAYOUTS[-1], size=12)))
        cases.append(("full_of_names_without_a_device", functools.partial(full_of_names_without_a_device, NAMES_LAYOUT)))
        cases += [("what_is_promised_can_be_written %s" % " ".join(options), functools.partial(what_is_promised_can_be_written, options))
                  for options in (SMALL, [*SMALL, "--nocow"])]
        cases += [("overwritten_with_fewer_devices_than_copies %s" % " ".join(options), functools.partial(overwritten_with_fewer_devices_than_copies, options))
                  for options in (SMALL, [*SMALL, "--nocow"], LAYOUTS[0])]
    for options in [*LAYOUTS[1:], *MORE_LAYOUTS] if ALL else []:
        for test, size in (everything_can_be_deleted_when_full, 32), *((t, 20) for t in TESTS):
            cases.append(("%s %s" % (test.__name__, " ".join(options)), functools.partial(test, options, size=size)))
    return tap.run(cases)


TESTS = (full_with_small_then_large_files, rounds_dont_grow, the_same_tree_again_and_again)
sys.exit(main())
