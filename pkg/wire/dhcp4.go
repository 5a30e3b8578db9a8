package wire

import (
	"encoding/binary"
	"net/netip"

	"github.com/slash32/slash32/pkg/mac"
)

// UDP ports of DHCPv4 (RFC 2131 §4.1).
const (
	DHCP4ServerPort = 67
	DHCP4ClientPort = 68
)

// DHCPv4 message types, option 53 (RFC 2132 §9.6).
const (
	DHCP4Discover = 1
	DHCP4Offer    = 2
	DHCP4Request  = 3
	DHCP4Decline  = 4
	DHCP4Ack      = 5
	DHCP4Nak      = 6
	DHCP4Release  = 7
	DHCP4Inform   = 8
)

// DHCPv4 options (RFC 2132 unless noted).
const (
	Opt4Pad             = 0
	Opt4SubnetMask      = 1
	Opt4Router          = 3
	Opt4DNS             = 6
	Opt4Hostname        = 12
	Opt4Domain          = 15
	Opt4MTU             = 26
	Opt4Broadcast       = 28
	Opt4NTP             = 42
	Opt4RequestedIP     = 50
	Opt4Lease           = 51
	Opt4Overload        = 52
	Opt4MessageType     = 53
	Opt4ServerID        = 54
	Opt4ParameterList   = 55
	Opt4Message         = 56
	Opt4MaxMessage      = 57
	Opt4T1              = 58
	Opt4T2              = 59
	Opt4VendorClass     = 60
	Opt4ClientID        = 61
	Opt4TFTPServer      = 66
	Opt4BootFile        = 67
	Opt4UserClass       = 77  // RFC 3004
	Opt4FQDN            = 81  // RFC 4702
	Opt4RelayAgent      = 82  // RFC 3046
	Opt4Architecture    = 93  // RFC 4578
	Opt4V6Only          = 108 // RFC 8925
	Opt4Portal          = 114 // RFC 8910
	Opt4AutoConfigure   = 116 // RFC 2563
	Opt4Search          = 119 // RFC 3397
	Opt4ClasslessRoutes = 121 // RFC 3442
	Opt4IPXE            = 175 // iPXE's own options, encapsulated
	Opt4MicrosoftRoutes = 249 // the same, before Windows knew 121
	Opt4End             = 255
)

// DHCP4FixedLen is the length in bytes of a DHCPv4 message before its options:
// the BOOTP header and the magic cookie.
const DHCP4FixedLen = 240

// DHCP4MinLen is the length in bytes below which old clients and relays drop
// a message (RFC 951).
const DHCP4MinLen = 300

// DHCP4Cookie starts the options (RFC 2131 §3).
const DHCP4Cookie = 0x63825363

// DHCP4Broadcast is the broadcast bit of Flags (RFC 2131 §2).
const DHCP4Broadcast = 0x8000

// DHCP4 is a DHCPv4 message (RFC 2131 §2).
type DHCP4 struct {
	Op     uint8 // 1 from clients, 2 from servers
	Hops   uint8
	XID    uint32
	Secs   uint16
	Flags  uint16
	CIAddr netip.Addr
	YIAddr netip.Addr
	SIAddr netip.Addr
	GIAddr netip.Addr
	CHAddr mac.Addr

	raw, sname, file, options []byte
}

// ParseDHCP4 reads a message. Not ok are messages that are cut short, that are
// not for Ethernet, and BOOTP without the magic cookie.
func ParseDHCP4(b []byte) (m DHCP4, ok bool) {
	if len(b) < DHCP4FixedLen || b[1] != 1 || b[2] != 6 || binary.BigEndian.Uint32(b[236:240]) != DHCP4Cookie {
		return DHCP4{}, false
	}
	return DHCP4{
		Op:      b[0],
		Hops:    b[3],
		XID:     binary.BigEndian.Uint32(b[4:8]),
		Secs:    binary.BigEndian.Uint16(b[8:10]),
		Flags:   binary.BigEndian.Uint16(b[10:12]),
		CIAddr:  netip.AddrFrom4([4]byte(b[12:16])),
		YIAddr:  netip.AddrFrom4([4]byte(b[16:20])),
		SIAddr:  netip.AddrFrom4([4]byte(b[20:24])),
		GIAddr:  netip.AddrFrom4([4]byte(b[24:28])),
		CHAddr:  mac.Addr(b[28:34]),
		raw:     b,
		sname:   b[44:108],
		file:    b[108:236],
		options: b[240:],
	}, true
}

