package config

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/slash32/slash32/pkg/yamltree"
)

// services reads what of the host guests may reach: a list like [tcp/22, udp/53],
// or all or none.
func (p *parser) services(e yamltree.Entry, n *Network) {
	vs, ok := p.list(e, MaxServices)
	if !ok {
		return
	}
	if len(vs) == 1 && (vs[0] == "all" || vs[0] == "none") {
		n.Services, n.Open = nil, vs[0] == "all"
		return
	}
	var out []Service
	for _, v := range vs {
		s, ok := p.service(e, v)
		switch {
		case !ok:
			return
		case slices.Contains(out, s):
			p.bad(e, v, "is given twice", "remove one")
			return
		}
		out = append(out, s)
	}
	n.Services, n.Open = out, false
}

func (p *parser) service(e yamltree.Entry, v string) (Service, bool) {
	name, number, _ := strings.Cut(v, "/")
	proto := map[string]uint8{"tcp": ProtoTCP, "udp": ProtoUDP}[name]
	port, err := strconv.ParseUint(number, 10, 16)
	if proto != 0 && err == nil && port != 0 {
		return Service{proto, uint16(port)}, true
	}
	fix := "write it like tcp/22 or udp/53, or all or none alone"
	switch _, err := strconv.ParseUint(name, 10, 16); {
	case proto != 0 && strings.Contains(number, "-"):
		fix = "write each port by itself, or all"
	case err == nil && (number == "tcp" || number == "udp"):
		fix = "write " + number + "/" + name
	case err == nil && number == "":
		fix = fmt.Sprintf("write tcp/%s or udp/%[1]s", name)
	}
	p.bad(e, v, "is not a port of the host", fix)
	return Service{}, false
}

// localPrefixes reads the prefixes whose traffic is counted as local. What is
// within another of them is left out.
func (p *parser) localPrefixes(e yamltree.Entry, to *[]netip.Prefix) {
	vs, ok := p.list(e, MaxLocal)
	if !ok {
		return
	}
	var all []netip.Prefix
	for _, v := range vs {
		x, err := netip.ParsePrefix(v)
		if a, single := netip.ParseAddr(v); single == nil && a.Zone() == "" {
			x, err = netip.PrefixFrom(a, a.BitLen()), nil
		}
		if err != nil || x.Addr().Is4In6() || x.Bits() == 0 {
			p.bad(e, v, "is not a prefix", "write it like 10.0.0.0/8 or 2001:db8::/32")
			return
		}
		if x != x.Masked() {
			p.bad(e, v, "has bits beyond its length", "write "+x.Masked().String())
			return
		}
		all = append(all, x)
	}
	slices.SortFunc(all, func(a, b netip.Prefix) int {
		return cmp.Or(cmp.Compare(a.Bits(), b.Bits()), a.Addr().Compare(b.Addr()))
	})
	var out []netip.Prefix
	for _, x := range all {
		if !slices.ContainsFunc(out, func(y netip.Prefix) bool { return y.Contains(x.Addr()) }) {
			out = append(out, x)
		}
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	*to = out
}
