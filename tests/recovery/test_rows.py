#!/usr/bin/env python3
"""Every error that the checker can report is injected: by a row of rows.inc, or by name in a test.

    test_rows.py ROOT

What it can report are the names of ids in its sources, and all of check_errors.inc.
"""
import pathlib
import re
import sys

ROOT = pathlib.Path(sys.argv[1])

# Seen by another test, or not injected yet: then it says so.
WITHOUT = {
    "quota_usage_wrong": "tests/engine/test_quota.c counts the reports of its pass",
    "btree_root_bad_min_key": "the btrees refuse such a root: the checker reports btree_root_read_error",
    "btree_root_bad_max_key": "the same",
    "btree_node_bad_bkey": "not injected yet: most bad keys have an id of their own",
    "btree_node_data_missing": "not injected yet into the checker; tests/btree/test_damage.c has the reader's",
    "btree_node_read_error": "not injected yet: it needs a tree of two levels with a damaged leaf",
    "btree_node_topology_interior_node_empty": "not injected yet: it needs a node that lost all children",
    "journal_entries_missing": "not injected yet: it needs an unclean image with a hole in its journal",
    "journal_last_seq_decreases": "not injected yet: it needs a journal entry that is sealed again",
    "node_replica_damaged": "not injected yet: it needs a device that fails to read",
    "sb_clean_missing": "not injected yet: it needs a last journal entry without a clean section",
}


def text(pattern):
    return "".join(p.read_text() for p in sorted(ROOT.glob(pattern)))


reported = set(re.findall(r"\bERROR_([a-z]\w+)", text("src/recovery/check*.c")))
reported |= set(re.findall(r"^X\((\w+),", text("src/recovery/check_errors.inc"), re.M))
injected = set(re.findall(r"\b[EO]\((\w+)\)", text("tests/recovery/rows.inc")))
injected |= set(re.findall(r"\b(?:ERROR|CHECK)_([a-z]\w+)", text("tests/recovery/test_check.c")))

missing = sorted(reported - injected - set(WITHOUT))
stale = sorted(name for name in WITHOUT if name in injected or name not in reported)
for name in missing:
    print("nothing injects %s: it needs a row in tests/recovery/rows.inc" % name)
for name in stale:
    print("%s is injected, or can't be reported: it needs no exception" % name)
print("%d errors, %d without a test, for a reason" % (len(reported), len(WITHOUT)))
sys.exit(bool(missing or stale))
