"""The ways into a filesystem that the image tests go, each giving entries as manifests have them.

The library (through read_tree.c), `kiln get -r`, and a read-only mount.
"""
import json
import os
import subprocess

import images
import manifest
import tap


def run(args, **more):
    """Run to the end; a crash or a message of a sanitizer fails the test."""
    p = subprocess.run(args, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)
    err = p.stderr.decode("utf-8", "backslashreplace")
    assert p.returncode >= 0 and "Sanitizer" not in err and "runtime error" not in err, \
        "%s: status %d\n%s" % (" ".join(args), p.returncode, err[-3000:])
    return p.returncode, p.stdout, err


def umount(directory, command="umount"):
    """Whoever looks at it, and what another test has just started, holds it for a moment."""
    said = []

    def is_done():
        p = subprocess.run([*command.split(), directory], stderr=subprocess.PIPE, env={**os.environ, "LC_ALL": "C"})
        said[:] = [p.stderr.decode()]
        return p.returncode == 0 or "busy" not in said[0]

    tap.wait_until("unmounted", is_done)
    assert not said[0], said


def passphrase_options(folder, passphrase):
    """Options that give it, by way of a file in the folder; none if there is none."""
    if not passphrase:
        return []
    path = os.path.join(folder, "passphrase")
    with open(path, "w") as f:
        f.write(passphrase + "\n")
    return ["--passphrase-file", path]


class Unpacked:
    """An unpacked image: its devices, and whether they are still as they were."""

    def __init__(self, folder, name, to):
        self.head = None
        self.to = to
        if name.startswith("corrupt/"):
            name = name[len("corrupt/"):]
            self.head = images.manifest(folder, images.damage(folder, name)["base"])
            self.devices = images.unpack_damaged(folder, name, to)
        else:
            self.head = images.manifest(folder, name)
            self.devices = images.unpack(folder, name, to)
        self.before = self.fingerprints()

    def fingerprints(self):
        return {d: images.fingerprint(d) for d in self.devices}

    def assert_unchanged(self):
        after = self.fingerprints()
        assert after == self.before, "reading changed %s" % [d for d in after if after[d] != self.before[d]]

    def passphrase_options(self, passphrase=None):
        """Options that give the passphrase (the right one unless another is given); none if there is none."""
        return passphrase_options(self.to, passphrase or self.head.get("passphrase"))


def library(read_tree, devices, *options):
    """All that read_tree prints, as an object; "error" is in it when the filesystem didn't open."""
    status, out, err = run([read_tree, *options, ":".join(devices)])
    result = json.loads(out)
    assert (status == 0) == ("error" not in result), "status %d\n%s" % (status, err)
    return result


def get(kiln, devices, to, *options):
    """(exit status, standard error, entries) of everything extracted."""
    status, _, err = run([kiln, "get", "-r", *options, ":".join(devices), "/", to])
    return status, err, manifest.tree(to)


class Mount:
    """with Mount(...) as m: m.directory is the mounted filesystem, m.err what was said on the way."""

    def __init__(self, kiln, devices, directory, *options):
        self.directory = directory
        os.makedirs(directory, exist_ok=True)
        self.command = [kiln, "mount", "-o", "ro", *options, ":".join(devices), directory]

    def __enter__(self):
        self.status, _, self.err = run(self.command, timeout=60)
        assert self.status == 0, "%s: status %d\n%s" % (" ".join(self.command), self.status, self.err)
        return self

    def __exit__(self, *_):
        umount(self.directory)


def need_mount():
    if os.geteuid() or not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise tap.Skip("MOUNT NOT TESTED: needs root and /dev/fuse")
