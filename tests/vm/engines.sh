#!/bin/bash
# Runs the tests that touch the kernel, two parts of them at a time, inside the machine of run.py.
#
# usage: engines.sh TESTS_FOLDER REPORTS_PREFIX
#
# Writes REPORTS_PREFIX.<run>.<part>.xml. Status 0 when every run wrote its report, whatever the tests
# in it say, and live_migration found nothing wrong; else the last lines say what did not.
set -u
export PENSTOCK_TESTS_SLOW=1
tests=$1 reports=$2

# Not here, to end in minutes: what no kernel can change (simulated engines; IPv6, whose calls are those
# of IPv4; sealing, which is the streams' user; counts of allocations, a hundred thousand echoes each);
# and of the two ways to host both engines on one loop, the one that waits by epoll.
without='*Simulated*:*Ipv6:*EpollWithUring*:*/SealTest.*:*/SealedStreamTest.*:*/AllocationTest.*'
unit="Sys.*:Epoll.*:Errors/*:Engine*:Uring*:WatchFailure*:MoveSweep*:StreamMail*:Modes/*"
unit="$unit:Environments/*:Resolving.*:BalanceThreads.*-$without"
conformance="*-$without:Sealed/*"
# Records that move, in either format, from either engine.
sealed='Sealed/SwitchTest.*/*Native:Sealed/SwitchTest.*/*Grpc'
sealed="$sealed:Sealed/MigrateTest.*/*Native:Sealed/MigrateTest.*/*Grpc-*Simulated*"

# run NAME BINARY FILTER PARTS: its tests, in so many parts at a time.
ended=0
run() {
  local name=$1 binary=$2 filter=$3 last=$(($4 - 1)) part
  for part in $(seq 0 "$last"); do
    GTEST_TOTAL_SHARDS=$4 GTEST_SHARD_INDEX=$part "$tests/penstock_${binary}_tests" \
      --gtest_brief=1 --gtest_filter="$filter" --gtest_output="xml:$reports.$name.$part.xml" \
      > "$reports.$name.$part.log" 2>&1 &
  done
  wait
  for part in $(seq 0 "$last"); do
    if [ ! -s "$reports.$name.$part.xml" ]; then
      tail -n 20 "$reports.$name.$part.log"
      echo "the $name tests, part $part, ended without a report"
      ended=1
    fi
  done
}
run unit unit "$unit" 2
run conformance conformance "$conformance" 2
run sealed conformance "$sealed" 2

# Both ends of every connection, between engines and loops, with every byte verified.
live=$tests/../examples/live_migration psk=$(mktemp)
printf %064d 7 > "$psk"  # hexadecimal digits
if [ -x "$live" ]; then
  for seal in "--seal=none" "--seal=psk --psk-file=$psk"; do
    if ! timeout 120 "$live" $seal --connections=16 --moves=2000 --seconds=100 --json; then
      echo "live_migration $seal: something is wrong"
      ended=1
    fi
  done
fi
exit $ended
