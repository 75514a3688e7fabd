"""Manifests: what is in a tree of files, in the form described in tests/images/README.md, and comparing two of them.

`tree(directory)` makes the entries of a directory on any filesystem (a mount, or files that were extracted);
`differences(want, have)` compares entries, from wherever they come.
"""
import errno
import hashlib
import os
import stat

TYPES = {stat.S_IFREG: "file", stat.S_IFDIR: "dir", stat.S_IFLNK: "symlink", stat.S_IFIFO: "fifo",
         stat.S_IFCHR: "chr", stat.S_IFBLK: "blk", stat.S_IFSOCK: "sock"}
WHOLE_FILE_BYTES_MAX = 64 << 20
PROBE_BYTES = 65536


def encode(raw):
    """Bytes as a manifest has them: text, or with \\xNN for what isn't plain UTF-8."""
    try:
        text = raw.decode("utf-8")
        if all(c >= " " and c != "\x7f" for c in text) and "\\" not in text:
            return text
    except UnicodeDecodeError:
        pass
    return "".join(chr(c) if 32 <= c < 127 and c != 92 else "\\x%02x" % c for c in raw)


def decode(text):
    """The other way round."""
    if "\\" not in text:
        return text.encode()
    out = bytearray()
    at = 0
    while at < len(text):
        if text[at] == "\\":
            out.append(int(text[at + 2:at + 4], 16))
            at += 4
        else:
            out += text[at].encode()
            at += 1
    return bytes(out)


def read_exactly(file, offset, length):
    file.seek(offset)
    out = b""
    while len(out) < length and (block := file.read(length - len(out))):
        out += block
    return out


def content(path, size):
    """{"sha256": ...}, or for very large files {"probes": [...]}."""
    with open(path, "rb", buffering=0) as f:
        if size > WHOLE_FILE_BYTES_MAX:
            places = {0, 1 << 39, (1 << 46) + 4096, max(0, size - PROBE_BYTES) & ~4095}
            probes = []
            for at in sorted(p for p in places if p < size):
                block = read_exactly(f, at, min(PROBE_BYTES, size - at))
                probes.append({"offset": at, "length": len(block), "sha256": hashlib.sha256(block).hexdigest()})
            return {"probes": probes}
        h = hashlib.sha256()
        length = 0
        while block := f.read(1 << 20):
            h.update(block)
            length += len(block)
        if length != size:
            raise OSError(0, "short read")
        return {"sha256": h.hexdigest()}


def attributes(path):
    """Extended attributes, without the options of files that a mount shows as some; none on a filesystem that has no such thing."""
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError as e:
        if e.errno != errno.ENOTSUP:
            raise
        return {}
    return {n: encode(os.getxattr(path, n, follow_symlinks=False)) for n in sorted(names)
            if n != "security.selinux" and not n.startswith("bcachefs")}


def entry(path, relative):
    st = os.lstat(path)
    kind = TYPES[stat.S_IFMT(st.st_mode)]
    e = {"path": encode(relative), "type": kind, "mode": stat.S_IMODE(st.st_mode), "uid": st.st_uid, "gid": st.st_gid,
         "mtime_ns": st.st_mtime_ns, "nlink": st.st_nlink, "ino": st.st_ino}
    if kind != "dir":
        e["size"] = st.st_size
    if kind == "file":
        e.update(content(path, st.st_size))
    elif kind == "symlink":
        target = os.readlink(path)
        e.update(target=encode(target), size=len(target))
    elif kind in ("chr", "blk"):
        e["rdev"] = [os.major(st.st_rdev), os.minor(st.st_rdev)]
    try:
        xattrs = attributes(path)
        if xattrs:
            e["xattrs"] = xattrs
    except OSError as error:
        e["xattrs_error"] = errno.errorcode.get(error.errno, str(error))
    return e


def tree(directory):
    """Entries of a whole tree. What can't be read gets {"path": ..., "error": "EIO"} and the rest goes on."""
    out = []

    def visit(path, relative):
        shown = encode(relative or b".")
        try:
            is_dir = stat.S_ISDIR(os.lstat(path).st_mode)
            out.append(entry(path, relative or b"."))
        except OSError as e:
            out.append({"path": shown, "error": errno.errorcode.get(e.errno, str(e))})
            return
        if not is_dir:
            return
        try:
            children = sorted(os.listdir(path))
        except OSError as e:
            out.append({"path": shown, "error": "readdir " + errno.errorcode.get(e.errno, str(e))})
            return
        for name in children:
            visit(os.path.join(path, name), relative + b"/" + name if relative else name)

    visit(os.fsencode(directory), b"")
    return out


# What a manifest says of an entry; whatever else an entry has isn't compared.
KEYS = ("type", "mode", "uid", "gid", "size", "mtime_ns", "nlink", "sha256", "probes", "target", "rdev", "xattrs")


def differences(want, have, partial=False, ignore=(), with_ino=False):
    """Lines that say how @have differs from @want (lists of entries); empty if it doesn't.

    partial: more names may exist than those wanted, so the root directory may have changed too.
    """
    lines = []
    keys = [k for k in KEYS + (("ino", "subvol") if with_ino else ()) if k not in ignore]
    left = {}
    for e in have:
        if "error" in e or e["path"] not in left:
            left[e["path"]] = e
    for w in want:
        h = left.pop(w["path"], None)
        if h is None:
            lines.append("%s: missing" % w["path"])
            continue
        if "error" in h or "damage" in h:
            lines.append("%s: %s" % (w["path"], h.get("error") or "damage %s" % h["damage"]))
            continue
        if "xattrs_error" in h and "xattrs" not in ignore:
            lines.append("%s: extended attributes: %s" % (w["path"], h["xattrs_error"]))
        for k in keys:
            if partial and w["path"] == "." and k in ("nlink", "mtime_ns"):
                continue
            default = 1 if k == "subvol" else None
            if w.get(k, default) != h.get(k, default):
                lines.append("%s: %s: want %r, have %r" % (w["path"], k, w.get(k), h.get(k)))
    if not partial:
        lines += ["%s: not in the manifest" % p for p in left]
    return lines
