#!/usr/bin/env python3
"""The read-write mount: what programs that change something see, and what is there afterwards.

    test_write.py KILN FAULTY_MOUNT

Needs root and /dev/fuse, else everything is skipped, and says so. Whatever was done, `kiln check` finds nothing wrong
after the unmount.
"""
import concurrent.futures
import contextlib
import ctypes
import errno
import fcntl
import hashlib
import json
import mmap
import os
import random
import re
import resource
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time

TESTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
sys.path.insert(0, os.path.join(TESTS, "lib"))

import doors  # noqa: E402
import images  # noqa: E402
import manifest  # noqa: E402
import tap  # noqa: E402
from mounts import (KILN, WAIT_S, FaultyFilesystem, Filesystem, as_user, job_of, memory_untouched, mounted_above_another, next_tick, raises,  # noqa: E402
                    read, table_says_readonly, umount, wait_until, write)

SEED = int(os.environ.get("KILN_TEST_SEED", "1"), 0)


# --- encryption ---


def an_encrypted_filesystem_is_written_with_its_passphrase(to):
    secret = doors.passphrase_options(to, "a long one")
    text = b"nobody may find this. " * 2000
    with Filesystem(to, size="64M", options=["-o", "passphrase_file=" + secret[1]], format_options=["--encrypted", *secret],
                    passphrase=secret) as f:
        for round in range(2):
            write(f.path("file%d" % round), text)
            os.mkdir(f.path("directory%d" % round))
            status, _, err = doors.run([KILN, "set-passphrase", *secret, "--new-passphrase-file", secret[1], f.image])
            assert status == 1 and f.directory in err, err
            f.unmount()
            with open(f.image, "rb") as image:
                everything = image.read()
            assert text[:22] not in everything and b"directory%d" % round not in everything
            f.mount()
        assert read(f.path("file0")) == read(f.path("file1")) == text


# --- trees ---


