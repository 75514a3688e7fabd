#!/usr/bin/env python3
"""What servers of mounted filesystems tell and are told: over their control sockets, by mount(8), and in their log.

    test_control.py KILN FAULTY_MOUNT

Needs root and /dev/fuse, else everything is skipped, and says so.
"""
import concurrent.futures
import contextlib
import errno
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
from mounts import (KILN, WAIT_S, FaultyFilesystem, Filesystem, as_user, job_of, mounted_above_another, next_tick, table_says_readonly,  # noqa: E402
                    wait_until, write)



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


# --- quotas ---


def append(path, size):
    write(path, b"x" * size, os.O_CREAT | os.O_WRONLY | os.O_APPEND)


def limits_are_set_while_it_is_mounted(to):
    fs = Filesystem(to, format_options=["--usrquota", "--grpquota", "--prjquota", "--block-size=4k"])
    os.chmod(to, 0o755)
    with fs:
        os.chmod(fs.directory, 0o777)
        os.mkdir(fs.path("of-project"))
        os.setxattr(fs.path("of-project"), "bcachefs.project", b"7")
        path = fs.path("file")
        kiln("quota", fs.directory, "report")  # waits until all is counted, as no limit holds before
        for which, mib in ((fs.directory, 1), (fs.image, 2)):
            kiln("quota", which, "set", "user:1234", "--space-hard=%dM" % mib)
            assert as_user(1234, lambda: append(path, 1 << 20)) == 0
            assert as_user(1234, lambda: append(path, 4096)) == errno.EDQUOT, mib
        kiln("quota", fs.directory, "set", "group:1234", "project:7", "--inodes-hard=2")
        assert as_user(1234, lambda: os.mkdir(fs.path("d"))) == 0
        assert as_user(1234, lambda: os.mkdir(fs.path("e"))) == errno.EDQUOT
        kiln("quota", fs.directory, "set", "group:1234", "--inodes-hard=0")
        assert as_user(1234, lambda: os.mkdir(fs.path("e"))) == 0
        # Root has made it, but isn't held to limits.
        os.mkdir(fs.path("of-project", "a"))
        os.mkdir(fs.path("of-project", "b"))
        # Above a soft limit for a while.
        kiln("quota", fs.image, "grace", "user", "--space-period", "2")
        kiln("quota", fs.directory, "set", "user:1235", "--space-soft=100k")
        assert as_user(1235, lambda: append(fs.path("other"), 200 << 10)) == 0
        time.sleep(3.1)
        assert as_user(1235, lambda: append(fs.path("other"), 4096)) == errno.EDQUOT
        kiln("quota", fs.directory, "set", "user:1235", "--space-soft=0")
        assert as_user(1235, lambda: append(fs.path("other"), 4096)) == 0


def what_was_set_is_durable(to):
    fs = Filesystem(to, format_options=["--usrquota"])
    fs.mount()
    kiln("quota", fs.directory, "set", "user:1", "user:2", "--space-hard=3M", "--inodes-soft=4")
    kiln("quota", fs.directory, "grace", "user", "--inodes-period=5d")
    fs.kill()
    with fs:
        (got,) = json.loads(kiln("quota", fs.image, "get", "user:2", "--json")[0])
        assert (got["space"]["hard"], got["inodes"]["soft"]) == (3 << 20, 4), got
        state = json.loads(kiln("quota", fs.image, "report", "--json")[0])["types"]["user"]
        assert state["inodes_grace"] == 5 * 86400 and state["space_grace"] == 7 * 86400, state


def quotas_are_shown_the_same_mounted_or_not(to):
    asked = [["report"], ["report", "--json"], ["report", "user", "project"], ["-h", "report", "group"], ["get", "user:1", "group:2", "user:9"],
             ["get", "--json", "project:3", "user:4294967294", "project:9"]]
    for name, options in (("all", ["--usrquota", "--grpquota", "--prjquota"]), ("one", ["--grpquota"]), ("none", [])):
        folder = os.path.join(to, name)
        os.mkdir(folder)
        fs = Filesystem(folder, size="64M", format_options=options)
        fs.mount()
        for i in range(300):
            os.mkdir(fs.path("d%d" % i))
            os.chown(fs.path("d%d" % i), i % 5, i % 7)
        write(fs.path("d1", "f"), b"x" * 100000)
        os.chown(fs.path("d1", "f"), 4294967294, 2)
        os.setxattr(fs.path("d2"), "bcachefs.project", b"3")
        kiln("quota", fs.directory, "report")  # as above
        _, err = kiln("quota", fs.directory, "set", "user:1", "project:3", "project:8", "--space-soft=1G", "--inodes-hard=10", "--inodes-soft=2")
        assert err.count("are off") == (0 if name == "all" else 2), err
        # What the kernel has cached isn't counted yet.
        kiln("sync", fs.directory)
        mounted = [[kiln("quota", which, *args) for args in asked] for which in (fs.directory, fs.image)]
        fs.unmount()
        assert mounted[0] == mounted[1]
        for args, shown in zip(asked, mounted[0]):
            assert kiln("quota", fs.image, *args) == shown, (name, args)
        assert "4294967294" in mounted[0][0][0]
        fs.options = ["-o", "ro"]
        fs.mount()
        for args, shown in zip(asked, mounted[0]):
            assert kiln("quota", fs.image, *args) == shown, (name, args)
        for change in (["set", "user:1", "--space-hard=1M"], ["grace", "group", "--space-period=1"]):
            _, err = kiln("quota", fs.directory, *change, status=1)
            assert "mounted read-only: unmount it" in err, err
        fs.unmount()
        fs.check()


