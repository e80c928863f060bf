#!/usr/bin/env python3
"""The example programs over two RDMA devices that reach each other: those of the machine that run.py
--rdma makes, where run.sh starts this. What they deliver is compared, and none may go over the stream."""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
import programs
from programs import Listening, Server, run

HERE, THERE = (["--gid-index=1", f"--device={name}"] for name in ("rxe0", "rxe1"))
SIZES = 1, 100_000, (3 << 20) + 17


class Devices(programs.Case):
    def over_device(self, *figures):
        for one in figures:
            self.assertEqual((one["transport"], one["fallback"]), ("device", ""))

    def files(self, size):
        source, target = self.folder / f"source{size}", self.folder / f"target{size}"
        source.write_bytes(os.urandom(size))
        return source, target

    def test_put(self):
        for size in SIZES:
            source, target = self.files(size)
            with Listening("rdma_put", "receive", target, "--listen=127.0.0.1:0", *THERE) as receiver:
                sent = run("rdma_put", "send", source, f"--connect={receiver.address}", *HERE)
                self.assertEqual(sent.returncode, 0, sent.stderr)
                self.over_device(json.loads(sent.stdout), json.loads(receiver.line()))
                self.assertEqual(receiver.end(), 0, receiver.stderr())
            self.assertEqual(target.read_bytes(), source.read_bytes())

    def test_bulk_transfer(self):
        for size in SIZES:
            source, target = self.files(size)
            with Listening("bulk_transfer", "receive", target, "--listen=127.0.0.1:0",
                           "--transport=rdma", *THERE) as receiver:
                sent = run("bulk_transfer", "send", source, f"--connect={receiver.address}",
                           "--transport=rdma", *HERE)
                self.assertEqual(sent.returncode, 0, sent.stderr)
                self.over_device(json.loads(sent.stdout), json.loads(receiver.line()))
                self.assertEqual(receiver.end(), 0, receiver.stderr())
            self.assertEqual(target.read_bytes(), source.read_bytes())

    def test_pingpong(self):
        with Server("rdma_pingpong", "--listen=127.0.0.1:0", "--lanes=3", *THERE) as server:
            for op in ("send", "write", "read"):
                for lanes, size, depth, iters in ((1, 64, 1, 50), (1, 100_000, 8, 50),
                                                  (3, 500_000, 4, 20)):
                    done = run("rdma_pingpong", f"--connect={server.address}", f"--op={op}",
                               f"--lanes={lanes}", f"--size={size}", f"--depth={depth}",
                               f"--iters={iters}", *HERE)
                    self.assertEqual(done.returncode, 0, done.stderr)
                    figures = json.loads(done.stdout)
                    self.over_device(figures)
                    self.assertEqual(figures["lanes"], lanes)
            server.wait_for("every endpoint to end", connections=0)
            server.stop()


if __name__ == "__main__":
    sys.exit(programs.main("vm"))
