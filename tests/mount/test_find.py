#!/usr/bin/env python3
"""Servers that are asked: how they are found, by whom and by what names, and what is told where none answers."""
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys

TESTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
sys.path.insert(0, os.path.join(TESTS, "lib"))

import doors  # noqa: E402
import images  # noqa: E402
import tap  # noqa: E402
from mounts import KILN, WAIT_S, Filesystem, mounted_above_another, umount, wait_until, write  # noqa: E402

NOBODY = 65534  # fusermount3 wants a user that has a name
UID = 700000 + random.randrange(100000)  # of nobody who is here
PLACE = "/tmp/kiln-%d" % UID


def kiln(*args, status=0, **more):
    """(standard output, standard error)"""
    got, out, err = doors.run([KILN, *args], **more)
    assert got == status, "%s: status %d\n%s\n%s" % (args, got, out, err)
    return out.decode(), err


# --- of whom ---

AS_A_USER = """
mknod "$2" c 10 229 && chmod 666 "$2" && mount --bind "$2" /dev/fuse || exit 77
image=$3 mnt=$4
user() { setpriv --reuid $uid --regid $uid --clear-groups env -u XDG_RUNTIME_DIR "$@"; }
run() { echo "== $*"; "$@" 2>&1; echo "= $?"; }
kiln=$1 uid=$5
user test -x "$kiln" -a -w "$image" || exit 77
run user "$kiln" mount "$image" "$mnt"
run user touch "$mnt/f"
run user "$kiln" sync
run user env XDG_RUNTIME_DIR=/nowhere "$kiln" sync "$mnt"
run user "$kiln" status "$mnt"
run "$kiln" status "$mnt"
run "$kiln" sync "$mnt"
# A program of the user's says that what the user has mounted is root's image.
setpriv --reuid $uid --regid $uid --clear-groups python3 -c "$6" "$mnt" "$7" &
liar=$!
until test -S /tmp/kiln-$uid/$liar.sock; do sleep 0.1; done
run "$kiln" quota "$7" set user:77 --space-hard=1M
kill $liar
rm /tmp/kiln-$uid/$liar.sock
uid=$((uid + 1))
run user "$kiln" sync "$mnt"
uid=$5
# What only the page cache has root's sync makes durable, too. Any descriptor of the file that is closed would write it back.
setpriv --reuid $uid --regid $uid --clear-groups sh -c 'exec > "$0/cached"; printf hello; exec sleep 60' "$mnt" &
holder=$!
until user test -s "$mnt/cached"; do sleep 0.1; done
run "$kiln" sync "$mnt"
kill -9 $("$kiln" status --json "$mnt" | sed -n 's/.*"pid": \\([0-9]*\\).*/\\1/p')
run user "$kiln" sync
kill $holder
umount -l "$mnt"
run "$kiln" cat "$image" /cached
"""


LIAR = """
import json, os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.bind("/tmp/kiln-%d/%d.sock" % (os.getuid(), os.getpid()))
server.listen()
while True:
    client = server.accept()[0]
    client.recv(1000)
    client.sendall(json.dumps({"ok": True, "pid": os.getpid(), "state": "serving", "mountpoint": sys.argv[1], "source": sys.argv[2], "types": []}).encode())
    client.close()
"""


def ordinary_users_find_their_servers_without_an_environment(to):
    """FUSE's device may be root's alone, so they get one of their own, in a mount namespace of its own."""
    image, mnt = os.path.join(to, "image"), os.path.join(to, "mnt")
    os.chmod(to, 0o755)
    os.mkdir(mnt)
    kiln("format", "--size=64M", image)
    kiln("chmod", "0777", image, "/")
    of_root = os.path.join(to, "of-root")
    kiln("format", "--size=64M", "--usrquota", of_root)
    for path in (image, mnt):
        os.chown(path, NOBODY, NOBODY)
    status, out, err = doors.run(["unshare", "-m", "--propagation=private", "sh", "-c", AS_A_USER, "sh", KILN, os.path.join(to, "fuse"), image, mnt,
                                  str(NOBODY), LIAR, of_root])
    out = out.decode()
    if status == 77 or "unshare" in err:
        raise tap.Skip("others can't mount here: " + err)
    results = [part for part in out.split("== ")[1:]]
    assert len(results) == 12, out
    for result in results[:8]:
        assert result.endswith("= 0\n"), result
    assert "state    serving, process" in results[4] and "of user" not in results[4], results[4]
    assert "of user %d" % NOBODY in results[5], results[5]
    (got,) = json.loads(kiln("quota", of_root, "get", "user:77", "--json")[0])
    assert got["space"]["hard"] == 1 << 20, got
    assert results[8].endswith("= 1\n") and "by user %d" % NOBODY in results[8], results[8]
    assert results[9].endswith("= 0\n"), results[9]
    # Asked for all, it doesn't pass over what is gone.
    assert results[10].endswith("= 1\n") and "%s is what is left of a mount" % mnt in results[10], results[10]
    assert results[11].endswith("hello= 0\n"), results[11]
    shutil.rmtree("/tmp/kiln-%d" % NOBODY, ignore_errors=True)


