#!/usr/bin/env python3
"""Money moves between accounts of sqlite databases, in many small transactions; none gets lost, nor is any made.

    sqlite_transfers.py DIRECTORY SECONDS

Four processes on each of two databases, one with a rollback journal, one with a write-ahead log, both fully
synchronous. Every transaction is noted by its process once it is committed; the notes must all be in the database.
"""
import multiprocessing
import os
import random
import sqlite3
import sys
import time

ACCOUNTS, EACH, PROCESSES = 1000, 100, 4


def connect(path):
    db = sqlite3.connect(path, timeout=600, isolation_level=None)
    db.execute("pragma synchronous = full")
    return db


def work(path, process, end, done):
    rng = random.Random(process)
    db = connect(path)
    nr = 0
    while time.monotonic() < end:
        a, b = rng.sample(range(ACCOUNTS), 2)
        db.execute("begin immediate")
        db.execute("update account set balance = balance - 1 where id = ?", (a,))
        db.execute("update account set balance = balance + 1 where id = ?", (b,))
        db.execute("insert into note values (?, ?)", (process, nr))
        db.execute("commit")
        nr += 1
    done.put((process, nr))


def main():
    directory, seconds = sys.argv[1], float(sys.argv[2])
    runs, end = [], time.monotonic() + seconds
    for mode in ("delete", "wal"):
        path = os.path.join(directory, mode + ".db")
        db = connect(path)
        db.execute("pragma journal_mode = " + mode)
        db.execute("create table account (id integer primary key, balance integer)")
        db.execute("create table note (process integer, nr integer, primary key (process, nr))")
        db.execute("begin")
        db.executemany("insert into account values (?, ?)", [(i, EACH) for i in range(ACCOUNTS)])
        db.execute("commit")
        db.close()
        done = multiprocessing.Queue()
        processes = [multiprocessing.Process(target=work, args=(path, i, end, done)) for i in range(PROCESSES)]
        for p in processes:
            p.start()
        runs.append((mode, path, processes, done))
    for mode, path, processes, done in runs:
        counts = dict(done.get() for _ in processes)
        for p in processes:
            p.join()
        db = connect(path)
        assert db.execute("pragma integrity_check").fetchone() == ("ok",), mode
        assert db.execute("select sum(balance) from account").fetchone() == (ACCOUNTS * EACH,), mode
        for process, nr in counts.items():
            assert db.execute("select count(*) from note where process = ?", (process,)).fetchone() == (nr,), mode
        print("sqlite, %s: %d transactions in %d s, all there" % (mode, sum(counts.values()), seconds))


main()
