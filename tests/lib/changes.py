"""Changing a filesystem through change_fs.c, with a model of what must be in it afterwards, and asking all judges.

`Model` is a tree as entries of a manifest tell it; `Changer` does things to a filesystem and to the model at once.
"""
import hashlib
import json
import os
import random
import shutil
import struct
import subprocess
import tempfile

import doors
import manifest

S_IFREG, S_IFDIR, S_IFIFO, S_IFCHR = 0o100000, 0o040000, 0o010000, 0o020000
SET_MODE, SET_UID, SET_GID, SET_SIZE, SET_MTIME = 1, 2, 4, 8, 32
NOREPLACE, EXCHANGE = 1, 2
# What a model says of an object; times of what was changed, and inode numbers, are the filesystem's.
COMPARED = ("type", "mode", "uid", "gid", "size", "nlink", "sha256", "probes", "target", "rdev", "xattrs")


class Refused(Exception):
    """The filesystem can't be opened for writing."""


class Filesystem:
    """with Filesystem(change_fs, devices) as fs: fs.do("mkdir", ...); shut down cleanly in the end."""

    def __init__(self, change_fs, devices, passphrase=None, limit=600, options=()):
        self.errors = tempfile.TemporaryFile()
        self.process = subprocess.Popen(["timeout", "-k", "5", str(limit), change_fs, *options, ":".join(devices)] +
                                        ([passphrase] if passphrase else []), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors)
        line = self.answer()
        if line != "open":
            self.finish()
            raise Refused(line)

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            self.finish()
            raise AssertionError("it ended with status %d:\n%s" % (self.process.returncode, self.text))
        return line.decode("utf-8", "backslashreplace").rstrip("\n")

    def finish(self):
        self.process.stdin.close()
        last = self.process.stdout.read().decode("utf-8", "backslashreplace").split("\n")
        self.process.wait()
        self.errors.seek(0)
        self.text = self.errors.read().decode("utf-8", "backslashreplace")
        return last

    def do(self, *fields, data=b""):
        """The answer: a number, or the name of an error."""
        self.process.stdin.write("\t".join(str(f) for f in fields).encode() + b"\n" + data)
        self.process.stdin.flush()
        line = self.answer()
        return int(line) if line.lstrip("-").isdigit() else line

    def must(self, *fields, data=b""):
        got = self.do(*fields, data=data)
        assert isinstance(got, int), "%s: %s" % (fields, got)
        return got

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        last = self.finish()
        if kind is None:
            assert self.process.returncode == 0 and last[0] == "0", \
                "status %d, shutdown: %s\n%s" % (self.process.returncode, last, self.text)


# --- ACLs: lists of (tag, permissions, id) ---

ACL_ACCESS, ACL_DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
OWNER, USER, OWNING_GROUP, GROUP, MASK, OTHER = 1, 2, 4, 8, 16, 32
NO_ID = 0xffffffff


def acl_pack(acl):
    """As the system calls have them."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *e) for e in acl)


def acl_unpack(value):
    return [struct.unpack_from("<HHI", value, at) for at in range(4, len(value), 8)]


def acl_is_valid(acl):
    """One of each that must be, in order of their tags, and a mask where somebody is named."""
    tags = [tag for tag, _, _ in acl]
    once = [tag for tag in tags if tag not in (USER, GROUP)]
    return (tags == sorted(tags) and set(once) - {MASK} == {OWNER, OWNING_GROUP, OTHER} and len(set(once)) == len(once) and
            (MASK in once or len(once) == len(tags)) and
            all(perm <= 7 and (tag not in (USER, GROUP) or who != NO_ID) for tag, perm, who in acl))


def acl_shifts(acl):
    """Where in a mode the bits of each entry are that stands for some: the mask, if there is one, for the group's."""
    group = MASK if any(tag == MASK for tag, _, _ in acl) else OWNING_GROUP
    return {OWNER: 6, group: 3, OTHER: 0}


def acl_mode(acl):
    return sum(perm << acl_shifts(acl)[tag] for tag, perm, _ in acl if tag in acl_shifts(acl))


def acl_with_mode(acl, mode):
    shifts = acl_shifts(acl)
    return [(tag, mode >> shifts[tag] & 7 if tag in shifts else perm, who) for tag, perm, who in acl]


def acl_is_minimal(acl):
    """It says nothing but what the mode says, and isn't stored."""
    return len(acl) == 3


