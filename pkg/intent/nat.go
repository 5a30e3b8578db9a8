package intent

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/slash32/slash32/pkg/annotation"
	"github.com/slash32/slash32/pkg/config"
	"github.com/slash32/slash32/pkg/problem"
)

// Main is the address of a family that ports are forwarded to and that a public
// address stands for: the first, which DHCP offers. Not valid: there is none yet.
func (n NIC) Main(v6 bool) netip.Addr {
	own := n.Addrs4
	if v6 {
		own = n.Addrs6
	}
	if len(own) > 0 {
		return own[0]
	}
	if i := slices.IndexFunc(n.Leased, func(a netip.Addr) bool { return a.Is6() == v6 }); i >= 0 {
		return n.Leased[i]
	}
	return netip.Addr{}
}

// has tells whether Main is or will be valid.
func (n NIC) has(v6 bool) bool {
	if v6 {
		return len(n.Addrs6) > 0 || n.Auto6 || n.Relays6()
	}
	return len(n.Addrs4) > 0 || n.Relays4()
}

// Translation says how the NIC's sources are translated, as the configuration
// and the annotation write it.
func (n NIC) Translation() string {
	words := []string{string(n.NAT)}
	to := n.SNAT
	if len(n.Public) > 0 {
		words, to = []string{"one-to-one"}, n.Public
	}
	for _, a := range to {
		words = append(words, a.String())
	}
	return strings.Join(words, " ")
}

// nat takes over how the NIC's sources are translated and which ports are
// forwarded to it.
func (b *builder) nat(out *NIC, i annotation.Interface) {
	out.NAT, out.SNAT = out.Network.NAT, out.Network.SNAT
	switch i.NAT {
	case "none":
		out.NAT, out.SNAT = config.NATNone, nil
	case "masquerade":
		out.NAT, out.SNAT = config.NATAll, nil
	case "snat":
		out.NAT, out.SNAT = config.NATSource, i.NATTo
	case "one-to-one":
		for _, a := range i.NATTo {
			b.public(out, a, i.NATLine)
		}
	}
	for _, f := range i.Forwards {
		b.forward(out, f)
	}
}

// public takes over an address that stands for the NIC's first of its family.
func (b *builder) public(out *NIC, a netip.Addr, line int) {
	if first, twice := b.seen[a]; twice {
		b.add(problem.EDuplicate, line, fmt.Sprintf("address %s is given twice; the first is in line %d", a, first), "remove one; an address that the VM has itself needs no translation")
		return
	}
	b.seen[a] = line
	if !b.free(annotation.Address{Line: line, IP: a}) {
		return
	}
	if !out.has(a.Is6()) {
		b.add(problem.EValue, line, fmt.Sprintf("%s is to stand for an address of the NIC, and it has none of that family", a), `add one, like <address ip="10.0.0.42"/>`)
		return
	}
	out.Lines[a] = line
	out.Public = append(out.Public, a)
}

// forward takes over a forward, for the families that the NIC has.
func (b *builder) forward(out *NIC, f annotation.Forward) {
	has4, has6 := out.has(false), out.has(true)
	switch {
	case f.Family == "both" && has4 && has6, f.Family == "ipv4" && has4, f.Family == "ipv6" && has6:
	case f.Family == "both" && has4:
		f.Family = "ipv4"
	case f.Family == "both" && has6:
		f.Family = "ipv6"
	default:
		what := "no address"
		if f.Family != "both" {
			what = "no IPv" + f.Family[3:] + " address"
		}
		b.add(problem.EValue, f.Line, fmt.Sprintf("port %s/%s is to be forwarded to a NIC that has %s of its own", f.Proto, f.Ports(), what), `add <address ip="..."/>; in a prefix, only the guest knows which it has`)
		return
	}
	if at := slices.IndexFunc(b.forwards, func(o annotation.Forward) bool { return collide(f, o) }); at >= 0 {
		o := b.forwards[at]
		b.add(problem.EDuplicate, f.Line, fmt.Sprintf("port %s/%s is forwarded twice; the first is %s/%s in line %d", f.Proto, f.Ports(), o.Proto, o.Ports(), o.Line), "remove one, or forward another port")
		return
	}
	b.forwards = append(b.forwards, f)
	out.Forwards = append(out.Forwards, f)
}

// collide tells whether some packet is for both forwards.
func collide(a, b annotation.Forward) bool {
	return (a.Proto == b.Proto || a.Proto == "both" || b.Proto == "both") &&
		(a.Family == b.Family || a.Family == "both" || b.Family == "both") &&
		(a.Addr == b.Addr || !a.Addr.IsValid() || !b.Addr.IsValid()) &&
		a.Port <= b.Last && b.Port <= a.Last
}

// Forwards are the ports of the host that are forwarded to the VM, a line each.
func (v VM) Forwards() []string {
	var s []string
	for _, n := range v.NICs {
		s = append(s, n.Ports()...)
	}
	return s
}

// Ports are those of the host that are forwarded to the NIC, like "ipv4 tcp/8022
// to 22".
func (n NIC) Ports() []string {
	var s []string
	for _, f := range n.Forwards {
		s = append(s, fmt.Sprintf("%s %s to %d", f.Family, portOf(f), f.To))
	}
	return s
}

// Ports are the same as numbers, of whatever protocol, family and address, sorted.
func (v VM) Ports() []uint16 {
	var all []uint16
	for _, n := range v.NICs {
		for _, f := range n.Forwards {
			for p := int(f.Port); p <= int(f.Last); p++ {
				all = append(all, uint16(p))
			}
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// ports finds ports of vm that are forwarded to another VM.
func ports(vm VM, others []VM) problem.List {
	var ps problem.List
	for _, n := range vm.NICs {
		for _, f := range n.Forwards {
			if p, taken := forwarded(vm, f, others); taken {
				ps = append(ps, p)
			}
		}
	}
	return ps
}

func forwarded(vm VM, f annotation.Forward, others []VM) (problem.Problem, bool) {
	for _, o := range others {
		if o.UUID == vm.UUID {
			continue
		}
		for _, n := range o.NICs {
			for _, have := range n.Forwards {
				if collide(f, have) {
					return problem.Problem{
						Code: problem.EPortInUse, File: vm.File, Line: f.Line, VM: vm.Name,
						What: fmt.Sprintf("port %s is forwarded to running VM %s already (%s, its port %s)", portOf(f), o.Name, n.MAC, portOf(have)),
						Fix:  fmt.Sprintf("forward another port to %s, or stop %s", vm.Name, o.Name),
					}, true
				}
			}
			if f.Addr.IsValid() && slices.Contains(n.Public, f.Addr) {
				return problem.Problem{
					Code: problem.EPortInUse, File: vm.File, Line: f.Line, VM: vm.Name,
					What: fmt.Sprintf("port %s is of an address that stands for running VM %s (%s)", portOf(f), o.Name, n.MAC),
					Fix:  fmt.Sprintf("forward a port of another address of the host to %s, or stop %s", vm.Name, o.Name),
				}, true
			}
		}
	}
	return problem.Problem{}, false
}

// portOf is a forward's port like "tcp/8022" or "udp/8000-8010 of 192.0.2.10".
func portOf(f annotation.Forward) string {
	s := f.Proto + "/" + f.Ports()
	if f.Addr.IsValid() {
		s += " of " + f.Addr.String()
	}
	return s
}
