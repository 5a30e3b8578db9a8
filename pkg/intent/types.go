// Package intent joins a domain's facts and annotation with the host's
// configuration to one complete, valid VM, or to a list of problems a person
// can act on. It is pure.
package intent

import (
	"net/netip"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/slash32/slash32/pkg/annotation"
	"github.com/slash32/slash32/pkg/config"
	"github.com/slash32/slash32/pkg/mac"
)

// VM is one annotated domain, complete and valid by itself. Whether it is in
// conflict with another VM is for Conflicts to say.
type VM struct {
	UUID     uuid.UUID
	Name     string
	Hostname string
	Domain   string
	NICs     []NIC
	File     string // where the annotation is, for messages; "" is the domain's XML
}

// NIC is one NIC of a VM with everything that annotation and network say of
// it. Only NICs that the annotation covers are here.
type NIC struct {
	MAC     mac.Addr
	Bridge  string
	Tap     string         // libvirt's interface, while the domain runs; not of the annotation
	Network config.Network // the profile, with its defaults
	MTU     uint16         // 0: the uplink's, resolved by plan
	Addrs4  []netip.Addr   // the first is offered by DHCP; the others are routed and allowed
	Addrs6  []netip.Addr
	// Auto6 asks for an address from the network's pool; once it is taken it is
	// in Addrs6.
	Auto6     bool
	Old6      []netip.Addr // of a pool on its way out: still routed and allowed, not given any more
	Terms     []Term       // of those of Addrs6 and Old6 that end
	Prefixes  []Prefix
	Delegated []Delegation // what the guest has been given of them, and what servers gave it that it is relayed to
	Leased    []netip.Addr // of both families, by servers that it is relayed to: routed and allowed as well
	DNS       []netip.Addr // nil: the host's resolvers, resolved by plan
	Search    []string
	NTP       []netip.Addr
	Routes    []netip.Prefix
	Lease     time.Duration
	NAT       config.NAT
	SNAT      []netip.Addr         // with NATSource: to what, at most one of each family
	Public    []netip.Addr         // each stands for the NIC's first address of its family
	Forwards  []annotation.Forward // of families that the NIC has
	Client    string               // "auto", "routed" or "classic"
	Boots     []annotation.Boot
	Options   []annotation.Option
	Portal    string
	Relay     config.Relay       // without servers: answered by the responder
	Lines     map[netip.Addr]int // where the annotation gives each address, for messages
	Line      int                // the same of the NIC
}

// Prefix is an IPv6 prefix of a NIC.
type Prefix struct {
	Net     netip.Prefix
	Mode    string       // slaac, delegate or route
	Length  uint8        // delegate: of what is delegated when the guest gives no hint
	Exclude netip.Prefix // delegate: what stays on the link (RFC 6603); not valid: none
	OnLink  bool         // slaac: advertised as on the link
	// Auto is the length that is to be taken from the network's pool; 0: Net was
	// given. Until it is taken Net is not valid.
	Auto uint8
	// Deprecated and Until are those of a pool on its way out; Until is Unix time
	// in seconds, 0: it stays.
	Deprecated bool
	Until      int64
	// Preferred is the end of its preferred lifetime, as Until; 0: with Until.
	Preferred int64
	Line      int
}

// Term is when an address of a pool ends: its preferred and its valid lifetime, in
// Unix time, seconds; 0: no end of its own.
type Term struct {
	Addr             netip.Addr
	Preferred, Until int64
}

// Delegation is a delegated prefix and the guest's link-local address behind
// which it is.
type Delegation struct {
	Prefix netip.Prefix
	Via    netip.Addr
}

// Relays4 and Relays6 tell whether a family of the NIC is relayed to other DHCP
// servers.
func (n NIC) Relays4() bool { return slices.ContainsFunc(n.Relay.Servers, netip.Addr.Is4) }
func (n NIC) Relays6() bool { return slices.ContainsFunc(n.Relay.Servers, netip.Addr.Is6) }

// IPv6 tells whether the NIC has anything of it.
func (n NIC) IPv6() bool {
	return len(n.Addrs6) > 0 || n.Auto6 || len(n.Prefixes) > 0 || n.Relays6()
}

// Addrs are all addresses of the NIC, with those that stand for them.
func (n NIC) Addrs() []netip.Addr {
	return slices.Concat(n.Addrs4, n.Addrs6, n.Old6, n.Leased, n.Public)
}
