// Package state has the kernel objects of slash32 as comparable values, the
// difference between two states, and sorted text like ip(8) and nft(8) print.
// It is pure.
package state

import (
	"net/netip"

	"github.com/slash32/slash32/pkg/mac"
)

// State is a set of kernel objects that are ours: what is planned, or what was
// read. The zero value is empty and ready to read; New makes one to fill.
type State struct {
	Links   map[string]Link       // bridges, by name
	Sysctls map[string]string     // path below /proc/sys, e.g. net/ipv6/conf/s32-web1/accept_ra
	Addrs   map[Addr]struct{}     // gateway addresses on bridges, and addresses of the host with protocol 32 elsewhere
	Neighs  map[NeighKey]mac.Addr // permanent neighbours on bridges
	// Taps are libvirt's interfaces of guests, by name: the bridge that each is in, ""
	// when it is in none, which is never planned. One that does not exist is not read.
	Taps map[string]string
	// Hairpins are those whose bridge sends what is for the guest itself back to it: in
	// hairpin mode, and without a copy of the guest's multicasts and broadcasts.
	Hairpins map[string]struct{}
	Proxies  map[NeighKey]struct{} // addresses that the host answers ARP and Neighbour Solicitations for on an uplink (NTF_PROXY)
	Routes   map[Route]struct{}    // protocol 32, any table
	Rules    map[Rule]struct{}     // protocol 32
	// Skeleton names the version of the static part of the tables inet slash32 and
	// arp slash32: "" when there is no table, another name when one is not as we
	// make it.
	Skeleton string
	Elems    map[Elem]struct{} // elements of the table's sets and maps
}

// Link is a bridge of ours. UUID and MAC say whose it is (from the alias).
type Link struct {
	Name  string
	UUID  string   // owner: domain
	Guest mac.Addr // owner: NIC
	MAC   mac.Addr // the bridge's own address
	MTU   uint16
	Up    bool
	// Deviates names the bridge options that are not as ours always are
	// ("ageing_time", "group", "mcast_router", "mcast_snooping", "stp"), sorted, joined by
	// ",": "" when all are. It is never planned.
	Deviates string
	// Ports are the names of the interfaces in the bridge, sorted, joined by
	// ",": read only, never planned and not part of Diff.
	Ports string
	// Index is the ifindex: read only, never planned and not part of Diff.
	Index int
}

// Addr is an address on a link.
type Addr struct {
	Link   string
	Prefix netip.Prefix
}

// NeighKey names a neighbour entry: one with a MAC, or a proxy.
type NeighKey struct {
	Link string
	IP   netip.Addr
}

// Route is one route of protocol 32. Exactly one of Link and Kind is set.
type Route struct {
	Dst    netip.Prefix
	Table  uint32
	Metric uint32
	Link   string     // dev
	Via    netip.Addr // invalid: on-link
	Kind   string     // "", "blackhole", "unreachable"
}

// Rule is one policy rule of protocol 32.
type Rule struct {
	Family   int // unix.AF_INET or AF_INET6
	Priority int
	Mark     uint32 // with marks.FwmarkMask; 0: matches all
	Table    uint32 // 0 with Unreachable
	// Unreachable refuses instead of looking up a table.
	Unreachable bool
	// SuppressDefault is "suppress_prefixlength 0".
	SuppressDefault bool
	// HostRoutesOnly is "suppress_prefixlength 31", or 127 for IPv6.
	HostRoutesOnly bool
}

