package responder

import (
	"net/netip"
	"slices"
)

// addrs6 are the addresses of the guest: first those that an IA_NA is given, then
// those on their way out.
type addrs6 []addr6

// addr6 is one of them. Both times are as remaining has them.
type addr6 struct {
	addr             netip.Addr
	old              bool // on its way out
	preferred, until int64
}

func compileAddrs6(v V6) addrs6 {
	var out addrs6
	for _, a := range v.Addrs[:min(len(v.Addrs), maxAddrs6)] {
		x := addr6{addr: a}
		if i := v.term(a); i >= 0 {
			x.preferred, x.until = v.Terms[i].Preferred, v.Terms[i].Until
		}
		out = append(out, x)
	}
	for _, t := range v.old() {
		out = append(out, addr6{addr: t.Addr, old: true, until: t.Until})
	}
	return out
}

// term is the place of an address in Terms, or -1.
func (v V6) term(a netip.Addr) int {
	return slices.IndexFunc(v.Terms, func(t Term) bool { return t.Addr == a })
}

// old are the terms of the addresses on their way out.
func (v V6) old() (out []Term) {
	for _, t := range v.Terms {
		if !slices.Contains(v.Addrs, t.Addr) {
			out = append(out, t)
		}
	}
	return out
}

// find is the address's entry, or nil.
func (x addrs6) find(a netip.Addr) *addr6 {
	for i := range x {
		if x[i].addr == a {
			return &x[i]
		}
	}
	return nil
}

// lifetimes are those that are left of an address, within the binding's. An address
// without a preferred lifetime is not given to who does not have it; one without a
// valid lifetime is the guest's no more.
func (t *dhcp6Templates) lifetimes(x *addr6, now int64) (preferred, valid uint32) {
	left := remaining(x.until, now)
	valid = min(t.valid, left)
	if x.old {
		return 0, valid
	}
	return min(t.preferred, remaining(x.preferred, now), left), valid
}

// has tells whether an address is the guest's, be it on its way out.
func (t *dhcp6Templates) has(a netip.Addr, now int64) bool {
	x := t.addrs.find(a)
	if x == nil {
		return false
	}
	_, valid := t.lifetimes(x, now)
	return valid > 0
}

// gives tells whether there is an address for an IA_NA.
func (t *dhcp6Templates) gives(now int64) bool {
	for i := range t.addrs {
		if preferred, _ := t.lifetimes(&t.addrs[i], now); preferred > 0 {
			return true
		}
	}
	return false
}
