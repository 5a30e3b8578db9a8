// Package annotation turns a domain's XML (or a YAML file that stands in for
// its metadata) into facts and the annotation. It is pure: bytes in, values and
// problems out. Every byte is taken for an attacker's.
package annotation

import (
	"fmt"
	"net/netip"
	"strconv"

	"github.com/google/uuid"

	"github.com/slash32/slash32/pkg/mac"
)

// MaxXML is the longest domain XML that is read, in bytes.
const MaxXML = 1 << 20

// Domain is what a domain's XML says: facts, and the annotation if any.
type Domain struct {
	UUID    uuid.UUID
	Name    string
	ID      int // libvirt's id of the running incarnation; 0 when the XML has none
	NICs    []NIC
	Network *Network // nil: not annotated; the domain is never touched
}

// NIC is one <interface> under <devices>.
type NIC struct {
	Line   int
	MAC    mac.Addr
	Type   string // bridge, network, user, direct, ethernet, ...
	Bridge string // <source bridge=...>
	Tap    string // <target dev=...>, only while running
	MTU    uint16 // <mtu size=...>, 0 when not given
}

// Network is the annotation: the element "network" of our namespace, or the
// same keys in YAML.
type Network struct {
	File       string // set when it came from a YAML file
	Line       int
	Hostname   string // option 12; default: the domain's name
	Domain     string // option 15
	Interfaces []Interface
}

// Interface is what the annotation says of one NIC. The short form (attributes
// on <network>) gives exactly one with a zero MAC. Empty fields mean "as the
// network in the configuration says".
type Interface struct {
	Line      int
	MAC       mac.Addr // zero: matched by order
	Network   string
	Client    string // "", "auto", "routed" or "classic"
	MTU       uint16
	Addresses []Address
	Auto6     bool // an IPv6 address from the network's pool
	Auto6Line int
	Prefixes  []Prefix
	DNS       []netip.Addr
	Search    []string
	NTP       []netip.Addr
	Routes    []netip.Prefix // handed to the guest, via its gateway
	NAT       string         // "", "none", "masquerade", "snat" or "one-to-one"
	NATTo     []netip.Addr   // with the last two: to what, at most one of each family
	NATLine   int
	Forwards  []Forward
	Boots     []Boot
	Options   []Option
	Relay     []netip.Addr // the DHCP servers that this NIC's guest is relayed to
	Portal    string       // URI of the captive portal's API (RFC 8910)
}

// Address is one <address ip=.../>; the first of each family is the one offered.
type Address struct {
	Line int
	IP   netip.Addr
}

// Prefix is one <prefix net=... mode=... length=... exclude=... onlink=.../>.
type Prefix struct {
	Line    int
	Net     netip.Prefix // not valid when it comes from the network's pool
	Auto    uint8        // the length of what comes from there; else 0
	Mode    string       // slaac, delegate, route
	Length  uint8        // delegate: of what is delegated when the guest gives no hint
	Exclude netip.Prefix // delegate: what stays on the link (RFC 6603); not valid: nothing
	OnLink  bool         // slaac: advertised as on the link
}

// String is the prefix as it is written: "2001:db8::/60" or "auto/60".
func (p Prefix) String() string {
	if p.Auto != 0 {
		return fmt.Sprintf("auto/%d", p.Auto)
	}
	return p.Net.String()
}

// Forward is one <forward proto=... port=... to=... family=... addr=.../>.
type Forward struct {
	Line       int
	Proto      string     // tcp, udp or both
	Port, Last uint16     // the host's ports, from the first to the last
	To         uint16     // the guest's port for the first of them
	Family     string     // ipv4, ipv6 or both
	Addr       netip.Addr // of the host; not valid: each of them
}

// Ports are the host's ports as they are written: "8022" or "8022-8030".
func (f Forward) Ports() string {
	if f.Port == f.Last {
		return strconv.Itoa(int(f.Port))
	}
	return fmt.Sprintf("%d-%d", f.Port, f.Last)
}

// Boot is <boot for=... file=... server=... once=.../>: what one kind of
// firmware loads.
type Boot struct {
	Line   int
	For    string     // "", a word of BootClients, or an architecture as a decimal number (RFC 4578 §2.1)
	File   string     // a path for TFTP, or a URL
	Server netip.Addr // next-server; not valid: none
	Once   bool       // until the machine has booted from it
	Params string     // parameters for what File names, each after a space but the first
}

// Option is <option code=... type=... value=... force=.../>: a DHCPv4 option in
// the form in which it is sent.
type Option struct {
	Line  int
	Code  uint8
	Data  []byte
	Force bool // also to clients that do not ask for it
}
