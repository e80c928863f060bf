#!/usr/bin/env python3
"""Tests of summary.py and check_demo.py: what they must count as failed, and that they do."""

import json
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

HERE = Path(__file__).resolve().parent

GOOGLETEST = """<testsuites><testsuite>
<testcase name="A" status="run" classname="S"/>
<testcase name="B" status="run" classname="S"><failure message="f.cc:1&#x0A;wrong"/></testcase>
<testcase name="C" status="run" classname="S"><skipped message="f.cc:2&#x0A;no ring"/></testcase>
</testsuite></testsuites>"""
CTEST = """<testsuite>
<testcase name="unit.0" status="{unit}">{failure}</testcase>
<testcase name="style.layers" status="run"><system-out>fine</system-out></testcase>
<testcase name="style.format" status="notrun"><skipped message="SKIP_RETURN_CODE=77"/>
<system-out>skipped: no tool</system-out></testcase>
</testsuite>"""
FAILED = '<failure message="SEGFAULT"/>'

ECHO = {"client": {"errors": 0, "requests": 5}, "server": {"errors": 0, "pool_live_bytes": 0}}
IDLE = {"count": 9, "wanted": 9,
        "snapshot": {"pool_live_bytes": 0, "pinned_bytes": 0, "sealed_pinned_bytes": 0,
                     "framed_pinned_bytes": 0, "idle_connections": 9},
        "silent": {"pool_live_bytes": 0, "idle_connections": 9},
        "last": {"errors": 0}, "resident_per_connection": 100, "resident_per_silent": 100,
        "resident_before": 0, "resident_after": 0}
MOVING = {"errors": 0, "stranded": 0, "engine_switches": 5, "loop_moves": 5, "bytes": 9,
          "bytes_carried": 1, "pause_p50_us": 1, "pause_p99_us": 2}
ENDPOINT = {"client": {"iters": 9, "per_s": 5.0, "p50_us": 1.0, "p99_us": 2.0},
            "server": {"pool_live_bytes": 0}}
DEMO = {"machine": {"uring_missing": "", "uring_refused": ""}, "echo": {"epoll": ECHO, "uring": ECHO},
        "bulk": {"transfer": {"sha256_sent": "a", "sha256_received": "a"}},
        "idle": {"epoll": IDLE, "uring": IDLE}, "moving": {"plain": MOVING, "sealed": MOVING},
        "endpoint": {"send": ENDPOINT, "write": ENDPOINT, "read": ENDPOINT,
                     "device": {op: {"transport": "device", "p50_us": 1.0, "p99_us": 2.0}
                                for op in ("send", "write", "read")}},
        "sealed_echo": {"epoll": ECHO, "uring": ECHO},
        "stranger": {"refused": {"stranger_status": 1, "plain_status": 1, "server": {"errors": 0},
                                 "stranger_said": "the peer refuses: alert 48, unknown_ca",
                                 "server_said": "unable to get local issuer certificate\n"
                                                "wrong version number\n"}},
        "sealed_idle": {"epoll": IDLE, "uring": IDLE}}


def summary(files):
    """Status and output of summary.py over one stage with these result files."""
    with tempfile.TemporaryDirectory() as root:
        results = Path(root) / "stage" / "results"
        results.mkdir(parents=True)
        for name, text in files.items():
            (results / name).write_text(text)
        done = subprocess.run([sys.executable, HERE / "summary.py", root, "stage"], text=True,
                              capture_output=True, check=False)
        return done.returncode, done.stdout


def demo(figures):
    with tempfile.TemporaryDirectory() as root:
        path, report = Path(root) / "figures", Path(root) / "report.xml"
        path.write_text(json.dumps(figures))
        subprocess.run([sys.executable, HERE / "check_demo.py", path, report], check=True,
                       stdout=subprocess.DEVNULL)
        return summary({"demo.xml": report.read_text()})


def changed(figures, *path_and_value):
    """A deep copy with the value at a path replaced."""
    copy = json.loads(json.dumps(figures))
    *path, last, value = path_and_value
    place = copy
    for key in path:
        place = place[key]
    place[last] = value
    return copy