def what_others_say_they_serve_is_not_believed(to):
    """Root asks their servers, which may be any programs, for what the mount table says they have mounted."""
    def lie(ready):
        os.setgroups([])
        os.setgid(UID)
        os.setuid(UID)
        os.mkdir(PLACE, 0o700)
        server = socket.socket(socket.AF_UNIX)
        server.bind("%s/%d.sock" % (PLACE, os.getpid()))
        server.listen()
        os.write(ready, b"x")
        while True:
            client = server.accept()[0]
            client.recv(1000)
            client.sendall(json.dumps({"ok": True, "pid": os.getpid(), "state": "serving", "mountpoint": fs.directory, "source": fs.image}).encode())
            client.close()

    with Filesystem(to, size="64M") as fs:
        reading, ready = os.pipe()
        liar = os.fork()
        if not liar:
            try:
                lie(ready)
            finally:
                os._exit(1)
        os.read(reading, 1)
        try:
            for which in (fs.directory, fs.image):
                (server,) = json.loads(kiln("status", "--json", which)[0])
                assert server["pid"] == fs.server.pid, server
            assert not [s for s in json.loads(doors.run([KILN, "status", "--json"])[1]) if s.get("user") == UID]
        finally:
            os.kill(liar, signal.SIGKILL)
            os.waitpid(liar, 0)
            shutil.rmtree(PLACE)


# --- by what name ---


def a_mount_is_known_by_what_is_in_it_and_by_uuid(to):
    uuid = "a0b1c2d3-0000-4000-8000-%012x" % os.getpid()
    with Filesystem(to, size="64M", format_options=["--uuid", uuid]) as fs:
        os.makedirs(fs.path("a", "b"))
        inside = os.path.join(to, "link")
        os.symlink(fs.path("a"), inside)
        for which in ("UUID=" + uuid, "uuid=" + uuid.upper(), fs.path("a", "b"), fs.directory, inside, fs.image):
            (server,) = json.loads(kiln("status", "--json", which)[0])
            assert server["pid"] == fs.server.pid, (which, server)
            kiln("sync", which)
        kiln("sync", ".", cwd=fs.path("a"))
        (synced,) = json.loads(kiln("sync", "--json", fs.directory)[0])
        assert synced["ok"] and synced["mountpoint"] == fs.directory, synced
        for which in (to, os.path.join(to, "nowhere"), "UUID=" + uuid[:-12] + "0" * 12):
            for command in ("status", "sync", "debug"):
                _, err = kiln(command, which, status=1)
                assert "%s isn't mounted" % which in err, err


# --- where none answers ---


@contextlib.contextmanager
def held(path):
    """Open; that it can't be closed without an error is no matter."""
    fd = os.open(path, os.O_RDONLY)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.close(fd)


def that_a_server_is_gone_is_told(to):
    fs = Filesystem(to, size="64M").mount()
    os.mkdir(fs.path("d"))
    write(fs.path("f"), b"x")
    with held(fs.path("f")):
        fs.server.kill()
        fs.server.communicate()
        for command in ("status", "sync", "debug"):
            for which in (fs.directory, fs.image, fs.path("d")):
                _, err = kiln(command, which, status=1)
                assert "whose server is gone" in err and "fuser -m %s" % fs.directory in err and "umount -l %s" % fs.directory in err, err
        for command in (["mount", fs.image, fs.directory], ["mkdir", fs.image, "/e"]):
            _, err = kiln(*command, status=1)
            assert "server" in err and "gone" in err and "fuser -m" in err, err
        _, err = kiln("ls", fs.directory, "/", status=1)
        assert "whose server is gone" in err, err
    subprocess.run(["umount", "-l", fs.directory], check=True)


def space_and_superblocks_are_shown_while_it_is_mounted(to):
    uuid = "a0b1c2d3-0000-4000-8001-%012x" % os.getpid()
    fs = Filesystem(to, size="64M", format_options=["--uuid", uuid]).mount()
    names = (fs.directory, fs.image, "UUID=" + uuid, fs.path("lost+found"))
    write(fs.path("f"), b"x" * 1000000)
    kiln("sync", fs.directory)
    for name in names:
        usage = json.loads(kiln("usage", "--json", name)[0])
        (user,) = [row["bytes"] for row in usage["replicas"] if row["data_type"] == "user"]
        assert usage["uuid"] == uuid and user >= 1000000 and usage["inodes"] == 3, usage
    for name in names[:2]:
        out, err = kiln("show-super", name)
        assert uuid in out and not err, (out, err)
    fs.unmount()
    fs.options = ["-o", "ro"]
    fs.mount()
    options = ([], ["-h"], ["--json"])
    mounted = [[kiln("usage", *option, name) for option in options] for name in names]
    superblock = kiln("show-super", fs.directory)
    fs.unmount()
    assert mounted == [[kiln("usage", *option, fs.image) for option in options]] * len(names)
    assert superblock == kiln("show-super", fs.image)
    fs.check()


