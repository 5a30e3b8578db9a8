package responder

import (
	"encoding/binary"
	"math"
	"net/netip"
	"slices"

	"github.com/slash32/slash32/pkg/marks"
	"github.com/slash32/slash32/pkg/wire"
)

const (
	// maxAddrs6 is how many addresses an IA_NA is given at most, so that one
	// fits any MTU together with everything else.
	maxAddrs6 = 24

	// maxDUID is the longest DUID (RFC 8415 §11.1): a type and 128 bytes.
	maxDUID = 130

	// iaLen is the length of an IA with a status code and no address.
	iaLen = 16 + statusLen

	// statusLen is the room of a status code option with any text below.
	statusLen = 6 + 40

	infinity = math.MaxUint32 // RFC 8415 §7.7

	// minRefresh is IRT_MINIMUM in seconds (RFC 8415 §7.6).
	minRefresh = 600
)

var (
	allDHCP6Agents  = netip.AddrFrom16([16]byte{0: 0xff, 1: 0x02, 13: 1, 15: 2}) // ff02::1:2
	allDHCP6Servers = netip.AddrFrom16([16]byte{0: 0xff, 1: 0x05, 13: 1, 15: 3}) // ff05::1:3
)

// dhcp6Templates has what the replies are put together from.
type dhcp6Templates struct {
	head    []byte       // from Ethernet to UDP
	addrs   []netip.Addr // what an IA_NA is given
	ia      []byte       // the same as options 5
	t1, t2  uint32
	dns     []byte // options, each empty when there is nothing to say
	search  []byte
	sntp    []byte
	ntp     []byte
	refresh []byte
}

func compileDHCP6(n NIC, search []byte) dhcp6Templates {
	v := n.V6
	t := dhcp6Templates{
		addrs: slices.Clone(v.Addrs[:min(len(v.Addrs), maxAddrs6)]),
		t1:    fraction(v.Preferred, 1, 2), // RFC 8415 §14.2 recommends these
		t2:    fraction(v.Preferred, 4, 5),
	}
	for _, a := range t.addrs {
		t.ia = wire.AppendIAAddr6(t.ia, wire.IAAddr6{Addr: a, Preferred: v.Preferred, Valid: v.Valid})
	}
	put := func(code uint16, data []byte) []byte {
		if len(data) == 0 {
			return nil
		}
		return wire.AppendOption6(nil, code, data)
	}
	t.dns = put(wire.Opt6DNS, wire.AppendAddrs6(nil, v.DNS...))
	t.search = put(wire.Opt6Search, search)
	t.sntp = put(wire.Opt6SNTP, wire.AppendAddrs6(nil, v.NTP...))
	var ntp []byte
	for _, a := range v.NTP {
		if a.Is6() {
			ntp = wire.AppendOption6(ntp, ntpServerAddress, wire.AppendAddrs6(nil, a))
		}
	}
	t.ntp = put(wire.Opt6NTP, ntp)
	t.refresh = put(wire.Opt6InformationRefresh, binary.BigEndian.AppendUint32(nil, max(t.t1, minRefresh)))

	t.head = wire.AppendEther(nil, wire.Ether{Dst: n.GuestMAC, Src: n.GatewayMAC, Type: wire.EtherTypeIPv6})
	t.head = wire.AppendIPv6(t.head, wire.IPv6{
		Src:      v.Gateway,
		Dst:      netip.IPv6Unspecified(),
		Proto:    wire.ProtoUDP,
		HopLimit: 64,
	}, 0)
	t.head = wire.AppendUDP(t.head, wire.UDP{Src: wire.DHCP6ServerPort, Dst: wire.DHCP6ClientPort}, 0)
	return t
}

// ntpServerAddress is the suboption of option 56 that has one unicast address
// (RFC 5908 §4.1).
const ntpServerAddress = 1

func fraction(x, num, den uint32) uint32 {
	if x == infinity {
		return infinity
	}
	return max(1, uint32(uint64(x)*uint64(num)/uint64(den)))
}

// request6 is what matters of a client's message, all IAs taken together.
type request6 struct {
	kind     uint8
	clientID []byte
	serverID []byte
	rapid    bool
	wantSNTP bool
	wantNTP  bool
	ias      bool // there is an IA of any kind
	ianas    bool // there is an IA_NA
	listed   bool // an IA lists an address
	foreign  bool // an IA lists an address that is not the guest's
}

