#!/usr/bin/env python3
"""A seed gives the same disks, byte for byte, whichever build of the simulator it is given to.

    same.py SIM SIM [SEEDS]

Of two builds, or of one twice, the hashes of all disks and of all scheduling decisions must be equal, seed by seed. All that can go wrong is tried but allocations that fail: which one does is counted, and compilers and
sanitizers make and leave out some.
"""
import concurrent.futures
import subprocess
import sys


KINDS = ("clean,cut,read-errors,read-errors-lasting,write-errors,write-errors-lasting,flush-errors,"
         "flush-errors-lasting,slow,full,rot,lost-writes,misdirected-writes,vanish,foreign,rolled-back")


def hashes(sim, seeds):
    command = [sim, "--seeds", seeds, "--ops", "30", "--episodes", "4", "--only", KINDS, "--hash", "--no-shrink"]
    out = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout.decode(errors="replace")
    return [line for line in out.splitlines() if " disks " in line and " schedule " in line]


def main():
    low, _, high = (sys.argv[3] if len(sys.argv) > 3 else "1-2").partition("-")
    seeds = [str(seed) for seed in range(int(low), int(high or low) + 1)]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        second, first = ([pool.submit(hashes, sim, seed) for seed in seeds] for sim in (sys.argv[2], sys.argv[1]))
        first, second = (sum((run.result() for run in runs), []) for runs in (first, second))
    for a, b in zip(first, second):
        print(a if a == b else f"DIFFERENT: {a}\n           {b}")
    if first != second or len(first) != len(seeds):
        print(f"{len(first)} and {len(second)} seeds passed, and not all are the same")
        return 1
    return 0


sys.exit(main())
