package kernel

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/slash32/slash32/pkg/marks"
	"github.com/slash32/slash32/pkg/state"
)

const ndaProtocol = 12 // NDA_PROTOCOL, which golang.org/x/sys/unix lacks

// Proxies are on uplinks, which are not ours. What tells ours from the admin's is
// NDA_PROTOCOL, which the kernel keeps with a proxy (since 5.2). But it knows no
// NLM_F_EXCL for them, so that adding one would make somebody else's ours, and
// deletes whatever is at the address: each is looked at before it is changed.

// proxy is what the kernel says of one proxy.
type proxy struct {
	neigh
	protocol byte
}

func parseProxy(b []byte) (p proxy, ok bool) {
	if len(b) < neighLength || b[10]&unix.NTF_PROXY == 0 {
		return proxy{}, false
	}
	p.neigh, ok = parseNeigh(b)
	attrs(b[neighLength:], func(typ uint16, d []byte) {
		if typ == ndaProtocol && len(d) > 0 {
			p.protocol = d[0]
		}
	})
	return p, ok
}

// proxyMessage starts a request for one proxy, or with neither index nor address
// for all of the family.
func proxyMessage(typ, flags uint16, family byte, index uint32) message {
	fixed := make([]byte, neighLength)
	fixed[0] = family
	copy(fixed[4:], host32(index))
	fixed[10] = unix.NTF_PROXY
	return newMessage(typ, flags, fixed)
}

// proxies reads our proxies, of all interfaces or those with an address that is
// behind one of the links of the scope.
func (r *reader) proxies(ctx context.Context) error {
	names := map[int]string{}
	all := state.State{Elems: r.state.Elems, Routes: r.state.Routes, Proxies: map[state.NeighKey]struct{}{}}
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		var got []proxy
		err := r.k.rt.dump(ctx, proxyMessage(unix.RTM_GETNEIGH, 0, family, 0), func() { got = nil }, func(typ uint16, b []byte) {
			if p, ok := parseProxy(b); ok && typ == unix.RTM_NEWNEIGH && p.protocol == marks.RouteProtocol {
				got = append(got, p)
			}
		})
		if err != nil && !noFamily(err) {
			return fmt.Errorf("list proxies: %w", err)
		}
		for _, p := range got {
			name, known := names[p.index]
			if !known {
				name = r.k.name(p.index)
				names[p.index] = name
			}
			if name != "" {
				all.Proxies[state.NeighKey{Link: name, IP: p.ip}] = struct{}{}
			}
		}
	}
	if !r.scoped() {
		r.state.Proxies = all.Proxies
		return nil
	}
	for name := range r.only {
		for key := range state.Only(all, name).Proxies {
			r.state.Proxies[key] = struct{}{}
		}
	}
	return nil
}

func (a *applier) proxies(ctx context.Context, changes []state.Change) {
	for _, c := range changes {
		if err := a.proxy(ctx, c); err != nil {
			a.failedAt(c, err)
		}
	}
}

func (a *applier) proxy(ctx context.Context, c state.Change) error {
	index, err := a.linkIndex(c.Proxy.Link)
	if err != nil {
		if c.Verb == state.Delete {
			return nil // it went with its interface
		}
		return err
	}
	address := c.Proxy.IP.AsSlice()
	var have proxy
	err = a.k.rt.get(proxyMessage(unix.RTM_GETNEIGH, 0, family(c.Proxy.IP), index).attr(unix.NDA_DST, address), func(_ uint16, b []byte) {
		have, _ = parseProxy(b)
	})
	there := err == nil
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	ours := there && have.protocol == marks.RouteProtocol
	switch {
	case c.Verb == state.Delete && !ours, c.Verb != state.Delete && ours:
		return nil
	case c.Verb == state.Delete:
		return a.send(ctx, proxyMessage(unix.RTM_DELNEIGH, 0, family(c.Proxy.IP), index).attr(unix.NDA_DST, address))
	case there:
		return fmt.Errorf("a proxy %w: delete it (ip neigh del proxy %s dev %s), or turn proxy_arp or proxy_ndp of the network off", ErrForeign, c.Proxy.IP, c.Proxy.Link)
	}
	return a.send(ctx, proxyMessage(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE, family(c.Proxy.IP), index).
		attr(unix.NDA_DST, address).
		u8(ndaProtocol, marks.RouteProtocol))
}
