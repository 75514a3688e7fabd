#!/usr/bin/env python3
"""How fast the mount is, against others: rates of creating, looking at, listing, reading and deleting files, and streams.

    mount.py --kiln KILN [--upstream BCACHEFS] [--ceiling PROGRAM] [--kernel btrfs,xfs,ext4] [--files N] [--size SIZE]
             [--folder FOLDER]

Every filesystem is a fresh image in FOLDER (default $TMPDIR; /dev/shm shows what the software costs). All run one after
the other, the same workloads. BCACHEFS: upstream's tool, with `fusemount`. PROGRAM: a FUSE filesystem that keeps all in
memory, called as PROGRAM -f DIRECTORY, such as libfuse's example memfs_ll, which shows what FUSE itself costs (it
forgets everything at the end, so what is measured behind that is left out). Those of the kernel are on loop devices.
Needs root. A table, rates per second; in brackets what each is against ours.
"""
import argparse
import os
import subprocess
import tempfile
import time


class Kiln:
    name = "kiln"
    forgets = False

    def __init__(self, tool, image, directory):
        subprocess.run([tool, "format", "--force", image], check=True, stdout=subprocess.DEVNULL)
        self.tool, self.image, self.directory = tool, image, directory
        self.mount()

    def mount(self):
        subprocess.run([self.tool, "mount", self.image, self.directory], check=True)

    def unmount(self):
        subprocess.run(["umount", self.directory], check=True)


class Upstream(Kiln):
    name = "upstream"

    def __init__(self, tool, image, directory):
        subprocess.run([tool, "format", "--force", image], check=True, stdout=subprocess.DEVNULL)
        self.tool, self.image, self.directory = tool, image, directory
        self.mount()

    def mount(self):
        self.server = subprocess.Popen([self.tool, "fusemount", "-f", self.image, self.directory],
                                       stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not os.path.ismount(self.directory):
            assert self.server.poll() is None, "upstream's fusemount has ended"
            time.sleep(0.01)

    def unmount(self):
        subprocess.run(["umount", self.directory], check=True)
        self.server.wait()


class Ceiling(Kiln):
    name = "ceiling"
    forgets = True

    def __init__(self, tool, image, directory):
        self.tool, self.directory = tool, directory
        self.mount()

    def mount(self):
        self.server = subprocess.Popen([self.tool, "-f", self.directory], stdin=subprocess.DEVNULL,
                                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not os.path.ismount(self.directory):
            assert self.server.poll() is None, "%s has ended" % self.tool
            time.sleep(0.01)


class OfKernel(Kiln):
    def __init__(self, tool, image, directory):
        self.name, self.image, self.directory = tool, image, directory
        subprocess.run(["mkfs." + tool, {"ext4": "-F"}.get(tool, "-f"), image], check=True, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL)
        self.mount()

    def mount(self):
        subprocess.run(["mount", "-o", "loop", self.image, self.directory], check=True)


def timed(function):
    begin = time.monotonic()
    count = function()
    return count / (time.monotonic() - begin)


def workloads(fs, files, size):
    """Yields (name, rate)."""
    folder = os.path.join(fs.directory, "d")
    names = [os.path.join(folder, "f%06d" % i) for i in range(files)]
    block = os.urandom(1 << 20)

    def create():
        os.mkdir(folder)
        for n in names:
            os.close(os.open(n, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o644))
        return files

    def look():
        for n in names:
            os.stat(n)
        return files

    def list_all():
        return sum(1 for e in os.scandir(folder) if e.stat().st_mode)

    def small_writes():
        for n in names:
            fd = os.open(n, os.O_WRONLY)
            os.write(fd, block[:1000])
            os.close(fd)
        return files

    def unlink():
        for n in names:
            os.unlink(n)
        return files

    def syncs():
        fd = os.open(os.path.join(fs.directory, "s"), os.O_CREAT | os.O_WRONLY)
        for i in range(200):
            os.write(fd, block[:4096])
            os.fsync(fd)
        os.close(fd)
        return 200

    def stream_out():
        fd = os.open(os.path.join(fs.directory, "big"), os.O_CREAT | os.O_WRONLY)
        for _ in range(size >> 20):
            os.write(fd, block)
        os.fsync(fd)
        os.close(fd)
        return size >> 20

    def stream_in():
        fd = os.open(os.path.join(fs.directory, "big"), os.O_RDONLY)
        n = 0
        while os.read(fd, 1 << 20):
            n += 1
        os.close(fd)
        return n

    def remount():
        fs.unmount()
        fs.mount()
        return 1

    yield "creates", timed(create)
    yield "small files written", timed(small_writes)
    yield "4 KiB fsyncs", timed(syncs)
    yield "MiB written", timed(stream_out)
    if fs.forgets:
        yield "warm stats", timed(look)
        yield "listed with attributes, warm", timed(list_all)
        yield "unlinks", timed(unlink)
        return
    yield "listed with attributes, warm", timed(list_all)
    yield "unmounts and mounts", timed(remount)
    yield "cold stats", timed(look)
    yield "warm stats", timed(look)
    yield "MiB read, cold", timed(stream_in)
    remount()
    yield "listed with attributes, cold", timed(list_all)
    yield "unlinks", timed(unlink)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--kiln", required=True)
    parser.add_argument("--upstream")
    parser.add_argument("--ceiling")
    parser.add_argument("--kernel", default="")
    parser.add_argument("--files", type=int, default=10000)
    parser.add_argument("--size", type=int, default=512, help="MiB of the file that is streamed")
    parser.add_argument("--folder")
    args = parser.parse_args()
    results = {}
    kinds = [(Kiln, os.path.abspath(args.kiln))]
    kinds += [(Upstream, args.upstream)] if args.upstream else []
    kinds += [(Ceiling, os.path.abspath(args.ceiling))] if args.ceiling else []
    kinds += [(OfKernel, name) for name in args.kernel.split(",") if name]
    columns = []
    for kind, tool in kinds:
        with tempfile.TemporaryDirectory(dir=args.folder) as work:
            image, directory = os.path.join(work, "image"), os.path.join(work, "mnt")
            os.mkdir(directory)
            with open(image, "wb") as f:
                f.truncate((args.size * 3 + 1024) << 20)
            fs = kind(tool, image, directory)
            columns.append(fs.name)
            try:
                for name, rate in workloads(fs, args.files, args.size << 20):
                    results.setdefault(name, {})[fs.name] = rate
            finally:
                fs.unmount()
    print("%-30s" % "per second" + "".join("%18s" % c for c in columns))
    for name, rates in results.items():
        line = "%-30s" % name
        for c in columns:
            ratio = " (%.2f)" % (rates[c] / rates["kiln"]) if c != "kiln" and c in rates and "kiln" in rates else ""
            line += "%18s" % ("%.1f%s" % (rates[c], ratio) if c in rates else "-")
        print(line)


if __name__ == "__main__":
    main()
