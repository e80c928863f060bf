#!/bin/bash
# rdma_pingpong between the two RDMA devices that tests/vm/rdma.sh makes of virtual Ethernet devices, one
# JSON line for each kind of operation. Runs inside the machine of tests/vm/run.py --rdma.
#
# usage: soft_roce.sh PROGRAMS_FOLDER ITERATIONS
set -eu
program=$1/rdma_pingpong iterations=$2

for op in send write read; do
  exec {lines}< <(exec "$program" --listen=10.77.0.2:0 --device=rxe1 --gid-index=1)
  server=$!
  read -r -u "$lines" first
  "$program" "--connect=${first#listening on }" --device=rxe0 --gid-index=1 --op="$op" \
    --iters="$iterations"
  kill -TERM "$server"
  exec {lines}<&-
done
