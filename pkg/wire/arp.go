package wire

import (
	"encoding/binary"
	"net/netip"

	"github.com/slash32/slash32/pkg/mac"
)

// ARP operations (RFC 826).
const (
	ARPRequest = 1
	ARPReply   = 2
)

// ARPLen is the length of an ARP packet for Ethernet and IPv4 in bytes.
const ARPLen = 28

// ARP is an ARP packet for Ethernet and IPv4 (RFC 826).
type ARP struct {
	Op        uint16
	SenderMAC mac.Addr
	Sender    netip.Addr
	TargetMAC mac.Addr
	Target    netip.Addr
}

// ParseARP reads an ARP packet; padding after it is ignored. Hardware other
// than Ethernet and protocols other than IPv4 are not ok.
func ParseARP(b []byte) (p ARP, ok bool) {
	if len(b) < ARPLen || binary.BigEndian.Uint32(b[0:4]) != 1<<16|EtherTypeIPv4 || b[4] != 6 || b[5] != 4 {
		return ARP{}, false
	}
	return ARP{
		Op:        binary.BigEndian.Uint16(b[6:8]),
		SenderMAC: mac.Addr(b[8:14]),
		Sender:    netip.AddrFrom4([4]byte(b[14:18])),
		TargetMAC: mac.Addr(b[18:24]),
		Target:    netip.AddrFrom4([4]byte(b[24:28])),
	}, true
}

// AppendARP appends the packet to b. Addresses that are not IPv4 are written
// as 0.0.0.0.
func AppendARP(b []byte, p ARP) []byte {
	b = append(b, 0, 1, EtherTypeIPv4>>8, EtherTypeIPv4&0xff, 6, 4)
	b = binary.BigEndian.AppendUint16(b, p.Op)
	b = append(b, p.SenderMAC[:]...)
	b = append4(b, p.Sender)
	b = append(b, p.TargetMAC[:]...)
	return append4(b, p.Target)
}

// append4 appends four bytes whatever a is, so that no caller can shift the
// fields after it.
func append4(b []byte, a netip.Addr) []byte {
	if !a.Is4() {
		return append(b, 0, 0, 0, 0)
	}
	x := a.As4()
	return append(b, x[:]...)
}

// append16 is append4 for IPv6.
func append16(b []byte, a netip.Addr) []byte {
	if !a.Is6() {
		a = netip.IPv6Unspecified()
	}
	x := a.As16()
	return append(b, x[:]...)
}