// parse reads the options; ok is false when they or those within an IA are
// malformed.
func (r *request6) parse(m *wire.DHCP6, own []netip.Addr) (ok bool) {
	r.kind = m.Type
	o := m.Options()
	for o.Next() {
		switch o.Code {
		case wire.Opt6ClientID:
			if len(o.Data) == 0 || len(o.Data) > maxDUID || r.clientID != nil {
				return false
			}
			r.clientID = o.Data
		case wire.Opt6ServerID:
			if len(o.Data) == 0 || r.serverID != nil {
				return false
			}
			r.serverID = o.Data
		case wire.Opt6RapidCommit:
			r.rapid = true
		case wire.Opt6OptionRequest:
			for d := o.Data; len(d) >= 2; d = d[2:] {
				c := binary.BigEndian.Uint16(d)
				r.wantSNTP = r.wantSNTP || c == wire.Opt6SNTP
				r.wantNTP = r.wantNTP || c == wire.Opt6NTP
			}
		case wire.Opt6IANA, wire.Opt6IATA, wire.Opt6IAPD:
			r.ias = true
			r.ianas = r.ianas || o.Code == wire.Opt6IANA
			ia, ok := wire.ParseIA6(o.Code, o.Data)
			if !ok || !r.parseIA(&ia, own) {
				return false
			}
		}
	}
	return !o.Malformed()
}

func (r *request6) parseIA(ia *wire.IA6, own []netip.Addr) (ok bool) {
	o := ia.Options()
	for o.Next() {
		if o.Code != wire.Opt6IAAddr || ia.Code == wire.Opt6IAPD {
			continue
		}
		a, ok := wire.ParseIAAddr6(o.Data)
		if !ok {
			return false
		}
		r.listed = true
		r.foreign = r.foreign || !slices.Contains(own, a.Addr)
	}
	return !o.Malformed()
}

// respondDHCP6 answers a client's message (RFC 8415 §18.3). All state is the
// binding, so that every IA_NA is the guest's whatever its IAID and DUID.
func (l *Link) respondDHCP6(g *Guest, ip wire.IPv6, b, out []byte) ([]byte, Verdict) {
	unicast := ip.Dst == l.gw6
	if !unicast && ip.Dst != allDHCP6Agents && ip.Dst != allDHCP6Servers {
		return nil, NotOurs
	}
	m, ok := wire.ParseDHCP6(b)
	switch {
	case !ok, ip.Src.IsUnspecified(), ip.Src.IsMulticast():
		return nil, DHCP6Malformed
	case m.Type == wire.DHCP6RelayForward || m.Type == wire.DHCP6RelayReply:
		return nil, DHCP6Relay
	case m.Type == wire.DHCP6Advertise || m.Type == wire.DHCP6Reply || m.Type == wire.DHCP6Reconfigure:
		return nil, DHCP6Rogue
	case m.Type < wire.DHCP6Solicit || m.Type > wire.DHCP6InformationRequest:
		return nil, DHCP6Unknown
	case l.relays6():
		return l.relayDHCP6(g, ip.Src, &m, b, out)
	}
	var r request6
	if !r.parse(&m, l.dhcp6.addrs) {
		return nil, DHCP6Malformed
	}
	v := l.judge6(&r, unicast)
	if !v.answers6() {
		return nil, v
	}
	return l.reply6(&m, &r, ip.Src, v, out), v
}

func (v Verdict) answers6() bool { return v >= DHCP6Advertise && v <= DHCP6UseMulticast }

// judge6 applies the rules of RFC 8415 §16 on which messages to discard.
func (l *Link) judge6(r *request6, unicast bool) Verdict {
	toServer := false // must name a server
	switch r.kind {
	case wire.DHCP6Request, wire.DHCP6Renew, wire.DHCP6Release, wire.DHCP6Decline:
		toServer = true
	}
	information := r.kind == wire.DHCP6InformationRequest
	switch {
	case r.clientID == nil && !information,
		r.serverID == nil && toServer,
		r.serverID != nil && !toServer && !information,
		r.ias && information:
		return DHCP6Malformed
	case r.serverID != nil && string(r.serverID) != marks.ServerDUID:
		return DHCP6OtherServer
	case unicast && !toServer:
		return DHCP6Unicast
	case unicast:
		return DHCP6UseMulticast
	}
	switch r.kind {
	case wire.DHCP6Solicit:
		if r.rapid && r.ianas && len(l.dhcp6.addrs) > 0 {
			return DHCP6RapidReply
		}
		return DHCP6Advertise
	case wire.DHCP6Request:
		return DHCP6Request
	case wire.DHCP6Confirm:
		switch {
		case !r.listed:
			return DHCP6NothingToDo
		case r.foreign:
			return DHCP6NotOnLink
		}
		return DHCP6Confirm
	case wire.DHCP6Renew:
		return DHCP6Renew
	case wire.DHCP6Rebind:
		return DHCP6Rebind
	case wire.DHCP6Release:
		return DHCP6Release
	case wire.DHCP6Decline:
		return DHCP6Decline
	}
	return DHCP6Information
}

