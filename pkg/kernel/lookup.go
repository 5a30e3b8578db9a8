package kernel

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// HostRoute is the route to exactly one address that the host has.
type HostRoute struct {
	Protocol uint8      // rtm_protocol: who made it
	Local    bool       // the address is the host's own
	Via      netip.Addr // the next hop; not valid: on the link, or several
	Link     string     // "" when there are several next hops
}

// HostRoute looks up the route that a packet to a takes. ok is false unless that
// is one to a alone: what covers more says nothing about who has a. The table is
// not listed, so a whole BGP table costs nothing.
func (k *Kernel) HostRoute(_ context.Context, a netip.Addr) (r HostRoute, ok bool, err error) {
	fixed := make([]byte, routeLength)
	fixed[0], fixed[1] = family(a), byte(a.BitLen())
	copy(fixed[8:], host32(fibMatch))
	var found route
	err = k.rt.get(newMessage(unix.RTM_GETROUTE, 0, fixed).attr(unix.RTA_DST, a.AsSlice()), func(typ uint16, b []byte) {
		if x, parsed := parseRoute(b); parsed && typ == unix.RTM_NEWROUTE {
			found, ok = x, true
		}
	})
	switch {
	case noFamily(err), errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.EACCES), errors.Is(err, unix.EINVAL):
		return HostRoute{}, false, nil // no route, or one that refuses (unreachable, prohibit, blackhole)
	case err != nil:
		return HostRoute{}, false, fmt.Errorf("look up the route to %s: %w", a, err)
	}
	if !ok || found.Dst != netip.PrefixFrom(a, a.BitLen()) || found.kind != unix.RTN_UNICAST && found.kind != unix.RTN_LOCAL {
		return HostRoute{}, false, nil
	}
	r = HostRoute{Protocol: found.protocol, Local: found.kind == unix.RTN_LOCAL, Via: found.Via}
	if found.index != 0 {
		r.Link = k.name(found.index)
	}
	return r, true, nil
}
