#!/usr/bin/env python3
"""What show-super, list, list-journal and usage promise, on real images.

    test_raw.py KILN

Images come from $KILN_FIXTURES (default: ../shared/fixtures beside the repository; see its README for the format) and
from tests/images. Their texts were printed by upstream's tools, so they tell what ours must say. A test that finds none
of its images says "skip"; when there are no images at all, the result is "skipped" (exit status 77).
KILN_TEST_QUICK=1: less damage is drawn.
"""
import glob
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "lib"))

import images  # noqa: E402

KILN = os.path.abspath(sys.argv[1])
HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
FIXTURES = os.environ.get("KILN_FIXTURES", os.path.join(os.path.dirname(ROOT), "shared", "fixtures"))
IMAGES = os.path.join(os.path.dirname(HERE), "images")
SEED = int(os.environ.get("KILN_TEST_SEED", "20261121"), 0)
QUICK = bool(os.environ.get("KILN_TEST_QUICK"))
COMMANDS = ["show-super", "list", "list-journal", "usage"]
OK, FAILED, USAGE, DAMAGE = 0, 1, 2, 3

work = tempfile.TemporaryDirectory(prefix="kiln-test-raw-", dir=images.temporary_folder())


# --- running, images, texts ---

class Result:
    def __init__(self, args, p):
        self.args, self.status = args, p.returncode
        self.out = p.stdout.decode("utf-8", "surrogateescape")
        self.err = p.stderr.decode("utf-8", "surrogateescape")

    def __str__(self):
        return "kiln %s: status %d, stderr:\n%s" % (" ".join(self.args), self.status, self.err[-2000:])


