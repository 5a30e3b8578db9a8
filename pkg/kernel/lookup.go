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
	Group    bool       // it is the broadcast or anycast address of a network that the host is in
	Several  bool       // there are more next hops than the one here
	Via      netip.Addr // the next hop; not valid: on the link
	Link     string
}

// HostRoute looks up the route that a packet of the host's to a takes, then, for
// a routing table that no rule leads to yet, the one in there. ok is false unless
// it is one to a alone: what covers more says nothing about who has a. A route
// that refuses (blackhole, unreachable, prohibit) is none.
func (k *Kernel) HostRoute(ctx context.Context, a netip.Addr, table uint32) (r HostRoute, ok bool, err error) {
	fixed := make([]byte, routeLength)
	fixed[0], fixed[1] = family(a), byte(a.BitLen())
	copy(fixed[8:], host32(fibMatch))
	err = k.rt.get(newMessage(unix.RTM_GETROUTE, 0, fixed).attr(unix.RTA_DST, a.AsSlice()), func(typ uint16, b []byte) {
		if typ == unix.RTM_NEWROUTE && !ok {
			r, ok = k.hostRoute(a, b)
		}
	})
	switch {
	case noFamily(err):
		return HostRoute{}, false, nil
	case errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.EACCES), errors.Is(err, unix.EINVAL):
		// No route, or one that refuses.
	case err != nil:
		return HostRoute{}, false, fmt.Errorf("look up the route to %s: %w", a, err)
	}
	if ok || table == unix.RT_TABLE_MAIN || table == unix.RT_TABLE_UNSPEC {
		return r, ok, nil
	}
	led, err := k.ledTo(ctx, family(a), table)
	if err != nil || led {
		return HostRoute{}, false, err
	}
	return k.hostRouteIn(ctx, a, table)
}

// hostRoute reads a route message; ok is false unless the route is to a alone.
func (k *Kernel) hostRoute(a netip.Addr, b []byte) (r HostRoute, ok bool) {
	x, ok := parseRoute(b)
	if !ok || x.Dst != netip.PrefixFrom(a, a.BitLen()) {
		return HostRoute{}, false
	}
	switch x.kind {
	case unix.RTN_LOCAL:
		r.Local = true
	case unix.RTN_BROADCAST, unix.RTN_ANYCAST:
		r.Group = true
	case unix.RTN_UNICAST:
	default:
		return HostRoute{}, false
	}
	r.Protocol, r.Via, r.Several = x.protocol, x.Via, x.several
	if x.several {
		x.index = firstHop(b)
	}
	if x.index != 0 {
		r.Link = k.name(x.index)
	}
	return r, true
}

// ledTo tells whether a policy rule of ours leads to the table: then a lookup
// has seen what is in it.
func (k *Kernel) ledTo(ctx context.Context, family byte, table uint32) (led bool, err error) {
	fixed := make([]byte, ruleLength)
	fixed[0] = family
	err = k.rt.dump(ctx, newMessage(unix.RTM_GETRULE, 0, fixed), func() { led = false }, func(typ uint16, b []byte) {
		if x, ours := parseRule(b); ours && typ == unix.RTM_NEWRULE && x.Table == table && x.SuppressDefault {
			led = true
		}
	})
	if err != nil && !noFamily(err) {
		return false, fmt.Errorf("list rules: %w", err)
	}
	return led, nil
}

// hostRouteIn lists a table: the kernel looks an address up by the rules only.
// So it is for the first VM of a table.
func (k *Kernel) hostRouteIn(ctx context.Context, a netip.Addr, table uint32) (r HostRoute, ok bool, err error) {
	fixed := make([]byte, routeLength)
	fixed[0] = family(a)
	m := newMessage(unix.RTM_GETROUTE, 0, fixed).u32(unix.RTA_TABLE, table)
	err = k.rt.dump(ctx, m, func() { r, ok = HostRoute{}, false }, func(typ uint16, b []byte) {
		if typ != unix.RTM_NEWROUTE || ok {
			return
		}
		if x, parsed := parseRoute(b); parsed && x.Table == table {
			r, ok = k.hostRoute(a, b)
		}
	})
	if noFamily(err) || errors.Is(err, unix.ENOENT) { // nobody has used the table yet
		return HostRoute{}, false, nil
	}
	if err != nil {
		return HostRoute{}, false, fmt.Errorf("list the routes of table %d: %w", table, err)
	}
	return r, ok, nil
}
