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
)

// elsewhere finds who outside of this host's VMs has an address of vm: the host
// itself, another host that announces it, and where the network wants that
// looked for, somebody on the uplink. A VM that migrates here is at home at the
// other host until it runs, so nothing is looked for.
func (o *operation) elsewhere(ctx context.Context, vm intent.VM) problem.List {
	incoming := o.spool.TakeIncoming(vm.UUID, o.Now())
	var ps problem.List
	var targets []probe.Target
	var networks []config.Network // of each target
	var wait time.Duration
	for _, n := range vm.NICs {
		for _, a := range slices.Concat(n.Addrs4, n.Addrs6) {
			r, found, err := o.kernel.HostRoute(ctx, a)
			if err != nil {
				return append(ps, o.failed("cannot look for another host with "+a.String(), err)...)
			}
			switch {
			case found && r.Local:
				ps = append(ps, taken(vm, n, a, "is an address of this host itself, on "+r.Link))
			case incoming:
			case found && r.Protocol != marks.RouteProtocol && !slices.Contains(bridgesOf(vm), r.Link):
				ps = append(ps, taken(vm, n, a, "is announced by another host: route "+describe(r)))
			case n.Network.ProbeARP || n.Network.ProbeICMP:
				targets = append(targets, probe.Target{Addr: a, ARP: n.Network.ProbeARP, ICMP: n.Network.ProbeICMP})
				networks = append(networks, n.Network)
				wait = max(wait, n.Network.ProbeWait)
			}
		}
	}
	if len(targets) == 0 || len(ps.Fatal()) > 0 {
		return ps
	}
	facts, err := o.kernel.Facts(ctx)
	if err != nil {
		return append(ps, o.failed("cannot read the host's network", err)...)
	}
	for i := range targets {
		link, link6 := plan.Uplinks(networks[i], facts)
		if targets[i].Link = link; targets[i].Addr.Is6() {
			targets[i].Link = link6
		}
		if targets[i].Link == "" {
			return append(ps, unprobed(vm, fmt.Sprintf("address %s was not looked for: the host has no uplink", targets[i].Addr)))
		}
	}
	hits, errs := o.Probe(ctx, targets, wait)
	for _, h := range hits {
		for _, n := range vm.NICs {
			if slices.Contains(n.Addrs4, h.Addr) || slices.Contains(n.Addrs6, h.Addr) {
				ps = append(ps, taken(vm, n, h.Addr, "is in use: somebody "+h.By))
			}
		}
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

// describe is a route as ip(8) prints it.
func describe(r kernel.HostRoute) string {
	s := ""
	if r.Via.IsValid() {
		s += "via " + r.Via.String() + " "
	}
	if r.Link != "" {
		s += "dev " + r.Link + " "
	}
	return s + "proto " + protocol(r.Protocol)
}

// protocol names who makes routes, as /usr/share/iproute2/rt_protos does.
func protocol(p uint8) string {
	names := map[uint8]string{2: "kernel", 3: "boot", 4: "static", 9: "ra", 11: "zebra", 12: "bird", 16: "dhcp", 186: "bgp", 187: "isis", 188: "ospf", 189: "rip", 192: "eigrp"}
	if n, ok := names[p]; ok {
		return n
	}
	return fmt.Sprint(p)
}
