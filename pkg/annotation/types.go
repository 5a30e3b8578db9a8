// Package annotation turns a domain's XML (or a YAML file that stands in for
// its metadata) into facts and the annotation. It is pure: bytes in, values and
// problems out. Every byte is taken for an attacker's.
package annotation

import (
	"net/netip"

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
	Client    string // "", "auto" or "classic"
	MTU       uint16
	Addresses []Address
	Prefixes  []Prefix
	DNS       []netip.Addr
	Search    []string
	NTP       []netip.Addr
	Routes    []netip.Prefix // handed to the guest, via its gateway
	NAT       string         // "", "none", "masquerade"
	Forwards  []Forward
	Boot      *Boot
}

// Address is one <address ip=.../>; the first of each family is the one offered.
type Address struct {
	Line int
	IP   netip.Addr
}

// Prefix is one <prefix net=... mode=... length=.../>.
type Prefix struct {
	Line   int
	Net    netip.Prefix
	Mode   string // slaac, delegate, route
	Length uint8
}

// Forward is one <forward proto=... port=... to=.../>.
type Forward struct {
	Line     int
	Proto    string
	Port, To uint16
}

// Boot is <boot server=... file=.../>.
type Boot struct {
	Line         int
	Server, File string
}
