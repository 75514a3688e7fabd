#!/usr/bin/env python3
"""What `kiln format --encrypted`, `set-passphrase` and `remove-passphrase` promise.

    test_passphrase.py KILN

$KILN_UPSTREAM, if set, names upstream's tool: its fsck sees what was made.
"""
import os
import pty
import select
import signal
import subprocess
import sys
import tempfile
import termios

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "lib"))

import changes
import tap

KILN = os.path.abspath(sys.argv[1])
OK, FAILED, USAGE = 0, 1, 2
QUICK = bool(os.environ.get("KILN_TEST_QUICK"))
SECRET = b"no one may read this " * 1000  # more than is kept inline


def kiln(*args, status=OK, says=b""):
    p = subprocess.run([KILN, *args], input=says, capture_output=True, start_new_session=True)
    assert p.returncode == status, "%s: status %d, %s" % (args, p.returncode, p.stderr.decode())
    return p


def on_new_terminal(args):
    """(process, terminal). Whoever runs tests in the background may ignore signals, and that would be inherited."""
    pid, terminal = pty.fork()
    if not pid:
        for sig in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM):
            signal.signal(sig, signal.SIG_DFL)
        os.execv(KILN, [KILN, *args])
    return pid, terminal


def on_terminal(args, answers):
    """(status, what the terminal showed) of a command that asks there."""
    pid, terminal = on_new_terminal(args)
    shown = b""
    for question, answer in answers:
        while question not in shown:
            shown += os.read(terminal, 1000)
        shown = b""
        os.write(terminal, answer + b"\n")
    try:
        while more := os.read(terminal, 1000):
            shown += more
    except OSError:  # its end
        pass
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    return os.waitstatus_to_exitcode(status), shown


def has_echo(terminal):
    return bool(termios.tcgetattr(terminal)[3] & termios.ECHO)


def asked(args, question):
    """(process, terminal) of a command that has asked, and waits for an answer that isn't shown."""
    pid, terminal = on_new_terminal(args)
    shown = b""
    while question not in shown:
        shown += os.read(terminal, 1000)
    assert not has_echo(terminal)
    return pid, terminal


def ended(pid, terminal):
    """(status, what it said) of one that ends by itself; the terminal is as it was."""
    shown = b""
    while select.select([terminal], [], [], 60)[0]:
        try:
            shown += os.read(terminal, 1000)
        except OSError:  # its end
            break
    _, status = os.waitpid(pid, 0)
    assert has_echo(terminal), shown
    os.close(terminal)
    return os.waitstatus_to_exitcode(status), shown


def is_held_while_it_tries(args, question):
    """The terminal, by a command that was told a wrong passphrase, and until it says so."""
    pid, terminal = asked(args, question)
    os.write(terminal, b"wrong\n")
    shown = b""
    while not has_echo(terminal) and b"Wrong" not in shown:
        if select.select([terminal], [], [], 0.001)[0]:
            shown += os.read(terminal, 1000)
    is_held = not has_echo(terminal)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(terminal)
    return is_held


def fmt(path, *options, passphrase=b"first"):
    source = ["--passphrase-file", "-"] if passphrase else ["--no-passphrase"]
    kiln("format", "-q", "--encrypted", *source, "--size", "32M", *options, path, says=(passphrase or b"") + b"\n")


def is_open_without(path):
    return kiln("cat", path, "/file").stdout == SECRET


def has(path, data):
    with open(path, "rb") as f:
        return data in f.read()


def a_passphrase_is_set_changed_and_removed(work):
    image, file = os.path.join(work, "a.img"), os.path.join(work, "tree", "file")
    os.mkdir(os.path.dirname(file))
    with open(file, "wb") as f:
        f.write(SECRET)
    fmt(image, "--source", os.path.dirname(file))
    assert not has(image, SECRET[:21]) and not has(image, b"file")
    assert kiln("cat", "--passphrase-file", "-", image, "/file", says=b"first\n").stdout == SECRET
    both = ["--passphrase-file", "-", "--new-passphrase-fd", "0", image]
    assert b"wrong passphrase" in kiln("set-passphrase", *both, says=b"other\nnew\n", status=FAILED).stderr
    kiln("set-passphrase", *both, says=b"first\nsecond\n")
    assert b"wrong" in kiln("ls", "--passphrase-file", "-", image, says=b"first\n", status=FAILED).stderr
    kiln("remove-passphrase", "--passphrase-file", "-", image, says=b"second\n")
    assert is_open_without(image)
    longest = bytes(i % 10 + ord("0") for i in range(4096))
    assert b"too long" in kiln("set-passphrase", "--new-passphrase-file", "-", image, says=longest + b"x\n", status=FAILED).stderr
    kiln("set-passphrase", "--new-passphrase-file", "-", image, says=longest + b"\n")
    assert b"wrong" in kiln("ls", "--passphrase-file", "-", image, says=longest[:-1] + b"\n", status=FAILED).stderr
    kiln("remove-passphrase", "--passphrase-file", "-", image, says=longest)
    assert is_open_without(image)
    if QUICK:  # each derivation of a key takes long, and nothing of it is our code
        return
    if changes.has_upstream():
        assert not changes.upstream_fsck([image])
    kiln("remove-passphrase", image)
    kiln("set-passphrase", "--new-passphrase-file", "-", image, says=b"third\n")
    assert b"is needed, and there is no terminal" in kiln("ls", image, status=FAILED).stderr
    if changes.has_upstream():
        assert not changes.upstream_fsck([image], "third")


