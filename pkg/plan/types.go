// Package plan is the only place that knows the network design: valid VMs,
// configuration and facts about the host in, desired kernel state and bindings
// for the responders out. It is pure.
package plan

import (
	"net/netip"

	"github.com/google/uuid"

	"github.com/slash32/slash32/pkg/responder"
	"github.com/slash32/slash32/pkg/state"
)

// Facts is what planning needs to know of the host.
type Facts struct {
	// Host is the host's name.
	Host string
	// Uplink4 and Uplink6 are the interfaces of the default routes in main; ""
	// when there is none.
	Uplink4, Uplink6 string
	// MTU by interface name, for uplinks (bytes).
	MTU map[string]uint16
	// Links are the interfaces of the default routes and those that networks name,
	// by name; one that the host does not have is not in it.
	Links map[string]Link
	// AcceptRA are the interfaces by which the host itself has a default route
	// from router advertisements that the kernel handles (accept_ra 1 or 2): with
	// 1 they would lose it once IPv6 forwarding is on.
	AcceptRA []string
	// NoIPv6 is true where the kernel runs without IPv6.
	NoIPv6 bool
	// BridgeNF is true where br_netfilter has the tables see frames before a bridge
	// does: what is translated to where it came from is bridged then, not routed.
	BridgeNF bool
	// Resolvers are the host's upstream DNS servers, never loopback ones.
	Resolvers []netip.Addr
	// Pools are the IPv6 prefixes that VMs' are taken from, by the network's name.
	Pools map[string][]netip.Prefix
}

// Link is what planning needs to know of an interface that is not slash32's.
type Link struct {
	Up bool // by the administrator
	// Addrs are the addresses that it has from others, each with the length of the
	// network that is on the link.
	Addrs []netip.Prefix
	// RPFilter is the effective net.ipv4.conf.*.rp_filter: 0 off, 1 strict, 2 loose.
	RPFilter uint8
	// Router4 and Router6 are the next hops of main's best default routes over it.
	Router4, Router6 Router
}

// Router is the next hop of a default route; the zero value: there is none.
type Router struct {
	Found bool
	Via   netip.Addr // not valid: the link leads there, like one to a single peer
}

// Desired is the outcome of planning.
type Desired struct {
	State    state.State
	Bindings map[uuid.UUID]responder.Binding
}
