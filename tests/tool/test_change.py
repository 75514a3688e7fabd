#!/usr/bin/env python3
"""What the commands that change a filesystem promise: mkdir, rm, mv, ln, touch, chmod, chown, setfattr.

    test_change.py KILN

$KILN_UPSTREAM names upstream's tool (bcachefs of version 1.4.1): with it, filesystems are also shown to its fsck.
"""
import fcntl
import os
import struct
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "lib"))

import changed
import doors
import tap
from changed import FAILED, QUICK, USAGE, kiln, new_image, some

F_OFD_SETLKW = 38


def entries(image):
    return changed.entries(image, "/")


def directories_are_made(work):
    image = new_image(work)
    kiln("mkdir", image, "/a", "b", "/a/c/")
    assert {"a", "b", "a/c"} < set(entries(image))
    for path, says in some((("/a", "exists"), ("/x/y", "No such"), ("/", "exists"), ("/a/.", "exists"), ("", "No such"))):
        assert says in kiln("mkdir", image, path, status=FAILED).stderr, path
    kiln("mkdir", "-p", "-m", "1750", image, "/a", "/x/y/z", "/")
    made = entries(image)
    assert made["x/y/z"]["mode"] == 0o1750 and made["x/y"]["mode"] & 0o300 == 0o300
    # What can't be made doesn't keep the others from it.
    kiln("mkdir", image, "/nowhere/a", "/last", status=FAILED)
    assert "last" in entries(image)
    changed.check(image)


def modes_are_octal_and_symbolic(work):
    image = new_image(work)
    kiln("mkdir", "-m", "755", image, "/d")
    kiln("touch", image, "/d/f", "/g")
    modes = (("644", 0o644), ("u+x", 0o744), ("go=u", 0o777), ("a-w", 0o555), ("u=rw,go=", 0o600),
             ("g+X", 0o600), ("+t", 0o1600), ("u+s,-t", 0o4600), ("-r", 0o4200), ("=", 0))
    for mode, want in modes[:3] if QUICK else modes:
        kiln("chmod", mode, image, "/g")
        assert entries(image)["g"]["mode"] == want, (mode, oct(entries(image)["g"]["mode"]))
    kiln("chmod", "-R", "a=rX", image, "/d")
    assert entries(image)["d"]["mode"] == 0o555 and entries(image)["d/f"]["mode"] == 0o444
    for mode in some(("888", "u+y", "z", "u", "77777")):
        kiln("chmod", mode, image, "/g", status=USAGE)
    assert "the order is MODE FS PATH..." in kiln("chmod", image, "600", "/g", status=USAGE).stderr
    changed.check(image)


def owners_are_names_and_numbers(work):
    image = new_image(work)
    kiln("mkdir", image, "/d")
    kiln("touch", image, "/d/f")
    kiln("ln", "-s", image, "d/f", "/l")
    kiln("chown", "1000:2000", image, "/d/f")
    assert (entries(image)["d/f"]["uid"], entries(image)["d/f"]["gid"]) == (1000, 2000)
    kiln("chown", "-R", "daemon", image, "/d")
    assert (entries(image)["d/f"]["uid"], entries(image)["d/f"]["gid"]) == (1, 2000)
    kiln("chown", ":7", image, "/l")
    kiln("chown", "-h", "8", image, "/l")
    e = entries(image)
    assert e["d/f"]["gid"] == 7 and e["l"]["uid"] == 8 and e["d/f"]["uid"] == 1
    kiln("chmod", "6755", image, "/d/f")
    kiln("chown", "5", image, "/d/f")
    assert entries(image)["d/f"]["mode"] == 0o755
    kiln("chown", "no-such-user", image, "/d", status=USAGE)
    assert "the order is USER[:GROUP] FS PATH..." in kiln("chown", image, "1", "/d", status=USAGE).stderr
    changed.check(image)