// AppendDHCP4 appends the header and the magic cookie; options and
// Opt4End must follow. sname and file stay empty.
func AppendDHCP4(b []byte, m DHCP4) []byte {
	b = append(b, m.Op, 1, 6, m.Hops)
	b = binary.BigEndian.AppendUint32(b, m.XID)
	b = binary.BigEndian.AppendUint16(b, m.Secs)
	b = binary.BigEndian.AppendUint16(b, m.Flags)
	b = append4(append4(append4(append4(b, m.CIAddr), m.YIAddr), m.SIAddr), m.GIAddr)
	b = append(b, m.CHAddr[:]...)
	var rest [10 + 64 + 128]byte
	b = append(b, rest[:]...)
	return binary.BigEndian.AppendUint32(b, DHCP4Cookie)
}

// Raw is the message that m was parsed from.
func (m *DHCP4) Raw() []byte { return m.raw }

// MainOptions starts a walk over the options field alone, with option 52.
func (m *DHCP4) MainOptions() Options4 { return Options4{rest: m.options, main: true} }

// Options starts a walk over the message's options.
func (m *DHCP4) Options() Options4 {
	return Options4{rest: m.options, file: m.file, sname: m.sname}
}

// Options4 walks the options of one message in the order of RFC 3396 §5: the
// options field, then file, then sname, the latter two as option 52 says. An
// option longer than 255 bytes comes in several parts, to be joined in this
// order:
//
//	for o := m.Options(); o.Next(); {
//		use(o.Code, o.Data)
//	}
type Options4 struct {
	Code uint8
	Data []byte

	rest, file, sname []byte
	overload          uint8
	inOverload        bool
	main              bool // this field only, as it is
	malformed         bool
}

// Next moves to the next option. Pad, end and option 52 are not shown.
func (o *Options4) Next() bool {
	for {
		code, data, ok := o.next()
		if !ok {
			if o.malformed || o.main || !o.nextField() {
				return false
			}
			continue
		}
		if code != Opt4Overload || o.main {
			o.Code, o.Data = code, data
			return true
		}
		// RFC 2131 §4.1: 52 in file or sname means nothing.
		if !o.inOverload && len(data) == 1 {
			o.overload |= data[0] & 3
		}
	}
}

// Malformed tells, once Next has returned false, whether the walk ended at an
// option that is longer than its field.
func (o *Options4) Malformed() bool { return o.malformed }

// next takes one option from the current field; ok is false at its end. A
// field without an end option is accepted: clients exist that send none.
func (o *Options4) next() (code uint8, data []byte, ok bool) {
	for len(o.rest) > 0 && o.rest[0] == Opt4Pad {
		o.rest = o.rest[1:]
	}
	if len(o.rest) == 0 || o.rest[0] == Opt4End {
		return 0, nil, false
	}
	if len(o.rest) < 2 || int(o.rest[1]) > len(o.rest)-2 {
		o.malformed = true
		return 0, nil, false
	}
	n := 2 + int(o.rest[1])
	code, data = o.rest[0], o.rest[2:n]
	o.rest = o.rest[n:]
	return code, data, true
}

// nextField goes on to file and sname when option 52 says that they hold
// options (1 file, 2 sname, 3 both).
func (o *Options4) nextField() bool {
	o.inOverload = true
	switch {
	case o.overload&1 != 0:
		o.overload &^= 1
		o.rest = o.file
	case o.overload&2 != 0:
		o.overload &^= 2
		o.rest = o.sname
	default:
		return false
	}
	return true
}

// AppendOption4 appends one option, in several parts when it is longer than
// 255 bytes (RFC 3396 §6).
func AppendOption4(b []byte, code uint8, data []byte) []byte {
	for len(data) > 255 {
		b = append(b, code, 255)
		b = append(b, data[:255]...)
		data = data[255:]
	}
	b = append(b, code, uint8(len(data)))
	return append(b, data...)
}

// AppendAddrs4 appends the IPv4 addresses of as, four bytes each, as options
// that list addresses want them; others are left out.
func AppendAddrs4(b []byte, as ...netip.Addr) []byte {
	for _, a := range as {
		if a.Is4() {
			b = append4(b, a)
		}
	}
	return b
}

// AppendRoute4 appends one route of options 121 and 249 (RFC 3442): the
// prefix's length, its significant bytes, the router; 0.0.0.0 as the router
// means that the destination is on the link.
func AppendRoute4(b []byte, to netip.Prefix, via netip.Addr) []byte {
	if !to.Addr().Is4() || !to.IsValid() {
		return b
	}
	to = to.Masked()
	a := to.Addr().As4()
	b = append(b, uint8(to.Bits()))
	b = append(b, a[:(to.Bits()+7)/8]...)
	return append4(b, via)
}