// Elem is one element of a set or map in the tables slash32. Fields that the
// set's key does not have are zero.
type Elem struct {
	Set  string // one of the Set... names
	Link string // ifname part of the key
	// Addr is the address part of the key: an address or, in SetGuard6, SetMasq6 and
	// SetSNAT6, one of PrefixLengths; in SetInside, SetMasqNet and SetSNATNet any prefix. In
	// SetForward4 and SetForward6 it is the host's, the unspecified one stands for
	// each of them.
	Addr  netip.Prefix
	Peer  netip.Prefix   // destination part of the key, in SetInside
	MAC   mac.Addr       // ether part of the key
	Proto uint8          // inet_proto part of the key: IPPROTO_TCP or IPPROTO_UDP
	Port  uint16         // inet_service part of the key
	Mark  uint32         // value, in SetMark
	Limit uint32         // connections at a time, in SetLimitFrom and SetLimitTo
	To    netip.AddrPort // value, where addresses are translated; the port is 0 but in SetForward4 and SetForward6
	End   bool           // in SetLocal: Addr is the first that is not in the interval any more; else its first
}

// The sets and maps of table inet slash32, and of table arp slash32 where that
// is said.
const (
	SetGuard4   = "guard4"    // ifname . ipv4_addr: sources that may leave a bridge
	SetGuard6   = "guard6"    // ifname . ipv6_addr, or one of PrefixLengths
	SetGuardMAC = "guard_mac" // ifname . ether_addr
	SetMark     = "marks"     // ifname : mark, policy routing ("mark" is a word of nft(8))
	SetMasq4    = "masq4"     // ifname (uplink) . ipv4_addr: masquerade
	SetMasq6    = "masq6"     // ifname (uplink) . ipv6_addr, or one of PrefixLengths
	SetSpoof4   = "spoof4"    // ifname, with a counter: dropped for their IPv4 source
	SetSpoof6   = "spoof6"    // ifname, with a counter: dropped for their IPv6 source
	SetSpoofMAC = "spoof_mac" // ifname, with a counter: dropped for their MAC
	SetRogue    = "rogue"     // ifname, with a counter: dropped as a DHCP server's

	SetInside4  = "inside4"   // ipv4 prefix . ipv4 prefix: from and to the subnets of one network
	SetInside6  = "inside6"   // the same for IPv6
	SetMasqNet4 = "masq_net4" // ifname (uplink) . ipv4 prefix: masquerade what other hosts' guests send
	SetMasqNet6 = "masq_net6" // the same for IPv6
	SetIsolated = "isolated"  // ifname: a bridge that no other VM is reached from or reaches
	SetItself   = "itself"    // ifname . ifname: one of those, twice

	SetForward4 = "forward4"  // ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service
	SetForward6 = "forward6"  // ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service
	SetPublic4  = "public4"   // ipv4_addr : ipv4_addr, the address that it stands for
	SetPublic6  = "public6"   // ipv6_addr : ipv6_addr
	SetSNAT4    = "snat4"     // ifname (uplink) . ipv4_addr : ipv4_addr
	SetSNAT6    = "snat6"     // ifname (uplink) . ipv6_addr, or one of PrefixLengths : ipv6_addr
	SetSNATNet4 = "snat_net4" // ifname (uplink) . ipv4 prefix : ipv4_addr, for what other hosts' guests send
	SetSNATNet6 = "snat_net6" // the same for IPv6

	// ifname, and between which there is no connection tracking: bridges, and uplinks.
	SetNoTrack       = "no_track"
	SetNoTrackUplink = "no_track_uplink"
	// ifname, with how many connections there may be at a time that begin there, and
	// that lead there from elsewhere, and a counter of the packets refused.
	SetLimitFrom = "limit_from"
	SetLimitTo   = "limit_to"

	SetARP      = "arp_own"   // table arp: ifname . ether_addr (frame) . ether_addr (sender) . ipv4_addr (sender); the two are MAC
	SetSpoofARP = "spoof_arp" // table arp: ifname, with a counter: ARP with a sender that is not the guest
	SetSpoofND  = "spoof_nd"  // ifname, with a counter: neighbour discovery for what is not the guest's
	SetRogueRA  = "rogue_ra"  // ifname, with a counter: router advertisements
	SetRedirect = "redirects" // ifname, with a counter: ICMP and ICMPv6 redirects
	SetFragment = "fragments" // ifname, with a counter: fragments, which are not dropped

	SetGateway4 = "gateway4" // ifname . ipv4_addr: the gateway's address, and the network's
	SetGateway6 = "gateway6" // ifname . ipv6_addr
	SetService  = "services" // ifname . inet_proto . inet_service: what the guest may reach on the host
	SetOpen     = "open"     // ifname: the guest may reach all of the host
	SetClosed   = "closed"   // ifname, with a counter: what it may not, and tried

	SetApart = "apart" // ifname of an isolated bridge, with a counter: what it sent to others, and they to it

	SetLocal4      = "local4"       // ipv4_addr, intervals: whose traffic is counted as local
	SetLocal6      = "local6"       // ipv6_addr, intervals
	SetInInternet  = "in_internet"  // ifname, with a counter: forwarded to the guest, from what is not local
	SetInLocal     = "in_local"     // the same from what is
	SetOutInternet = "out_internet" // ifname, with a counter: forwarded from the guest, to what is not local
	SetOutLocal    = "out_local"    // the same to what is
)

