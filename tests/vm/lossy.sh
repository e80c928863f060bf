#!/bin/bash
# Loses and delays packets between the two RDMA devices of rdma.sh, both ways, and runs a command: 1 %
# of them are lost, and each takes 1 ms. Runs inside the machine of run.py.
#
# usage: lossy.sh COMMAND...
set -e

for end in v0 v1; do
  tc qdisc add dev "$end" root netem loss 1% delay 1ms limit 10000
done
exec "$@"
