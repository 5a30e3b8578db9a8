package responder

import (
	"encoding/binary"
	"net/netip"
	"strings"

	"github.com/slash32/slash32/pkg/mac"
	"github.com/slash32/slash32/pkg/names"
	"github.com/slash32/slash32/pkg/wire"
)

// The options of a lease in the order in which they are sent. The message type
// has to be first.
const (
	o4MessageType = iota
	o4ServerID
	o4Lease
	o4T1
	o4T2
	o4SubnetMask
	o4Router
	o4Routes      // 121 with the extra routes
	o4RoutesShort // 121 without them
	o4DNS
	o4Domain
	o4Hostname
	o4Search
	o4MTU
	o4NTP
	o4Microsoft      // 249 with the extra routes
	o4MicrosoftShort // 249 without them

	numOptions4
)

// optionSet4 is a set of the options above, a bit each.
type optionSet4 uint32

func setOf4(options ...int) (s optionSet4) {
	for _, o := range options {
		s |= 1 << o
	}
	return s
}

// drop4 lists, the least important first, what is left out when a reply would
// be longer than the client or the link takes. Where one stands for another
// (the routes) the shorter takes its place. What is not listed fits the
// smallest message together with the longest client identifier.
var drop4 = [...]struct{ option, instead int }{
	{o4NTP, -1},
	{o4Hostname, -1},
	{o4Search, -1},
	{o4T2, -1}, // the client then takes 7/8 of the lease (RFC 2131 §4.4.5)
	{o4T1, -1}, // the client then takes half of the lease
	{o4Domain, -1},
	{o4Microsoft, o4MicrosoftShort},
	{o4Routes, o4RoutesShort},
	{o4MicrosoftShort, -1},
	{o4MTU, -1},
	{o4DNS, -1},
}

const (
	minMessage4 = 576 // option 57's least value, also without it (RFC 2132 §9.10)
	nakText     = "not your address on this link"
)

// dhcp4Templates has what the replies are put together from.
type dhcp4Templates struct {
	head    []byte // from Ethernet to the magic cookie, without what the request decides
	options [numOptions4][]byte
	lease   optionSet4 // what OFFER and ACK carry
	inform  optionSet4 // what the ACK of an INFORM carries
	whole   [4][]byte  // the same as bytes: lease, inform, each without and with 249
	nak     []byte     // the options of a NAK
}

func compileDHCP4(n NIC) (dhcp4Templates, error) {
	v := n.V4
	t1, t2 := times4(v)
	domain, err := wire.AppendNames(nil, nonEmpty(n.Domain)...)
	if err != nil {
		return dhcp4Templates{}, err
	}
	search, err := wire.AppendNamesCompressed(nil, n.Search...)
	if err != nil {
		return dhcp4Templates{}, err
	}
	var t dhcp4Templates
	// An empty option is one that is absent: Windows ignores a message with
	// one of length 0.
	put := func(i int, code uint8, data []byte) {
		if len(data) > 0 {
			t.options[i] = wire.AppendOption4(nil, code, data)
		}
	}
	u32 := func(x uint32) []byte { return binary.BigEndian.AppendUint32(nil, x) }
	gateway := wire.AppendAddrs4(nil, v.Gateway)
	routes, short := routes4(v.Gateway, v.Routes), routes4(v.Gateway, nil)

	put(o4MessageType, wire.Opt4MessageType, []byte{0})
	put(o4ServerID, wire.Opt4ServerID, gateway)
	put(o4Lease, wire.Opt4Lease, u32(v.Lease))
	put(o4T1, wire.Opt4T1, u32(t1))
	put(o4T2, wire.Opt4T2, u32(t2))
	put(o4SubnetMask, wire.Opt4SubnetMask, []byte{255, 255, 255, 255})
	put(o4Router, wire.Opt4Router, gateway)
	put(o4Routes, wire.Opt4ClasslessRoutes, routes)
	put(o4RoutesShort, wire.Opt4ClasslessRoutes, short)
	put(o4DNS, wire.Opt4DNS, wire.AppendAddrs4(nil, v.DNS...))
	if len(domain) > 0 {
		put(o4Domain, wire.Opt4Domain, []byte(strings.TrimSuffix(n.Domain, ".")))
	}
	put(o4Hostname, wire.Opt4Hostname, []byte(label(n.Hostname)))
	put(o4Search, wire.Opt4Search, search)
	put(o4MTU, wire.Opt4MTU, binary.BigEndian.AppendUint16(nil, n.MTU))
	put(o4NTP, wire.Opt4NTP, wire.AppendAddrs4(nil, v.NTP...))
	put(o4Microsoft, wire.Opt4MicrosoftRoutes, routes)
	put(o4MicrosoftShort, wire.Opt4MicrosoftRoutes, short)

	microsoft := setOf4(o4Microsoft)
	t.lease = (1<<numOptions4 - 1) &^ setOf4(o4RoutesShort, o4Microsoft, o4MicrosoftShort)
	t.inform = t.lease &^ setOf4(o4Lease, o4T1, o4T2)
	for i, set := range []optionSet4{t.lease, t.lease | microsoft, t.inform, t.inform | microsoft} {
		t.whole[i] = t.append(nil, set)
	}
	t.nak = t.append(nil, setOf4(o4MessageType, o4ServerID))
	t.nak = wire.AppendOption4(t.nak, wire.Opt4Message, []byte(nakText))
	t.head = head4(n)
	return t, nil
}