def it_is_asked_for_twice_and_not_shown(work):
    image = os.path.join(work, "a.img")
    command = ["format", "-q", "--encrypted", "--size", "32M", image]
    status, shown = on_terminal(command, [(b"New passphrase: ", b"one"), (b"again: ", b"two"), (b"New passphrase: ", b"same"),
                                          (b"again: ", b"same")])
    assert status == OK and b"same" not in shown, (status, shown)
    status, shown = on_terminal(["ls", image, "/"], [(b"Passphrase for the filesystem", b"wrong"), (b"Passphrase for the filesystem", b"same")])
    assert status == OK and b"lost+found" in shown and b"same" not in shown, (status, shown)


def the_terminal_is_restored_whatever_ends_the_question(work):
    image, new = os.path.join(work, "a.img"), os.path.join(work, "new.img")
    fmt(image)
    old, another = b"Passphrase for the filesystem", b"New passphrase: "
    for args, question in ((["ls", image], old), (["mkdir", image, "/d"], old), (["set-passphrase", image], old), (["mount", image, work], old),
                           (["format", "--encrypted", "--size", "32M", new], another)):
        # The end of input: ^D.
        pid, terminal = asked(args, question)
        os.write(terminal, b"\x04")
        status, shown = ended(pid, terminal)
        assert status == FAILED and b"was not typed: the input ended" in shown, (args, status, shown)
        # ^C, and what others send. Who catches signals says that it was interrupted.
        for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            pid, terminal = asked(args, question)
            if sig == signal.SIGINT:
                os.write(terminal, b"\x03")
            else:
                os.kill(pid, sig)
            status, shown = ended(pid, terminal)
            assert status == -sig or (status == FAILED and b"interrupted" in shown), (args, sig, status, shown)
    assert not os.path.exists(new)
    # After ^Z, which stops nobody who has no shell, it asks again.
    pid, terminal = asked(["ls", image], old)
    os.kill(pid, signal.SIGTSTP)
    shown = b""
    while old not in shown:
        shown += os.read(terminal, 1000)
    os.write(terminal, b"\x04")
    assert ended(pid, terminal)[0] == FAILED
    # Where we get no processor for as long as it takes to try one, it looks as if it was held.
    assert not all(is_held_while_it_tries(["ls", image], old) for _ in range(20))


def mistakes_are_told(work):
    a, b, plain = (os.path.join(work, n) for n in ("a.img", "b.img", "plain.img"))
    for options, says in ((["--no-passphrase"], b"for --encrypted"), (["--passphrase-fd", "0"], b"for --encrypted"),
                          (["--encrypted", "--no-passphrase", "--passphrase-fd", "0"], b"contradict")):
        assert says in kiln("format", "--size", "32M", *options, a, status=USAGE).stderr
    kiln("format", "-q", "--size", "32M", plain)
    assert b"--force formats over it" in kiln("format", "--encrypted", plain, status=FAILED).stderr  # rather than what is needed next
    nobody = kiln("format", "--size", "32M", "--encrypted", a, status=FAILED)
    assert b"no terminal" in nobody.stderr and not os.path.exists(a)
    assert b"isn't encrypted" in kiln("remove-passphrase", plain, status=FAILED).stderr
    fmt(a, "--replicas=2", b, passphrase=None)
    missing = kiln("set-passphrase", "--degraded", "--new-passphrase-file", "-", a, says=b"new\n", status=FAILED)
    assert b"missing" in missing.stderr, missing.stderr
    for command in (["set-passphrase", "--new-passphrase-file", "-"], ["remove-passphrase"]):
        missing = kiln(*command, a, says=b"new\n", status=FAILED).stderr
        assert b"1 of the filesystem's 2 devices wasn't given or found" in missing and b"Name all devices" in missing, missing
        assert b"degraded" not in missing, missing
    empty = kiln("set-passphrase", "--new-passphrase-file", "-", a + ":" + b, says=b"\n", status=FAILED)
    assert b"empty" in empty.stderr
    assert kiln("ls", a + ":" + b, "/").stdout
    # One line, that says what there is to do.
    fmt(plain, "-f")
    nothing, line = work + "/nothing", work + "/line"
    for path, content in ((nothing, b""), (line, b"\n")):
        with open(path, "wb") as f:
            f.write(content)
    for args, says in (([], b"--passphrase-file"), (["--passphrase-file", work + "/none"], b"/none: No such file"),
                       (["--passphrase-file", nothing], b"/nothing: it is at its end"), (["--passphrase-file", line], b"is empty"),
                       (["--passphrase-file", work], b"Is a directory"), (["--passphrase-file", "-"], b"standard input: it is at its end"),
                       (["--passphrase-fd", "9"], b"descriptor 9: Bad file")):
        for command in (["ls", *args, plain], ["cat", *args, plain, "/f"], ["set-passphrase", *args, plain]):
            message = kiln(*command, status=FAILED).stderr
            assert b"passphrase" in message and says in message and message.count(b"\n") == 1, (command, message)
    # mount(8) hands on options of its own form.
    helper = work + "/mount.kiln"
    os.symlink(KILN, helper)
    p = subprocess.run([helper, plain, work], stdin=subprocess.DEVNULL, capture_output=True, start_new_session=True)
    assert p.returncode == 32 and b"mount option passphrase_file" in p.stderr and b"--" not in p.stderr, p


def in_directory(test):
    with tempfile.TemporaryDirectory(prefix="kiln-passphrase-") as work:
        test(work)


TESTS = [the_terminal_is_restored_whatever_ends_the_question, a_passphrase_is_set_changed_and_removed, it_is_asked_for_twice_and_not_shown, mistakes_are_told]

if __name__ == "__main__":
    sys.exit(tap.run([(t.__name__, lambda t=t: in_directory(t)) for t in TESTS]))
