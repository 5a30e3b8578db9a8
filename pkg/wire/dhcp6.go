package wire

import (
	"encoding/binary"
	"net/netip"
)

// UDP ports of DHCPv6 (RFC 8415 §7.2).
const (
	DHCP6ClientPort = 546
	DHCP6ServerPort = 547
)

// DHCPv6 message types (RFC 8415 §7.3).
const (
	DHCP6Solicit            = 1
	DHCP6Advertise          = 2
	DHCP6Request            = 3
	DHCP6Confirm            = 4
	DHCP6Renew              = 5
	DHCP6Rebind             = 6
	DHCP6Reply              = 7
	DHCP6Release            = 8
	DHCP6Decline            = 9
	DHCP6Reconfigure        = 10
	DHCP6InformationRequest = 11
	DHCP6RelayForward       = 12
	DHCP6RelayReply         = 13
)

// DHCPv6 options (RFC 8415 §21 unless noted).
const (
	Opt6ClientID           = 1
	Opt6ServerID           = 2
	Opt6IANA               = 3
	Opt6IATA               = 4
	Opt6IAAddr             = 5
	Opt6OptionRequest      = 6
	Opt6Preference         = 7
	Opt6StatusCode         = 13
	Opt6RapidCommit        = 14
	Opt6UserClass          = 15
	Opt6VendorClass        = 16
	Opt6ReconfigureMessage = 19
	Opt6ReconfigureAccept  = 20
	Opt6DNS                = 23 // RFC 3646
	Opt6Search             = 24 // RFC 3646
	Opt6IAPD               = 25
	Opt6IAPrefix           = 26
	Opt6RelayMessage       = 9
	Opt6Auth               = 11
	Opt6ServerUnicast      = 12
	Opt6InterfaceID        = 18
	Opt6SNTP               = 31 // RFC 4075
	Opt6InformationRefresh = 32
	Opt6NTP                = 56 // RFC 5908
	Opt6BootFileURL        = 59 // RFC 5970
	Opt6BootFileParam      = 60 // RFC 5970
	Opt6Architecture       = 61 // RFC 5970
	Opt6AFTRName           = 64 // RFC 6334
	Opt6PDExclude          = 67 // RFC 6603
	Opt6LinkLayer          = 79 // RFC 6939: the client's link-layer address
)

// DHCPv6 status codes (RFC 8415 §21.13).
const (
	Status6Success       = 0
	Status6UnspecFail    = 1
	Status6NoAddrsAvail  = 2
	Status6NoBinding     = 3
	Status6NotOnLink     = 4
	Status6UseMulticast  = 5
	Status6NoPrefixAvail = 6
)

// DHCP6FixedLen is the length in bytes of a DHCPv6 message before its options.
const DHCP6FixedLen = 4

// DHCP6 is the header of a client's or server's DHCPv6 message (RFC 8415 §8).
// A relay's message has another header: its Type alone is of use.
type DHCP6 struct {
	Type uint8
	XID  uint32 // 24 bits

	options []byte
}

// ParseDHCP6 reads a message's header.
func ParseDHCP6(b []byte) (m DHCP6, ok bool) {
	if len(b) < DHCP6FixedLen {
		return DHCP6{}, false
	}
	x := binary.BigEndian.Uint32(b)
	return DHCP6{Type: b[0], XID: x & 0xffffff, options: b[DHCP6FixedLen:]}, true
}

// AppendDHCP6 appends the header; options follow.
func AppendDHCP6(b []byte, m DHCP6) []byte {
	return binary.BigEndian.AppendUint32(b, uint32(m.Type)<<24|m.XID&0xffffff)
}

// Options starts a walk over the message's options.
func (m *DHCP6) Options() Options6 { return Options6{rest: m.options} }

// OptionsOf6 starts a walk over options that stand alone, as after a relay's
// header.
func OptionsOf6(b []byte) Options6 { return Options6{rest: b} }