// times4 fills in the defaults of RFC 2131 §4.4.5.
func times4(v V4) (t1, t2 uint32) {
	t1, t2 = v.T1, v.T2
	if t2 == 0 {
		t2 = max(t1, uint32(uint64(v.Lease)*7/8))
	}
	if t1 == 0 {
		t1 = min(v.Lease/2, t2)
	}
	return t1, t2
}

// head4 is a reply up to the magic cookie. The broadcast addresses are those
// of a NAK; the other replies overwrite them.
func head4(n NIC) []byte {
	b := wire.AppendEther(nil, wire.Ether{Dst: mac.Broadcast, Src: n.GatewayMAC, Type: wire.EtherTypeIPv4})
	b = wire.AppendIPv4(b, wire.IPv4{Src: n.V4.Gateway, Dst: broadcast4, Proto: wire.ProtoUDP, TTL: 64}, 0)
	b = wire.AppendUDP(b, wire.UDP{Src: wire.DHCP4ServerPort, Dst: wire.DHCP4ClientPort}, 0)
	return wire.AppendDHCP4(b, wire.DHCP4{Op: 2, CHAddr: n.GuestMAC})
}

// routes4 is the data of options 121 and 249: the gateway is on the link, all
// else is behind it. The gateway comes first, since clients install routes in
// this order, and the default last.
func routes4(gateway netip.Addr, extra []netip.Prefix) []byte {
	b := wire.AppendRoute4(nil, netip.PrefixFrom(gateway, 32), netip.IPv4Unspecified())
	for _, to := range extra {
		if to.Bits() > 0 {
			b = wire.AppendRoute4(b, to, gateway)
		}
	}
	return wire.AppendRoute4(b, netip.PrefixFrom(netip.IPv4Unspecified(), 0), gateway)
}

// label is the first label of a host name, or "" when that is none. Clients
// hand the name to shell scripts, hence the narrow choice of characters.
func label(name string) string {
	name, _, _ = strings.Cut(name, ".")
	name = strings.Trim(name[:min(len(name), 63)], "-")
	if !names.Label(name) {
		return ""
	}
	return name
}

func nonEmpty(s string) []string {
	if s == "" {
		return nil
	}
	return []string{s}
}

// append appends the options of a set in their order.
func (t *dhcp4Templates) append(b []byte, set optionSet4) []byte {
	for i, o := range t.options {
		if set&(1<<i) != 0 {
			b = append(b, o...)
		}
	}
	return b
}

