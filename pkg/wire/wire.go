// Package wire has allocation-free codecs for the protocols of a guest's link:
// Ethernet, ARP, IP, UDP, DHCPv4, DHCPv6 and Neighbour Discovery.
//
// Parsers return values and slices of their input, trust no length in it and
// never panic; ok is false when the input is shorter than it says or says what
// its RFC forbids. Builders append to a slice: they allocate only when its
// capacity does not do.
package wire

import (
	"encoding/binary"

	"github.com/slash32/slash32/pkg/mac"
)

// EtherType values.
const (
	EtherTypeIPv4 = 0x0800
	EtherTypeARP  = 0x0806
	EtherTypeVLAN = 0x8100 // 802.1Q
	EtherTypeQinQ = 0x88a8 // 802.1ad
	EtherTypeIPv6 = 0x86dd
)

// EtherLen is the length of an Ethernet header in bytes.
const EtherLen = 14

// TaggedLen is the length of what is left of a frame with a VLAN tag where the
// tag itself is not of interest: the addresses in front of it. No frame is that
// short: an interface takes none without a whole Ethernet header.
const TaggedLen = EtherLen - 2

// Ether is an Ethernet II header.
type Ether struct {
	Dst, Src mac.Addr
	Type     uint16
}

// ParseEther splits a frame into its header and the rest.
func ParseEther(b []byte) (h Ether, payload []byte, ok bool) {
	if len(b) < EtherLen {
		return Ether{}, nil, false
	}
	return Ether{
		Dst:  mac.Addr(b[0:6]),
		Src:  mac.Addr(b[6:12]),
		Type: binary.BigEndian.Uint16(b[12:14]),
	}, b[EtherLen:], true
}

// AppendEther appends the header to b.
func AppendEther(b []byte, h Ether) []byte {
	b = append(b, h.Dst[:]...)
	b = append(b, h.Src[:]...)
	return binary.BigEndian.AppendUint16(b, h.Type)
}