def times_are_set(work):
    image = new_image(work)
    before = time.time()
    kiln("touch", image, "/f")
    assert before - 1 <= changed.stat(image, "/f")["mtime"] <= time.time() + 1
    for options, want in some(((["-d", "@5.25"], 5.25), (["-d", "@-1.5"], -1.5), (["-d", "2001-02-03T04:05:06Z"], 981173106),
                               (["-d", "2001-02-03 04:05:06.5 +01:00"], 981169506.5), (["-t", "200102030405.06"], None))):
        kiln("touch", *options, image, "/f")
        s = changed.stat(image, "/f")
        if want is None:
            want = time.mktime((2001, 2, 3, 4, 5, 6, 0, 0, -1))
        assert s["mtime"] == want and s["atime"] == want, (options, s)
    kiln("touch", "-m", "-d", "@9", image, "/f")
    s = changed.stat(image, "/f")
    assert s["mtime"] == 9 and s["atime"] != 9
    kiln("touch", "-r", "/f", image, "/g")
    assert changed.stat(image, "/g")["mtime"] == 9
    kiln("touch", "-c", image, "/none")
    assert "none" not in entries(image)
    kiln("touch", "-d", "2028-02-29", "-t", "202802290000", image, "/f")
    for wrong in some((["-d", "yesterday-ish"], ["-d", "@"], ["-t", "13"], ["-t", "200113010000"], ["-d", "2026-04-31"],
                       ["-d", "2026-02-29 12:00:00Z"], ["-t", "202602290000"])):
        kiln("touch", *wrong, image, "/f", status=USAGE)
    kiln("touch", "-r", "/nowhere", image, "/f", status=FAILED)
    changed.check(image)


def names_move_and_swap(work):
    image = new_image(work)
    kiln("mkdir", image, "/d", "/e")
    kiln("touch", image, "/a", "/b", "/c")
    kiln("chmod", "600", image, "/a")
    kiln("mv", image, "/a", "/d")
    kiln("mv", image, "/b", "/d/new")
    assert {"d/a", "d/new"} < set(entries(image)) and "a" not in entries(image)
    kiln("mv", "-n", image, "/c", "/d/a", status=FAILED)
    kiln("mv", "--exchange", image, "/c", "/d/a")
    assert entries(image)["c"]["mode"] == 0o600
    kiln("mv", image, "/c", "/d/new", "/e")
    assert {"e/c", "e/new"} < set(entries(image))
    assert "into itself" in kiln("mv", image, "/d", "/d", status=FAILED).stderr
    kiln("mv", image, "/nowhere", "/x", status=FAILED)
    kiln("mv", "-T", image, "/e/c", "/e/new")
    assert "e/c" not in entries(image)
    # Of two paths the one that is meant is named; a slash means a directory.
    before = entries(image)
    refused = ((["mv", "/e/new", "/x/"], "/x/: No such"), (["mv", "-T", "/e/new", "/x/"], "/x/: No such"),
               (["mv", "/e/new", "/d/a/"], "/d/a/: Not a dir"), (["mv", "/e/new/", "/x"], "/e/new/: Not a dir"),
               (["mv", "/d/a", "/e/new", "/x"], "/x: No such"), (["mv", "/nowhere", "/d"], "/nowhere: No such"),
               (["mv", "-T", "/e", "/d"], "/d: Directory not empty"), (["mv", "-n", "/e/new", "/d/a"], "/d/a: File exists"),
               (["mv", "/d", "/e/new"], "/e/new: Not a dir"), (["mv", "", "/x"], "'': No such"), (["mv", "/d/a", ""], "'': No such"),
               (["mv", "--exchange", "/d/a", "/x"], "/x: No such"), (["ln", "/d/a", "/x/"], "/x/: No such"),
               (["ln", "-s", "text", "/x/"], "/x/: No such"), (["ln", "-s", "x", "/d/a"], "/d/a: File exists"),
               (["ln", "-s", "text/a", "/d"], "/d/a: File exists"), (["ln", "-s", "", "/x"], "'': No such"),
               (["ln", "/nowhere", "/x"], "/nowhere: No such"), (["ln", "/e/new", "/d/a"], "/d/a: File exists"))
    for args, says in some(refused):
        message = kiln(args[0], *[a for a in args[1:] if a in ("-T", "-n", "-s", "--exchange")], image,
                       *[a for a in args[1:] if a not in ("-T", "-n", "-s", "--exchange")], status=FAILED).stderr
        assert message.startswith("kiln: " + says) and message.count("\n") == 1, (args, message)
    assert entries(image) == before
    kiln("mv", image, "/e", "/moved/")
    assert "moved/new" in entries(image)
    changed.check(image)