def a_tree_is_copied_in_and_comes_out_the_same(to):
    source = os.path.join(to, "source")
    os.mkdir(source)
    rng = random.Random(SEED)
    for i in range(300):
        folder = os.path.join(source, *["d%d" % rng.randrange(4) for _ in range(rng.randrange(4))])
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, "f%d" % i), "wb") as f:
            f.write(rng.randbytes(rng.choice([0, 1, 100, 4096, 5000, 70000])))
    os.symlink("d0/nothing", os.path.join(source, "link"))
    os.link(os.path.join(source, "link"), os.path.join(source, "other-link"))
    os.mkfifo(os.path.join(source, "fifo"))
    os.mknod(os.path.join(source, "device"), stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.chmod(os.path.join(source, "fifo"), 0o640)
    os.setxattr(source, "user.name", b"value")
    with open(os.path.join(source, "sparse"), "wb") as f:
        f.truncate(1 << 30)
        f.seek(512 << 20)
        f.write(b"middle")
    fs = Filesystem(to)
    with fs:
        subprocess.run(["cp", "-a", "--sparse=always", source, fs.path("tree")], check=True)
        subprocess.run(["diff", "-r", "--no-dereference", "--exclude=fifo", "--exclude=device", source,
                        fs.path("tree")], check=True)
    with fs:
        subprocess.run(["diff", "-r", "--no-dereference", "--exclude=fifo", "--exclude=device", source,
                        fs.path("tree")], check=True)
        for folder, dirs, files in os.walk(source):
            for name in dirs + files:
                a = os.path.join(folder, name)
                b = fs.path("tree", os.path.relpath(a, source))
                sa, sb = os.lstat(a), os.lstat(b)
                assert (sa.st_mode, sa.st_uid, sa.st_gid, sa.st_rdev) == (sb.st_mode, sb.st_uid, sb.st_gid, sb.st_rdev)
                assert sa.st_mtime_ns == sb.st_mtime_ns, (a, sa.st_mtime_ns, sb.st_mtime_ns)
                assert stat.S_ISDIR(sa.st_mode) or sa.st_nlink == sb.st_nlink, a
        assert os.stat(fs.path("tree/sparse")).st_blocks < 1000
        assert os.getxattr(fs.path("tree"), "user.name") == b"value"
        shutil.rmtree(fs.path("tree"))
        assert os.listdir(fs.directory) == ["lost+found"]


# --- names ---


def renames_follow_their_flags(to):
    libc = ctypes.CDLL(None, use_errno=True)

    def rename2(a, b, flags):
        if libc.renameat2(-100, os.fsencode(a), -100, os.fsencode(b), flags):
            raise OSError(ctypes.get_errno(), "renameat2")

    with Filesystem(to) as fs:
        a, b, c = fs.path("a"), fs.path("b"), fs.path("c")
        write(a, b"A")
        write(b, b"B")
        raises(errno.EEXIST, rename2, a, b, 1)
        rename2(a, b, 2)
        assert (read(a), read(b)) == (b"B", b"A")
        rename2(a, c, 1)
        assert not os.path.exists(a) and read(c) == b"B"
        raises(errno.ENOENT, rename2, a, c, 2)
        os.rename(b, c)
        assert read(c) == b"A" and sorted(os.listdir(fs.directory)) == ["c", "lost+found"]
        os.makedirs(fs.path("d/e/f"))
        raises(errno.EINVAL, os.rename, fs.path("d"), fs.path("d/e/f/g"))
        raises(errno.ENOTEMPTY, os.rename, fs.path("lost+found"), fs.path("d"))
        assert os.stat(fs.path("d")).st_nlink == 3
        os.rename(fs.path("d/e"), fs.path("e"))
        assert os.stat(fs.path("d")).st_nlink == 2 and os.path.isdir(fs.path("e/f"))
        assert os.stat(fs.path("e/f/..")).st_ino == os.stat(fs.path("e")).st_ino


def names_of_255_bytes_and_no_more(to):
    with Filesystem(to) as fs:
        for name in (b"x" * 255, bytes(range(1, 47)) + bytes(range(48, 256))):
            path = os.path.join(os.fsencode(fs.directory), name)
            write(path, b"1")
            assert name in os.listdir(os.fsencode(fs.directory)) and read(path) == b"1"
        raises(errno.ENAMETOOLONG, write, fs.path("x" * 256), b"1")
        assert os.statvfs(fs.directory).f_namemax == 255


def a_directory_is_listed_whole_while_it_changes(to):
    """Every name that is there from begin to end is listed exactly once, whatever comes and goes."""
    libc = ctypes.CDLL(None)
    with Filesystem(to) as fs:
        folder = fs.path("d")
        os.mkdir(folder)
        stable = {"s%d" % i for i in range(3000)}
        for name in stable:
            write(os.path.join(folder, name), b"")
        end = threading.Event()

        def change():
            i = 0
            while not end.is_set():
                path = os.path.join(folder, "t%d" % (i % 50))
                write(path, b"")
                os.rename(path, path + "r")
                os.unlink(path + "r")
                i += 1

        changer = threading.Thread(target=change)
        changer.start()
        try:
            for _ in range(5):
                seen = []
                with os.scandir(folder) as entries:
                    for e in entries:
                        seen.append(e.name)
                found = [n for n in seen if n in stable]
                assert len(found) == len(set(found)) == len(stable), (len(found), len(set(found)))
        finally:
            end.set()
            changer.join()


# --- files in use ---


def unlinked_files_live_until_they_are_closed(to):
    with Filesystem(to) as fs:
        free = os.statvfs(fs.directory).f_bfree
        fds = []
        for i in range(50):
            fd = os.open(fs.path("f%d" % i), os.O_CREAT | os.O_RDWR, 0o600)
            os.write(fd, b"%d" % i * 1000)
            os.unlink(fs.path("f%d" % i))
            fds.append(fd)
        big = os.open(fs.path("big"), os.O_CREAT | os.O_RDWR)
        os.write(big, bytes(8 << 20))
        os.fsync(big)
        write(fs.path("other"), b"x")
        os.rename(fs.path("other"), fs.path("big"))
        for i, fd in enumerate(fds):
            assert os.fstat(fd).st_nlink == 0
            assert os.pread(fd, 10000, 0) == b"%d" % i * 1000
            os.pwrite(fd, b"again", 5000)
            os.fsync(fd)
            assert os.pread(fd, 5, 5000) == b"again"
        assert os.fstat(big).st_size == 8 << 20
        assert os.statvfs(fs.directory).f_bfree < free - 1000
        for fd in fds + [big]:
            os.close(fd)
        wait_until("given back", lambda: os.statvfs(fs.directory).f_bfree > free - 1000)


def give_name(fd, path):
    root = os.open("/", os.O_RDONLY)
    try:
        os.link("/proc/self/fd/%d" % fd, path, src_dir_fd=root, follow_symlinks=True)
    finally:
        os.close(root)


def files_without_a_name_can_get_one(to):
    with Filesystem(to) as fs:
        fd = os.open(fs.directory, os.O_TMPFILE | os.O_RDWR, 0o640)
        assert os.fstat(fd).st_nlink == 0 and stat.S_IMODE(os.fstat(fd).st_mode) == 0o640
        os.write(fd, b"hello")
        assert os.listdir(fs.directory) == ["lost+found"]
        give_name(fd, fs.path("f"))
        os.close(fd)
        assert read(fs.path("f")) == b"hello" and os.stat(fs.path("f")).st_nlink == 1
        # What was written before it had a name set its times.
        fd = os.open(fs.directory, os.O_TMPFILE | os.O_RDWR)
        made = os.fstat(fd).st_mtime_ns
        next_tick()
        os.write(fd, b"later")
        os.fsync(fd)
        written = os.fstat(fd).st_mtime_ns
        give_name(fd, fs.path("later"))
        os.close(fd)
        fs.unmount()
        fs.mount()
        assert os.stat(fs.path("later")).st_mtime_ns == written > made
        os.unlink(fs.path("later"))
        free = os.statvfs(fs.directory).f_bfree
        for _ in range(20):
            fd = os.open(fs.directory, os.O_TMPFILE | os.O_RDWR)
            os.write(fd, bytes(100000))
            os.fsync(fd)
            os.close(fd)
        wait_until("given back", lambda: os.statvfs(fs.directory).f_bfree > free - 100)
        # One that got a name and lost it again goes like any other.
        fd = os.open(fs.directory, os.O_TMPFILE | os.O_RDWR)
        os.write(fd, b"hello")
        give_name(fd, fs.path("g"))
        os.unlink(fs.path("g"))
        assert os.pread(fd, 5, 0) == b"hello"
        raises(errno.ENOENT, give_name, fd, fs.path("g"))
        os.close(fd)


def handles_lead_to_what_the_kernel_has_forgotten(to):
    """name_to_handle_at(2) and open_by_handle_at(2), as servers of NFS use them."""
    libc = ctypes.CDLL(None, use_errno=True)

    class Handle(ctypes.Structure):
        _fields_ = [("bytes", ctypes.c_uint), ("type", ctypes.c_int), ("data", ctypes.c_char * 128)]

    with Filesystem(to) as fs:
        os.mkdir(fs.path("d"))
        handles = {}
        for name in ("d/f", "d/gone", "d"):
            if name != "d":
                write(fs.path(name), name.encode())
            h, mount_id = Handle(bytes=128), ctypes.c_int()
            if libc.name_to_handle_at(-100, fs.path(name).encode(), ctypes.byref(h), ctypes.byref(mount_id), 0):
                raise tap.Skip("no handles here: " + os.strerror(ctypes.get_errno()))
            handles[name] = h
        os.unlink(fs.path("d/gone"))
        fs.unmount()
        fs.mount()
        root = os.open(fs.directory, os.O_RDONLY)
        for name, h in handles.items():
            fd = libc.open_by_handle_at(root, ctypes.byref(h), os.O_RDONLY)
            if name == "d/gone":
                assert fd < 0 and ctypes.get_errno() == errno.ESTALE, os.strerror(ctypes.get_errno())
                continue
            assert fd >= 0, "%s: %s" % (name, os.strerror(ctypes.get_errno()))
            assert os.listdir(fd) == ["f"] if name == "d" else os.pread(fd, 100, 0) == name.encode()
            os.close(fd)
        os.close(root)


def times_of_birth_are_shown(to):
    with Filesystem(to) as fs:
        before = time.time()
        write(fs.path("f"), b"x")
        born = float(subprocess.check_output(["stat", "-c", "%.9W", fs.path("f")]))
        assert before - 1 < born < time.time() + 1, (before, born)


def a_file_that_was_in_use_is_gone_after_the_mount(to):
    fs = Filesystem(to)
    with fs:
        fd = os.open(fs.path("f"), os.O_CREAT | os.O_RDWR)
        os.write(fd, b"x" * 100000)
        os.unlink(fs.path("f"))
        # The mount goes away under the open file.
        fs.server.send_signal(signal.SIGTERM)
        said = fs.ended()
        assert "in use" in said, said
        try:
            os.pwrite(fd, b"y", 200000)
            os.fsync(fd)
            raise AssertionError("nobody serves it, and yet it can be written")
        except OSError:
            pass
        try:
            os.close(fd)
        except OSError:
            pass  # the file is closed all the same
        assert not os.path.ismount(fs.directory)


# --- data ---


def a_shared_mapping_and_writes_are_one(to):
    with Filesystem(to) as fs:
        fd = os.open(fs.path("f"), os.O_CREAT | os.O_RDWR)
        os.ftruncate(fd, 3 * 4096 + 100)
        with mmap.mmap(fd, 3 * 4096 + 100) as m:
            m[5000:5005] = b"hello"
            assert os.pread(fd, 5, 5000) == b"hello"
            os.pwrite(fd, b"there", 100)
            assert m[100:105] == b"there"
            m.flush()
        os.close(fd)
        data = read(fs.path("f"))
        assert len(data) == 3 * 4096 + 100 and data[5000:5005] == b"hello" and data[100:105] == b"there"


def direct_and_buffered_io_agree(to):
    rng = random.Random(SEED)
    size = 1 << 20
    with Filesystem(to) as fs:
        fd = os.open(fs.path("f"), os.O_CREAT | os.O_RDWR)
        direct = os.open(fs.path("f"), os.O_RDWR | os.O_DIRECT)
        model = bytearray(size)
        os.ftruncate(fd, size)
        buf = mmap.mmap(-1, 65536)
        for step in range(200):
            at, n = rng.randrange(size // 4096) * 4096, rng.randrange(1, 17) * 4096
            n = min(n, size - at)
            kind = rng.randrange(4)
            if kind == 0:
                data = rng.randbytes(n)
                buf[:n] = data
                assert os.pwritev(direct, [memoryview(buf)[:n]], at) == n
                model[at:at + n] = data
            elif kind == 1:
                data = rng.randbytes(rng.randrange(1, n + 1))
                assert os.pwrite(fd, data, at) == len(data)
                model[at:at + len(data)] = data
            elif kind == 2:
                assert os.preadv(direct, [memoryview(buf)[:n]], at) == n
                assert buf[:n] == model[at:at + n], "step %d; KILN_TEST_SEED=%d" % (step, SEED)
            else:
                assert os.pread(fd, n, at) == model[at:at + n], "step %d; KILN_TEST_SEED=%d" % (step, SEED)
        os.close(direct)
        os.close(fd)
        assert read(fs.path("f")) == model


class Aio:
    """One O_DIRECT write at a time, by the kernel's asynchronous I/O (io_submit(2))."""

    class Iocb(ctypes.Structure):
        _fields_ = [("data", ctypes.c_uint64), ("key", ctypes.c_uint32), ("rw_flags", ctypes.c_int32), ("opcode", ctypes.c_uint16),
                    ("priority", ctypes.c_int16), ("fd", ctypes.c_uint32), ("buf", ctypes.c_uint64), ("bytes", ctypes.c_uint64),
                    ("offset", ctypes.c_int64), ("spare", ctypes.c_uint64), ("flags", ctypes.c_uint32), ("resfd", ctypes.c_uint32)]

    SETUP, DESTROY, GETEVENTS, SUBMIT = 206, 207, 208, 209
    PWRITE = 1

    def __init__(self):
        if os.uname().machine != "x86_64":
            raise tap.Skip("the numbers of io_submit() and its like are known for x86-64")
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.context = ctypes.c_ulong()
        self.call(self.SETUP, 1, ctypes.byref(self.context))

    def call(self, *args):
        n = self.libc.syscall(*args)
        if n < 0:
            raise OSError(ctypes.get_errno(), "asynchronous I/O")
        return n

    def pwrite(self, fd, buf, offset):
        """The whole of @buf, a mapping."""
        events = (ctypes.c_int64 * 4)()
        request = self.Iocb(opcode=self.PWRITE, fd=fd, buf=ctypes.addressof(ctypes.c_char.from_buffer(buf)), bytes=len(buf),
                            offset=offset)
        self.call(self.SUBMIT, self.context, 1, ctypes.byref(ctypes.pointer(request)))
        assert self.call(self.GETEVENTS, self.context, 1, 1, events, None) == 1
        assert events[2] == len(buf), events[2]

    def close(self):
        self.call(self.DESTROY, self.context)


def what_is_read_during_direct_writes_is_not_kept(to):
    size = 1 << 20
    with Filesystem(to) as fs:
        write(fs.path("f"), bytes(size))
        aio, is_over = Aio(), threading.Event()
        buffers = [mmap.mmap(-1, size), mmap.mmap(-1, size)]
        for i, buf in enumerate(buffers):
            buf[:] = b"ab"[i:i + 1] * size

        def read_on():
            fd = os.open(fs.path("f"), os.O_RDONLY)
            while not is_over.is_set():
                assert len(os.pread(fd, size, 0)) == size
            os.close(fd)

        direct, fd = os.open(fs.path("f"), os.O_RDWR | os.O_DIRECT), os.open(fs.path("f"), os.O_RDONLY)
        with concurrent.futures.ThreadPoolExecutor() as pool:
            reader = pool.submit(read_on)
            try:
                for step in range(300):
                    buf = buffers[step % 2]
                    if step % 4 < 2:
                        aio.pwrite(direct, buf, 0)
                    else:
                        assert os.pwritev(direct, [buf], 0) == size
                    assert os.pread(fd, size, 0) == buf[:], "step %d" % step
            finally:
                is_over.set()
            reader.result()
        for f in (fd, direct):
            os.close(f)
        aio.close()


def reading_into_a_mapping_of_the_same_file_ends(to):
    with Filesystem(to) as fs:
        fd = os.open(fs.path("f"), os.O_CREAT | os.O_RDWR)
        os.write(fd, b"a" * 65536 + b"b" * 65536)
        direct = os.open(fs.path("f"), os.O_RDWR | os.O_DIRECT)
        with mmap.mmap(fd, 131072) as m:
            assert os.preadv(direct, [memoryview(m)[:65536]], 65536) == 65536
            assert m[:65536] == b"b" * 65536
            assert os.pwritev(direct, [memoryview(m)[:65536]], 65536) == 65536
            assert os.pwritev(fd, [memoryview(m)[4096:8192]], 0) == 4096
        os.close(direct)
        os.close(fd)
        assert read(fs.path("f")) == b"b" * 131072


def holes_are_found_in_what_was_just_written(to):
    with Filesystem(to) as fs:
        fd = os.open(fs.path("f"), os.O_CREAT | os.O_RDWR)
        os.ftruncate(fd, 10 << 20)
        os.pwrite(fd, b"x" * 4096, 4 << 20)
        assert os.lseek(fd, 0, os.SEEK_DATA) == 4 << 20
        assert os.lseek(fd, 4 << 20, os.SEEK_HOLE) == (4 << 20) + 4096
        raises(errno.ENXIO, os.lseek, fd, 5 << 20, os.SEEK_DATA)
        os.pwrite(fd, b"x" * 4096, 6 << 20)
        assert os.lseek(fd, 5 << 20, os.SEEK_DATA) == 6 << 20
        assert os.lseek(fd, 6 << 20, os.SEEK_HOLE) == (6 << 20) + 4096
        os.close(fd)


def files_may_be_as_large_as_offsets_go(to):
    with Filesystem(to) as fs:
        fd = os.open(fs.path("f"), os.O_CREAT | os.O_RDWR)
        last = (1 << 63) - 4096 - 1
        os.pwrite(fd, b"end", last - 3)
        os.fsync(fd)
        assert os.fstat(fd).st_size == last and os.fstat(fd).st_blocks <= 16
        os.close(fd)
        fd = os.open(fs.path("f"), os.O_RDONLY)
        assert os.pread(fd, 10, last - 3) == b"end" and os.pread(fd, 10, 1 << 40) == bytes(10)
        os.close(fd)
        os.truncate(fs.path("f"), 1)
        assert read(fs.path("f")) == b"\0"


def appends_of_many_processes_are_all_there(to):
    with Filesystem(to) as fs:
        script = ("import os, sys\n"
                  "fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)\n"
                  "for i in range(500): os.write(fd, b'%s %04d\\n' % (sys.argv[2].encode(), i))\n")
        running = [subprocess.Popen([sys.executable, "-c", script, fs.path("log"), str(i)]) for i in range(4)]
        assert not any(p.wait() for p in running)
        lines = read(fs.path("log")).splitlines()
        assert len(lines) == 2000 and len(set(lines)) == 2000
        for i in range(4):
            mine = [line for line in lines if line.startswith(b"%d " % i)]
            assert mine == sorted(mine)


def many_threads_write_and_read_their_files(to):
    def work(i):
        rng = random.Random(SEED * 100 + i)
        folder = fs.path("d%d" % i)
        os.mkdir(folder)
        sums = {}
        for j in range(40):
            data = rng.randbytes(rng.randrange(100000))
            write(os.path.join(folder, str(j)), data)
            sums[str(j)] = hashlib.sha1(data).digest()
            if j % 5 == 4:
                gone = rng.choice(sorted(sums))
                os.unlink(os.path.join(folder, gone))
                del sums[gone]
        assert sorted(os.listdir(folder)) == sorted(sums)
        for name, digest in sums.items():
            assert hashlib.sha1(read(os.path.join(folder, name))).digest() == digest
        return i, sums

    fs = Filesystem(to)
    with fs:
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            results = list(pool.map(work, range(16)))
    with fs:
        for i, sums in results:
            for name, digest in sums.items():
                assert hashlib.sha1(read(fs.path("d%d" % i, name))).digest() == digest


# --- attributes ---


def memory_mib(pid, which):
    with open("/proc/%d/status" % pid) as f:
        return int(re.search(which + r":\s+(\d+) kB", f.read()).group(1)) >> 10


def thousands_of_files_are_open_and_64_threads_write_them(to):
    """$KILN_OPEN_FILES of them; then they lose their names, and are still there, until they are closed. In little memory."""
    nr, threads = int(os.environ.get("KILN_OPEN_FILES", "1000")), 64
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < nr + 100:
        raise tap.Skip("so many files may not be open here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, nr + 100), hard))
    try:
        with memory_untouched(), Filesystem(to, size="512M", options=["--memory", "32M"]) as fs:
            free = os.statvfs(fs.directory).f_bfree
            fds = {}

            def work(thread):
                for i in range(thread, nr, threads):
                    fds[i] = os.open(fs.path("f%d" % i), os.O_CREAT | os.O_RDWR)
                    os.write(fds[i], b"%d" % i * 1000)
                    if i % 16 == thread % 16:
                        os.fsync(fds[i])
                    os.unlink(fs.path("f%d" % i))

            with concurrent.futures.ThreadPoolExecutor(threads) as pool:
                list(pool.map(work, range(threads)))
            for i, fd in fds.items():
                assert os.pread(fd, 10000, 0) == b"%d" % i * 1000, i
                os.close(fd)
            # Sanitizers take terabytes of addresses, and more memory than anything else.
            if memory_mib(fs.server.pid, "VmPeak") < 1 << 20:
                assert memory_mib(fs.server.pid, "VmHWM") < 64 # the budget, and what requests under way take
            wait_until("given back", lambda: os.statvfs(fs.directory).f_bfree > free - 2000)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class MemoryGroup:
    """A cgroup whose processes have so much memory, what the kernel caches for them included."""

    def __init__(self, limit_bytes):
        for root, limit in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
            self.folder = os.path.join(root, "kiln-test-%d" % os.getpid())
            try:
                os.mkdir(self.folder)
            except OSError:
                continue
            try:
                with open(os.path.join(self.folder, limit), "w") as f:
                    f.write(str(limit_bytes))
                return
            except OSError:
                os.rmdir(self.folder)
        raise tap.Skip("no cgroups with limits on memory here")

    def enter(self):
        with open(os.path.join(self.folder, "cgroup.procs"), "w") as f:
            f.write(str(os.getpid()))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        wait_until("empty", lambda: not open(os.path.join(self.folder, "cgroup.procs")).read())
        os.rmdir(self.folder)


def short_memory_hangs_nobody(to):
    """Who writes, and the server that the kernel has to have write it back before there is memory again, share little of it:
    streams, 64 at once, and a mapping larger than all of it."""
    script = """
import concurrent.futures, mmap, os, sys
os.chdir(sys.argv[1])
block = os.urandom(1 << 20)
def stream(name, mib):
    fd = os.open(name, os.O_CREAT | os.O_WRONLY)
    for _ in range(mib):
        assert os.write(fd, block) == 1 << 20
    os.fsync(fd)
    os.close(fd)
    with open(name, "rb") as f:
        for _ in range(mib):
            assert f.read(1 << 20) == block, name
        assert not f.read(1)
stream("big", 300)
with concurrent.futures.ThreadPoolExecutor(64) as pool:
    list(pool.map(lambda i: stream("f%d" % i, 3), range(64)))
fd = os.open("map", os.O_CREAT | os.O_RDWR)
size = 300 << 20
os.ftruncate(fd, size)
with mmap.mmap(fd, size) as m:
    for at in range(0, size, 4096):
        m[at] = at // 4096 % 251
    m.flush()
    for at in range(0, size, 4096):
        assert m[at] == at // 4096 % 251, at
"""
    with memory_untouched(), MemoryGroup(200 << 20) as group, tempfile.TemporaryDirectory(dir="/var/tmp") as disk:  # a tmpfs would count, too
        fs = Filesystem(disk, size="1G", options=["--memory", "32M"])
        fs.start = group.enter
        with fs:
            if memory_mib(fs.server.pid, "VmPeak") >= 1 << 20:
                raise tap.Skip("sanitizers take more than that")
            subprocess.run([sys.executable, "-c", script, fs.directory], check=True, preexec_fn=group.enter, timeout=300)


def servers_without_room_for_threads_say_so_or_serve(to):
    """With few addresses some threads and buffers can't be had. Who asked is told that it isn't mounted; else it is, and stays so."""
    image, directory = os.path.join(to, "image"), os.path.join(to, "mnt")
    os.mkdir(directory)
    status, _, err = doors.run([KILN, "format", "--size", "64M", image])
    assert status == 0, err
    served = 0

    def may_fail(function, *args):
        try:
            function(*args)
        except OSError as e:
            assert e.errno in (errno.ENOMEM, errno.EIO), e  # EIO: from writing back, so the kernel has it

    for mib in range(160, 1280, 32):
        limits = (mib << 20, mib << 20)
        p = subprocess.run([KILN, "mount", image, directory], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=WAIT_S,
                           preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, limits))
        if p.returncode:
            assert p.stderr, mib
            continue
        assert os.path.ismount(directory), "%d MiB" % mib
        with concurrent.futures.ThreadPoolExecutor(48) as pool:
            list(pool.map(lambda i: may_fail(write, os.path.join(directory, "f%d" % (i % 8)), b"%d" % i * 5000), range(192)))
        may_fail(os.statvfs, directory)
        assert os.path.ismount(directory), "%d MiB" % mib
        umount(directory)
        served += 1
    if not served:
        raise tap.Skip("sanitizers take terabytes of addresses")
    status, out, err = doors.run([KILN, "check", image])
    assert status == 0, "%s\n%s" % (out.decode()[-3000:], err[-3000:])


def times_are_kept_to_the_nanosecond(to):
    fs = Filesystem(to)
    with fs:
        write(fs.path("f"), b"x")
        os.utime(fs.path("f"), ns=(1234567890123456789, 987654321987654321))
        fd = os.open(fs.path("g"), os.O_CREAT | os.O_WRONLY)
        os.write(fd, b"x")
        before = os.fstat(fd)
        next_tick()
        os.write(fd, b"y")
        after = os.fstat(fd)
        assert after.st_mtime_ns > before.st_mtime_ns and after.st_ctime_ns > before.st_ctime_ns
        os.close(fd)
        g = os.stat(fs.path("g"))
        next_tick()
        os.chmod(fs.path("g"), 0o600)
        assert os.stat(fs.path("g")).st_ctime_ns > g.st_ctime_ns and os.stat(fs.path("g")).st_mtime_ns == g.st_mtime_ns
    with fs:
        f = os.stat(fs.path("f"))
        assert (f.st_atime_ns, f.st_mtime_ns) == (1234567890123456789, 987654321987654321)
        assert os.stat(fs.path("g")).st_mtime_ns == g.st_mtime_ns


def what_the_kernel_writes_is_not_older_than_what_was_made_before(to):
    """Times are the server's for what is made, the kernel's for what is written to the page cache."""
    with Filesystem(to) as fs:
        write(fs.path("f"), b"")
        for i in range(300):
            os.mkdir(fs.path("d%d" % i))
            write(fs.path("f"), b"x")
            made, written = os.stat(fs.path("d%d" % i)), os.stat(fs.path("f"))
            assert made.st_mtime_ns <= written.st_mtime_ns, (i, made.st_mtime_ns, written.st_mtime_ns)


def reading_changes_atime_as_asked_for(to):
    for option, first, second in (("relatime", True, False), ("noatime", False, False), ("strictatime", True, True)):
        folder = os.path.join(to, option)
        os.mkdir(folder)
        fs = Filesystem(folder, options=["-o", option])
        old = (10 ** 18, 10 ** 18)

        def touched():
            """By reading what isn't in the page cache: has atime changed, and nothing else?"""
            fd = os.open(fs.path("f"), os.O_RDONLY)
            before = os.fstat(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            assert os.read(fd, 10) == b"x" * 10
            os.close(fd)
            after = os.stat(fs.path("f"))
            assert (after.st_mtime_ns, after.st_ctime_ns) == (before.st_mtime_ns, before.st_ctime_ns)
            return after.st_atime_ns != before.st_atime_ns

        with fs:
            write(fs.path("f"), b"x" * 10)
            os.utime(fs.path("f"), ns=old)
            # What is read in the tick in which it was changed is read anew to the next reader.
            next_tick()
            assert touched() == first, option
            next_tick()
            assert touched() == second, option
            atime = os.stat(fs.path("f")).st_atime_ns
            if option == "relatime":
                # A change makes it due again.
                next_tick()
                write(fs.path("f"), b"x" * 10)
                assert touched()
                atime = os.stat(fs.path("f")).st_atime_ns
            # It is told by the server until it is written, and by the inode from then on.
            fs.unmount()
            fs.mount()
            assert os.stat(fs.path("f")).st_atime_ns == atime, option


def reading_directories_changes_atime_unless_nodiratime(to):
    for option, is_changed in (("atime,diratime", True), ("nodiratime", False)):
        folder = os.path.join(to, option)
        os.mkdir(folder)
        with Filesystem(folder, options=["-o", option]) as fs:
            os.mkdir(fs.path("d"))
            write(fs.path("d", "f"), b"x")
            os.symlink("f", fs.path("d", "l"))
            for name in ("d", "d/l"):
                os.utime(fs.path(name), ns=(10 ** 18, 10 ** 18), follow_symlinks=False)
            assert sorted(os.listdir(fs.path("d"))) == ["f", "l"] and os.readlink(fs.path("d", "l")) == "f"
            assert (os.stat(fs.path("d")).st_atime_ns > 10 ** 18) == is_changed, option
            assert os.lstat(fs.path("d", "l")).st_atime_ns > 10 ** 18, option


def times_of_access_are_kept_together_and_not_lost(to):
    """More of them than are kept in memory; written at the end, and when `kiln sync` asks for it, not before."""
    tree = os.path.join(to, "tree")
    os.mkdir(tree)
    for i in range(1500):
        write(os.path.join(tree, "f%d" % i), b"x" * 5000)
        os.utime(os.path.join(tree, "f%d" % i), ns=(10 ** 18, 10 ** 18))
    fs = Filesystem(to, format_options=["--source", tree])
    with fs:
        begin = time.time_ns()
        for i in range(1500):
            assert len(read(fs.path("f%d" % i))) == 5000
        atimes = [os.stat(fs.path("f%d" % i)).st_atime_ns for i in range(1500)]
        assert all(begin - 10 ** 8 < atime < time.time_ns() for atime in atimes)
        # What is set by hand counts, whatever was read before.
        os.utime(fs.path("f0"), ns=(10 ** 18, 10 ** 18))
        atimes[0] = 10 ** 18
    fs.mount()
    assert [os.stat(fs.path("f%d" % i)).st_atime_ns for i in range(1500)] == atimes
    subprocess.run(["chattr", "+ai", fs.path("f0")], check=True)
    status, _, err = doors.run([KILN, "sync", fs.directory])
    assert status == 0, err
    for synced in (False, True):
        read(fs.path("f0"))
        assert os.stat(fs.path("f0")).st_atime_ns > begin
        if synced:
            status, _, err = doors.run([KILN, "sync", fs.directory])
            assert status == 0, err
        fs.kill()
        fs.mount()
        assert (os.stat(fs.path("f0")).st_atime_ns > begin) == synced
    with open(fs.path("f1"), "ab") as f:
        f.write(b"x")
    fs.unmount()
    fs.check()


def default_acls_are_inherited_instead_of_the_umask(to):
    def acl(*entries):
        out = (2).to_bytes(4, "little")
        for tag, perm, ident in entries:
            out += tag.to_bytes(2, "little") + perm.to_bytes(2, "little") + (ident & 0xffffffff).to_bytes(4, "little")
        return out

    with Filesystem(to) as fs:
        os.mkdir(fs.path("d"))
        default = acl((1, 7, -1), (2, 6, 1234), (4, 5, -1), (16, 7, -1), (32, 0, -1))
        os.setxattr(fs.path("d"), "system.posix_acl_default", default)
        old = os.umask(0o077)
        try:
            write(fs.path("d/f"), b"x")
            os.mkdir(fs.path("d/e"), 0o777)
            write(fs.path("plain"), b"x")
        finally:
            os.umask(old)
        assert stat.S_IMODE(os.stat(fs.path("plain")).st_mode) == 0o600
        assert stat.S_IMODE(os.stat(fs.path("d/f")).st_mode) == 0o640, oct(os.stat(fs.path("d/f")).st_mode)
        assert os.getxattr(fs.path("d/e"), "system.posix_acl_default") == default
        assert b"\x02\x00\x06\x00\xd2\x04" in os.getxattr(fs.path("d/f"), "system.posix_acl_access")
        os.chown(fs.path("d"), 0, 0)
        os.chmod(fs.path("d"), 0o755)

        def open_it():
            os.open(fs.path("d/f"), os.O_RDONLY)

        os.chmod(to, 0o755)
        os.chmod(fs.directory, 0o755)
        assert as_user(1234, open_it) == 0
        os.chmod(fs.path("d/f"), 0o600)
        assert as_user(1234, open_it) == errno.EACCES


def who_writes_a_setuid_file_takes_its_power(to):
    with Filesystem(to) as fs:
        os.chmod(to, 0o755)
        os.chmod(fs.directory, 0o755)
        write(fs.path("f"), b"#!")
        os.chmod(fs.path("f"), 0o6777)
        write(fs.path("f"), b"root may", os.O_WRONLY)
        assert stat.S_IMODE(os.stat(fs.path("f")).st_mode) == 0o6777
        assert as_user(1234, lambda: write(fs.path("f"), b"x", os.O_WRONLY)) == 0
        assert stat.S_IMODE(os.stat(fs.path("f")).st_mode) == 0o777
        # Around the page cache as well, and the owner too.
        write(fs.path("f"), b"short")
        os.chown(fs.path("f"), 1234, 1234)
        os.chmod(fs.path("f"), 0o6644)
        os.stat(fs.path("f"))

        def direct():
            with mmap.mmap(-1, 4096) as block:
                fd = os.open(fs.path("f"), os.O_RDWR | os.O_DIRECT)
                os.writev(fd, [block])
                os.close(fd)

        assert as_user(1234, direct) == 0
        # It asks for nothing else, so that the kernel tells what it thinks itself, and acts upon.
        assert subprocess.check_output(["stat", "-c", "%a", fs.path("f")]) == b"2644\n"


def who_changes_the_space_of_a_setuid_file_takes_its_power(to):
    PUNCH_HOLE, KEEP_SIZE, ZERO_RANGE = 2, 1, 16
    libc = ctypes.CDLL(None, use_errno=True)
    fs = Filesystem(to)

    def fallocate(mode):
        fd = os.open(fs.path("f"), os.O_RDWR)
        if libc.fallocate(fd, mode, ctypes.c_long(0), ctypes.c_long(8192)):
            raise OSError(ctypes.get_errno(), "fallocate")
        os.close(fd)

    def copy():
        source, fd = os.open(fs.path("source"), os.O_RDONLY), os.open(fs.path("f"), os.O_RDWR)
        assert os.copy_file_range(source, fd, 8192, 0, 0) == 8192
        os.close(source)
        os.close(fd)

    def mode_is(expected):
        """To the kernel, which doesn't ask us if it thinks it knows."""
        assert subprocess.check_output(["stat", "-c", "%a", fs.path("f")]) == b"%o\n" % expected

    with fs:
        os.chmod(to, 0o755)
        os.chmod(fs.directory, 0o755)
        write(fs.path("source"), b"x" * 8192)
        write(fs.path("f"), b"y" * 16384)
        for change in (copy, *(lambda mode=mode: fallocate(mode) for mode in (0, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE))):
            os.chown(fs.path("f"), 0, 0)
            for mode in (0o6777, 0o6666):
                os.chmod(fs.path("f"), mode)
                change()
                mode_is(mode)
                fs.unmount()
                fs.mount()
                mode_is(mode)
                assert as_user(1234, change) == 0
                mode_is(mode & 0o777)
            # Of his own group setgid without execution gives him nothing.
            os.chown(fs.path("f"), 1, 1234)
            os.chmod(fs.path("f"), 0o6666)
            mode_is(0o6666)
            assert as_user(1234, change) == 0
            mode_is(0o2666)


def flags_are_changed_and_honoured(to):
    fs = Filesystem(to)
    with fs:
        os.mkdir(fs.path("d"))
        ctime = os.stat(fs.path("d")).st_ctime_ns
        next_tick()
        subprocess.run(["chattr", "+A", fs.path("d")], check=True)
        assert os.stat(fs.path("d")).st_ctime_ns > ctime
        write(fs.path("f"), b"x")
        subprocess.run(["chattr", "+d", fs.path("f")], check=True)
        assert b"d" in subprocess.check_output(["lsattr", fs.path("f")]).split()[0]
        subprocess.run(["chattr", "+i", fs.path("f")], check=True)
        raises(errno.EPERM, os.unlink, fs.path("f"))
        raises(errno.EPERM, os.chmod, fs.path("f"), 0o600)
        subprocess.run(["chattr", "-i", fs.path("f")], check=True)
        os.chmod(fs.path("f"), 0o600)
        assert as_user(1234, lambda: os.chmod(fs.path("f"), 0o666)) != 0
        subprocess.run(["chattr", "-p", "7", fs.path("d")], check=True)
        write(fs.path("d/in"), b"x")
        for name in ("d", "d/in"):
            assert subprocess.check_output(["lsattr", "-pd", fs.path(name)]).split()[0] == b"7", name
        assert b"A" in subprocess.check_output(["lsattr", "-d", fs.path("d")]).split()[0]
        # What appends may, and so may its times; touch(1) as well.
        write(fs.path("log"), b"x")
        subprocess.run(["chattr", "+a", fs.path("log")], check=True)
        fd = os.open(fs.path("log"), os.O_WRONLY | os.O_APPEND)
        os.write(fd, b"y")
        os.fsync(fd)
        os.close(fd)
        mtime = os.stat(fs.path("log")).st_mtime_ns
        next_tick()
        subprocess.run(["touch", fs.path("log")], check=True)
        raises(errno.EPERM, os.utime, fs.path("log"), ns=(1, 1))
        assert os.stat(fs.path("log")).st_mtime_ns > mtime
        mtime = os.stat(fs.path("log")).st_mtime_ns
    with fs:
        assert os.stat(fs.path("log")).st_mtime_ns == mtime and read(fs.path("log")) == b"xy"
        assert b"d" in subprocess.check_output(["lsattr", fs.path("f")]).split()[0]


def flags_and_the_project_are_set_by_the_newer_call_too(to):
    """FS_IOC_FSSETXATTR, as `chattr -p` and xfs_io(8) use it."""
    GET, SET, NODUMP, DAX = 0x801c581f, 0x401c5820, 0x80, 0x8000
    with Filesystem(to) as fs:
        write(fs.path("f"), b"x")
        os.mkdir(fs.path("d"))
        for name in ("f", "d"):
            fd = os.open(fs.path(name), os.O_RDONLY)
            fcntl.ioctl(fd, SET, struct.pack("IIIII8x", NODUMP, 0, 0, 42, 0))
            assert struct.unpack("IIIII8x", fcntl.ioctl(fd, GET, bytes(28))) == (NODUMP, 0, 0, 42, 0)
            raises(errno.EOPNOTSUPP, fcntl.ioctl, fd, SET, struct.pack("IIIII8x", DAX, 0, 0, 42, 0))
            os.close(fd)
            assert os.getxattr(fs.path(name), "bcachefs.project") == b"42"
            assert "d" in subprocess.check_output(["lsattr", "-d", fs.path(name)], text=True).split()[0]
        # What is made there is of the project, too.
        write(fs.path("d", "f"), b"x")
        assert subprocess.check_output(["lsattr", "-p", fs.path("d", "f")], text=True).split()[0] == "42"
        subprocess.run(["chattr", "-p", "7", fs.path("f")], check=True)
        subprocess.run(["chattr", "-d", fs.path("f")], check=True)
        fd = os.open(fs.path("f"), os.O_RDONLY)
        assert struct.unpack("IIIII8x", fcntl.ioctl(fd, GET, bytes(28))) == (0, 0, 0, 7, 0)
        os.close(fd)


def options_of_files_are_attributes(to):
    with Filesystem(to) as fs:
        os.mkdir(fs.path("d"))
        os.setxattr(fs.path("d"), "bcachefs.data_checksum", b"xxhash")
        write(fs.path("d/f"), b"x")
        assert os.getxattr(fs.path("d/f"), "bcachefs_effective.data_checksum") == b"xxhash"
        raises(errno.ENODATA, os.getxattr, fs.path("d/f"), "bcachefs.data_checksum")
        os.setxattr(fs.path("d/f"), "user.name", b"value")
        assert sorted(os.listxattr(fs.path("d/f"))) == ["bcachefs_effective.data_checksum", "user.name"]
        assert sorted(os.listxattr(fs.path("d"))) == ["bcachefs.data_checksum", "bcachefs_effective.data_checksum"]
        raises(errno.EINVAL, os.setxattr, fs.path("d"), "bcachefs.data_checksum", b"nonsense")
        os.removexattr(fs.path("d"), "bcachefs.data_checksum")
        raises(errno.ENODATA, os.getxattr, fs.path("d"), "bcachefs.data_checksum")


# --- a full filesystem, and a dying server ---


def quotas_hold_for_users_and_not_for_root(to):
    fs = Filesystem(to, format_options=["--usrquota", "--block-size=4k"])
    status, _, err = doors.run([KILN, "quota", fs.image, "set", "user:1234", "--space-hard=1M", "--inodes-hard=2"])
    assert status == 0, err

    def fill():
        with open(fs.path("file"), "wb", buffering=0) as f:
            while True:
                f.write(b"x" * 65536)

    def more_files():
        for i in range(4):
            os.mkdir(fs.path("d%d" % i))

    with fs:
        wait_until("counted", lambda: job_of(fs, "quota scan")["state"] == "waiting")  # no limit holds before
        os.chmod(to, 0o755)
        os.chmod(fs.directory, 0o777)
        assert as_user(1234, fill) == errno.EDQUOT
        assert os.stat(fs.path("file")).st_size == 1 << 20
        assert as_user(1234, more_files) == errno.EDQUOT
        assert sorted(os.listdir(fs.directory)) == ["d0", "file", "lost+found"]
        assert as_user(1235, lambda: write(fs.path("other"), b"x" * 100000)) == 0
        write(fs.path("file"), b"x" * (2 << 20))
        os.chown(fs.path("other"), 1234, 1234)
        assert os.stat(fs.path("file")).st_uid == 1234
        assert as_user(1234, lambda: write(fs.path("file"), b"x" * 100000, os.O_WRONLY | os.O_APPEND)) == errno.EDQUOT


def who_gives_room_up_has_it_at_once(to):
    """The kernel forgets what was unlinked, or closed, a moment after it has said so; whoever is refused in between waits for that."""
    fs = Filesystem(to, size="64M", format_options=["--usrquota", "--block-size=4k"])
    status, _, err = doors.run([KILN, "quota", fs.image, "set", "user:1234", "--space-hard=4M", "--inodes-hard=10"])
    assert status == 0, err

    def allocate(path, size):
        fd = os.open(fs.path(path), os.O_CREAT | os.O_RDWR)
        os.posix_fallocate(fd, 0, size)
        return fd

    def unlink_and_write():
        for i in range(40):
            write(fs.path("u"), bytes(3500000))
            os.unlink(fs.path("u"))

    def rename_over_and_write():
        for i in range(40):
            write(fs.path("new"), b"")
            os.rename(fs.path("new"), fs.path("u"))
            write(fs.path("u"), bytes(3500000))
        os.unlink(fs.path("u"))

    def unlink_and_create():
        for i in range(400):
            if i >= 10:
                os.unlink(fs.path("u%d" % (i % 10)))
            os.mknod(fs.path("u%d" % (i % 10)))

    with fs:
        wait_until("counted", lambda: job_of(fs, "quota scan")["state"] == "waiting")
        os.chmod(to, 0o755)
        os.chmod(fs.directory, 0o777)
        for case in unlink_and_write, rename_over_and_write, unlink_and_create:
            got = as_user(1234, case)
            assert got == 0, "%s: %s" % (case.__name__, errno.errorcode.get(got, got))
        st = os.statvfs(fs.directory)
        size = st.f_bavail * st.f_frsize * 9 // 10 >> 20 << 20
        for i in range(40):
            os.close(allocate("big", size))
            os.unlink(fs.path("big"))
        # What is open, and stays so, doesn't hold up everybody who is refused.
        for i in range(3):
            fd = allocate("big", size)
            os.unlink(fs.path("big"))
            begin = time.monotonic()
            for k in range(200):
                raises(errno.ENOSPC, os.posix_fallocate, fd, size, size)
            assert time.monotonic() - begin < 15  # 20, if each had waited
            os.close(fd)


def mappings_change_times_with_quotas_too(to):
    with Filesystem(to, format_options=["--usrquota"]) as fs:
        write(fs.path("f"), b"x" * 8192)
        before = os.stat(fs.path("f"))
        next_tick()
        fd = os.open(fs.path("f"), os.O_RDWR)
        with mmap.mmap(fd, 8192) as m:
            m[0:3] = b"abc"
            m.flush()
        os.close(fd)
        after = os.stat(fs.path("f"))
        assert after.st_mtime_ns > before.st_mtime_ns and after.st_ctime_ns > before.st_ctime_ns


def a_full_filesystem_is_told_once_and_goes_on(to):
    with Filesystem(to, size="64M") as fs:
        fd = os.open(fs.path("big"), os.O_CREAT | os.O_WRONLY)
        errors = []
        for call in (lambda: [os.write(fd, bytes(1 << 20)) for _ in range(100)], lambda: os.fsync(fd),
                     lambda: os.fsync(fd)):
            try:
                call()
            except OSError as e:
                errors.append(e.errno)
        os.close(fd)
        assert errors == [errno.ENOSPC], errors
        os.unlink(fs.path("big"))

        def there_is_room():
            st = os.statvfs(fs.directory)
            return st.f_bavail > st.f_blocks // 2

        wait_until("given back", there_is_room)
        write(fs.path("small"), b"x" * 100000)
        assert read(fs.path("small")) == b"x" * 100000


def an_error_of_writing_back_is_told_and_then_over(to):
    """By fsync or msync, once to each that has it open, and by one close; it doesn't come again. By a process of its own, as
    below."""
    script = """
import mmap, os, sys
def told(*calls):
    out = []
    for call in calls:
        try:
            call()
            out.append("ok")
        except OSError as e:
            out.append(os.strerror(e.errno))
    print(", ".join(out))
def new(name):
    fd = os.open(sys.argv[1] + "/" + name, os.O_CREAT | os.O_RDWR)
    assert os.write(fd, os.urandom(4 << 20)) == 4 << 20
    return fd
def again(name):
    fd = os.open(sys.argv[1] + "/" + name, os.O_RDWR)
    os.fsync(fd)
    os.close(fd)
fd = new("a")
told(lambda: os.fsync(fd), lambda: os.close(fd), lambda: again("a"))
fd = new("b")
told(lambda: os.close(fd), lambda: again("b"), lambda: again("b"))
fd = new("c")
other = os.dup(fd)
told(lambda: os.close(fd), lambda: os.close(other), lambda: again("c"), lambda: again("c"))
fd = new("d")
other = os.open(sys.argv[1] + "/d", os.O_RDWR)
told(lambda: os.fsync(fd), lambda: os.fsync(other), lambda: os.fsync(fd), lambda: os.close(fd), lambda: os.close(other))
fd = os.open(sys.argv[1] + "/e", os.O_CREAT | os.O_RDWR)
os.ftruncate(fd, 4 << 20)
with mmap.mmap(fd, 4 << 20) as m:
    m[:] = os.urandom(4 << 20)
    told(m.flush, m.flush, lambda: os.fsync(fd), lambda: os.close(fd))
fd = os.open(sys.argv[1] + "/f", os.O_CREAT | os.O_RDWR | os.O_SYNC)
told(lambda: os.write(fd, os.urandom(4 << 20)), lambda: os.close(fd), lambda: again("f"))
"""
    with Filesystem(to, size="64M") as fs:
        try:
            with open(fs.path("fill"), "ab", buffering=0) as f:
                while True:
                    f.write(os.urandom(1 << 20))
                    os.fsync(f.fileno())
        except OSError as e:
            assert e.errno == errno.ENOSPC, e
        out = subprocess.run([sys.executable, "-c", script, fs.directory], check=True, stdout=subprocess.PIPE, text=True)
        no_space = os.strerror(errno.ENOSPC)
        # A close may tell what an fsync of the same file has told, and a close's is new to who opens the file later.
        expected = ["E, (E|ok), ok", "E, (E|ok), ok", "E, (E|ok), (E|ok), ok", "E, E, ok, ok, ok", "E, ok, ok, ok", "E, (E|ok), ok"]
        assert re.fullmatch("\n".join(expected) + "\n", out.stdout.replace(no_space, "E")), out.stdout


def close_tells_what_setting_times_has_swallowed(to):
    """As mv and cp -p do it, which don't mind that the times can't be set. By a process of its own: what other cases
    start inherits what we have open, and whoever closes it first is told."""
    script = """
import errno, os, sys
for i in range(60):
    fd = os.open(sys.argv[1] + "/f%d" % i, os.O_CREAT | os.O_WRONLY)
    assert os.write(fd, bytes(3 << 19)) == 3 << 19
    for call in (lambda: os.utime(fd, ns=(1, 2)), lambda: os.close(fd)):
        told = False
        try:
            call()
        except OSError as e:
            assert e.errno == errno.ENOSPC, e
            told = True
    if told:
        print(i)
"""
    with Filesystem(to, size="64M") as fs:
        out = subprocess.run([sys.executable, "-c", script, fs.directory], check=True, stdout=subprocess.PIPE, text=True)
        told = [int(line) for line in out.stdout.split()]
        assert told and told[-1] == 59, told
        fs.unmount()
        fs.mount()
        for i in set(range(60)) - set(told):
            data = read(fs.path("f%d" % i))
            assert data == bytes(3 << 19), "f%d is not what close() promised: %d bytes, wrong from %d on; told: %s" % (
                i, len(data), next((at for at, b in enumerate(data) if b), len(data)), told)


def what_was_synced_is_there_after_the_server_died(to):
    fs = Filesystem(to)
    rng = random.Random(SEED)
    synced = {}
    fs.mount()
    try:
        for i in range(60):
            name = "f%d" % i
            data = rng.randbytes(rng.randrange(1, 100000))
            fd = os.open(fs.path(name), os.O_CREAT | os.O_RDWR)
            os.write(fd, data)
            if i % 3:
                os.fsync(fd)
                synced[name] = data
            os.close(fd)
    finally:
        fs.kill()
    with fs:
        for name, data in synced.items():
            assert read(fs.path(name)) == data, "%s; KILN_TEST_SEED=%d" % (name, SEED)


def a_server_may_die_under_load(to):
    """Again and again ($KILN_KILL_ROUNDS): what fsync was answered for is there, in files and in directories."""
    fs = Filesystem(to)
    rng = random.Random(SEED)
    synced, begun = {}, set()  # bytes by name; names that are being made anew

    def content(name, size):
        return (name.encode() + b"," * 7) * (size // (len(name) + 7) + 1)

    def work(i):
        try:
            for nr in range(10**6):
                name = "f%d-%d" % (i, nr % 20)
                begun.add(name)
                fd = os.open(fs.path(name), os.O_CREAT | os.O_WRONLY)
                size = synced.get(name, 0)
                grown = size + rng.randrange(1, 100000)
                os.pwrite(fd, content(name, grown)[size:grown], size)
                os.fsync(fd)
                os.close(fd)
                synced[name] = grown
                if nr % 5 == 4:
                    synced.pop(name)
                    os.unlink(fs.path(name))
                    directory = os.open(fs.directory, os.O_RDONLY)
                    os.fsync(directory)
                    os.close(directory)
                    begun.discard(name)
                    synced[name] = 0
        except OSError as e:
            assert e.errno in (errno.ENOTCONN, errno.ECONNABORTED, errno.ECANCELED, errno.EIO, errno.ENOENT), e

    for round_nr in range(int(os.environ.get("KILN_KILL_ROUNDS", "2"))):
        fs.mount()
        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            done = [pool.submit(work, i) for i in range(6)]
            time.sleep(rng.uniform(0.3, 1.5))
            fs.kill()
            for d in done:
                d.result()
        with fs:
            for name, size in synced.items():
                if size:
                    data = read(fs.path(name))
                    assert data[:size] == content(name, size)[:size], "round %d: %s has lost something; KILN_TEST_SEED=%d" \
                        % (round_nr, name, SEED)
                else:
                    # It may have been made again.
                    assert not os.path.exists(fs.path(name)) or name in begun, "%s is back" % name
            for name in os.listdir(fs.directory):
                if name.startswith("f"):
                    os.unlink(fs.path(name))
            synced.clear()
            begun.clear()


def devices_that_fail_make_it_readonly_and_nothing_hangs(to):
    """The image outgrows the filesystem that it is on: each write to a new place is an error."""
    small = os.path.join(to, "small")
    os.mkdir(small)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40M", "tmpfs", small]).returncode:
        raise tap.Skip("no tmpfs here")
    try:
        fs = Filesystem(small, size="200M")
        fs.mount()
        write(fs.path("before"), b"b" * 100000)
        fd = os.open(fs.path("before"), os.O_RDONLY)
        os.fsync(fd)
        to_write = os.open(fs.path("before"), os.O_WRONLY)  # as long as it is open, the mount table stays as it is
        failed = []

        def fill(i):
            try:
                with open(fs.path("f%d" % i), "wb", buffering=0) as f:
                    for _ in range(30):
                        f.write(os.urandom(1 << 20))
                        os.fsync(f.fileno())
            except OSError as e:
                failed.append(e.errno)

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(fill, range(8)))
        assert failed and set(failed) <= {errno.EIO, errno.ENOSPC, errno.EROFS}, failed
        wait_until("read-only", lambda: changes_fail(fs))
        assert os.pread(fd, 200000, 0) == b"b" * 100000
        os.close(fd)
        os.kill(fs.server.pid, signal.SIGUSR1)  # one that means nothing to it
        time.sleep(0.1)
        os.close(to_write)
        wait_until("read-only in the mount table", lambda: table_says_readonly(os.path.realpath(fs.directory)))
        status, out, err = doors.run([KILN, "status", "--json", fs.directory])
        (server,) = json.loads(out)
        assert status == 0 and server["state"] == "failed", out
        assert "read-only" in server["why"] and "`kiln check`" in server["why"] and "mount it again" in server["why"], server
        status, out, err = doors.run([KILN, "status", fs.directory])
        assert status == 0 and "  why      %s\n" % server["why"] in out.decode(), out
        umount(fs.directory)
        _, err = fs.server.communicate(timeout=WAIT_S)
        assert fs.server.returncode == 1 and b"failed" in err and b"not clean" in err and b"`kiln check %s`" % fs.image.encode() in err, err
        subprocess.run(["mount", "-o", "remount,size=400M", small], check=True)
        with fs:
            assert read(fs.path("before")) == b"b" * 100000
    finally:
        subprocess.run(["umount", "-l", small], check=True)


def changes_fail(fs):
    """New directories until one meets what is broken: what fits into buckets that are there already still works."""
    try:
        os.mkdir(fs.path("d%d" % time.monotonic_ns()))
        fd = os.open(fs.directory, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as e:
        return e.errno == errno.EROFS
    return False


# Small nodes, so that few files make many.
FAULTY_FORMAT = ["--block_size=512", "--btree_node_size=16k", "--bucket_size=128k"]
FAULTY_BUCKET_BYTES = 128 << 10


def data_that_cannot_be_read_fails_alone(to):
    fs = FaultyFilesystem(to, size="64M", format_options=FAULTY_FORMAT)
    data = {name: os.urandom(300000) for name in ("a", "b")}
    with fs:
        for name in data:
            write(fs.path(name), data[name])
        ino = os.stat(fs.path("a")).st_ino
    pieces = sorted((int(key["pos"].split(":")[1]) * 512, re.search(r"ptr: 0:(\d+):(\d+)", key["value"]).groups())
                    for key in fs.keys("extents") if key["pos"].startswith("%d:" % ino))
    end, (bucket, sector) = pieces[1]
    at = int(bucket) * FAULTY_BUCKET_BYTES + int(sector) * 512
    bad = range(pieces[0][0], end)
    with fs:
        fs.fail("read", at, at + len(bad))
        fd = os.open(fs.path("a"), os.O_RDWR)
        for offset in range(0, 300000, 4096):
            if offset in bad:
                raises(errno.EIO, os.pread, fd, 4096, offset)
            else:
                assert os.pread(fd, 4096, offset) == data["a"][offset:offset + 4096], offset
        assert read(fs.path("b")) == data["b"] and os.stat(fs.path("a")).st_size == 300000
        # What is written over it is there; a part of it can't be.
        new = os.urandom(len(bad))
        os.pwrite(fd, new, bad[0])
        os.fsync(fd)
        assert os.pread(fd, len(bad), bad[0]) == new
        os.close(fd)
        write(fs.path("c"), data["b"])
        status, said = fs.end()
        assert status == 0 and "a" in said, said
    with fs:
        assert read(fs.path("a")) == data["a"][:bad[0]] + new + data["a"][end:]
        assert read(fs.path("b")) == read(fs.path("c")) == data["b"]


def nodes_that_cannot_be_read_fail_alone(to):
    tree = os.path.join(to, "tree")
    os.mkdir(tree)
    for i in range(1000):
        write(os.path.join(tree, "f%d" % i), b"%d" % i * 100)
    fs = FaultyFilesystem(to, size="64M", format_options=FAULTY_FORMAT + ["--source", tree])
    leaves = [node for node in fs.keys("inodes", "-m", "nodes") if node["level"] == 0]
    node = leaves[len(leaves) // 2]
    first, last = (int(node[end].split(":")[1]) for end in ("min", "max"))
    at = node["ptrs"][0]["sector"] * 512
    fs.mount()
    fs.fail("read", at, at + (16 << 10))
    listed = os.listdir(fs.directory)
    assert len(listed) == 1001, len(listed)
    with os.scandir(fs.directory) as entries:
        inodes = {e.name: e.inode() for e in entries}
    gone = {name for name in inodes if first <= inodes[name] <= last}
    assert gone, (first, last)
    for name in listed:
        if name in gone:
            raises(errno.EIO, os.stat, fs.path(name))
        elif name != "lost+found":
            assert read(fs.path(name)) == name[1:].encode() * 100
    raises(errno.EIO, os.unlink, fs.path(min(gone)))
    write(fs.path("new"), b"new")
    os.unlink(fs.path(min(set(listed) - gone - {"lost+found"})))
    status, said = fs.end()
    assert status == 0, said
    with fs:
        assert all(read(fs.path(name)) == name[1:].encode() * 100 for name in gone)
        assert read(fs.path("new")) == b"new" and len(os.listdir(fs.directory)) == 1001


def failing_writes_and_flushes_end_in_readonly(to):
    """What was synced before is there, fsync of what comes after fails, and unmounting works."""
    for op in ("write", "flush"):
        folder = os.path.join(to, op)
        os.mkdir(folder)
        fs = FaultyFilesystem(folder, size="64M")
        fs.mount()
        before = os.open(fs.path("before"), os.O_CREAT | os.O_RDWR)
        os.write(before, b"b" * 100000)
        os.fsync(before)
        fd = os.open(fs.path("after"), os.O_CREAT | os.O_RDWR)
        fs.fail(op)
        try:
            os.write(fd, b"a" * 100000)
            os.fsync(fd)
            raise AssertionError("fsync succeeded without a %s" % op)
        except OSError as e:
            assert e.errno in (errno.EIO, errno.EROFS), e
        wait_until("read-only", lambda: changes_fail(fs))
        assert os.pread(before, 200000, 0) == b"b" * 100000
        os.close(before)
        try:
            os.close(fd)
        except OSError as e:
            assert e.errno in (errno.EIO, errno.EROFS), e
        status, said = fs.end()
        assert status == 1 and "not clean" in said, said
        with fs:
            assert read(fs.path("before")) == b"b" * 100000


def a_device_that_fails_now_and_then_hangs_nobody(to):
    """Several threads work while reads and writes fail at random: calls succeed or say so, and what they said holds."""
    fs = FaultyFilesystem(to, size="128M", format_options=FAULTY_FORMAT)
    fs.mount()
    for i in range(4):
        os.mkdir(fs.path("d%d" % i))
    fs.fail("read", per_million=20000)
    fs.fail("write", per_million=5000)
    end = time.monotonic() + 2

    def work(i):
        rng = random.Random(SEED * 100 + i)
        synced = {}
        while time.monotonic() < end:
            path = fs.path("d%d" % i, "f%d" % rng.randrange(20))
            try:
                if path in synced and not rng.randrange(4):
                    expected = synced.pop(path)
                    assert read(path) == expected, path
                    os.unlink(path)
                    continue
                synced.pop(path, None)
                data = rng.randbytes(rng.randrange(1, 50000))
                fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
                try:
                    os.write(fd, data)
                    os.fsync(fd)
                    synced[path] = data
                finally:
                    os.close(fd)
            except OSError as e:
                assert e.errno in (errno.EIO, errno.EROFS), e
                if e.errno == errno.EROFS:
                    break
        return synced

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        done = [pool.submit(work, i) for i in range(4)]
        synced = {path: data for d in done for path, data in d.result(timeout=WAIT_S).items()}
    fs.end()
    fs.mount()  # which may tell that an update of superblocks was interrupted
    for path, data in synced.items():
        assert read(path) == data, "%s; KILN_TEST_SEED=%d" % (path, SEED)
    status, said = fs.end()
    assert status == 0, said
    with fs:
        pass


def signals_write_back_what_is_cached(to):
    fs = Filesystem(to)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        with fs:
            name = "f%d" % number
            fd = os.open(fs.path(name), os.O_CREAT | os.O_RDWR)
            os.write(fd, b"cached" * 1000)
            # Nobody has it open, but nothing has written it back either.
            with mmap.mmap(fd, 6000) as m:
                os.close(fd)
                m[0:6] = b"CACHED"
            fs.server.send_signal(number)
            said = fs.ended()
            assert not said, said
            assert not os.path.ismount(fs.directory)
        with fs:
            assert read(fs.path(name)) == b"CACHED" + b"cached" * 999


def a_second_signal_ends_it_though_much_is_cached(to):
    """Its unmounting has the kernel write back what it has cached, and waits for that."""
    fs = FaultyFilesystem(to)
    fs.mount()
    for i in range(600):
        write(fs.path("f%d" % i), bytes(5000))
    fds = [os.open(fs.path("f%d" % i), os.O_RDWR) for i in range(600)]
    fs.slow("flush", 300)

    def sync_again_and_again(fd):
        try:
            while True:
                os.pwrite(fd, b"x" * 4096, 0)
                os.fsync(fd)
        except OSError as e:
            assert e.errno in (errno.EIO, errno.ENOTCONN, errno.ECONNABORTED), e
        close_unserved(fd)

    with concurrent.futures.ThreadPoolExecutor(600) as pool:
        done = [pool.submit(sync_again_and_again, fd) for fd in fds]
        time.sleep(1)
        for _ in range(2):
            fs.server.send_signal(signal.SIGTERM)
            time.sleep(1)
        fs.server.communicate(timeout=WAIT_S)
        for d in done:
            d.result()
    assert not os.path.ismount(fs.directory)
    fs.check()


def close_unserved(fd):
    try:
        os.close(fd)
    except OSError as e:
        assert e.errno in (errno.EIO, errno.ENOTCONN, errno.ECONNABORTED), e


def what_was_mounted_there_before_stays(to):
    fs = Filesystem(to)
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", fs.directory]).returncode:
        raise tap.Skip("no tmpfs here")
    try:
        write(fs.path("below"), b"below")
        below = os.stat(fs.directory).st_dev
        fs.mount()
        wait_until("mounted", lambda: os.stat(fs.directory).st_dev != below)
        fd = os.open(fs.path("f"), os.O_CREAT | os.O_RDWR)
        fs.server.send_signal(signal.SIGTERM)
        assert "in use" in fs.ended()
        close_unserved(fd)
        assert read(fs.path("below")) == b"below"
    finally:
        umount(fs.directory)
    fs.check()


def signals_end_it_wherever_it_is_mounted(to):
    fs, other = Filesystem(to), os.path.join(to, "other \\ place")
    os.mkdir(other)
    for is_first_gone in (False, True):
        with fs:
            os.makedirs(fs.path("sub", "dir"), exist_ok=True)
            name = os.path.join(other, "f%d" % is_first_gone)
            subprocess.run(["mount", "--bind", fs.path("sub"), other], check=True)
            if is_first_gone:
                umount(fs.directory)
            fd = os.open(name, os.O_CREAT | os.O_RDWR)
            os.write(fd, b"cached" * 1000)
            # Nobody has it open, but nothing has written it back either.
            with mmap.mmap(fd, 6000) as m:
                os.close(fd)
                m[0:6] = b"CACHED"
            fs.server.send_signal(signal.SIGTERM)
            said = fs.ended()
            assert not said, said
            assert not os.path.ismount(fs.directory) and not os.path.ismount(other)
        with fs:
            assert read(fs.path("sub", os.path.basename(name))) == b"CACHED" + b"cached" * 999


def signals_write_back_what_open_files_have(to):
    """However long the device takes."""
    fs = FaultyFilesystem(to)
    fs.mount()
    fd, data = os.open(fs.path("f"), os.O_CREAT | os.O_RDWR), os.urandom(8 << 20)
    os.write(fd, data)
    fs.slow("write", 2000, 4)
    fs.server.send_signal(signal.SIGTERM)
    _, err = fs.server.communicate(timeout=WAIT_S)
    assert fs.server.returncode == 0 and b"is in use" in err, err
    with contextlib.suppress(OSError):
        os.close(fd)
    fs.mount()
    assert read(fs.path("f")) == data
    assert fs.end()[0] == 0


def signals_write_back_what_other_namespaces_have_open(to):
    fs = Filesystem(to)
    fs.mount()
    hold = "import os, sys; os.write(os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY), b'cached'); print(flush=True); sys.stdin.read()"
    with subprocess.Popen(["unshare", "--mount", "--propagation", "private", sys.executable, "-c", hold, fs.path("f")],
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"\n"
        fs.server.send_signal(signal.SIGTERM)
        fs.ended()
        holder.stdin.close()
    with fs:
        assert read(fs.path("f")) == b"cached"


def a_mount_that_is_looked_at_for_a_moment_is_not_in_use(to):
    with Filesystem(to) as fs:
        fd = os.open(fs.directory, os.O_PATH)
        fs.server.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        os.close(fd)
        said = fs.ended()
        assert not said, said


# --- the server's surroundings ---


def how_far_jobs_are_is_told(to):
    """Thousands of deletions take a moment, during which they are told by number."""
    with Filesystem(to, size="1G") as fs:
        def deletions_seen():
            os.mkdir(fs.path("d"))
            for i in range(3000):
                os.close(os.open(fs.path("d", "f%d" % i), os.O_CREAT | os.O_WRONLY))
            for i in range(3000):
                os.unlink(fs.path("d", "f%d" % i))
            os.rmdir(fs.path("d"))
            return seen

        seen = []
        is_over = threading.Event()

        def look():
            while not is_over.is_set():
                progress = job_of(fs, "deletions")["progress"]
                if progress:
                    seen.append(progress)

        watcher = threading.Thread(target=look)
        watcher.start()
        try:
            wait_until("seen at work", deletions_seen)
        finally:
            is_over.set()
            watcher.join()
        assert all(p["unit"] == "objects" and 0 <= p["done"] < p["of"] for p in seen), seen


def servers_say_what_they_do(to):
    with Filesystem(to) as fs:
        write(fs.path("f"), b"x" * 100000)
        for which in (fs.directory, fs.image):
            status, out, err = doors.run([KILN, "status", "--json", which])
            assert status == 0, err
            (server,) = json.loads(out)
            assert server["state"] == "serving" and server["pid"] == fs.server.pid, server
            assert server["mountpoint"] == os.path.realpath(fs.directory) and server["usage"]["used"] > 100000, server
            assert server["kernel"]["objects"] >= 1, server
            assert server["repairs"] == {"found": 0, "copies": 0, "nodes": 0, "failed": 0}, server
            (device,) = server["devices"]
            assert (device["name"], device["state"], device["bytes"]) == (os.path.realpath(fs.image), "rw", 256 << 20), device
            assert 0 < server["journal"]["buckets_free"] <= server["journal"]["buckets"] and server["cache"]["nodes"] > 0, server
            jobs = {job["job"]: job for job in server["jobs"]}
            assert set(jobs) >= {"journal reclaim", "node write-back", "key cache", "write buffer", "discards", "generations", "copygc",
                                 "read repair", "deletions"}, jobs
            assert all(job["state"] in ("waiting", "working") and job["why"] and job["what"] for job in jobs.values()), jobs
            assert all(job["progress"] is None or job["progress"]["unit"] for job in jobs.values()), jobs
        status, out, err = doors.run([KILN, "status", fs.directory])
        assert status == 0 and re.search(r"^  jobs     waiting: .*deletions", out.decode(), re.M), out
        assert re.search(r"^  device   %s: rw, 256 MiB\n  space    .* used of .* MiB, .* MiB available, \d+ inodes$" % fs.image, out.decode(), re.M), out
        assert re.search(r"^  journal  \d+ of \d+ buckets free, \d+ entries", out.decode(), re.M), out
        status, out, err = doors.run([KILN, "debug", fs.directory])
        assert status == 0 and json.loads(out)[0]["journal"]["seq"] > 0, err
        btrees = json.loads(out)[0]["btrees"]
        assert 0 < btrees["cached_keys"] and 0 <= btrees["cached_keys_dirty"] <= btrees["cached_keys"], btrees
        status, out, err = doors.run([KILN, "status", fs.path("f")])
        assert status == 1 and "isn't mounted" in err, err
    status, out, err = doors.run([KILN, "status", fs.directory])
    assert status == 1 and "isn't mounted" in err, err


def errors_of_devices_are_told_and_outlive_the_server(to):
    fs = Filesystem(to).mount()
    write(fs.path("f"), b"what rots" * 10000)
    fs.unmount()
    with open(fs.image, "r+b") as image:
        at = image.read().find(b"what rots" * 100)
        assert at > 0
        image.seek(at)
        image.write(b"W")
    fs.mount()
    raises(errno.EIO, lambda: open(fs.path("f"), "rb").read())
    status, out, err = doors.run([KILN, "status", "--json", fs.directory])
    (device,) = json.loads(out)[0]["devices"]
    errors = device["errors"]
    assert errors["read"] == errors["write"] == 0 and errors["checksum"] > 0 and device["errors_since_mount"] == errors, device
    status, out, err = doors.run([KILN, "status", fs.directory])
    assert re.search(r"^  device .*; errors: \d+ checksum; since it was mounted: \d+ checksum$", out.decode(), re.M), out

    def noted():
        status, out, err = doors.run([KILN, "show-super", "--json", fs.image])
        (member,) = json.loads(out)["sections"]["members_v2"]
        return {kind: member[kind + "_errors"] for kind in errors} == errors

    wait_until("noted", noted)
    fs.kill()
    status, out, err = doors.run([KILN, "usage", "--json", fs.image])
    (device,) = json.loads(out)["devices"]
    assert device["errors"] == errors, (device, errors)
    status, out, err = doors.run([KILN, "usage", fs.image])
    assert "\n  errors: %d checksum\n" % errors["checksum"] in out.decode(), out


def a_server_that_was_lazily_unmounted_is_told_from_the_next(to):
    fs, new = Filesystem(to).mount(), Filesystem(os.path.join(to, "new"))
    new.directory = fs.directory
    write(fs.path("f"), b"x")
    with open(fs.path("f"), "rb"):
        subprocess.run(["umount", "-l", fs.directory], check=True)
        with new:
            status, out, err = doors.run([KILN, "status", "--json", fs.directory])
            assert status == 0, err
            told = {server["pid"]: server["is_mounted"] for server in json.loads(out)}
            assert told == {fs.server.pid: False, new.server.pid: True}, told
            _, out, _ = doors.run([KILN, "status", fs.directory])
            assert "serving, no longer mounted here, process %d\n" % fs.server.pid in out.decode(), out
            assert "serving, process %d\n" % new.server.pid in out.decode(), out
    fs.ended()
    fs.check()


def the_kernel_is_made_to_forget(to):
    """It would remember all that was ever looked at, and have the server do so too."""
    if tuple(map(int, os.uname().release.split("-")[0].split(".")[:2])) < (6, 18):
        raise tap.Skip("kernels know it from Linux 6.18 on")
    tree = os.path.join(to, "tree")
    for i in range(40):
        os.makedirs(os.path.join(tree, "d%d" % i))
        for k in range(100):
            write(os.path.join(tree, "d%d" % i, "f%d" % k), b"")

    def remembered(fs):
        return json.loads(doors.run([KILN, "status", "--json", fs.directory])[1])[0]["kernel"]["objects"]

    with Filesystem(to, options=["-o", "remember=1000"], format_options=["--source", tree]) as fs:
        fd = os.open(fs.path("d0", "f0"), os.O_RDWR)
        assert sum(len(names) for _, _, names in os.walk(fs.directory)) == 4000
        for i in range(40):
            for entry in os.scandir(fs.path("d%d" % i)):
                entry.stat()
        wait_until("forgotten", lambda: remembered(fs) <= 1000)
        os.write(fd, b"still here")
        os.unlink(fs.path("d0", "f0"))
        assert os.pread(fd, 100, 0) == b"still here"
        os.close(fd)
        shutil.rmtree(fs.path("d1"))
        assert sorted(os.listdir(fs.path("d0"))) == sorted("f%d" % k for k in range(1, 100))


def sync_makes_all_durable(to):
    fs = Filesystem(to)
    fs.mount()
    fd = os.open(fs.path("f"), os.O_CREAT | os.O_RDWR)
    os.write(fd, b"x" * 300000)
    status, _, err = doors.run([KILN, "sync", fs.directory])
    assert status == 0, err
    fs.kill()
    with fs:
        assert read(fs.path("f")) == b"x" * 300000


def writes_are_durable_at_once_where_that_is_asked_for(to):
    fs = Filesystem(to, options=["-o", "sync"])
    fs.mount()
    fd = os.open(fs.path("f"), os.O_CREAT | os.O_RDWR)
    os.write(fd, b"x" * 300000)
    fs.kill()
    with fs:
        assert read(fs.path("f")) == b"x" * 300000


def what_the_system_syncs_is_durable_soon(to):
    """sync(2) doesn't reach the server; the journal's flush delay, a second, does the rest."""
    fs = Filesystem(to)
    for seconds in (3, 12, 48):  # the machine may be slow
        path = fs.path("f%d" % seconds)
        fs.mount()
        write(path, b"x" * 300000)
        os.sync()
        time.sleep(seconds)
        fs.kill()
        with fs:
            if os.path.exists(path) and read(path) == b"x" * 300000:
                return
    raise AssertionError("not durable after %d s" % seconds)


def who_waits_for_a_flush_holds_up_nobody_else(to):
    """Many at once, on a device that takes a second for each: what needs none goes on."""
    fs = FaultyFilesystem(to)
    fs.mount()
    end = threading.Event()

    def sync_again_and_again(i):
        fd = os.open(fs.path("f%d" % i), os.O_CREAT | os.O_WRONLY)
        while not end.is_set():
            os.write(fd, b"x" * 5000)
            os.fsync(fd)
        os.close(fd)

    fs.slow("flush", 1000)
    with concurrent.futures.ThreadPoolExecutor(40) as pool:
        done = [pool.submit(sync_again_and_again, i) for i in range(40)]
        time.sleep(0.5)
        begin = time.monotonic()
        for i in range(100):
            assert not os.path.exists(fs.path("nothing%d" % i))
            os.mkdir(fs.path("d%d" % i))
            assert os.listdir(fs.path("d%d" % i)) == []
        took = time.monotonic() - begin
        end.set()
        fs.tell("clear")
        for d in done:
            d.result()
    status, said = fs.end()
    assert status == 0, said
    assert took < 50, took  # 100, if each had waited for a flush
    fs.check()


def threads_named(fs, *names):
    folder = "/proc/%d/task" % fs.server.pid
    nr = 0
    for task in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it may have ended
            nr += read(os.path.join(folder, task, "comm")).decode().strip() in names
    return nr


def many_who_look_for_holes_leave_threads_for_others(to):
    """Each has the kernel write back first, for which threads of the server are needed."""
    fs = FaultyFilesystem(to)
    fs.mount()
    nr = 300
    fds = [os.open(fs.path("f%d" % i), os.O_CREAT | os.O_RDWR) for i in range(nr)]
    for fd in fds:
        os.write(fd, b"x" * 5000)
    fs.hold("write")
    with concurrent.futures.ThreadPoolExecutor(nr + 1) as pool:
        done = [pool.submit(os.lseek, fd, 0, os.SEEK_HOLE) for fd in fds]
        try:
            time.sleep(1)
            threads = threads_named(fs, "mount", "mount-ring")
            assert not pool.submit(os.path.exists, fs.path("nothing")).result(timeout=WAIT_S)
        finally:
            fs.tell("clear")
        assert [d.result() for d in done] == [5000] * nr
    for fd in fds:
        os.close(fd)
    status, said = fs.end()
    assert status == 0, said
    assert threads < 100, threads
    fs.check()


URING_PARAMETER = "/sys/module/fuse/parameters/enable_uring"


@contextlib.contextmanager
def io_uring_offered():
    """By the kernel, to whoever mounts something meanwhile."""
    try:
        with open(URING_PARAMETER) as f:
            before = f.read()
        write(URING_PARAMETER, b"Y")
    except OSError as e:
        raise tap.Skip("no FUSE over io_uring: %s" % e)
    try:
        yield
    finally:
        write(URING_PARAMETER, before.encode())


def requests_come_through_io_uring_where_the_kernel_offers_it(to):
    with io_uring_offered():
        fs = Filesystem(to)
        for options, has_rings in (([], True), (["-o", "io_uring"], True), (["-o", "noio_uring"], False)):
            fs.options = options
            with fs:
                assert bool(threads_named(fs, "mount-ring")) == has_rings
                write(fs.path("f"), b"x" * 5000)
                assert read(fs.path("f")) == b"x" * 5000
        os.chmod(to, 0o755)
        for case in (who_waits_for_a_flush_holds_up_nobody_else, direct_and_buffered_io_agree, many_threads_write_and_read_their_files,
                     signals_write_back_what_is_cached, a_server_may_die_under_load,
                     sync_waits_until_the_kernel_has_written_back, many_who_look_for_holes_leave_threads_for_others, who_finds_it_in_use_is_told_where,
                     who_gives_room_up_has_it_at_once):
            os.mkdir(os.path.join(to, case.__name__))
            case(os.path.join(to, case.__name__))


def sync_waits_until_the_kernel_has_written_back(to):
    """syncfs() doesn't. The image lies on a filesystem whose device is slow."""
    below, fs = mounted_above_another(to)
    # Not open here: a child that is made writes it back when it closes what it has inherited.
    hold = "import os, sys; os.write(os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY), b'cached' * 5000000); print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", hold, fs.path("f")], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"\n"
        below.slow("write", 300, 12)
        status, _, err = doors.run([KILN, "sync", fs.directory])
        assert status == 0, err
        below.tell("clear")
        fs.kill()
        holder.stdin.close()
    with fs:
        assert read(fs.path("f")) == b"cached" * 5000000
    assert below.end()[0] == 0


def sync_tells_what_had_no_room_and_makes_the_rest_durable(to):
    fs = Filesystem(to, size="64M")
    fs.mount()
    try:
        for i in range(100):
            write(fs.path("large%d" % i), os.urandom(1 << 20))
        raise AssertionError("there was room")
    except OSError as e:
        assert e.errno == errno.ENOSPC, e
    for i in range(10):
        os.unlink(fs.path("large%d" % i))
    write(fs.path("f"), b"x" * 300000)
    # Whether the kernel had written back what it couldn't, and tells, is up to it.
    status, _, err = doors.run([KILN, "sync", fs.directory])
    assert status == 0 or (status == 1 and "is lost: No space" in err and "all else is durable" in err), err
    status, _, err = doors.run([KILN, "sync", fs.directory])
    assert status == 0, err
    fs.kill()
    with fs:
        assert read(fs.path("f")) == b"x" * 300000


def opening_waits_for_the_last_server(to):
    fs = Filesystem(to)
    for _ in range(3):
        fs.mount()
        for i in range(200):
            write(fs.path("f%d" % i), b"x" * 10000)
        umount(fs.directory)
        status, out, err = doors.run([KILN, "check", fs.image])
        assert status == 0, err
        fs.ended()
    for command in (["set-option", fs.image, "compression=lz4"], *[["format", "-q", "-f", fs.image]] * 3):
        fs.mount()
        for i in range(200):
            write(fs.path("f%d" % i), b"x" * 10000)
        umount(fs.directory)
        status, out, err = doors.run([KILN, *command])
        assert status == 0, (command, err)
        fs.ended()


def a_server_that_takes_long_to_end_says_so(to):
    """So does who waits for it. Its image lies on a filesystem whose device is slow, once: where no flush ends, nothing there can be changed."""
    below, fs = mounted_above_another(to)
    write(fs.path("f"), b"x" * 10000)
    below.slow("flush", 30000, 1)
    umount(fs.directory)
    status, out, err = doors.run([KILN, "sync", fs.image])
    assert status == 1 and "has been unmounted" in err, (status, err)
    status, out, err = doors.run([KILN, "status", fs.image])
    assert status == 0 and "  state    ending, no longer mounted here" in out.decode(), (out, err)
    status, out, err = doors.run([KILN, "ls", fs.image, "/"])
    assert status == 0 and "waiting for the last mount of %s to end" % fs.image in err, (status, err)
    said = fs.ended()
    assert "still writing back after 10 s: " in said, said
    fs.check()
    status, said = below.end()
    assert status == 0, said


def service_managers_are_told(to):
    path = os.path.join(to, "notify")
    fs = Filesystem(to)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        s.bind(path)
        s.settimeout(WAIT_S)
        fs.environment["NOTIFY_SOCKET"] = path  # not in ours: servers of other cases run, too
        with fs:
            assert s.recv(100) == b"READY=1"
            assert os.path.ismount(fs.directory)
        assert s.recv(100) == b"STOPPING=1"


def mount_helpers_take_lines_of_fstab(to):
    fs = Filesystem(to)
    for name in ("mount.kiln", "mount.fuse.kiln"):
        helper = os.path.join(to, name)
        os.symlink(KILN, helper)
        status, _, err = doors.run([helper, fs.image, fs.directory, "-n", "-o", "rw,noatime,nofail,x-a.b=c,defaults"])
        assert status == 0, err
        write(fs.path(name), b"x")
        umount(fs.directory)
    status, _, err = doors.run([helper, fs.image, fs.directory, "-o", "rw"])
    assert status == 0, err
    for how, refused in (("rw,nosuid,relatime,user_id=0,remount,ro", errno.EROFS), ("remount,rw", None)):
        status, _, err = doors.run([helper, fs.image, fs.directory, "-o", how])
        assert status == 0, err
        if refused:
            raises(refused, os.mkdir, fs.path("remounted"))
    os.mkdir(fs.path("remounted"))
    umount(fs.directory)
    status, _, err = doors.run([helper, fs.image, fs.directory, "-o", "ro"])
    assert status == 0, err
    status, _, err = doors.run([helper, fs.image, fs.directory, "-o", "remount,rw"])
    assert status == 32 and "read-only" in err, err
    raises(errno.EROFS, os.mkdir, fs.path("d"))
    assert read(fs.path("mount.kiln")) == b"x"
    umount(fs.directory)
    status, _, err = doors.run([helper, fs.image, fs.directory, "-o", "nonsense"])
    assert status == 1 and "nonsense" in err, err
    status, _, err = doors.run([helper, fs.image, fs.path("nowhere")])
    assert status == 32 and "nowhere" in err, err
    status, _, err = doors.run([KILN, "mount", "-o", "nonsense", fs.image, fs.directory])
    assert status == 2 and "nonsense" in err, err


def mount_finds_filesystems_by_uuid(to):
    """mount(8) itself, with a line of fstab; our helper has to be where it looks, so for the time of it, it is."""
    fs = Filesystem(to, size="64M", format_options=["--uuid", "f0e1d2c3-0000-4000-8000-%012x" % os.getpid()])
    helper, table = "/sbin/mount.fuse.kiln-test-%d" % os.getpid(), os.path.join(to, "fstab")
    loop = loop_attach(fs.image)
    os.symlink(KILN, helper)
    try:
        with open(table, "w") as f:
            f.write("uuid=f0e1d2c3-0000-4000-8000-%012x %s fuse.kiln-test-%d noatime,nofail 0 0\n" % (os.getpid(), fs.directory, os.getpid()))
        status, _, err = doors.run(["mount", "-T", table, fs.directory])
        assert status == 0, err
        write(fs.path("f"), b"x")
        assert os.statvfs(fs.directory).f_flag & os.ST_NOATIME
        # What is there already `mount -a` mounts no second time.
        assert doors.run(["mount", "-a", "-T", table]) == (0, b"", "")
        uuid = "UUID=f0e1d2c3-0000-4000-8000-%012x" % os.getpid()
        for command in (["ls", uuid, "/"], ["check", uuid], ["mkdir", uuid, "/d"]):
            status, _, err = doors.run([KILN, *command])
            assert status in (1, 8) and "mounted at %s" % fs.directory in err, (command, err)
        umount(fs.directory)
        assert not os.path.ismount(fs.directory)
        status, out, err = doors.run([KILN, "ls", fs.image, "/"])  # waits for the server
        assert status == 0 and b"f\n" in out, err
    finally:
        os.unlink(helper)
        subprocess.run(["losetup", "-d", loop], check=True)


def mount_helpers_show_it_at_a_second_place(to):
    fs, other, third = Filesystem(to), os.path.join(to, "other"), os.path.join(to, "third")
    helper = os.path.join(to, "mount.fuse.kiln")
    os.symlink(KILN, helper)
    for directory in (other, third):
        os.mkdir(directory)
    with fs:
        os.mkdir(fs.path("sub"))
        status, _, err = doors.run([helper, fs.image, fs.directory])
        assert status == 32 and "mounted at %s" % fs.directory in err, err
        # A part of it is not it.
        subprocess.run(["mount", "--bind", fs.path("sub"), third], check=True)
        for options in ("rw,nosuid", "ro"):
            status, _, err = doors.run([helper, fs.image, other, "-o", options])
            assert status == 0, err
            name = "f" + options
            write(fs.path(name), b"x")
            assert read(os.path.join(other, name)) == b"x" and os.stat(other).st_dev == os.stat(fs.directory).st_dev
            if options == "ro":
                raises(errno.EROFS, os.unlink, os.path.join(other, name))
            else:
                os.unlink(os.path.join(other, name))
                assert not os.path.exists(fs.path(name)) and os.statvfs(other).f_flag & os.ST_NOSUID
            status, out, err = doors.run([KILN, "sync", other])
            assert status == 0, err
            umount(other)
        # The first place may go; what is left of it is a part.
        status, _, err = doors.run([helper, fs.image, other])
        assert status == 0, err
        umount(fs.directory)
        write(os.path.join(other, "g"), b"x")
        status, _, err = doors.run([helper, fs.image, fs.directory])
        assert status == 0, err
        assert read(fs.path("g")) == b"x"
        for directory in (other, third):
            umount(directory)
    fs.options = ["-o", "ro"]
    with fs:
        status, _, err = doors.run([helper, fs.image, other])
        assert status == 32 and "served read-only at %s" % fs.directory in err, err
        status, _, err = doors.run([helper, fs.image, other, "-o", "ro"])
        assert status == 0 and read(os.path.join(other, "g")) == b"x", err
        umount(other)


def who_finds_it_in_use_is_told_where(to):
    with Filesystem(to) as fs:
        for command in (["set-option", fs.image, "compression=none"], ["mount", fs.image, to], ["ls", fs.image, "/"],
                        ["format", "-f", fs.image], ["mkdir", fs.image, "/a"], ["put", fs.image, "/dev/null", "/a"],
                        ["put", "-r", fs.image, fs.directory, "/a"], ["rm", fs.image, "/a"], ["mv", fs.image, "/a", "/b"],
                        ["ln", fs.image, "/a", "/b"], ["touch", fs.image, "/a"], ["chmod", "600", fs.image, "/a"],
                        ["chown", "1", fs.image, "/a"], ["setfattr", "-n", "user.a", "-v", "b", fs.image, "/a"]):
            status, _, err = doors.run([KILN, *command])
            assert status == 1 and "mounted at %s: use it there" % fs.directory in err, err
    for _ in range(10):  # the kernel gets to know of it at different points
        fs.mount()
        fs.server.kill()
        fs.server.communicate()
        for command in (["mount", fs.image, fs.directory], ["mkdir", fs.image, "/a"]):
            status, _, err = doors.run([KILN, *command])
            assert status == 1 and "`umount %s` first" % fs.directory in err, (status, err)
        umount(fs.directory)
    with fs:
        pass


def loop_attach(path, *options):
    p = subprocess.run(["losetup", *options, "-f", "--show", path], capture_output=True, text=True)
    if p.returncode:
        raise tap.Skip("no loop devices here: " + p.stderr.strip())
    return p.stdout.strip()


def a_server_that_ends_while_it_is_asked_is_passed_over(to):
    path = "/run/kiln/%d.sock" % os.getpid()
    os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()

        def hang_up():
            while True:
                server.accept()[0].close()

        threading.Thread(target=hang_up, daemon=True).start()
        try:
            for _ in range(50):
                status, _, err = doors.run([KILN, "status"])
                # Other tests have servers, too, and stop them.
                assert status == 0 or (re.search("has been stopped|no answer in", err) and str(os.getpid()) not in err), (status, err)
        finally:
            os.unlink(path)


def what_is_write_protected_is_told_as_such(to):
    """Nothing is damaged about it."""
    fs = Filesystem(to, size="64M")
    loop = loop_attach(fs.image, "-r")
    try:
        for command in (["mount", loop, fs.directory], ["mkdir", loop, "/a"]):
            status, _, err = doors.run([KILN, *command])
            assert status == 1 and "for writing: Read-only" in err and "-o ro" in err and "damaged" not in err, err
        status, _, err = doors.run([KILN, "mount", "-o", "ro", loop, fs.directory])
        assert status == 0, err
        umount(fs.directory)
    finally:
        # The next file behind it would be read-only, too.
        subprocess.run(["blockdev", "--setrw", loop], check=True)
        subprocess.run(["losetup", "-d", loop], check=True)


def a_loop_device_is_the_file_behind_it(to):
    """What is mounted under one name can't be written, nor mounted, under another; nor what the kernel has claimed."""
    fs = Filesystem(to, size="64M")
    loops = [loop_attach(fs.image)]
    try:
        loops.append(loop_attach(fs.image))
        for image in (loops[0], fs.image):
            fs.server = subprocess.Popen([KILN, "mount", "-f", image, fs.directory], stdin=subprocess.DEVNULL,
                                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            wait_until("mounted", lambda: os.path.ismount(fs.directory))
            for other in (fs.image, *loops):
                for command in (["mkdir", other, "/a"], ["format", "-f", other], ["set-option", other, "acl=1"],
                                ["check", other]):
                    status, _, err = doors.run([KILN, *command])
                    assert status in (1, 8) and "mounted at %s" % fs.directory in err, (command, err)
            fs.unmount()
        claim = os.open(loops[0], os.O_RDONLY | os.O_EXCL)
        for other in (fs.image, *loops):
            status, _, err = doors.run([KILN, "mkdir", other, "/a"])
            assert status == 1 and "in use" in err or "being used as %s" % loops[0] in err, (other, err)
        status, _, err = doors.run([KILN, "ls", "--force", fs.image, "/"])
        assert status == 0, err
        os.close(claim)
        for other in (fs.image, *loops):
            status, _, err = doors.run([KILN, "mkdir", "-p", other, "/a"])
            assert status == 0, err
    finally:
        for loop in loops:
            subprocess.run(["losetup", "-d", loop], check=True)


CASES = [
    a_server_that_ends_while_it_is_asked_is_passed_over,
    how_far_jobs_are_is_told,
    servers_say_what_they_do,
    errors_of_devices_are_told_and_outlive_the_server,
    a_server_that_was_lazily_unmounted_is_told_from_the_next,
    the_kernel_is_made_to_forget,
    sync_makes_all_durable,
    writes_are_durable_at_once_where_that_is_asked_for,
    what_the_system_syncs_is_durable_soon,
    who_waits_for_a_flush_holds_up_nobody_else,
    many_who_look_for_holes_leave_threads_for_others,
    requests_come_through_io_uring_where_the_kernel_offers_it,
    sync_waits_until_the_kernel_has_written_back,
    sync_tells_what_had_no_room_and_makes_the_rest_durable,
    opening_waits_for_the_last_server,
    a_server_that_takes_long_to_end_says_so,
    service_managers_are_told,
    mount_helpers_take_lines_of_fstab,
    mount_finds_filesystems_by_uuid,
    mount_helpers_show_it_at_a_second_place,
    who_finds_it_in_use_is_told_where,
    what_is_write_protected_is_told_as_such,
    a_loop_device_is_the_file_behind_it,
    a_tree_is_copied_in_and_comes_out_the_same,
    an_encrypted_filesystem_is_written_with_its_passphrase,
    renames_follow_their_flags,
    names_of_255_bytes_and_no_more,
    a_directory_is_listed_whole_while_it_changes,
    unlinked_files_live_until_they_are_closed,
    files_without_a_name_can_get_one,
    handles_lead_to_what_the_kernel_has_forgotten,
    times_of_birth_are_shown,
    a_file_that_was_in_use_is_gone_after_the_mount,
    a_shared_mapping_and_writes_are_one,
    direct_and_buffered_io_agree,
    what_is_read_during_direct_writes_is_not_kept,
    reading_into_a_mapping_of_the_same_file_ends,
    holes_are_found_in_what_was_just_written,
    files_may_be_as_large_as_offsets_go,
    appends_of_many_processes_are_all_there,
    many_threads_write_and_read_their_files,
    thousands_of_files_are_open_and_64_threads_write_them,
    short_memory_hangs_nobody,
    servers_without_room_for_threads_say_so_or_serve,
    times_are_kept_to_the_nanosecond,
    what_the_kernel_writes_is_not_older_than_what_was_made_before,
    reading_changes_atime_as_asked_for,
    reading_directories_changes_atime_unless_nodiratime,
    times_of_access_are_kept_together_and_not_lost,
    default_acls_are_inherited_instead_of_the_umask,
    who_writes_a_setuid_file_takes_its_power,
    who_changes_the_space_of_a_setuid_file_takes_its_power,
    flags_are_changed_and_honoured,
    flags_and_the_project_are_set_by_the_newer_call_too,
    options_of_files_are_attributes,
    quotas_hold_for_users_and_not_for_root,
    who_gives_room_up_has_it_at_once,
    mappings_change_times_with_quotas_too,
    a_full_filesystem_is_told_once_and_goes_on,
    an_error_of_writing_back_is_told_and_then_over,
    close_tells_what_setting_times_has_swallowed,
    what_was_synced_is_there_after_the_server_died,
    a_server_may_die_under_load,
    devices_that_fail_make_it_readonly_and_nothing_hangs,
    data_that_cannot_be_read_fails_alone,
    nodes_that_cannot_be_read_fail_alone,
    failing_writes_and_flushes_end_in_readonly,
    a_device_that_fails_now_and_then_hangs_nobody,
    signals_write_back_what_is_cached,
    a_second_signal_ends_it_though_much_is_cached,
    what_was_mounted_there_before_stays,
    signals_end_it_wherever_it_is_mounted,
    signals_write_back_what_open_files_have,
    signals_write_back_what_other_namespaces_have_open,
    a_mount_that_is_looked_at_for_a_moment_is_not_in_use,
]


def in_a_folder(case):
    doors.need_mount()
    with images.temporary() as to:
        case(to)


# Where the caller ignores it (nohup), the servers started here would too.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
sys.exit(tap.run([(case.__name__, lambda case=case: in_a_folder(case)) for case in CASES]))
