"""What the end-to-end tests of the example programs share: running them, and a report of the results.

Each *_test.py beside this file is run as: NAME_test.py --programs DIR [--report FILE.xml] [-k WORDS].
"""

import argparse
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import xml.etree.ElementTree as ElementTree
from pathlib import Path

PROGRAMS = []  # folders, set by main()
# Seconds that anything may take on a machine that is slow, or that gives a process no turn for long.
PATIENCE = 180


def built(name):
    """The path of a program, None when this build has none."""
    paths = [folder / name for folder in PROGRAMS]
    return next((str(path) for path in paths if path.exists()), None)


def program(name):
    path = built(name)
    if path is None:
        raise unittest.SkipTest(f"{name} is not built here")
    return path


def run(name, *words, **options):
    """Runs a program to its end; returns it with its output as text."""
    options.setdefault("timeout", PATIENCE)
    return subprocess.run([program(name), *map(str, words)], text=True, capture_output=True,
                          check=False, **options)


def wait_until(condition, what):
    end = time.monotonic() + PATIENCE
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not within {PATIENCE} s")
        time.sleep(0.01)


class Running:
    """A program that runs, with its lines of stdout as they come."""

    def __init__(self, name, *words, **options):
        self.process = subprocess.Popen([program(name), *map(str, words)], text=True,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
        self.lines = queue.Queue()
        self.errors = []
        self.threads = [threading.Thread(target=self._read_lines, daemon=True),
                        threading.Thread(target=self._read_errors, daemon=True)]
        for thread in self.threads:
            thread.start()

    def _read_lines(self):
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(None)

    def _read_errors(self):
        for line in self.process.stderr:
            self.errors.append(line)

    def line(self):
        try:
            line = self.lines.get(timeout=PATIENCE)
        except queue.Empty:
            raise AssertionError(f"{self.process.args} says nothing for {PATIENCE} s; "
                                 f"{self.what_it_does()}; stderr: {self.stderr()}") from None
        if line is None:
            self.process.wait(PATIENCE)
            self.threads[1].join(PATIENCE)
            raise AssertionError(f"{self.process.args} ended with {self.process.returncode}: "
                                 f"{self.stderr()}")
        return line.rstrip("\n")

    def what_it_does(self):
        """What the kernel says of each of its threads: state, system call, signals that wait."""
        told = []
        for task in sorted(Path(f"/proc/{self.process.pid}/task").glob("*")):
            try:
                status = [line for line in (task / "status").read_text().splitlines()
                          if line.startswith(("State", "SigPnd", "ShdPnd", "SigBlk", "SigCgt"))]
                told.append(", ".join([task.name, *status, (task / "syscall").read_text()]))
            except OSError as error:  # it has ended, or keeps its secrets
                told.append(f"{task.name}: {error}")
        return "; ".join(told).replace("\t", " ").replace("\n", "")

    def stderr(self):
        return "".join(self.errors)

    def end(self):
        """Waits for the end; returns the status."""
        status = self.process.wait(PATIENCE)
        for thread in self.threads:
            thread.join(PATIENCE)
        return status

    def signal(self, number):
        self.process.send_signal(number)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if self.process.poll() is None:
            self.process.kill()
        self.end()
        self.process.stdout.close()
        self.process.stderr.close()


class Listening(Running):
    """A program whose first line is the address that it listens on."""

    def __init__(self, name, *words, **options):
        super().__init__(name, *words, **options)
        first = self.line()
        if not first.startswith("listening on "):
            raise AssertionError(f"first line: {first}")
        self.address = first[len("listening on "):]

    def endpoint(self):
        """For socket.connect."""
        if self.address.startswith("unix:"):
            return self.address[len("unix:"):].replace("@", "\0", 1)
        host, port = self.address.rsplit(":", 1)
        return host.strip("[]"), int(port)

    def connect(self):
        family = (socket.AF_UNIX if self.address.startswith("unix:") else
                  socket.AF_INET6 if self.address.startswith("[") else socket.AF_INET)
        peer = socket.socket(family)
        peer.settimeout(PATIENCE)
        peer.connect(self.endpoint())
        return peer


class Server(Listening):
    def snapshot(self):
        self.signal(signal.SIGUSR1)
        return json.loads(self.line())

    def wait_for(self, what, **values):
        """The first snapshot with these values."""
        last = {}

        def matches():
            last.update(self.snapshot())
            return all(last[key] == value for key, value in values.items())

        try:
            wait_until(matches, what)
        except AssertionError as error:
            raise AssertionError(f"{error}: {last}") from None
        return last

    def stop(self, number=signal.SIGTERM):
        """Ends it in order; returns its last line."""
        self.signal(number)
        last = json.loads(self.line())
        status = self.end()
        if status != 0:
            raise AssertionError(f"status {status}: {self.stderr()}")
        return last


def receive_all(peer):
    parts = []
    while part := peer.recv(65536):
        parts.append(part)
    return b"".join(parts)


def flood(peer, data):
    """Sends without end and reads nothing, until the server has cut it off."""
    try:
        while True:
            peer.sendall(data)
    except (ConnectionResetError, BrokenPipeError):
        pass


def uring_missing():
    """Why --engine=uring does not work here; empty when it does."""
    if not hasattr(uring_missing, "why"):
        try:
            with Server("echo_server", "--listen=127.0.0.1:0", "--engine=uring") as server:
                server.stop()
            uring_missing.why = ""
        except AssertionError as error:
            uring_missing.why = str(error)
    return uring_missing.why


class Case(unittest.TestCase):
    """A case with a folder of its own."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="penstock.")
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)


class EngineCase(Case):
    """Run once for each engine: `class Epoll(Tests, Case)` sets `engine`."""

    engine = ""

    def setUp(self):
        super().setUp()
        if self.engine == "uring" and uring_missing():
            self.skipTest(f"io_uring: {uring_missing()}")


def each_engine(mixin):
    """The classes to be found by unittest, one for each engine."""
    return {f"{mixin.__name__}_{engine}": type(f"{mixin.__name__}_{engine}", (mixin, EngineCase),
                                                {"engine": engine, "__module__": "__main__"})
            for engine in ("epoll", "uring")}


def write_report(path, suite, result):
    """A report of googletest's form, from which tests/summary.py counts."""
    bad = {test.id(): text for test, text in result.failures + result.errors}
    bad |= {test.id(): "succeeded unexpectedly" for test in result.unexpectedSuccesses}
    skipped = {test.id(): reason for test, reason in result.skipped}
    root = ElementTree.Element("testsuite", name=suite)
    for name in result.names:
        case = ElementTree.SubElement(root, "testcase", classname=suite, status="run",
                                      name=name.removeprefix("__main__."))
        if name in bad:
            ElementTree.SubElement(case, "failure", message=bad[name])
        elif name in skipped:
            ElementTree.SubElement(case, "skipped", message=skipped[name])
    ElementTree.ElementTree(root).write(path)


class Result(unittest.TextTestResult):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.names = []

    def startTest(self, test):
        self.names.append(test.id())
        super().startTest(test)


def main(suite="examples"):
    parser = argparse.ArgumentParser()
    parser.add_argument("--programs", type=Path, required=True, action="append",
                        help="folder of the programs, may be repeated")
    parser.add_argument("--report", type=Path)
    parser.add_argument("-k", dest="words", action="append", help="run tests with this in the name")
    args = parser.parse_args()
    global PROGRAMS
    PROGRAMS = [folder.resolve() for folder in args.programs]
    # Sanitizers report with this status, which no test expects.
    os.environ.setdefault("ASAN_OPTIONS", "exitcode=77")
    loader = unittest.TestLoader()
    loader.testNamePatterns = [f"*{word}*" for word in args.words] if args.words else None
    tests = loader.loadTestsFromModule(sys.modules["__main__"])
    result = unittest.TextTestRunner(verbosity=2, resultclass=Result).run(tests)
    if args.report:
        name = Path(sys.argv[0]).stem.removesuffix("_test")
        write_report(args.report, f"{suite}.{name}", result)
    return 0 if result.wasSuccessful() and result.testsRun else 1
