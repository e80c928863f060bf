#!/usr/bin/env python3
"""Runs move.pml, the model of a move, and compares it with the code. One case a run:

  table    its states, events and transitions are those of src/engine/parcel.h
  holds    Spin finds no error in it, and its table is used to the full
  mutants  Spin finds an error in each engine that is wrong on purpose
"""

import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
MODEL = HERE / "move.pml"
PARCEL = HERE.parents[1] / "src/engine/parcel.h"

# Few of everything, so that all orders of it are looked at.
SIZES = [
    ["-DLOOPS=2", "-DMOVES=2", "-DTROUBLES=2"],
    ["-DLOOPS=2", "-DROUGH=1"],
    ["-DLOOPS=1", "-DWRITES=1", "-DTROUBLES=2"],
    ["-DLOOPS=1", "-DWRITES=1", "-DROUGH=1", "-DTROUBLES=0"],
]
# For mutants.
SMALL = ["-DLOOPS=2"]
MUTANTS = ["DROP_LATE", "SKIP_TERMINAL", "TWO_OWNERS"]


def table_of_code(text):
    """The states, the events and {(state, event): next} of parcel.h."""
    def names(enum):
        body = re.search(r"enum class %s[^{]*\{(.*?)\};" % enum, text, re.DOTALL).group(1)
        return re.findall(r"^\s*(k\w+),", body, re.MULTILINE)

    states, events = names("MoveState"), names("MoveEvent")
    body = re.search(r"kMoveTransitions = \{\{(.*?)\}\};", text, re.DOTALL).group(1)
    rows = {}
    for state, row in re.findall(r"/\*\s*(\w+)\s*\*/\s*\{(.*?)\}", body, re.DOTALL):
        for event, after in zip(events, re.findall(r"MoveState::(k\w+)", row), strict=True):
            rows[state, event] = after
    return states, events, rows


def table_of_model(text):
    """The same of the model, where a pair that is not listed stays as it is."""
    states, events = [re.findall(r"\w+", names) for names in
                      re.findall(r"^mtype = \{(.*?)\};", text, re.MULTILINE)[:2]]
    rows = {(state, event): state for state in states for event in events}
    listed = re.findall(r":: move == (\w+) && event == (\w+) -> move = (\w+);", text)
    for state, event, after in listed:
        rows[state, event] = after
    return states, events, rows


def check_table():
    code, model = table_of_code(PARCEL.read_text()), table_of_model(MODEL.read_text())
    problems = [f"{what}: {PARCEL.name} has {a}, {MODEL.name} has {b}"
                for what, a, b in zip(("states", "events"), code, model) if a != b]
    problems += [f"{state} on {event}: {PARCEL.name} says {code[2].get((state, event))}, "
                 f"{MODEL.name} says {model[2].get((state, event))}"
                 for state, event in sorted(set(code[2]) | set(model[2]))
                 if code[2].get((state, event)) != model[2].get((state, event))]
    if len(code[2]) != len(code[0]) * len(code[1]):
        problems.append(f"{PARCEL.name}: {len(code[2])} transitions were understood")
    return problems


def verify(flags):
    """Runs Spin on the model; what the verifier printed."""
    with tempfile.TemporaryDirectory() as folder:
        def run(*command):
            result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
            if result.returncode != 0:
                sys.exit(f"{' '.join(command)}:\n{result.stdout}{result.stderr}")
            return result.stdout

        run("spin", "-a", *flags, str(MODEL))
        # Unoptimised: the compiler would take longer than all runs.
        run("gcc", "-O0", "-w", "-DCOLLAPSE", "-DMEMLIM=3000", "-DSAFETY", *flags, "-o", "pan", "pan.c")
        return run("./pan", "-m50000", "-w24")


def figure(report, pattern):
    match = re.search(pattern, report)
    return int(float(match.group(1))) if match else None


def check_holds():
    problems, unused = [], None
    for flags in SIZES:
        started = time.monotonic()
        report = verify(flags)
        states = figure(report, r"([\d.e+]+) states, stored")
        print(f"{' '.join(flags)}: {states} states in {time.monotonic() - started:.0f} s")
        if figure(report, r"errors: (\d+)") != 0 or "Search not completed" in report:
            problems.append(f"{' '.join(flags)}:\n{report}")
        found = set(re.findall(r"transition \d+ of the table is never used", report))
        unused = found if unused is None else unused & found
    return problems + sorted(unused)


def check_mutants():
    problems = []
    for mutant in MUTANTS:
        report = verify([*SMALL, f"-D{mutant}"])
        errors = figure(report, r"errors: (\d+)")
        what = re.search(r"^pan:\d+: (.*)", report, re.MULTILINE)
        print(f"{mutant}: {what.group(1) if what else 'no error'}")
        if not errors:
            problems.append(f"{mutant} was not seen:\n{report}")
    return problems


def main():
    case = sys.argv[1]
    if case != "table":
        for tool in ("spin", "gcc"):
            if shutil.which(tool) is None:
                print(f"skipped: {tool} is not installed")
                return 77
    problems = {"table": check_table, "holds": check_holds, "mutants": check_mutants}[case]()
    for problem in problems:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
