package wire

import (
	"encoding/binary"
	"net/netip"
)

// IP protocol numbers.
const (
	ProtoUDP    = 17
	ProtoICMPv6 = 58
)

// Header lengths in bytes (IPv4 without options).
const (
	IPv4Len = 20
	IPv6Len = 40
	UDPLen  = 8
)

// IPv4 is what matters here of an IPv4 header (RFC 791).
type IPv4 struct {
	Src, Dst netip.Addr
	Proto    uint8
	TTL      uint8
	Fragment bool // more fragments follow, or this is not the first
}

// ParseIPv4 splits a packet into header and payload; options are skipped and
// what follows the total length (Ethernet padding) is cut off. The header's
// checksum is not looked at: an emulated NIC may leave it to the host.
func ParseIPv4(b []byte) (h IPv4, payload []byte, ok bool) {
	if len(b) < IPv4Len || b[0]>>4 != 4 {
		return IPv4{}, nil, false
	}
	hl, total := int(b[0]&0x0f)*4, int(binary.BigEndian.Uint16(b[2:4]))
	if hl < IPv4Len || total < hl || total > len(b) {
		return IPv4{}, nil, false
	}
	return IPv4{
		Src:      netip.AddrFrom4([4]byte(b[12:16])),
		Dst:      netip.AddrFrom4([4]byte(b[16:20])),
		Proto:    b[9],
		TTL:      b[8],
		Fragment: binary.BigEndian.Uint16(b[6:8])&0x3fff != 0,
	}, b[hl:total], true
}

// AppendIPv4 appends a header without options for n bytes of payload, its
// checksum computed. The packet is atomic (RFC 6864 §4.1): don't fragment is
// set and the identification is 0.
func AppendIPv4(b []byte, h IPv4, n int) []byte {
	at := len(b)
	b = append(b, 0x45, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(IPv4Len+n))
	b = append(b, 0, 0, 0x40, 0, h.TTL, h.Proto, 0, 0)
	b = append4(append4(b, h.Src), h.Dst)
	SetIPv4Checksum(b[at:])
	return b
}

// SetIPv4Checksum computes the checksum of the header without options that b
// starts with. It does nothing when b is too short to hold one.
func SetIPv4Checksum(b []byte) {
	if len(b) < IPv4Len {
		return
	}
	b[10], b[11] = 0, 0
	binary.BigEndian.PutUint16(b[10:12], Checksum(b[:IPv4Len]))
}

// IPv6 is what matters here of an IPv6 header (RFC 8200). Proto is the next
// header: extension headers are not walked.
type IPv6 struct {
	Src, Dst netip.Addr
	Proto    uint8
	HopLimit uint8
}

// ParseIPv6 splits a packet into header and payload, cut at the payload
// length.
func ParseIPv6(b []byte) (h IPv6, payload []byte, ok bool) {
	if len(b) < IPv6Len || b[0]>>4 != 6 {
		return IPv6{}, nil, false
	}
	n := int(binary.BigEndian.Uint16(b[4:6]))
	if n > len(b)-IPv6Len {
		return IPv6{}, nil, false
	}
	return IPv6{
		Src:      netip.AddrFrom16([16]byte(b[8:24])),
		Dst:      netip.AddrFrom16([16]byte(b[24:40])),
		Proto:    b[6],
		HopLimit: b[7],
	}, b[IPv6Len : IPv6Len+n], true
}

// AppendIPv6 appends a header for n bytes of payload.
func AppendIPv6(b []byte, h IPv6, n int) []byte {
	b = append(b, 0x60, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(n))
	b = append(b, h.Proto, h.HopLimit)
	return append16(append16(b, h.Src), h.Dst)
}

// UDP is a UDP header's two ports (RFC 768).
type UDP struct{ Src, Dst uint16 }

// ParseUDP splits a datagram into header and payload, cut at its length. The
// checksum is not looked at: with offloading it is not there yet.
func ParseUDP(b []byte) (h UDP, payload []byte, ok bool) {
	if len(b) < UDPLen {
		return UDP{}, nil, false
	}
	n := int(binary.BigEndian.Uint16(b[4:6]))
	if n < UDPLen || n > len(b) {
		return UDP{}, nil, false
	}
	return UDP{Src: binary.BigEndian.Uint16(b[0:2]), Dst: binary.BigEndian.Uint16(b[2:4])}, b[UDPLen:n], true
}

// AppendUDP appends a header for n bytes of payload, its checksum zero.
func AppendUDP(b []byte, h UDP, n int) []byte {
	b = binary.BigEndian.AppendUint16(b, h.Src)
	b = binary.BigEndian.AppendUint16(b, h.Dst)
	b = binary.BigEndian.AppendUint16(b, uint16(UDPLen+n))
	return append(b, 0, 0)
}

// SetUDPChecksum computes the checksum of the datagram, with addrs as for
// SegmentChecksum. It does nothing when the datagram is shorter than its
// header.
func SetUDPChecksum(addrs, datagram []byte) {
	if len(datagram) < UDPLen {
		return
	}
	datagram[6], datagram[7] = 0, 0
	c := SegmentChecksum(addrs, ProtoUDP, datagram)
	if c == 0 {
		c = 0xffff // 0 would say "no checksum" (RFC 768)
	}
	binary.BigEndian.PutUint16(datagram[6:8], c)
}
