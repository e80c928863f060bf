#!/usr/bin/env python3
"""The demo where something is missing: it says what, and goes on."""

import importlib.util
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

import programs

sys.dont_write_bytecode = True  # of examples/demo.py, beside it
TREE = Path(__file__).resolve().parent.parent.parent


def load_demo():
    spec = importlib.util.spec_from_file_location("demo", TREE / "examples/demo.py")
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    return demo


class Demo(unittest.TestCase):
    def setUp(self):
        self.demo = load_demo()
        self.folder = tempfile.TemporaryDirectory(prefix="penstock-demo-test.")
        self.addCleanup(self.folder.cleanup)
        built = Path(programs.program("echo_server")).parent
        self.tour = self.demo.Tour(built, True, Path(self.folder.name))
        self.addCleanup(self.tour.log.close)

    def step(self, group, name, function, *arguments):
        self.tour.step(group, name, function, *arguments)
        return self.tour.figures[group][name]

    def test_an_engine_that_refuses_is_absent_in_its_own_words(self):
        if self.demo.uring_missing():
            self.skipTest(self.demo.uring_missing())
        os.environ["PENSTOCK_URING_DISABLE"] = "io_uring"
        self.addCleanup(os.environ.pop, "PENSTOCK_URING_DISABLE")
        for group, function, argument in (("echo", self.tour.echo, "uring"),
                                          ("idle", self.tour.idle, "uring"),
                                          ("moving", self.tour.moving, False)):
            figures = self.step(group, "uring", function, argument)
            self.assertEqual(list(figures), ["absent"], figures)
            self.assertIn("io_uring", figures["absent"])

    def test_an_engine_that_runs_is_not_absent(self):
        if programs.uring_missing():
            self.skipTest(programs.uring_missing())
        self.assertEqual(self.tour.uring_refused(), "")

    def test_an_engine_that_runs_out_of_memory_is_broken(self):
        if self.demo.uring_missing():
            self.skipTest(self.demo.uring_missing())
        self.tour.programs = Path(self.folder.name)
        program = self.tour.programs / "echo_server"
        program.write_text("#!/bin/sh\necho 'echo_server: io_uring_setup (locked memory or "
                           "descriptors): ENOMEM' >&2\nexit 1\n")
        program.chmod(0o755)
        self.assertEqual(self.tour.uring_refused(), "")
        self.assertIn("broken", self.step("echo", "uring", self.tour.echo, "uring"))

    def test_a_build_without_openssl_has_no_bulk_transfer(self):
        self.tour.programs = Path(self.folder.name)
        self.assertIn("OpenSSL", self.step("bulk", "transfer", self.tour.bulk)["absent"])

    def test_without_an_emulator_there_are_no_devices(self):
        (Path(self.folder.name) / "rdma_pingpong").touch()
        self.tour.programs = Path(self.folder.name)
        with mock.patch.dict(os.environ, {"PATH": self.folder.name}):
            self.assertIn("qemu", self.step("endpoint", "device", self.tour.soft_roce)["absent"])

    def test_an_emulated_machine_that_does_not_start_is_broken(self):
        (Path(self.folder.name) / "rdma_pingpong").touch()
        self.tour.programs = Path(self.folder.name)
        for status, said in ((125, "broken"), (1, "broken"), (77, "absent")):
            done = subprocess.CompletedProcess([], status, stdout="skipped: no kernel here\n")
            with mock.patch.object(self.demo.subprocess, "run", return_value=done), \
                    mock.patch.object(self.demo.shutil, "which", return_value="/here"):
                self.assertIn(said, self.step("endpoint", "device", self.tour.soft_roce), status)


if __name__ == "__main__":
    sys.exit(programs.main())
