"""Runs test cases, a few at a time, and reports as TAP (the Test Anything Protocol), which meson reads.

A case is a function that raises AssertionError (or anything) when its promise is broken, and Skip when it can't be
checked here.
"""
import concurrent.futures
import os
import random
import sys
import time
import traceback

LONG_SECONDS = 3  # what takes so long is told


WAIT_S = 60


def wait_until(what, condition):
    """Fails only after so long that nothing can be meant to take it."""
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, "still not %s after %d s" % (what, WAIT_S)
        time.sleep(0.02)


class Skip(Exception):
    pass


def seeds():
    """Seeds that cases take in turns: one that is always the same and a random one, or those of $KILN_TEST_SEED."""
    text = os.environ.get("KILN_TEST_SEED") or "1,%d" % random.randrange(2, 1 << 31)
    print("# KILN_TEST_SEED=%s" % text)
    return [int(seed) for seed in text.split(",")]


def run(cases, workers=2):
    """cases: list of (name, function). KILN_TEST_ONLY, if set, is a text that the names to run have in them."""
    only = os.environ.get("KILN_TEST_ONLY", "")
    cases = [(n, f) for n, f in cases if only in n]
    if not cases:
        print("1..0 # SKIP no images")
        return 0
    print("1..%d" % len(cases))
    failed = 0

    def call(function):
        begin = time.monotonic()
        try:
            function()
            took = time.monotonic() - begin
            return "ok", "", ["%.0f s" % took] if took >= LONG_SECONDS else []
        except Skip as e:
            return "ok", " # SKIP %s" % e, []
        except AssertionError as e:
            return "not ok", "", str(e).splitlines() or traceback.format_exc().splitlines()
        except Exception:
            return "not ok", "", traceback.format_exc().splitlines()

    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        for nr, ((name, _), (result, skip, lines)) in enumerate(zip(cases, pool.map(call, [f for _, f in cases])), 1):
            print("%s %d - %s%s" % (result, nr, name, skip))
            for line in lines[:40]:
                print("# " + line[:1000])
            sys.stdout.flush()
            if result != "ok":  # meson shows what fails from here
                print("\n".join(["not ok - " + name] + ["# " + line[:1000] for line in lines[:40]]), file=sys.stderr)
            failed += result != "ok"
    return 1 if failed else 0


def same(what, lines):
    """Assert that a list of differences is empty."""
    if lines:
        raise AssertionError("%s: %d differences\n%s" % (what, len(lines), "\n".join(lines[:10])))
