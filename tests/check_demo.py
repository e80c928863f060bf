#!/usr/bin/env python3
"""Checks the figures of examples/demo.sh --json and writes a report of googletest's form.

usage: check_demo.py FIGURES.json REPORT.xml
"""

import json
import sys
import xml.etree.ElementTree as ElementTree

# Resident memory, of which the server has the C library give back what it keeps; the pool itself
# must be exact.
RESIDENT_RETURN_MAX = 4 << 20
# User memory of one idle connection, everything that the server keeps for it.
RESIDENT_EACH_MAX = 512
SEALED_RESIDENT_EACH_MAX = 2048


def check_echo(figures):
    for side in ("client", "server"):
        yield f"errors of the {side}", figures[side]["errors"] == 0, figures[side]["errors"]
    yield "some requests", figures["client"]["requests"] > 0, figures["client"]["requests"]
    yield "pool empty at the end", figures["server"]["pool_live_bytes"] == 0, figures["server"]


def check_bulk(figures):
    yield "checksums equal", figures["sha256_sent"] == figures["sha256_received"], figures


def check_moving(figures):
    for what in ("errors", "stranded"):
        yield what, figures[what] == 0, figures[what]
    for what in ("engine_switches", "loop_moves", "bytes", "bytes_carried"):
        yield f"some {what}", figures[what] > 0, figures[what]
    yield "p50 within p99", figures["pause_p50_us"] <= figures["pause_p99_us"], figures


def check_endpoint(figures):
    client = figures["client"]
    yield "some operations", client["iters"] > 0 and client["per_s"] > 0, client
    yield "p50 within p99", 0 < client["p50_us"] <= client["p99_us"], client
    yield "pool empty at the end", figures["server"]["pool_live_bytes"] == 0, figures["server"]


def check_device(figures):
    for op in ("send", "write", "read"):
        yield f"{op} over the device", figures[op]["transport"] == "device", figures[op]
        yield f"p50 of {op} within p99", 0 < figures[op]["p50_us"] <= figures[op]["p99_us"], figures[op]


def check_stranger(figures):
    for who in ("stranger", "plain"):
        yield f"{who} refused", figures[f"{who}_status"] == 1, figures[f"{who}_status"]
    said = figures["stranger_said"]
    yield "the stranger is told", "alert" in said, said
    said = figures["server_said"]
    yield "the server says why", "issuer certificate" in said, said
    yield "and of each refusal", len(said.strip().splitlines()) == 2, said
    yield "errors", figures["server"]["errors"] == 0, figures["server"]


def check_sealed_idle(figures):
    return check_idle(figures, SEALED_RESIDENT_EACH_MAX)


def check_idle(figures, each_max=RESIDENT_EACH_MAX):
    idle = figures["snapshot"]["idle_connections"]
    yield "all idle", idle == figures["count"], idle
    silent = figures["silent"]
    if silent is not None:
        yield "all idle from accept on", silent["idle_connections"] == figures["count"], silent
        yield "live pool bytes from accept on", silent["pool_live_bytes"] == 0, silent
        each = figures["resident_per_silent"]
        yield f"at most {each_max} resident bytes each from accept on", each <= each_max, each
    for key in ("pool_live_bytes", "pinned_bytes", "sealed_pinned_bytes", "framed_pinned_bytes"):
        yield key, figures["snapshot"][key] == 0, figures["snapshot"]
    yield "errors", figures["last"]["errors"] == 0, figures["last"]
    each = figures["resident_per_connection"]
    yield f"at most {each_max} resident bytes each", each <= each_max, each
    back = figures["resident_after"] - figures["resident_before"]
    yield f"at most {RESIDENT_RETURN_MAX} resident bytes stay", back <= RESIDENT_RETURN_MAX, back


CHECKS = {"echo": check_echo, "bulk": check_bulk, "idle": check_idle, "moving": check_moving,
          "endpoint": check_endpoint, "endpoint.device": check_device,
          "sealed_echo": check_echo, "stranger": check_stranger, "sealed_idle": check_sealed_idle}
EXPECTED = {"echo": ("epoll", "uring"), "bulk": ("transfer",), "idle": ("epoll", "uring"),
            "moving": ("plain", "sealed"), "endpoint": ("send", "write", "read", "device"),
            "sealed_echo": ("epoll", "uring"), "stranger": ("refused",),
            "sealed_idle": ("epoll", "uring")}


def verdict(group, name, figures, machine):
    """(failure, skip): a text where one applies."""
    step = figures.get(group, {}).get(name)
    if step is None:
        return "the demo did not report it", None
    if "broken" in step:
        return step["broken"], None
    if "absent" in step:
        # An engine that was built, on a kernel that gives it rings, has no reason to refuse.
        may_lack_uring = machine["uring_missing"] or "not compiled in" in machine["uring_refused"]
        if name == "epoll" or (not may_lack_uring and (name == "uring" or group == "moving")):
            return f"said to be absent: {step['absent']}", None
        return None, step["absent"]
    check = CHECKS.get(f"{group}.{name}", CHECKS.get(group))
    wrong = [f"{what}: {value}" for what, holds, value in check(step) if not holds]
    if not wrong and step.get("count", 0) < step.get("wanted", 0):
        return None, f"only {step['count']} of {step['wanted']} connections: too few descriptors"
    return ("; ".join(wrong) or None), None


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        figures = json.load(file)
    suite = ElementTree.Element("testsuite", name="demo")
    for group, names in EXPECTED.items():
        for name in names:
            case = ElementTree.SubElement(suite, "testcase", classname=f"demo.{group}", name=name,
                                          status="run")
            failure, skip = verdict(group, name, figures, figures["machine"])
            if failure:
                ElementTree.SubElement(case, "failure", message=failure)
                print(f"demo.{group}.{name}: {failure}")
            elif skip:
                ElementTree.SubElement(case, "skipped", message=skip)
    ElementTree.ElementTree(suite).write(sys.argv[2])


if __name__ == "__main__":
    main()
