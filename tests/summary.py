#!/usr/bin/env python3
"""Counts single tests over the stages of tests/run.sh and prints what failed and what was skipped.

usage: summary.py BUILD_ROOT STAGE...

Reads BUILD_ROOT/STAGE/results: ctest.xml, the report of ctest; <name>.xml, the report of the googletest
binary that ctest calls <name>; other *.xml reports; stage_failures and stage_skips, a line each.
The last line is "N passed, N failed, N skipped". Ends with status 1 when something failed or when
nothing ran.
"""

import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path


class Counts:
    def __init__(self):
        self.passed = 0
        self.failed = []   # (name, reason)
        self.skipped = []  # (name, reason)

    def add(self, other):
        self.passed += other.passed
        self.failed += other.failed
        self.skipped += other.skipped

    def under(self, name):
        """The same, with the report's name before each test's: several reports may hold one test."""
        for cases in (self.failed, self.skipped):
            cases[:] = [(f"{name}: {case}", reason) for case, reason in cases]
        return self

    def line(self):
        return f"{self.passed} passed, {len(self.failed)} failed, {len(self.skipped)} skipped"


def count_cases(path):
    """Counts a report of googletest's form; None when it cannot be read, as after a crash."""
    try:
        root = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError):
        return None
    counts = Counts()
    for case in root.iter("testcase"):
        name = f"{case.get('classname')}.{case.get('name')}"
        failure, skip = case.find("failure"), case.find("skipped")
        if failure is not None:
            counts.failed.append((name, reason_of(failure)))
        elif skip is not None:
            counts.skipped.append((name, reason_of(skip)))
        elif case.get("status") != "notrun":
            counts.passed += 1
    return counts


def reason_of(element):
    """The last line of a message: googletest puts the place before it."""
    lines = [line for line in (element.get("message") or element.text or "").splitlines() if line]
    return lines[-1].strip() if lines else "no reason given"


def count_ctest(results):
    """Counts ctest's report; a googletest binary counts as its single tests."""
    counts = Counts()
    for case in ElementTree.parse(results / "ctest.xml").getroot().iter("testcase"):
        name, status = case.get("name"), case.get("status")
        inner_path = results / f"{name}.xml"
        inner = count_cases(inner_path)
        if inner is not None:
            counts.add(inner)
        failure, skip = case.find("failure"), case.find("skipped")
        if failure is not None:
            # With a report that names the failed tests, there is nothing to add.
            if inner is None or not inner.failed:
                counts.failed.append((name, failure.get("message") or "failed"))
        elif skip is not None or status in ("notrun", "disabled"):
            out = case.findtext("system-out") or ""
            reasons = [line for line in out.splitlines() if line.startswith("skipped: ")]
            reason = reasons[-1][len("skipped: "):] if reasons else "not run"
            # A test whose fixture failed is not run for that reason, which is already counted.
            counts.skipped.append((name, reason))
        elif inner is None:
            counts.passed += 1
    return counts


def count_stage(results):
    counts = Counts()
    if (results / "ctest.xml").exists():
        try:
            counts.add(count_ctest(results))
        except ElementTree.ParseError as error:
            counts.failed.append(("ctest.xml", str(error)))
    else:
        for path in sorted(results.glob("*.xml")):
            inner = count_cases(path)
            if inner is None:
                counts.failed.append((path.name, "cannot be read"))
            else:
                counts.add(inner.under(path.stem))
    for name, into in (("stage_failures", counts.failed), ("stage_skips", counts.skipped)):
        path = results / name
        if path.exists():
            into += [(results.parent.name, line) for line in path.read_text().splitlines()]
    return counts


def main():
    build_root, stages = Path(sys.argv[1]), sys.argv[2:]
    total = Counts()
    print("\n== summary")
    for stage in stages:
        counts = count_stage(build_root / stage / "results")
        print(f"{stage:8} {counts.line()}")
        for name, reason in counts.failed:
            print(f"    FAILED   {name}: {reason}")
        for name, reason in counts.skipped:
            print(f"    skipped  {name}: {reason}")
        total.add(counts)
    nothing_ran = total.passed == 0 and not total.failed
    if nothing_ran:
        print("no test ran")
    print(total.line())
    return 1 if total.failed or nothing_ran else 0


if __name__ == "__main__":
    sys.exit(main())
