// Package responder answers a guest's frames: binding and frame in, frames and
// a verdict out. Respond is pure and allocates nothing; server.go pumps frames
// through it. Nothing here knows sockets, netlink or libvirt.
package responder

import (
	"net/netip"

	"github.com/slash32/slash32/pkg/mac"
)

// BindingVersion is the version of the Binding file.
const BindingVersion = 1

// Binding is all that the responder of one VM needs to answer, immutable. It
// is what plan computes and what the binding file holds (JSON).
type Binding struct {
	Version int    `json:"version"`
	UUID    string `json:"uuid"`
	Name    string `json:"name"`
	NICs    []NIC  `json:"nics"`
}

// NIC is one link. Addresses that are not valid (zero netip.Addr) are absent:
// a NIC without V4.Addr gets no DHCPv4 lease, one without V6 addresses gets an
// RA and stateless DHCPv6 only.
type NIC struct {
	Bridge     string   `json:"bridge"`
	GuestMAC   mac.Addr `json:"guest_mac"`
	GatewayMAC mac.Addr `json:"gateway_mac"`
	MTU        uint16   `json:"mtu"`
	Hostname   string   `json:"hostname,omitempty"`
	Domain     string   `json:"domain,omitempty"`
	Search     []string `json:"search,omitempty"`
	Portal     string   `json:"portal,omitempty"` // URI of the captive portal's API (RFC 8910)
	V4         V4       `json:"v4"`
	V6         V6       `json:"v6"`
	Relay      *Relay   `json:"relay,omitempty"`
}

// V4 is the IPv4 side. Times are in seconds.
type V4 struct {
	Addr    netip.Addr     `json:"addr"`            // yiaddr, mask /32
	Extra   []netip.Addr   `json:"extra,omitempty"` // also the guest's: ARP for them stays unanswered
	Gateway netip.Addr     `json:"gateway"`         // router, server identifier, ARP
	Routes  []netip.Prefix `json:"routes,omitempty"`
	DNS     []netip.Addr   `json:"dns,omitempty"`
	NTP     []netip.Addr   `json:"ntp,omitempty"`
	Lease   uint32         `json:"lease"`
	T1      uint32         `json:"t1"`
	T2      uint32         `json:"t2"`
	Client  string         `json:"client,omitempty"`  // "auto" (also when empty), "routed" or "classic"
	Classic uint8          `json:"classic,omitempty"` // length of the prefix of a classic lease; 0: 24
	Hold    bool           `json:"hold,omitempty"`    // after a DECLINE, offer nothing for a while
	V6Only  uint32         `json:"v6only,omitempty"`  // V6ONLY_WAIT (RFC 8925); 0: not sent
	Boots   Boots          `json:"boots,omitempty"`
	Options Options        `json:"options,omitempty"`
}

// Relay says to which servers the guest is relayed. A family without servers is
// answered.
type Relay struct {
	Index    uint8        `json:"index"` // of the NIC in the binding
	Servers4 []netip.Addr `json:"servers4,omitempty"`
	Servers6 []netip.Addr `json:"servers6,omitempty"`
	Link4    netip.Addr   `json:"link4,omitzero"` // link selection (RFC 3527); not valid: none
	Link6    netip.Addr   `json:"link6,omitzero"` // link-address (RFC 8415 §9.1); not valid: ::
	Circuit  []byte       `json:"circuit"`        // CircuitID
	Host     string       `json:"host,omitempty"` // option 82's remote identifier
}

// Boot is what one kind of firmware is told to load.
type Boot struct {
	For    string     `json:"for,omitempty"`    // as annotation.Boot has it
	File   string     `json:"file"`             // a path for TFTP, or a URL; at most 255 bytes
	Server netip.Addr `json:"server,omitzero"`  // next-server; not valid: none
	Once   bool       `json:"once,omitempty"`   // until the machine has booted from it
	Params string     `json:"params,omitempty"` // for what a URL names, each after a space but the first; DHCPv6 only
}

// Option is a DHCPv4 option as it is sent.
type Option struct {
	Code  uint8  `json:"code"`
	Data  []byte `json:"data"`            // 1 to 255 bytes
	Force bool   `json:"force,omitempty"` // also to clients that do not ask for it
}

// V6 is the IPv6 side. Times are in seconds.
type V6 struct {
	Gateway        netip.Addr     `json:"gateway"` // link-local
	Addrs          []netip.Addr   `json:"addrs,omitempty"`
	Terms          Terms          `json:"terms,omitempty"` // of addresses that end: of some of Addrs, and of old ones
	Routes         []netip.Prefix `json:"routes,omitempty"`
	DNS            []netip.Addr   `json:"dns,omitempty"`
	NTP            []netip.Addr   `json:"ntp,omitempty"`
	Preferred      uint32         `json:"preferred"`
	Valid          uint32         `json:"valid"`
	RouterLifetime uint16         `json:"router_lifetime"` // 0: no default router here
	Prefixes       Prefixes       `json:"prefixes,omitempty"`
	PREF64         netip.Prefix   `json:"pref64,omitzero"` // of the network's NAT64 (RFC 8781); not valid: none
	AFTR           string         `json:"aftr,omitempty"`  // the AFTR's name (RFC 6334); "": none
}

// Term is when an address ends that is from a pool. One that is not in Addrs is on
// its way out: the guest is not given it any more, and who has it learns when it
// ends. The times are Unix time in seconds; 0: none.
type Term struct {
	Addr      netip.Addr `json:"addr"`
	Preferred int64      `json:"preferred,omitempty"` // end of the preferred lifetime
	Until     int64      `json:"until,omitempty"`     // end of the valid lifetime
}

// Prefix is an IPv6 prefix that is the guest's. Mode is one of the Mode...
// constants.
type Prefix struct {
	Net  netip.Prefix `json:"net"`
	Mode string       `json:"mode"`
	// Length is that of a delegated prefix when the guest gives no hint.
	Length uint8 `json:"length,omitempty"`
	// Exclude is the part of Net that stays on the link when all of Net is
	// delegated (RFC 6603); not valid: none.
	Exclude netip.Prefix `json:"exclude,omitzero"`
	// OnLink advertises the prefix with L=1: solicitations for what is not the
	// guest's own in it are answered.
	OnLink bool `json:"onlink,omitempty"`
	// Deprecated prefixes are on their way out: preferred lifetime 0, and nothing
	// new from them.
	Deprecated bool `json:"deprecated,omitempty"`
	// Preferred is when its preferred lifetime ends at the latest, Unix time in
	// seconds; 0: with Until.
	Preferred int64 `json:"preferred,omitempty"`
	// Until is when the prefix ends at the latest, Unix time in seconds; 0: it
	// stays.
	Until int64 `json:"until,omitempty"`
}

// What a prefix is for. A routed one needs no responder.
const (
	ModeSLAAC    = "slaac"    // advertised; the guest makes its own addresses
	ModeDelegate = "delegate" // a pool for IA_PD
	ModeRoute    = "route"    // routed to a guest that never asks
)
