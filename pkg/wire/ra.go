package wire

import (
	"encoding/binary"
	"net/netip"
)

// The flags of a router advertisement (RFC 4861 §4.2).
const (
	RAManaged = 0x80
	RAOther   = 0x40
)

// The flags of a prefix information option (RFC 4861 §4.6.2 unless noted).
const (
	PrefixOnLink     = 0x80
	PrefixAutonomous = 0x40
	PrefixPreferPD   = 0x10 // RFC 9762: whoever can asks for a prefix of its own instead
)

// RA is a router advertisement's fixed part (RFC 4861 §4.2). Lifetime is the
// default router's in seconds, 0: not a default router.
type RA struct {
	HopLimit uint8
	Flags    uint8
	Lifetime uint16
}

// AppendRA appends the fixed part of a router advertisement, its checksum
// zero; options follow.
func AppendRA(b []byte, m RA) []byte {
	b = append(b, ICMP6RouterAdvert, 0, 0, 0, m.HopLimit, m.Flags)
	b = binary.BigEndian.AppendUint16(b, m.Lifetime)
	return append(b, 0, 0, 0, 0, 0, 0, 0, 0)
}

// ParseRA reads an ICMPv6 message of type 134: its fixed part, its options to
// walk.
func ParseRA(b []byte) (m RA, o OptionsND, ok bool) {
	if len(b) < 16 || b[0] != ICMP6RouterAdvert || b[1] != 0 {
		return RA{}, OptionsND{}, false
	}
	return RA{HopLimit: b[4], Flags: b[5], Lifetime: binary.BigEndian.Uint16(b[6:8])}, OptionsND{rest: b[16:]}, true
}

// NDPrefix is a prefix information option (RFC 4861 §4.6.2); lifetimes in
// seconds.
type NDPrefix struct {
	Prefix           netip.Prefix
	Flags            uint8
	Valid, Preferred uint32
}

// NDPrefixLen is the length in bytes of a prefix information option, and
// NDPrefixTimes where in it the valid lifetime stands; the preferred one follows.
const (
	NDPrefixLen   = 32
	NDPrefixTimes = 4
)

// AppendNDPrefix appends a prefix information option. Prefixes that are not IPv6
// leave b alone.
func AppendNDPrefix(b []byte, p NDPrefix) []byte {
	if !p.Prefix.IsValid() || !p.Prefix.Addr().Is6() {
		return b
	}
	b = append(b, OptNDPrefix, NDPrefixLen/8, uint8(p.Prefix.Bits()), p.Flags)
	b = binary.BigEndian.AppendUint32(b, p.Valid)
	b = binary.BigEndian.AppendUint32(b, p.Preferred)
	b = append(b, 0, 0, 0, 0)
	return append16(b, p.Prefix.Masked().Addr())
}

// ParseNDPrefix reads what a prefix information option has after its length.
func ParseNDPrefix(data []byte) (p NDPrefix, ok bool) {
	if len(data) != NDPrefixLen-2 || data[0] > 128 {
		return NDPrefix{}, false
	}
	return NDPrefix{
		Prefix:    netip.PrefixFrom(netip.AddrFrom16([16]byte(data[14:30])), int(data[0])),
		Flags:     data[1],
		Valid:     binary.BigEndian.Uint32(data[2:6]),
		Preferred: binary.BigEndian.Uint32(data[6:10]),
	}, true
}

// pref64Lengths are the lengths of a NAT64 prefix, by their code (RFC 8781 §4).
var pref64Lengths = [...]int{96, 64, 56, 48, 40, 32}

// maxPREF64 is the longest lifetime of a PREF64 option in seconds: 13 bits of
// 8 seconds each.
const maxPREF64 = (1<<13 - 1) * 8

// AppendPREF64 appends the prefix of a NAT64 (RFC 8781 §4). The lifetime is in
// seconds, rounded up to eights and cut at 65528. Prefixes that no NAT64 can
// have leave b alone.
func AppendPREF64(b []byte, lifetime uint32, nat64 netip.Prefix) []byte {
	if !nat64.IsValid() || !nat64.Addr().Is6() {
		return b
	}
	for code, bits := range pref64Lengths {
		if bits != nat64.Bits() {
			continue
		}
		a := nat64.Masked().Addr().As16()
		scaled := (min(lifetime, maxPREF64) + 7) / 8
		b = append(b, OptNDPREF64, 2)
		b = binary.BigEndian.AppendUint16(b, uint16(scaled<<3)|uint16(code))
		return append(b, a[:12]...)
	}
	return b
}

// ParsePREF64 reads what a PREF64 option has after its length; the lifetime is
// in seconds.
func ParsePREF64(data []byte) (lifetime uint32, nat64 netip.Prefix, ok bool) {
	if len(data) != 14 {
		return 0, netip.Prefix{}, false
	}
	v := binary.BigEndian.Uint16(data)
	if int(v&7) >= len(pref64Lengths) {
		return 0, netip.Prefix{}, false
	}
	var a [16]byte
	copy(a[:], data[2:])
	return uint32(v>>3) * 8, netip.PrefixFrom(netip.AddrFrom16(a), pref64Lengths[v&7]), true
}

// AppendRDNSS appends an option with the IPv6 addresses of servers, at most
// the 127 that fit one (RFC 8106 §5.1); none leaves b alone. The lifetime is
// in seconds.
func AppendRDNSS(b []byte, lifetime uint32, servers []netip.Addr) []byte {
	at, n := len(b), 0
	b = append(b, OptNDRDNSS, 0, 0, 0)
	b = binary.BigEndian.AppendUint32(b, lifetime)
	for _, a := range servers {
		if a.Is6() && n < 127 {
			b, n = append16(b, a), n+1
		}
	}
	if n == 0 {
		return b[:at]
	}
	b[at+1] = uint8(1 + 2*n)
	return b
}

// AppendDNSSL appends an option with a search list (RFC 8106 §5.2), which
// AppendNames has encoded without compression. Lists that are empty or do not
// fit leave b alone. The lifetime is in seconds.
func AppendDNSSL(b []byte, lifetime uint32, names []byte) []byte {
	units := 1 + (len(names)+7)/8
	if len(names) == 0 || units > 255 {
		return b
	}
	b = append(b, OptNDDNSSL, uint8(units), 0, 0)
	b = binary.BigEndian.AppendUint32(b, lifetime)
	b = append(b, names...)
	for n := len(names); n%8 != 0; n++ {
		b = append(b, 0)
	}
	return b
}

// AppendNDRoute appends a route information option of medium preference (RFC
// 4191 §2.3), as short as the prefix allows. The lifetime is in seconds.
// Prefixes that are not IPv6 leave b alone.
func AppendNDRoute(b []byte, lifetime uint32, to netip.Prefix) []byte {
	if !to.Addr().Is6() || !to.IsValid() {
		return b
	}
	to = to.Masked()
	a, n := to.Addr().As16(), (to.Bits()+63)/64*8
	b = append(b, OptNDRoute, uint8(1+n/8), uint8(to.Bits()), 0)
	b = binary.BigEndian.AppendUint32(b, lifetime)
	return append(b, a[:n]...)
}
