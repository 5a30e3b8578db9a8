#!/bin/bash
# The lab's network, as the hypervisor sees it.
#
#   inet 203.0.113.9 ── rtr ── up0 192.0.2.2 ── hv (main table)
#                         └─── up1 192.0.2.6 ── hv (table 100)
#
# rtr knows the routed prefixes 198.51.100.0/24 and 2001:db8:100::/64 behind
# up0. inet knows no private address: only masquerade lets those out.
set -eu

for ns in rtr inet; do
	ip netns add $ns
	ip -n $ns link set lo up
done
# VMs of table 100 receive on up0 and send on up1: the host's own default for
# rp_filter must not matter.
for enter in "" "ip netns exec rtr" "ip netns exec inet"; do
	$enter sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0
done
ip link add up0 type veth peer name hv0 netns rtr
ip link add up1 type veth peer name hv1 netns rtr
ip -n rtr link add inet0 type veth peer name up0 netns inet

address() { # namespace device address...
	local ip="ip ${1:+-n $1}" dev=$2
	shift 2
	# The kernel's own link-local address would be usable, after its duplicate
	# detection, some time later.
	$ip link set "$dev" addrgenmode none up
	for a; do $ip address add "$a" dev "$dev" $(case $a in *:*) echo nodad ;; esac); done
}
address "" up0 192.0.2.2/30 fe80::2/64 2001:db8:0:1::2/64
address rtr hv0 192.0.2.1/30 fe80::a/64 2001:db8:0:1::1/64
address "" up1 192.0.2.6/30 fe80::6/64 2001:db8:0:2::2/64
address rtr hv1 192.0.2.5/30 fe80::a/64 2001:db8:0:2::1/64
address rtr inet0 203.0.113.1/24 fe80::a/64 2001:db8:9::1/64
address inet up0 203.0.113.9/24 fe80::9/64 2001:db8:9::9/64

ip route add default via 192.0.2.1
ip route add default via 2001:db8:0:1::1
ip route add default via 192.0.2.5 table 100
ip route add default via 2001:db8:0:2::1 table 100

ip netns exec rtr sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
ip -n rtr route add 198.51.100.0/24 via 192.0.2.2
ip -n rtr route add 2001:db8:100::/64 via 2001:db8:0:1::2
for prefix in 192.0.2.0/24 198.51.100.0/24; do ip -n inet route add $prefix via 203.0.113.1; done
for prefix in 2001:db8:0:1::/64 2001:db8:0:2::/64 2001:db8:100::/64; do ip -n inet route add $prefix via 2001:db8:9::1; done
