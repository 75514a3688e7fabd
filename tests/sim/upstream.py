#!/usr/bin/env python3
"""Upstream's fsck on what the simulator's workload left.

    upstream.py SIM [FIRST-LAST] [ARGUMENT...]

For each seed the simulator runs its workload, closes cleanly and writes its disks to files; then $KILN_UPSTREAM
`fsck -n` must exit 0 and say nothing but the names of its passes. Skipped (exit 77) where KILN_UPSTREAM isn't set.
"""
import os
import re
import subprocess
import sys
import tempfile

USUAL = re.compile(
    r"^(mounting version [0-9.]+: [a-z_]+ opts=.*"
    r"|recovering from (clean shutdown, journal seq [0-9]+|unclean shutdown)"
    r"|journal read done, replaying entries [0-9]+-[0-9]+|going read-write|[a-z_]+\.\.\. done|starting journal read"
    r"|journal read done on device .*, ret 0|Journal keys: .*|(going read-only|finished waiting for writes to stop"
    r"|flushing journal and stopping allocators.*|marking filesystem clean|done starting filesystem|shutting down"
    r"|shutdown complete)"
    # An entry that a power cut tore, long before it was closed cleanly: all of the ring is read, and this is no error.
    r"|.*: journal checksum error: got [0-9a-f]+ should be [0-9a-f]+ type [a-z0-9_]+|)$")


def judge(upstream, images):
    """What it has to say, or None."""
    try:
        run = subprocess.run([upstream, "fsck", "-n", *images], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT, timeout=300)
    except subprocess.TimeoutExpired:
        return "timed out"
    lines = run.stdout.decode(errors="replace").splitlines()
    odd = [line for line in lines if not USUAL.match(line)]
    if "delete_dead_inodes... done" not in lines:
        odd.append("(it did not reach the end of its passes)")
    return f"exit {run.returncode}\n" + "\n".join(odd[:20]) if run.returncode or odd else None


def main():
    sim = sys.argv[1]
    first, _, last = (sys.argv[2] if len(sys.argv) > 2 else "1-3").partition("-")
    arguments = sys.argv[3:] or ["--only", "clean,cut"]
    upstream = os.environ.get("KILN_UPSTREAM")
    if not upstream:
        print("SKIPPED: KILN_UPSTREAM doesn't name upstream's tool")
        return 77
    failed = 0
    for seed in range(int(first), int(last or first) + 1):
        with tempfile.TemporaryDirectory() as scratch:
            command = [sim, "--seed", str(seed), "--no-shrink", "--export", scratch, *arguments]
            if subprocess.run(command).returncode:
                failed += 1
                continue
            images = sorted(os.path.join(scratch, name) for name in os.listdir(scratch))
            complaint = judge(upstream, images)
            print(f"upstream on seed {seed}: {complaint or 'silent'}", flush=True)
            if complaint:
                print("  repeat: " + " ".join(command))
                failed += 1
    return 1 if failed else 0


sys.exit(main())
