#!/bin/bash
# Runs the tests that touch the kernel, two parts of them at a time, inside the machine of run.py.
#
# usage: engines.sh TESTS_FOLDER REPORTS_PREFIX
#
# Writes REPORTS_PREFIX.<binary>.<part>.xml. Status 0 when every binary wrote its report, whatever the
# tests in it say; else the last lines say which did not.
set -u
export PENSTOCK_TESTS_SLOW=1
tests=$1 reports=$2

# Not here, to end in minutes: what no kernel can change (simulated engines; IPv6, whose calls are those
# of IPv4; sealing, which is the streams' user; counts of allocations, a hundred thousand echoes each);
# and of the two ways to host both engines on one loop, the one that waits by epoll.
without='*Simulated*:*Ipv6:*EpollWithUring*:Sealed/*:*/SealTest.*:*/SealedStreamTest.*:*/AllocationTest.*'
unit="Sys.*:Epoll.*:Errors/*:Engine*:Environments/*:Resolving.*-$without"
conformance="*-$without"

ended=0
for binary in unit conformance; do
  for part in 0 1; do
    GTEST_TOTAL_SHARDS=2 GTEST_SHARD_INDEX=$part "$tests/penstock_${binary}_tests" --gtest_brief=1 \
      --gtest_filter="${!binary}" --gtest_output="xml:$reports.$binary.$part.xml" \
      > "$reports.$binary.$part.log" 2>&1 &
  done
  wait
  for part in 0 1; do
    if [ ! -s "$reports.$binary.$part.xml" ]; then
      tail -n 20 "$reports.$binary.$part.log"
      echo "the $binary tests, part $part, ended without a report"
      ended=1
    fi
  done
done
exit $ended
