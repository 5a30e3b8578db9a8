package reconcile

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/slash32/slash32/pkg/config"
	"github.com/slash32/slash32/pkg/intent"
	"github.com/slash32/slash32/pkg/mac"
	"github.com/slash32/slash32/pkg/plan"
	"github.com/slash32/slash32/pkg/problem"
	"github.com/slash32/slash32/pkg/spool"
	"github.com/slash32/slash32/pkg/state"
)

// tap is the interface that libvirt has made for a NIC, "" when that is not known.
// While a VM starts it is libvirt's to put into the bridge.
func (v *vm) tap(m mac.Addr) string {
	if v.declared && v.decl.Phase == spool.Preparing {
		return ""
	}
	return v.taps[m]
}

// warnTaps finds taps that somebody has put elsewhere: they stay there.
func (p *pass) warnTaps(have state.State) {
	for _, v := range p.vms {
		if !v.planned {
			continue
		}
		for _, n := range v.intent.NICs {
			if at := have.Taps[n.Tap]; at != "" && at != n.Bridge {
				v.problems = append(v.problems, problem.Problem{
					Code: problem.WTap, VM: v.intent.Name, What: fmt.Sprintf("its tap %s is in %s and not in its bridge %s, so it is offline", n.Tap, at, n.Bridge),
					Fix: fmt.Sprintf("ip link set %s master %s", n.Tap, n.Bridge),
				})
			}
		}
	}
}

// warnLinks finds networks, of those that VMs are in or that have subnets, whose
// interfaces do not do what the configuration wants of them.
func (p *pass) warnLinks() {
	used := map[string]speaks{}
	for _, v := range p.vms {
		for _, n := range v.intent.NICs {
			s := used[n.Network.Name]
			used[n.Network.Name] = speaks{ipv4: s.ipv4 || len(n.Addrs4) > 0 || n.Relays4(), ipv6: s.ipv6 || n.IPv6()}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(p.config.Networks)) {
		n := p.config.Networks[name]
		s, has := used[name]
		if !has && len(n.Subnets) == 0 {
			continue
		}
		for _, net := range n.Subnets {
			s.ipv4, s.ipv6 = s.ipv4 || net.Addr().Is4(), s.ipv6 || net.Addr().Is6()
		}
		if n.Uplink != "auto" {
			p.warnLink(name, "uplink", n.Uplink)
		}
		if n.Downlink != "" {
			p.warnLink(name, "downlink", n.Downlink)
		}
		p.warnWayOut(n, s)
		p.warnAsking(n)
	}
}

func (p *pass) warnLink(network, key, link string) {
	l, there := p.facts.Links[link]
	switch {
	case !there:
		p.warnings = append(p.warnings, problem.Problem{
			Code: problem.WLink, What: fmt.Sprintf("network %s: there is no interface %s, its %s", network, link, key),
			Fix: "make it, or name another one",
		})
	case !l.Up:
		p.warnings = append(p.warnings, problem.Problem{
			Code: problem.WLink, What: fmt.Sprintf("network %s: %s, its %s, is down", network, link, key),
			Fix: "ip link set " + link + " up",
		})
	}
}

// speaks tells which families are in use in a network.
type speaks struct{ ipv4, ipv6 bool }

// warnWayOut finds a table of its own without a default route in a family that is in
// use.
func (p *pass) warnWayOut(n config.Network, s speaks) {
	if !n.OwnTable() {
		return
	}
	up4, up6 := plan.Uplinks(n, p.facts)
	l4, l6 := p.facts.Links[up4], p.facts.Links[up6]
	no4 := s.ipv4 && l4.Up && !n.Router4.IsValid() && !l4.Router4.Found
	no6 := s.ipv6 && l6.Up && !n.Router6.IsValid() && !l6.Router6.Found && !p.facts.NoIPv6
	var kind, who, fix string
	switch {
	case no4 && no6:
		kind, who, fix = "default route", "what its VMs send", "its routers (router4, router6)"
	case no4:
		kind, who, fix = "IPv4 default route", "IPv4 of its VMs", "its router (router4)"
	case no6:
		kind, who, fix = "IPv6 default route", "IPv6 of its VMs", "its router (router6)"
	default:
		return
	}
	p.warnings = append(p.warnings, problem.Problem{
		Code: problem.WLink, What: fmt.Sprintf("network %s: main has no %s over %s, so its table has none either and %s is cut off from the world", n.Name, kind, n.Uplink, who),
		Fix: "name " + fix + ", or none where something else fills the table, or nothing is to",
	})
}

// warnAsking finds an interface on which the host would have to ask with an address
// of another one.
func (p *pass) warnAsking(n config.Network) {
	link := n.Lan()
	l, there := p.facts.Links[link]
	is4 := func(a netip.Addr) bool { return a.Is4() }
	if !there || !n.ProxyARP || slices.ContainsFunc(n.Addrs, is4) ||
		slices.ContainsFunc(l.Addrs, func(a netip.Prefix) bool { return is4(a.Addr()) }) {
		return
	}
	p.warnings = append(p.warnings, problem.Problem{
		Code: problem.WLink, What: fmt.Sprintf("network %s: the host has no IPv4 address on %s, so its ARP requests there come from an address of another interface, which some routers do not answer", n.Name, link),
		Fix: "give it one of the subnet's (addresses)",
	})
}

// warnClosed finds servers that guests are told of and do not reach.
func (p *pass) warnClosed() {
	for _, v := range p.vms {
		if v.planned {
			v.problems = append(v.problems, p.facts.Closed(v.intent)...)
		}
	}
}

// warnShadowed finds programs of the host whose ports are forwarded to VMs. It asks
// only where a port is.
func (p *pass) warnShadowed(ctx context.Context) {
	var listeners []intent.Listener
	asked := false
	for _, v := range p.vms {
		if !v.planned || len(v.intent.Ports()) == 0 {
			continue
		}
		if !asked {
			asked = true
			var err error
			if listeners, err = p.Kernel.Listeners(ctx); err != nil {
				p.bad = append(p.bad, err)
				return
			}
		}
		v.problems = append(v.problems, intent.Shadowed(v.intent, listeners)...)
	}
}
