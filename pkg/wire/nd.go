package wire

import (
	"encoding/binary"
	"net/netip"

	"github.com/slash32/slash32/pkg/mac"
)

// ICMPv6 types of Neighbour Discovery (RFC 4861 §4).
const (
	ICMP6RouterSolicit    = 133
	ICMP6RouterAdvert     = 134
	ICMP6NeighbourSolicit = 135
	ICMP6NeighbourAdvert  = 136
	ICMP6Redirect         = 137
)

// Neighbour Discovery options (RFC 4861 §4.6 unless noted).
const (
	OptNDSourceLink = 1
	OptNDTargetLink = 2
	OptNDPrefix     = 3
	OptNDMTU        = 5
	OptNDRoute      = 24 // RFC 4191
	OptNDRDNSS      = 25 // RFC 8106
	OptNDDNSSL      = 31 // RFC 8106
	OptNDPREF64     = 38 // RFC 8781
)

// NDHopLimit is the hop limit of every Neighbour Discovery message: a router
// in between would have lowered it (RFC 4861 §3.1).
const NDHopLimit = 255

// The flags of a neighbour advertisement (RFC 4861 §4.4).
const (
	NARouter    = 0x80
	NASolicited = 0x40
	NAOverride  = 0x20
)

// OptionsND walks the options of a Neighbour Discovery message. Data is the
// option without type and length.
type OptionsND struct {
	Type uint8
	Data []byte

	rest      []byte
	malformed bool
}

// Next moves to the next option.
func (o *OptionsND) Next() bool {
	if len(o.rest) == 0 {
		return false
	}
	if len(o.rest) < 8 || o.rest[1] == 0 || int(o.rest[1])*8 > len(o.rest) {
		o.malformed = true
		return false
	}
	n := int(o.rest[1]) * 8
	o.Type, o.Data = o.rest[0], o.rest[2:n]
	o.rest = o.rest[n:]
	return true
}

// Malformed tells, once Next has returned false, whether that was for an option
// of length 0 or beyond the message's end.
func (o *OptionsND) Malformed() bool { return o.malformed }

// RS is a router solicitation (RFC 4861 §4.1).
type RS struct {
	Source mac.Addr // source link-layer address; zero when not given
}

// ParseRS reads an ICMPv6 message of type 133 and holds it to what RFC 4861
// §6.1.1 demands of its body: code 0, the length, well-formed options.
func ParseRS(b []byte) (m RS, ok bool) {
	if len(b) < 8 || b[0] != ICMP6RouterSolicit || b[1] != 0 {
		return RS{}, false
	}
	m.Source, ok = linkOption(b[8:], OptNDSourceLink)
	return m, ok
}

// NS is a neighbour solicitation (RFC 4861 §4.3).
type NS struct {
	Target netip.Addr
	Source mac.Addr // source link-layer address; zero when not given
}

// ParseNS reads an ICMPv6 message of type 135 and holds it to what RFC 4861
// §7.1.1 demands of its body: code 0, the length, a target that is not
// multicast, well-formed options.
func ParseNS(b []byte) (m NS, ok bool) {
	if len(b) < 24 || b[0] != ICMP6NeighbourSolicit || b[1] != 0 || b[8] == 0xff {
		return NS{}, false
	}
	m.Target = netip.AddrFrom16([16]byte(b[8:24]))
	m.Source, ok = linkOption(b[24:], OptNDSourceLink)
	return m, ok
}

// AppendNS appends a neighbour solicitation without options, as duplicate
// detection sends it (RFC 4862 §5.4.2), its checksum zero.
func AppendNS(b []byte, target netip.Addr) []byte {
	b = append(b, ICMP6NeighbourSolicit, 0, 0, 0, 0, 0, 0, 0)
	return append16(b, target)
}

// linkOption finds the link-layer address option of the given type; ok is
// false when any option is malformed.
func linkOption(b []byte, typ uint8) (a mac.Addr, ok bool) {
	o := OptionsND{rest: b}
	for o.Next() {
		if o.Type == typ && len(o.Data) == 6 {
			a = mac.Addr(o.Data)
		}
	}
	return a, !o.malformed
}

// AppendNA appends a neighbour advertisement (RFC 4861 §4.4) with the target's
// link-layer address, its checksum zero.
func AppendNA(b []byte, flags uint8, target netip.Addr, link mac.Addr) []byte {
	b = append(b, ICMP6NeighbourAdvert, 0, 0, 0, flags, 0, 0, 0)
	b = append16(b, target)
	return AppendNDLink(b, OptNDTargetLink, link)
}

// AppendNDLink appends a source or target link-layer address option.
func AppendNDLink(b []byte, typ uint8, a mac.Addr) []byte {
	b = append(b, typ, 1)
	return append(b, a[:]...)
}

// AppendNDMTU appends an MTU option.
func AppendNDMTU(b []byte, mtu uint32) []byte {
	b = append(b, OptNDMTU, 1, 0, 0)
	return binary.BigEndian.AppendUint32(b, mtu)
}

// SetICMP6Checksum computes the checksum of the ICMPv6 message, with addrs as
// for SegmentChecksum. It does nothing when the message is shorter than its
// header.
func SetICMP6Checksum(addrs, message []byte) {
	if len(message) < 4 {
		return
	}
	message[2], message[3] = 0, 0
	binary.BigEndian.PutUint16(message[2:4], SegmentChecksum(addrs, ProtoICMPv6, message))
}

// SolicitedNode is the multicast group that solicitations for a go to (RFC
// 4291 §2.7.1).
func SolicitedNode(a netip.Addr) netip.Addr {
	x := a.As16()
	return netip.AddrFrom16([16]byte{0: 0xff, 1: 0x02, 11: 1, 12: 0xff, 13: x[13], 14: x[14], 15: x[15]})
}

// MulticastMAC is the Ethernet address of an IPv6 multicast group (RFC 2464
// §7).
func MulticastMAC(group netip.Addr) mac.Addr {
	x := group.As16()
	return mac.Addr{0x33, 0x33, x[12], x[13], x[14], x[15]}
}
