#!/usr/bin/env python3
"""The example programs, which are built on the public header alone, do what they say: test_example.py EXAMPLE WRITE KILN"""
import hashlib
import os
import subprocess
import sys

TESTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
sys.path.insert(0, os.path.join(TESTS, "lib"))

import images  # noqa: E402
import manifest  # noqa: E402
import tap  # noqa: E402

EXAMPLE, WRITE, KILN = map(os.path.abspath, sys.argv[1:4])
FOLDER, NAME = os.path.join(TESTS, "images"), "small-zstd-replicas2"


def run(*args, program=EXAMPLE):
    p = subprocess.run([program, *args], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert b"Sanitizer" not in p.stderr and b"runtime error" not in p.stderr, p.stderr.decode()
    return p.returncode, p.stdout, p.stderr.decode()


def lists_and_extracts():
    entries = images.manifest(FOLDER, NAME)["entries"]
    with images.temporary() as to:
        fs = ":".join(images.unpack(FOLDER, NAME, to))
        status, out, err = run(fs)
        top = {manifest.decode(e["path"]) for e in entries if "/" not in e["path"] and e["path"] != "."}
        assert (status, err) == (0, "") and set(out.splitlines()) == top | {b".", b".."}, out
        for e in entries:
            if e["type"] == "file":
                status, out, err = run(fs, manifest.decode(e["path"]))
                assert (status, err) == (0, "") and hashlib.sha256(out).hexdigest() == e["sha256"], e["path"]
        status, out, err = run(fs, "no/such/file")
        assert status == 1 and "No such file" in err and not out, err


def says_why_it_cannot():
    with images.temporary() as to:
        status, _, err = run(os.path.join(to, "nothing"))
        assert status == 1 and "nothing" in err, err


def writes_what_is_read_and_consistent():
    with images.temporary() as to:
        image = os.path.join(to, "new.img")
        written = run(image, program=WRITE)
        assert written[0] == 0 and written[1] and not written[2], written
        assert run(image, "hello.txt") == written
        status, out, err = run("check", image, program=KILN)
        assert status == 0, (out, err)
        status, out, err = run(image, program=WRITE)
        assert status == 1 and "new.img" in err and not out, err


sys.exit(tap.run([(c.__name__, c) for c in (lists_and_extracts, says_why_it_cannot, writes_what_is_read_and_consistent)]))