def kiln(*args, status=OK):
    """Run kiln; a crash, a sanitizer's message or another status than expected is a failure."""
    p = subprocess.run([KILN, *args], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    r = Result(args, p)
    allowed = status if isinstance(status, tuple) else (status,)
    assert "Sanitizer" not in r.err and "runtime error" not in r.err, r
    assert r.status in allowed, "expected status %s\n%s" % (allowed, r)
    return r


def packed(name):
    """The packed devices of an image, from the first place that has it."""
    for folder in FIXTURES, IMAGES:
        base = glob.escape(os.path.join(folder, name))
        found = glob.glob(base + ".img.zst") or sorted(glob.glob(base + ".dev*.img.zst"))
        if found:
            return found
    return []


found_nr = 0  # images that the test now running asked for and got


def has_image(name, text=None):
    """Is there such an image (and upstream's text about it)? Tests leave out what isn't there."""
    global found_nr
    if name.startswith("corrupt/"):
        found = os.path.exists(os.path.join(FIXTURES, name + ".json"))
    else:
        found = bool(packed(name)) and (not text or os.path.exists(os.path.join(FIXTURES, name + text)))
    found_nr += found
    return found


def first_image(*names):
    return next((name for name in names if has_image(name)), None)


unpacked = {}


def image(name):
    """Unpack an image once; its devices joined by colons."""
    if name not in unpacked:
        folder = tempfile.mkdtemp(dir=work.name)
        if name.startswith("corrupt/"):
            paths = images.unpack_damaged(FIXTURES, name[len("corrupt/"):], folder)
        else:
            paths = images.unpack_to_read(os.path.dirname(packed(name)[0]), name, folder)
        unpacked[name] = ":".join(paths)
    return unpacked[name]


def own_images():
    """Names of the images of this repository."""
    return sorted({re.sub(r"(\.dev\d+)?\.img\.zst$", "", os.path.basename(f)) for f in glob.glob(os.path.join(IMAGES, "*.img.zst"))})


def manifest(name):
    folder = os.path.dirname(packed(name)[0])
    return json.loads(text_of(os.path.join(folder, name + ".manifest.json.zst")))


def text_of(path):
    data = subprocess.run(["zstd", "-dc", path], check=True, stdout=subprocess.PIPE).stdout if path.endswith(".zst") else open(path, "rb").read()
    return data.decode("utf-8", "surrogateescape")


def fixture_text(name):
    return text_of(os.path.join(FIXTURES, name))


def json_lines(text):
    return [json.loads(line) for line in text.splitlines()]


def sparse_copy(path):
    fd, copy = tempfile.mkstemp(dir=work.name)
    os.close(fd)
    images.copy_sparse(path, copy)
    return copy


KEY = re.compile(r"u64s \d+ type \S+ \S+ len \d+ ver \d+")


def without_free_bytes(line):
    """Contents of files and attributes are shown differently: upstream prints bytes as they are."""
    line = re.sub(r"(datalen \d+): .*", r"\1", line)
    return re.sub(r"(type xattr .* ver \d+: [a-z]*).*", r"\1", line).rstrip()


def keys_by_btree(text):
    """{btree: [[first line, other lines...] of each key]}"""
    btrees, keys = {}, None
    for line in text.split("\n"):
        heading = re.match(r"==== btree (\w+)", line)
        if heading:
            keys = btrees.setdefault(heading[1], [])
        elif KEY.match(line):
            keys.append([without_free_bytes(line)])
        elif keys and line.strip() and not re.search("type (xattr|inline_data|indirect_inline_data|dirent) ", keys[-1][0]):
            keys[-1].append(line.rstrip())
    return {name: keys for name, keys in btrees.items() if keys}


def has_odd_name(line):
    """Names with control characters and backslashes are escaped here, and split lines there."""
    return " type dirent " in line and (re.search(r"\\|[\x00-\x1f\x7f]", line) or " -> " not in line)


# --- without images ---

def test_wrong_arguments_are_a_usage_error():
    for command in COMMANDS:
        for args in [], ["--no-such-option", "x"], ["a", "b"]:
            r = kiln(command, *args, status=USAGE)
            assert "--help" in r.err and not r.out, r
    for args in (["list", "-b", "nonsense"], ["list", "-s", "1:x"], ["list", "-s", "1:2:3:4"], ["list", "-e", ""], ["list", "-l", "4"],
                 ["list", "-l", "-1"], ["list", "-m", "sets"], ["list", "--snapshot", "4294967296"], ["list", "-b", "-1"],
                 ["list", "-b", "63"], ["list-journal", "-n", "0"], ["list-journal", "-b", "nonsense"], ["list-journal", "-k", "a:b"],
                 ["list-journal", "--headers", "-b", "inodes"], ["show-super", "-f", "members_v2,nonsense"], ["show-super", "-f", ""],
                 ["show-super", "--field-only", "all"]):
        r = kiln(*args, "x", status=USAGE)
        assert len(r.err.splitlines()) == 1, r


def test_help_names_every_option():
    for command in COMMANDS:
        r = kiln(command, "--help")
        assert r.out.startswith("usage: kiln " + command) and "--json" in r.out, r


def test_files_that_hold_no_filesystem_are_refused_with_a_reason():
    rng = random.Random(SEED)
    files = {"empty": b"", "short": b"x" * 100, "zeroes": bytes(1 << 20), "garbage": rng.randbytes(1 << 20)}
    for name, data in files.items():
        path = os.path.join(work.name, name)
        with open(path, "wb") as f:
            f.write(data)
        for command in COMMANDS:
            r = kiln(command, path, status=FAILED)
            assert path in r.err and not r.out, r
    for command in COMMANDS:
        for path in os.path.join(work.name, "missing"), work.name:
            r = kiln(command, path, status=FAILED)
            says = "is a directory" if path == work.name else "can't open "
            assert says in r.err and path in r.err, r


# --- show-super ---

def test_show_super_says_what_upstream_says():
    for name in "v1.4-small", "v1.4-unclean", "v1.4-snapshots", "v1.4-encrypted":
        if not has_image(name, ".show-super.txt"):
            continue
        # Upstream gives places in the clean section by sector, we by bucket; and it misspells KDF.
        def lines(text):
            text = text.rstrip().replace("KFD:", "KDF:")
            return [re.sub(r" (durability: \d+ )?ptr: .*", "", line).rstrip() for line in text.split("\n")]
        ours = lines(kiln("show-super", "-l", "-f", "all", image(name)).out)
        theirs = lines(fixture_text(name + ".show-super.txt"))
        assert ours == theirs, "%s: %s" % (name, [pair for pair in zip(ours, theirs) if pair[0] != pair[1]][:5])


def test_show_super_json_agrees_with_text():
    for name in "v1.4-small", "v1.4-tiers", "v1.39-ec", "v1.13-unclean", "v1.39-casefold", "small-zstd-replicas2":
        if not has_image(name):
            continue
        devices = image(name)
        supers = json.loads(kiln("show-super", "--all", "--json", devices).out)
        assert len(supers) == len(devices.split(":"))
        for sb in supers:
            text = kiln("show-super", "-f", "all", sb["device"]).out
            assert sb["device_index"] == int(re.search(r"Device index: +(\d+)", text)[1])
            assert sb["external_uuid"] == re.search(r"External UUID: +(\S+)", text)[1]
            assert sb["seq"] == int(re.search(r"Sequence number: +(\d+)", text)[1])
            assert sb["bytes"] == int(re.search(r"Superblock size: +(\d+)", text)[1])
            assert ",".join(sb["features"]) == re.search(r"\nFeatures: +(\S+)", text)[1]
            assert ",".join(sb["sections"]) and len(sb["sections"]["members_v2"]) == sb["devices"]
            labels = re.findall(r"\n  Label: +(\S+)", kiln("show-super", "-f", "members_v2", sb["device"]).out)
            assert labels == [m["label"] or "(none)" for m in sb["sections"]["members_v2"] if m], labels
            assert set(sb["sections"]) == set(re.search(r"Sections: +(\S+)", text)[1].split(","))


def test_show_super_shows_single_sections():
    if not has_image("v1.4-small"):
        return
    path = image("v1.4-small")
    assert kiln("show-super", "--field-only", "journal_v2", path).out == "Buckets:  17-33\n"
    assert "no section crypt" in kiln("show-super", "--field-only", "crypt", path, status=FAILED).err
    shown = re.findall(r"^(\w+) \(size", kiln("show-super", "-f", "counters,ext", path).out, re.M)
    assert sorted(shown) == ["counters", "ext"], shown
    sb = json.loads(kiln("show-super", "--json", "-f", "counters", path).out)
    assert list(sb["sections"]) == ["counters"] and sb["sections"]["counters"]["io_read"] == 1056


def test_show_super_needs_no_other_member():
    name = first_image("v1.4-replicas2", "small-zstd-replicas2")
    if not name:
        return
    for index, device in enumerate(image(name).split(":")):
        assert json.loads(kiln("show-super", "--json", device).out)["device_index"] == index


def test_show_super_names_bad_copies_and_goes_on():
    for name, sectors in ("corrupt/sb-primary-zeroed", [8]), ("corrupt/sb-primary-bitflip", [8]), ("corrupt/sb-primary-and-layout-zeroed", [8]):
        if not has_image(name):
            continue
        r = kiln("show-super", image(name))
        for sector in sectors:
            assert "copy at sector %d" % sector in r.err, r
        assert "External UUID:" in r.out


# --- list ---

def test_list_shows_the_keys_upstream_shows():
    for name in "v1.4-small", "v1.4-tiers", "v1.4-snapshots", "v1.4-lz4", "v1.4-ec", "v1.36-snapshots", "v1.39-snapshots", "v1.39-casefold", "v1.39-tiers":
        if not has_image(name, ".keys.txt.zst"):
            continue
        ours = keys_by_btree(kiln("list", "-b", "all", image(name)).out)
        theirs = keys_by_btree(fixture_text(name + ".keys.txt.zst"))
        is_whole_text_equal = name.startswith("v1.4-")  # newer versions lay values out in other ways
        assert theirs, name
        for btree, keys in theirs.items():
            mine = ours.get(btree, [])
            assert [KEY.match(k[0])[0] for k in mine] == [KEY.match(k[0])[0] for k in keys], "%s %s" % (name, btree)
            for a, b in zip(mine, keys):
                assert not is_whole_text_equal or a == b or has_odd_name(a[0]), "%s %s:\n%s\n%s" % (name, btree, a, b)


def test_list_json_has_the_same_keys_as_text():
    for name in "v1.4-small", "v1.39-snapshots", "v1.39-casefold", "v1.4-snapshots":
        if not has_image(name):
            continue
        text = keys_by_btree(kiln("list", "-b", "all", image(name)).out)
        objects = json_lines(kiln("list", "-b", "all", "--json", image(name)).out)
        assert len(objects) == sum(len(keys) for keys in text.values())
        for o in objects:
            assert set(o) == {"btree", "level", "pos", "size", "version", "type", "value"}, o
            assert re.fullmatch(r"\d+:\d+:\d+", o["pos"])
        assert [o["type"] for o in objects] == [re.search(r"type (\S+)", k[0])[1] for keys in text.values() for k in keys]


def test_list_shows_only_the_range_asked_for():
    if not has_image("v1.4-small"):
        return
    path = image("v1.4-small")
    all_keys = json_lines(kiln("list", "-b", "dirents", "--json", path).out)
    some = json_lines(kiln("list", "-b", "dirents", "--json", "-s", "4128", "-e", "4128", path).out)
    assert some and some == [o for o in all_keys if o["pos"].startswith("4128:")]
    one = json_lines(kiln("list", "-b", "2", "--json", "-s", some[0]["pos"], "-e", some[0]["pos"], path).out)
    assert one == some[:1]
    assert not kiln("list", "-s", "U64_MAX", path).out
    assert not kiln("list", "-l", "3", path).out


def test_list_snapshot_shows_one_version_of_each():
    if not has_image("v1.4-snapshots"):
        return
    path = image("v1.4-snapshots")
    def view(*args):
        return json_lines(kiln("list", "-b", "inodes", "--json", *args, path).out)
    everything, one = view(), view("--snapshot", "U32_MAX")
    assert one and len(one) < len(everything)
    assert all(o["pos"].endswith(":4294967295") for o in one)
    places = [o["pos"].rsplit(":", 1)[0] for o in one]
    assert len(places) == len(set(places))


def test_list_nodes_cover_the_btree_and_agree_with_formats():
    for name in "v1.4-small", "v1.4-bs4k-bn32k", "v1.4-snapshots":
        if not has_image(name):
            continue
        nodes = json_lines(kiln("list", "-b", "extents", "-m", "nodes", "--json", image(name)).out)
        formats = json_lines(kiln("list", "-b", "extents", "-m", "formats", "--json", image(name)).out)
        leaves = [n for n in nodes if n["level"] == 0]
        keys = kiln("list", "-b", "extents", image(name)).out.splitlines()
        assert sum(n["keys"] for n in leaves) == len(keys), name
        assert leaves[0]["min"] == "0:0:0" and leaves[-1]["max"] == "18446744073709551615:18446744073709551615:4294967295"
        assert [n["seq"] for n in nodes] == [f["seq"] for f in formats]
        assert all(len(f["format"]) == 6 for f in formats)
        top = max(n["level"] for n in nodes)
        if top:
            pointers = json_lines(kiln("list", "-b", "extents", "-l", "1", "--json", image(name)).out)
            assert [p["pos"] for p in pointers] == [n["max"] for n in leaves]
        assert len(kiln("list", "-b", "extents", "-m", "nodes", image(name)).out.splitlines()) == len(nodes)


def test_list_goes_on_behind_damage_and_says_so():
    if not has_image("corrupt/btree-extents-leaf"):
        return
    r = kiln("list", "--json", image("corrupt/btree-extents-leaf"), status=DAMAGE)
    objects = json_lines(r.out)
    assert [o for o in objects if "damage" in o] and [o for o in objects if "value" in o], r
    assert "damaged" in r.err
    r = kiln("list", "-m", "nodes", "--json", image("corrupt/btree-extents-leaf"), status=DAMAGE)
    assert [o for o in json_lines(r.out) if "error" in o or o.get("bad_keys")], r
    r = kiln("list", "-b", "dirents", image("corrupt/btree-dirents-zeroed"), status=DAMAGE)
    assert "dirents" in r.err, r


def test_list_reads_one_copy_when_the_other_is_bad():
    if not has_image("corrupt/btree-extents-root-one-replica"):
        return
    good = kiln("list", image("v1.4-replicas2")).out
    # Which copy is read first is left to chance and to how fast the devices were.
    for _ in range(100):
        r = kiln("list", image("corrupt/btree-extents-root-one-replica"))
        assert r.out == good, r
        if r.err:
            break
    assert "recovered" in r.err and "extents level 1" in r.err, r


# --- list-journal ---

def entries_of_text(text):
    """{seq: [lines]} without what only one side prints, all lines without the star of ignored entries."""
    entries, lines = {}, None
    for line in text.split("\n"):
        head = re.match(r"(?:\w+ )?journal entry +(\d+)", line)
        if head:
            lines = entries.setdefault(int(head[1]), [])
        elif lines is not None and not re.match(r"[* ] (bytes|checksum|state) ", line):
            line = without_free_bytes(re.sub(r"^\*", " ", line))
            if line.strip() not in ("", "btree_keys:", "overwrite:"):
                lines.append(line)
    return entries


def test_list_journal_shows_the_entries_upstream_shows():
    for name in "v1.4-empty", "v1.4-small", "v1.4-unclean", "v1.4-unclean-replicas2", "v1.4-unclean-snapshots":
        if not has_image(name, ".journal.txt"):
            continue
        ours = entries_of_text(kiln("list-journal", "-a", image(name)).out)
        upstream = fixture_text(name + ".journal.txt")
        theirs = entries_of_text(upstream)
        assert set(theirs) <= set(ours), name
        compared = 0
        for seq, lines in theirs.items():
            # The text was cut in its middle, and values of unprintable bytes begin new lines.
            if any("..." in line[:8] for line in lines) or len(lines) != len(ours[seq]):
                continue
            same = [a == b or " type dirent " in a or " type xattr " in a for a, b in zip(ours[seq], lines)]
            assert all(same), "%s entry %d:\n%s\n%s" % (name, seq, ours[seq][same.index(False)], lines[same.index(False)])
            compared += 1
        assert compared > len(theirs) // 2, "%s: %d of %d" % (name, compared, len(theirs))


def test_list_journal_shows_by_default_what_is_replayed():
    for name in "v1.4-unclean", "v1.4-unclean-snapshots", "v1.13-unclean", "v1.39-unclean":
        if not has_image(name):
            continue
        replayed = json_lines(kiln("list-journal", "--json", image(name)).out)
        everything = json_lines(kiln("list-journal", "--json", "-a", image(name)).out)
        assert replayed and all(e["replayed"] and e["state"] == "replayed" and e["checksum_good"] for e in replayed)
        assert replayed == [e for e in everything if e["replayed"]]
        assert [e["seq"] for e in everything] == sorted(e["seq"] for e in everything)
        text = fixture_text(name + ".journal.txt") if has_image(name, ".journal.txt") else ""
        range_ = re.search(r"replaying entries (\d+)-(\d+)", text)
        if range_:
            assert (replayed[0]["seq"], replayed[-1]["seq"]) == (int(range_[1]), int(range_[2]))
        last = json_lines(kiln("list-journal", "--json", "-n", "2", image(name)).out)
        assert last == replayed[-2:]
        headers = json_lines(kiln("list-journal", "--json", "--headers", image(name)).out)
        assert [h["seq"] for h in headers] == [e["seq"] for e in replayed] and "entries" not in headers[0]


def test_list_journal_filters_keys():
    name = first_image("v1.4-unclean", "v1.4-unclean-snapshots")
    if not name:
        return
    path = image(name)
    keys = [k for e in json_lines(kiln("list-journal", "--json", path).out) for k in e["entries"] if k.get("btree") == "inodes"]
    found = [k for e in json_lines(kiln("list-journal", "--json", "-b", "inodes", path).out) for k in e["entries"]]
    assert found == keys
    pos = keys[0]["pos"]
    found = [k for e in json_lines(kiln("list-journal", "--json", "-b", "inodes", "-k", pos, path).out) for k in e["entries"]]
    assert found == [k for k in keys if k["pos"] == pos]
    text = kiln("list-journal", "-b", "inodes", "-k", pos, path).out
    assert len(re.findall("btree=inodes", text)) == len(found) and "log: " in text


def test_list_journal_tells_damaged_entries():
    if not has_image("corrupt/journal-middle-entry"):
        return
    r = kiln("list-journal", "--json", "-a", image("corrupt/journal-middle-entry"), status=DAMAGE)
    states = {e["seq"]: e["state"] for e in json_lines(r.out)}
    assert states[543] == "damaged" and "543" in r.err, r


def test_encrypted_filesystems_need_the_passphrase_but_for_the_superblock():
    for name in "v1.4-encrypted", "v1.39-encrypted", "small-encrypted":
        if not has_image(name):
            continue
        right, wrong = os.path.join(work.name, "right"), os.path.join(work.name, "wrong")
        for path, text in (right, manifest(name)["passphrase"]), (wrong, "not the passphrase"):
            with open(path, "w") as f:
                f.write(text + "\n")
        assert json.loads(kiln("show-super", "--json", image(name)).out)["encrypted"]
        for command in "list", "list-journal", "usage":
            assert "passphrase" in kiln(command, "--passphrase-file", wrong, image(name), status=FAILED).err
        assert json_lines(kiln("list", "-b", "inodes", "--json", "--passphrase-file", right, image(name)).out)
        journal = json_lines(kiln("list-journal", "-a", "--json", "--passphrase-file", right, image(name)).out)
        assert journal and all(e["checksum_good"] for e in journal)


def test_missing_members_are_tolerated_where_that_makes_sense():
    name = first_image("v1.4-replicas2", "small-zstd-replicas2")
    if not name:
        return
    first = image(name).split(":")[0]
    assert "1 of the filesystem's 2 devices wasn't given or found: device 1 (" in kiln("list", first, status=FAILED).err
    assert kiln("list", "--degraded", first).out == kiln("list", image(name)).out
    u = json.loads(kiln("usage", "--json", "--degraded", first).out)
    assert [d["path"] for d in u["devices"]] == [first, None]
    assert "(device not found)" in kiln("usage", "--degraded", first).out


# --- usage ---

def test_usage_adds_up():
    for name in ("v1.4-small", "v1.4-tiers", "v1.4-ec", "v1.4-unclean", "v1.39-default", "v1.20-unclean", "v1.4-snapshots",
                 "v1.4-unclean-snapshots", "v1.39-casefold", "small-zstd-replicas2"):
        if not has_image(name):
            continue
        u = json.loads(kiln("usage", "--json", image(name)).out)
        assert u["is_known"] and u["capacity"] > u["used"] > u["hidden"] > 0, name
        assert len(u["devices"]) == len(image(name).split(":"))
        for d in u["devices"]:
            assert d["capacity"] == d["buckets"] * d["bucket_bytes"]
            assert sum(t["buckets"] for t in d["types"].values()) == d["buckets"], "%s %s" % (name, d)
        text = kiln("usage", image(name)).out
        assert re.search(r"^Size: +%d$" % u["capacity"], text, re.M) and re.search(r"^Used: +%d$" % u["used"], text, re.M)
        assert len(re.findall(r"\(device \d+\):", text)) == len(u["devices"])


def test_usage_keeps_its_columns():
    if not has_image("v1.4-tiers"):
        return
    text = kiln("usage", "-h", image("v1.4-tiers")).out.split("\n")
    assert all(len(line) == 36 for line in text[1:4]), text[1:4]
    table = text.index("Data type       Required/total  Durability    Devices")
    assert re.match(r".{16}\d+/\d+ ", text[table + 1])
    assert any(re.match(r"^  capacity:.{23}iB .{15}$", line) for line in text), text
    labels = [line.split(" (")[0] for line in text if "(device " in line]
    assert labels == sorted(labels) and "hdd.big.hdd2" in labels


# --- all commands ---

def test_closed_pipe_ends_quietly():
    name = first_image("v1.4-small", "v1.4-snapshots")
    if not name:
        return
    for args in ["list", "-b", "all"], ["list", "-b", "all", "--json"], ["list-journal", "-a"], ["show-super"], ["show-super", "--json"], ["usage"]:
        end, begin = os.pipe()
        os.close(end)
        p = subprocess.run([KILN, *args, image(name)], stdout=begin, stderr=subprocess.PIPE,
                           preexec_fn=lambda: signal.signal(signal.SIGPIPE, signal.SIG_DFL))
        os.close(begin)
        assert p.returncode == FAILED and not p.stderr, "%s: %d %s" % (args, p.returncode, p.stderr)


def test_full_disk_is_an_error_with_a_message():
    name = first_image("v1.4-small", "v1.4-snapshots")
    if not name or not os.path.exists("/dev/full"):
        return
    for args in ["list"], ["show-super", "--json"], ["usage"]:
        with open("/dev/full", "w") as full:
            p = subprocess.run([KILN, *args, image(name)], stdout=full, stderr=subprocess.PIPE)
        assert p.returncode == FAILED and b"No space left" in p.stderr, "%s: %d %s" % (args, p.returncode, p.stderr)


def test_truncated_images_never_crash():
    name = first_image("v1.4-small", "v1.4-snapshots")
    if not name:
        return
    size = os.path.getsize(image(name))
    for length in (4608, 3 << 20) if QUICK else (512, 4096, 4608, 5000, 8192, 1 << 20, 3 << 20, 5 << 20, size - 512):
        copy = sparse_copy(image(name))
        os.truncate(copy, length)
        for args in ["show-super"], ["list", "-b", "all"], ["list-journal", "-a"], ["usage", "--json"]:
            r = kiln(*args, copy, status=(OK, FAILED, DAMAGE))
            assert r.status == OK or r.err.startswith("kiln: "), r
        os.unlink(copy)


def test_random_damage_never_crashes():
    for name in {first_image("v1.4-small", "v1.4-snapshots"), first_image("v1.39-unclean", "v1.39-casefold")} - {None}:
        base = image(name)
        extents = [(m, 16 << 10) for m in (4096, 4096, 2 << 20, 4 << 20, 5 << 20, 6 << 20)]
        for trial in range(1 if QUICK else 4):
            rng = random.Random("%d %s %d" % (SEED, name, trial))
            copy = sparse_copy(base)
            with open(copy, "r+b") as f:
                for start, length in extents:
                    for _ in range(4):
                        f.seek(start + rng.randrange(length))
                        f.write(rng.randbytes(rng.choice([1, 2, 8])))
            for args in (["show-super", "-l", "-f", "all"], ["show-super", "--json"], ["list", "-b", "all", "--json"],
                         ["list", "-b", "all", "-m", "nodes"], ["list-journal", "-a"], ["list-journal", "-a", "--json"], ["usage"]):
                r = kiln(*args, copy, status=(OK, FAILED, DAMAGE))
                if "--json" in args and r.status != FAILED:
                    parse = json.loads if args[0] == "show-super" else json_lines
                    parse(r.out)
            os.unlink(copy)


def test_own_images_are_readable_by_all_commands():
    for name in filter(has_image, own_images()):
        sb = json.loads(kiln("show-super", "--json", image(name)).out)
        extra = []
        if sb["encrypted"]:
            extra = ["--passphrase-file", os.path.join(work.name, "own-passphrase")]
            with open(extra[1], "w") as f:
                f.write(manifest(name)["passphrase"] + "\n")
        assert json_lines(kiln("list", "-b", "all", "--json", *extra, image(name)).out), name
        assert json_lines(kiln("list-journal", "-a", "--json", *extra, image(name)).out), name
        assert json.loads(kiln("usage", "--json", *extra, image(name)).out)["devices"], name


def main():
    global found_nr
    needs_no_image = [test_wrong_arguments_are_a_usage_error, test_help_names_every_option,
                      test_files_that_hold_no_filesystem_are_refused_with_a_reason]
    tests = [f for name, f in globals().items() if name.startswith("test_") and (len(sys.argv) < 3 or sys.argv[2] in name)]
    failed, skipped = [], []
    for test in tests:
        found_nr = 0
        try:
            test()
        except (AssertionError, KeyError, ValueError, IndexError, TypeError) as e:
            failed.append(test.__name__)
            print("FAIL %s: %s: %s" % (test.__name__, type(e).__name__, e), flush=True)
            continue
        if not found_nr and test not in needs_no_image:
            skipped.append(test.__name__)
        print(("skip " if test.__name__ in skipped else "ok   ") + test.__name__, flush=True)
    if failed:
        print("%d failed; random damage is that of KILN_TEST_SEED=%d. Repeat one: %s %s %s" %
              (len(failed), SEED, sys.argv[0], KILN, failed[0]))
        return 1
    if skipped:
        print("SKIP: %d of %d tests found none of their images in %s or %s" % (len(skipped), len(tests), FIXTURES, IMAGES))
    return 77 if len(skipped) + len(needs_no_image) >= len(tests) > len(needs_no_image) else 0


if __name__ == "__main__":
    sys.exit(main())
