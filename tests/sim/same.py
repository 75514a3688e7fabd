#!/usr/bin/env python3
"""A seed gives the same disks, byte for byte, whichever build of the simulator it is given to.

    same.py SIM SIM [SEEDS]

Of two builds, or of one twice, the hashes of all disks and of all scheduling decisions must be equal, seed by seed. All that can go wrong is tried but allocations that fail: which one does is counted, and compilers and
sanitizers make and leave out some.
"""
import subprocess
import sys


KINDS = ("clean,cut,read-errors,read-errors-lasting,write-errors,write-errors-lasting,flush-errors,"
         "flush-errors-lasting,slow,full,rot,lost-writes,misdirected-writes,vanish,foreign")


def hashes(sim, seeds):
    command = [sim, "--seeds", seeds, "--ops", "30", "--episodes", "4", "--only", KINDS, "--hash", "--no-shrink"]
    out = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout.decode(errors="replace")
    return [line for line in out.splitlines() if " disks " in line and " schedule " in line]


def main():
    seeds = sys.argv[3] if len(sys.argv) > 3 else "1-2"
    first, second = hashes(sys.argv[1], seeds), hashes(sys.argv[2], seeds)
    for a, b in zip(first, second):
        print(a if a == b else f"DIFFERENT: {a}\n           {b}")
    if first != second or not first:
        print(f"{len(first)} and {len(second)} seeds passed, and not all are the same")
        return 1
    return 0


sys.exit(main())
