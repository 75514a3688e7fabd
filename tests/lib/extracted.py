"""What the tests of get and tar share: running kiln, images to try it on, comparing what came out with a manifest."""
import os
import subprocess
import sys
import tempfile
import traceback

import images
import manifest

OK, FAILED, USAGE, DAMAGE = 0, 1, 2, 3
SKIPPED = 77
IS_ROOT = os.geteuid() == 0
HUGE_BYTES = 1 << 44

# Of the large folder of images, which is not always there, a few: formats, options, unclean ones.
SOME_LARGE = ["v1.4-default", "v1.39-default", "v1.4-unclean", "v1.4-encrypted", "v1.4-lz4", "v1.39-ec", "v1.36-snapshots"]


def scratch():
    """Work in memory, unless $TMPDIR says where: its filesystem takes all sizes, times and attributes there are."""
    if not os.environ.get("TMPDIR") and os.access("/dev/shm", os.W_OK):
        tempfile.tempdir = "/dev/shm"


def holds_huge_files(directory):
    with tempfile.TemporaryFile(dir=directory) as f:
        try:
            f.truncate(HUGE_BYTES * 8)
        except OSError:
            return False
    return True


def kiln(*args, status=OK, **options):
    """Run kiln. A crash, a sanitizer's message or another exit status than expected is a failure."""
    options = {"stdout": subprocess.PIPE, "stdin": subprocess.DEVNULL, **options}
    p = subprocess.run([os.path.abspath(sys.argv[1]), *args], stderr=subprocess.PIPE, **options)
    p.text = p.stderr.decode("utf-8", "surrogateescape")
    check_ended(p.args, p.returncode, p.text, status)
    return p


def check_ended(args, returncode, text, status):
    assert "Sanitizer" not in text and "runtime error" not in text, text
    assert returncode == status, "%s: exit status %d, not %d:\n%s" % (args, returncode, status, text[-2000:])


class Image:
    """An image, unpacked: the arguments that open it, and its manifest without what can't be the same elsewhere."""

    def __init__(self, folder, name, work):
        self.name = name
        self.work = tempfile.mkdtemp(dir=work)
        base = name
        if name.startswith("corrupt/"):
            base = images.damage(folder, name[len("corrupt/"):])["base"]
            devices = images.unpack_damaged(folder, name[len("corrupt/"):], self.work)
        else:
            devices = images.unpack(folder, name, self.work)
        self.head = images.manifest(folder, base)
        self.args = [":".join(devices)]
        if self.head.get("passphrase"):
            path = os.path.join(self.work, "passphrase")
            with open(path, "w") as f:
                f.write(self.head["passphrase"] + "\n")
            self.args = ["--passphrase-file", path] + self.args
        self.is_partial = bool(self.head.get("partial"))
        self.entries = comparable(self.head["entries"])

    def entry(self, path):
        return next(e for e in self.entries if e["path"] == path)

    def files(self, least=0):
        return [e for e in self.entries if e["type"] == "file" and e["size"] >= least]


def comparable(entries):
    """Entries without what is the filesystem's own: how it counts links of directories."""
    return [{k: v for k, v in e.items() if k != "nlink" or e["type"] != "dir"} for e in entries]


def has(name):
    """The folder that an image is in, or None."""
    for folder in images.folders():
        if name.startswith("corrupt/"):
            if name[len("corrupt/"):] in images.damaged_names(folder):
                return folder
        elif name in images.names(folder):
            return folder
    return None


def good_names():
    own = images.names(os.path.join(images.REPOSITORY, "tests", "images"))
    return own + [n for n in SOME_LARGE if n not in own and has(n)]


def differences(image, directory, without=()):
    """How a directory differs from an image's manifest; @without: paths left out."""
    left_out = set(without)
    if not holds_huge_files(directory):
        left_out |= {e["path"] for e in image.files(HUGE_BYTES)}
    ignore = () if IS_ROOT else ("uid", "gid", "mode", "xattrs", "nlink")
    want = [e for e in image.entries if e["path"] not in left_out]
    have = [e for e in comparable(manifest.tree(directory)) if e["path"] not in left_out]
    if not IS_ROOT:
        want = [e for e in want if e["type"] not in ("chr", "blk")]
    return manifest.differences(want, have, partial=image.is_partial, ignore=ignore)


def run_all(tests):
    """Run the functions of a test program, each with a directory of its own. Its exit status."""
    failed = 0
    wanted = sys.argv[2] if len(sys.argv) > 2 else ""
    if not good_names():
        print("no images in %s" % images.folders())
        return SKIPPED
    scratch()
    for test in [t for t in tests if wanted in t.__name__]:
        with images.temporary() as work:
            try:
                test(work)
                print("ok   %s" % test.__name__, flush=True)
            except Exception:
                failed += 1
                print("FAIL %s: %s" % (test.__name__, traceback.format_exc()), flush=True)
    return 1 if failed else 0
