#!/usr/bin/env python3
"""Damaged images: what is lost is named, the rest comes out as the manifest says, and nothing is silently short.

    test_damage.py KILN READ_TREE library|get|mount

expected.py says for each what must be told and what is lost.
"""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

import doors  # noqa: E402
import images  # noqa: E402
import manifest  # noqa: E402
import tap  # noqa: E402
from expected import EXPECTED, nothing  # noqa: E402

KILN, READ_TREE, DOOR = os.path.abspath(sys.argv[1]), os.path.abspath(sys.argv[2]), sys.argv[3]
DAMAGE_STATUS = 3


def split(u, x):
    """Entries that must be whole, those that are lost, and paths that lead to something lost or unsure."""
    lost = x.get("lost", nothing)
    unsure = x.get("unsure", nothing)
    entries = [e for e in u.head["entries"] if not unsure(e)]
    in_part = x.get("damage", {})
    whole = [e for e in entries if not lost(e) and e["path"] not in in_part]
    return whole, [e for e in entries if lost(e) or e["path"] in in_part]


def ignored(x):
    return ["xattrs"] if x.get("xattrs_lost") else []


def is_told(path, told):
    """An error was told for the path itself or a directory above it."""
    while path:
        if path in told:
            return True
        path = path.rpartition("/")[0]
    return "." in told


def assert_whole(u, x, have, what, **more):
    """What isn't lost is as it was."""
    whole, _ = split(u, x)
    tap.same(what, manifest.differences(whole, have, partial=True, ignore=ignored(x) + more.pop("ignore", []), **more))
    if not u.head.get("partial") and "unsure" not in x:
        strange = {e["path"] for e in have} - {e["path"] for e in u.head["entries"]}
        assert not strange, "%s: not in the manifest: %s" % (what, sorted(strange)[:10])


# --- the library ---


def reports_are_right(x, reports):
    expected, optional = list(x.get("reports", [])), x.get("optional", [])
    further = x.get("further")

    def fits(row, r):
        return (r["level"], r["structure"]) == row[:2] and row[2] in (r["position"] or "")

    for r in reports:
        row = next((row for row in expected if fits(row, r)), None)
        if row:
            expected.remove(row)
            assert r["device"] or r["structure"] in ("journal", "namespace"), "names no device: %s" % r
            assert r["found"], "doesn't say what was found: %s" % r
            continue
        is_known = any(fits(row, r) for row in optional) or (
            further and r["structure"] == further[0] and further[1] in r["position"])
        assert is_known, "not expected: %s" % r
    assert not expected, "not reported: %s\nreported: %s" % (expected, reports[:5])


def lost_is_told(u, x, have):
    """Each lost entry has an error of its own or above it, and damage is where it is expected."""
    _, lost = split(u, x)
    told = {e["path"] for e in have if "error" in e or "damage" in e}
    silent = [e["path"] for e in lost if not is_told(e["path"], told)]
    assert not silent, "%d lost, but not told: %s" % (len(silent), silent[:10])
    if x.get("names_are_known"):
        unknown = {e["path"] for e in lost} - {e["path"] for e in have}
        assert not unknown, "names not shown: %s" % sorted(unknown)[:10]
    for e in have:
        want = x.get("damage", {}).get(e["path"])
        if want:
            assert [d[:2] for d in e["damage"]] == want, "%s: damage %s, not %s" % (e["path"], e["damage"], want)


def rest_of_file(u, folder, name, path, ranges, options):
    """A file with damage: the damaged ranges are zeroes, every other byte is as it was."""
    _, have, _ = doors.run([READ_TREE, *options, "--cat", "/" + path, ":".join(u.devices)])
    base = os.path.join(u.to, "base")
    os.mkdir(base)
    devices = images.unpack(folder, images.damage(folder, name)["base"], base)
    _, want, _ = doors.run([READ_TREE, *options, "--cat", "/" + path, ":".join(devices)])
    want = bytearray(want)
    for at, length in ranges:
        want[at:at + length] = bytes(length)
    assert have == bytes(want), "%s: what isn't damaged differs" % path


def library(folder, name):
    x = EXPECTED[name]
    with images.temporary() as to:
        u = doors.Unpacked(folder, "corrupt/" + name, to)
        options = x.get("options", [])
        if "refused" in x:
            error, parts = x["refused"]
            r = doors.library(READ_TREE, u.devices)
            assert r.get("error") == error, "opens with %s, not %s" % (r.get("error"), error)
            for part in parts:
                assert part in r["why"], "%r isn't in the reason: %s" % (part, r["why"])
            if not options:
                return
        r = doors.library(READ_TREE, u.devices, *options)
        assert "error" not in r, "doesn't open: %s" % r["why"]
        reports_are_right(x, r["reports"])
        assert x.get("fallback", "") in (r["fallback"] or ""), "fallback: %s" % r["fallback"]
        assert bool(r["fallback"]) == ("fallback" in x), "fallback: %s" % r["fallback"]
        assert_whole(u, x, r["entries"], "library", with_ino=True)
        lost_is_told(u, x, r["entries"])
        if x.get("xattrs_lost"):
            hidden = [e["path"] for e in r["entries"] if "xattrs_error" not in e]
            assert not hidden, "attributes are lost, but not told of: %s" % hidden[:10]
        for path, ranges in x.get("damage", {}).items():
            rest_of_file(u, folder, name, path, ranges, options)
        u.assert_unchanged()


