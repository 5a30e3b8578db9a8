package responder

import (
	"encoding/binary"
	"slices"

	"github.com/slash32/slash32/pkg/wire"
)

// appendIAs6 answers the IAs of the message in their order, as many as fit.
// The first IA_NA is given every address of the guest. Another one in the same
// message gets none, since one address cannot be in two IAs; on its own it
// would be the first again, which is what clients need that renew each IA
// apart or use another IAID after the boot loader's.
func (l *Link) appendIAs6(b []byte, d *delegation, m *wire.DHCP6, v Verdict) []byte {
	first, start := true, len(b)
	for o := m.Options(); o.Next(); {
		switch o.Code {
		case wire.Opt6IANA, wire.Opt6IATA, wire.Opt6IAPD:
		default:
			continue
		}
		ia, ok := wire.ParseIA6(o.Code, o.Data)
		need := iaLen
		switch {
		case first && o.Code == wire.Opt6IANA:
			need += len(l.dhcp6.ia)
		case o.Code == wire.Opt6IAPD:
			need += iaPrefixLen
		}
		gives := v == DHCP6Release || v == DHCP6Decline
		if full := len(b)+need > l.limit; full && gives {
			d.free(&ia) // also what no status is told of
			continue
		} else if full || !ok {
			break
		}
		switch {
		case gives:
			b = l.appendNoBinding6(b, d, &ia)
		case o.Code == wire.Opt6IAPD:
			b = d.appendIA(b, &ia, v)
		default:
			if first && o.Code == wire.Opt6IANA && len(l.dhcp6.addrs) > 0 {
				d.shortest = min(d.shortest, l.dhcp6.preferred)
			}
			b = l.appendIA6(b, &ia, v, first && o.Code == wire.Opt6IANA)
			first = first && o.Code != wire.Opt6IANA
		}
	}
	if d.shortest < infinity {
		setTimes6(b[start:], d.shortest)
	}
	return b
}

// setTimes6 gives every IA that has T1 and T2 those that go with a preferred
// lifetime: they are to be the same in all of a message (RFC 8415 §18.3.4).
func setTimes6(options []byte, preferred uint32) {
	for o := wire.OptionsOf6(options); o.Next(); {
		if o.Code != wire.Opt6IANA && o.Code != wire.Opt6IAPD || len(o.Data) < 12 || binary.BigEndian.Uint64(o.Data[4:]) == 0 {
			continue
		}
		binary.BigEndian.PutUint32(o.Data[4:], fraction(preferred, 1, 2))
		binary.BigEndian.PutUint32(o.Data[8:], fraction(preferred, 4, 5))
	}
}

// appendNoBinding6 answers an IA that is released or declined: silence is
// consent, what the guest never had gets a status (RFC 8415 §18.3.7, §18.3.8).
func (l *Link) appendNoBinding6(b []byte, d *delegation, ia *wire.IA6) []byte {
	if ia.Code == wire.Opt6IAPD && d.free(ia) {
		return b
	}
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

// appendIA6 answers one IA of addresses. In RENEW and REBIND whatever the client lists that
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
		b = wire.AppendStatus6(b, wire.Status6NoAddrsAvail, "no address for this IA")
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

// appendVoid6 appends the addresses that the client lists and the guest does not
// have, with lifetimes of 0.
func (l *Link) appendVoid6(b []byte, ia *wire.IA6) []byte {
	const addrLen = 28
	for o := ia.Options(); o.Next(); {
		if o.Code != wire.Opt6IAAddr || len(b)+addrLen > l.limit {
			continue
		}
		if a, ok := wire.ParseIAAddr6(o.Data); ok && !slices.Contains(l.dhcp6.addrs, a.Addr) {
			b = wire.AppendIAAddr6(b, wire.IAAddr6{Addr: a.Addr})
		}
	}
	return b
}
