#!/usr/bin/env python3
"""Seeds that once found a bug are run again.

    past.py SIM [--quick]

What a seed does changes with every draw that is added to the simulator, so a seed is not what keeps its bug away: that is
a test of its own, which failed before, and whose name stands with the seed here. The seeds themselves stay for their filesystems
(small, full, of several disks, ...) and as a record of what was found. Add whatever failed in `make sim` or the soak, as it was
printed; --quick leaves out those that take seconds.
"""
import os
import re
import subprocess
import sys

LONG = True

# (the arguments, what it found, the test that keeps it away, whether it takes long)
SEEDS = [
    ("--seed 1", "locks were taken in the order of addresses: another schedule with each compiler", "sim-same-again"),
    ("--seed 5 --only cut,full", "a hole that there was no space to zero was told as copied", "a_hole_is_not_copied_where_there_is_no_space"),
    ("--seed 5 --ops 40 --only cut", "fsync after an overwrite in place, where copygc had just moved the data to, wasn't durable",
     "what_is_overwritten_where_it_was_moved_to_is_durable"),
    # Without a test of its own: it takes a flush between two steps of the writer. Each clean shutdown of the simulator may meet it.
    ("--seed 3046", "a clean shutdown waited for ever for the pins of an update that was being counted", None),
    # Without a test of its own: it takes a deletion that waits for a device while two wait for it.
    ("--seed 6344", "two tasks that waited for deletions woke each other for ever", None),
    ("--seed 10000004 --ops 10 --episodes 1 --only cut --cut-at 139,6", "the power went while the only good superblock of a disk was written",
     "copies_that_an_update_tore_are_made_whole_before_the_primary_is_written"),
    ("--seed 31000007 --ops 10 --episodes 1 --only cut --cut-at 42,217", "flush entries torn by two power cuts, one after the other, were called damage",
     "entries_torn_by_two_power_cuts_are_passed_over_in_silence"),
    ("--seed 1146", "with a failed device and data_replicas_required, writes said -EROFS, which wasn't promised",
     "a_write_with_less_copies_than_required_fails"),
    ("--seed 1265", "data on a device whose flush failed before the key was committed was acknowledged, and lost",
     "data_that_no_flush_covers_is_not_acknowledged"),
    ("--seed 1244", "-ENOSPC although there was space", "places_for_nodes_are_given_up_for_data"),
    ("--seed 1196", "-ENOSPC although there was space", "places_for_nodes_are_given_up_for_data", LONG),
    ("--seed 180", "a full, compressed filesystem took a minute of processor time for one write", None, LONG),
]


def tests():
    here = os.path.dirname(os.path.realpath(__file__))
    names = {"sim-same-again"}
    for at, _, files in os.walk(os.path.join(here, "..")):
        for name in files:
            if name.endswith(".c"):
                with open(os.path.join(at, name)) as f:
                    names.update(re.findall(r"cmocka_unit_test\w*\((\w+)", f.read()))
    return names


def main():
    failed, known = 0, tests()
    for arguments, found, test, *length in SEEDS:
        if test and test not in known:
            print("%s: there is no test %s" % (arguments, test))
            failed += 1
        if length and "--quick" in sys.argv:
            continue
        run = subprocess.run([sys.argv[1], "--no-shrink"] + arguments.split(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        print("%s %s (%s)" % ("not ok" if run.returncode else "ok", arguments, found), flush=True)
        if run.returncode:
            print(run.stdout.decode(errors="replace"))
            failed += 1
    return failed != 0


sys.exit(main())
