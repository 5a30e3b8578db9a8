// Package marks holds every value by which a kernel object is known to be
// slash32's. It is constants only and imports nothing but net/netip.
//
// The question each of them answers: how does an agent that starts with no
// memory know that this object is ours, and whose it is?
package marks

import "net/netip"

const (
	// RouteProtocol marks every route and every policy rule of ours
	// (rtm_protocol, FRA_PROTOCOL). 32 is in no distribution's rt_protos; BIRD
	// and FRR filter on it to announce the VMs and nothing else.
	RouteProtocol = 32

	// RouteMetric is the metric of a VM's routes. It leaves room below for the
	// better one (RouteMetricArriving) that wins while a migration settles.
	RouteMetric         = 1024
	RouteMetricArriving = 512

	// RulePriorityConnected, RulePriorityMarked and RulePriorityRefused are the
	// first priorities of the three ranges of policy rules: per routing table that
	// is not main, one rule "lookup T suppress_prefixlength 0" (host, uplink and
	// other VMs reach the /32s in T), one rule "fwmark M lookup T" (what the VMs
	// send) and one rule "fwmark M unreachable" (it leaves by T or not at all). The
	// ranges are RulePriorityRange long and end before main (32766).
	RulePriorityConnected = 32000
	RulePriorityMarked    = 32400
	RulePriorityRefused   = 32600
	RulePriorityRange     = 160

	// RulePriorityMain is before them: "lookup main" for host routes only, so that a
	// VM with a table of its own reaches those whose addresses are in main, and that
	// those are reached though the network of an uplink, in another table, has their
	// addresses.
	RulePriorityMain = RulePriorityConnected - 1

	// RulePriorityHosts is the first of the same rules for the other tables, where
	// there are several: the network of one's uplink may have the address of a VM in
	// another.
	RulePriorityHosts = 31800

	// TableFirst is the first of the TableCount routing tables that "table: auto"
	// takes from: of no distribution's rt_tables, and above the 255 of the first
	// netlink.
	TableFirst = 3200
	TableCount = 256

	// FwmarkMask is the part of the packet mark that is ours, so that other
	// users of marks (Docker, kube-proxy, wg-quick, Tailscale) keep theirs.
	FwmarkMask  = 0x3fe00000
	FwmarkShift = 21

	// LinkGroup is the group of our bridges, given in the same request that
	// creates them: the nftables guard matches it, so that nothing is forwarded
	// from a bridge of ours before the VM's guard elements stand, and a bridge
	// left over by a hook that died half-way is still known as ours.
	LinkGroup = 32

	// LinkAliasPrefix starts the alias of a bridge: slash32:<uuid>:<mac>.
	LinkAliasPrefix = "slash32:"

	// NftTable is the name of the only nftables tables that are ours: in family
	// inet, and in family arp.
	NftTable = "slash32"

	// LogGroup is the nfnetlink_log group that samples of what the guards drop go
	// to.
	LogGroup = 32

	// GatewayMAC is the address of every bridge of ours on every host, so that
	// a guest that migrates keeps a valid neighbour entry. Locally administered.
	GatewayMAC = "02:73:6c:33:32:01"

	// Namespace is the XML namespace of the annotation.
	Namespace = "urn:slash32:domain:1"

	// ServerDUID is the DHCPv6 server identifier, one and the same on all
	// hosts (RFC 8415 §11.5, DUID-UUID, type 4): 00:04 and the 16 bytes of the
	// UUID 736c6173-6833-3200-8000-000000000001.
	ServerDUID = "\x00\x04\x73\x6c\x61\x73\x68\x33\x32\x00\x80\x00\x00\x00\x00\x00\x00\x01"

	// User is the account that the responder runs as once its sockets are open.
	User = "slash32"
)

// DefaultGateway4 and DefaultGateway6 are the gateway addresses on each bridge
// unless the network says otherwise.
var (
	DefaultGateway4 = netip.AddrFrom4([4]byte{169, 254, 0, 1})
	DefaultGateway6 = netip.MustParseAddr("fe80::1")
)