// reply6 writes the reply that goes with a verdict to the guest's address dst.
func (l *Link) reply6(m *wire.DHCP6, r *request6, dst netip.Addr, v Verdict, out []byte) []byte {
	t := &l.dhcp6
	b := append(out[:0], t.head...)
	x := dst.As16()
	copy(b[offIPv6Dst:], x[:])

	kind := uint8(wire.DHCP6Reply)
	if v == DHCP6Advertise {
		kind = wire.DHCP6Advertise
	}
	b = wire.AppendDHCP6(b, wire.DHCP6{Type: kind, XID: m.XID})
	if r.clientID != nil {
		b = wire.AppendOption6(b, wire.Opt6ClientID, r.clientID)
	}
	b = append(b, 0, wire.Opt6ServerID, 0, uint8(len(marks.ServerDUID)))
	b = append(b, marks.ServerDUID...)

	switch v {
	case DHCP6UseMulticast:
		b = wire.AppendStatus6(b, wire.Status6UseMulticast, "send it to ff02::1:2")
	case DHCP6Confirm:
		b = wire.AppendStatus6(b, wire.Status6Success, "on this link")
	case DHCP6NotOnLink:
		b = wire.AppendStatus6(b, wire.Status6NotOnLink, "not an address of this link")
	case DHCP6Release, DHCP6Decline:
		b = wire.AppendStatus6(b, wire.Status6Success, "noted")
		b = l.appendIAs6(b, m, v)
	case DHCP6Information:
		b = l.fit6(b, t.refresh)
		b = l.appendConfig6(b, r)
	case DHCP6Advertise:
		// 255: the client need not wait for other servers (RFC 8415 §18.2.1).
		b = append(b, 0, wire.Opt6Preference, 0, 1, 255)
		b = l.appendIAs6(b, m, v)
		b = l.appendConfig6(b, r)
	case DHCP6RapidReply:
		b = append(b, 0, wire.Opt6RapidCommit, 0, 0)
		b = l.appendIAs6(b, m, v)
		b = l.appendConfig6(b, r)
	default:
		b = l.appendIAs6(b, m, v)
		b = l.appendConfig6(b, r)
	}

	n := uint16(len(b) - offUDP6)
	binary.BigEndian.PutUint16(b[offIPv6Len:], n)
	binary.BigEndian.PutUint16(b[offUDP6+4:], n)
	wire.SetUDPChecksum(b[offIPv6Src:offUDP6], b[offUDP6:])
	return b
}

// fit6 appends what fits the frame as a whole.
func (l *Link) fit6(b, option []byte) []byte {
	if len(b)+len(option) > l.limit {
		return b
	}
	return append(b, option...)
}

func (l *Link) appendConfig6(b []byte, r *request6) []byte {
	b = l.fit6(b, l.dhcp6.dns)
	b = l.fit6(b, l.dhcp6.search)
	if r.wantNTP {
		b = l.fit6(b, l.dhcp6.ntp)
	}
	if r.wantSNTP {
		b = l.fit6(b, l.dhcp6.sntp)
	}
	return b
}

