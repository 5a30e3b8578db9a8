package responder

import (
	"net/netip"
	"time"

	"github.com/slash32/slash32/pkg/lease"
	"github.com/slash32/slash32/pkg/wire"
)

// relay6Len is the length of a relay's header: type, hop count, link address and
// peer address (RFC 8415 §9).
const relay6Len = 34

// exchange6 is the DHCPv6 exchange under way between guest and servers.
type exchange6 struct {
	xid   uint32
	asked bool // not answered by a REPLY yet
}

// relayDHCP6 wraps a client's message (RFC 8415 §19.1.1). A guest's own relay
// messages do not come here, so that there are no hops to count.
func (l *Link) relayDHCP6(g *Guest, src netip.Addr, m *wire.DHCP6, raw, out []byte) ([]byte, Verdict) {
	if len(raw)+relay6Len+len(l.relay.forward)+4 > MaxRelayed {
		return nil, DHCP6Malformed
	}
	g.x6 = exchange6{m.XID, true}
	if m.Type == wire.DHCP6Release || m.Type == wire.DHCP6Decline {
		l.forget6(g, m)
	}
	b := relayHeader(out, l.index, 6, RelayAll)
	b = append(b, wire.DHCP6RelayForward, 0)
	b = append(b, l.relay.link6[:]...)
	peer := src.As16()
	b = append(b, peer[:]...)
	b = append(b, l.relay.forward...)
	return wire.AppendOption6(b, wire.Opt6RelayMessage, raw), DHCP6Relayed
}

// forget6 drops the leases of what the client gives back.
func (l *Link) forget6(g *Guest, m *wire.DHCP6) {
	each6(m, func(a wire.IAAddr6) {
		for i := range g.V6 {
			if g.V6[i].Addr == a.Addr {
				g.V6[i] = lease.V6{}
			}
		}
	}, func(_ uint32, p wire.IAPrefix6) {
		for i := range g.Prefixes {
			if g.Prefixes[i].Prefix == p.Prefix {
				g.Prefixes[i] = lease.Prefix{}
			}
		}
	})
}

// each6 calls a function for each address in the IA_NAs and each prefix, with its
// IAID, in the IA_PDs of a message.
func each6(m *wire.DHCP6, address func(wire.IAAddr6), prefix func(uint32, wire.IAPrefix6)) {
	for o := m.Options(); o.Next(); {
		if o.Code != wire.Opt6IANA && o.Code != wire.Opt6IAPD {
			continue
		}
		ia, ok := wire.ParseIA6(o.Code, o.Data)
		if !ok {
			continue
		}
		for i := ia.Options(); i.Next(); {
			switch {
			case o.Code == wire.Opt6IANA && i.Code == wire.Opt6IAAddr:
				if a, ok := wire.ParseIAAddr6(i.Data); ok {
					address(a)
				}
			case o.Code == wire.Opt6IAPD && i.Code == wire.Opt6IAPrefix:
				if p, ok := wire.ParseIAPrefix6(i.Data); ok {
					prefix(ia.IAID, p)
				}
			}
		}
	}
}

// FromServer6 judges a RELAY-REPL (RFC 8415 §19.2). It is FromServer4 for
// DHCPv6.
func (l *Link) FromServer6(g *Guest, now time.Time, server uint8, message, out []byte) ([]byte, Verdict) {
	if l.relay == nil || int(server) >= len(l.relay.servers6) || len(message) < relay6Len || len(message) > MaxRelayed || message[0] != wire.DHCP6RelayReply {
		return nil, DHCP6BadAnswer
	}
	peer := netip.AddrFrom16([16]byte(message[18:34]))
	var inner []byte
	var id []byte
	o := wire.OptionsOf6(message[relay6Len:])
	for o.Next() {
		switch o.Code {
		case wire.Opt6RelayMessage:
			inner = o.Data
		case wire.Opt6InterfaceID:
			id = o.Data
		}
	}
	m, ok := wire.ParseDHCP6(inner)
	if !ok || o.Malformed() || string(id) != string(l.relay.id) || peer.IsUnspecified() || peer.IsMulticast() {
		return nil, DHCP6BadAnswer
	}
	switch m.Type {
	case wire.DHCP6Advertise, wire.DHCP6Reply:
		// To choose among ADVERTISEs is the client's; of REPLYs it hears the first.
		if m.XID != g.x6.xid || !g.x6.asked {
			return nil, DHCP6LateAnswer
		}
	case wire.DHCP6Reconfigure:
	default:
		return nil, DHCP6BadAnswer
	}
	b := append(out[:0], l.dhcp6.head...)
	x := peer.As16()
	copy(b[offIPv6Dst:], x[:])
	b = append(b, inner[:wire.DHCP6FixedLen]...)
	options := m.Options()
	for options.Next() {
		// A client that was allowed to send unicast would do so past the relay.
		if options.Code == wire.Opt6ServerUnicast {
			continue
		}
		if len(b)+4+len(options.Data) > l.limit {
			return nil, DHCP6BadAnswer
		}
		b = wire.AppendOption6(b, options.Code, options.Data)
	}
	if options.Malformed() {
		return nil, DHCP6BadAnswer
	}
	if m.Type == wire.DHCP6Reply {
		g.x6.asked = false
		l.learn6(g, now, peer, &m)
	}
	return finish6(b), DHCP6Answered
}

// learn6 takes over the addresses and prefixes that a REPLY grants to the client
// at peer, and drops those that it takes back (a valid lifetime of 0).
func (l *Link) learn6(g *Guest, now time.Time, peer netip.Addr, m *wire.DHCP6) {
	each6(m, func(a wire.IAAddr6) {
		at := -1
		for i, v := range g.V6 {
			if v.Addr == a.Addr {
				at = i
				break
			}
			if at < 0 && (!v.Addr.IsValid() || v.Expires <= now.Unix()) {
				at = i
			}
		}
		switch {
		case at < 0:
		case a.Valid == 0:
			if g.V6[at].Addr == a.Addr {
				g.V6[at] = lease.V6{}
			}
		case a.Addr.IsGlobalUnicast():
			g.V6[at] = lease.V6{Addr: a.Addr, Expires: now.Unix() + int64(a.Valid)}
		}
	}, func(iaid uint32, p wire.IAPrefix6) {
		at := -1
		for i, v := range g.Prefixes {
			if v.Prefix == p.Prefix {
				at = i
				break
			}
			if at < 0 && (!v.Prefix.IsValid() || v.Expires <= now.Unix()) {
				at = i
			}
		}
		switch {
		case at < 0:
		case p.Valid == 0:
			if g.Prefixes[at].Prefix == p.Prefix {
				g.Prefixes[at] = lease.Prefix{}
			}
		case p.Prefix.Addr().IsGlobalUnicast():
			g.Prefixes[at] = lease.Prefix{Prefix: p.Prefix, Via: peer, IAID: iaid, Expires: now.Unix() + int64(p.Valid)}
		}
	})
}
