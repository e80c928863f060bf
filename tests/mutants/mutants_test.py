#!/usr/bin/env python3
"""Breaks the shipped code of the gate, of what it reads, of credits and of the way from the lanes to the
stream, one line at a time, and expects the tests of these and of endpoints to find each.

usage: tests/mutants/mutants_test.py BUILD [NAME...]

Each mutant is one source with one piece of text in the place of another, compiled as BUILD compiles it
(but faster) and linked into a copy of the tests in front of the library, so that it takes the place of
the whole one. The tests run on simulated engines and devices: a mutant that waits for ever ends there
as a failure, and tests that do not end have found nothing. All of the sources unchanged, put in place
in the same way, must pass. Some minutes of processor time; ends with 77 where BUILD has no tests.
"""

import json
import shlex
import subprocess
import sys
import tempfile
from collections import namedtuple
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = "penstock_rdma_tests"
FILTER = "ReadyGateTest.*:ControlCodecTest.*:RegionTableTest.*:AdmissionTest.*:LaneWindowTest.*:CreditWindow*:*/Endpoint*.*/Simulated*-*Machine*"
LIMIT_SECONDS = 300

Mutant = namedtuple("Mutant", "name source before after")

MUTANTS = [
    # The gate: what opens it, and what must not.
    Mutant("opens_by_any_ready_of_the_attempt", "ready_gate.cc",
           "if (ready != expected) return Violate", "if (false) return Violate"),
    Mutant("opens_by_ready_of_another_attempt", "ready_gate.cc",
           "    return Late();\n  }\n  if (ready != expected)", "  }\n  if (ready != expected)"),
    Mutant("opens_by_data_of_another_attempt", "ready_gate.cc",
           "if (transcript_ != 0 && tag != data_tag()) return", "if (false) return"),
    Mutant("opens_by_lanes_of_another_attempt", "ready_gate.cc",
           "if (attempt != options_.self.attempt) return Late();\n  if (state_", "if (state_"),
    Mutant("takes_an_answer_to_another_hello", "ready_gate.cc",
           "if (accept.to != options_.self) return Late();", ""),
    Mutant("waits_for_ever", "ready_gate.cc", "if (now_ns < deadline_ns_) return", "if (true) return"),
    Mutant("a_reset_leaves_the_gate_open", "ready_gate.cc",
           "code == CloseCode::kViolation ? RejectCode::kMalformed : RejectCode::kShutdown);\n"
           "  return Apply(GateEvent::kEnd);",
           "code == CloseCode::kViolation ? RejectCode::kMalformed : RejectCode::kShutdown);\n"
           "  return GateAction::kClose;"),
    Mutant("tells_an_innocent_peer_that_it_is_wrong", "endpoint_core.cc",
           "gate_.Close(absl::UnavailableError(\"the options of this side are none\"));", ""),
    # What it reads.
    Mutant("skips_what_it_must_understand", "control_codec.cc",
           "if (fields_[i].critical && !fields_[i].used) {", "if (false) {"),
    Mutant("takes_lanes_that_cannot_be", "control_codec.cc",
           "if (std::string_view problem = LaneProblem(lane); !problem.empty()) return problem;", ""),
    # Who may reach which memory, and who may open.
    Mutant("lets_the_peer_beyond_a_region", "region_table.cc",
           "if (!Within(access.offset, size, slot.memory.size())) {", "if (false) {"),
    Mutant("lets_the_peer_write_what_it_may_read", "region_table.cc",
           "if (!Allows(slot.access, wanted)) {", "if (false) {"),
    Mutant("lets_everybody_wait", "admission.cc", "if (waiting_ == options_.waiting) {", "if (false) {"),
    Mutant("keeps_the_place_of_who_has_gone", "admission.cc",
           "if (state == State::kAdmitted) admission->running_ -= lanes_;", ""),
    # Streams over endpoints.
    Mutant("asks_too_much_of_the_queue", "endpoint_stream.cc",
           "if (posted_ - bytes_out_ + size > posted_max_) break;", ""),
    Mutant("ends_before_it_has_sent_all", "endpoint_stream.cc",
           "write_side_ == WriteSide::kShutdownQueued && unsent_.empty() &&",
           "write_side_ == WriteSide::kShutdownQueued &&"),
    Mutant("sends_more_than_the_peer_takes", "endpoint_core.cc",
           "if (terms.message_max != 0) peer_message_max_ = terms.message_max;", ""),
    # Credits: how much may be on the way.
    Mutant("posts_without_credit", "endpoint_turn.cc",
           "if (window_.available() == 0) {", "if (false) {"),
    Mutant("one_credit_too_many", "credit_window.cc", "limit_ = credits;\n  acknowledged_",
           "limit_ = credits + 1;\n  acknowledged_"),
    Mutant("takes_pieces_without_credit", "credit_window.cc",
           " || received_ == granted_) [[unlikely]]", ") [[unlikely]]"),
    Mutant("credits_are_not_told", "endpoint_turn.cc",
           "if (window_.NewsDue() && MayTell()) {", "if (false) {"),
    Mutant("counts_as_acknowledged_what_is_sent", "credit_window.cc",
           "acknowledged_ += news;", "acknowledged_ = sent_;"),
    Mutant("believes_any_acknowledgement", "lane_window.cc", "if (news > on_the_way() || ", "if ("),
    Mutant("takes_more_than_it_has_granted", "lane_window.cc", " || received_ - told_ > granted_)", ")"),
    Mutant("tells_of_receives_too_late", "lane_window.cc",
           "news_ = (receives + kReserved - 1) / kReserved;", "news_ = 2 * receives;"),
    # The way back to the stream: nothing lost, nothing twice.
    Mutant("repeats_what_the_peer_has", "lane_window.cc",
           "  Acknowledge(received - acknowledged_);\n  return absl::OkStatus();",
           "  return absl::OkStatus();"),
    Mutant("loses_the_first_the_peer_has_not", "lane_window.cc",
           "  Acknowledge(received - acknowledged_);\n  return absl::OkStatus();",
           "  Acknowledge(received - acknowledged_);\n  if (!sent_.empty()) Acknowledge(1);\n"
           "  return absl::OkStatus();"),
    Mutant("tells_of_one_too_many", "endpoint_lane.cc",
           "fallback.received = lane_window_.received();",
           "fallback.received = lane_window_.received() + 1;"),
    Mutant("tells_of_one_too_few", "endpoint_lane.cc",
           "fallback.received = lane_window_.received();",
           "fallback.received = lane_window_.received() - (lane_window_.received() > 0);"),
    Mutant("posts_before_both_have_told", "endpoint_turn.cc",
           "    default:\n      return false;\n  }\n}\n\nvoid EndpointCore::PostData",
           "    default:\n      return channel_->HasRoom();\n  }\n}\n\nvoid EndpointCore::PostData"),
    Mutant("new_overtakes_what_is_sent_again", "endpoint_turn.cc",
           "bool did = Resend();\n    if (!did) {", "bool did = Resend();\n    {"),
    Mutant("forgets_writes_that_may_not_be_done", "endpoint_lane.cc",
           "rewrite_ = lane_window_.TakeWrite();\n  if", "lane_window_.TakeWrite();\n  if"),
    Mutant("forgets_news_that_was_on_the_lane", "endpoint_lane.cc",
           "    fetched_due_ = true;\n    return true;", "    return true;"),
    Mutant("news_waits_behind_what_is_queued", "endpoint_turn.cc", "TellEnds();\n    Pump();", "Pump();"),
    Mutant("news_waits_behind_writes", "endpoint_turn.cc",
           "return carrier_ == Carrier::kStream || (carrier_ == Carrier::kLane && lane_window_.HasRoom());",
           "return HasRoom();"),
    Mutant("tells_by_lanes_that_are_gone", "endpoint_turn.cc",
           "(carrier_ == Carrier::kLane && lane_window_.HasRoom());", "lane_window_.HasRoom();"),
    Mutant("uses_less_than_is_granted", "lane_window.cc",
           "std::min(limit_, CreditWindow::kDepthMax + kSpare)",
           "std::min(limit_, CreditWindow::kDepthMax / 2)"),
    # What is posted in the call.
    Mutant("sends_at_once_without_credit", "endpoint_turn.cc",
           "if (window_.available() == 0 || !HasRoom()) return false;", "if (!HasRoom()) return false;"),
    Mutant("sends_at_once_before_what_waits", "endpoint_turn.cc",
           " || HasToPost()) return false;", ") return false;"),
    Mutant("closes_before_quiet_sends_have_come", "endpoint_turn.cc",
           "if (!quiet_out_.empty() || (carrier_", "if ((carrier_"),
]


