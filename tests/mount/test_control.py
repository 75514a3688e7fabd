#!/usr/bin/env python3
"""What servers of mounted filesystems tell and are told: over their control sockets, by mount(8), and in their log.

    test_control.py KILN FAULTY_MOUNT

Needs root and /dev/fuse, else everything is skipped, and says so.
"""
import concurrent.futures
import contextlib
import os
import signal
import subprocess
import sys

TESTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
sys.path.insert(0, os.path.join(TESTS, "lib"))

import doors  # noqa: E402
import images  # noqa: E402
import tap  # noqa: E402
from mounts import WAIT_S, FaultyFilesystem, table_says_readonly, wait_until  # noqa: E402

@contextlib.contextmanager
def cached(path, size):
    """
    Written by another process, which keeps it open until the end of its standard input: closing writes back what only
    the page cache has, and so does each child that is made here when it closes what it has inherited.
    """
    hold = "import os, sys; os.write(os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY), b'c' * %d); print(flush=True); sys.stdin.read()" % size
    with subprocess.Popen([sys.executable, "-c", hold, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"\n"
        yield holder


# --- the end ---


def what_a_slow_end_waits_for_is_said(to):
    """The kernel writes back first, to a device that takes long for it: what open files have."""
    def end(how):
        fs = FaultyFilesystem(os.path.join(to, how), size="64M")
        fs.mount()
        with cached(fs.path("f"), 3000000) as holder:
            fs.slow("write", 13000)
            if how == "signal":
                fs.server.send_signal(signal.SIGTERM)
            else:
                subprocess.run(["umount", "-l", fs.directory], check=True)
                holder.stdin.close()
            said = fs.server.stderr.readline().decode()
            fs.tell("clear")
            _, err = fs.server.communicate(timeout=WAIT_S)
        assert fs.server.returncode == 0, err
        assert "%s: still ending after 10 s: " % fs.directory in said and "writes under way" in said, said
        assert ("the kernel writes back what it has cached" if how == "signal" else "no longer mounted") in said, said
        assert "`kiln status %s`" % fs.image in said and "`kill %d` ends it" % fs.server.pid in said, said
        assert (b"is in use" in err) == (how == "signal") and b"still ending" not in err, err
        with fs:
            with open(fs.path("f"), "rb") as f:
                assert f.read() == b"c" * 3000000
            status, said = fs.end()
            assert status == 0, said

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for ended in [pool.submit(end, how) for how in ("signal", "umount")]:
            ended.result()


def an_error_before_it_is_mounted_is_in_the_mount_table(to):
    fs = FaultyFilesystem(to, size="64M")
    fs.mount("error write 0 0 1000000 1000000")
    wait_until("read-only in the mount table", lambda: table_says_readonly(os.path.realpath(fs.directory)))
    status, said = fs.end()
    assert status == 1 and "not clean" in said, said


CASES = [
    what_a_slow_end_waits_for_is_said,
    an_error_before_it_is_mounted_is_in_the_mount_table,
]


def in_a_folder(case):
    doors.need_mount()
    with images.temporary() as to:
        case(to)


sys.exit(tap.run([(case.__name__, lambda case=case: in_a_folder(case)) for case in CASES]))
