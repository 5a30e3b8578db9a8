package responder

import (
	"encoding/binary"
	"net/netip"
	"time"

	"github.com/slash32/slash32/pkg/lease"
	"github.com/slash32/slash32/pkg/wire"
)

// Lengths in bytes: of option 26, and of one with what of it stays on the link (a
// length and the bits from minPool to 128 at most).
const (
	plainPrefixLen = 4 + wire.IAPrefixLen
	iaPrefixLen    = plainPrefixLen + 4 + 1 + (128-minPool)/8
)

// delegation answers the IA_PDs of one message. It works on the guest's kept
// prefixes: an IA's identity is the link and its IAID, whatever the DUID.
//
// An IA has one prefix that is good, and while the guest is renumbered the ones
// before it, which are not renewed. What the guest has is in the binding's pools
// and free of what is on the link; what it asks for is a wish.
type delegation struct {
	l       *Link
	g       *Guest
	now     int64
	src     [16]byte // the client's address, by which the prefix is reached
	exclude bool     // the message asks for option 67

	given    uint8  // bits: entries of g.Prefixes that are in the reply
	shortest uint32 // preferred lifetime in the reply
}

// given has a bit for each.
const _ = uint(8 - lease.MaxPrefixes)

func (l *Link) delegation(g *Guest, now time.Time, src netip.Addr, exclude bool) delegation {
	return delegation{l: l, g: g, now: now.Unix(), src: src.As16(), exclude: exclude, shortest: infinity}
}

func (d *delegation) via() netip.Addr { return netip.AddrFrom16(d.src) }

// lifetimes are those of what is delegated from the pool now. Both are 0 once it
// has ended.
func (d *delegation) lifetimes(p *pool6) (preferred, valid uint32) {
	left := remaining(p.until, d.now)
	return min(d.l.dhcp6.preferred, remaining(p.preferred, d.now), left), min(d.l.dhcp6.valid, left)
}

// deprecated tells whether the pool is on its way out, or its preferred lifetime
// is over.
func (d *delegation) deprecated(p *pool6) bool {
	return p.deprecated || remaining(p.preferred, d.now) == 0
}

// good tells whether the pool gives anything new.
func (d *delegation) good(p *pool6) bool {
	return p != nil && !d.deprecated(p) && remaining(p.until, d.now) > 0
}

// appendIA answers an IA_PD in anything but RELEASE and DECLINE (RFC 8415 §18.3.2,
// §18.3.4, §18.3.5, RFC 6603). The caller has made sure that an IA with one prefix
// or with a status code fits.
func (d *delegation) appendIA(b []byte, ia *wire.IA6, v Verdict) []byte {
	if via := d.via(); !via.IsLinkLocalUnicast() || via == d.l.gw6 { // there is no way to route to it
		return appendNone(b, ia, "ask from a link-local address")
	}
	d.sweep()
	w := d.wish(ia)
	at := len(b)
	b = wire.BeginIA6(b, wire.IA6{Code: ia.Code, IAID: ia.IAID})
	empty := len(b)
	shortest := uint32(infinity)
	x, pool := d.choose(ia, &w)
	if pool != nil {
		preferred, valid := d.lifetimes(pool)
		if d.keep(x, ia.IAID, d.now+int64(valid)) {
			option := len(b)
			b = wire.AppendIAPrefix6(b, wire.IAPrefix6{Prefix: x, Preferred: preferred, Valid: valid})
			if w.exclude {
				b = wire.AppendPDExclude(b, x, pool.exclude)
			}
			b = wire.EndOption6(b, option)
			shortest = preferred
		} else {
			x, pool = netip.Prefix{}, nil
		}
	}
	if v == DHCP6Renew || v == DHCP6Rebind {
		var left uint32
		b, left = d.appendOld(b, ia, x)
		if pool == nil { // nothing new yet: the client is to ask again before the old ends
			shortest = left
		}
	}
	if len(b) == empty {
		return appendNone(b[:at], ia, "no prefix for this link")
	}
	if pool != nil || shortest != infinity {
		binary.BigEndian.PutUint32(b[empty-8:], fraction(shortest, 1, 2))
		binary.BigEndian.PutUint32(b[empty-4:], fraction(shortest, 4, 5))
		d.shortest = min(d.shortest, shortest)
	}
	return wire.EndOption6(b, at)
}