// Options6 walks a row of DHCPv6 options:
//
//	for o := m.Options(); o.Next(); {
//		use(o.Code, o.Data)
//	}
type Options6 struct {
	Code uint16
	Data []byte

	rest      []byte
	malformed bool
}

// Next moves to the next option.
func (o *Options6) Next() bool {
	if len(o.rest) == 0 {
		return false
	}
	if len(o.rest) < 4 {
		o.malformed = true
		return false
	}
	n := 4 + int(binary.BigEndian.Uint16(o.rest[2:4]))
	if n > len(o.rest) {
		o.malformed = true
		return false
	}
	o.Code, o.Data = binary.BigEndian.Uint16(o.rest), o.rest[4:n]
	o.rest = o.rest[n:]
	return true
}

// Malformed tells, once Next has returned false, whether the walk ended at an
// option that is longer than what holds it.
func (o *Options6) Malformed() bool { return o.malformed }

// IA6 is an IA_NA, IA_TA or IA_PD (RFC 8415 §21.4, §21.5, §21.21). T1 and T2
// are in seconds; an IA_TA has none.
type IA6 struct {
	Code   uint16 // Opt6IANA, Opt6IATA or Opt6IAPD
	IAID   uint32
	T1, T2 uint32

	options []byte
}

// ParseIA6 reads the data of an option with the given code.
func ParseIA6(code uint16, data []byte) (ia IA6, ok bool) {
	n := 12
	if code == Opt6IATA {
		n = 4
	}
	if len(data) < n {
		return IA6{}, false
	}
	ia = IA6{Code: code, IAID: binary.BigEndian.Uint32(data), options: data[n:]}
	if n == 12 {
		ia.T1, ia.T2 = binary.BigEndian.Uint32(data[4:8]), binary.BigEndian.Uint32(data[8:12])
	}
	return ia, true
}

// Options starts a walk over the options within the IA.
func (ia *IA6) Options() Options6 { return Options6{rest: ia.options} }

// BeginIA6 appends the start of an IA option; the options within follow, then
// EndOption6 with the length of b as it was before.
func BeginIA6(b []byte, ia IA6) []byte {
	b = BeginOption6(b, ia.Code)
	b = binary.BigEndian.AppendUint32(b, ia.IAID)
	if ia.Code == Opt6IATA {
		return b
	}
	b = binary.BigEndian.AppendUint32(b, ia.T1)
	return binary.BigEndian.AppendUint32(b, ia.T2)
}

// IAAddr6 is an address within an IA (RFC 8415 §21.6); lifetimes in seconds.
type IAAddr6 struct {
	Addr             netip.Addr
	Preferred, Valid uint32
}

// ParseIAAddr6 reads the data of option 5.
func ParseIAAddr6(data []byte) (a IAAddr6, ok bool) {
	if len(data) < 24 {
		return IAAddr6{}, false
	}
	return IAAddr6{
		Addr:      netip.AddrFrom16([16]byte(data[:16])),
		Preferred: binary.BigEndian.Uint32(data[16:20]),
		Valid:     binary.BigEndian.Uint32(data[20:24]),
	}, true
}

// AppendIAAddr6 appends option 5.
func AppendIAAddr6(b []byte, a IAAddr6) []byte {
	b = append(b, 0, Opt6IAAddr, 0, 24)
	b = append16(b, a.Addr)
	b = binary.BigEndian.AppendUint32(b, a.Preferred)
	return binary.BigEndian.AppendUint32(b, a.Valid)
}

// IAPrefix6 is a delegated prefix within an IA_PD (RFC 8415 §21.22); lifetimes
// in seconds.
type IAPrefix6 struct {
	Preferred, Valid uint32
	Prefix           netip.Prefix
}

// IAPrefixLen is the length in bytes of option 26's data before the options
// within.
const IAPrefixLen = 25

// ParseIAPrefix6 reads the data of option 26.
func ParseIAPrefix6(data []byte) (p IAPrefix6, ok bool) {
	if len(data) < IAPrefixLen || data[8] > 128 {
		return IAPrefix6{}, false
	}
	return IAPrefix6{
		Preferred: binary.BigEndian.Uint32(data[0:4]),
		Valid:     binary.BigEndian.Uint32(data[4:8]),
		Prefix:    netip.PrefixFrom(netip.AddrFrom16([16]byte(data[9:25])), int(data[8])),
	}, true
}

