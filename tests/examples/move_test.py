#!/usr/bin/env python3
"""Servers whose connections change engine and loop all the time, and live_migration."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import programs
from programs import Case, Running, Server, built, run, uring_missing
from http_test import Answers, GET, GREETING
from seal_test import SCRIPT

MOVE_KEYS = ["engine_switches", "switches_to_epoll", "switches_to_uring", "listener_switches",
             "listener_switches_refused", "loop_moves", "moves_out", "moves_back",
             "refused_to_epoll", "refused_to_uring", "refused_out", "refused_in",
             "stranded", "pause_p50_us", "pause_p99_us", "late_completions", "bytes_carried"]
LEFT_KEYS = ["connections_left", "descriptors_left", "bytes_left"]
KEYS = ["connections", "loops", "seconds", "bytes", "bytes_per_s", "errors", *LEFT_KEYS,
        *MOVE_KEYS]
# Of streams under verified traffic, half of them sealed; the preset soak has a million.
MOVES = int(os.environ.get("PENSTOCK_TEST_MOVES", "20000"))
# From so many on they prove what is promised: what is missing then is no reason to leave them out.
PROOF = 1_000_000
SWITCH, MOVE = "--switch-every=2ms", "--move-every=3ms"


def sealing_missing():
    asked = run("echo_client", "--seal=psk", "--connect=unix:@none")
    return "without sealed streams" in asked.stderr


class MovingCase(Case):
    def missing(self, why):
        self.fail(why) if MOVES >= PROOF else self.skipTest(why)

    def need_uring(self):
        if uring_missing():
            self.missing(f"io_uring: {uring_missing()}")

    def psk(self):
        if sealing_missing():
            self.missing("built without sealed streams")
        folder = self.folder / "certs"
        subprocess.run([SCRIPT, folder], check=True, stdout=subprocess.DEVNULL)
        return ["--seal=psk", f"--psk-file={folder}/psk.hex"]

    def check_figures(self, figures):
        self.assertEqual((figures["errors"], figures["stranded"]), (0, 0))
        self.assertGreater(figures["pause_p50_us"], 0)
        self.assertGreaterEqual(figures["pause_p99_us"], figures["pause_p50_us"])


class Servers(MovingCase):
    def check_echo(self, words, seal=()):
        with Server("echo_server", "--listen=127.0.0.1:0", *words, *seal) as server:
            done = run("echo_client", f"--connect={server.address}", "--connections=16",
                       "--size=20000", "--depth=4", "--duration=1500ms", *seal)
            self.assertEqual(done.returncode, 0, done.stderr)
            client = json.loads(done.stdout)
            last = server.stop()
        self.check_figures(last)
        self.assertEqual((last["accepted"], last["closed"], last["pool_live_bytes"]), (16, 16, 0))
        self.assertEqual(list(last)[-len(MOVE_KEYS):], MOVE_KEYS)
        if not seal:
            self.assertEqual((last["bytes_in"], last["bytes_out"]), (client["bytes"],) * 2)
        return last

    def test_engines_under_load(self):
        self.need_uring()
        for engine in ("epoll", "uring"):
            with self.subTest(engine=engine):
                last = self.check_echo([f"--engine={engine}", SWITCH])
                self.assertGreater(last["engine_switches"], 16)
                self.assertEqual(last["loop_moves"], 0)

    def test_loops_under_load(self):
        for engine in ("epoll", "uring"):
            if engine == "uring" and uring_missing():
                continue
            with self.subTest(engine=engine):
                last = self.check_echo([f"--engine={engine}", "--loops=3", MOVE])
                self.assertGreater(last["loop_moves"], 16)
                self.assertEqual(last["engine_switches"], 0)

    def test_both_under_load(self):
        self.need_uring()
        last = self.check_echo(["--loops=2", SWITCH, MOVE])
        self.assertGreater(last["engine_switches"], 16)
        self.assertGreater(last["loop_moves"], 16)

    def test_both_sealed(self):
        self.need_uring()
        last = self.check_echo(["--loops=2", SWITCH, MOVE], self.psk())
        self.assertGreater(last["loop_moves"], 16)

    def test_still_streams_stay(self):
        with Server("echo_server", "--listen=127.0.0.1:0", "--loops=2") as server:
            with server.connect() as peer:
                peer.sendall(b"x")
                self.assertEqual(peer.recv(1), b"x")
            last = server.stop()
        self.assertEqual([last[key] for key in MOVE_KEYS], [0] * len(MOVE_KEYS))

    def test_idle_connections_move_and_hold_nothing(self):
        self.need_uring()
        with Server("echo_server", "--listen=127.0.0.1:0", "--loops=2", SWITCH, MOVE) as server:
            peers = [server.connect() for _ in range(50)]
            for peer in peers:
                peer.sendall(b"x")
                self.assertEqual(peer.recv(1), b"x")
            moved = server.snapshot()["loop_moves"]
            programs.wait_until(lambda: server.snapshot()["loop_moves"] > moved + 500, "500 moves")
            programs.wait_until(lambda: server.snapshot()["pool_live_bytes"] == 0, "no byte held")
            for peer in peers:
                peer.sendall(b"y")
                self.assertEqual(peer.recv(1), b"y")
                peer.close()
            last = server.stop()
        self.check_figures(last)

    def test_adaptive(self):
        """What it decides is the machine's business; that nothing is lost is ours."""
        self.need_uring()
        with Server("echo_server", "--listen=127.0.0.1:0", "--adaptive", "--engine=epoll") as server:
            done = run("echo_client", f"--connect={server.address}", "--connections=64",
                       "--size=64", "--depth=4", "--duration=6s")
            self.assertEqual(done.returncode, 0, done.stderr)
            now = server.snapshot()
            last = server.stop()
            told = server.stderr()
            self.assertRegex(told, r"(?m)adaptive: switches: \d+$")
        self.assertEqual((last["errors"], last["closed"], last["stranded"]), (0, 64, 0))
        # The same decisions as the trace on stderr, by kind, and the last of them.
        self.assertEqual(last["adaptive_trials"], told.count("streams go first"))
        self.assertEqual(last["adaptive_kept"], told.count("serves from now on: it takes"))
        self.assertLessEqual(last["adaptive_kept"] + last["adaptive_returned"],
                             last["adaptive_trials"])
        self.assertEqual(last["adaptive_adopted"], 0)
        lines = re.findall(r"(?m)adaptive: (?!switches: )(.*)$", told)
        self.assertEqual(last["adaptive_last"], f"loop 0: {lines[-1]}" if lines else "")
        for key in ("adaptive_trials", "adaptive_kept", "adaptive_returned", "adaptive_held",
                    "adaptive_recalled", "adaptive_sweeps"):
            self.assertLessEqual(now[key], last[key])

    def test_balance(self):
        """As above."""
        with Server("echo_server", "--listen=127.0.0.1:0", "--loops=2", "--balance") as server:
            done = run("echo_client", f"--connect={server.address}", "--connections=9",
                       "--size=1000", "--depth=4", "--duration=1s")
            self.assertEqual(done.returncode, 0, done.stderr)
            now = server.snapshot()
            last = server.stop()
            told = re.search(r"(?m)balance: moves: (\d+)$", server.stderr())
            lines = re.findall(r"(?m)balance: (?!moves: )(.*)$", server.stderr())
        self.assertIsNotNone(told)
        self.assertLessEqual(int(told[1]), last["loop_moves"])
        self.assertEqual(last["balance_last"], lines[-1] if lines else "")
        for key in ("balance_moved", "balance_none", "balance_given_up", "balance_held"):
            self.assertLessEqual(now[key], last[key])
        self.assertNotIn("adaptive_trials", last)
        self.assertEqual((last["errors"], last["closed"], last["stranded"]), (0, 9, 0))

    def test_stops_in_order_while_they_move(self):
        """What was received before SIGTERM is answered, whatever is on its way."""
        with Server("echo_server", "--listen=127.0.0.1:0", "--loops=2", "--move-every=1ms",
                    "--grace=10m") as server:
            peers = [server.connect() for _ in range(20)]
            for peer in peers:
                peer.sendall(b"x" * 1000)
            for peer in peers:
                self.assertEqual(len(peer.recv(1000, socket.MSG_WAITALL)), 1000)
            server.signal(signal.SIGTERM)
            for peer in peers:
                peer.sendall(b"y")
                self.assertEqual(peer.recv(1), b"y")
                peer.close()
            last = json.loads(server.line())
            self.assertEqual(server.end(), 0)
        self.assertEqual((last["errors"], last["closed"], last["stranded"]), (0, 20, 0))

    def test_http_requests_in_pieces(self):
        self.need_uring()
        with Server("http_hello", "--listen=127.0.0.1:0", "--loops=2", SWITCH,
                    MOVE, "--grace=100ms") as server:
            with server.connect() as peer:
                answers = Answers(peer)
                for at in range(1, len(GET)):
                    # Its first half waits on one loop, the other comes to another one.
                    peer.sendall(GET[:at])
                    moved = server.snapshot()["loop_moves"]
                    programs.wait_until(lambda was=moved: server.snapshot()["loop_moves"] > was,
                                        "a move")
                    peer.sendall(GET[at:] + GET)
                    for _ in range(2):
                        status, _, body = answers.next()
                        self.assertEqual((status, body), (200, GREETING))
            last = server.stop()
        self.check_figures(last)

    def test_flags(self):
        for name in ("echo_server", "http_hello"):
            for words, says in (
                    (["--move-every=10ms"], ["--move-every", "--loops=2"]),
                    (["--balance"], ["--balance", "--loops=2"]),
                    (["--move-every=1us", "--loops=2"], ["--move-every", "1us", "1ms"]),
                    (["--switch-every=-1s"], ["--switch-every", "-1s", "1ms"]),
                    (["--adaptive", "--switch-every=1s"], ["--adaptive", "--switch-every"]),
                    (["--adaptive", "--busy-poll=50us"], ["--adaptive", "--busy-poll"]),
                    (["--balance", "--loops=2", "--busy-poll=50us"], ["--balance", "--busy-poll"]),
                    (["--switch-every=5"], ["--switch-every", "'5'", "500ms"])):
                with self.subTest(name=name, words=words):
                    done = run(name, "--listen=127.0.0.1:0", *words)
                    self.assertEqual(done.returncode, 1)
                    for text in says:
                        self.assertIn(text, done.stderr)


