#!/usr/bin/env python3
"""What servers of mounted filesystems tell and are told: over their control sockets, by mount(8), and in their log.

    test_control.py KILN FAULTY_MOUNT

Needs root and /dev/fuse, else everything is skipped, and says so.
"""
import concurrent.futures
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time

TESTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
sys.path.insert(0, os.path.join(TESTS, "lib"))

import doors  # noqa: E402
import images  # noqa: E402
import tap  # noqa: E402
from mounts import KILN, WAIT_S, FaultyFilesystem, Filesystem, mounted_above_another, table_says_readonly, wait_until  # noqa: E402


def kiln(*args, status=0):
    """(standard output, standard error)"""
    got, out, err = doors.run([KILN, *args])
    assert got == status, "%s: status %d\n%s" % (args, got, err)
    return out.decode(), err


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


# --- who is asked, and doesn't answer ---


def a_stuck_server_is_told_of_and_holds_up_nobody(to):
    stuck, fs = Filesystem(os.path.join(to, "stuck"), size="64M"), Filesystem(os.path.join(to, "other"), size="64M")
    with stuck, fs:
        stuck.server.send_signal(signal.SIGSTOP)
        try:
            begin = time.monotonic()
            kiln("status", fs.directory)
            kiln("status", fs.image)
            kiln("sync", fs.directory)
            assert time.monotonic() - begin < 4, time.monotonic() - begin
            begin = time.monotonic()
            out, err = kiln("status", "--json", status=1)
            took = time.monotonic() - begin
            # What others have mounted is told of, too.
            told = {server["pid"]: server for server in json.loads(out)}
            assert told[fs.server.pid]["state"] == "serving", told
            of_it = told[stuck.server.pid]
            assert (of_it["state"], of_it["mountpoint"]) == ("stuck", stuck.directory), of_it
            for where in (of_it["error"], err):
                assert "`kill -CONT %d`" % stuck.server.pid in where, where
            assert took < 9, took
            out, err = kiln("status", stuck.image, status=1)
            assert "%s\n  state    stuck, process %d\n" % (stuck.directory, stuck.server.pid) in out, out
            _, err = kiln("sync", stuck.directory, status=1)
            assert "kill -CONT" in err, err
        finally:
            stuck.server.send_signal(signal.SIGCONT)
        out, _ = kiln("status", stuck.directory)
        assert "serving" in out, out
    assert not [name for name in os.listdir("/run/kiln") if name.split(".")[0] in (str(stuck.server.pid), str(fs.server.pid))]


def what_a_server_tells_waits_for_no_sync(to):
    below, fs = mounted_above_another(to)
    with cached(fs.path("f"), 6000000):
        below.slow("write", 3000)
        with subprocess.Popen([KILN, "sync", fs.directory], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as syncing:
            time.sleep(0.7)
            for _ in range(3):
                begin = time.monotonic()
                out, _ = kiln("status", fs.directory)
                assert "serving" in out and time.monotonic() - begin < 2, time.monotonic() - begin
            assert syncing.poll() is None
            below.tell("clear")
            _, err = syncing.communicate(timeout=WAIT_S)
            assert syncing.returncode == 0, err
    fs.unmount()
    fs.check()
    assert below.end()[0] == 0


def clients_that_say_nothing_hold_up_nobody(to):
    with Filesystem(to, size="64M") as fs:
        silent = []
        for _ in range(20):
            silent.append(socket.socket(socket.AF_UNIX))
            silent[-1].connect("/run/kiln/%d.sock" % fs.server.pid)
        begin = time.monotonic()
        kiln("status", fs.directory)
        assert time.monotonic() - begin < 5, time.monotonic() - begin
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            for _, err in pool.map(lambda _: kiln("status", fs.directory), range(60)):
                assert not err, err
        for s in silent:
            s.close()


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
    a_stuck_server_is_told_of_and_holds_up_nobody,
    what_a_server_tells_waits_for_no_sync,
    clients_that_say_nothing_hold_up_nobody,
    an_error_before_it_is_mounted_is_in_the_mount_table,
]


def in_a_folder(case):
    doors.need_mount()
    with images.temporary() as to:
        case(to)


sys.exit(tap.run([(case.__name__, lambda case=case: in_a_folder(case)) for case in CASES]))
