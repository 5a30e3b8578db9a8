package plan

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/slash32/slash32/pkg/config"
	"github.com/slash32/slash32/pkg/intent"
	"github.com/slash32/slash32/pkg/marks"
	"github.com/slash32/slash32/pkg/state"
)

// Interfaces names the interfaces that the configuration's networks name: what
// Facts.Links is to have.
func Interfaces(c config.Config) []string {
	var names []string
	for _, n := range c.Networks {
		for _, name := range []string{n.Uplink, n.Downlink} {
			if name != "auto" && name != "" {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// networks plans, once for each network that a VM is in or that has subnets, what
// does not depend on the number of VMs. It reports whether there is such a network.
func (b *builder) networks(used map[string]bool) bool {
	any := false
	own := map[int]config.Table{}
	for _, name := range slices.Sorted(maps.Keys(b.config.Networks)) {
		n := b.config.Networks[name]
		if !used[name] && len(n.Subnets) == 0 {
			continue
		}
		any = true
		b.subnets(n)
		if i := slices.Index(b.tables, n.Table); i >= 0 && i < marks.RulePriorityRange {
			own[i] = n.Table
			b.rules(i, n.Table)
			b.table(n)
		}
	}
	if len(own) > 1 {
		for i, table := range own {
			b.hostsFirst(marks.RulePriorityHosts+i, table)
		}
	}
	return any
}

// rules plans the rules of a table. The first finds the addresses in the table
// for everybody; the next sends what the VM sends by the table's default route, and
// the last refuses what found none: it must not leave by main's. Before them, one
// rule for all tables finds the addresses in main: for those whose packets are
// marked, and for all before a table's network of which an address is. Of several
// tables each has such a rule.
//
// An unreachable default route in the table would say more in "ip route", but the
// first rule does not suppress routes that refuse (suppress_prefixlength is for
// routes that lead somewhere): the whole host would be cut off.
func (b *builder) rules(i int, table config.Table) {
	b.hostsFirst(marks.RulePriorityMain, config.TableMain)
	for _, family := range b.families() {
		b.rule(state.Rule{
			Family:          family,
			Priority:        marks.RulePriorityConnected + i,
			Table:           uint32(table),
			SuppressDefault: true,
		})
		b.rule(state.Rule{
			Family:   family,
			Priority: marks.RulePriorityMarked + i,
			Mark:     markOf(i),
			Table:    uint32(table),
		})
		b.rule(state.Rule{
			Family:      family,
			Priority:    marks.RulePriorityRefused + i,
			Mark:        markOf(i),
			Unreachable: true,
		})
	}
}

// hostsFirst plans the rule that finds single addresses in a table before any
// table's network of which they are.
func (b *builder) hostsFirst(priority int, table config.Table) {
	for _, family := range b.families() {
		b.rule(state.Rule{Family: family, Priority: priority, Table: uint32(table), HostRoutesOnly: true})
	}
}

func markOf(table int) uint32 { return uint32(table+1) << marks.FwmarkShift }

func (b *builder) families() []int {
	if b.facts.NoIPv6 {
		return []int{familyIPv4}
	}
	return []int{familyIPv4, familyIPv6}
}

// table plans what a network's own table has beside the routes to VMs: the way
// out, and what is on the uplink's link. An interface that is not there or down
// has no routes; what the VMs send is refused then.
func (b *builder) table(n config.Network) {
	up4, up6 := Uplinks(n, b.facts)
	for _, family := range b.families() {
		uplink, router, all := up4, n.Router4, netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		found := b.facts.Links[up4].Router4
		if family == familyIPv6 {
			uplink, router, all = up6, n.Router6, netip.PrefixFrom(netip.IPv6Unspecified(), 0)
			found = b.facts.Links[up6].Router6
		}
		link := b.facts.Links[uplink]
		if !link.Up {
			continue
		}
		switch {
		case !router.IsValid() && found.Found:
			b.hostRoute(state.Route{Dst: all, Table: tableOf(n), Link: uplink, Via: found.Via})
		case router.IsValid() && !router.IsUnspecified():
			b.hostRoute(state.Route{Dst: all, Table: tableOf(n), Link: uplink, Via: router})
		}
		for _, a := range link.Addrs {
			if a.Addr().Is4() == (family == familyIPv4) && !a.IsSingleIP() && !a.Addr().IsLinkLocalUnicast() {
				b.hostRoute(state.Route{Dst: a.Masked(), Table: tableOf(n), Link: uplink})
			}
		}
		if family == familyIPv4 && link.RPFilter != 0 {
			// What comes in has its way back in the table, where the strict filter
			// does not look.
			b.state.Sysctls["net/ipv4/conf/"+uplink+"/rp_filter"] = "2"
		}
	}
}

// lans names the interfaces that a network's subnets are on, per family; "" when
// there is none.
func lans(n config.Network, f Facts) (lan4, lan6 string) {
	if n.Downlink != "" {
		return n.Downlink, n.Downlink
	}
	return Uplinks(n, f)
}

// speaksARP plans that the host asks on a link with an address that it has there,
// and answers for no other of its own: the gateway that guests see is not the
// neighbours' business.
func (b *builder) speaksARP(link string) {
	b.state.Sysctls["net/ipv4/conf/"+link+"/arp_announce"] = "2"
	b.state.Sysctls["net/ipv4/conf/"+link+"/arp_ignore"] = "1"
}

// subnets plans how the network's members find each other: its subnets are on one
// link, on which this host may have addresses. Behind a downlink this host is their
// router: what they send to the world leaves, and is translated, as what VMs send.
func (b *builder) subnets(n config.Network) {
	lan4, lan6 := lans(n, b.facts)
	up4, up6 := Uplinks(n, b.facts)
	for _, net := range n.Subnets {
		lan, uplink, inside, masq, snat := lan4, up4, state.SetInside4, state.SetMasqNet4, state.SetSNATNet4
		if net.Addr().Is6() {
			lan, uplink, inside, masq, snat = lan6, up6, state.SetInside6, state.SetMasqNet6, state.SetSNATNet6
			if b.facts.NoIPv6 {
				continue
			}
		}
		for _, other := range n.Subnets {
			if other.Addr().Is4() == net.Addr().Is4() {
				b.elem(state.Elem{Set: inside, Addr: net, Peer: other})
			}
		}
		if to, translated := given(n.NAT, n.SNAT, net.Addr()); n.Downlink != "" && uplink != "" && translated {
			e := state.Elem{Set: masq, Link: uplink, Addr: net}
			if to.IsValid() {
				e.Set, e.To = snat, netip.AddrPortFrom(to, 0)
			}
			b.elem(e)
		}
		link := b.facts.Links[lan]
		has := slices.ContainsFunc(link.Addrs, func(a netip.Prefix) bool { return a.Masked() == net })
		if link.Up && (n.OwnTable() || !has) { // in main the kernel has it
			b.hostRoute(state.Route{Dst: net, Table: tableOf(n), Link: lan})
		}
	}
	for _, a := range n.Addrs {
		lan := lan4
		if a.Is6() {
			lan = lan6
		}
		link, there := b.facts.Links[lan]
		if !there || a.Is6() && b.facts.NoIPv6 {
			continue
		}
		if a.Is4() {
			b.speaksARP(lan)
		}
		if !slices.ContainsFunc(link.Addrs, func(p netip.Prefix) bool { return p.Addr() == a }) { // or it is the administrator's
			b.gatewayAddr(lan, a, a.BitLen())
		}
	}
	if i := slices.Index(b.tables, n.Table); n.Downlink != "" && i >= 0 && i < marks.RulePriorityRange {
		b.elem(state.Elem{Set: state.SetMark, Link: n.Downlink, Mark: markOf(i)})
	}
}

// apart plans that an isolated NIC is kept from the members of its network's subnets
// also by what it has outside of those.
func (b *builder) apart(n intent.NIC) {
	if !n.Network.Isolate || len(n.Network.Subnets) == 0 {
		return
	}
	for _, p := range b.sources {
		covered := func(o netip.Prefix) bool { return o.Bits() < p.Bits() && o.Overlaps(p) }
		if slices.ContainsFunc(b.sources, covered) || slices.ContainsFunc(n.Network.Subnets, p.Overlaps) {
			continue // the kernel takes no two intervals that overlap
		}
		set := state.SetInside4
		if p.Addr().Is6() {
			set = state.SetInside6
		}
		for _, net := range n.Network.Subnets {
			if net.Addr().Is4() == p.Addr().Is4() {
				b.elem(state.Elem{Set: set, Addr: p, Peer: net})
				b.elem(state.Elem{Set: set, Addr: net, Peer: p})
			}
		}
	}
}

// hostRoute plans a route that leads to no VM, with the metric of those that are
// not announced. Of two in the same place the first stays.
func (b *builder) hostRoute(r state.Route) {
	r.Metric = MetricLocal
	at := place{r.Dst, r.Table}
	if b.hostPlaces[at] {
		return
	}
	b.hostPlaces[at] = true
	b.state.Routes[r] = struct{}{}
}
