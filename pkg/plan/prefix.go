package plan

import (
	"net/netip"
	"slices"

	"github.com/slash32/slash32/pkg/config"
	"github.com/slash32/slash32/pkg/intent"
	"github.com/slash32/slash32/pkg/marks"
	"github.com/slash32/slash32/pkg/responder"
	"github.com/slash32/slash32/pkg/state"
)

// MetricPool is the metric of the routes that refuse what is not in use of a
// network's pool: more than that of a VM that has the whole of it.
const MetricPool = 4 * marks.RouteMetric

// MetricUndelegated is the metric of the routes that refuse what a guest may have
// and has not asked for. It is none of a VM's, so that routing daemons announce what
// is delegated only, and it is not MetricPool, since it goes with its VM.
const MetricUndelegated = 3 * marks.RouteMetric

const unreachable = "unreachable" // as state.Route has it

// prefixes plans the IPv6 prefixes of the NIC: on the link those of which the
// guest makes its own addresses, behind the guest those that it routes.
func (b *builder) prefixes(n intent.NIC) {
	for _, p := range n.Prefixes {
		switch {
		case !p.Net.IsValid(): // not taken from the pool yet
		case p.Mode == responder.ModeSLAAC:
			b.prefix(n, p.Net, netip.Addr{})
		case p.Mode == responder.ModeRoute:
			b.prefix(n, p.Net, n.MAC.LinkLocal())
		case p.Mode == responder.ModeDelegate && p.Exclude.IsValid():
			b.prefix(n, p.Exclude, netip.Addr{})
		}
	}
	for _, d := range n.Delegated {
		// The guest chose it. The kernel refuses its own address as next hop.
		if d.Via.IsLinkLocalUnicast() && d.Via.Zone() == "" && d.Via != n.Network.Gateway6 {
			b.prefix(n, d.Prefix, d.Via)
		}
	}
	for _, p := range n.Prefixes {
		if p.Net.IsValid() && p.Mode == responder.ModeDelegate {
			// What is not delegated must not take the default route back to where it
			// came from. Where all of it is, that route is in this one's place.
			r := state.Route{Dst: p.Net.Masked(), Table: tableOf(n.Network), Metric: MetricUndelegated, Kind: unreachable}
			if !b.places[place{r.Dst, r.Table}] {
				b.state.Routes[r] = struct{}{}
			}
		}
	}
}

// prefix plans one prefix, on the link or by way of an address of the guest. One
// that the guard could not know is left out: nothing could be sent from it.
func (b *builder) prefix(n intent.NIC, p netip.Prefix, via netip.Addr) {
	p = p.Masked()
	parts := state.Split(p)
	if len(parts) == 0 || !b.route(n.Network, state.Route{Dst: p, Link: n.Bridge, Via: via}) {
		return
	}
	b.sources = append(b.sources, p)
	for _, part := range parts {
		b.elem(state.Elem{Set: state.SetGuard6, Link: n.Bridge, Addr: part})
		b.source(n, part)
	}
	if via.IsValid() {
		b.state.Neighs[state.NeighKey{Link: n.Bridge, IP: via}] = n.MAC
	}
}

// place is what only one route can have.
type place struct {
	dst   netip.Prefix
	table uint32
}

// route plans a route of a VM in the network's table. It reports whether the
// place was free: of two routes to the same, the first stays.
func (b *builder) route(network config.Network, r state.Route) bool {
	r.Table, r.Metric = tableOf(network), marks.RouteMetric
	if !network.Announce {
		r.Metric = MetricLocal
	}
	at := place{r.Dst, r.Table}
	if b.places[at] {
		return false
	}
	b.places[at] = true
	b.state.Routes[r] = struct{}{}
	return true
}

func tableOf(network config.Network) uint32 {
	if network.Table == 0 {
		return uint32(config.TableMain)
	}
	return uint32(network.Table)
}

// pools plans, VMs or not, that nothing of a pool that nobody has is sent back to
// where it came from.
func (b *builder) pools() {
	if b.facts.NoIPv6 {
		return
	}
	for name, bases := range b.facts.Pools {
		network, ok := b.config.Networks[name]
		if !ok {
			continue
		}
		for _, p := range bases {
			r := state.Route{Dst: p.Masked(), Table: tableOf(network), Metric: MetricPool, Kind: unreachable}
			b.state.Routes[r] = struct{}{}
		}
	}
}

// proxy plans that the host answers ARP requests or Neighbour Solicitations for an
// address on the link of the network's subnets, without the random delay that RFC
// 4861 §7.2.8 asks for where several may answer: nobody else does.
func (b *builder) proxy(n intent.NIC, a netip.Addr) {
	lan4, lan6 := lans(n.Network, b.facts)
	switch {
	case a.Is4() && n.Network.ProxyARP && lan4 != "":
		b.state.Proxies[state.NeighKey{Link: lan4, IP: a}] = struct{}{}
		b.state.Sysctls["net/ipv4/neigh/"+lan4+"/proxy_delay"] = "0"
		b.speaksARP(lan4)
	case a.Is6() && n.Network.ProxyNDP && lan6 != "":
		b.state.Proxies[state.NeighKey{Link: lan6, IP: a}] = struct{}{}
		b.state.Sysctls["net/ipv6/conf/"+lan6+"/proxy_ndp"] = "1"
		b.state.Sysctls["net/ipv6/neigh/"+lan6+"/proxy_delay"] = "0"
	}
}

// stopgapLease is the longest lease, in seconds, of what stands in for a prefix that
// nobody upstream gives at the moment: most clients take no RECONFIGURE and ask again
// only when half of it is over.
const stopgapLease = 600

// standsIn tells whether the guest has something unique local of a pool whose prefix is
// to come from upstream.
func standsIn(n intent.NIC) bool {
	if n.Network.Pool6.Upstream == "" {
		return false
	}
	return n.Auto6 && slices.ContainsFunc(n.Addrs6, netip.Addr.IsPrivate) ||
		slices.ContainsFunc(n.Prefixes, func(p intent.Prefix) bool { return p.Auto != 0 && !p.Deprecated && p.Net.Addr().IsPrivate() })
}

// advertised are the prefixes that the responder speaks of.
func advertised(prefixes []intent.Prefix) responder.Prefixes {
	var out responder.Prefixes
	for _, p := range prefixes {
		if p.Net.IsValid() && (p.Mode == responder.ModeSLAAC || p.Mode == responder.ModeDelegate) {
			out = append(out, responder.Prefix{
				Net: p.Net, Mode: p.Mode, Length: p.Length, Exclude: p.Exclude, OnLink: p.OnLink,
				Deprecated: p.Deprecated, Preferred: p.Preferred, Until: p.Until,
			})
		}
	}
	return out
}

// terms are when the NIC's addresses end.
func terms(n intent.NIC) responder.Terms {
	var out responder.Terms
	for _, t := range n.Terms {
		out = append(out, responder.Term{Addr: t.Addr, Preferred: t.Preferred, Until: t.Until})
	}
	return out
}
