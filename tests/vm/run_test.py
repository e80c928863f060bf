#!/usr/bin/env python3
"""Tests of run.py: what comes out of the machine, and how it ends. Boots it four times.

usage: run_test.py [--cache=DIR] [--report=FILE.xml] [-k WORDS]
"""

import argparse
import io
import os
import shutil
import subprocess
import sys
import tempfile
import unittest
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "examples"))
import programs  # noqa: E402
import run  # noqa: E402

KERNEL = "6.1"
CACHE = []  # options, set by main()


def machine(*command, options=()):
    """Runs a command in the machine; skips the test where there can be no machine."""
    done = subprocess.run([sys.executable, HERE / "run.py", f"--kernel={KERNEL}", *CACHE, *options, "--",
                           *command], text=True, capture_output=True, check=False)
    if done.returncode == run.SKIPPED and "skipped: " in done.stdout:
        raise unittest.SkipTest(done.stdout.splitlines()[-1].removeprefix("skipped: "))
    return done


def without_machine(patch):
    """Status and last line of run.py where `patch` says what this machine lacks."""
    out = io.StringIO()
    with patch, mock.patch.object(run, "update_lists"), redirect_stdout(out), redirect_stderr(io.StringIO()), \
            tempfile.TemporaryDirectory() as cache:
        status = run.main([f"--kernel={KERNEL}", f"--cache={cache}", "--", "true"])
    return status, (out.getvalue().splitlines() or [""])[-1]


class Kernels(unittest.TestCase):
    def test_the_newest_counts_by_number_and_has_no_flavour(self):
        names = ["linux-image-6.1.0-9-amd64", "linux-image-6.1.0-56-amd64", "linux-image-6.1.0-7-amd64",
                 "linux-image-6.1.0-57-cloud-amd64", "linux-image-6.1.0-58-amd64-unsigned",
                 "linux-image-6.12.117+deb12-amd64", "linux-image-6.12.99+deb12-amd64", "lock"]
        self.assertEqual(run.newest(names, "6.1"), "linux-image-6.1.0-56-amd64")
        self.assertEqual(run.newest(names, "6.12"), "linux-image-6.12.117+deb12-amd64")
        self.assertIsNone(run.newest(names[3:5], "6.1"))

    def test_an_older_kernel_will_do_when_the_newest_cannot_be_fetched(self):
        with tempfile.TemporaryDirectory() as folder, redirect_stderr(io.StringIO()) as said:
            cache = Path(folder)
            old = cache / "linux-image-6.1.0-8-amd64"
            old.mkdir()
            with mock.patch.object(run, "offered", return_value="linux-image-6.1.0-9-amd64"), \
                    mock.patch.object(run, "fetch", side_effect=run.Broken("no network")):
                self.assertEqual(run.kernel("6.1", cache), old)
        self.assertIn("no network", said.getvalue())

    def test_an_offer_that_is_out_of_date_is_renewed(self):
        fetched = []

        def fetch(package, cache):
            if package.endswith("-8-amd64"):
                raise run.Broken("E: 404")
            fetched.append(package)

        with tempfile.TemporaryDirectory() as folder, mock.patch.multiple(
                run, fetch=fetch, update_lists=mock.DEFAULT,
                offered=mock.Mock(side_effect=[f"linux-image-6.1.0-{n}-amd64" for n in (8, 9)])):
            path = run.kernel("6.1", Path(folder))
        self.assertEqual(fetched, ["linux-image-6.1.0-9-amd64"])
        self.assertEqual(path.name, fetched[0])


class Absence(unittest.TestCase):
    def test_no_package_manager(self):
        self.assertEqual(without_machine(mock.patch("shutil.which", return_value=None)),
                         (77, "skipped: no apt-cache here (Debian package apt)"))

    def test_no_kernel_is_offered(self):
        self.assertEqual(without_machine(mock.patch.object(run, "offered", return_value=None)),
                         (77, "skipped: apt offers no Linux 6.1 image (apt-get update?)"))

    def test_no_network(self):
        package = "linux-image-6.1.0-9-amd64"
        refuse = mock.patch.multiple(run, offered=mock.Mock(return_value=package),
                                     fetch=mock.Mock(side_effect=run.Broken("E: no route")))
        self.assertEqual(without_machine(refuse),
                         (77, f"skipped: cannot fetch {package}: E: no route"))


class Machine(unittest.TestCase):
    def test_relays_words_output_and_status_and_writes_only_to_shares(self):
        with tempfile.TemporaryDirectory() as shared, tempfile.TemporaryDirectory() as kept:
            done = machine(
                "sh", "-c", 'uname -r; pwd; printf "%s\\n" "$@"; seq 20000; echo said >&2; '
                f"echo lost > {kept}/file && echo through > {shared}/file; sleep 1000 & exit 3",
                "sh", "two words", "it's", options=[f"--share={shared}"])
            self.assertEqual(done.returncode, 3, done.stderr)
            release, where, first, second, *numbers, last = done.stdout.splitlines()
            self.assertTrue(release.startswith(KERNEL + "."), release)
            self.assertEqual([where, first, second, last], [os.getcwd(), "two words", "it's", "said"])
            self.assertEqual(numbers, [str(i + 1) for i in range(20000)])
            self.assertEqual(Path(shared, "file").read_text(), "through\n")
            self.assertEqual(os.listdir(kept), [])

    def test_the_limit_ends_a_command_that_hangs(self):
        done = machine("sleep", "1000", options=["--limit=20"])
        self.assertEqual(done.returncode, run.LIMIT_REACHED, done.stderr)
        self.assertIn("ended by the limit of 20", done.stderr)

    def test_two_rdma_devices_talk_over_the_wire_between_them(self):
        for name in ("ibv_rc_pingpong", "rdma"):
            if not shutil.which(name):
                self.skipTest(f"no {name} here (Debian packages ibverbs-utils, iproute2)")
        done = machine(
            "bash", "-ec", "ibv_rc_pingpong -d rxe0 -g 1 > /dev/null & "
            "until ibv_rc_pingpong -d rxe1 -g 1 10.77.0.1; do :; done; wait $!; "
            "cat /sys/class/net/v0/statistics/tx_bytes", options=["--rdma", "--limit=120"])
        self.assertEqual(done.returncode, 0, done.stderr)
        *_, said, on_the_wire = done.stdout.splitlines()
        self.assertIn("1000 iters", said)
        self.assertGreater(int(on_the_wire), 1000 * 4096)

    def test_a_kernel_that_falls_over_is_not_taken_for_a_status(self):
        done = machine("sh", "-c", "echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger")
        self.assertEqual(done.returncode, run.BROKEN, done.stderr)
        self.assertIn("the kernel complained", done.stderr)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--cache")
    parser.add_argument("--report", type=Path)
    parser.add_argument("-k", dest="words", action="append", help="run tests with this in the name")
    args = parser.parse_args()
    CACHE.extend([f"--cache={args.cache}"] if args.cache else [])
    loader = unittest.TestLoader()
    loader.testNamePatterns = [f"*{word}*" for word in args.words] if args.words else None
    tests = loader.loadTestsFromModule(sys.modules["__main__"])
    result = unittest.TextTestRunner(verbosity=2, resultclass=programs.Result).run(tests)
    if args.report:
        programs.write_report(args.report, "vm", result)
    return 0 if result.wasSuccessful() and result.testsRun else 1


if __name__ == "__main__":
    sys.exit(main())