func appendNone(b []byte, ia *wire.IA6, why string) []byte {
	at := len(b)
	b = wire.BeginIA6(b, wire.IA6{Code: ia.Code, IAID: ia.IAID})
	b = wire.AppendStatus6(b, wire.Status6NoPrefixAvail, why)
	return wire.EndOption6(b, at)
}

// appendOld appends what the client lists besides x. What is deprecated runs out,
// and what the client should not have has lifetimes of 0. left is the longest of
// the former; infinity when there is none.
func (d *delegation) appendOld(b []byte, ia *wire.IA6, x netip.Prefix) (_ []byte, left uint32) {
	left = infinity
	for o := ia.Options(); o.Next(); {
		p, ok := wire.ParseIAPrefix6(o.Data)
		if o.Code != wire.Opt6IAPrefix || !ok || p.Prefix == x || wish(p.Prefix) || len(b)+plainPrefixLen > d.l.limit {
			continue
		}
		valid := d.old(p.Prefix, ia.IAID)
		b = wire.AppendIAPrefix6(b, wire.IAPrefix6{Prefix: p.Prefix, Valid: valid})
		if valid > 0 && (left == infinity || valid > left) {
			left = valid
		}
	}
	return b, left
}

// old is how long a prefix is valid that the client lists and that is not the one
// to use; 0 for one that it should not have.
func (d *delegation) old(x netip.Prefix, iaid uint32) uint32 {
	pool := d.l.prefixes.pool(x)
	held := d.find(x, iaid)
	if pool == nil || !d.deprecated(pool) || !usable(x) || held < 0 && !d.isFree(x, iaid) {
		if held >= 0 && d.given&(1<<held) == 0 {
			d.g.Prefixes[held] = lease.Prefix{}
		}
		return 0
	}
	_, valid := d.lifetimes(pool)
	if held >= 0 {
		valid = min(valid, remaining(max(d.g.Prefixes[held].Expires, 1), d.now))
	}
	if valid == 0 || !d.keep(x, iaid, d.now+int64(valid)) {
		return 0
	}
	return valid
}

// wishes are what a client would like (RFC 8415 §18.2.1, RFC 8168).
type wishes struct {
	length  int  // 0: it does not care
	exclude bool // it understands option 67
}

// wish tells whether a prefix is none but names a length, as ::/56 does.
func wish(x netip.Prefix) bool { return x.Addr().IsUnspecified() }

func (d *delegation) wish(ia *wire.IA6) wishes {
	w := wishes{exclude: d.exclude}
	for o := ia.Options(); o.Next(); {
		switch o.Code {
		case wire.Opt6OptionRequest: // where some clients put it
			var asks wants6
			asks.add(o.Data)
			w.exclude = w.exclude || asks.exclude
		case wire.Opt6IAPrefix:
			if p, ok := wire.ParseIAPrefix6(o.Data); ok && w.length == 0 {
				w.length = p.Prefix.Bits()
			}
		}
	}
	return w
}

// choose finds the prefix of the IA: one that the client names, else the one that
// it has, unless it would like another length, else a new one. pool is nil when
// there is none.
func (d *delegation) choose(ia *wire.IA6, w *wishes) (x netip.Prefix, pool *pool6) {
	for i, e := range &d.g.Prefixes {
		if d.given&(1<<i) != 0 && e.IAID == ia.IAID && d.isGood(e.Prefix) { // the same IA a second time
			return e.Prefix, d.l.prefixes.pool(e.Prefix)
		}
	}
	named := false
	for o := ia.Options(); o.Next(); {
		p, ok := wire.ParseIAPrefix6(o.Data)
		if o.Code != wire.Opt6IAPrefix || !ok || wish(p.Prefix) {
			continue
		}
		named = true
		if pool := d.l.prefixes.pool(p.Prefix); d.good(pool) && usable(p.Prefix) && d.isFree(p.Prefix, ia.IAID) &&
			(d.find(p.Prefix, ia.IAID) >= 0 || !d.onLink(span(p.Prefix), p.Prefix.Bits(), pool, w.exclude)) {
			return p.Prefix, pool
		}
	}
	for _, e := range &d.g.Prefixes {
		if e.Prefix.IsValid() && e.IAID == ia.IAID {
			if p := d.l.prefixes.pool(e.Prefix); d.good(p) && d.isFree(e.Prefix, ia.IAID) {
				x, pool = e.Prefix, p
			}
		}
	}
	if pool != nil && (named || w.length == 0 || clamp(w.length, pool) == x.Bits()) {
		return x, pool
	}
	fresh, from := d.allocate(ia.IAID, w)
	for pool == nil && from == nil && d.evict(ia.IAID) {
		fresh, from = d.allocate(ia.IAID, w)
	}
	if from == nil || pool != nil && fresh.Bits() != clamp(w.length, from) {
		return x, pool
	}
	return fresh, from
}

