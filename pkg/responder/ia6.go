package responder

import (
	"encoding/binary"

	"github.com/slash32/slash32/pkg/wire"
)

// appendIAs6 answers the IAs of the message in their order, as many as fit.
// The first IA_NA is given every address of the guest that is not on its way out. Another one in the same
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
			need += l.dhcp6.room
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
			b = l.appendIA6(b, d, &ia, v, first && o.Code == wire.Opt6IANA)
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
		if a, ok := wire.ParseIAAddr6(o.Data); ok && o.Code == wire.Opt6IAAddr && l.dhcp6.has(a.Addr, d.now) {
			return b
		}
	}
	at := len(b)
	b = wire.BeginIA6(b, wire.IA6{Code: ia.Code, IAID: ia.IAID})
	b = wire.AppendStatus6(b, wire.Status6NoBinding, "not a lease of yours")
	return wire.EndOption6(b, at)
}

// appendIA6 answers one IA of addresses. In RENEW and REBIND what the client lists
// runs out when it is on its way out, and comes back with lifetimes of 0 when it is
// not the guest's, so that the client drops it at once (RFC 8415 §18.3.4, §18.3.5);
// in REQUEST the latter makes the client start over (§18.3.2).
func (l *Link) appendIA6(b []byte, d *delegation, ia *wire.IA6, v Verdict, first bool) []byte {
	at := len(b)
	b = wire.BeginIA6(b, wire.IA6{Code: ia.Code, IAID: ia.IAID})
	empty := len(b)
	if first && v == DHCP6Request && l.dhcp6.gives(d.now) && l.listsForeign6(ia, d.now) {
		b = wire.AppendStatus6(b, wire.Status6NotOnLink, "not an address of this link")
		return wire.EndOption6(b, at)
	}
	shortest := uint32(infinity)
	if first {
		for i := range l.dhcp6.addrs {
			x := &l.dhcp6.addrs[i]
			if preferred, valid := l.dhcp6.lifetimes(x, d.now); preferred > 0 {
				b = wire.AppendIAAddr6(b, wire.IAAddr6{Addr: x.addr, Preferred: preferred, Valid: valid})
				shortest = min(shortest, preferred)
			}
		}
	}
	given := len(b) > empty
	if v == DHCP6Renew || v == DHCP6Rebind {
		var left uint32
		b, left = l.appendOld6(b, ia, first, d.now)
		if !given { // nothing new yet: the client is to ask again before the old ends
			shortest = left
		}
	}
	if len(b) == empty {
		b = wire.AppendStatus6(b, wire.Status6NoAddrsAvail, "no address for this IA")
	}
	if given || shortest != infinity {
		// T1 and T2, of which RFC 8415 §14.2 recommends these, stand where BeginIA6
		// wrote zeros.
		binary.BigEndian.PutUint32(b[empty-8:], fraction(shortest, 1, 2))
		binary.BigEndian.PutUint32(b[empty-4:], fraction(shortest, 4, 5))
		d.shortest = min(d.shortest, shortest)
	}
	return wire.EndOption6(b, at)
}

func (l *Link) listsForeign6(ia *wire.IA6, now int64) bool {
	for o := ia.Options(); o.Next(); {
		if a, ok := wire.ParseIAAddr6(o.Data); ok && o.Code == wire.Opt6IAAddr && !l.dhcp6.has(a.Addr, now) {
			return true
		}
	}
	return false
}

// appendOld6 appends the addresses that the client lists and is not given any more:
// what is on its way out with what is left, which only the first IA has, and what
// the guest does not have with lifetimes of 0. left is the longest of the former;
// infinity when there is none.
func (l *Link) appendOld6(b []byte, ia *wire.IA6, first bool, now int64) (_ []byte, left uint32) {
	left = infinity
	for o := ia.Options(); o.Next(); {
		a, ok := wire.ParseIAAddr6(o.Data)
		if o.Code != wire.Opt6IAAddr || !ok || len(b)+iaAddrLen > l.limit {
			continue
		}
		var preferred, valid uint32
		if x := l.dhcp6.addrs.find(a.Addr); x != nil {
			preferred, valid = l.dhcp6.lifetimes(x, now)
		}
		if preferred > 0 || valid > 0 && !first {
			continue
		}
		b = wire.AppendIAAddr6(b, wire.IAAddr6{Addr: a.Addr, Valid: valid})
		if valid > 0 && (left == infinity || valid > left) {
			left = valid
		}
	}
	return b, left
}