class Summary(unittest.TestCase):
    def assert_ends(self, result, status, line):
        self.assertEqual((result[0], result[1].splitlines()[-1]), (status, line), result[1])

    def test_counts_single_tests(self):
        result = summary({"ctest.xml": CTEST.format(unit="fail", failure=FAILED),
                          "unit.0.xml": GOOGLETEST})
        self.assert_ends(result, 1, "2 passed, 1 failed, 2 skipped")
        self.assertIn("S.B: wrong", result[1])
        self.assertIn("S.C: no ring", result[1])
        self.assertIn("style.format: no tool", result[1])

    def test_loose_reports_name_their_tests(self):
        result = summary({"linux-6.1.unit.0.xml": GOOGLETEST, "linux-6.12.unit.0.xml": GOOGLETEST})
        self.assert_ends(result, 1, "2 passed, 2 failed, 2 skipped")
        self.assertIn("linux-6.1.unit.0: S.B: wrong", result[1])
        self.assertIn("linux-6.12.unit.0: S.C: no ring", result[1])

    def test_a_crash_is_a_failure(self):
        result = summary({"ctest.xml": CTEST.format(unit="fail", failure=FAILED)})
        self.assert_ends(result, 1, "1 passed, 1 failed, 1 skipped")
        self.assertIn("unit.0: SEGFAULT", result[1])

    def test_a_binary_that_fails_after_its_tests_passed_is_a_failure(self):
        passed = '<testsuites><testcase name="A" status="run" classname="S"/></testsuites>'
        result = summary({"ctest.xml": CTEST.format(unit="fail", failure=FAILED),
                          "unit.0.xml": passed})
        self.assert_ends(result, 1, "2 passed, 1 failed, 1 skipped")

    def test_a_broken_stage_is_a_failure(self):
        self.assert_ends(summary({"stage_failures": "the build\n"}), 1,
                         "0 passed, 1 failed, 0 skipped")

    def test_nothing_ran_is_a_failure(self):
        self.assert_ends(summary({"stage_skips": "no kernel\n"}), 1,
                         "0 passed, 0 failed, 1 skipped")

    def test_success(self):
        passed = '<testsuites><testcase name="A" status="run" classname="S"/></testsuites>'
        result = summary({"ctest.xml": CTEST.format(unit="run", failure=""), "unit.0.xml": passed})
        self.assert_ends(result, 0, "2 passed, 0 failed, 1 skipped")


class Demo(unittest.TestCase):
    def assert_ends(self, figures, line):
        self.assertEqual(demo(figures)[1].splitlines()[-1], line)

    def test_good_figures_pass(self):
        self.assert_ends(DEMO, "16 passed, 0 failed, 0 skipped")

    def test_each_bad_figure_fails(self):
        for path_and_value in (("echo", "epoll", "client", "errors", 1),
                               ("echo", "uring", "server", "pool_live_bytes", 4096),
                               ("bulk", "transfer", "sha256_received", "b"),
                               ("idle", "epoll", "snapshot", "pool_live_bytes", 1),
                               ("idle", "epoll", "snapshot", "sealed_pinned_bytes", 1),
                               ("idle", "epoll", "snapshot", "idle_connections", 8),
                               ("idle", "epoll", "silent", "pool_live_bytes", 1),
                               ("idle", "uring", "resident_per_connection", 513),
                               ("idle", "epoll", "resident_per_silent", 513),
                               ("idle", "epoll", "resident_after", 5 << 20),
                               ("idle", "epoll", "last", "errors", 1),
                               ("sealed_echo", "uring", "client", "requests", 0),
                               ("endpoint", "write", "client", "p50_us", 3.0),
                               ("endpoint", "read", "server", "pool_live_bytes", 1),
                               ("endpoint", "device", "send", "transport", "stream"),
                               ("endpoint", "device", "write", "p50_us", 3.0),
                               ("stranger", "refused", "stranger_status", 0),
                               ("stranger", "refused", "plain_status", 0),
                               ("stranger", "refused", "stranger_said", "hello"),
                               ("stranger", "refused", "server_said", "something else\n"),
                               ("sealed_idle", "epoll", "snapshot", "pool_live_bytes", 1),
                               ("sealed_idle", "uring", "resident_per_connection", 2049),
                               ("bulk", {}), ("bulk", "transfer", {"broken": "it fell over"})):
            with self.subTest(path_and_value):
                self.assert_ends(changed(DEMO, *path_and_value), "15 passed, 1 failed, 0 skipped")

    def test_absence_counts_as_skipped_only_where_the_machine_lacks_it(self):
        absent = changed(DEMO, "echo", "uring", {"absent": "forbidden"})
        self.assert_ends(absent, "15 passed, 1 failed, 0 skipped")
        absent["machine"]["uring_refused"] = "io_uring: no multishot poll (kernel 5.13)"
        self.assert_ends(absent, "15 passed, 1 failed, 0 skipped")
        absent["machine"]["uring_refused"] = "io_uring engine: not compiled in (PENSTOCK_URING=OFF)"
        self.assert_ends(absent, "15 passed, 0 failed, 1 skipped")
        absent["machine"]["uring_refused"] = ""
        absent["machine"]["uring_missing"] = "forbidden"
        self.assert_ends(absent, "15 passed, 0 failed, 1 skipped")
        self.assert_ends(changed(DEMO, "idle", "epoll", "wanted", 10),
                         "15 passed, 0 failed, 1 skipped")
        self.assert_ends(changed(DEMO, "echo", "epoll", {"absent": "odd"}),
                         "15 passed, 1 failed, 0 skipped")


if __name__ == "__main__":
    unittest.main()
