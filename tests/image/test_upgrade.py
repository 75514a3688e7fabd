#!/usr/bin/env python3
"""Filesystems of versions 1.0 to 1.3 become 1.4 when they are opened for a change, and lose nothing by it.

    test_upgrade.py KILN READ_TREE CHANGE_FS MAKE_OLD

Upstream's images are of version 1.4; MAKE_OLD takes out of copies what the older versions didn't have, and leaves those of
unclean ones as another crash would. $KILN_UPSTREAM names upstream's tool (bcachefs of version 1.4.1): with it, its fsck sees the
results.

$KILN_TEST_SEED: other seeds, with commas. KILN_TEST_ALL=1: all images as all versions, not a sample. KILN_TEST_QUICK=1: one version each.
"""
import functools
import json
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

import changes  # noqa: E402
import doors  # noqa: E402
import images  # noqa: E402
import manifest  # noqa: E402
import tap  # noqa: E402

KILN, READ_TREE, CHANGE_FS, MAKE_OLD = (os.path.abspath(p) for p in sys.argv[1:5])
QUICK = bool(os.environ.get("KILN_TEST_QUICK"))
ALL = bool(os.environ.get("KILN_TEST_ALL"))
SAMPLE = ("v1.4-snapshots", "v1.4-unclean-snapshots", "v1.4-stock-fuse", "v1.4-tiers", "v1.4-unclean-replicas2")
VERSIONS = ("1.0", "1.1", "1.2", "1.3")


def version(device):
    status, out, err = doors.run([KILN, "show-super", "--json", device])
    assert status == 0, err
    return json.loads(out)["version"]


def make_old(wanted, devices, was_clean):
    status, _, err = doors.run([MAKE_OLD, *([] if was_clean else ["--crash"]), wanted, *devices])
    assert status == 0 and not err, err
    for device in devices:
        assert version(device).startswith(wanted + " ") or version(device) == wanted, version(device)


def open_for_change(devices):
    with changes.Filesystem(CHANGE_FS, devices) as fs:
        fs.must("settle")


def upgraded(seed, folder, name, wanted):
    was_clean = "unclean" not in name
    with images.temporary() as work:
        devices = images.unpack(folder, name, work)
        complaints = changes.upstream_fsck(devices) if changes.has_upstream() else []
        open_for_change(devices)  # what a crash left to do is done
        before = doors.library(READ_TREE, devices)
        make_old(wanted, devices, was_clean)
        fingerprints = {d: images.fingerprint(d) for d in devices}
        old = doors.library(READ_TREE, devices)["entries"]
        assert doors.library(READ_TREE, devices)["usage"]["is_clean"] == was_clean
        tap.same("read as it is", manifest.differences(before["entries"], old, ignore=("mtime_ns",)))
        assert fingerprints == {d: images.fingerprint(d) for d in devices}, "reading changed it"
        open_for_change(devices)
        for device in devices:
            assert version(device).startswith("1.4"), version(device)
        have = changes.own_tree(READ_TREE, devices)
        tap.same("upgraded", manifest.differences(old, have["entries"]))
        assert have["usage"]["is_clean"], "not clean"
        inodes = before["usage"]["inodes"], have["usage"]["inodes"]
        assert inodes[0] == inodes[1], "%d inodes became %d" % inodes
        judges_are_silent(devices, complaints, "upgraded")

        model = changes.Model(have["entries"])
        with changes.Filesystem(CHANGE_FS, devices) as fs:
            changer = changes.Changer(fs, model, "kiln", seed)
            changer.start()
            changer.run(100)
        tap.same("changed", changes.differences(model, changes.own_tree(READ_TREE, devices)["entries"]))
        judges_are_silent(devices, complaints, "changed")


def stays_as_it_is(seed, folder, name):
    """With version_upgrade=none, of the versions that need no pass: 1.3. It is changed all the same."""
    with images.temporary() as work:
        devices = images.unpack(folder, name, work)
        complaints = changes.upstream_fsck(devices) if changes.has_upstream() else []
        make_old("1.3", devices, True)
        status, _, err = doors.run([KILN, "set-option", ":".join(devices), "version_upgrade=none"])
        assert status == 0 and not err, err
        model = changes.Model(changes.own_tree(READ_TREE, devices)["entries"])
        for half in range(2):
            with changes.Filesystem(CHANGE_FS, devices) as fs:
                changer = changes.Changer(fs, model, "kiln-%d" % half, seed * 2 + half)
                changer.start()
                changer.run(100)
            for device in devices:
                assert version(device).startswith("1.3"), version(device)
        tap.same("changed", changes.differences(model, changes.own_tree(READ_TREE, devices)["entries"]))
        judges_are_silent(devices, complaints, "changed")


def judges_are_silent(devices, complaints, what):
    found = changes.kiln_check(KILN, devices)
    assert not found, "%s: kiln check: %s" % (what, found)
    if changes.has_upstream():
        lines = [line for line in changes.upstream_fsck(devices) if line not in complaints]
        assert not lines, "%s: upstream's fsck:\n%s" % (what, "\n".join(lines[:20]))


def can_be_written(folder, name):
    head = images.manifest(folder, name)
    options = head.get("format_options") or ""
    return str(head["format_version"]) == "1.4" and not any(
        option in options for option in ("--encrypted", "--erasure_code"))


def main():
    cases = {}
    for folder in images.folders():
        for name in images.names(folder):
            if (ALL or name in SAMPLE) and name not in [n for n, _ in cases] and can_be_written(folder, name):
                for wanted in VERSIONS if ALL or name == SAMPLE[0] and not QUICK else VERSIONS[:1]:
                    cases[name, wanted] = folder
    if SAMPLE[1] in (name for name, _ in cases) and (ALL or changes.has_upstream()):
        cases[SAMPLE[1], "1.2"] = cases[SAMPLE[1], "1.0"]
    seeds = tap.seeds()
    runs = [("%s as %s" % key, functools.partial(upgraded, seeds[i % len(seeds)], folder, *key))
            for i, (key, folder) in enumerate(cases.items())]
    if (SAMPLE[0], "1.3") in cases:
        runs.append(("%s stays 1.3" % SAMPLE[0], functools.partial(stays_as_it_is, seeds[0], cases[SAMPLE[0], "1.3"], SAMPLE[0])))
    return tap.run(runs)


sys.exit(main())
