"""Packed filesystem images: where they are, unpacking them, damaging them.

A folder of images holds NAME.img.zst (or NAME.dev0.img.zst, NAME.dev1.img.zst, ...), NAME.manifest.json.zst, and
corrupt/NAME.json: a base image and edits to it. tests/images is one; $KILN_FIXTURES (default: shared/fixtures beside the
repository) is a larger one that may not be there.

Most of the time that tests of images took was unpacking, so with $KILN_TEST_CACHE, a folder (meson sets it), each
image is unpacked into it once and copied or read there: names hold the hash of what was unpacked, nobody writes there
again, and tests that run at the same time wait for each other. It grows as large as the images are, 0.5 GB, and can be
removed at any time.
"""
import contextlib
import ctypes
import errno
import fcntl
import functools
import glob
import hashlib
import json
import mmap
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
    h, block = hashlib.sha256(), memoryview(bytearray(1 << 18))
    with open(path, "rb", buffering=0) as f:
        while length := f.readinto(block):
            h.update(block[:length])
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


class Buffer(ctypes.Structure):
    """ZSTD_inBuffer and ZSTD_outBuffer."""
    _fields_ = [("start", ctypes.c_void_p), ("size", ctypes.c_size_t), ("pos", ctypes.c_size_t)]


@functools.cache
def libraries():
    """libzstd and libc."""
    zstd, libc = ctypes.CDLL("libzstd.so.1"), ctypes.CDLL(None)
    zstd.ZSTD_createDStream.restype = ctypes.c_void_p
    zstd.ZSTD_freeDStream.argtypes = [ctypes.c_void_p]
    zstd.ZSTD_DCtx_setParameter.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int]
    zstd.ZSTD_getErrorName.restype = ctypes.c_char_p
    zstd.ZSTD_getFrameContentSize.restype = ctypes.c_ulonglong
    zstd.ZSTD_getFrameContentSize.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
    zstd.ZSTD_decompressStream.argtypes = [ctypes.c_void_p, ctypes.POINTER(Buffer), ctypes.POINTER(Buffer)]
    for function in (zstd.ZSTD_DCtx_setParameter, zstd.ZSTD_decompressStream):
        function.restype = ctypes.c_size_t
        function.errcheck = zstd_check
    libc.memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return zstd, libc


def zstd_check(result, function, _):
    zstd = libraries()[0]
    if zstd.ZSTD_isError(ctypes.c_size_t(result)):
        raise ValueError("%s: %s" % (function.__name__, zstd.ZSTD_getErrorName(ctypes.c_size_t(result)).decode()))
    return result


ZSTD_D_WINDOW_LOG_MAX, ZSTD_D_STABLE_OUT_BUFFER = 100, 1001
STEP, PAGE = 128 << 10, 4096


def unpack_one(packed, to):
    """
    What `zstd -d --sparse` does, in a tenth of the memory. An image is one frame, and how far it refers back is the image's
    size: zstd keeps all of that, and where virtual machines get their memory page by page, as they touch it, the zeroes cost
    far more than the unpacking. Here what it refers to is the output itself, and zeroes are given back at once.
    """
    zstd, libc = libraries()
    with open(packed, "rb") as f:
        data = f.read()
    size = zstd.ZSTD_getFrameContentSize(data, len(data))
    if size >= 1 << 40:  # not known, or no frame
        raise ValueError("%s: a frame that tells its size is needed" % packed)
    zeroes = ctypes.create_string_buffer(STEP)
    stream = zstd.ZSTD_createDStream()
    with open(to, "wb", buffering=0) as f, mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as out:
        os.chmod(to, 0o600)
        f.truncate(size)
        start = ctypes.addressof(ctypes.c_char.from_buffer(out))
        source = Buffer(ctypes.cast(data, ctypes.c_void_p), 0, 0)
        target = Buffer(start, size, 0)
        zstd.ZSTD_DCtx_setParameter(stream, ZSTD_D_WINDOW_LOG_MAX, 31)
        zstd.ZSTD_DCtx_setParameter(stream, ZSTD_D_STABLE_OUT_BUFFER, 1)
        done, wanted = 0, 5
        while wanted:
            if source.pos == len(data):
                raise ValueError("%s: it ends too early" % packed)
            source.size = min(source.pos + wanted, len(data))  # one block: given all of it, zstd writes all at once
            wanted = zstd.ZSTD_decompressStream(stream, target, source)
            while target.pos - done >= STEP or not wanted and done < target.pos:
                end = min(done + STEP, target.pos)
                if not libc.memcmp(start + done, zeroes, end - done):
                    libc.madvise(start + done, end - done, mmap.MADV_DONTNEED)
                    done = end
                while done < end:
                    length = min(PAGE, end - done)
                    if libc.memcmp(start + done, zeroes, length):
                        os.pwrite(f.fileno(), out[done:done + length], done)
                    done += length
    zstd.ZSTD_freeDStream(stream)


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


def made_once(path, make):
    """@path, made by make(path to make) if nobody has made it yet."""
    with open(path + ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.path.exists(path):
            make(path + ".part")
            os.rename(path + ".part", path)
    return path


def cached(packed):
    """The unpacked copy of an image that all tests share, made if need be. Nobody may write to it; that root did shows in its time."""
    def make(path):
        unpack_one(packed, path)
        os.chmod(path, 0o444)
        os.utime(path, (0, 0))

    os.makedirs(CACHE, exist_ok=True)
    name = "%s.%s.shared" % (os.path.basename(packed)[: -len(".zst")], sha256(packed)[:16])
    path = made_once(os.path.join(CACHE, name), make)
    if os.stat(path).st_mtime:
        raise ValueError("%s: some test has written to what all share; remove it" % path)
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


def unpack_to_read(folder, name, to):
    """Like unpack(), for who certainly only reads: the paths lead to what all share."""
    if not CACHE:
        return unpack(folder, name, to)
    devices = []
    for packed in packed_devices(folder, name):
        devices.append(os.path.join(to, os.path.basename(packed)[: -len(".zst")]))
        os.symlink(cached(packed), devices[-1])
    return devices


def unpacked_sha256(packed, device):
    """Hash of an image that was unpacked to @device: kept beside the shared copy, zeroes take long."""
    if not CACHE:
        return sha256(device)

    def make(path):
        with open(path, "w") as f:
            f.write(sha256(device))

    with open(made_once(cached(packed) + ".sha256", make)) as f:
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
