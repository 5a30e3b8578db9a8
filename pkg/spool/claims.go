package spool

import (
	"net/netip"
	"slices"
	"strconv"
)

// Claims are what one VM alone may have.
type Claims struct {
	Bridges  []string
	Addrs    []netip.Addr
	Prefixes []netip.Prefix
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
	return texts
}

// meet tells whether two VMs claim the same.
func (c Claims) meet(o Claims) bool {
	return slices.ContainsFunc(c.Bridges, func(b string) bool { return slices.Contains(o.Bridges, b) }) ||
		slices.ContainsFunc(c.Addrs, func(a netip.Addr) bool {
			return slices.Contains(o.Addrs, a) || slices.ContainsFunc(o.Prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
		}) ||
		slices.ContainsFunc(c.Prefixes, func(p netip.Prefix) bool {
			return slices.ContainsFunc(o.Addrs, p.Contains) || slices.ContainsFunc(o.Prefixes, p.Overlaps)
		})
}