# --- the model ---


class Node:
    def __init__(self, entry, content=None):
        self.entry = dict(entry)
        self.content = content  # bytearray, or None where it isn't known and stays as it is
        self.names = 1

    def lose_setid(self):
        """As writing has it. Setgid without execution by the group is a mark for mandatory locks, no privilege."""
        mode = self.entry["mode"]
        self.entry["mode"] = mode & ~(0o6000 if mode & 0o010 else 0o4000)

    def acl(self, name):
        value = self.entry.get("xattrs", {}).get(name)
        return value and acl_unpack(manifest.decode(value))

    def store_acl(self, name, acl):
        self.entry.setdefault("xattrs", {})[name] = manifest.encode(acl_pack(acl))

    def chmod(self, mode):
        self.entry["mode"] = mode
        acl = self.acl(ACL_ACCESS)
        if acl:
            self.store_acl(ACL_ACCESS, acl_with_mode(acl, mode))

    def set_acl(self, name, acl):
        """The error, or None. An ACL without entries takes the one that is there away, and leaves the mode."""
        kind = self.entry["type"]
        if acl and not acl_is_valid(acl):
            return "EINVAL"
        if kind == "symlink":
            return "EOPNOTSUPP"
        if name == ACL_DEFAULT and kind != "dir":
            return "EACCES" if acl else None
        if name == ACL_ACCESS and acl:
            self.entry["mode"] = self.entry["mode"] & ~0o777 | acl_mode(acl)
        if acl and not (name == ACL_ACCESS and acl_is_minimal(acl)):
            self.store_acl(name, acl)
        else:
            self.entry.get("xattrs", {}).pop(name, None)
        return None

    def inherit(self, acl, umask):
        """A new object's mode and ACLs, from the default ACL of its directory, or where there is none from the umask."""
        mode = self.entry["mode"]
        if not acl:
            self.entry["mode"] = mode & ~umask
            return
        if self.entry["type"] == "dir":
            self.store_acl(ACL_DEFAULT, acl)
        self.entry["mode"] = mode & ~0o777 | mode & acl_mode(acl)
        if not acl_is_minimal(acl):
            self.store_acl(ACL_ACCESS, acl_with_mode(acl, self.entry["mode"]))


class Model:
    """Paths to nodes. Hard links share one."""

    def __init__(self, entries):
        self.nodes = {}
        by_number = {}
        for e in entries:
            key = (e.get("ino"), e.get("subvol", 1), e["type"])
            if e["type"] != "dir" and e.get("nlink", 1) > 1 and key in by_number:
                self.nodes[e["path"]] = by_number[key]
                continue
            self.nodes[e["path"]] = by_number[key] = Node(e)

    def parent(self, path):
        return self.nodes[path.rpartition("/")[0] or "."]

    def add(self, path, node):
        self.nodes[path] = node
        if node.entry["type"] == "dir":
            self.parent(path).entry["nlink"] += 1

    def remove(self, path):
        node = self.nodes.pop(path)
        if node.entry["type"] == "dir":
            self.parent(path).entry["nlink"] -= 1
        else:
            node.entry["nlink"] -= 1
        return node

    def below(self, path):
        return [p for p in self.nodes if p.startswith(path + "/")]

    def entries(self):
        out = []
        for path in sorted(self.nodes):
            node = self.nodes[path]
            e = dict(node.entry, path=path)
            if node.content is not None:
                e["size"] = len(node.content)
                e.pop("probes", None)
                e["sha256"] = hashlib.sha256(node.content).hexdigest()
            out.append({k: v for k, v in e.items() if k == "path" or (k in COMPARED and v != {})})
        return out


def differences(model, have, ignore=()):
    return manifest.differences(model.entries(), have, ignore=("mtime_ns",) + tuple(ignore))


# --- random changes ---


