package intent

import (
	"fmt"
	"net/netip"

	"github.com/slash32/slash32/pkg/annotation"
	"github.com/slash32/slash32/pkg/problem"
)

// Listener is a port that a program of the host listens on.
type Listener struct {
	Proto uint8 // IPPROTO_TCP or IPPROTO_UDP
	Addr  netip.AddrPort
	Both  bool // with the unspecified IPv6 address: IPv4 as well
}

// The protocols of forwards (IPPROTO_TCP, IPPROTO_UDP).
const (
	protoTCP = 6
	protoUDP = 17
)

// Shadowed finds programs of the host that nobody reaches any more by the ports that
// are forwarded to the VM: W115, one for each forward at most. Where a forward is of
// one address, a program that listens at all addresses keeps the others, and
// nothing is said.
func Shadowed(vm VM, listeners []Listener) problem.List {
	var ps problem.List
	for _, n := range vm.NICs {
		for _, f := range n.Forwards {
			for _, l := range listeners {
				if !l.shadowed(f) {
					continue
				}
				name := "tcp"
				if l.Proto == protoUDP {
					name = "udp"
				}
				ps = append(ps, problem.Problem{
					Code: problem.WPortInUse, File: vm.File, Line: f.Line, VM: vm.Name,
					What: fmt.Sprintf("port %s is forwarded to the VM, and a program of the host listens on %s/%s: who is not on the host gets the VM instead", portOf(f), name, l.Addr),
					Fix:  fmt.Sprintf("forward another port, or one of an address that the program does not need (addr); ss -lnp 'sport = :%d' shows the program", l.Addr.Port()),
				})
				break
			}
		}
	}
	return ps
}

// shadowed tells whether the forward takes what comes for the listener.
func (l Listener) shadowed(f annotation.Forward) bool {
	a, port := l.Addr.Addr(), l.Addr.Port()
	switch {
	case port < f.Port || port > f.Last:
		return false
	case l.Proto == protoTCP && f.Proto == "udp", l.Proto == protoUDP && f.Proto == "tcp":
		return false
	case a.IsLoopback(), a.Is6() && a.IsLinkLocalUnicast(), a.IsMulticast():
		return false // these are not forwarded
	case f.Addr.IsValid():
		return a == f.Addr
	}
	return f.Family == "both" || l.Both || (f.Family == "ipv6") == a.Is6()
}
