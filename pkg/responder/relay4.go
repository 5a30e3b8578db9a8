package responder

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"time"

	"github.com/slash32/slash32/pkg/lease"
	"github.com/slash32/slash32/pkg/mac"
	"github.com/slash32/slash32/pkg/wire"
)

// maxOffers is how many offers of one exchange are told apart.
const maxOffers = 4

// exchange4 is the DHCPv4 exchange under way between guest and servers.
type exchange4 struct {
	xid    uint32
	asked  bool // something was relayed and not answered for good
	offers [maxOffers]offered4
}

// offered4 says which server has offered an address, and whether the client's
// newest DISCOVER was answered with it already.
type offered4 struct {
	addr, server netip.Addr
	passed       bool
}

// relayDHCP4 passes a client's message on (RFC 1542 §4.1, RFC 3046 §2.1). The
// client knows the gateway as its server, so that its renewals come here: the
// servers' own identifiers are put in their place.
func (l *Link) relayDHCP4(g *Guest, toGateway bool, m *wire.DHCP4, raw []byte, r *request4, out []byte) ([]byte, Verdict) {
	switch {
	case m.Hops >= maxHops4:
		return nil, DHCP4RelayLoop
	case r.foreignID(l.guest):
		return nil, DHCP4Foreign
	}
	v := DHCP4Relayed
	server := netip.Addr{}
	toOne := false
	switch r.kind {
	case wire.DHCP4Discover, wire.DHCP4Inform:
	case wire.DHCP4Request:
		switch {
		case r.server == l.gw4 && r.server.IsValid():
			if server = g.x4.offered(r.requested); !server.IsValid() {
				// The offer was made to another responder, or is forgotten: the
				// servers that hold none refuse, and the client starts over.
				server = g.V4.Server
			}
		case r.server.IsValid():
			return nil, DHCP4OtherServer
		default:
			toOne = toGateway && !m.CIAddr.IsUnspecified()
		}
	case wire.DHCP4Release, wire.DHCP4Decline:
		given := m.CIAddr
		if r.kind == wire.DHCP4Decline {
			given = r.requested
		}
		if given == g.V4.Addr {
			server, toOne = g.V4.Server, r.kind == wire.DHCP4Release
			defer func() { g.V4 = lease.V4{} }()
		}
	case wire.DHCP4Offer, wire.DHCP4Ack, wire.DHCP4Nak:
		return nil, DHCP4Rogue
	default:
		return nil, DHCP4Unknown
	}
	index := uint8(RelayAll)
	if i := slices.Index(l.relay.servers4, g.V4.From); toOne && i >= 0 {
		index, v = uint8(i), DHCP4RelayedToOne
	}
	if r.kind == wire.DHCP4Discover {
		g.x4.discover(m.XID)
	}
	g.x4.xid = m.XID
	g.x4.asked = r.kind != wire.DHCP4Release && r.kind != wire.DHCP4Decline

	b := relayHeader(out, l.index, 4, index)
	message := len(b)
	b = append(b, raw[:wire.DHCP4FixedLen]...)
	b[message+3]++ // hops
	copy(b[message+24:message+28], zero4[:])
	b, ok := l.copyOptions4(b, m, server)
	if !ok || len(b)-message+len(l.relay.agent)+1 > MaxRelayed {
		return nil, DHCP4Malformed
	}
	b = append(append(b, l.relay.agent...), wire.Opt4End)
	for len(b)-message < wire.DHCP4MinLen {
		b = append(b, 0)
	}
	if r.kind != wire.DHCP4Release {
		g.meet(r, ProfileClassic)
	}
	return b, v
}

var zero4 [4]byte

// foreignID tells whether the client identifier is the hardware address of
// another machine (RFC 2132 §9.14). Servers know a lease by this identifier: with
// another's, a guest would be given that one's address.
func (r *request4) foreignID(guest mac.Addr) bool {
	return r.idLen == 1+len(guest) && r.clientID[0] == 1 && mac.Addr(r.clientID[1:7]) != guest
}

// copyOptions4 copies the options field without those of relays (RFC 3046 §2.1:
// a client has no business with them) and the end, with the server identifier
// replaced where server is valid.
func (l *Link) copyOptions4(b []byte, m *wire.DHCP4, server netip.Addr) (_ []byte, ok bool) {
	o := m.MainOptions()
	for o.Next() {
		switch {
		case o.Code == wire.Opt4RelayAgent:
			continue
		case len(b)+2+len(o.Data) > cap(b):
			return b, false
		case o.Code == wire.Opt4ServerID && server.Is4():
			b = append(b, wire.Opt4ServerID, 4)
			b = wire.AppendAddrs4(b, server)
		default:
			b = append(append(b, o.Code, uint8(len(o.Data))), o.Data...)
		}
	}
	return b, !o.Malformed()
}

// discover starts the wait for offers: anew, or when the client asks again
// because it has missed them.
func (x *exchange4) discover(xid uint32) {
	if x.xid != xid {
		x.offers = [maxOffers]offered4{}
	}
	for i := range x.offers {
		x.offers[i].passed = false
	}
}

