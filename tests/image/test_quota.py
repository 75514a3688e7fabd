#!/usr/bin/env python3
"""Quotas from the command line: what is reported is what the inodes add up to, on any image, and limits hold.

    test_quota.py KILN

$KILN_UPSTREAM: upstream's tool; with it, its fsck sees what was made, and finds nothing to say.
"""
import collections
import json
import os
import re
import subprocess
import sys

TESTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
sys.path.insert(0, os.path.join(TESTS, "lib"))

import changes  # noqa: E402
import images  # noqa: E402
import tap  # noqa: E402

KILN = os.path.abspath(sys.argv[1])


def kiln(*args, fails=None, data=None):
    p = subprocess.run([KILN, *args], capture_output=True, input=data, timeout=120)
    if fails:
        assert p.returncode == 1 and fails in p.stderr.decode(), "%s: %s" % (args, p.stderr.decode())
    else:
        assert p.returncode == 0, "%s: %s" % (args, p.stderr.decode())
    return p.stdout.decode()


def keys(device, btree):
    return [json.loads(line) for line in kiln("list", "--json", "-b", btree, device).splitlines()]


def report(device):
    """{(type, id): (bytes, inodes)} of those that use something."""
    rows = json.loads(kiln("quota", device, "report", "--json"))["quotas"]
    return {(r["type"], r["id"]): (r["space"]["used"], r["inodes"]["used"]) for r in rows if r["inodes"]["used"]}


def judges_are_silent(devices, what):
    found = changes.kiln_check(KILN, devices)
    assert not found, "%s: kiln check: %s" % (what, found)
    if changes.has_upstream():
        lines = changes.upstream_fsck(devices)
        assert not lines, "%s: upstream's fsck:\n%s" % (what, "\n".join(lines[:20]))


def limits_hold_and_are_reported():
    with images.temporary() as work:
        device = os.path.join(work, "dev")
        kiln("format", "--size", "64M", "--usrquota", "--grpquota", "--prjquota", "--block-size=4k", device)
        kiln("mkdir", device, "a", "b")
        kiln("chown", "1000:100", device, "a")
        kiln("setfattr", "-n", "bcachefs.project", "-v", "7", device, "b")
        file = os.path.join(work, "file")
        with open(file, "wb") as f:
            f.write(os.urandom(200000))
        kiln("put", device, file, "/b/one")
        blocks = -(-200000 // 4096) * 4096
        got = report(device)
        assert got["project", 7] == (blocks, 2), got
        assert got["user", 1000] == (0, 1) and got["group", 100] == (0, 1), got
        assert got["project", 0][1] == 3, got  # root, lost+found, a
        judges_are_silent([device], "counted")
        kiln("quota", device, "set", "project:7", "--space-hard", "250k", "--inodes-soft", "100")
        kiln("put", device, file, "/b/two", fails="quota")
        kiln("chown", "1000:100", device, "/b/one")
        assert report(device)["user", 1000] == (blocks, 2)
        kiln("quota", device, "set", "user:1000", "group:100", "--inodes-hard", "2")
        kiln("chown", "1000", device, "/b", fails="quota")
        kiln("chown", ":100", device, "/b", fails="quota")
        judges_are_silent([device], "limited")
        row = json.loads(kiln("quota", device, "get", "project:7", "--json"))[0]
        assert row["space"]["hard"] == 250 << 10 and row["inodes"]["soft"] == 100, row
        kiln("quota", device, "grace", "project", "--space-period", "2d", "--inodes-period", "90")
        state = json.loads(kiln("quota", device, "report", "--json"))["types"]["project"]
        assert state == {"enabled": True, "space_grace": 172800, "inodes_grace": 90}, state
        # None are left: the keys are gone. And without the option nothing holds.
        kiln("quota", device, "set", "project:7", "--space-hard", "0", "--inodes-soft", "0")
        kiln("put", device, file, "/b/two")
        kiln("set-option", device, "usrquota=0", "grpquota=0")
        kiln("chown", "1000:100", device, "/b")
        judges_are_silent([device], "without limits")
        kiln("rm", "-r", device, "/b")
        got = report(device)
        assert ("project", 7) not in got and got["user", 1000] == (0, 1), got


def visible(versions, snapshot, parents):
    """The version of an inode that a snapshot sees."""
    while snapshot:
        if snapshot in versions:
            return versions[snapshot]
        snapshot = parents.get(snapshot, 0)
    return None


def field(text, name):
    found = re.search(r"\b%s[ =:]+(\d+)" % name, text)
    return int(found.group(1)) if found else None


def counted_from_keys(device):
    """The same, from the keys alone, by what the format says (04 §9)."""
    subvols, snapshots, trees = {}, {}, {}
    for btree, table in (("subvolumes", subvols), ("snapshots", snapshots), ("snapshot_trees", trees)):
        for key in keys(device, btree):
            table[int(key["pos"].split(":")[1])] = key["value"]
    parents = {i: field(v, "parent") for i, v in snapshots.items()}
    masters = {}
    for i, v in snapshots.items():
        master = field(trees[field(v, "tree")], "subvol")
        masters[i] = field(subvols[master], "snapshot id") if master in subvols else 0
    versions = collections.defaultdict(dict)
    for key in keys(device, "inodes"):
        _, inum, snapshot = (int(n) for n in key["pos"].split(":"))
        versions[inum][snapshot] = key["value"] if key["type"].startswith("inode") and "gen" not in key["type"] else None
    counts = collections.defaultdict(lambda: [0, 0])
    for of_inum in versions.values():
        for master in {masters[s] for s in of_inum}:
            text = visible(of_inum, master, parents)
            if text is None:
                continue
            project = field(text, "bi_project") or 0
            ids = (("user", field(text, "bi_uid")), ("group", field(text, "bi_gid")), ("project", max(project - 1, 0)))
            for who in ids:
                counts[who][0] += field(text, "bi_sectors") * 512
                counts[who][1] += 1
    return {who: tuple(v) for who, v in counts.items()}


def snapshots_cost_nothing():
    with images.temporary() as work:
        for name in ("v1.4-snapshots", "v1.4-unclean-snapshots", "v1.4-stock-fuse"):
            device = images.unpack(images.folders()[0], name, work)[0]
            expected = counted_from_keys(device)
            assert len(expected) > 2
            assert report(device) == expected, "%s: %s, expected %s" % (name, report(device), expected)
            # Written to, the same is counted by what is changed.
            kiln("set-option", device, "usrquota=1", "grpquota=1", "prjquota=1")
            kiln("quota", device, "set", "user:4321", "--inodes-hard", "2")
            kiln("mkdir", device, "/quota-test")
            kiln("chown", "4321:4321", device, "/quota-test")
            assert report(device) == counted_from_keys(device)
            assert report(device)["user", 4321] == (0, 1)
            judges_are_silent([device], name)


sys.exit(tap.run([(case.__name__, case) for case in (limits_hold_and_are_reported, snapshots_cost_nothing)]))