def what_would_inherit_other_options_is_copied(work):
    image = new_image(work)
    kiln("mkdir", image, "/d", "/d/sub", "/other")
    kiln("touch", image, "/d/f")
    kiln("setfattr", "-n", "bcachefs.compression", "-v", "lz4", image, "/other")
    assert "/d/sub: can't be moved there: that directory hands on other options" in kiln("mv", image, "/d/sub", "/other", status=FAILED).stderr
    assert "/d/f: can't have a name there" in kiln("ln", image, "/d/f", "/other", status=FAILED).stderr
    kiln("setfattr", "-x", "bcachefs.compression", image, "/other")
    kiln("mv", image, "/d/sub", "/other")
    kiln("ln", image, "/d/f", "/other")
    assert {"other/sub", "other/f"} < set(entries(image))
    changed.check(image)


def links_are_made_and_replaced(work):
    image = new_image(work)
    kiln("mkdir", image, "/d")
    kiln("touch", image, "/f")
    kiln("ln", image, "/f", "/d")
    kiln("ln", image, "f", "/g")
    kiln("ln", "-s", image, "../f", "/d/link")
    e = entries(image)
    assert e["f"]["ino"] == e["d/f"]["ino"] == e["g"]["ino"] and e["f"]["nlink"] == 3
    assert e["d/link"]["target"] == "../f"
    assert "-s" in kiln("ln", image, "/d", "/dd", status=FAILED).stderr
    kiln("ln", "-s", image, "other", "/d/link", status=FAILED)
    kiln("ln", "-s", "-f", image, "other", "/d/link")
    kiln("ln", "-f", image, "/f", "/g")
    e = entries(image)
    assert e["d/link"]["target"] == "other" and e["g"]["nlink"] == 3
    changed.check(image)


def trees_are_removed(work):
    image = new_image(work)
    tree = os.path.join(work, "tree")
    changed.make_tree(tree)
    kiln("put", "-r", image, tree, "/t")
    fresh = set(entries(image)) - {p for p in entries(image) if p == "t" or p.startswith("t/")}
    assert "-r" in kiln("rm", image, "/t", status=FAILED).stderr
    kiln("rm", image, "/nowhere", status=FAILED)
    kiln("rm", "-f", image, "/nowhere", "/t/file")
    assert "t/file" not in entries(image)
    assert "root" in kiln("rm", "-r", image, "/", status=FAILED).stderr
    kiln("rm", "-r", image, "/t")
    assert set(entries(image)) == fresh
    changed.check(image)


def attributes_are_set_and_removed(work):
    image = new_image(work)
    kiln("touch", image, "/f")
    kiln("setfattr", "-n", "user.a", "-v", "text", image, "/f")
    kiln("setfattr", "-n", "user.b", "-v", "0x00ff", image, "/f")
    out = os.path.join(work, "f")
    kiln("get", image, "/f", out)
    if changed.holds_xattrs(work):
        assert os.getxattr(out, "user.a") == b"text" and os.getxattr(out, "user.b") == b"\0\xff"
    kiln("setfattr", "-x", "user.a", image, "/f")
    for args, says in ((["-x", "user.a"], "no such attribute"), (["-n", "a"], "begin with user."), (["-n", "system.a"], "begin with user."),
                       (["-n", "user."], "begin with user."), (["-x", "b.a"], "'b.a' is no attribute"),
                       (["-n", "system.posix_acl_access", "-v", "x"], "no access list"),
                       (["-n", "bcachefs.nonsense"], "no option 'nonsense'; there are data_replicas, "),
                       (["-n", "bcachefs.acl", "-v", "1"], "no option 'acl'; there are data_replicas, "),
                       (["-n", "bcachefs.compression", "-v", "nonsense"], "compression=nonsense: not one of: none lz4 gzip zstd"),
                       (["-n", "bcachefs.data_replicas", "-v", "9"], "not from 1 to 3"),
                       (["-n", "bcachefs.foreground_target", "-v", "ssd"], "no such device or label"),
                       (["-n", "bcachefs.erasure_code", "-v", "1"], "can be read but not written yet")):
        assert says in kiln("setfattr", *args, image, "/f", status=FAILED).stderr, args
    kiln("setfattr", "-n", "user.a", "-x", "user.b", image, "/f", status=USAGE)
    kiln("setfattr", "-n", "user.a", "-v", "0x0", image, "/f", status=USAGE)
    changed.check(image)