def run(words, **options):
    return subprocess.run(words, capture_output=True, text=True, check=False, **options)


def need(done, what):
    if done.returncode != 0:
        sys.exit(f"{what}: {done.stderr or done.stdout}")
    return done.stdout


class Build:
    def __init__(self, folder):
        self.folder = folder
        self.compiles = {Path(one["file"]).name: one for one in
                         json.loads((folder / "compile_commands.json").read_text())
                         if "/src/rdma/" in one["file"]}
        commands = need(run(["ninja", "-C", str(folder), "-t", "commands", TESTS]), "ninja").splitlines()
        self.link = next(line for line in reversed(commands) if f"-o tests/{TESTS}" in line)

    def text(self, source):
        return Path(self.compiles[source]["file"]).read_text()

    def compile(self, name, source, text, work):
        one = self.compiles[source]
        (work / source).write_text(text)
        words = shlex.split(one["command"])
        words[words.index("-o") + 1] = str(work / f"{source}.o")
        words[words.index(one["file"])] = str(work / source)
        need(run([*words, "-O0", "-w"], cwd=one["directory"]), f"{name} does not compile")
        return str(work / f"{source}.o")

    def tests_with(self, name, texts, work):
        """The tests with these texts, by source, in the place of their sources."""
        objects = [self.compile(name, source, text, work) for source, text in texts.items()]
        program = work / TESTS
        link = self.link.replace(f"-o tests/{TESTS}", f"-o {program} {' '.join(objects)}")
        need(run(["/bin/sh", "-c", link], cwd=self.folder), f"{name} does not link")
        return program

    def broken(self, mutant):
        text = self.text(mutant.source)
        if text.count(mutant.before) != 1:
            sys.exit(f"{mutant.name}: {mutant.source} has {text.count(mutant.before)} of what it replaces")
        return {mutant.source: text.replace(mutant.before, mutant.after)}


