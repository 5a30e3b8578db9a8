package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/slash32/slash32/pkg/mac"
	"github.com/slash32/slash32/pkg/marks"
	"github.com/slash32/slash32/pkg/state"
)

const (
	neighLength = unix.SizeofNdMsg
	addrLength  = unix.SizeofIfAddrmsg
	routeLength = unix.SizeofRtMsg
	ruleLength  = unix.SizeofRtMsg // struct fib_rule_hdr has the same size

	// KindForeign is the Kind of a route of ours that is not as we make them (of
	// several next hops, say): it equals no planned one.
	KindForeign = "foreign"
)

// Read reads what is ours, or of it what the scope names. It is whole or it is
// an error: a dump that the kernel could not finish undisturbed is made again.
func (k *Kernel) Read(ctx context.Context, scope state.Scope) (state.State, error) {
	s := state.New()
	links, err := k.bridges(ctx, scope.Links)
	if err != nil {
		return state.State{}, err
	}
	only := map[string]bool{}
	for _, n := range scope.Links {
		only[n] = true
	}
	r := reader{k: k, links: links, state: s, only: only}
	steps := []func(context.Context) error{r.ports, r.addrs, r.neighs, r.routes, r.rules, r.nft, r.proxies}
	if scope.Prepared {
		steps = []func(context.Context) error{r.ports, r.addrs, r.skeleton}
	}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return state.State{}, err
		}
	}
	if err := r.sysctls(scope.Sysctls); err != nil {
		return state.State{}, err
	}
	if err := r.taps(scope.Taps); err != nil {
		return state.State{}, err
	}
	return r.state, nil
}

type reader struct {
	k     *Kernel
	links map[int]link // ours, by index
	only  map[string]bool
	in    map[string]link // ports of bridges, by name
	state state.State
}

func (r *reader) scoped() bool { return len(r.only) > 0 }

// perLink runs one dump, or one per link when the read is restricted: the
// kernel leaves out the others itself.
func (r *reader) perLink(f func(index int) error) error {
	if !r.scoped() {
		return f(0)
	}
	for i := range r.links {
		if err := f(i); err != nil {
			return err
		}
	}
	return nil
}

func (r *reader) ports(ctx context.Context) error {
	ports := map[int][]link{}
	err := r.perLink(func(index int) error {
		p, err := r.k.ports(ctx, index)
		maps.Copy(ports, p)
		return err
	})
	r.in = map[string]link{}
	for _, list := range ports {
		for _, l := range list {
			r.in[l.name] = l
		}
	}
	for i, l := range r.links {
		r.state.Links[l.name] = l.state(ports[i])
		l.settings(func(path, value string) { r.state.Sysctls[path] = value })
	}
	return err
}

// sysctls reads the paths that did not come with the links.
func (r *reader) sysctls(paths []string) error {
	for _, p := range paths {
		if _, ok := r.state.Sysctls[p]; ok {
			continue
		}
		v, err := r.k.readSysctl(p)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		r.state.Sysctls[p] = v
	}
	return nil
}

