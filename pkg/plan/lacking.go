package plan

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/slash32/slash32/pkg/config"
	"github.com/slash32/slash32/pkg/intent"
	"github.com/slash32/slash32/pkg/problem"
)

// Lacking finds networks, of those that the VMs are in or that have subnets, whose
// interfaces do not do what the configuration wants of them: W220.
func (f Facts) Lacking(vms []intent.VM, c config.Config) problem.List {
	used := map[string]speaks{}
	for _, vm := range vms {
		for _, n := range vm.NICs {
			s := used[n.Network.Name]
			used[n.Network.Name] = speaks{ipv4: s.ipv4 || len(n.Addrs4) > 0 || n.Relays4(), ipv6: s.ipv6 || n.IPv6()}
		}
	}
	var ps problem.List
	for _, name := range slices.Sorted(maps.Keys(c.Networks)) {
		n := c.Networks[name]
		s, has := used[name]
		if !has && len(n.Subnets) == 0 {
			continue
		}
		for _, net := range n.Subnets {
			s.ipv4, s.ipv6 = s.ipv4 || net.Addr().Is4(), s.ipv6 || net.Addr().Is6()
		}
		if n.Uplink != "auto" {
			ps = append(ps, f.lackingLink(name, "uplink", n.Uplink)...)
		}
		if n.Downlink != "" {
			ps = append(ps, f.lackingLink(name, "downlink", n.Downlink)...)
		}
		ps = append(ps, f.lackingWayOut(n, s)...)
		ps = append(ps, f.lackingAddress(n)...)
	}
	return ps
}

func (f Facts) lackingLink(network, key, link string) problem.List {
	l, there := f.Links[link]
	switch {
	case !there:
		return problem.List{{
			Code: problem.WLink, What: fmt.Sprintf("network %s: there is no interface %s, its %s", network, link, key),
			Fix: "make it, or name another one",
		}}
	case !l.Up:
		return problem.List{{
			Code: problem.WLink, What: fmt.Sprintf("network %s: %s, its %s, is down", network, link, key),
			Fix: "ip link set " + link + " up",
		}}
	}
	return nil
}

// speaks tells which families are in use in a network.
type speaks struct{ ipv4, ipv6 bool }

// lackingWayOut finds a table of its own without a default route in a family that is
// in use.
func (f Facts) lackingWayOut(n config.Network, s speaks) problem.List {
	if !n.OwnTable() {
		return nil
	}
	up4, up6 := Uplinks(n, f)
	l4, l6 := f.Links[up4], f.Links[up6]
	no4 := s.ipv4 && l4.Up && !n.Router4.IsValid() && !l4.Router4.Found
	no6 := s.ipv6 && l6.Up && !n.Router6.IsValid() && !l6.Router6.Found && !f.NoIPv6
	var kind, who, fix string
	switch {
	case no4 && no6:
		kind, who, fix = "default route", "what its VMs send", "its routers (router4, router6)"
	case no4:
		kind, who, fix = "IPv4 default route", "IPv4 of its VMs", "its router (router4)"
	case no6:
		kind, who, fix = "IPv6 default route", "IPv6 of its VMs", "its router (router6)"
	default:
		return nil
	}
	return problem.List{{
		Code: problem.WLink, What: fmt.Sprintf("network %s: main has no %s over %s, so its table has none either and %s is cut off from the world", n.Name, kind, n.Uplink, who),
		Fix: "name " + fix + ", or none where something else fills the table, or nothing is to",
	}}
}

// lackingAddress finds an interface on which the host would have to ask with an
// address of another one.
func (f Facts) lackingAddress(n config.Network) problem.List {
	link := n.Lan()
	l, there := f.Links[link]
	is4 := func(a netip.Addr) bool { return a.Is4() }
	if !there || !n.ProxyARP || slices.ContainsFunc(n.Addrs, is4) ||
		slices.ContainsFunc(l.Addrs, func(a netip.Prefix) bool { return is4(a.Addr()) }) {
		return nil
	}
	return problem.List{{
		Code: problem.WLink, What: fmt.Sprintf("network %s: the host has no IPv4 address on %s, so its ARP requests there come from an address of another interface, which some routers do not answer", n.Name, link),
		Fix: "give it one of the subnet's (addresses)",
	}}
}
