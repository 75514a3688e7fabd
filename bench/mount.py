#!/usr/bin/env python3
"""How fast the mount is, against others, in one run: trees in and out, rates of creating, looking at, listing and deleting
files, streams, random places, fsyncs, mounting.

    mount.py --kiln KILN [--upstream BCACHEFS] [--ceiling COMMAND] [--kernel btrfs,xfs,ext4] [--rounds N] [--files N]
             [--size MIB] [--tree DIRECTORY] [--folder FOLDER]

Every filesystem is a fresh image in FOLDER (default $TMPDIR; /dev/shm shows what the software costs). In each round all
take their turn. BCACHEFS: upstream's tool, with `fusemount`. COMMAND: a FUSE filesystem that keeps all in memory, called as
COMMAND -f DIRECTORY, which shows what FUSE itself costs: libfuse's example memfs_ll with `-o writeback_cache,no_timeout`, and
`default_permissions` to have the kernel check them, for which it asks once more for a directory that has changed (it
forgets everything at the end, so what is measured behind that is left out). Those of the kernel are on loop devices. DIRECTORY
(default /usr/include) is the tree that is copied.

Needs root. A table of medians, per second unless it says ms; in brackets what ours is of each, from round to round. Behind it what
misses its goal: upstream's rates, where it does the work; 80 % of the ceiling's where names and attributes are concerned; of btrfs'
1/1.2 with fsync, 1/1.5 with streams.
"""
import argparse
import mmap
import os
import random
import shlex
import statistics
import subprocess
import sys
import tempfile
import threading
import time

BLOCK = 4096
FILE_BYTES = 4096  # of small files: a block, so that deleting them gives space back


def run(*argv):
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def say(text):
    print(text, file=sys.stderr, flush=True)


def drop_caches(which):
    with open("/proc/sys/vm/drop_caches", "w") as f:
        f.write(which)