def who_asks_while_inodes_are_counted_is_told(to):
    """Its nodes are read slowly, as the image lies on a filesystem whose device is slow."""
    tree = os.path.join(to, "tree")
    for i in range(100):
        os.makedirs(os.path.join(tree, "d%d" % i))
        for k in range(100):
            os.close(os.open(os.path.join(tree, "d%d" % i, "f%d" % k), os.O_CREAT | os.O_WRONLY))
    below = FaultyFilesystem(os.path.join(to, "below"), size="1G")
    below.mount()
    fs = Filesystem(below.path("above"), format_options=["--usrquota", "--btree-node-size=32k", "--source", tree])
    fs.directory = os.path.join(to, "mnt")
    os.mkdir(fs.directory)
    below.slow("read", 50)
    fs.mount()
    below.slow("read", 1000)  # more, so that it isn't over before anybody asks
    with subprocess.Popen([KILN, "quota", fs.directory, "report", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as asking:
        said = asking.stderr.readline().decode()
        assert "still being counted" in said and "waiting for that" in said, said
        _, err = kiln("quota", fs.directory, "set", "user:1", "--space-hard=1M")
        assert "limits hold as soon as all inodes are counted" in err, err
        assert job_of(fs, "quota scan")["state"] == "working"
        below.tell("clear")
        out, err = asking.communicate(timeout=WAIT_S)
    assert asking.returncode == 0 and not err, err
    used = {(row["type"], row["id"]): row["inodes"]["used"] for row in json.loads(out)["quotas"]}
    assert used["user", 0] == 10102, used  # and root, and lost+found
    fs.unmount()
    fs.check()
    status, said = below.end()
    assert status == 0, said


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
            kiln("quota", fs.image, "report")
            # Half a minute each if they waited for it; a silent socket of another test may take some seconds.
            assert time.monotonic() - begin < 60, time.monotonic() - begin
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
            assert took < 60, took
            out, err = kiln("status", stuck.image, status=1)
            assert "%s\n  state    stuck, process %d\n" % (stuck.directory, stuck.server.pid) in out, out
            for command in (["sync", stuck.directory], ["quota", stuck.image, "report"]):
                _, err = kiln(*command, status=1)
                assert "kill -CONT" in err, err
        finally:
            stuck.server.send_signal(signal.SIGCONT)
        out, _ = kiln("status", stuck.directory)
        assert "serving" in out, out
    assert not [name for name in os.listdir("/run/kiln") if name.split(".")[0] in (str(stuck.server.pid), str(fs.server.pid))]


def what_a_server_tells_waits_for_no_sync(to):
    below, fs = mounted_above_another(to)
    with cached(fs.path("f"), 6000000):
        below.hold("write")
        with subprocess.Popen([KILN, "sync", fs.directory], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as syncing:
            time.sleep(0.7)
            try:
                for _ in range(2):
                    out, _ = kiln("status", fs.directory)
                    assert "serving" in out, out
                assert syncing.poll() is None
            finally:
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
            fs.hold("write")
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
        assert (b"is in use" in err) == (how == "signal"), err
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


# --- mount(8) ---


def remounts_change_which_reads_count(to):
    helper = os.path.join(to, "mount.kiln")
    os.symlink(KILN, helper)

    def touched():
        """Has the first read changed atime, has the second?"""
        os.utime(fs.path("f"), ns=(10 ** 18, 10 ** 18))
        next_tick()
        seen = []
        for _ in range(2):
            fd = os.open(fs.path("f"), os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            assert os.read(fd, 10) == b"x" * 10
            os.close(fd)
            seen.append(os.stat(fs.path("f")).st_atime_ns)
            next_tick()
        return (seen[0] > 10 ** 18, seen[1] > seen[0])

    with Filesystem(to, size="64M", options=["-o", "strictatime"]) as fs:
        write(fs.path("f"), b"x" * 10)
        assert touched() == (True, True)
        for options, expected in (("rw,relatime,user_id=0,remount,nosuid", (True, True)), ("rw,relatime,remount,relatime", (True, False)),
                                  ("noatime,remount", (False, False)), ("rw,noatime,remount,ro", None), ("rw,noatime,remount,rw", (False, False)),
                                  ("rw,noatime,user_id=0,remount,strictatime", (True, True)), ("remount,relatime", (True, False))):
            status, _, err = doors.run([helper, fs.image, fs.directory, "-o", options])
            assert status == 0, err
            if expected:
                assert touched() == expected, options
        os.mkdir(fs.path("d"))
        for options, is_changed in (("remount,nodiratime", False), ("remount,diratime", True)):
            status, _, err = doors.run([helper, fs.image, fs.directory, "-o", options])
            assert status == 0, err
            os.utime(fs.path("d"), ns=(10 ** 18, 10 ** 18))
            next_tick()
            os.rename(fs.path("d"), fs.path("e"))
            os.rename(fs.path("e"), fs.path("d"))
            assert os.listdir(fs.path("d")) == []
            assert (os.stat(fs.path("d")).st_atime_ns > 10 ** 18) == is_changed, options


CASES = [
    what_a_slow_end_waits_for_is_said,
    a_stuck_server_is_told_of_and_holds_up_nobody,
    who_asks_while_inodes_are_counted_is_told,
    what_a_server_tells_waits_for_no_sync,
    clients_that_say_nothing_hold_up_nobody,
    limits_are_set_while_it_is_mounted,
    what_was_set_is_durable,
    quotas_are_shown_the_same_mounted_or_not,
    an_error_before_it_is_mounted_is_in_the_mount_table,
    remounts_change_which_reads_count,
]


def in_a_folder(case):
    doors.need_mount()
    with images.temporary() as to:
        case(to)


sys.exit(tap.run([(case.__name__, lambda case=case: in_a_folder(case)) for case in CASES]))
