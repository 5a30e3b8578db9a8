package hook

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/slash32/slash32/pkg/config"
	"github.com/slash32/slash32/pkg/intent"
	"github.com/slash32/slash32/pkg/kernel"
	"github.com/slash32/slash32/pkg/marks"
	"github.com/slash32/slash32/pkg/plan"
	"github.com/slash32/slash32/pkg/probe"
	"github.com/slash32/slash32/pkg/problem"
	"github.com/slash32/slash32/pkg/spool"
)

// elsewhere finds who outside of this host's VMs has an address of vm: the host
// itself, another host that announces it, and where the network wants that
// looked for, somebody on the uplink. A VM that migrates here is at home at the
// other host until it runs, so only the host itself is looked at.
func (o *operation) elsewhere(ctx context.Context, vm intent.VM, c config.Config) problem.List {
	incoming := o.spool.TakeIncoming(vm.UUID, o.Now())
	var ps problem.List
	var ask []wanted
	for _, n := range vm.NICs {
		for _, a := range slices.Concat(n.Addrs4, n.Addrs6, n.Public) {
			r, found, err := o.kernel.HostRoute(ctx, a, uint32(n.Network.Table))
			if err != nil {
				return append(ps, o.failed("cannot look for another host with "+a.String(), err)...)
			}
			switch {
			case found && r.Local:
				ps = append(ps, taken(vm, n, a, "is an address of this host itself, on "+r.Link))
			case found && r.Group:
				ps = append(ps, taken(vm, n, a, "is the broadcast or anycast address of a network that this host is in, on "+r.Link))
			case incoming:
			case found && r.Protocol != marks.RouteProtocol && !slices.Contains(spool.ClaimsOf(vm).Bridges, r.Link):
				ps = append(ps, taken(vm, n, a, "is announced by another host: route "+describe(r)))
			case n.Network.ProbeARP || n.Network.ProbeICMP:
				ask = append(ask, wanted{a, n})
			}
		}
	}
	if len(ask) == 0 || len(ps.Fatal()) > 0 {
		return ps
	}
	// What another VM of this host has is not worth waiting for the network.
	if local := o.conflicts(ctx, vm, c); len(local) > 0 {
		return append(ps, local...)
	}
	return append(ps, o.askNetwork(ctx, vm, ask)...)
}

// wanted is an address to look for on the uplink of its NIC's network.
type wanted struct {
	addr netip.Addr
	nic  intent.NIC
}

// askNetwork probes for the addresses, all at once. What cannot be asked is a
// warning: a start must not depend on the network's health.
func (o *operation) askNetwork(ctx context.Context, vm intent.VM, ask []wanted) problem.List {
	facts, err := o.kernel.Facts(ctx)
	if err != nil {
		return o.failed("cannot read the host's network", err)
	}
	var ps problem.List
	var targets []probe.Target
	var wait time.Duration
	nics := map[netip.Addr]intent.NIC{}
	for _, w := range ask {
		link, link6 := plan.Uplinks(w.nic.Network, facts)
		if w.addr.Is6() {
			link = link6
		}
		if link == "" {
			ps = append(ps, unprobed(vm, fmt.Sprintf("address %s was not looked for: the host has no uplink for it", w.addr)))
			continue
		}
		targets = append(targets, probe.Target{Addr: w.addr, Link: link, ARP: w.nic.Network.ProbeARP, ICMP: w.nic.Network.ProbeICMP})
		wait = max(wait, w.nic.Network.ProbeWait)
		nics[w.addr] = w.nic
	}
	if len(targets) == 0 {
		return ps
	}
	hits, errs := o.Probe(ctx, targets, wait)
	for _, h := range hits {
		ps = append(ps, taken(vm, nics[h.Addr], h.Addr, "is in use: somebody "+h.By))
	}
	for _, err := range errs {
		ps = append(ps, unprobed(vm, "the network was not asked for the VM's addresses: "+err.Error()))
	}
	return ps
}

// taken refuses the start, or warns where the NIC's network says so.
func taken(vm intent.VM, n intent.NIC, a netip.Addr, where string) problem.Problem {
	p := problem.Problem{
		Code: problem.EAddressInUse, File: vm.File, Line: n.Lines[a], VM: vm.Name,
		What: fmt.Sprintf("address %s %s", a, where),
		Fix:  "give " + vm.Name + " another address, or take it from the other",
	}
	if n.Network.Conflict == "warn" {
		p.Code = problem.WAddressInUse
	}
	return p
}

func unprobed(vm intent.VM, what string) problem.Problem {
	return problem.Problem{Code: problem.WProbe, VM: vm.Name, What: what, Fix: "name an Ethernet interface as the network's uplink, or remove probe from the network"}
}

// describe is a route as ip(8) prints it, with the protocol's number.
func describe(r kernel.HostRoute) string {
	s := ""
	if r.Via.IsValid() {
		s += "via " + r.Via.String() + " "
	}
	if r.Link != "" {
		s += "dev " + r.Link + " "
	}
	if r.Several {
		s += "(and other next hops) "
	}
	return s + "proto " + protocol(r.Protocol)
}

// protocol names who makes routes, as /usr/share/iproute2/rt_protos does.
func protocol(p uint8) string {
	names := map[uint8]string{
		1: "redirect", 2: "kernel", 3: "boot", 4: "static", 8: "gated", 9: "ra", 10: "mrt", 11: "zebra", 12: "bird", 13: "dnrouted",
		14: "xorp", 15: "ntk", 16: "dhcp", 18: "keepalived", 42: "babel", 84: "ovn", 99: "openr",
		186: "bgp", 187: "isis", 188: "ospf", 189: "rip", 190: "ripng", 191: "nhrp", 192: "eigrp",
	}
	if n, ok := names[p]; ok {
		return fmt.Sprintf("%s (%d)", n, p)
	}
	return fmt.Sprint(p)
}
