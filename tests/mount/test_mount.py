#!/usr/bin/env python3
"""The FUSE mount: how it starts, fails and ends, and what programs see through it.

    test_mount.py KILN

Needs root and /dev/fuse, else everything is skipped, and says so. That contents are right is tested in tests/image.
"""
import errno
import os
import signal
import subprocess
import sys

TESTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
sys.path.insert(0, os.path.join(TESTS, "lib"))

import doors  # noqa: E402
import images  # noqa: E402
import manifest  # noqa: E402
import tap  # noqa: E402
from tap import WAIT_S, wait_until  # noqa: E402

KILN = os.path.abspath(sys.argv[1])
FOLDER = os.path.join(TESTS, "images")


def foreground(devices, directory):
    """A mount that stays our child, in place."""
    p = subprocess.Popen([KILN, "mount", "-f", "-o", "ro", ":".join(devices), directory], stdin=subprocess.DEVNULL,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_until("mounted", lambda: os.path.ismount(directory) or p.poll() is not None)
    assert p.poll() is None, p.stderr.read().decode()
    return p


def assert_ends_cleanly(p, directory):
    _, err = p.communicate(timeout=WAIT_S)
    assert p.returncode == 0 and not err, "status %s: %s" % (p.returncode, err.decode())
    assert not os.path.ismount(directory)


def raises(number, function, *args):
    try:
        result = function(*args)
    except OSError as e:
        assert e.errno == number, "%s, expected %s" % (e, errno.errorcode[number])
        return
    raise AssertionError("expected %s, got %r" % (errno.errorcode[number], result))


# --- starting and failing ---


def failing_in_the_background_is_told(to):
    directory = os.path.join(to, "mnt")
    os.mkdir(directory)
    garbage = os.path.join(to, "garbage")
    with open(garbage, "wb") as f:
        f.write(os.urandom(4 << 20))
    cases = [
        (garbage, directory, "intact copy"),
        (os.path.join(to, "nothing-here"), directory, "nothing-here"),
        (images.unpack(FOLDER, "v1.4-empty", to)[0], os.path.join(to, "no-such-directory"), "no-such-directory"),
        (images.unpack(FOLDER, "v1.4-empty", to)[0], garbage, "not a directory"),
    ]
    for device, at, says in cases:
        status, _, err = doors.run([KILN, "mount", "-o", "ro", device, at], timeout=WAIT_S)
        assert status == 1 and says in err, "%s at %s: status %d: %s" % (device, at, status, err)
        assert not os.path.ismount(at)


def what_cannot_be_written_is_mounted_readonly(to):
    u = doors.Unpacked(FOLDER, "v1.39-casefold", to)
    with doors.Mount(KILN, u.devices, os.path.join(to, "mnt"), "-o", "rw") as m:
        assert "read-only" in m.err, m.err
        _, out, _ = doors.run([KILN, "status", m.directory], timeout=WAIT_S)
        assert "serving, read-only" in out.decode() and "  why      its version, 1.39, is newer than 1.4" in out.decode(), out
        raises(errno.EROFS, os.mkdir, os.path.join(m.directory, "d"))
    u.assert_unchanged()


def options_that_forbid_writing_are_heeded_in_every_form(to):
    u = doors.Unpacked(FOLDER, "v1.4-empty", to)
    for i, options in enumerate(("rw,nochanges=1", "rw,read_only=1")):
        with doors.Mount(KILN, u.devices, os.path.join(to, "mnt%d" % i), "-o", options) as m:
            assert not m.err, m.err
            raises(errno.EROFS, os.mkdir, os.path.join(m.directory, "d"))
        u.assert_unchanged()


def a_wrong_passphrase_is_told(to):
    u = doors.Unpacked(FOLDER, "small-encrypted", to)
    command = [KILN, "mount", "-o", "ro", *u.passphrase_options("wrong"), u.devices[0], to]
    status, _, err = doors.run(command, timeout=WAIT_S)
    assert status == 1 and "wrong passphrase" in err, "status %d: %s" % (status, err)


# --- ending ---


def umount_ends_the_server(to):
    directory, device = os.path.join(to, "mnt"), images.unpack(FOLDER, "v1.4-snapshots", to)
    os.mkdir(directory)
    p = foreground(device, directory)
    manifest.tree(directory)
    doors.umount(directory)
    assert_ends_cleanly(p, directory)


def fusermount_ends_the_server(to):
    directory, device = os.path.join(to, "mnt"), images.unpack(FOLDER, "v1.4-snapshots", to)
    os.mkdir(directory)
    p = foreground(device, directory)
    os.listdir(directory)
    doors.umount(directory, "fusermount3 -u")
    assert_ends_cleanly(p, directory)


def signals_end_the_server_and_the_mount(to):
    directory, device = os.path.join(to, "mnt"), images.unpack(FOLDER, "v1.4-snapshots", to)
    os.mkdir(directory)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        p = foreground(device, directory)
        os.listdir(directory)
        p.send_signal(number)
        assert_ends_cleanly(p, directory)


# --- what programs see ---


def reading_never_writes(to):
    u = doors.Unpacked(FOLDER, "v1.4-unclean-snapshots", to)
    with doors.Mount(KILN, u.devices, os.path.join(to, "mnt")) as m:
        some = os.path.join(m.directory, "some")
        raises(errno.EROFS, os.mkdir, some)
        raises(errno.EROFS, os.unlink, os.path.join(m.directory, "README"))
        raises(errno.EROFS, os.open, some, os.O_CREAT | os.O_WRONLY)
        raises(errno.EROFS, os.truncate, os.path.join(m.directory, "README"), 0)
        raises(errno.EROFS, os.setxattr, os.path.join(m.directory, "README"), "user.x", b"x")
        manifest.tree(m.directory)
    u.assert_unchanged()


def only_damaged_pages_fail(to):
    devices = images.unpack_damaged(FOLDER, "snapshots-data-bitflip", to)
    with doors.Mount(KILN, devices, os.path.join(to, "mnt")) as m:
        path = os.path.join(m.directory, "opts/compression-none")
        bad, size = range(24576, 24576 + 65536), os.path.getsize(path)
        with open(path, "rb", buffering=0) as f:
            for at in range(0, size, 4096):
                if at in bad:
                    raises(errno.EIO, os.pread, f.fileno(), 4096, at)
                else:
                    assert len(os.pread(f.fileno(), 4096, at)) == min(4096, size - at), at


def a_mount_is_found_by_any_member(to):
    """However it was named when it was mounted."""
    devices = images.unpack(FOLDER, "small-zstd-replicas2", to)
    directory = os.path.join(to, "mnt")
    os.mkdir(directory)
    subprocess.run([KILN, "mount", "-o", "ro", ":".join(map(os.path.basename, devices)), directory], check=True, cwd=to)
    try:
        for device in devices:
            p = subprocess.run([KILN, "rm", device, "README"], capture_output=True, text=True)
            assert p.returncode == 1 and "is mounted at %s" % directory in p.stderr, p.stderr
    finally:
        doors.umount(directory)


def a_server_that_does_not_answer_holds_up_no_other(to):
    """mount(8) asks only a server of what it is to mount."""
    one, other = os.path.join(to, "one"), os.path.join(to, "other")
    helper = os.path.join(to, "mount.kiln")
    os.symlink(KILN, helper)
    os.mkdir(one)
    os.mkdir(other)
    server = foreground(images.unpack(FOLDER, "small-zstd-replicas2", to), one)
    try:
        os.kill(server.pid, signal.SIGSTOP)
        p = subprocess.run([helper, images.unpack(FOLDER, "v1.4-snapshots", to)[0], other, "-o", "ro"], stdin=subprocess.DEVNULL,
                           capture_output=True, timeout=WAIT_S)
        assert p.returncode == 0 and os.listdir(other), p
        doors.umount(other)
    finally:
        os.kill(server.pid, signal.SIGCONT)
        doors.umount(one)
    assert_ends_cleanly(server, one)


def holes_are_seen(to):
    devices = images.unpack(FOLDER, "small-zstd-replicas2", to)
    with doors.Mount(KILN, devices, os.path.join(to, "mnt")) as m:
        with open(os.path.join(m.directory, "sparse"), "rb") as f:
            size = os.path.getsize(f.fileno())
            assert os.lseek(f.fileno(), 0, os.SEEK_DATA) == 0
            assert os.lseek(f.fileno(), 0, os.SEEK_HOLE) == 8192
            assert os.lseek(f.fileno(), 100, os.SEEK_DATA) == 100
            assert os.lseek(f.fileno(), 8192, os.SEEK_DATA) == 1 << 20
            assert os.lseek(f.fileno(), 1 << 20, os.SEEK_HOLE) == size
            raises(errno.ENXIO, os.lseek, f.fileno(), size, os.SEEK_DATA)
            raises(errno.ENXIO, os.lseek, f.fileno(), size + 1, os.SEEK_HOLE)


def statfs_says_how_full_it_is(to):
    devices = images.unpack(FOLDER, "small-zstd-replicas2", to)
    with doors.Mount(KILN, devices, os.path.join(to, "mnt")) as m:
        st = os.statvfs(m.directory)
        total = sum(os.path.getsize(d) for d in devices)
        assert st.f_flag & os.ST_RDONLY and 0 < st.f_bavail <= st.f_blocks and st.f_namemax >= 255, st
        assert total // 2 < st.f_blocks * st.f_frsize <= total, st
        assert 0 < st.f_bfree < st.f_blocks, st
        entries = images.manifest(FOLDER, "small-zstd-replicas2")["entries"]
        assert st.f_files >= len({e["ino"] for e in entries}), st


def options_are_seen_as_attributes(to):
    devices = images.unpack(FOLDER, "v1.4-snapshots", to)
    with doors.Mount(KILN, devices, os.path.join(to, "mnt")) as m:
        zstd = os.path.join(m.directory, "opts/compression-zstd-7")
        plain = os.path.join(m.directory, "README")
        assert os.getxattr(zstd, "bcachefs.compression") == b"zstd:7", os.getxattr(zstd, "bcachefs.compression")
        assert os.getxattr(zstd, "bcachefs_effective.compression") == b"zstd:7"
        raises(errno.ENODATA, os.getxattr, plain, "bcachefs.compression")
        raises(errno.ENODATA, os.getxattr, plain, "bcachefs_effective.compression")
        raises(errno.ENODATA, os.getxattr, plain, "user.nothing")
        assert sorted(os.listxattr(zstd)) == ["bcachefs.compression", "bcachefs_effective.compression"], os.listxattr(zstd)
        assert not os.listxattr(plain), os.listxattr(plain)


def numbers_of_inodes_tell_objects_apart(to):
    """The same inode number in several snapshots is several files; names of one file show one number."""
    devices = images.unpack(FOLDER, "v1.4-snapshots", to)
    with doors.Mount(KILN, devices, os.path.join(to, "mnt")) as m:
        shown, objects = set(), set()
        for e in images.manifest(FOLDER, "v1.4-snapshots")["entries"]:
            st = os.lstat(os.path.join(os.fsencode(m.directory), manifest.decode(e["path"])))
            objects.add((e["ino"], e.get("subvol", 1), st.st_ino))
            shown.add(st.st_ino)
        assert len(objects) == len(shown) == len({o[:2] for o in objects}), (len(objects), len(shown))


def names_work_as_on_disk(to):
    devices = images.unpack(FOLDER, "small-zstd-replicas2", to)
    with doors.Mount(KILN, devices, os.path.join(to, "mnt")) as m:
        root = os.fsencode(m.directory)
        assert open(os.path.join(root, b"dir/bad-\xff"), "rb").read() == b"not utf-8\n"
        assert os.readlink(os.path.join(root, b"link")) == b"dir/inner/deep"
        assert open(os.path.join(root, b"link"), "rb").read() == b"deep\n"
        raises(errno.ENOENT, os.stat, os.path.join(root, b"nothing"))
        raises(errno.ENOENT, os.stat, os.path.join(root, b"nothing"))  # remembered by the kernel
        raises(errno.ENOTDIR, os.stat, os.path.join(root, b"README/x"))
        raises(errno.ENAMETOOLONG, os.stat, os.path.join(root, b"x" * 2000))
        assert sorted(os.listdir(os.path.join(root, b"dir/.."))) == sorted(os.listdir(root))
        before = os.open(os.path.join(root, b"dir"), os.O_RDONLY)
        assert os.stat("..", dir_fd=before).st_ino == os.stat(root).st_ino
        os.close(before)


def names_of_either_case_work(to):
    devices = images.unpack(FOLDER, "v1.39-casefold", to)
    entries = images.manifest(FOLDER, "v1.39-casefold")["entries"]
    with doors.Mount(KILN, devices, os.path.join(to, "mnt")) as m:
        for e in entries:
            os.lstat(os.path.join(os.fsencode(m.directory), manifest.decode(e["path"])))


def many_processes_read_at_once(to):
    devices = images.unpack(FOLDER, "v1.4-snapshots", to)
    with doors.Mount(KILN, devices, os.path.join(to, "mnt")) as m:
        archive = ["tar", "-C", m.directory, "--sort=name", "-cf", "-", "."]
        listing = ["find", m.directory, "-printf", "%P %s %T@ %m %i\\n"]
        running = [subprocess.Popen(c, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for c in [archive, listing] * 4]
        with tap.concurrent.futures.ThreadPoolExecutor(len(running)) as pool:
            results = list(pool.map(lambda p: p.communicate(), running))
        for p, (out, err) in zip(running, results):
            assert p.returncode == 0 and not err, "%s: %s" % (p.args[0], err[:500])
        assert len({out for out, _ in results[0::2]}) == 1, "archives differ"
        assert len({out for out, _ in results[1::2]}) == 1, "listings differ"
        assert len(results[1][0].splitlines()) == len(images.manifest(FOLDER, "v1.4-snapshots")["entries"])


def two_mounts_of_one_image_share_it(to):
    devices = images.unpack(FOLDER, "v1.4-snapshots", to)
    with doors.Mount(KILN, devices, os.path.join(to, "a")) as a, doors.Mount(KILN, devices, os.path.join(to, "b")) as b:
        tap.same("second mount", manifest.differences(manifest.tree(a.directory), manifest.tree(b.directory)))


CASES = [
    failing_in_the_background_is_told,
    what_cannot_be_written_is_mounted_readonly,
    options_that_forbid_writing_are_heeded_in_every_form,
    a_wrong_passphrase_is_told,
    umount_ends_the_server,
    fusermount_ends_the_server,
    signals_end_the_server_and_the_mount,
    reading_never_writes,
    only_damaged_pages_fail,
    a_mount_is_found_by_any_member,
    a_server_that_does_not_answer_holds_up_no_other,
    holes_are_seen,
    statfs_says_how_full_it_is,
    options_are_seen_as_attributes,
    numbers_of_inodes_tell_objects_apart,
    names_work_as_on_disk,
    names_of_either_case_work,
    many_processes_read_at_once,
    two_mounts_of_one_image_share_it,
]


def in_a_folder(case):
    doors.need_mount()
    with images.temporary() as to:
        case(to)


# Where the caller ignores it (nohup), the servers started here would too.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
sys.exit(tap.run([(case.__name__, lambda case=case: in_a_folder(case)) for case in CASES]))