// appendIAs6 answers the IAs of the message in their order, as many as fit.
// The first IA_NA is given every address of the guest. Another one in the same
// message gets none, since one address cannot be in two IAs; on its own it
// would be the first again, which is what clients need that renew each IA
// apart or use another IAID after the boot loader's.
func (l *Link) appendIAs6(b []byte, m *wire.DHCP6, v Verdict) []byte {
	first := true
	for o := m.Options(); o.Next(); {
		switch o.Code {
		case wire.Opt6IANA, wire.Opt6IATA, wire.Opt6IAPD:
		default:
			continue
		}
		ia, ok := wire.ParseIA6(o.Code, o.Data)
		need := iaLen
		if first && o.Code == wire.Opt6IANA {
			need += len(l.dhcp6.ia)
		}
		if !ok || len(b)+need > l.limit {
			return b
		}
		if v == DHCP6Release || v == DHCP6Decline {
			b = l.appendNoBinding6(b, &ia)
			continue
		}
		b = l.appendIA6(b, &ia, v, first && o.Code == wire.Opt6IANA)
		first = first && o.Code != wire.Opt6IANA
	}
	return b
}

// appendNoBinding6 answers an IA that is released or declined: silence is
// consent, what the guest never had gets a status (RFC 8415 §18.3.7, §18.3.8).
func (l *Link) appendNoBinding6(b []byte, ia *wire.IA6) []byte {
	for o := ia.Options(); o.Next(); {
		if a, ok := wire.ParseIAAddr6(o.Data); ok && o.Code == wire.Opt6IAAddr && slices.Contains(l.dhcp6.addrs, a.Addr) {
			return b
		}
	}
	at := len(b)
	b = wire.BeginIA6(b, wire.IA6{Code: ia.Code, IAID: ia.IAID})
	b = wire.AppendStatus6(b, wire.Status6NoBinding, "not a lease of yours")
	return wire.EndOption6(b, at)
}

// appendIA6 answers one IA. In RENEW and REBIND whatever the client lists that
// is not the guest's comes back with lifetimes of 0, so that the client drops
// it at once (RFC 8415 §18.3.4, §18.3.5); in REQUEST it makes the client start
// over (§18.3.2).
func (l *Link) appendIA6(b []byte, ia *wire.IA6, v Verdict, first bool) []byte {
	at := len(b)
	b = wire.BeginIA6(b, wire.IA6{Code: ia.Code, IAID: ia.IAID})
	empty := len(b)
	if first && len(l.dhcp6.addrs) > 0 {
		if v == DHCP6Request && l.listsForeign6(ia) {
			b = wire.AppendStatus6(b, wire.Status6NotOnLink, "not an address of this link")
			return wire.EndOption6(b, at)
		}
		// T1 and T2 stand where BeginIA6 wrote zeros.
		binary.BigEndian.PutUint32(b[empty-8:], l.dhcp6.t1)
		binary.BigEndian.PutUint32(b[empty-4:], l.dhcp6.t2)
		b = append(b, l.dhcp6.ia...)
	}
	if v == DHCP6Renew || v == DHCP6Rebind {
		b = l.appendVoid6(b, ia)
	}
	if len(b) == empty {
		if ia.Code == wire.Opt6IAPD {
			b = wire.AppendStatus6(b, wire.Status6NoPrefixAvail, "no prefix for this link")
		} else {
			b = wire.AppendStatus6(b, wire.Status6NoAddrsAvail, "no address for this IA")
		}
	}
	return wire.EndOption6(b, at)
}

func (l *Link) listsForeign6(ia *wire.IA6) bool {
	for o := ia.Options(); o.Next(); {
		if a, ok := wire.ParseIAAddr6(o.Data); ok && o.Code == wire.Opt6IAAddr && !slices.Contains(l.dhcp6.addrs, a.Addr) {
			return true
		}
	}
	return false
}

// appendVoid6 appends what the client lists and the guest does not have, with
// lifetimes of 0.
func (l *Link) appendVoid6(b []byte, ia *wire.IA6) []byte {
	const addrLen, prefixLen = 28, 29
	for o := ia.Options(); o.Next(); {
		switch {
		case o.Code == wire.Opt6IAAddr && ia.Code != wire.Opt6IAPD && len(b)+addrLen <= l.limit:
			if a, ok := wire.ParseIAAddr6(o.Data); ok && !slices.Contains(l.dhcp6.addrs, a.Addr) {
				b = wire.AppendIAAddr6(b, wire.IAAddr6{Addr: a.Addr})
			}
		case o.Code == wire.Opt6IAPrefix && ia.Code == wire.Opt6IAPD && len(b)+prefixLen <= l.limit:
			if p, ok := wire.ParseIAPrefix6(o.Data); ok {
				b = wire.AppendIAPrefix6(b, wire.IAPrefix6{Prefix: p.Prefix})
			}
		}
	}
	return b
}
