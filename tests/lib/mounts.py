"""Filesystems that are mounted read-write for a test, and what tests do at them.

The test is called with the tool and with faulty-mount (tests/mount/faulty.c) as its arguments.
"""
import contextlib
import errno
import json
import os
import subprocess
import sys
import time

import doors
from doors import umount
from tap import WAIT_S, wait_until

KILN = os.path.abspath(sys.argv[1])
CLOCK_REALTIME_COARSE = 5  # of <time.h>
FAULTY_MOUNT = os.path.abspath(sys.argv[2])


def raises(number, function, *args, **named):
    try:
        result = function(*args, **named)
    except OSError as e:
        assert e.errno == number, "%s, expected %s" % (e, errno.errorcode[number])
        return
    raise AssertionError("expected %s, got %r" % (errno.errorcode[number], result))


@contextlib.contextmanager
def memory_untouched():
    """MALLOC_PERTURB_ would write to all that is allocated, whether it is used or not."""
    perturb = os.environ.pop("MALLOC_PERTURB_", None)
    try:
        yield
    finally:
        if perturb is not None:
            os.environ["MALLOC_PERTURB_"] = perturb


class Filesystem:
    """A fresh image, mounted read-write by a server that stays our child, checked at the end."""

    def __init__(self, to, size="256M", options=(), format_options=(), passphrase=()):
        self.image = os.path.join(to, "image")
        self.directory = os.path.join(to, "mnt")
        self.options = list(options)
        self.passphrase = list(passphrase)  # options that say it
        self.environment = {}  # of the server, besides ours
        self.start = None  # what it does first
        os.makedirs(self.directory, exist_ok=True)
        status, _, err = doors.run([KILN, "format", "--size", size, *format_options, self.image])
        assert status == 0, err

    def path(self, *names):
        return os.path.join(self.directory, *names)

    def mount(self):
        self.server = subprocess.Popen([KILN, "mount", "-f", *self.options, self.image, self.directory],
                                       env={**os.environ, **self.environment}, preexec_fn=self.start, stdin=subprocess.DEVNULL,
                                       stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        wait_until("mounted", lambda: os.path.ismount(self.directory) or self.server.poll() is not None)
        assert self.server.poll() is None, self.server.stderr.read().decode()
        return self

    def ended(self):
        """What the server said by the time it has ended, as it must, cleanly."""
        _, err = self.server.communicate(timeout=WAIT_S)
        assert self.server.returncode == 0, "status %s: %s" % (self.server.returncode, err.decode())
        return err.decode()

    def unmount(self):
        umount(self.directory)
        said = self.ended()
        assert not said, said

    def kill(self):
        """The server dies; nothing is said to anyone."""
        self.server.kill()
        self.server.communicate()
        subprocess.run(["umount", "-l", self.directory], check=True)

    def check(self):
        status, out, err = doors.run([KILN, "check", *self.passphrase, self.image])
        assert status == 0, "%s\n%s" % (out.decode()[-3000:], err[-3000:])

    def __enter__(self):
        return self.mount()

    def __exit__(self, kind, *_):
        if kind:
            self.server.kill()
            subprocess.run(["umount", "-l", self.directory], stderr=subprocess.DEVNULL)
            return
        if self.server.poll() is None:
            self.unmount()
        self.check()


class FaultyFilesystem(Filesystem):
    """One whose device fails as it is told to (faulty.c)."""

    def mount(self, *first):
        self.server = subprocess.Popen([FAULTY_MOUNT, ",".join(self.options), self.image, self.directory, *first], stdin=subprocess.PIPE,
                                       stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        said = self.server.stdout.readline()
        assert said == b"mounted\n", (said, self.server.stderr.read())
        return self

    def tell(self, command):
        self.server.stdin.write(command.encode() + b"\n")
        self.server.stdin.flush()
        said = self.server.stdout.readline()
        assert said == b"ok\n", (command, said)

    def fail(self, op, begin=0, end=0, per_million=1000000, times=1 << 63):
        self.tell("error %s %d %d %d %d" % (op, begin, end, per_million, times))

    def slow(self, op, ms, times=1 << 63):
        self.tell("slow %s %d %d" % (op, ms, times))

    def hold(self, op):
        self.tell("hold " + op)

    def end(self):
        """Unmount. The server's status, and what it said."""
        umount(self.directory)
        _, err = self.server.communicate(timeout=WAIT_S)
        return self.server.returncode, err.decode()

    def keys(self, btree, *options):
        status, out, err = doors.run([KILN, "list", "--json", "-b", btree, *options, self.image])
        assert status == 0, err
        return [json.loads(line) for line in out.splitlines()]


def next_tick():
    """The kernel's clock for times of files goes by ticks: what comes now has a later time than what was before."""
    began = time.clock_gettime_ns(CLOCK_REALTIME_COARSE)
    while time.clock_gettime_ns(CLOCK_REALTIME_COARSE) == began:
        time.sleep(0.001)


def write(path, data, flags=os.O_CREAT | os.O_WRONLY | os.O_TRUNC):
    fd = os.open(path, flags, 0o644)
    try:
        assert os.write(fd, data) == len(data)
    finally:
        os.close(fd)


def as_user(uid, function):
    """Call it in a process of somebody else: 0, or the errno it failed with."""
    pid = os.fork()
    if not pid:
        status = 255
        try:
            os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # what other cases have open they want to close
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            function()
            status = 0
        except OSError as e:
            status = e.errno
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def read(path):
    with open(path, "rb") as f:
        return f.read()


def mounted_above_another(to):
    """Two filesystems, both mounted: the image of the second lies on the first, whose device does what it is told."""
    below = FaultyFilesystem(os.path.join(to, "below"), size="1G")
    below.mount()
    fs = Filesystem(below.path("above"))
    fs.directory = to
    return below, fs.mount()


def job_of(fs, name):
    status, out, err = doors.run([KILN, "status", "--json", fs.directory])
    assert status == 0, err
    return next(job for job in json.loads(out)[0]["jobs"] if job["job"] == name)


def table_says_readonly(directory):
    with open("/proc/self/mountinfo") as f:
        return any(line.split()[4] == directory and line.split()[5].startswith("ro") for line in f)
