#!/bin/bash
# Makes two RDMA devices, wired to each other, and runs a command: rxe0 at 10.77.0.1 and rxe1 at
# 10.77.0.2, soft RoCE over a pair of virtual Ethernet devices, v0 and v1. Their GID index 1 is the IPv4
# address. Runs inside the machine of run.py.
#
# usage: rdma.sh COMMAND...
#
# Both ends are in one network namespace, because rdma_rxe of these kernels listens in the first one
# alone. Rules send what one address says to the other over the wire, where it can be lost or delayed
# (`tc qdisc add dev v0 root netem loss 5%`), instead of past it: a program must be bound to its address.
set -e

ip link add v0 type veth peer name v1
for end in 0 1; do
  sysctl -q -w "net.ipv4.conf.v$end.accept_local=1" "net.ipv4.conf.v$end.rp_filter=0"
  ip address add "10.77.0.$((end + 1))/24" dev "v$end"
  ip link set "v$end" up
  ip rule add pref 10 iif "v$end" lookup local
  ip rule add pref 20 from "10.77.0.$((end + 1))" to "10.77.0.$((2 - end))" lookup "10$end"
  ip route add "10.77.0.$((2 - end))" dev "v$end" table "10$end"
done
ip rule add pref 30 lookup local
ip rule delete pref 0
for end in 0 1; do
  rdma link add "rxe$end" type rxe netdev "v$end"
done
exec "$@"
