// Package config turns the host's YAML into a typed configuration. It reads
// files below the configuration directory and, for the names of routing tables,
// iproute2's; nothing else.
package config

import (
	"net/netip"
	"time"
)

// Config is the whole host configuration, complete: every default is filled in.
type Config struct {
	Networks   map[string]Network // by name; "default" is always there
	Forwarding string             // "manage": turn IP forwarding on when the first VM needs it; "check": only warn
	Launch     string             // "auto", "systemd" or "process": how responders are started
	LibvirtURI string             // default qemu:///system
	Hooks      Hooks
	Coexist    Coexist

	// LocalPrefixes is whose traffic is counted as local: masked, sorted, none
	// within another.
	LocalPrefixes []netip.Prefix
	LogDrops      bool // a sample of what the guards drop goes to the log
}

// Network is a named profile that annotations refer to.
type Network struct {
	Name     string
	Uplink   string // an interface's name, or "auto": that of the default route
	Table    Table
	Router4  netip.Addr // next hop of the table's default route; not valid: that of main's over the uplink; unspecified: the table gets none
	Router6  netip.Addr
	Subnets  []netip.Prefix // of the network, on the link of Downlink, or without one of Uplink
	Downlink string         // the interface towards other hosts' guests, when that is not the uplink; "": the uplink
	Addrs    []netip.Addr   // of this host on that link
	Gateway4 netip.Addr
	Gateway6 netip.Addr   // link-local
	DNS      []netip.Addr // nil: the host's upstream resolvers
	Search   []string
	NTP      []netip.Addr
	MTU      uint16 // 0: auto, the NIC's, else the uplink's
	Lease    time.Duration
	NAT      NAT
	SNAT     []netip.Addr // with NATSource, at most one of each family
	NoTrack  bool         // no connection tracking for guests that nothing is translated for
	MaxConns uint32       // connections of a guest at a time, in each direction; 0: not limited
	Announce bool         // routes carry our protocol number; false: they stay local (RouteProtocol is kept, the table is not exported; see plan)
	Isolate  bool
	Conflict string // "refuse" or "warn": what follows when somebody outside of this host has a VM's address

	ProbeARP  bool          // look for that by ARP and Neighbour Discovery on the uplink
	ProbeICMP bool          // and by ICMP echo
	ProbeWait time.Duration // how long a start waits for the answer

	Client  string        // "auto", "routed" or "classic": what kind of lease guests get
	Classic uint8         // length of the prefix that a classic lease pretends to be on the link
	Decline string        // "offer" or "hold": what follows a DECLINE
	V6Only  time.Duration // option 108's V6ONLY_WAIT (RFC 8925); 0: not sent
	Portal  string        // URI of the captive portal's API (RFC 8910); "": none
	Relay   Relay

	Pool6    Pool6
	PREF64   netip.Prefix // of the network's NAT64 (RFC 8781); not valid: none
	AFTR     string       // name of the DS-Lite tunnel's far end (RFC 6334); "": none
	ProxyNDP bool         // answer Neighbour Solicitations for guests' addresses on the link of Subnets
	ProxyARP bool         // the same for ARP
	Services []Service    // of the host, that guests may reach
	Open     bool         // guests may reach all of the host
}

// Coexist says what is done about other firewalls that keep guests offline: Manage,
// Warn or Ignore each.
type Coexist struct {
	Docker, UFW, Firewalld string
}

// What is done about another firewall.
const (
	Manage = "manage" // let guests through in the chain that is made for it
	Warn   = "warn"   // say so
	Ignore = "ignore"
)

// Service is one port of the host.
type Service struct {
	Proto uint8 // ProtoTCP or ProtoUDP
	Port  uint16
}

// The protocols of a Service (IANA's numbers).
const (
	ProtoTCP = 6
	ProtoUDP = 17
)

// Hooks are programs of the user's that the agent runs.
type Hooks struct {
	Prefix string // an absolute path: run when a delegated prefix comes or goes; "": none
}

// Pool6 says where the network's IPv6 prefixes come from that annotations ask for
// with auto. At most one of Prefix, Upstream and ULA is set; without one there is
// no pool.
type Pool6 struct {
	Prefix   netip.Prefix
	Upstream string // the interface on which the agent asks for a prefix (IA_PD)
	Hint     uint8  // the length that it asks for; 0: any
	ULA      bool   // generated once and kept (RFC 4193)
}

// Relay says where guests are relayed to instead of being answered; without
// servers they are answered.
type Relay struct {
	Servers []netip.Addr // DHCPv4 and DHCPv6 servers
	Link4   netip.Addr   // in the guests' subnet there: link selection (RFC 3527); not valid: giaddr selects it
	Link6   netip.Addr   // the same for DHCPv6: link-address (RFC 8415 §19.1.1)
	Source4 netip.Addr   // giaddr, an address of this host; not valid: the one that the route to the server has
}

// NAT is the class of source translation of a network.
type NAT string

// The classes of source translation.
const (
	NATNone    NAT = "none"
	NATPrivate NAT = "private" // masquerade private, shared (100.64/10) and ULA sources
	NATAll     NAT = "all"
	NATSource  NAT = "snat" // to the addresses in SNAT; a family that has none there as with NATPrivate
)

// Table is a routing table. Main is 254.
type Table uint32

const (
	// TableMain is the main routing table (RT_TABLE_MAIN).
	TableMain Table = 254
	// TableAuto stands for one that is allocated and kept: package spool puts it in
	// its place.
	TableAuto Table = 1<<32 - 1
)
