"""Packed filesystem images: where they are, unpacking them, damaging them.

A folder of images holds NAME.img.zst (or NAME.dev0.img.zst, NAME.dev1.img.zst, ...), NAME.manifest.json.zst, and
corrupt/NAME.json: a base image and edits to it. tests/images is one; $KILN_FIXTURES (default: shared/fixtures beside the
repository) is a larger one that may not be there.

Most of the time that tests of images took was unpacking, so with $KILN_TEST_CACHE, a folder (meson sets it), each
image is unpacked into it once and copied from there: names hold the hash of what was unpacked, nobody writes there
again, and tests that run at the same time wait for each other. It grows as large as the images are, 0.5 GB, and can be
removed at any time.
"""
import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import os
import shutil
import subprocess
import tempfile

CACHE = os.environ.get("KILN_TEST_CACHE")
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


def unpack_one(packed, to):
    subprocess.run(["zstd", "-dqf", "--sparse", "--long=31", packed, "-o", to], check=True)
    os.chmod(to, 0o600)  # zstd hands the packed file's mode on


def copy_sparse(source, to):
    with open(source, "rb", buffering=0) as f, open(to, "wb", buffering=0) as t:
        size, end = os.fstat(f.fileno()).st_size, 0
        t.truncate(size)
        while end < size:
            try:
                start = os.lseek(f.fileno(), end, os.SEEK_DATA)
            except OSError as e:
                if e.errno == errno.ENXIO:  # only a hole is left
                    break
                raise
            end = os.lseek(f.fileno(), start, os.SEEK_HOLE)
            os.lseek(f.fileno(), start, os.SEEK_SET)
            os.lseek(t.fileno(), start, os.SEEK_SET)
            while (left := end - f.tell()) > 0:
                t.write(f.read(min(left, 1 << 20)))


def cached(packed):
    """The unpacked copy of an image that all tests share, made if need be. Only to be read."""
    os.makedirs(CACHE, exist_ok=True)
    path = os.path.join(CACHE, "%s.%s" % (os.path.basename(packed)[: -len(".zst")], sha256(packed)[:16]))
    with open(path + ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.path.exists(path):
            unpack_one(packed, path + ".part")
            os.rename(path + ".part", path)
    return path


def packed_devices(folder, name):
    packed = sorted(glob.glob(os.path.join(glob.escape(folder), name + ".img.zst"))
                    or glob.glob(os.path.join(glob.escape(folder), name + ".dev*.img.zst")))
    if not packed:
        raise FileNotFoundError("no image %s in %s" % (name, folder))
    return packed


def unpack(folder, name, to):
    """Unpack a good image into @to. Returns the paths of its devices."""
    devices = []
    for packed in packed_devices(folder, name):
        devices.append(os.path.join(to, os.path.basename(packed)[: -len(".zst")]))
        if CACHE:
            copy_sparse(cached(packed), devices[-1])
        else:
            unpack_one(packed, devices[-1])
    return devices


def unpacked_sha256(packed, device):
    """Hash of an image that was unpacked to @device: kept beside the shared copy, zeroes take long."""
    if not CACHE:
        return sha256(device)
    path = cached(packed) + ".sha256"
    if not os.path.exists(path):
        with tempfile.NamedTemporaryFile("w", dir=CACHE, delete=False) as f:
            f.write(sha256(device))
        os.rename(f.name, path)
    with open(path) as f:
        return f.read()


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
    for packed, path, want in zip(packed_devices(folder, d["base"]), devices, d["base_sha256"].values()):
        if unpacked_sha256(packed, path) != want:
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
