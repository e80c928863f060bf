#!/usr/bin/env python3
"""Runs the models, move.pml of a move, gate.pml of the ready gate and peers.pml of two sides that call each
other, and compares them with the code. One case a run:

  table    their states, events and transitions are those of the code
  holds    Spin finds no error in them, and their tables are used to the full
  ends     Spin finds no fair run of the model of a move in which a move goes on for ever
  mutants  Spin finds an error in each that is wrong on purpose
"""

import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


@dataclass
class Model:
    name: str
    source: str  # that has the code's table
    sizes: list  # few of everything, so that all orders of it are looked at
    small: list  # for mutants
    mutants: dict  # with the size each needs beyond that
    ends: list = ()  # sizes in which what is claimed to end is looked at, in all fair runs
    endless: dict = field(default_factory=dict)  # mutants of that

    @property
    def path(self):
        return HERE / self.name


MOVE = Model(
    name="move.pml",
    source="src/engine/parcel.h",
    sizes=[
        ["-DLOOPS=2", "-DMOVES=2", "-DTROUBLES=2"],
        ["-DLOOPS=2", "-DROUGH=1"],
        ["-DLOOPS=1", "-DWRITES=1", "-DTROUBLES=2"],
        ["-DLOOPS=1", "-DWRITES=1", "-DROUGH=1", "-DTROUBLES=0"],
    ],
    small=["-DLOOPS=2"],
    mutants={"DROP_LATE": [], "SKIP_TERMINAL": [], "TWO_OWNERS": []},
    ends=[["-DLOOPS=1"], ["-DLOOPS=2", "-DTROUBLES=0"]],
    endless={"STAYS_READY": ["-DTROUBLES=0"]},
)
GATE = Model(
    name="gate.pml",
    source="src/rdma/ready_gate.h",
    sizes=[["-DATTEMPTS=3", "-DTROUBLES=2"], ["-DOLD=1", "-DTROUBLES=2"], ["-DOLD=2", "-DTROUBLES=2"]],
    small=[],
    mutants={"GATE_OFF": [], "LATE_OPENS": [], "ANY_READY": [], "ANY_DATA": [],
             "NO_DEADLINE": []},
)
PEERS = Model(
    name="peers.pml",
    source="src/rdma/peer_set_core.h",
    sizes=[
        ["-DSTREAMS=2"],
        ["-DSTREAMS=3", "-DSTRAYS=1"],
        ["-DSTREAMS=3", "-DTROUBLES=1", "-DRESTARTS=1"],
        ["-DSTREAMS=3", "-DSTRAYS=1", "-DRESTARTS=1"],
    ],
    small=[],
    mutants={"BOTH_YIELD": [], "BOTH_REFUSE": [], "BOTH_LIVE": [], "WORK_EARLY": [],
             "AT_ONCE": ["-DSTREAMS=3", "-DSTRAYS=1"]},
)
MODELS = [MOVE, GATE, PEERS]


def names_of(text, enum):
    body = re.search(r"enum class %s[^{]*\{(.*?)\};" % enum, text, re.DOTALL).group(1)
    return re.findall(r"^\s*(k\w+),", body, re.MULTILINE)


def move_of_code(text):
    """The states, the events and {(state, event): next} of parcel.h."""
    states, events = names_of(text, "MoveState"), names_of(text, "MoveEvent")
    body = re.search(r"kMoveTransitions = \{\{(.*?)\}\};", text, re.DOTALL).group(1)
    rows = {}
    for state, row in re.findall(r"/\*\s*(\w+)\s*\*/\s*\{(.*?)\}", body, re.DOTALL):
        for event, after in zip(events, re.findall(r"MoveState::(k\w+)", row), strict=True):
            rows[state, event] = after
    return states, events, rows


def move_of_model(text):
    """The same of the model, where a pair that is not listed stays as it is."""
    states, events, listed = listed_in(text, r":: move == (\w+) && event == (\w+) -> move = (\w+);")
    rows = {(state, event): state for state in states for event in events}
    rows.update(listed)
    return states, events, rows


def listed_in(text, pattern):
    states, events = [re.findall(r"\w+", names) for names in
                      re.findall(r"^mtype = \{(.*?)\};", text, re.MULTILINE | re.DOTALL)[:2]]
    return states, events, {(state, event): after
                            for state, event, after in re.findall(pattern, text)}


def letters_of_test(text, kind, test):
    """The same of a header of src/rdma whose unit test has the table cell by cell."""
    states, events = names_of(text, f"{kind}State"), names_of(text, f"{kind}Event")
    test = (ROOT / "tests/rdma" / test).read_text()
    body = re.search(r"k\w*Table\[k%sStates\] = \{(.*?)\};" % kind, test, re.DOTALL).group(1)
    letters = dict(zip(re.search(r'k\w*StateLetters = "(\w+)"', test).group(1), states, strict=True))
    rows = {}
    for state, row in zip(states, re.findall(r'"(.*?)"', body), strict=True):
        for event, cell in zip(events, row.split(), strict=True):
            rows[state, event] = letters[cell[0]]
    return states, events, rows


def gate_of_code(text):
    return letters_of_test(text, "Gate", "ready_gate_test.cc")


def peers_of_code(text):
    return letters_of_test(text, "Peer", "peer_set_core_test.cc")


def peers_of_model(text):
    """The same of peers.pml: nobody wants it any more ends it, and what is not listed changes nothing."""
    states, events, listed = listed_in(
        text, r":: state\[s\] == (\w+) && event == (\w+) -> state\[s\] = (\w+);")
    rows = {(state, event): "kIdle" if event == "kUnwant" else state
            for state in states for event in events}
    rows.update(listed)
    return states, events, rows


