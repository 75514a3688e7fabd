"""Packed filesystem images: where they are, unpacking them, damaging them.

A folder of images holds NAME.img.zst (or NAME.dev0.img.zst, NAME.dev1.img.zst, ...), NAME.manifest.json.zst, and
corrupt/NAME.json: a base image and edits to it. tests/images is one; $KILN_FIXTURES (default: shared/fixtures beside the
repository) is a larger one that may not be there.
"""
import contextlib
import glob
import hashlib
import json
import os
import shutil
import subprocess
import tempfile

REPOSITORY = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def folders():
    """The folders of images that are present, the small one first."""
    large = os.environ.get("KILN_FIXTURES") or os.path.join(REPOSITORY, "..", "shared", "fixtures")
    return [f for f in (os.path.join(REPOSITORY, "tests", "images"), large) if os.path.isdir(f)]


def names(folder):
    """Names of the good images of a folder."""
    packed = glob.glob(os.path.join(folder, "*.img.zst"))
    return sorted({os.path.basename(p)[: -len(".img.zst")].rsplit(".dev", 1)[0] for p in packed})


def damaged_names(folder):
    """Names of the damaged variants of a folder, without corrupt/."""
    return sorted(os.path.basename(p)[: -len(".json")] for p in glob.glob(os.path.join(folder, "corrupt", "*.json")))


def manifest(folder, name):
    path = os.path.join(folder, name + ".manifest.json.zst")
    return json.loads(subprocess.run(["zstd", "-dcq", path], check=True, stdout=subprocess.PIPE).stdout)


def damage(folder, name):
    """The description of a damaged variant."""
    with open(os.path.join(folder, "corrupt", name + ".json")) as f:
        return json.load(f)


def sha256(path):
    h = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            h.update(block)
    return h.hexdigest()


def fingerprint(path):
    """Hash of what is in a sparse file and where, quicker than sha256() of all its zeroes."""
    h = hashlib.sha256()
    size = os.path.getsize(path)
    with open(path, "rb", buffering=0) as f:
        end = 0
        while end < size:
            try:
                start = os.lseek(f.fileno(), end, os.SEEK_DATA)
            except OSError:  # only a hole is left
                break
            end = os.lseek(f.fileno(), start, os.SEEK_HOLE)
            h.update(b"%d-%d:" % (start, end))
            for at in range(start, end, 1 << 20):
                h.update(os.pread(f.fileno(), min(1 << 20, end - at), at))
    return "%d:%s" % (size, h.hexdigest())


def unpack(folder, name, to):
    """Unpack a good image into @to. Returns the paths of its devices."""
    packed = sorted(glob.glob(os.path.join(glob.escape(folder), name + ".img.zst"))
                    or glob.glob(os.path.join(glob.escape(folder), name + ".dev*.img.zst")))
    if not packed:
        raise FileNotFoundError("no image %s in %s" % (name, folder))
    devices = []
    for p in packed:
        devices.append(os.path.join(to, os.path.basename(p)[: -len(".zst")]))
        subprocess.run(["zstd", "-dqf", "--sparse", "--long=31", p, "-o", devices[-1]], check=True)
        os.chmod(devices[-1], 0o600)  # zstd hands the packed file's mode on
    return devices


def edit(devices, edits):
    """Apply edits of a damaged variant. Returns the devices that are left."""
    left = list(devices)
    for e in edits:
        path = devices[e["device"]]
        if e.get("remove"):
            os.unlink(path)
            left.remove(path)
        elif "truncate" in e:
            os.truncate(path, e["truncate"])
        else:
            with open(path, "r+b") as f:
                f.seek(e["offset"])
                if "zero" in e:
                    f.write(bytes(e["zero"]))
                else:
                    mask = bytes.fromhex(e["xor"])
                    old = f.read(len(mask))
                    f.seek(e["offset"])
                    f.write(bytes(a ^ b for a, b in zip(old, mask)))
    return left


def unpack_damaged(folder, name, to):
    """Unpack a damaged variant. Returns the paths of the devices it has."""
    d = damage(folder, name)
    devices = unpack(folder, d["base"], to)
    for path, want in zip(devices, d["base_sha256"].values()):
        if sha256(path) != want:
            raise ValueError("%s: its base image %s is another one than it was made for" % (name, d["base"]))
    return edit(devices, d["edits"])


def temporary_folder():
    """$TMPDIR, or memory where there is enough of it: unpacked images are sparse, a few MiB each."""
    if "TMPDIR" in os.environ or not os.access("/dev/shm", os.W_OK):
        return None
    return "/dev/shm" if shutil.disk_usage("/dev/shm").free > 1 << 30 else None


@contextlib.contextmanager
def temporary():
    """A folder for unpacked images, removed in the end."""
    path = tempfile.mkdtemp(prefix="kiln-test-", dir=temporary_folder())
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
