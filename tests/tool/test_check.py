#!/usr/bin/env python3
"""What `kiln check` promises, on real images: it says nothing of good ones, and names the damage of others.

    test_check.py KILN

Images come from tests/images, and more from $KILN_FIXTURES if it is there (tests/lib/images.py).
"""
import json
import os
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "lib"))

import images
import tap

KILN = sys.argv[1]
# What is known to be wrong in images that upstream's own front end wrote: deletions it never finishes.
KNOWN = {"v1.4-stock-fuse": {"inode_unlinked_but_clean"}}


def check(devices, passphrase, *options):
    """Exit status, and the names of the errors found."""
    p = subprocess.run([KILN, "check", "--json", "--data", "--passphrase-file", "-", *options, ":".join(devices)],
                       input=(passphrase or "") + "\n", capture_output=True, text=True, errors="replace")
    return p.returncode, {k["name"] for k in json.loads(p.stdout)["kinds"]} if p.stdout else set()


def passes_are_listed():
    listed, text = (subprocess.run([KILN, "check", "--passes=list", *options], capture_output=True, text=True, check=True).stdout
                    for options in (["--json"], []))
    assert [p["name"] for p in json.loads(listed)] == [line.split()[0] for line in text.splitlines()], listed


def good(folder, name):
    def case():
        with images.temporary() as work:
            wanted = KNOWN.get(name, set())
            status, found = check(images.unpack_to_read(folder, name, work), images.manifest(folder, name).get("passphrase"))
            assert (status, found) == (4 if wanted else 0, wanted), "%s: %s %s" % (name, status, found)
    return name, case


def damaged(folder, name):
    def case():
        with images.temporary() as work:
            devices = images.unpack_damaged(folder, name, work)
            status, found = check([d for d in devices if os.path.exists(d)], None, "--degraded")
            assert status in (4, 8) and (found or status == 8), "%s: %s %s" % (name, status, found)
    return "damaged " + name, case


def a_device_that_is_cut_off_is_told_as_such():
    """And not that a mount would mend it, which doesn't write there; when it has its size again it does."""
    with images.temporary() as work:
        image = os.path.join(work, "image")
        subprocess.run([KILN, "format", "-q", "--size=64M", image], check=True)
        for size, wanted in ((40 << 20, "device_too_small"), (64 << 20, "sb_copy_bad"), (None, None)):
            if size:
                os.truncate(image, size)
            p = subprocess.run([KILN, "check", image], capture_output=True, text=True)
            assert p.returncode == (4 if wanted else 0) and (not wanted or "[%s]" % wanted in p.stderr), p.stderr
            assert ("A mount that writes renews it" in p.stderr) == (wanted == "sb_copy_bad"), p.stderr
            assert ("before the device is as large again" in p.stderr) == (wanted == "device_too_small"), p.stderr
            status = subprocess.run([KILN, "touch", image, "file"], capture_output=True).returncode
            assert status == (1 if wanted == "device_too_small" else 0)


def a_bad_layout_block_is_told_for_what_it_is():
    """Nothing but formatting writes it, and a mount doesn't."""
    with images.temporary() as work:
        image = os.path.join(work, "image")
        subprocess.run([KILN, "format", "-q", "--size=64M", image], check=True)
        with open(image, "r+b") as f:
            f.seek(7 * 512)
            f.write(bytes(512))
        for _ in range(2):
            p = subprocess.run([KILN, "check", image], capture_output=True, text=True)
            assert p.returncode == 4 and p.stderr.count("[sb_layout_bad]") == 1, p.stderr
            assert "Formatting alone writes it" in p.stderr and "renews" not in p.stderr, p.stderr
            subprocess.run([KILN, "touch", image, "file"], check=True)


cases = [("a_bad_layout_block_is_told_for_what_it_is", a_bad_layout_block_is_told_for_what_it_is),
         ("a_device_that_is_cut_off_is_told_as_such", a_device_that_is_cut_off_is_told_as_such),
         ("passes_are_listed", passes_are_listed)]
for folder in images.folders():
    cases += [good(folder, name) for name in images.names(folder)]
cases += [damaged(folder, name) for folder in images.folders()[:1] for name in images.damaged_names(folder)]
sys.exit(tap.run(cases))
