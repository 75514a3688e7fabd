#!/usr/bin/env python3
"""How fast the mount is, against others: rates of creating, looking at, listing, reading and deleting files, and streams.

    mount.py --kiln KILN [--upstream BCACHEFS] [--files N] [--size SIZE] [--folder FOLDER]

Every filesystem is a fresh image in FOLDER (default $TMPDIR; /dev/shm shows what the software costs). All run one after
the other, the same workloads. BCACHEFS: upstream's tool, with `fusemount`. Needs root. A table, rates per second.
"""
import argparse
import os
import subprocess
import tempfile
import time


class Kiln:
    name = "kiln"

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
    parser.add_argument("--files", type=int, default=10000)
    parser.add_argument("--size", type=int, default=512, help="MiB of the file that is streamed")
    parser.add_argument("--folder")
    args = parser.parse_args()
    results = {}
    kinds = [(Kiln, os.path.abspath(args.kiln))] + ([(Upstream, args.upstream)] if args.upstream else [])
    for kind, tool in kinds:
        with tempfile.TemporaryDirectory(dir=args.folder) as work:
            image, directory = os.path.join(work, "image"), os.path.join(work, "mnt")
            os.mkdir(directory)
            with open(image, "wb") as f:
                f.truncate((args.size * 3 + 1024) << 20)
            fs = kind(tool, image, directory)
            try:
                for name, rate in workloads(fs, args.files, args.size << 20):
                    results.setdefault(name, {})[kind.name] = rate
            finally:
                fs.unmount()
    print("%-32s" % "per second" + "".join("%12s" % k.name for k, _ in kinds) + ("     ratio" if args.upstream else ""))
    for name, rates in results.items():
        line = "%-32s" % name + "".join("%12.1f" % rates[k.name] for k, _ in kinds)
        print(line + ("%10.2f" % (rates["kiln"] / rates["upstream"]) if args.upstream else ""))


if __name__ == "__main__":
    main()
