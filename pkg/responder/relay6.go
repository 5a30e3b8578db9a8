package responder

import (
	"encoding/binary"
	"net/netip"
	"time"

	"github.com/slash32/slash32/pkg/lease"
	"github.com/slash32/slash32/pkg/wire"
)

// relay6Len is the length of a relay's header: type, hop count, link address and
// peer address (RFC 8415 §9).
const relay6Len = 34

// relayDHCP6 wraps a client's message (RFC 8415 §19.1.1).
func (l *Link) relayDHCP6(g *Guest, src netip.Addr, m *wire.DHCP6, raw, out []byte) ([]byte, Verdict) {
	if len(raw)+relay6Len+len(l.relay.forward)+4 > MaxRelayed {
		return nil, DHCP6Malformed
	}
	g.xid6 = m.XID
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

// forget6 drops the leases of the addresses that the client gives back.
func (l *Link) forget6(g *Guest, m *wire.DHCP6) {
	each6(m, func(a wire.IAAddr6) {
		for i := range g.V6 {
			if g.V6[i].Addr == a.Addr {
				g.V6[i] = lease.V6{}
			}
		}
	})
}

// each6 calls f for each address in the IA_NAs of a message.
func each6(m *wire.DHCP6, f func(wire.IAAddr6)) {
	for o := m.Options(); o.Next(); {
		if o.Code != wire.Opt6IANA {
			continue
		}
		ia, ok := wire.ParseIA6(o.Code, o.Data)
		if !ok {
			continue
		}
		for i := ia.Options(); i.Next(); {
			if a, ok := wire.ParseIAAddr6(i.Data); ok && i.Code == wire.Opt6IAAddr {
				f(a)
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
		if m.XID != g.xid6 {
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
		l.learn6(g, now, &m)
	}
	n := uint16(len(b) - offUDP6)
	binary.BigEndian.PutUint16(b[offIPv6Len:], n)
	binary.BigEndian.PutUint16(b[offUDP6+4:], n)
	wire.SetUDPChecksum(b[offIPv6Src:offUDP6], b[offUDP6:])
	return b, DHCP6Answered
}

// learn6 takes over the addresses that a REPLY grants, and drops those that it
// takes back (a valid lifetime of 0).
func (l *Link) learn6(g *Guest, now time.Time, m *wire.DHCP6) {
	each6(m, func(a wire.IAAddr6) {
		free := -1
		for i := range g.V6 {
			if g.V6[i].Addr == a.Addr {
				free = i
				break
			}
			if free < 0 && (!g.V6[i].Addr.IsValid() || g.V6[i].Expires <= now.Unix()) {
				free = i
			}
		}
		switch {
		case free < 0:
		case a.Valid == 0:
			if g.V6[free].Addr == a.Addr {
				g.V6[free] = lease.V6{}
			}
		case a.Addr.IsGlobalUnicast():
			g.V6[free] = lease.V6{Addr: a.Addr, Expires: now.Unix() + int64(a.Valid)}
		}
	})
}