def what_can_not_be_written_is_refused(work):
    image = new_image(work)
    kiln("mkdir", "--force", image, "/a", status=FAILED)
    assert "--force" not in kiln("mkdir", "--help").stdout
    kiln("mkdir", image, status=USAGE)
    # In use by another process.
    with open(image, "r+b") as holder:
        fcntl.fcntl(holder, F_OFD_SETLKW, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        message = kiln("mkdir", image, "/a", status=FAILED).stderr
        assert "python" in message and "force" not in message, message
        # Who reads may do it by force, where there is an option for that.
        message = kiln("ls", image, status=FAILED).stderr
        assert "python" in message and "--force reads it anyway" in message, message
        assert "lost+found" in kiln("ls", "--force", image).stdout
        os.symlink(changed.KILN, work + "/mount.kiln")
        helper = subprocess.run([work + "/mount.kiln", image, work, "-o", "ro"], stdin=subprocess.DEVNULL, capture_output=True, text=True)
        assert "python" in helper.stderr and "force" not in helper.stderr, helper
        # Closing isn't enough: what another case has just started may have it open, too.
        fcntl.fcntl(holder, F_OFD_SETLKW, struct.pack("hhqqi4x", fcntl.F_UNLCK, os.SEEK_SET, 0, 0, 0))
    assert "a" not in entries(image)


def what_is_no_filesystem_is_named(work):
    path = os.path.join(work, "x")
    for content, says in ((b"", "empty file"), (b"12345678", "a file of only 8 bytes"), (bytes(1024) + bytes(56) + b"\x53\xef" + bytes(1 << 20), "ext2"),
                          (b"?" * 100000, "nor anything")):
        with open(path, "wb") as f:
            f.write(content)
        if says == "ext2":
            if not os.path.exists("/sbin/mkfs.ext2"):
                continue
            subprocess.run(["/sbin/mkfs.ext2", "-qF", path], check=True)
        assert says in kiln("ls", path, status=FAILED).stderr, says
    assert "nonsense" in kiln("check", "--passes=nonsense", path, status=USAGE).stderr
    message = kiln("usage", work, status=FAILED).stderr
    assert work + " is a directory" in message and message.count("\n") == 1, message


def mounted_filesystems_are_changed_where_they_are_mounted(work):
    if os.geteuid() or not os.path.exists("/dev/fuse"):
        raise tap.Skip("needs root and /dev/fuse")
    image, mnt = new_image(work), os.path.join(work, "mount point")
    os.mkdir(mnt)
    kiln("mount", "-o", "ro", image, mnt)
    try:
        if not os.path.ismount(mnt):
            raise tap.Skip("can't mount here")
        link = os.path.join(work, "another-name")
        os.symlink(image, link)
        for command in (["put", link, "/etc/passwd", "/"], ["mkdir", image, "/a"], ["rm", link, "/a"],
                        ["chmod", "0", image, "/"]):
            assert mnt in kiln(*command, status=FAILED).stderr
        for command in (["set-option", image, "acl=0"], ["list", mnt], ["format", "-f", image]):
            message = kiln(*command, status=FAILED).stderr
            assert mnt in message and image in message and message.count("\n") == 1, message
    finally:
        doors.umount(mnt)
    changed.wait_free(image)
    kiln("mkdir", image, "/a")
    changed.check(image)


def that_nothing_is_mounted_is_told(work):
    if os.geteuid():
        raise tap.Skip("only root can be somebody who has mounted nothing")
    somebody = {"user": 54321, "group": 54321, "extra_groups": []}
    if subprocess.run(["test", "-x", os.path.abspath(changed.KILN)], **somebody).returncode:
        raise tap.Skip("others can't run it where it is")
    for command, out in ((["status"], ""), (["status", "--json"], "[]\n"), (["sync"], "")):
        p = subprocess.run([changed.KILN, *command], stdin=subprocess.DEVNULL, capture_output=True, text=True, **somebody)
        assert p.returncode == 0 and p.stdout == out and "nothing is mounted" in p.stderr, p
    kiln("status", work, status=FAILED)


TESTS = [directories_are_made, modes_are_octal_and_symbolic, owners_are_names_and_numbers, times_are_set,
         names_move_and_swap, what_would_inherit_other_options_is_copied, links_are_made_and_replaced, trees_are_removed, attributes_are_set_and_removed,
         what_can_not_be_written_is_refused, what_is_no_filesystem_is_named,
         that_nothing_is_mounted_is_told, mounted_filesystems_are_changed_where_they_are_mounted]

if __name__ == "__main__":
    sys.exit(changed.run(TESTS))