def why_it_failed_is_told_by_sync(to):
    below, fs = mounted_above_another(to)
    write(fs.path("f"), b"x" * 100000)
    below.fail("write")
    kiln("sync", fs.directory, status=1)
    wait_until("failed", lambda: json.loads(kiln("status", "--json", fs.directory)[0])[0]["state"] == "failed")
    (server,) = json.loads(kiln("status", "--json", fs.directory)[0])
    _, err = kiln("sync", fs.directory, status=1)
    assert "the server says: " + server["why"] in err, (err, server["why"])
    umount(fs.directory)
    fs.server.communicate(timeout=WAIT_S)
    below.end()


# --- what is told of mounting ---


def what_is_wrong_with_a_mount_is_told_once(to):
    image, mnt = os.path.join(to, "image"), os.path.join(to, "mnt")
    os.mkdir(mnt)
    kiln("format", "--size=64M", image)
    for args, status, said in (
            (["-o", "remember=x", image, mnt], 2, "remember= takes a number of objects, not 'x'"),
            ([image, image, mnt], 2, "join its devices with colons"),
            ([image + ":" + image, mnt], 1, image + " is named twice")):
        _, err = kiln("mount", *args, status=status)
        assert said in err and err.count("\n") == 1, err
    # As mount.fuse(8) calls it, where mount(8) finds no helper.
    _, err = kiln(image, mnt, "-o", "rw", status=2)
    assert "/sbin/mount.fuse.kiln" in err, err
    no_fuse = 'mount --bind "$1" /dev/fuse || exit 77; "$2" mount "$3" "$4"'
    status, _, err = doors.run(["unshare", "-m", "--propagation=private", "sh", "-c", no_fuse, "sh", image, KILN, image, mnt])
    if "unshare" in err or status == 77:
        raise tap.Skip("no mount namespaces here: " + err)
    assert status == 1 and "fuse" in err and err.count("\n") == 1, err


def what_was_not_unmounted_cleanly_is_told_of(to):
    fs = Filesystem(to, size="64M").mount()
    os.mkdir(fs.path("d"))
    kiln("sync", fs.directory)
    fs.kill()
    for options, said in ((["-o", "ro"], "it is shown as it will be after recovery"), ([], "it has been recovered"), ([], None)):
        out, err = kiln("mount", *options, fs.image, fs.directory)
        assert out == ("%s wasn't unmounted cleanly: %s\n" % (fs.image, said) if said else ""), (out, err)
        assert os.path.isdir(fs.path("d"))
        umount(fs.directory)
    fs.check()


def lists_of_access_and_own_options_are_shown(to):
    with Filesystem(to, size="64M") as fs:
        os.mkdir(fs.path("d"))
        os.setxattr(fs.path("d"), "bcachefs.compression", b"lz4")
        write(fs.path("d", "f"), b"x")
        entries = [(0x01, 6, -1), (0x02, 4, 1000), (0x04, 5, -1), (0x08, 7, 5), (0x10, 7, -1), (0x20, 0, -1)]
        os.setxattr(fs.path("d", "f"), "system.posix_acl_access", struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *e) for e in entries))
        fs.unmount()
        out, _ = kiln("stat", fs.image, "/d")
        assert '   Xattr: bcachefs.compression="lz4"\n' in out and 'bcachefs_effective.compression="lz4"' in out, out
        out, _ = kiln("stat", fs.image, "/d/f")
        assert "bcachefs.compression" not in out and 'bcachefs_effective.compression="lz4"' in out, out
        assert 'system.posix_acl_access="user::rw-,user:1000:r--,group::r-x,group:5:rwx,mask::rwx,other::---"\n' in out, out


CASES = [
    what_is_wrong_with_a_mount_is_told_once,
    what_was_not_unmounted_cleanly_is_told_of,
    lists_of_access_and_own_options_are_shown,
    space_and_superblocks_are_shown_while_it_is_mounted,
    why_it_failed_is_told_by_sync,
    ordinary_users_find_their_servers_without_an_environment,
    what_others_say_they_serve_is_not_believed,
    a_mount_is_known_by_what_is_in_it_and_by_uuid,
    that_a_server_is_gone_is_told,
]


def in_a_folder(case):
    doors.need_mount()
    with images.temporary() as to:
        case(to)


sys.exit(tap.run([(case.__name__, lambda case=case: in_a_folder(case)) for case in CASES]))