// appendFitting appends the options of a lease or an INFORM, leaving out what
// does not fit in room bytes, in the order of drop4.
func (t *dhcp4Templates) appendFitting(b []byte, room int, inform, microsoft bool) []byte {
	i, set := 0, t.lease
	if inform {
		i, set = 2, t.inform
	}
	if microsoft {
		i, set = i+1, set|setOf4(o4Microsoft)
	}
	need := len(t.whole[i])
	if need <= room {
		return append(b, t.whole[i]...)
	}
	for _, d := range drop4 {
		if set&(1<<d.option) == 0 {
			continue
		}
		set &^= 1 << d.option
		need -= len(t.options[d.option])
		if d.instead >= 0 {
			set |= 1 << d.instead
			need += len(t.options[d.instead])
		}
		if need <= room {
			break
		}
	}
	return t.append(b, set)
}

// request4 is what the options of a client's message say.
type request4 struct {
	kind      uint8
	requested netip.Addr // option 50
	server    netip.Addr // option 54
	max       int        // option 57, at least minMessage4
	microsoft bool       // wants option 249
	clientID  [255]byte
	idLen     int
}

// parse reads the options; ok is false when they are malformed. An option of
// fixed length counts the first time only.
func (r *request4) parse(m *wire.DHCP4) (ok bool) {
	r.max = minMessage4
	o := m.Options()
	for o.Next() {
		switch o.Code {
		case wire.Opt4MessageType:
			if len(o.Data) == 1 && r.kind == 0 {
				r.kind = o.Data[0]
			}
		case wire.Opt4RequestedIP:
			if len(o.Data) == 4 && !r.requested.IsValid() {
				r.requested = netip.AddrFrom4([4]byte(o.Data))
			}
		case wire.Opt4ServerID:
			if len(o.Data) == 4 && !r.server.IsValid() {
				r.server = netip.AddrFrom4([4]byte(o.Data))
			}
		case wire.Opt4MaxMessage:
			if len(o.Data) == 2 {
				r.max = max(minMessage4, int(binary.BigEndian.Uint16(o.Data)))
			}
		case wire.Opt4ParameterList:
			for _, c := range o.Data {
				r.microsoft = r.microsoft || c == wire.Opt4MicrosoftRoutes
			}
		case wire.Opt4VendorClass:
			r.microsoft = r.microsoft || len(o.Data) >= 4 && string(o.Data[:4]) == "MSFT"
		case wire.Opt4ClientID:
			// Parts of one long option are joined (RFC 3396).
			if len(o.Data) > len(r.clientID)-r.idLen {
				return false
			}
			r.idLen += copy(r.clientID[r.idLen:], o.Data)
		}
	}
	return !o.Malformed()
}

// respondDHCP4 answers a client's message (RFC 2131 §4.3). toGateway tells
// that it was sent to the gateway's address, as in RENEWING, not broadcast.
func (l *Link) respondDHCP4(toGateway bool, b, out []byte) ([]byte, Verdict) {
	m, ok := wire.ParseDHCP4(b)
	switch {
	case !ok:
		return nil, DHCP4Malformed
	case m.Op != 1:
		return nil, DHCP4Rogue
	case m.CHAddr != l.guest:
		return nil, DHCP4Foreign
	case !m.GIAddr.IsUnspecified():
		return nil, DHCP4Relay
	case !l.offer4.IsValid():
		return nil, DHCP4NoAddress
	}
	var r request4
	if !r.parse(&m) {
		return nil, DHCP4Malformed
	}
	v := l.judge4(&m, &r, toGateway)
	switch v {
	case DHCP4Offer:
		return l.reply4(&m, &r, wire.DHCP4Offer, out), v
	case DHCP4Ack, DHCP4AckReboot, DHCP4AckRenew, DHCP4AckRebind, DHCP4AckInform:
		return l.reply4(&m, &r, wire.DHCP4Ack, out), v
	case DHCP4Nak:
		return l.reply4(&m, &r, wire.DHCP4Nak, out), v
	}
	return nil, v
}

func (l *Link) judge4(m *wire.DHCP4, r *request4, toGateway bool) Verdict {
	switch r.kind {
	case wire.DHCP4Discover:
		return DHCP4Offer
	case wire.DHCP4Request:
		return l.judgeRequest4(m, r, toGateway)
	case wire.DHCP4Decline:
		return DHCP4Decline
	case wire.DHCP4Release:
		return DHCP4Release
	case wire.DHCP4Inform:
		return DHCP4AckInform
	case wire.DHCP4Offer, wire.DHCP4Ack, wire.DHCP4Nak:
		return DHCP4Rogue
	}
	return DHCP4Unknown
}

