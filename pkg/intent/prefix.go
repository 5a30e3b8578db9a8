package intent

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/slash32/slash32/pkg/annotation"
	"github.com/slash32/slash32/pkg/config"
	"github.com/slash32/slash32/pkg/problem"
)

// Nets are the IPv6 prefixes of the NIC: those of the annotation and those that
// servers delegated which it is relayed to.
func (n NIC) Nets() []netip.Prefix {
	var nets []netip.Prefix
	for _, p := range n.Prefixes {
		if p.Net.IsValid() {
			nets = append(nets, p.Net)
		}
	}
	for _, d := range n.Delegated {
		if !slices.ContainsFunc(nets, func(p netip.Prefix) bool { return within(d.Prefix, p) }) {
			nets = append(nets, d.Prefix)
		}
	}
	return nets
}

// Delegates tells whether the NIC's guest can be delegated prefixes, by its
// responder or by the servers that it is relayed to.
func (n NIC) Delegates() bool {
	return n.Relays6() || slices.ContainsFunc(n.Prefixes, func(p Prefix) bool { return p.Mode == "delegate" })
}

// HasPool tells whether a prefix is from one of the NIC's own pools.
func (n NIC) HasPool(net netip.Prefix) bool {
	return slices.ContainsFunc(n.Prefixes, func(p Prefix) bool {
		return p.Mode == "delegate" && p.Net.IsValid() && within(net, p.Net)
	})
}

// within tells whether p is a part of outer, or the same.
func within(p, outer netip.Prefix) bool { return p.Bits() >= outer.Bits() && outer.Overlaps(p) }

// prefixes takes over what the annotation says of a NIC's prefixes.
func (b *builder) prefixes(out *NIC, i annotation.Interface) {
	for _, p := range i.Prefixes {
		switch {
		case p.Mode == "delegate" && out.Relays6():
			b.add(problem.EValue, p.Line, fmt.Sprintf("prefix %s is to be delegated, and the NIC's DHCPv6 is relayed to other servers, which delegate", p), "remove the prefix, or the relay's IPv6 servers")
			continue
		case p.Auto != 0 && !b.pool(p.Line, "prefix "+p.String(), out.Network):
			continue
		}
		at := slices.IndexFunc(b.nets, func(o netip.Prefix) bool { return p.Auto == 0 && o.Overlaps(p.Net) })
		if at >= 0 {
			b.add(problem.EDuplicate, p.Line, fmt.Sprintf("prefix %s overlaps %s of the same VM", p.Net, b.nets[at]), "make them disjoint, or remove one")
			continue
		}
		if p.Auto == 0 {
			b.nets = append(b.nets, p.Net)
		}
		out.Prefixes = append(out.Prefixes, Prefix{
			Net: p.Net, Mode: p.Mode, Length: p.Length, Exclude: p.Exclude, OnLink: p.OnLink, Auto: p.Auto, Line: p.Line,
		})
	}
	out.Auto6 = i.Auto6 && b.pool(i.Auto6Line, `ipv6 "auto"`, out.Network)
	if i.Auto6 && out.Relays6() {
		b.add(problem.EValue, i.Auto6Line, `ipv6 "auto", and the NIC's DHCPv6 is relayed to other servers, which give addresses`, "remove one of the two")
	}
}

// pool holds that there is a pool to take from.
func (b *builder) pool(line int, what string, net config.Network) bool {
	if net.Pool6 != (config.Pool6{}) {
		return true
	}
	b.add(problem.EValue, line, fmt.Sprintf("%s is to come from a pool, and network %s has none", what, net.Name),
		"write ipv6_pool in slash32.yaml, or an address or prefix in the annotation")
	return false
}

// netOwner is a NIC that has a prefix, or an address that is one of length 128.
type netOwner struct {
	net netip.Prefix
	owner
}

// overlaps finds prefixes of vm in which another VM has something, and addresses
// of vm in another VM's prefix.
func overlaps(vm VM, others []netOwner) problem.List {
	var ps problem.List
	for _, n := range vm.NICs {
		own := n.Nets()
		nets := slices.Clone(own)
		for _, a := range n.Addrs() {
			if a.Is6() {
				nets = append(nets, netip.PrefixFrom(a, a.BitLen()))
			}
		}
		for i, net := range nets {
			for _, o := range others {
				if !net.Overlaps(o.net) || i >= len(own) && o.net.IsSingleIP() { // addresses are compared with each other elsewhere
					continue
				}
				ps = append(ps, problem.Problem{
					Code: problem.EAddressInUse, File: vm.File, Line: n.line(net), VM: vm.Name,
					What: fmt.Sprintf("%s overlaps %s of running VM %s (%s, bridge %s)", show(net), show(o.net), o.vm.Name, o.nic.MAC, o.nic.Bridge),
					Fix:  fmt.Sprintf("give %s something else, or stop %s", vm.Name, o.vm.Name),
				})
			}
		}
	}
	return ps
}

func show(p netip.Prefix) string {
	if p.IsSingleIP() {
		return "address " + p.Addr().String()
	}
	return "prefix " + p.String()
}

// line is where the annotation gives a prefix or an address.
func (n NIC) line(p netip.Prefix) int {
	if p.IsSingleIP() {
		return n.Lines[p.Addr()]
	}
	for _, own := range n.Prefixes {
		if own.Net == p {
			return own.Line
		}
	}
	return 0
}