class Changer:
    """Random operations of all kinds below a directory, on the filesystem and the model."""

    KINDS = (["file"] * 5 + ["write"] * 8 + ["mkdir"] * 2 + ["symlink", "fifo", "chr", "link", "link", "truncate",
             "truncate", "punch", "allocate", "allocate", "zero", "shift", "shift", "copy", "copy", "copy", "chmod", "chown", "utime", "xattr", "xattr", "noxattr"] +
             ["acl", "acl", "default_acl", "odd_acl"] + ["unlink"] * 4 +
             ["rmdir"] + ["rename"] * 3 + ["exchange", "fsync", "sync"])

    def __init__(self, fs, model, top, seed, bytes_max=1 << 18):
        self.fs, self.model, self.top = fs, model, top
        self.random = random.Random(seed)
        self.bytes_max = bytes_max
        self.count = 0

    def start(self):
        self.make(self.top, S_IFDIR | 0o755, "dir")

    def run(self, nr):
        for _ in range(nr):
            getattr(self, "do_" + self.random.choice(self.KINDS))()

    def pick(self, *types, within=None):
        paths = [p for p in self.model.below(self.top) if self.model.nodes[p].entry["type"] in types]
        return self.random.choice(paths) if paths else None

    def pick_with_mode(self):
        """What can have another mode: often what has an ACL that goes with it."""
        paths = [p for p in self.model.below(self.top) if self.model.nodes[p].acl(ACL_ACCESS)]
        return self.random.choice(paths) if paths and self.random.randrange(2) else self.pick("file", "dir")

    def new_path(self):
        dirs = [p for p in self.model.below(self.top) if self.model.nodes[p].entry["type"] == "dir"] + [self.top] * 3
        self.count += 1
        name = self.random.choice(["n%d", "a-longer-name-that-takes-more-room-%d", "\u00e4\u00f6-%d", "x" * 200 + "%d"])
        return self.random.choice(dirs) + "/" + name % self.count

    def make(self, path, mode, kind, rdev=(0, 0)):
        umask = self.random.choice([0, 0o022, 0o077])
        self.fs.must("mknod", path, mode, *rdev, umask)
        entry = {"type": kind, "mode": mode & 0o7777, "uid": 0, "gid": 0, "nlink": 2 if kind == "dir" else 1}
        if kind != "dir":
            entry["size"] = 0
        if kind == "chr":
            entry["rdev"] = list(rdev)
        node = Node(entry, bytearray() if kind == "file" else None)
        node.inherit(self.model.parent(path).acl(ACL_DEFAULT), umask)
        self.model.add(path, node)

    def do_file(self):
        path = self.new_path()
        self.make(path, S_IFREG | self.random.choice([0o644, 0o600, 0o755]), "file")
        if self.random.random() < .8:
            self.write(path, 0, self.random.choice([10, 300, 1000, 4096, 5000, 30000, self.bytes_max]))

    def write(self, path, offset, size):
        data = self.random.randbytes(size)
        if self.random.randrange(2):  # what compresses
            data = (data[:97] * (size // 97 + 1))[:size]
        done = self.fs.must("write", path, offset, size, data=data)
        assert done == size, "%s: %d of %d bytes written" % (path, done, size)
        node = self.model.nodes[path]
        content = node.content
        if len(content) < offset:
            content.extend(bytes(offset - len(content)))
        content[offset:offset + size] = data
        node.lose_setid()

    def do_write(self):
        path = self.pick("file")
        if path:
            end = len(self.model.nodes[path].content)
            offset = self.random.choice([0, end, self.random.randrange(end + 1), end + self.random.randrange(100000)])
            if offset < 4 << 20:
                self.write(path, offset, self.random.choice([1, 100, 512, 4096, 9999, self.random.randrange(1, 65536)]))

    def do_mkdir(self):
        self.make(self.new_path(), S_IFDIR | 0o755, "dir")

    def do_fifo(self):
        self.make(self.new_path(), S_IFIFO | 0o600, "fifo")

    def do_chr(self):
        self.make(self.new_path(), S_IFCHR | 0o600, "chr", (self.random.randrange(1, 255), self.random.randrange(255)))

    def do_symlink(self):
        path, target = self.new_path(), "t" * self.random.choice([1, 20, 300, 2000])
        self.fs.must("symlink", path, target)
        self.model.add(path, Node({"type": "symlink", "mode": 0o777, "uid": 0, "gid": 0, "nlink": 1,
                                   "target": target, "size": len(target)}))

    def do_link(self):
        old = self.pick("file", "fifo", "symlink")
        if old:
            path = self.new_path()
            self.fs.must("link", old, path)
            self.model.add(path, self.model.nodes[old])
            self.model.nodes[old].entry["nlink"] += 1

    def setattr(self, path, fields, mode=0, uid=0, gid=0, size=0, sec=0):
        self.fs.must("setattr", path, fields, mode, uid, gid, size, sec)

    def do_truncate(self):
        path = self.pick("file")
        if path:
            node = self.model.nodes[path]
            size = self.random.choice([0, self.random.randrange(len(node.content) + 1), len(node.content) + 5000])
            self.setattr(path, SET_SIZE, size=size)
            del node.content[size:]
            node.content.extend(bytes(size - len(node.content)))
            node.lose_setid()

    def do_punch(self):
        path = self.pick("file")
        if path and self.model.nodes[path].content:
            content = self.model.nodes[path].content
            offset = self.random.randrange(len(content))
            size = self.random.randrange(1, len(content) - offset + 1)
            self.fs.must("punch", path, offset, size)
            content[offset:offset + size] = bytes(size)
            self.model.nodes[path].lose_setid()

    def do_allocate(self):
        self.allocate(False)

    def do_zero(self):
        self.allocate(True)

    def allocate(self, is_zeroing):
        path = self.pick("file")
        if path:
            content = self.model.nodes[path].content
            offset = self.random.randrange(len(content) + 10000)
            size = self.random.randrange(1, 1 << 16)
            keep_size = self.random.randrange(2)
            self.fs.must("fallocate", path, keep_size + 16 * is_zeroing, offset, size)
            end = min(offset + size, len(content))
            if is_zeroing and offset < end:
                content[offset:end] = bytes(end - offset)
            if not keep_size:
                content.extend(bytes(max(0, offset + size - len(content))))
            self.model.nodes[path].lose_setid()

    def do_shift(self):
        """Insert blocks, or take some out."""
        path = self.pick("file")
        if path:
            content = self.model.nodes[path].content
            offset = self.random.randrange(len(content) + 1) // 4096 * 4096
            size = 4096 * self.random.randrange(1, 10)
            if self.random.randrange(2) and offset < len(content):
                self.fs.must("fallocate", path, 32, offset, size)
                content[offset:offset] = bytes(size)
            elif offset + size < len(content):
                self.fs.must("fallocate", path, 8, offset, size)
                del content[offset:offset + size]
            else:
                return
            self.model.nodes[path].lose_setid()

    def do_copy(self):
        """A range to another place, of the same file or another; often whole blocks, often all of it."""
        from_path, to_path = self.pick("file"), self.pick("file")
        if not from_path or not self.model.nodes[from_path].content:
            return
        source, target = self.model.nodes[from_path].content, self.model.nodes[to_path].content
        offset, to, size = 0, 0, len(source)
        if self.random.randrange(3) or source is target:
            offset = self.random.randrange(len(source)) // 4096 * 4096 + self.random.choice([0, 0, 1])
            to = self.random.randrange(len(target) + 1) // 4096 * 4096 + self.random.choice([0, 0, 1])
            size = self.random.randrange(1, 1 << 17)
        size = min(size, max(len(source) - offset, 0))
        if source is target and offset < to + size and to < offset + size:
            return
        done = self.fs.must("copy", from_path, offset, to_path, to, size, 0)
        assert done == size, "%d instead of %d bytes copied" % (done, size)
        if done:
            target.extend(bytes(max(0, to - len(target))))
            target[to:to + size] = source[offset:offset + size]
            self.model.nodes[to_path].lose_setid()

    def do_chmod(self):
        path = self.pick_with_mode()
        if path:
            mode = self.random.choice([0o700, 0o4755, 0o640, 0o1471])
            self.setattr(path, SET_MODE, mode=mode)
            self.model.nodes[path].chmod(mode)

    def do_chown(self):
        path = self.random.choice([self.pick_with_mode(), self.pick("symlink")])
        if path:
            uid, gid = self.random.randrange(70000), self.random.randrange(70000)
            node = self.model.nodes[path]
            if node.entry["type"] == "symlink":  # their mode can't be set
                self.setattr(path, SET_UID | SET_GID, uid=uid, gid=gid)
            else:
                mode = node.entry["mode"] & 0o1777
                self.setattr(path, SET_UID | SET_GID | SET_MODE, mode=mode, uid=uid, gid=gid)
                node.chmod(mode)
            node.entry.update(uid=uid, gid=gid)

    def do_utime(self):
        path = self.pick("file", "dir")
        if path:
            self.setattr(path, SET_MTIME, sec=self.random.randrange(1 << 31))

    def do_xattr(self):
        path = self.pick("file", "dir")
        if path:
            name, value = "user.x%d" % self.random.randrange(4), "v" * self.random.choice([0, 1, 30, 1500])
            self.fs.must("setxattr", path, name, value)
            self.model.nodes[path].entry.setdefault("xattrs", {})[name] = value

    def do_noxattr(self):
        path = self.pick("file", "dir")
        xattrs = self.model.nodes[path].entry.get("xattrs") if path else None
        if xattrs:
            name = self.random.choice(sorted(xattrs))
            self.fs.must("removexattr", path, name)
            del xattrs[name]

    def draw_acl(self):
        pick = self.random
        users = [(USER, pick.randrange(8), pick.randrange(70000)) for _ in range(pick.choice([0, 0, 1, 2, 40]))]
        groups = [(GROUP, pick.randrange(8), pick.randrange(70000)) for _ in range(pick.choice([0, 0, 1, 2]))]
        has_mask = users or groups or not pick.randrange(4)
        return [(OWNER, pick.randrange(8), NO_ID), *users, (OWNING_GROUP, pick.randrange(8), NO_ID), *groups,
                *([(MASK, pick.randrange(8), NO_ID)] if has_mask else []), (OTHER, pick.randrange(8), NO_ID)]

    def set_acl(self, path, name, acl):
        want = self.model.nodes[path].set_acl(name, acl) or 0
        got = self.fs.do("setxattr", path, name, manifest.encode(acl_pack(acl)))
        assert got == want, "%s of %s: %s, not %s: %s" % (name, path, got, want, acl)

    def do_acl(self):
        path = self.pick("file", "dir", "fifo", "chr")
        if path:
            self.set_acl(path, ACL_ACCESS, self.draw_acl())

    def do_default_acl(self):
        path = self.pick("dir")
        if path:
            self.set_acl(path, ACL_DEFAULT, self.draw_acl())

    def do_odd_acl(self):
        """What takes it away, what makes no sense, and on what can't have any."""
        path = self.pick("file", "dir", "symlink")
        if path:
            acl = self.draw_acl()
            odd = self.random.choice([acl, [], acl[:-1], acl + acl[-1:], acl[::-1], acl[:1] + [(USER, 8, 1)] + acl[1:],
                                      acl[:1] + [(USER, 1, NO_ID)] + acl[1:], [e for e in acl if e[0] != MASK]])
            self.set_acl(path, self.random.choice([ACL_ACCESS, ACL_DEFAULT]), odd)

    def do_unlink(self):
        path = self.pick("file", "symlink", "fifo", "chr")
        if path:
            self.fs.must("unlink", path, 0)
            self.model.remove(path)

    def do_rmdir(self):
        path = self.pick("dir")
        if path:
            got = self.fs.do("unlink", path, 1)
            want = "ENOTEMPTY" if self.model.below(path) else 0
            assert got == want, "rmdir %s: %s, not %s" % (path, got, want)
            if not want:
                self.model.remove(path)

    def move(self, old, new):
        moved = [(p, self.model.nodes[p]) for p in self.model.below(old)]
        node = self.model.nodes.pop(old)
        if node.entry["type"] == "dir":
            self.model.parent(old).entry["nlink"] -= 1
            self.model.parent(new).entry["nlink"] += 1
        self.model.nodes[new] = node
        for p, n in moved:
            del self.model.nodes[p]
        for p, n in moved:
            self.model.nodes[new + p[len(old):]] = n

    def do_rename(self):
        old = self.pick("file", "dir", "symlink", "fifo", "chr")
        if not old:
            return
        new = self.new_path()
        if self.random.random() < .3 and self.model.nodes[old].entry["type"] == "file":
            new = self.pick("file")
            if self.model.nodes[new] is self.model.nodes[old]:
                return
            assert self.fs.do("rename", old, new, NOREPLACE) == "EEXIST"
        if (new + "/").startswith(old + "/"):
            assert self.fs.do("rename", old, new, 0) == "EINVAL"
            return
        self.fs.must("rename", old, new, 0)
        if new in self.model.nodes:
            self.model.remove(new)
        self.move(old, new)

    def do_exchange(self):
        a, b = self.pick("file", "dir", "symlink"), self.pick("file", "dir", "symlink")
        if not a or a == b or a.startswith(b + "/") or b.startswith(a + "/"):
            return
        if self.model.nodes[a] is self.model.nodes[b]:
            return
        self.fs.must("rename", a, b, EXCHANGE)
        self.move(a, self.top + "/..aside")
        self.move(b, a)
        self.move(self.top + "/..aside", b)

    def do_fsync(self):
        path = self.pick("file", "dir")
        if path:
            self.fs.must("fsync", path)

    def do_sync(self):
        self.fs.must("sync")


# --- judges ---


def kiln_check(kiln, devices, passphrase=None):
    """Names of the errors that kiln check finds."""
    options = doors.passphrase_options(os.path.dirname(devices[0]), passphrase)
    p = subprocess.run([kiln, "check", "--json", "--data", *options, ":".join(devices)], capture_output=True, timeout=300)
    assert p.returncode in (0, 4) and p.stdout, "kiln check: status %d\n%s" % (p.returncode, p.stderr.decode())
    return {k["name"]: k["count"] for k in json.loads(p.stdout)["kinds"]}


def has_upstream():
    return bool(os.environ.get("KILN_UPSTREAM"))


# All that upstream's fsck says of a filesystem that has nothing wrong; of the lock, where the machine has much else to do.
SILENT = ("mounting version ", "recovering from ", "journal read done", "going read-", "starting journal read",
          "Journal keys: ", "finished waiting for writes", "flushing journal and stopping", "marking filesystem clean",
          "done starting filesystem", "shutting down", "shutdown complete",
          "WARNING at libbcachefs/btree_iter.c:2823: btree trans held srcu lock (delaying memory reclaim)")


def upstream_asks(passphrase):
    """Upstream reads a passphrase from standard input, where that is no terminal."""
    return (passphrase + "\n").encode() if passphrase else b""


def upstream_fsck(devices, passphrase=None):
    """Lines with which upstream's fsck complains of copies; a line more if it doesn't exit with 0."""
    with tempfile.TemporaryDirectory(dir=os.path.dirname(devices[0])) as work:
        copies = [os.path.join(work, "dev%d" % i) for i in range(len(devices))]
        for device, copy in zip(devices, copies):
            subprocess.run(["cp", "--sparse=always", device, copy], check=True)
        p = subprocess.run(["timeout", "-k", "10", "300", os.environ["KILN_UPSTREAM"], "fsck", "-n", *copies],
                           input=upstream_asks(passphrase), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    lines = [line for line in p.stdout.decode("utf-8", "backslashreplace").splitlines()
             if line and not line.startswith(SILENT) and not line.endswith("... done")]
    if b"delete_dead_inodes... done" not in p.stdout:
        lines.append("fsck didn't reach the end of its passes")
    return lines + (["exit status %d" % p.returncode] if p.returncode else [])


def upstream_tree(devices, passphrase=None):
    """What upstream's fusemount shows, as entries; None where there is no FUSE."""
    if os.geteuid() or not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return None
    work = tempfile.mkdtemp(dir=os.path.dirname(devices[0]))
    at = os.path.join(work, "mnt")
    os.mkdir(at)
    copies = [os.path.join(work, "dev%d" % i) for i in range(len(devices))]
    for device, copy in zip(devices, copies):
        subprocess.run(["cp", "--sparse=always", device, copy], check=True)
    with open(os.path.join(work, "log"), "wb") as log:
        p = subprocess.Popen([os.environ["KILN_UPSTREAM"], "fusemount", "-f", ":".join(copies), at],
                             stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True)
        p.stdin.write(upstream_asks(passphrase))
        p.stdin.close()
    try:
        for _ in range(600):
            if os.path.ismount(at) or p.poll() is not None:
                break
            try:
                p.wait(.05)
            except subprocess.TimeoutExpired:
                pass
        assert os.path.ismount(at), "upstream's fusemount failed"
        return manifest.tree(at)
    finally:
        subprocess.run(["fusermount3", "-u", at], stderr=subprocess.DEVNULL)
        try:
            p.wait(60)
        except subprocess.TimeoutExpired:
            p.kill()
            subprocess.run(["fusermount3", "-uz", at], stderr=subprocess.DEVNULL)
        shutil.rmtree(work, ignore_errors=True)


def own_tree(read_tree, devices, passphrase=None):
    """What the library reads, without a report of anything wrong."""
    r = doors.library(read_tree, devices, *doors.passphrase_options(os.path.dirname(devices[0]), passphrase))
    assert "error" not in r, r["why"]
    assert not [x for x in r["reports"] if x["level"] != "info"], r["reports"][:3]
    return r
