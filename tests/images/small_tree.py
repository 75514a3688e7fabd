#!/usr/bin/env python3
"""Fill an empty mounted filesystem with the tree of the small-* images: small_tree.py DIR TEXT_BYTES NOISE_BYTES

What upstream's FUSE front end at 1.4 can make: no extended attributes, no ACLs, everything owned by root.
"""
import hashlib
import os
import sys

TIME_NS = 1600000000 * 10**9 + 123456789


def noise(length):
    out = b""
    while len(out) < length:
        out += hashlib.sha512(b"n %d" % (len(out) // 64)).digest()
    return out[:length]


def text(length, tag):
    return b"".join(b"%s: line %d of a text that compresses well\n" % (tag, i) for i in range(length // 40 + 1))[:length]


def main():
    root, text_bytes, noise_bytes = os.fsencode(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])

    def put(name, data):
        with open(os.path.join(root, name), "wb") as f:
            f.write(data)

    put(b"README", b"a small tree\n")
    for d in (b"dir", b"dir/inner", b"empty"):
        os.mkdir(os.path.join(root, d))
    for i in range(20):
        put(b"dir/f%02d" % i, b"%d\n" % i * i)
    put(b"dir/inner/deep", b"deep\n")
    put(b"noise", noise(noise_bytes))
    put(b"text", text(text_bytes, b"t"))
    with open(os.path.join(root, b"sparse"), "wb") as f:
        f.write(text(5000, b"s"))
        f.seek(1 << 20)
        f.write(b"end of the hole")
    os.symlink(b"dir/inner/deep", os.path.join(root, b"link"))
    os.symlink(b"/dir", os.path.join(root, b"absolute"))
    os.link(os.path.join(root, b"README"), os.path.join(root, b"hard"))
    os.mkfifo(os.path.join(root, b"fifo"))
    put("dir/gr\u00fc\u00dfe".encode(), b"utf-8\n")
    put(b"dir/bad-\xff", b"not utf-8\n")

    for folder, dirs, files in os.walk(root):
        for name in files + dirs:
            if name != b"lost+found":
                os.utime(os.path.join(folder, name), ns=(TIME_NS, TIME_NS), follow_symlinks=False)


main()