class WhatAnEchoRuns(Case):
    """Moving costs nothing while nothing moves: an echo calls nothing that moves are made of."""

    ECHOES = 200
    SERVES = re.compile(r"internal::Connection::(Serve|Step)\b")
    MOVES = re.compile(r"\bMoveSweep\b|\bParcel\b|\bTransit\b|\bAway(Ticket)?\b|"
                       r"::Connection::(Move|BeginMove|EndMove|OnReleased|Proceed|HandOver|"
                       r"LeaveLoop|JoinLoop|Settled|FinishMove|Arrive|ComeBack)\b")

    def calls(self, *words):
        """How often anything of SERVES and of MOVES was called while it served ECHOES."""
        figures = self.folder / "calls"
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={figures}",
                   programs.program("echo_server"), "--listen=127.0.0.1:0", *words]
        with subprocess.Popen(command, text=True, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE) as server:
            host, port = server.stdout.readline().split()[-1].rsplit(":", 1)
            with socket.create_connection((host, int(port)), programs.PATIENCE) as peer:
                for _ in range(self.ECHOES):
                    peer.sendall(b"x" * 64)
                    self.assertEqual(len(peer.recv(64, socket.MSG_WAITALL)), 64)
            server.terminate()
            server.communicate(timeout=programs.PATIENCE)
        # https://valgrind.org/docs/manual/cl-format.html: a name stands with its number once.
        names, callee, counts = {}, None, {"serves": 0, "moves": 0}
        for line in figures.read_text().splitlines():
            if found := re.match(r"c?fn=(\(\d+\))(?: (.*))?$", line):
                if found[2]:
                    names[found[1]] = found[2]
                if line.startswith("cfn"):
                    callee = names[found[1]]
            elif found := re.match(r"calls=(\d+)", line):
                counts["serves"] += int(found[1]) if self.SERVES.search(callee) else 0
                counts["moves"] += int(found[1]) if self.MOVES.search(callee) else 0
        return counts

    def test_nothing_of_moves(self):
        if shutil.which("valgrind") is None:
            self.skipTest("no valgrind to count calls by")
        binary = Path(programs.program("echo_server")).read_bytes()
        if b"__asan_init" in binary or b"__tsan_init" in binary:
            self.skipTest("valgrind does not run what is built with a sanitizer")
        engines = ["epoll"] if uring_missing() else ["epoll", "uring"]
        for engine in engines:
            with self.subTest(engine=engine):
                still = self.calls(f"--engine={engine}")
                self.assertGreaterEqual(still["serves"], self.ECHOES)
                self.assertLess(still["moves"], self.ECHOES // 4, "some are called as it closes")
        if "uring" in engines:
            # That they would be seen.
            moving = self.calls("--engine=epoll", "--switch-every=1ms")
            self.assertGreater(moving["moves"], self.ECHOES // 4)


class LiveMigration(MovingCase):
    def setUp(self):
        super().setUp()
        if built("live_migration") is None:
            self.fail("live_migration is not built")
        self.need_uring()

    def check_json(self, *words, moves=400, **options):
        done = run("live_migration", "--json", "--seconds=5000", f"--moves={moves}", *words,
                   **options)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stdout.count("\n"), 1, done.stdout)
        figures = json.loads(done.stdout)
        self.assertEqual(list(figures), KEYS)
        self.assertEqual([figures[key] for key in LEFT_KEYS], [0, 0, 0])
        self.check_figures(figures)
        self.assertGreater(figures["bytes"], 0)
        return figures

    def test_plain(self):
        figures = self.check_json("--connections=40")
        self.assertEqual((figures["connections"], figures["loops"]), (40, 2))
        self.assertGreater(figures["engine_switches"], 80)
        self.assertGreater(figures["loop_moves"], 80)
        self.assertGreater(figures["bytes_carried"], 0)

    def test_sealed(self):
        figures = self.check_json("--connections=20", *self.psk(), moves=200)
        self.assertGreater(figures["loop_moves"], 40)

    def check_paced(self, *words):
        done = run("live_migration", "--json", "--seconds=2", "--rate=400", "--window=1000",
                   "--connections=20", *words)
        self.assertEqual(done.returncode, 0, done.stderr)
        figures = json.loads(done.stdout)
        self.check_figures(figures)
        windows = figures["bytes"] / 1000
        self.assertGreaterEqual(windows, 1)
        self.assertLessEqual(windows, 400 * (figures["seconds"] + 1) + 20)

    def test_paced_plain(self):
        self.check_paced()

    def test_paced_sealed(self):
        self.check_paced(*self.psk())

    def check_many_moves(self, *words):
        figures = self.check_json(*words, moves=MOVES // 2, timeout=5500)
        self.assertGreaterEqual(figures["engine_switches"] + figures["loop_moves"], MOVES // 2)
        # Each way has its share.
        for way in ("switches_to_epoll", "switches_to_uring", "loop_moves"):
            self.assertGreater(figures[way], MOVES // 20, way)
        if MOVES >= PROOF:
            print(json.dumps(figures), file=sys.stderr)

    def test_many_moves_plain(self):
        self.check_many_moves()

    def test_many_moves_sealed(self):
        self.check_many_moves(*self.psk())

    def test_one_kind_of_move_alone(self):
        self.assertEqual(self.check_json("--move-every=0", moves=100)["loop_moves"], 0)
        self.assertEqual(self.check_json("--switch-every=0", moves=100)["engine_switches"], 0)

    def test_plain_lines_without_a_terminal(self):
        done = run("live_migration", "--seconds=2", "--connections=10")
        self.assertEqual(done.returncode, 0, done.stderr)
        lines = done.stdout.splitlines()
        self.assertGreaterEqual(len(lines), 2, done.stdout)
        self.assertNotIn("\033", done.stdout)
        for line in lines[:-1]:
            self.assertRegex(line, r"^\d+ s: \d+ streams on epoll, \d+ on io_uring; \d+ switches, "
                                   r"\d+ moves; pause p50 .*, p99 .*; .* verified, 0 errors$")
        self.assertRegex(lines[-1], r"^10 connections in .* 0 errors, 0 stranded$")

    def test_a_table_on_a_terminal(self):
        script = built("live_migration") + " --seconds=1 --connections=4"
        done = subprocess.run(["script", "-qec", script, "/dev/null"], text=True, check=False,
                              capture_output=True, timeout=programs.PATIENCE)
        self.assertEqual(done.returncode, 0, done.stdout)
        self.assertRegex(done.stdout, r"on epoll +io_uring +switches")
        self.assertRegex(done.stdout, r"loop 0 [^\n]*\n\s*loop 1 ")
        self.assertIn("\033[4A", done.stdout)

    def test_ends_early_at_a_signal(self):
        with Running("live_migration", "--seconds=1000", "--connections=8") as program:
            self.assertIn("streams on epoll", program.line())
            program.signal(signal.SIGINT)
            self.assertEqual(program.end(), 0)
            self.assertEqual(program.stderr(), "")

    def test_flags(self):
        for words, says in ((["--connections=0"], ["--connections", "1 to"]),
                            (["--seconds=0"], ["--seconds", "1 to"]),
                            (["--move-every=1us"], ["--move-every", "1ms"]),
                            (["--seal=none", "extra"], ["extra", "only flags"]),
                            (["--seal=psk"], ["--psk-file"])):
            if words == ["--seal=psk"] and sealing_missing():
                continue
            with self.subTest(words=words):
                done = run("live_migration", *words)
                self.assertEqual(done.returncode, 1)
                for text in says:
                    self.assertIn(text, done.stderr)


if __name__ == "__main__":
    sys.exit(programs.main())
