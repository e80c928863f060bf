#!/usr/bin/env python3
"""Sealed streams against gRPC's own two implementations of ALTS records, in both roles.

grpc_alts_client and grpc_alts_echo are the frame protector of gRPC's C++ with a socket, grpc_go_peer
is the connection of its Go; each record is sealed by one implementation and opened by the other.
"""

import itertools
import json
import os
import socket
import sys
import threading
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

import programs
from programs import PATIENCE, Listening, Server, each_engine, run

REKEY, PLAIN = "ALTSRP_GCM_AES128_REKEY", "ALTSRP_GCM_AES128"
KEYS = {REKEY: bytes(range(7, 51)).hex(), PLAIN: bytes(range(7, 23)).hex()}
# Records on the wire. gRPC's protector sends 1 KiB to 1 MiB, its Go 4 KiB; Penstock 4 bytes more, which
# is what the length field of gRPC's receivers allows.
LEAST, GO_MOST, USUAL, MOST, OUR_MOST = 1 << 10, 4 << 10, 16 << 10, 1 << 20, (1 << 20) + 4
REKEY_AFTER = 1 << 16  # records
OVERHEAD = 24          # bytes of a record that are not payload


def alts(protocol, frame, key=None):
    return [f"--key-hex={key or KEYS[protocol]}", f"--record-protocol={protocol}",
            f"--max-frame={frame}"]


def other_key(protocol):
    return KEYS[protocol][:-2] + "ff"


class GrpcCpp:
    """The peers made of gRPC's C++."""
    programs = ("grpc_alts_echo", "grpc_alts_client")
    absent = "gRPC's library (libgrpc29) was not found when this was configured"
    # (Its largest record, ours).
    frames = [(LEAST, LEAST), (4096, 65536), (USUAL, USUAL), (MOST, OUR_MOST), (LEAST, OUR_MOST),
              (MOST, LEAST)]

    @staticmethod
    def words(*arguments):
        return alts(*arguments)

    @staticmethod
    def server(*words):
        return Listening("grpc_alts_echo", *words, "0")

    @staticmethod
    def client(port, *words):
        return run("grpc_alts_client", *words, port)


class GrpcGo:
    """The peer made of gRPC's Go, whose records have one size."""
    programs = ("grpc_go_peer",)
    absent = "Go or its gRPC (golang-go, golang-google-grpc-dev) was not found when this was configured"
    frames = [(GO_MOST, ours) for ours in (LEAST, GO_MOST, USUAL, OUR_MOST)]

    @staticmethod
    def words(protocol, _, key=None):
        return [word for word in alts(protocol, GO_MOST, key) if not word.startswith("--max-frame")]

    @staticmethod
    def server(*words):
        return Listening("grpc_go_peer", *words, "echo", "0")

    @staticmethod
    def client(port, *words):
        return run("grpc_go_peer", *words, "client", port)


