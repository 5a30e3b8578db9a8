package plan

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/slash32/slash32/pkg/config"
	"github.com/slash32/slash32/pkg/intent"
	"github.com/slash32/slash32/pkg/problem"
)

const (
	portDNS = 53
	portNTP = 123
)

// Closed finds servers that the guest is told of and that are this host, where the
// network does not open their port: W116. Of the host's addresses those count that the
// facts and the configuration have.
func (f Facts) Closed(vm intent.VM) problem.List {
	var ps problem.List
	for _, n := range vm.NICs {
		said := map[string]bool{}
		say := func(what string, servers []netip.Addr, port uint16) {
			for _, a := range servers {
				open := n.Network.Open || slices.Contains(n.Network.Services, config.Service{Proto: config.ProtoUDP, Port: port})
				relayed := a.Is4() && n.Relays4() || a.Is6() && n.Relays6() // told by somebody else
				if open || relayed || !f.own(a, n.Network) || said[what+a.String()] {
					continue
				}
				said[what+a.String()] = true
				fix := fmt.Sprintf("add udp/%d to host_services of the network, or name another server", port)
				if port == portDNS {
					fix = "add udp/53 and tcp/53 to host_services of the network, or name another server"
				}
				ps = append(ps, problem.Problem{
					Code: problem.WClosed, File: vm.File, Line: n.Line, VM: vm.Name,
					What: fmt.Sprintf("the VM is told of the %s server %s, which is this host, and network %s does not open its port", what, a, n.Network.Name),
					Fix:  fix,
				})
			}
		}
		say("DNS", f.dns(n), portDNS)
		say("NTP", n.NTP, portNTP)
	}
	return ps
}

// own tells whether an address is the host's, as far as that is known here.
func (f Facts) own(a netip.Addr, n config.Network) bool {
	if a == n.Gateway4 || a == n.Gateway6 || slices.Contains(n.Addrs, a) {
		return true
	}
	for _, l := range f.Links {
		if slices.ContainsFunc(l.Addrs, func(p netip.Prefix) bool { return p.Addr() == a }) {
			return true
		}
	}
	return false
}

// dns are the resolvers that a NIC's guest is told of.
func (f Facts) dns(n intent.NIC) []netip.Addr {
	switch {
	case len(n.DNS) > 0:
		return n.DNS
	case len(n.Network.DNS) > 0:
		return n.Network.DNS
	}
	return f.Resolvers
}