# --- kiln get -r ---


def get(folder, name):
    x = EXPECTED[name]
    if os.geteuid():
        raise tap.Skip("GET NOT TESTED: owners, devices and trusted attributes need root")
    with images.temporary() as to:
        u = doors.Unpacked(folder, "corrupt/" + name, to)
        status, err, have = doors.get(KILN, u.devices, os.path.join(to, "out"), *x.get("options", []))
        if "refused" in x and not x.get("options"):
            assert status == 1, "status %d" % status
            for part in x["refused"][1]:
                assert part in err, "%r isn't in: %s" % (part, err)
            return
        is_damaged = any(level == "damage" for level, _, _ in x.get("reports", []))
        # A filesystem without redundancy left is read in full: that isn't damage.
        want_status = DAMAGE_STATUS if is_damaged else 0
        assert status == want_status, "status %d, not %d\n%s" % (status, want_status, err[:2000])
        for level, structure, position in x.get("reports", []):
            assert structure in err and position in err, "%s %s isn't told:\n%s" % (structure, position, err[:2000])
        assert x.get("fallback", "") in err, "the fallback isn't told"

        for entries in (u.head["entries"], have):
            for e in entries:
                if e.get("type") == "dir":
                    e.pop("nlink", None)
                e.pop("nlink", None) if x.get("lost") else None
        whole, lost = split(u, x)
        # A directory whose inode is lost gets a stand-in, the root is made by whoever made the folder.
        tap.same("get", manifest.differences(whole, have, partial=True, ignore=ignored(x)))
        out = {e["path"]: e for e in have}
        names = {}  # of a file with several links one is named
        for e in u.head["entries"]:
            names.setdefault((e["ino"], e.get("subvol", 1)), []).append(e["path"])
        for e in lost:
            told = [p for n in names[e["ino"], e.get("subvol", 1)] for p in ancestors(n) if "kiln: /%s:" % p in err]
            assert told or e["path"] == "." or are_names_lost(x), "%s isn't named:\n%s" % (e["path"], err[:1000])
        for path, ranges in x.get("damage", {}).items():
            want = next(e for e in u.head["entries"] if e["path"] == path)
            assert out[path]["size"] == want["size"], "%s is short: %d" % (path, out[path]["size"])
            for at, length in ranges:
                with open(os.path.join(to, "out", path), "rb") as f:
                    f.seek(at)
                    assert f.read(length) == bytes(length), "%s: damage at %d isn't zeroes" % (path, at)
        u.assert_unchanged()


def ancestors(path):
    while path:
        yield path
        path = path.rpartition("/")[0]


def are_names_lost(x):
    """Nobody can tell them then."""
    return any(level == "damage" and position.startswith("dirents level 0") for level, _, position in x.get("reports", ()))


# --- mount ---


def mount(folder, name):
    doors.need_mount()
    x = EXPECTED[name]
    with images.temporary() as to:
        u = doors.Unpacked(folder, "corrupt/" + name, to)
        directory = os.path.join(to, "mnt")
        if "refused" in x and not x.get("options"):
            os.mkdir(directory)
            status, _, err = doors.run([KILN, "mount", "-o", "ro", ":".join(u.devices), directory], timeout=60)
            assert status == 1 and all(part in err for part in x["refused"][1]), "status %d: %s" % (status, err)
            assert not os.path.ismount(directory)
            return
        # An access list that can't be read keeps everybody out, so lists are left aside where they are lost.
        lists = ["-o", "noacl"] if x.get("xattrs_lost") else []
        with doors.Mount(KILN, u.devices, directory, *x.get("options", []), *lists) as m:
            have = manifest.tree(m.directory)
            whole, lost = split(u, x)
            in_part = {p: damaged_pages(os.path.join(directory, p)) for p in x.get("damage", {})}
        assert x.get("fallback", "") in m.err, "the fallback isn't told: %s" % m.err
        told = {e["path"] for e in have if "error" in e}
        silent = [e["path"] for e in lost if not is_told(e["path"], told)]
        assert not silent, "%d lost, but without an error: %s" % (len(silent), silent[:10])
        # Nothing below a directory without an inode can be reached in a mount.
        whole = [e for e in whole if not is_told(e["path"].rpartition("/")[0] or "nothing above", told)]
        tap.same("mount", manifest.differences(whole, have, partial=True, ignore=ignored(x)))
        for path, ranges in x.get("damage", {}).items():
            pages = sorted({p for at, length in ranges for p in range(at // 4096, (at + length) // 4096)})
            assert in_part[path] == pages, "%s: pages with errors: %s, damaged: %s" % (path, in_part[path], pages)
        u.assert_unchanged()


def damaged_pages(path):
    """Numbers of the pages that can't be read."""
    bad = []
    with open(path, "rb", buffering=0) as f:
        for at in range(0, os.path.getsize(path), 4096):
            try:
                os.pread(f.fileno(), 4096, at)
            except OSError:
                bad.append(at // 4096)
    return bad


def main():
    door = {"library": library, "get": get, "mount": mount}[DOOR]
    cases = []
    for folder in images.folders():
        for name in images.damaged_names(folder):
            cases.append(("corrupt/" + name, lambda folder=folder, name=name: door(folder, name)))
    return tap.run(cases)


sys.exit(main())