class Interop:
    def setUp(self):
        super().setUp()
        for name in self.peer.programs:
            if not programs.built(name):
                self.skipTest(self.peer.absent)

    def our_server(self, *words):
        return Server("echo_server", "--listen=127.0.0.1:0", f"--engine={self.engine}",
                      "--seal=static", *words)

    def our_client(self, address, *words):
        return run("echo_client", f"--connect={address}", f"--engine={self.engine}",
                   "--seal=static", "--duration=100ms", *words)

    def grpc_client(self, server, writes, size, *words):
        return self.peer.client(server.endpoint()[1], *words, f"--writes={writes}",
                                f"--bytes={size}")

    def check_our_server(self, server_words, client_words, writes, size):
        """gRPC's client against our server; returns the figures of the client."""
        with self.our_server(*server_words) as server:
            done = self.grpc_client(server, writes, size, *client_words)
            self.assertEqual(done.returncode, 0, done.stderr)
            last = server.stop()
        self.assertEqual((last["errors"], last["closed"], last["pool_live_bytes"]), (0, 1, 0))
        figures = json.loads(done.stdout)
        self.assertEqual(figures["bytes"], size)
        return figures

    def check_our_client(self, server_words, client_words):
        """Our client against gRPC's server; returns the figures of the client."""
        with self.peer.server(*server_words, "--tell-records") as server:
            done = self.our_client(server.address, *client_words)
            self.assertEqual(done.returncode, 0, done.stderr)
            figures = json.loads(done.stdout)
            came = [json.loads(server.line()) for _ in range(figures["connections"])]
        figures["largest_record"] = max(record["largest_record"] for record in came)
        self.assertEqual(figures["errors"], 0)
        self.assertGreaterEqual(figures["bytes"], figures["connections"] * figures["size"])
        return figures

    def test_grpc_client(self):
        for protocol, (theirs, ours) in itertools.product(KEYS, self.peer.frames):
            with self.subTest(protocol=protocol, theirs=theirs, ours=ours):
                figures = self.check_our_server(
                    alts(protocol, ours), self.peer.words(protocol, theirs),
                    f"1,1000,1001,{theirs - OVERHEAD},{theirs - OVERHEAD + 1},3000000,17", 5000000)
                self.assertLessEqual(figures["largest_record"], ours)
                if ours <= USUAL:  # with more, how much comes at once decides
                    self.assertEqual(figures["largest_record"], ours)

    def test_grpc_server(self):
        shapes = (["--size=1", "--connections=3"], ["--size=1000", "--depth=16"],
                  ["--size=3000000"])
        for protocol, (theirs, ours), shape in itertools.product(KEYS, self.peer.frames, shapes):
            with self.subTest(protocol=protocol, theirs=theirs, ours=ours, shape=shape):
                figures = self.check_our_client(self.peer.words(protocol, theirs),
                                                alts(protocol, ours) + ["--unsafe-key-reuse"] + shape)
                self.assertLessEqual(figures["largest_record"], ours)
                if shape == shapes[-1]:  # whoever writes that much at once fills the largest
                    self.assertEqual(figures["largest_record"], ours)

    def test_more_records_than_one_key_seals(self):
        for protocol in KEYS:
            theirs, _ = self.peer.frames[0]
            ours, peer = alts(protocol, LEAST), self.peer.words(protocol, theirs)
            payload = LEAST - OVERHEAD
            with self.subTest("gRPC's client, tiny records", protocol=protocol):
                self.check_our_server(ours, peer, 1, REKEY_AFTER + 5000)
            with self.subTest("gRPC's client", protocol=protocol):
                figures = self.check_our_server(ours, peer, payload,
                                                (REKEY_AFTER + 5000) * payload)
                self.assertGreater(figures["records_received"], REKEY_AFTER)
            with self.subTest("gRPC's server", protocol=protocol):
                figures = self.check_our_client(peer, ours + ["--size=16777216", "--depth=4"])
                self.assertGreater(figures["bytes"] / payload, REKEY_AFTER)

    def test_our_receiver_refuses_another_key(self):
        for protocol in KEYS:
            with self.subTest(protocol=protocol):
                # The right key gets as far as what was sent, which is not a file.
                self.assertRegex(self.refusal(protocol, KEYS[protocol]), "not bulk_transfer")
                self.assertRegex(self.refusal(protocol, other_key(protocol)), "authentic")

    def refusal(self, protocol, key):
        """What our receiver says about gRPC's client with this key."""
        with Listening("bulk_transfer", "receive", self.folder / "target", "--listen=127.0.0.1:0",
                       f"--engine={self.engine}", "--seal=static",
                       *alts(protocol, USUAL)) as receiver:
            client = self.grpc_client(receiver, 1000, 1000, *self.peer.words(protocol, USUAL, key))
            self.assertEqual(client.returncode, 1)
            self.assertEqual(receiver.end(), 1)  # its one key is used up
            self.assertFalse((self.folder / "target").exists())
            return receiver.stderr()

    def test_our_server_ends_what_is_sealed_with_another_key(self):
        for protocol in KEYS:
            with self.subTest(protocol=protocol):
                with self.our_server(*alts(protocol, USUAL)) as server:
                    done = self.grpc_client(server, 1000, 3000,
                                            *self.peer.words(protocol, USUAL,
                                                             other_key(protocol)))
                    self.assertEqual(done.returncode, 1)
                    self.assertIn("after 0 of 3000 bytes", done.stderr)
                    last = server.wait_for("the end", connections=0)
                    server.stop()
                self.assertEqual((last["closed"], last["pool_live_bytes"]), (1, 0))

    def test_grpc_refuses_another_key(self):
        for protocol in KEYS:
            with self.subTest(protocol=protocol):
                with self.peer.server(*self.peer.words(protocol, USUAL)) as server:
                    done = self.our_client(server.address,
                                           *alts(protocol, USUAL, other_key(protocol)))
                self.assertEqual(done.returncode, 1)
                self.assertEqual(json.loads(done.stdout)["bytes"], 0)
                self.assertIn("connection 0: ", done.stderr)


class InteropCpp(Interop):
    peer = GrpcCpp

    def test_our_client_refuses_its_own_records(self):
        """A peer without the key can still send back what it got."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            def reflect():
                connection, _ = listener.accept()
                connection.settimeout(PATIENCE)
                with connection:
                    try:
                        while data := connection.recv(65536):
                            connection.sendall(data)
                    except OSError:
                        pass

            thread = threading.Thread(target=reflect)
            thread.start()
            done = self.our_client("127.0.0.1:%d" % listener.getsockname()[1],
                                   *alts(REKEY, USUAL))
            thread.join()
        self.assertEqual(done.returncode, 1)
        self.assertEqual(json.loads(done.stdout)["bytes"], 0)
        self.assertRegex(done.stderr, "authentic")


class InteropGo(Interop):
    peer = GrpcGo


globals().update(each_engine(InteropCpp) | each_engine(InteropGo))

if __name__ == "__main__":
    sys.exit(programs.main("interop"))