class Mounted:
    """A fresh filesystem, mounted."""
    forgets = False  # everything, when it is unmounted

    def __init__(self, tool, image, directory):
        self.tool, self.image, self.directory = tool, image, directory
        self.server = None
        self.format()
        self.mount()

    def format(self):
        run(self.tool, "format", "--force", self.image)

    def serve(self, *argv):
        """A server that stays in the foreground."""
        self.server = subprocess.Popen([*argv, self.directory], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                       stderr=subprocess.DEVNULL)
        while not os.path.ismount(self.directory):
            assert self.server.poll() is None, "%s has ended" % argv[0]
            time.sleep(0.001)

    def unmount(self):
        run("umount", self.directory)
        if self.server:
            self.server.wait()

    def sync(self):
        """As durable as it gets."""
        fd = os.open(self.directory, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
        run("sync", "-f", self.directory)


class Kiln(Mounted):
    name = "kiln"

    def mount(self):
        self.serve(self.tool, "mount", "-f", self.image)

    def sync(self):
        run(self.tool, "sync", self.directory)


class Upstream(Mounted):
    name = "upstream"

    def mount(self):
        self.serve(self.tool, "fusemount", "-f", self.image)


class Ceiling(Mounted):
    name = "ceiling"
    forgets = True

    def format(self):
        pass

    def mount(self):
        self.serve(*shlex.split(self.tool), "-f")

    def sync(self):
        run("sync", "-f", self.directory)


class OfKernel(Mounted):
    def __init__(self, tool, image, directory):
        self.name = tool
        super().__init__(tool, image, directory)

    def format(self):
        run("mkfs." + self.tool, {"ext4": "-F"}.get(self.tool, "-f"), self.image)

    def mount(self):
        run("mount", "-o", "loop", self.image, self.directory)


# --- workloads ---


def timed(function):
    begin = time.monotonic()
    count = function()
    return count / (time.monotonic() - begin)


def many(names, function):
    for name in names:
        function(name)
    return len(names)


def create(name):
    os.close(os.open(name, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o644))


def list_all(folder):
    return sum(1 for e in os.scandir(folder) if e.stat().st_mode)


def free_blocks(fs):
    st = os.statvfs(fs.directory)
    return st.f_bfree * st.f_frsize // BLOCK


class Workloads:
    """Each method measures a few things and puts their rates into @rates. The order matters: later ones need what earlier ones made."""

    def __init__(self, fs, args, rates):
        self.fs, self.args, self.rates = fs, args, rates
        self.folder = os.path.join(fs.directory, "d")
        self.names = [os.path.join(self.folder, "f%06d" % i) for i in range(args.files)]
        self.big = os.path.join(fs.directory, "big")
        self.block = random.Random(1).randbytes(1 << 20)
        self.tree_nr = sum(1 + len(names) for _, _, names in os.walk(args.tree))

    def measure(self, name, function):
        try:
            rate = timed(function)
        except OSError as e:
            if isinstance(self.fs, Kiln):
                raise
            say("%s: %s: %s" % (self.fs.name, name, e))  # upstream's fusemount doesn't do all
            return
        say("%s: %s: %.1f" % (self.fs.name, name, rate))
        self.rates.setdefault(name, {}).setdefault(self.fs.name, []).append(rate)

    def measure_ms(self, name, function):
        begin = time.monotonic()
        function()
        self.rates.setdefault(name + ", ms", {}).setdefault(self.fs.name, []).append((time.monotonic() - begin) * 1000)

    def remount(self):
        """All caches cold, as far as this fs can be read again."""
        if self.fs.forgets:
            return
        self.fs.unmount()
        drop_caches("3")
        self.fs.mount()

    def tree_in(self):
        def copy():
            run("cp", "-r", self.args.tree, os.path.join(self.fs.directory, "tree"))
            self.fs.sync()
            return self.tree_nr

        self.measure("tree copied in and synced", copy)

    def tree_out(self):
        self.remount()

        def copy():
            subprocess.run("tar cf - . | cat >/dev/null", shell=True, check=True, cwd=os.path.join(self.fs.directory, "tree"))
            return self.tree_nr

        if not self.fs.forgets:
            self.measure("tree copied out, cold", copy)
        self.measure("tree copied out, warm", copy)

    def names_made(self):
        os.mkdir(self.folder)
        self.measure("creates", lambda: many(self.names, create))

        def write(name):
            fd = os.open(name, os.O_WRONLY)
            os.write(fd, self.block[:FILE_BYTES])
            os.close(fd)

        self.measure("small files written", lambda: many(self.names, write))
        self.fs.sync()

    def names_looked_at(self):
        # Closing a file that was written makes the kernel ask once more.
        many(self.names, os.stat)
        self.measure("warm stats", lambda: many(self.names, os.stat))
        # The kernel knows the attributes, not yet what is in the directory; then both.
        self.measure("listed with attributes, warm", lambda: list_all(self.folder))
        self.measure("listed with attributes, again", lambda: list_all(self.folder))
        drop_caches("2")
        self.measure("stats, cold in the kernel", lambda: many(self.names, os.stat))
        drop_caches("2")
        self.measure("listed with attributes, cold in the kernel", lambda: list_all(self.folder))
        if self.fs.forgets:
            return
        self.remount()
        self.measure("stats, cold", lambda: many(self.names, os.stat))
        self.remount()
        self.measure("listed with attributes, cold", lambda: list_all(self.folder))

    def names_removed(self):
        """And until most of the space is free; what the deletions themselves took is left aside."""
        blocks = len(self.names) * FILE_BYTES // BLOCK
        free = free_blocks(self.fs) + blocks * 3 // 4
        begin = time.monotonic()
        self.measure("unlinks", lambda: many(self.names, os.unlink))
        if self.fs.forgets:
            return
        self.fs.sync()
        while free_blocks(self.fs) < free:
            if time.monotonic() > begin + 30:
                return say("%s: the space isn't free after half a minute" % self.fs.name)
            time.sleep(0.002)
        self.rates.setdefault("unlinks, until the space is free", {}).setdefault(self.fs.name, []).append(
            len(self.names) / (time.monotonic() - begin))

    def names_in_folders(self):
        """Directories made and removed, and files renamed."""
        folders = [os.path.join(self.folder, "d%05d" % i) for i in range(self.args.files)]
        self.measure("directories made", lambda: many(folders, os.mkdir))
        self.measure("renames", lambda: many(folders, lambda name: os.rename(name, name + "r")))
        self.measure("directories removed", lambda: many(os.listdir(self.folder), lambda name: os.rmdir(os.path.join(self.folder, name))))

    def streams(self):
        mib = self.args.size

        def out():
            fd = os.open(self.big, os.O_CREAT | os.O_WRONLY)
            for _ in range(mib):
                os.write(fd, self.block)
            os.fsync(fd)
            os.close(fd)
            return mib

        def back():
            fd = os.open(self.big, os.O_RDONLY)
            buf = bytearray(1 << 20)
            while os.readv(fd, [buf]):
                pass
            os.close(fd)
            return mib

        self.measure("MiB written and synced", out)
        self.measure("MiB written over and synced", out)
        if self.fs.forgets:
            drop_caches("1")
        self.remount()
        self.measure("MiB read, cold", back)

    def random_places(self):
        rng = random.Random(2)
        nr = min(self.args.size * 256 // 4, 5000)
        places = [rng.randrange(self.args.size * 256) * BLOCK for _ in range(nr)]
        buf = mmap.mmap(-1, BLOCK)
        buf[:] = self.block[:BLOCK]

        def each(flags, function, sync=False):
            fd = os.open(self.big, flags)
            for at in places:
                function(fd, [buf], at)
            if sync:
                os.fdatasync(fd)
            os.close(fd)
            return nr

        drop_caches("1")
        self.remount()
        self.measure("4 KiB reads at random, cold", lambda: each(os.O_RDONLY, os.preadv))
        self.measure("4 KiB writes at random, then a sync", lambda: each(os.O_WRONLY, os.pwritev, sync=True))
        self.measure("4 KiB direct writes at random", lambda: each(os.O_WRONLY | os.O_DIRECT, os.pwritev))
        self.measure("4 KiB direct reads at random", lambda: each(os.O_RDONLY | os.O_DIRECT, os.preadv))

    def fsyncs(self):
        if self.fs.forgets:
            return
        nr = 300

        def appends(name):
            fd = os.open(os.path.join(self.fs.directory, name), os.O_CREAT | os.O_WRONLY)
            for _ in range(nr):
                os.write(fd, self.block[:BLOCK])
                os.fsync(fd)
            os.close(fd)
            return nr

        def by_eight():
            threads = [threading.Thread(target=appends, args=("s%d" % i,)) for i in range(8)]
            for t in threads:
                t.start()
            for t in threads:
                t.join()
            return nr * len(threads)

        def new_files():
            for i in range(nr):
                fd = os.open(os.path.join(self.fs.directory, "n%d" % i), os.O_CREAT | os.O_WRONLY)
                os.write(fd, self.block[:BLOCK])
                os.fsync(fd)
                os.close(fd)
            return nr

        self.measure("fsyncs of 4 KiB appended", lambda: appends("s"))
        self.measure("fsyncs of 4 KiB appended, by 8", by_eight)
        self.measure("fsyncs of new files", new_files)

    def mounting(self):
        if self.fs.forgets:
            return
        self.measure_ms("unmount", self.fs.unmount)
        self.measure_ms("mount", self.fs.mount)

    def run(self):
        self.tree_in()
        self.names_made()
        self.names_looked_at()
        self.names_removed()
        self.names_in_folders()
        self.streams()
        self.random_places()
        self.fsyncs()
        self.tree_out()
        self.mounting()


# --- what came of it ---


def of_names(name):
    words = ("creates", "stats", "listed", "unlinks", "directories", "renames")
    return any(name.startswith(w) or (" " + w) in name for w in words) and "until" not in name


def goal(name, other):
    """The share of the other's rate that ours should have at least, or None."""
    if name.endswith("ms") or name == "warm stats":  # of which no server hears
        return None
    if other == "upstream":
        is_skipped = "sync" in name or name == "unlinks"  # it neither syncs nor waits for deletions
        return None if is_skipped else 1
    if other == "ceiling":
        return 0.8 if of_names(name) else None
    if other == "btrfs":
        return 1 / 1.2 if name.startswith("fsyncs") else 1 / 1.5 if name.startswith("MiB") else None
    return None


def shares(rates, other):
    """Of ours to the other's, round by round; the larger the better."""
    return [o / t for o, t in zip(rates.get("kiln", []), rates[other])]


def print_table(rates, columns):
    print("%-42s" % "per second" + "".join("%20s" % c for c in columns))
    missed = []
    for name, of in rates.items():
        line = "%-42s" % name
        for c in columns:
            if c not in of:
                line += "%20s" % "-"
                continue
            text = "%.*f" % (1 if statistics.median(of[c]) < 1000 else 0, statistics.median(of[c]))
            if c != "kiln" and shares(of, c):
                share = statistics.median(shares(of, c))
                text += " (%.2f)" % share
                wanted = goal(name, c)
                if wanted and share < wanted:
                    s = shares(of, c)
                    missed.append("%s: %.2f of %s (%.2f to %.2f), should be %.2f" % (name, share, c, min(s), max(s), wanted))
            line += "%20s" % text
        print(line)
    print("\nBelow its goal:" if missed else "\nNothing is below its goal.")
    for line in missed:
        print("  " + line)


def one(kind, tool, args, rates):
    with tempfile.TemporaryDirectory(dir=args.folder) as work:
        image, directory = os.path.join(work, "image"), os.path.join(work, "mnt")
        os.mkdir(directory)
        with open(image, "wb") as f:
            f.truncate((args.size * 3 + 2048) << 20)
        fs = kind(tool, image, directory)
        try:
            Workloads(fs, args, rates).run()
        finally:
            fs.unmount()
        return fs.name


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--kiln", required=True)
    parser.add_argument("--upstream")
    parser.add_argument("--ceiling")
    parser.add_argument("--kernel", default="")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--files", type=int, default=10000)
    parser.add_argument("--size", type=int, default=512, help="MiB of the file that is streamed")
    parser.add_argument("--tree", default="/usr/include")
    parser.add_argument("--folder")
    args = parser.parse_args()
    rates, columns = {}, {}
    kinds = [(Kiln, os.path.abspath(args.kiln))]
    kinds += [(Upstream, os.path.abspath(args.upstream))] if args.upstream else []
    kinds += [(Ceiling, args.ceiling)] if args.ceiling else []
    kinds += [(OfKernel, name) for name in args.kernel.split(",") if name]
    with tempfile.TemporaryDirectory(dir=args.folder) as work:
        # Links followed, as not all of them know symlinks; and read from memory.
        tree = os.path.join(work, "tree")
        run("cp", "-rL", args.tree, tree)
        args.tree = tree
        for _ in range(args.rounds):
            for kind, tool in kinds:
                columns[one(kind, tool, args, rates)] = True
    print_table(rates, list(columns))
    return 0


if __name__ == "__main__":
    sys.exit(main())