// judgeRequest4 tells the four states of RFC 2131 §4.3.2 apart. A client that
// asks for an address that is not its own is refused in each of them: it would
// else keep using what it was given before the VM's address changed.
func (l *Link) judgeRequest4(m *wire.DHCP4, r *request4, toGateway bool) Verdict {
	v, wanted := DHCP4AckReboot, r.requested
	switch {
	case r.server.IsValid() && r.server != l.gw4:
		return DHCP4OtherServer
	case r.server.IsValid():
		v = DHCP4Ack
	case !m.CIAddr.IsUnspecified() && toGateway:
		v = DHCP4AckRenew
	case !m.CIAddr.IsUnspecified():
		v = DHCP4AckRebind
	}
	if !wanted.IsValid() {
		wanted = m.CIAddr // RENEWING and REBINDING have no option 50
	}
	switch {
	case wanted.IsUnspecified():
		return DHCP4Malformed
	case wanted != l.offer4, !m.CIAddr.IsUnspecified() && m.CIAddr != l.offer4:
		return DHCP4Nak
	}
	return v
}

// Offsets into a reply's DHCPv4 message.
const (
	offXID4     = offDHCP4 + 4
	offFlags4   = offDHCP4 + 10
	offCIAddr4  = offDHCP4 + 12
	offYIAddr4  = offDHCP4 + 16
	offOptions4 = offDHCP4 + wire.DHCP4FixedLen
)

// reply4 writes a reply of the given kind (RFC 2131 tables 3 and §4.1).
func (l *Link) reply4(m *wire.DHCP4, r *request4, kind uint8, out []byte) []byte {
	b := append(out[:0], l.dhcp4.head...)
	binary.BigEndian.PutUint32(b[offXID4:], m.XID)
	binary.BigEndian.PutUint16(b[offFlags4:], m.Flags)

	if kind == wire.DHCP4Nak {
		b = append(b, l.dhcp4.nak...)
	} else {
		inform := r.kind == wire.DHCP4Inform
		l.address4(b, m, inform, kind == wire.DHCP4Ack)
		// Option 57 counts the whole datagram, to be on the safe side.
		room := min(r.max, l.limit-wire.EtherLen) - wire.IPv4Len - wire.UDPLen - wire.DHCP4FixedLen
		room -= 1 // the end option
		if r.idLen > 0 {
			room -= 2 + r.idLen
		}
		b = l.dhcp4.appendFitting(b, room, inform, r.microsoft)
	}
	b[offOptions4+2] = kind
	if r.idLen > 0 {
		b = wire.AppendOption4(b, wire.Opt4ClientID, r.clientID[:r.idLen]) // RFC 6842
	}
	b = append(b, wire.Opt4End)
	for len(b) < offDHCP4+wire.DHCP4MinLen {
		b = append(b, 0)
	}

	binary.BigEndian.PutUint16(b[offIPv4Len:], uint16(len(b)-wire.EtherLen))
	wire.SetIPv4Checksum(b[wire.EtherLen:])
	binary.BigEndian.PutUint16(b[offUDP4+4:], uint16(len(b)-offUDP4))
	wire.SetUDPChecksum(b[offIPv4Src:offUDP4], b[offUDP4:])
	return b
}

// address4 fills in ciaddr and yiaddr and chooses where an OFFER or ACK goes
// (RFC 2131 §4.1): to ciaddr when the client has an address, else by broadcast
// when it asks for that, else to the address that it is about to have.
func (l *Link) address4(b []byte, m *wire.DHCP4, inform, ack bool) {
	ci, yi := m.CIAddr.As4(), l.offer4.As4()
	if ack {
		copy(b[offCIAddr4:], ci[:])
	}
	if !inform {
		copy(b[offYIAddr4:], yi[:])
	}
	switch {
	case ack && ci != [4]byte{}:
		copy(b[offIPv4Dst:], ci[:])
	case inform || m.Flags&wire.DHCP4Broadcast != 0:
		return // head4 is addressed to everybody
	default:
		copy(b[offIPv4Dst:], yi[:])
	}
	copy(b, l.guest[:])
}