def verdict(program):
    """Whether the tests have ended, and what failed first; None when nothing did."""
    words = [str(program), f"--gtest_filter={FILTER}", "--gtest_brief=1", "--gtest_fail_fast"]
    try:
        done = run(words, timeout=LIMIT_SECONDS, cwd=ROOT)
    except subprocess.TimeoutExpired:
        return False, f"no end within {LIMIT_SECONDS} s"
    if done.returncode == 0:
        return True, None
    failed = [line for line in done.stdout.splitlines() if line.startswith("[  FAILED  ]")]
    return True, failed[0].split("] ")[1] if failed else f"status {done.returncode}"


def main(folder, names):
    if not (folder / "tests" / TESTS).exists():
        print(f"skipped: {folder / 'tests' / TESTS} has not been built")
        return 77
    if unknown := set(names) - {one.name for one in MUTANTS}:
        sys.exit(f"no such mutants: {', '.join(sorted(unknown))}")
    build = Build(folder)
    mutants = [one for one in MUTANTS if not names or one.name in names]
    with tempfile.TemporaryDirectory() as work:
        whole = {one.source: build.text(one.source) for one in mutants}
        _, failed = verdict(build.tests_with("the whole one", whole, Path(work)))
    if failed is not None:
        print(f"without a mutant: {failed}")
        return 1
    survivors = 0
    for mutant in mutants:
        with tempfile.TemporaryDirectory() as work:
            ended, failed = verdict(build.tests_with(mutant.name, build.broken(mutant), Path(work)))
        found = ended and failed is not None
        survivors += not found
        print(f"{mutant.name}: {'' if found else 'NOT FOUND '}{failed or ''}", flush=True)
    return 1 if survivors else 0


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1]).resolve(), sys.argv[2:]))
