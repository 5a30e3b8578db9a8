package config

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/slash32/slash32/pkg/names"
	"github.com/slash32/slash32/pkg/problem"
	"github.com/slash32/slash32/pkg/yamltree"
)

// Lan names the interface that the network's subnets are on.
func (n Network) Lan() string {
	if n.Downlink != "" {
		return n.Downlink
	}
	return n.Uplink
}

// OwnTable tells whether the network has a routing table of its own.
func (n Network) OwnTable() bool { return n.Table != TableMain && n.Table != 0 && n.Table != TableAuto }

// router reads the next hop of a table's default route.
func (p *parser) router(e yamltree.Entry, to *netip.Addr, none netip.Addr) {
	v, ok := p.scalar(e)
	if !ok {
		return
	}
	switch v {
	case "auto":
		*to = netip.Addr{}
		return
	case "none":
		*to = none
		return
	}
	ip, ok := p.address(e, v)
	switch {
	case !ok:
	case ip.Is4() != none.Is4():
		p.bad(e, v, "is of the other family", "write IPv4 in router4, IPv6 in router6")
	case reserved(ip):
		p.bad(e, v, "is not an address that a router can have", "write the router's own address on the uplink, auto, or none")
	default:
		*to = ip
	}
}

// subnets reads the prefixes of a network.
func (p *parser) subnets(e yamltree.Entry, to *[]netip.Prefix) {
	vs, ok := p.list(e, MaxSubnets)
	if !ok {
		return
	}
	var out []netip.Prefix
	for _, v := range vs {
		net, err := netip.ParsePrefix(v)
		switch ip := net.Addr(); {
		case err != nil || ip.Is4In6():
			p.bad(e, v, "is not a prefix", "write it like 192.0.2.0/24 or 2001:db8::/64")
			return
		case net != net.Masked():
			p.bad(e, v, "has bits set beyond its length", "write "+net.Masked().String())
			return
		case net.Bits() == 0 || reserved(ip) || ip.IsLinkLocalUnicast():
			p.bad(e, v, "is not a prefix that guests can have", "write the prefix of the guests' addresses")
			return
		case slices.ContainsFunc(out, net.Overlaps):
			p.bad(e, v, "overlaps another one of the network", "remove one")
			return
		}
		out = append(out, net)
	}
	*to = out
}

func (p *parser) downlink(e yamltree.Entry, to *string) {
	v, ok := p.scalar(e)
	switch {
	case !ok:
	case v == "none":
		*to = ""
	case v == "auto" || !names.Interface(v):
		p.bad(e, v, "is not the name of an interface", "write a name that ip link shows, or none")
	default:
		*to = v
	}
}

// topology checks what networks say together, when all is read. What is wrong is
// left out, so that the rest has one meaning.
func (c *Config) topology(file string) problem.List {
	var ps problem.List
	bad := func(name, key, what, fix string) {
		ps = append(ps, problem.Problem{Code: problem.EConfig, File: file, What: "networks." + name + "." + key + ": " + what, Fix: fix})
	}
	type owner struct {
		network string
		net     netip.Prefix
	}
	var owners []owner
	tables := map[Table]Network{}
	for _, name := range slices.Sorted(maps.Keys(c.Networks)) {
		n := c.Networks[name]
		var subnets []netip.Prefix
		for _, net := range n.Subnets {
			if i := slices.IndexFunc(owners, func(o owner) bool { return o.net.Overlaps(net) }); i >= 0 {
				bad(name, "subnets", fmt.Sprintf("%s overlaps %s of network %s", net, owners[i].net, owners[i].network), "give each network prefixes of its own")
				continue
			}
			owners = append(owners, owner{name, net})
			subnets = append(subnets, net)
		}
		n.Subnets = subnets
		if n.Downlink != "" && len(n.Subnets) == 0 {
			bad(name, "downlink", "there are no subnets behind it", "add subnets, like [192.0.2.0/24], or remove downlink")
			n.Downlink = ""
		}
		if n.Downlink != "" && n.Downlink == n.Uplink {
			bad(name, "downlink", n.Downlink+" is the uplink as well", "remove downlink: without it the subnets are on the uplink")
			n.Downlink = ""
		}
		for _, other := range slices.Sorted(maps.Keys(c.Networks)) {
			o := c.Networks[other]
			switch {
			case n.Downlink == "" || other == name:
			case n.Downlink == o.Uplink:
				bad(name, "downlink", fmt.Sprintf("%s is the uplink of network %s", n.Downlink, other), "give each an interface of its own")
			case n.Downlink == o.Downlink && other < name && (n.Table != o.Table || n.Table == TableAuto):
				bad(name, "downlink", fmt.Sprintf("network %s, with another table, has %s as well", other, n.Downlink), "give both one table, or an interface each")
			}
		}
		if len(n.Addrs) > 0 && n.Lan() == "auto" {
			bad(name, "addresses", "the interface for them is not known", "name it: uplink, or downlink")
			n.Addrs = nil
		}
		if n.OwnTable() {
			if o, ok := tables[n.Table]; !ok {
				tables[n.Table] = n
			} else if o.Uplink != n.Uplink || o.Router4 != n.Router4 || o.Router6 != n.Router6 {
				bad(name, "table", fmt.Sprintf("network %s has the same table %d and another uplink or router", o.Name, n.Table), "give both the same uplink and routers, or a table each (auto)")
			}
		}
		c.Networks[name] = n
	}
	return ps
}