// GuardCounters are the sets that count what a guard met, by bridge: SetApart for
// isolated ones.
var GuardCounters = [...]string{
	SetSpoof4, SetSpoof6, SetSpoofMAC, SetSpoofARP, SetSpoofND, SetRogueRA, SetRedirect, SetRogue, SetClosed, SetApart, SetFragment,
}

// TrafficCounters are the sets that count what is forwarded, by bridge, in the
// order of traffic.Counter.
var TrafficCounters = [...]string{SetInInternet, SetInLocal, SetOutInternet, SetOutLocal}

// PrefixLengths are the lengths of the prefixes that sources are looked for by,
// after the whole address: SetGuard6, SetMasq6 and SetSNAT6 are, in the kernel, one
// set for addresses and one for each of these.
var PrefixLengths = [...]uint8{64, 60, 56, 52, 48}

// Scope restricts a read. The zero value is everything that is ours.
type Scope struct {
	// Links, when there are any, are the only bridges whose objects are read.
	// Such a read has no rules and no route without a link; it has the skeleton,
	// which is the host's.
	Links []string
	// Sysctls are paths below /proc/sys to read beside those of the bridges,
	// which are always read: (State).HostSysctls of what is wanted.
	Sysctls []string
	// Taps are the names of interfaces to look at: (State).TapNames of what is
	// wanted.
	Taps []string
	// Prepared leaves out what plan.Prepare leaves out: neighbours, proxies,
	// routes, rules and elements. With Links, the time it takes does not grow with the number
	// of VMs.
	Prepared bool
}

// Verb is what a Change does.
type Verb string

// The verbs. Each is idempotent: adding what is there as wanted and deleting
// what is not there succeed.
const (
	Add     Verb = "add"
	Replace Verb = "replace"
	Delete  Verb = "delete"
	Flush   Verb = "flush" // conntrack entries of a prefix, or that an element translated
)

// Change is one step from one state to another. Exactly one of the pointers is
// set; of an element that is flushed that is Translation. Was says what a Replace
// finds there, for messages only.
type Change struct {
	Verb     Verb
	Was      string
	Link     *Link
	Tap      *Tap
	Hairpin  *Tap
	Sysctl   *Sysctl
	Addr     *Addr
	Neigh    *Neigh
	Proxy    *NeighKey
	Route    *Route
	Rule     *Rule
	Skeleton *string
	Elem     *Elem
	Flow     *netip.Prefix // conntrack: with Flush
	// Translation is an element of which the tracked connections are flushed that it
	// translated.
	Translation *Elem
}

// Tap is a guest's interface and the bridge that it is in.
type Tap struct {
	Name   string `json:"name"`
	Bridge string `json:"bridge"`
}

// Sysctl is one path below /proc/sys and its value.
type Sysctl struct {
	Path  string `json:"path"`
	Value string `json:"value"`
}

// Neigh is one neighbour entry.
type Neigh struct {
	NeighKey
	MAC mac.Addr
}