// clamp is the length that comes closest to a wish.
func clamp(length int, p *pool6) int { return min(max(length, p.net.Bits()), slaacBits) }

// usable tells whether a prefix has the form of one of ours.
func usable(x netip.Prefix) bool { return x.Bits() <= slaacBits && x == x.Masked() }

// allocate finds the first prefix that is free and as long as the client would
// like, else the first longer one.
func (d *delegation) allocate(iaid uint32, w *wishes) (netip.Prefix, *pool6) {
	if d.l.prefixes == nil {
		return netip.Prefix{}, nil
	}
	pools := d.l.prefixes.pools
	for _, longer := range [...]bool{false, true} {
		for i := range pools {
			p := &pools[i]
			if !d.good(p) {
				continue
			}
			bits := p.length
			if w.length != 0 {
				bits = clamp(w.length, p)
			}
			last := bits
			if longer {
				bits, last = bits+1, slaacBits
			}
			for ; bits <= last; bits++ {
				if x, ok := d.first(p, bits, iaid, w.exclude); ok {
					return x, p
				}
			}
		}
	}
	return netip.Prefix{}, nil
}

// first finds the first free prefix of a length in the pool. It skips what is
// taken as a whole, so that the steps are as many as there are prefixes, however
// large the pool.
func (d *delegation) first(p *pool6, bits int, iaid uint32, exclude bool) (netip.Prefix, bool) {
	all, size := span(p.net), uint64(1)<<(slaacBits-bits)
	for at := all.lo; ; {
		x := part{at, at + size - 1}
		end, taken := d.taken(x, iaid)
		if e := d.onLinkEnd(x, bits, p, exclude); !taken && e == 0 {
			return x.prefix(bits), true
		} else if end = max(end, e, x.hi) | (size - 1); end >= all.hi {
			return netip.Prefix{}, false
		}
		at = end + 1
	}
}

// taken tells whether part of x is another IA's now, or in this reply already, and
// where that ends. What is x itself and the IA's is not taken.
func (d *delegation) taken(x part, iaid uint32) (end uint64, taken bool) {
	for i, e := range &d.g.Prefixes {
		given := d.given&(1<<i) != 0
		if !e.Prefix.IsValid() || !given && (e.IAID == iaid || e.Expires <= d.now) {
			continue
		}
		if y := span(e.Prefix); x.overlaps(y) && (e.IAID != iaid || x != y) {
			end, taken = max(end, y.hi), true
		}
	}
	return end, taken
}

func (d *delegation) isFree(x netip.Prefix, iaid uint32) bool {
	_, taken := d.taken(span(x), iaid)
	return !taken
}

// onLinkEnd is where the prefix ends that is on the link and part of x, 0 if there
// is none. One that is the pool's to exclude is no matter when the client is told
// of it and it is not all of x.
func (d *delegation) onLinkEnd(x part, bits int, p *pool6, exclude bool) (end uint64) {
	see := func(y netip.Prefix) {
		told := exclude && y == p.exclude && y.Bits() > bits
		if s := span(y); x.overlaps(s) && !told {
			end = max(end, s.hi)
		}
	}
	if p.exclude.IsValid() {
		see(p.exclude)
	}
	for _, a := range d.l.prefixes.advertised {
		see(a.net)
	}
	return end
}

func (d *delegation) onLink(x part, bits int, p *pool6, exclude bool) bool {
	return d.onLinkEnd(x, bits, p, exclude) != 0
}

// sweep forgets what is in no pool any more.
func (d *delegation) sweep() {
	for i, e := range &d.g.Prefixes {
		if e.Prefix.IsValid() && d.l.prefixes.pool(e.Prefix) == nil {
			d.g.Prefixes[i] = lease.Prefix{}
		}
	}
}