// AppendIAPrefix6 appends option 26.
func AppendIAPrefix6(b []byte, p IAPrefix6) []byte {
	b = append(b, 0, Opt6IAPrefix, 0, 25)
	b = binary.BigEndian.AppendUint32(b, p.Preferred)
	b = binary.BigEndian.AppendUint32(b, p.Valid)
	b = append(b, uint8(p.Prefix.Bits()))
	return append16(b, p.Prefix.Addr())
}

// AppendPDExclude appends the part of a delegated prefix that stays on the link
// (RFC 6603 §4.2), as an option within option 26. It leaves b alone unless exclude
// is a true part of prefix.
func AppendPDExclude(b []byte, prefix, exclude netip.Prefix) []byte {
	if !prefix.IsValid() || !exclude.IsValid() || exclude.Bits() <= prefix.Bits() || !prefix.Contains(exclude.Addr()) {
		return b
	}
	at := len(b)
	b = append(BeginOption6(b, Opt6PDExclude), uint8(exclude.Bits()))
	// The bits between the two lengths, from the left of the first byte on.
	a, shift := exclude.Masked().Addr().As16(), prefix.Bits()%8
	for i := prefix.Bits() / 8; i*8+shift < exclude.Bits(); i++ {
		v := a[i] << shift
		if i < 15 {
			v |= uint8(uint16(a[i+1]) << shift >> 8)
		}
		b = append(b, v)
	}
	return EndOption6(b, at)
}

// ParsePDExclude reads the data of option 67 in the option of prefix.
func ParsePDExclude(prefix netip.Prefix, data []byte) (exclude netip.Prefix, ok bool) {
	if !prefix.IsValid() || len(data) < 2 || int(data[0]) <= prefix.Bits() || data[0] > 128 {
		return netip.Prefix{}, false
	}
	bits := int(data[0])
	id := data[1:]
	if len(id) != (bits-prefix.Bits()+7)/8 {
		return netip.Prefix{}, false
	}
	a := prefix.Masked().Addr().As16()
	for n := prefix.Bits(); n < bits; n++ {
		from := n - prefix.Bits()
		a[n/8] |= id[from/8] >> (7 - from%8) & 1 << (7 - n%8)
	}
	return netip.PrefixFrom(netip.AddrFrom16(a), bits), true
}

// AppendStatus6 appends option 13 with a short text in English.
func AppendStatus6(b []byte, code uint16, text string) []byte {
	at := len(b)
	b = BeginOption6(b, Opt6StatusCode)
	b = binary.BigEndian.AppendUint16(b, code)
	return EndOption6(append(b, text...), at)
}

// AppendOption6 appends one option. Data is cut at 65535 bytes.
func AppendOption6(b []byte, code uint16, data []byte) []byte {
	if len(data) > 0xffff {
		data = data[:0xffff]
	}
	b = binary.BigEndian.AppendUint16(b, code)
	b = binary.BigEndian.AppendUint16(b, uint16(len(data)))
	return append(b, data...)
}

// AppendAddrs6 appends the IPv6 addresses of as, 16 bytes each; others are
// left out.
func AppendAddrs6(b []byte, as ...netip.Addr) []byte {
	for _, a := range as {
		if a.Is6() {
			b = append16(b, a)
		}
	}
	return b
}

// BeginOption6 appends the head of an option whose length is not known yet.
func BeginOption6(b []byte, code uint16) []byte {
	return append(b, uint8(code>>8), uint8(code), 0, 0)
}

// EndOption6 writes the length of the option that BeginOption6 began at offset
// at and that ends where b ends.
func EndOption6(b []byte, at int) []byte {
	binary.BigEndian.PutUint16(b[at+2:at+4], uint16(len(b)-at-4))
	return b
}