func (r *reader) addrs(ctx context.Context) error {
	err := r.perLink(func(index int) error {
		var got []state.Addr
		fixed := make([]byte, addrLength)
		binary.NativeEndian.PutUint32(fixed[4:], uint32(index))
		err := r.k.rt.dump(ctx, newMessage(unix.RTM_GETADDR, 0, fixed), func() { got = nil }, func(typ uint16, b []byte) {
			if a, ok := r.addr(b); ok && typ == unix.RTM_NEWADDR {
				got = append(got, a)
			}
		})
		for _, a := range got {
			r.state.Addrs[a] = struct{}{}
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	return nil
}

// addr is an address of ours: on a bridge, or elsewhere one with our protocol.
func (r *reader) addr(b []byte) (state.Addr, bool) {
	a, ok := parseAddr(b)
	if !ok || a.flags&unix.IFA_F_PERMANENT == 0 {
		return state.Addr{}, false
	}
	l, bridge := r.links[a.index]
	switch {
	case bridge && a.prefix.Addr() == l.mac.LinkLocal():
		// The kernel makes this one when a link comes up before addr_gen_mode is set.
		return state.Addr{}, false
	case bridge:
		return state.Addr{Link: l.name, Prefix: a.prefix}, true
	case a.protocol != marks.RouteProtocol || r.scoped():
		return state.Addr{}, false
	}
	name := r.k.name(a.index)
	return state.Addr{Link: name, Prefix: a.prefix}, name != ""
}

// address is what the kernel says of one address.
type address struct {
	prefix   netip.Prefix // its own bits are kept
	index    int
	flags    uint32
	protocol byte
}

func parseAddr(b []byte) (a address, ok bool) {
	if len(b) < addrLength {
		return address{}, false
	}
	a = address{index: int(hostU32(b[4:])), flags: uint32(b[2])}
	var local, peer netip.Addr
	attrs(b[addrLength:], func(typ uint16, d []byte) {
		switch typ {
		case unix.IFA_LOCAL:
			local, _ = netip.AddrFromSlice(d)
		case unix.IFA_ADDRESS:
			peer, _ = netip.AddrFromSlice(d)
		case unix.IFA_FLAGS:
			a.flags = hostU32(d)
		case ifaProto:
			if len(d) > 0 {
				a.protocol = d[0]
			}
		}
	})
	if !local.IsValid() {
		local = peer
	}
	a.prefix = netip.PrefixFrom(local, int(b[1]))
	return a, a.prefix.IsValid()
}

func (r *reader) neighs(ctx context.Context) error {
	err := r.perLink(func(index int) error {
		got := map[state.NeighKey]mac.Addr{}
		m := newMessage(unix.RTM_GETNEIGH, 0, make([]byte, neighLength))
		if index != 0 {
			m = m.u32(unix.NDA_IFINDEX, uint32(index))
		}
		err := r.k.rt.dump(ctx, m, func() { clear(got) }, func(typ uint16, b []byte) {
			if n, ok := parseNeigh(b); ok && typ == unix.RTM_NEWNEIGH {
				if l, ours := r.links[n.index]; ours && n.permanent {
					got[state.NeighKey{Link: l.name, IP: n.ip}] = n.mac
				}
			}
		})
		for key, m := range got {
			r.state.Neighs[key] = m
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("list neighbours: %w", err)
	}
	return nil
}

type neigh struct {
	index     int
	ip        netip.Addr
	mac       mac.Addr
	permanent bool
}

func parseNeigh(b []byte) (neigh, bool) {
	if len(b) < neighLength || b[0] != unix.AF_INET && b[0] != unix.AF_INET6 {
		return neigh{}, false
	}
	n := neigh{index: int(hostU32(b[4:]))}
	n.permanent = binary.NativeEndian.Uint16(b[8:])&unix.NUD_PERMANENT != 0
	attrs(b[neighLength:], func(typ uint16, d []byte) {
		switch {
		case typ == unix.NDA_DST:
			n.ip, _ = netip.AddrFromSlice(d)
		case typ == unix.NDA_LLADDR && len(d) == len(n.mac):
			n.mac = mac.Addr(d)
		}
	})
	return n, n.ip.IsValid()
}

func (r *reader) routes(ctx context.Context) error {
	err := r.perLink(func(index int) error {
		routes, err := r.k.routes(ctx, uint32(index))
		for _, x := range routes {
			r.state.Routes[x.state(r.linkName)] = struct{}{}
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	return nil
}

func (r *reader) linkName(index int) string {
	if l, ok := r.links[index]; ok {
		return l.name
	}
	return r.k.name(index)
}

// route is what the kernel says of one route.
type route struct {
	state.Route
	index    int
	protocol byte
	kind     byte
	several  bool
}

func (x route) state(name func(index int) string) state.Route {
	out := x.Route
	switch {
	case x.several:
		out.Kind = KindForeign
	case x.kind == unix.RTN_BLACKHOLE:
		out.Kind = "blackhole"
	case x.kind == unix.RTN_UNREACHABLE:
		out.Kind = "unreachable"
	case x.kind != unix.RTN_UNICAST:
		out.Kind = KindForeign
	default:
		out.Link = name(x.index)
	}
	return out
}

func parseRoute(b []byte) (route, bool) {
	if len(b) < routeLength {
		return route{}, false
	}
	x := route{protocol: b[5], kind: b[7]}
	x.Table = uint32(b[4])
	dst := netip.IPv4Unspecified()
	if b[0] == unix.AF_INET6 {
		dst = netip.IPv6Unspecified()
	}
	attrs(b[routeLength:], func(typ uint16, d []byte) {
		switch typ {
		case unix.RTA_DST:
			dst, _ = netip.AddrFromSlice(d)
		case unix.RTA_TABLE:
			x.Table = hostU32(d)
		case unix.RTA_PRIORITY:
			x.Metric = hostU32(d)
		case unix.RTA_OIF:
			x.index = int(hostU32(d))
		case unix.RTA_GATEWAY:
			x.Via, _ = netip.AddrFromSlice(d)
		case unix.RTA_VIA:
			if len(d) > 2 {
				x.Via, _ = netip.AddrFromSlice(d[2:])
			}
		case unix.RTA_MULTIPATH:
			x.several = true
		}
	})
	x.Dst = netip.PrefixFrom(dst, int(b[1]))
	return x, x.Dst.IsValid()
}

// routes lists the routes of our protocol, over one interface when its index
// is given, in all tables. The kernel filters.
func (k *Kernel) routes(ctx context.Context, index uint32) ([]route, error) {
	var all []route
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		fixed := make([]byte, routeLength)
		fixed[0], fixed[5] = family, marks.RouteProtocol
		m := newMessage(unix.RTM_GETROUTE, 0, fixed)
		if index != 0 {
			m = m.u32(unix.RTA_OIF, index)
		}
		var got []route
		err := k.rt.dump(ctx, m, func() { got = got[:0] }, func(typ uint16, b []byte) {
			x, ok := parseRoute(b)
			if ok && typ == unix.RTM_NEWROUTE && x.protocol == marks.RouteProtocol && (index == 0 || x.index == int(index)) {
				got = append(got, x)
			}
		})
		if err != nil && !noFamily(err) {
			return nil, err
		}
		all = append(all, got...)
	}
	return all, nil
}

// noFamily tells that the kernel runs without IPv6.
func noFamily(err error) bool {
	return errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP)
}

// RouteOwner names the link of a route of ours to exactly that prefix, in any
// table; "" when there is none.
func (k *Kernel) RouteOwner(ctx context.Context, p netip.Prefix) (string, error) {
	routes, err := k.routes(ctx, 0)
	if err != nil {
		return "", fmt.Errorf("list routes: %w", err)
	}
	i := slices.IndexFunc(routes, func(x route) bool { return x.Dst == p && x.index != 0 })
	if i < 0 {
		return "", nil
	}
	return k.name(routes[i].index), nil
}

// rules reads the policy rules. They are the host's, so a read of some links
// leaves them out.
func (r *reader) rules(ctx context.Context) error {
	if r.scoped() {
		return nil
	}
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		fixed := make([]byte, ruleLength)
		fixed[0] = family
		var got []state.Rule
		err := r.k.rt.dump(ctx, newMessage(unix.RTM_GETRULE, 0, fixed), func() { got = nil }, func(typ uint16, b []byte) {
			if rule, ok := parseRule(b); ok && typ == unix.RTM_NEWRULE {
				got = append(got, rule)
			}
		})
		if err != nil && !noFamily(err) {
			return fmt.Errorf("list rules: %w", err)
		}
		for _, rule := range got {
			r.state.Rules[rule] = struct{}{}
		}
	}
	return nil
}

// parseRule reads a rule of our protocol. One with selectors that we never use
// is none of ours.
func parseRule(b []byte) (state.Rule, bool) {
	if len(b) < ruleLength {
		return state.Rule{}, false
	}
	rule := state.Rule{Family: int(b[0]), Table: uint32(b[4]), Unreachable: b[7] == unix.FR_ACT_UNREACHABLE}
	foreign := b[1] != 0 || b[2] != 0 || b[3] != 0 || b[7] != unix.FR_ACT_TO_TBL && b[7] != unix.FR_ACT_UNREACHABLE || hostU32(b[8:])&unix.FIB_RULE_INVERT != 0
	var protocol byte
	mask := uint32(0)
	attrs(b[ruleLength:], func(typ uint16, d []byte) {
		switch typ {
		case unix.FRA_PRIORITY:
			rule.Priority = int(hostU32(d))
		case unix.FRA_TABLE:
			rule.Table = hostU32(d)
		case unix.FRA_FWMARK:
			rule.Mark = hostU32(d)
		case unix.FRA_FWMASK:
			mask = hostU32(d)
		case unix.FRA_PROTOCOL:
			if len(d) > 0 {
				protocol = d[0]
			}
		case unix.FRA_SUPPRESS_PREFIXLEN:
			switch int(int32(hostU32(d))) {
			case 0:
				rule.SuppressDefault = true
			case rule.BelowHost():
				rule.HostRoutesOnly = true
			case -1:
			default:
				foreign = true
			}
		case unix.FRA_IIFNAME, unix.FRA_OIFNAME, unix.FRA_IP_PROTO, unix.FRA_SPORT_RANGE, unix.FRA_DPORT_RANGE, unix.FRA_UID_RANGE, unix.FRA_L3MDEV:
			foreign = true
		}
	})
	if rule.Mark != 0 && mask != marks.FwmarkMask {
		foreign = true
	}
	return rule, protocol == marks.RouteProtocol && !foreign
}