def gate_of_model(text):
    """The same of gate.pml: an end closes, and so does what the peer does out of turn."""
    states, events, listed = listed_in(
        text, r":: gate\[s\] == (\w+) && event == (\w+) -> gate\[s\] = (\w+);")
    closes = {"kHello", "kAccept", "kReady", "kData", "kEnd"}
    rows = {(state, event): "kClosed" if event in closes else state
            for state in states for event in events}
    rows.update(listed)
    return states, events, rows


TABLES = {MOVE.name: (move_of_code, move_of_model), GATE.name: (gate_of_code, gate_of_model),
          PEERS.name: (peers_of_code, peers_of_model)}


# What the model does in a step of its own because its language has no other way: it has no counterpart
# of that name in the code.
OWN_STEPS = {"NewGeneration", "LetGo", "TakeEnd", "CheckCallback", "ForgetMove", "SendThere", "SendBack",
             "OnCompletion", "OnEvent", "RunEnded", "RaiseEdges"}


def check_move_names():
    """The connection's states of move.pml are the code's, and so are its steps, but for those above."""
    model = MOVE.path.read_text()
    code = {path.name: path.read_text() for path in (ROOT / "src/engine").glob("*.[ch]*")}
    states = re.search(r"connection\.h\.\nmtype = \{(.*?)\};", model).group(1)
    unknown = set(re.findall(r"\w+", states)) - set(names_of(code["connection.h"], "ConnectionState"))
    problems = [f"move.pml: {name} is no state of a connection" for name in sorted(unknown)]
    steps = set(re.findall(r"^inline (\w+)\(", model, re.MULTILINE))
    functions = set(re.findall(r"\b([A-Z]\w+)\(", "".join(code.values())))
    problems += [f"move.pml: {name} is no function of src/engine" for name in
                 sorted(steps - functions - OWN_STEPS)]
    problems += [f"move.pml: {name} is listed as the model's own, but is the code's, or is gone" for name in
                 sorted(OWN_STEPS & functions | OWN_STEPS - steps)]
    return problems


def check_table():
    problems = check_move_names()
    for model in MODELS:
        of_code, of_model = TABLES[model.name]
        source = ROOT / model.source
        code, spin = of_code(source.read_text()), of_model(model.path.read_text())
        problems += [f"{what}: {source.name} has {a}, {model.name} has {b}"
                     for what, a, b in zip(("states", "events"), code, spin) if a != b]
        problems += [f"{state} on {event}: {source.name} says {code[2].get((state, event))}, "
                     f"{model.name} says {spin[2].get((state, event))}"
                     for state, event in sorted(set(code[2]) | set(spin[2]))
                     if code[2].get((state, event)) != spin[2].get((state, event))]
        if len(code[2]) != len(code[0]) * len(code[1]):
            problems.append(f"{source.name}: {len(code[2])} transitions were understood")
    return problems


# What the verifier looks for: states that must not be, or runs that must not go on for ever though
# no process is kept waiting (weak fairness, with counters for up to 3 * 8 processes).
SAFETY = ["-DSAFETY"], []
ENDS = ["-DENDS", "-DNFAIR=3"], ["-a", "-f"]


def verify(model, flags, kind=SAFETY):
    """Runs Spin on the model; what the verifier printed."""
    built, search = kind
    flags = [*flags, *built]
    with tempfile.TemporaryDirectory() as folder:
        def run(*command):
            result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
            if result.returncode != 0:
                sys.exit(f"{' '.join(command)}:\n{result.stdout}{result.stderr}")
            return result.stdout

        run("spin", "-a", *flags, str(model.path))
        # Unoptimised: the compiler would take longer than all runs.
        run("gcc", "-O0", "-w", "-DCOLLAPSE", "-DMEMLIM=1500", *flags, "-o", "pan", "pan.c")
        return run("./pan", *search, "-m50000", "-w24")


def figure(report, pattern):
    match = re.search(pattern, report)
    return int(float(match.group(1))) if match else None


def check_holds():
    problems = []
    for model in MODELS:
        unused = None
        for flags in model.sizes:
            what = " ".join([model.name, *flags])
            started = time.monotonic()
            report = verify(model, flags)
            states = figure(report, r"([\d.e+]+) states, stored")
            print(f"{what}: {states} states in {time.monotonic() - started:.0f} s")
            if figure(report, r"errors: (\d+)") != 0 or "Search not completed" in report:
                problems.append(f"{what}:\n{report}")
            found = set(re.findall(r"transition \d+ of the table is never used", report))
            unused = found if unused is None else unused & found
        problems += [f"{model.name}: {row}" for row in sorted(unused)]
    return problems


def check_ends():
    problems = []
    for model in MODELS:
        for flags in model.ends:
            what = " ".join([model.name, *flags])
            started = time.monotonic()
            report = verify(model, flags, ENDS)
            states = figure(report, r"([\d.e+]+) states, stored")
            print(f"{what}: {states} states in {time.monotonic() - started:.0f} s")
            if (figure(report, r"errors: (\d+)") != 0 or "Search not completed" in report
                    or "fairness enabled" not in report):
                problems.append(f"{what}:\n{report}")
    return problems


def check_mutants():
    problems = []
    for model in MODELS:
        cases = [(mutant, flags, SAFETY) for mutant, flags in model.mutants.items()]
        cases += [(mutant, flags, ENDS) for mutant, flags in model.endless.items()]
        for mutant, flags, kind in cases:
            report = verify(model, [*model.small, *flags, f"-D{mutant}"], kind)
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
    problems = {"table": check_table, "holds": check_holds, "ends": check_ends,
                "mutants": check_mutants}[case]()
    for problem in problems:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
