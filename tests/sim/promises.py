#!/usr/bin/env python3
"""Does docs/promises.md say what is checked? Each check that it names exists, and each kind of episode is named there."""
import os
import re
import sys

ROOT = os.path.join(os.path.dirname(os.path.realpath(__file__)), "../..")


def text(path):
    with open(os.path.join(ROOT, path)) as f:
        return f.read()


def checks_named(promises):
    """What stands in the last column of tables, and from "Check" to the end of the paragraph."""
    for part in re.findall(r"\|([^|\n]*)\|\n", promises) + re.findall(r"\b[Cc]hecks?:\s((?:.|\n)*?)(?:\n\n|\n- |$)", promises):
        yield from re.findall(r"`([^`]+)`", part)


episodes = re.findall(r'\[EPISODE_\w+\] = "([\w-]+)"', text("tests/sim/episode.c"))
options = ["--" + name for name in re.findall(r'\{ "([\w-]+)", (?:no|required)_argument', text("tests/sim/sim.c"))]
tests = set()
for at, _, names in os.walk(os.path.join(ROOT, "tests")):
    for name in names:
        if name.endswith(".c"):
            tests.update(re.findall(r"cmocka_unit_test\w*\((\w+)", text(os.path.join(at, name))))

named = set(checks_named(text("docs/promises.md")))
wrong = ["%s is no check" % name for name in sorted(named)
         if name.split()[0] not in episodes + options and name not in tests and not os.path.exists(os.path.join(ROOT, name))]
wrong += ["nothing is promised for %s" % name for name in episodes if name not in named]
print("%d checks named, of them %d of %d kinds of episodes" % (len(named), len(named & set(episodes)), len(episodes)))
for line in wrong:
    print(line)
sys.exit(bool(wrong) or not episodes or not tests)