// find is the entry of a prefix of the IA, or -1.
func (d *delegation) find(x netip.Prefix, iaid uint32) int {
	for i, e := range &d.g.Prefixes {
		if e.Prefix == x && e.IAID == iaid {
			return i
		}
	}
	return -1
}

// evict frees what another IA has not renewed in its time, or what an earlier
// system on the machine has left: it was asked for from another address. Without
// it, a machine that changes its IAID would have to wait until its own prefix
// expires.
func (d *delegation) evict(iaid uint32) bool {
	oldest := -1
	fresh := d.l.dhcp6.valid - min(d.l.dhcp6.t2, d.l.dhcp6.valid)
	for i, e := range &d.g.Prefixes {
		if !e.Prefix.IsValid() || e.IAID == iaid || d.given&(1<<i) != 0 || !d.isGood(e.Prefix) ||
			e.Via == d.via() && e.Expires-d.now >= int64(fresh) {
			continue
		}
		if oldest < 0 || e.Expires < d.g.Prefixes[oldest].Expires {
			oldest = i
		}
	}
	if oldest < 0 {
		return false
	}
	d.g.Prefixes[oldest] = lease.Prefix{}
	return true
}

// isGood tells whether x is of a pool that gives anything new.
func (d *delegation) isGood(x netip.Prefix) bool { return d.good(d.l.prefixes.pool(x)) }

// keep notes that the IA has x. Of good prefixes it has one. The entry that
// expires first is given up for it when there is no room; ok is false when all are
// in this reply, and as good as x.
func (d *delegation) keep(x netip.Prefix, iaid uint32, expires int64) (ok bool) {
	at, good := d.find(x, iaid), d.isGood(x)
	for i, e := range &d.g.Prefixes {
		if i == at || !e.Prefix.IsValid() || d.given&(1<<i) != 0 {
			continue
		}
		if e.Prefix.Overlaps(x) || good && e.IAID == iaid && d.isGood(e.Prefix) {
			d.g.Prefixes[i] = lease.Prefix{}
		}
	}
	if at < 0 {
		at = d.room(good)
	}
	if at < 0 {
		return false
	}
	d.g.Prefixes[at] = lease.Prefix{Prefix: x, Via: d.via(), IAID: iaid, Expires: expires}
	d.given |= 1 << at
	return true
}

// room is the entry to write what is good or deprecated to, or -1: an empty one,
// else the one that expires first. What is in this reply stays, unless it is
// deprecated and has to make room for what is good.
func (d *delegation) room(good bool) int {
	at, last := -1, -1
	for i, e := range &d.g.Prefixes {
		switch {
		case d.given&(1<<i) != 0:
			if good && !d.isGood(e.Prefix) {
				last = i
			}
		case !e.Prefix.IsValid():
			return i
		case at < 0 || e.Expires < d.g.Prefixes[at].Expires:
			at = i
		}
	}
	if at < 0 {
		return last
	}
	return at
}

// free forgets what an IA_PD gives back and tells whether the guest had any of it.
func (d *delegation) free(ia *wire.IA6) (had bool) {
	for o := ia.Options(); o.Next(); {
		p, ok := wire.ParseIAPrefix6(o.Data)
		if o.Code != wire.Opt6IAPrefix || !ok {
			continue
		}
		if i := d.find(p.Prefix, ia.IAID); i >= 0 {
			d.g.Prefixes[i] = lease.Prefix{}
			had = true
		}
	}
	return had
}

// part is a range of /64s by the upper halves of their addresses, both ends in it.
type part struct{ lo, hi uint64 }

func span(x netip.Prefix) part {
	a := x.Addr().As16()
	lo, bits := binary.BigEndian.Uint64(a[:8]), min(x.Bits(), slaacBits)
	rest := uint64(1)<<(slaacBits-bits) - 1 // all for a length of 0
	return part{lo &^ rest, lo | rest}
}

func (x part) overlaps(y part) bool { return x.lo <= y.hi && y.lo <= x.hi }

func (x part) prefix(bits int) netip.Prefix {
	var a [16]byte
	binary.BigEndian.PutUint64(a[:8], x.lo)
	return netip.PrefixFrom(netip.AddrFrom16(a), bits)
}
