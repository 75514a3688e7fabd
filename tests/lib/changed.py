"""What the tests of commands that change a filesystem share: running kiln, images to change, and who looks at them."""
import functools
import json
import os
import socket
import subprocess
import sys
import tempfile

import changes
import tap

OK, FAILED, USAGE, DAMAGE = 0, 1, 2, 3
IS_ROOT = os.geteuid() == 0
KILN = os.path.abspath(sys.argv[1])
TIME_LIMIT = 300
QUICK = bool(os.environ.get("KILN_TEST_QUICK"))


def kiln(*args, status=OK, **options):
    """Run kiln. A crash, a sanitizer's message or another exit status than expected is a failure."""
    options = {"stdin": subprocess.DEVNULL, "text": True, **options}
    p = subprocess.run([KILN, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=TIME_LIMIT, **options)
    text = p.stderr if isinstance(p.stderr, str) else p.stderr.decode("utf-8", "surrogateescape")
    assert "Sanitizer" not in text and "runtime error" not in text, text
    assert p.returncode == status, "%s: exit status %d, not %d:\n%s" % (args, p.returncode, status, text[-2000:])
    return p


def some(cases):
    """All of what differs in values alone; with KILN_TEST_QUICK=1, for sanitizers, the first and every fourth after it."""
    return cases[::4] if QUICK else cases


def new_image(work, *options, size="64M", name="a.img"):
    image = os.path.join(work, name)
    kiln("format", "-q", "-f", *options, "--size", size, image)
    return image


def clean(entry):
    entry["mode"] &= 0o7777
    for time_name in ("atime", "mtime", "ctime", "btime"):
        entry[time_name] = entry[time_name]["sec"] + entry[time_name]["nsec"] / 1e9
    return entry


def entries(image, path="/"):
    """Everything below a directory, by its path."""
    listed = (json.loads(line) for line in kiln("ls", "-R", "--json", image, path).stdout.splitlines())
    return {e["path"].lstrip("/"): clean(e) for e in listed}


def stat(image, path):
    return clean(json.loads(kiln("stat", "--json", image, path).stdout)[0])


def check(fs):
    """Is it consistent? Kiln's own check says, and upstream's where it is. @fs: an image, or several with colons between."""
    kiln("check", fs)
    if changes.has_upstream():
        tap.same("upstream's fsck of " + fs, changes.upstream_fsck(fs.split(":")))


def wait_free(image):
    """A server of a mount ends a little after umount."""
    tap.wait_until("free", lambda: subprocess.run(["fuser", "-s", image], capture_output=True).returncode)


def holds_xattrs(directory):
    with tempfile.NamedTemporaryFile(dir=directory) as f:
        try:
            os.setxattr(f.name, "user.test", b"")
        except OSError:
            return False
    return True


def make_tree(top):
    """A small tree with one of everything."""
    os.makedirs(os.path.join(top, "dir", "deeper"))
    os.mkdir(os.path.join(top, "many"))
    for i in range(300):
        with open(os.path.join(top, "many", "%03d" % i), "wb") as f:
            f.write(b"%d" % i * i)
    with open(os.path.join(top, "file"), "wb") as f:
        f.write(b"contents\n")
    with open(os.path.join(top, "dir", "large"), "wb") as f:
        f.write(bytes(range(256)) * 20000)
    with open(os.path.join(top, "dir", "sparse"), "wb") as f:
        f.seek(3 << 20)
        f.write(b"x" * 5000)
        f.truncate(9 << 20)
    for name in (b"\xff\xfe", "combining-e\u0301".encode(), b"new\nline", b"n" * 255):
        with open(os.path.join(os.fsencode(top), name), "wb") as f:
            f.write(name)
    os.link(os.path.join(top, "file"), os.path.join(top, "dir", "deeper", "link"))
    os.symlink("../file", os.path.join(top, "dir", "symlink"))
    os.symlink("nowhere", os.path.join(top, "dangling"))
    os.mkfifo(os.path.join(top, "fifo"))
    s = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    s.bind(os.path.relpath(os.path.join(top, "socket"), here))
    s.close()
    os.chmod(os.path.join(top, "file"), 0o640)
    os.chmod(os.path.join(top, "dir"), 0o2750)
    if holds_xattrs(top):
        os.setxattr(os.path.join(top, "file"), "user.name", b"\0value")
        os.setxattr(os.path.join(top, "dir", "deeper"), "user.of-directory", b"v")
    if IS_ROOT:
        os.chown(os.path.join(top, "file"), 1234, 5678)
        os.lchown(os.path.join(top, "dangling"), 9, 9)
        os.mknod(os.path.join(top, "null"), 0o20666, os.makedev(1, 3))
        subprocess.run(["setfacl", "-m", "u:1000:rw", os.path.join(top, "file")], capture_output=True)
        subprocess.run(["setfacl", "-d", "-m", "u:1001:rx", os.path.join(top, "many")], capture_output=True)
    for path, ns in (("file", 10**18 + 123456789), ("dangling", 5), ("dir/deeper", -1500000000), ("dir", 77), ("", 99 * 10**9)):
        os.utime(os.path.join(top, path), ns=(ns + 1000, ns), follow_symlinks=False)


def in_directory(test):
    parent = None if os.environ.get("TMPDIR") or not os.access("/dev/shm", os.W_OK) else "/dev/shm"
    with tempfile.TemporaryDirectory(prefix="kiln-change-", dir=parent) as work:
        test(work)


def run(tests):
    return tap.run([(t.__name__, functools.partial(in_directory, t)) for t in tests])
