#!/usr/bin/env python3
"""Every error that the checker can report is injected: by a row of rows.inc, or by name in a test.

    test_rows.py ROOT

What it can report are the names of ids in its sources, and all of check_errors.inc.
"""
import pathlib
import re
import sys

ROOT = pathlib.Path(sys.argv[1])


def text(pattern):
    return "".join(p.read_text() for p in sorted(ROOT.glob(pattern)))


reported = set(re.findall(r"\bERROR_([a-z]\w+)", text("src/recovery/check*.c")))
reported |= set(re.findall(r"^X\((\w+),", text("src/recovery/check_errors.inc"), re.M))
injected = set(re.findall(r"\b[EO]\((\w+)\)", text("tests/recovery/rows.inc")))
injected |= set(re.findall(r"\b(?:ERROR|CHECK)_([a-z]\w+)", text("tests/recovery/test_check.c")))

missing = sorted(reported - injected)
for name in missing:
    print("nothing injects %s: it needs a row in tests/recovery/rows.inc" % name)
print("%d errors" % len(reported))
sys.exit(bool(missing))