func (x *exchange4) offered(a netip.Addr) netip.Addr {
	for _, o := range x.offers {
		if o.addr == a && a.IsValid() {
			return o.server
		}
	}
	return netip.Addr{}
}

// FromServer4 judges a DHCPv4 server's answer to a relayed message. server is
// the index in the list of the one that it came from. The reply is a frame for the
// guest; what the answer grants is noted in g. It allocates nothing.
func (l *Link) FromServer4(g *Guest, now time.Time, server uint8, message, out []byte) ([]byte, Verdict) {
	m, ok := wire.ParseDHCP4(message)
	if !ok || l.relay == nil || int(server) >= len(l.relay.servers4) || len(message) > MaxRelayed ||
		m.Op != 2 || m.CHAddr != l.guest {
		return nil, DHCP4BadAnswer
	}
	var a grant4
	if !a.parse(&m) || !a.server.Is4() {
		return nil, DHCP4BadAnswer
	}
	if m.XID != g.x4.xid {
		return nil, DHCP4LateAnswer
	}
	switch a.kind {
	case wire.DHCP4Offer:
		if !g.x4.asked || !g.x4.add(m.YIAddr, a.server) {
			return nil, DHCP4LateAnswer
		}
	case wire.DHCP4Ack, wire.DHCP4Nak:
		if !g.x4.asked {
			return nil, DHCP4LateAnswer // the second server's
		}
		g.x4.asked = false
		l.learn4(g, now, &m, &a, l.relay.servers4[server])
	default:
		return nil, DHCP4BadAnswer
	}
	b, ok := l.deliver4(&m, &a, out)
	if !ok {
		return nil, DHCP4BadAnswer
	}
	return b, DHCP4Answered
}

// add notes an offer. It is false for one of an address that the client was
// offered already, by this server or by its partner.
func (x *exchange4) add(a, server netip.Addr) bool {
	free := -1
	for i := range x.offers {
		switch o := &x.offers[i]; {
		case o.addr == a && a.IsValid():
			if o.passed {
				return false
			}
			*o = offered4{a, server, true}
			return true
		case free < 0 && !o.passed:
			free = i
		}
	}
	if free < 0 {
		return false
	}
	x.offers[free] = offered4{a, server, true}
	return true
}

// learn4 takes over what an ACK grants, and forgets what a NAK refuses.
func (l *Link) learn4(g *Guest, now time.Time, m *wire.DHCP4, a *grant4, from netip.Addr) {
	switch {
	case a.kind == wire.DHCP4Nak:
		g.V4 = lease.V4{}
	case m.YIAddr.IsUnspecified() || a.lease == 0: // the answer to an INFORM
	default:
		g.V4 = lease.V4{Addr: m.YIAddr, Bits: a.bits, Server: a.server, From: from, Expires: now.Unix() + int64(a.lease)}
	}
}

// grant4 is what matters of a server's answer.
type grant4 struct {
	kind   uint8
	server netip.Addr
	lease  uint32
	bits   uint8
}

func (a *grant4) parse(m *wire.DHCP4) bool {
	a.bits = 32
	o := m.Options()
	for o.Next() {
		switch {
		case o.Code == wire.Opt4MessageType && len(o.Data) == 1:
			a.kind = o.Data[0]
		case o.Code == wire.Opt4ServerID && len(o.Data) == 4:
			a.server = netip.AddrFrom4([4]byte(o.Data))
		case o.Code == wire.Opt4Lease && len(o.Data) == 4:
			a.lease = binary.BigEndian.Uint32(o.Data)
		case o.Code == wire.Opt4SubnetMask && len(o.Data) == 4:
			a.bits = 0
			for x := binary.BigEndian.Uint32(o.Data); x != 0; x <<= 1 {
				a.bits++
			}
		}
	}
	return !o.Malformed()
}

// deliver4 makes the server's answer a frame of the gateway's for the guest.
func (l *Link) deliver4(m *wire.DHCP4, a *grant4, out []byte) ([]byte, bool) {
	b := append(out[:0], l.dhcp4.head[:offDHCP4]...)
	b = append(b, m.Raw()[:wire.DHCP4FixedLen]...)
	b[offDHCP4+3] = 0 // hops
	copy(b[offGIAddr4:offGIAddr4+4], zero4[:])
	b, ok := l.copyOptions4(b, m, l.gw4)
	if !ok || len(b)+1 > l.limit {
		return nil, false
	}
	b = append(b, wire.Opt4End)
	for len(b) < offDHCP4+wire.DHCP4MinLen {
		b = append(b, 0)
	}
	// RFC 2131 §4.1: where the relay agent delivers it.
	if a.kind != wire.DHCP4Nak {
		to := m.YIAddr
		if !m.CIAddr.IsUnspecified() {
			to = m.CIAddr
		}
		if (m.Flags&wire.DHCP4Broadcast == 0 || !m.CIAddr.IsUnspecified()) && !to.IsUnspecified() {
			x := to.As4()
			copy(b, l.guest[:])
			copy(b[offIPv4Dst:], x[:])
		}
	}
	l.finish4(b)
	return b, true
}
