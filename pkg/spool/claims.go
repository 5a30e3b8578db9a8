package spool

import (
	"net/netip"
	"slices"
	"strconv"

	"github.com/slash32/slash32/pkg/intent"
)

// Claims are what one VM alone may have.
type Claims struct {
	Bridges  []string
	Addrs    []netip.Addr
	Prefixes []netip.Prefix
	Forwards []string // ports of the host's; whether two are the same is for package intent to say
}

// ClaimsOf are the claims of a VM.
func ClaimsOf(vm intent.VM) Claims {
	var c Claims
	for _, n := range vm.NICs {
		c.Bridges = append(c.Bridges, n.Bridge)
		c.Addrs = append(c.Addrs, n.Addrs()...)
		c.Prefixes = append(c.Prefixes, n.Nets()...)
	}
	c.Forwards = vm.Forwards()
	return c
}

// Claims are what the declaration claims.
func (d Declaration) Claims() Claims {
	return Claims{Bridges: d.Bridges, Addrs: d.Addrs, Prefixes: d.Prefixes, Forwards: d.Forwards}
}

// HasAddr tells whether an address is one of the claims, or in one.
func (c Claims) HasAddr(a netip.Addr) bool {
	return slices.Contains(c.Addrs, a) || slices.ContainsFunc(c.Prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
}

// Overlaps tells whether some of a prefix is claimed.
func (c Claims) Overlaps(p netip.Prefix) bool {
	return slices.ContainsFunc(c.Addrs, p.Contains) || slices.ContainsFunc(c.Prefixes, p.Overlaps)
}

// texts are such that the file of every declaration that could meet the claims
// has one of them, unless the claims have prefixes: to find an overlap, each file
// must be read.
func (c Claims) texts() [][]byte {
	texts := make([][]byte, 0, len(c.Addrs)+len(c.Bridges)+1)
	v6 := false
	for _, a := range c.Addrs {
		texts = append(texts, []byte(strconv.Quote(a.String())))
		v6 = v6 || a.Is6()
	}
	for _, b := range c.Bridges {
		texts = append(texts, []byte(strconv.Quote(b)))
	}
	if v6 {
		texts = append(texts, []byte(`"prefixes":[`)) // quotes within the XML are escaped
	}
	if len(c.Forwards) > 0 {
		texts = append(texts, []byte(`"forwards":[`))
	}
	return texts
}

// meet tells whether two VMs claim the same, or might.
func (c Claims) meet(o Claims) bool {
	return len(c.Forwards) > 0 && len(o.Forwards) > 0 ||
		slices.ContainsFunc(c.Bridges, func(b string) bool { return slices.Contains(o.Bridges, b) }) ||
		slices.ContainsFunc(c.Addrs, o.HasAddr) || slices.ContainsFunc(c.Prefixes, o.Overlaps)
}
