package kernel

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/slash32/slash32/pkg/marks"
	"github.com/slash32/slash32/pkg/state"
)

// maxElements is how many elements one nftables transaction has. The one that
// makes the table anew has them all: the guard must not stand without them.
const maxElements = 1000

// messageElements is how many elements one message has: the length of its
// attribute is 16 bits.
const messageElements = 500

// ErrForeign is an object that is in the way and not ours.
var ErrForeign = errors.New("is there and not slash32's")

// Apply makes the changes, in their order. It goes on after one that fails and
// returns all errors together. Writes counts the objects that were written; what
// is already as a change wants it counts as success, and mostly not as a write.
func (k *Kernel) Apply(ctx context.Context, changes []state.Change) (writes int, err error) {
	a := applier{k: k, index: map[string]int{}}
	for len(changes) > 0 {
		if err := ctx.Err(); err != nil {
			a.failed(err)
			break
		}
		apply, n := a.run(changes)
		apply(ctx, changes[:n])
		changes = changes[n:]
	}
	if a.more > 0 {
		a.errs = append(a.errs, fmt.Errorf("%d more changes failed", a.more))
	}
	return a.writes, errors.Join(a.errs...)
}

// maxErrors bounds how many errors one Apply tells apart.
const maxErrors = 20

type applier struct {
	k      *Kernel
	index  map[string]int // interfaces, by name
	writes int
	errs   []error
	more   int // errors beyond maxErrors
}

func (a *applier) failed(err error) {
	if len(a.errs) == maxErrors {
		a.more++
		return
	}
	a.errs = append(a.errs, err)
}

func (a *applier) failedAt(c state.Change, err error) { a.failed(fmt.Errorf("%s: %w", c, err)) }

// run finds how many of the next changes go together, and what applies them.
func (a *applier) run(changes []state.Change) (apply func(context.Context, []state.Change), n int) {
	type kind func(c state.Change) bool
	for _, x := range []struct {
		is    kind
		apply func(context.Context, []state.Change)
	}{
		{func(c state.Change) bool { return c.Skeleton != nil || c.Elem != nil }, a.nft},
		{func(c state.Change) bool { return c.Flow != nil || c.Translation != nil }, a.flush},
		{func(c state.Change) bool { return c.Sysctl != nil }, a.sysctls},
		{func(c state.Change) bool { return c.Link != nil }, a.links},
		{func(c state.Change) bool { return c.Tap != nil }, a.taps},
		{func(c state.Change) bool { return c.Hairpin != nil }, a.hairpins},
		{func(c state.Change) bool { return c.Proxy != nil }, a.proxies},
		{func(c state.Change) bool { return c.Addr != nil || c.Neigh != nil || c.Route != nil || c.Rule != nil }, a.batch},
	} {
		for n < len(changes) && x.is(changes[n]) {
			n++
		}
		if n > 0 {
			return x.apply, n
		}
	}
	return func(context.Context, []state.Change) { a.failed(fmt.Errorf("%s: an empty change", changes[0])) }, 1
}

func (a *applier) sysctls(_ context.Context, changes []state.Change) {
	for _, c := range changes {
		if err := a.k.writeSysctl(c.Sysctl.Path, c.Sysctl.Value); err != nil {
			a.failedAt(c, err)
			continue
		}
		a.writes++
	}
}

// links goes one by one: each removal takes the kernel tens of milliseconds.
func (a *applier) links(ctx context.Context, changes []state.Change) {
	for _, c := range changes {
		delete(a.index, c.Link.Name)
		if err := a.link(ctx, c); err != nil {
			a.failedAt(c, err)
		}
	}
}

func (a *applier) link(ctx context.Context, c state.Change) error {
	have, err := a.k.linkByName(c.Link.Name)
	gone := errors.Is(err, unix.ENODEV)
	if err != nil && !gone {
		return err
	}
	switch {
	case gone && c.Verb == state.Delete:
		return nil
	case gone && c.Verb == state.Add:
		return a.send(ctx, createLink(*c.Link)...)
	case gone:
		return unix.ENODEV
	case !have.ours():
		if c.Verb == state.Delete {
			return nil // somebody else's by now
		}
		return ErrForeign
	case c.Verb == state.Delete:
		err := a.send(ctx, newMessage(unix.RTM_DELLINK, 0, ifinfo(have.index, 0, 0)))
		if errors.Is(err, unix.ENODEV) {
			return nil
		}
		return err
	}
	if m := changeLink(have, *c.Link); m != nil {
		return a.send(ctx, m)
	}
	return nil
}

// send sends requests that belong together, as one write.
func (a *applier) send(ctx context.Context, msgs ...message) error {
	err := errors.Join(a.k.rt.batch(ctx, msgs)...)
	if err == nil {
		a.writes++
	}
	return err
}

// batch sends the requests for addresses, neighbours, routes and rules.
func (a *applier) batch(ctx context.Context, changes []state.Change) {
	msgs := make([]message, 0, len(changes))
	sent := make([]state.Change, 0, len(changes))
	for _, c := range changes {
		m, err := a.message(c)
		switch {
		case err != nil && c.Verb == state.Delete:
			// The interface is gone, and what was on it with it.
		case err != nil:
			a.failedAt(c, err)
		default:
			msgs, sent = append(msgs, m), append(sent, c)
		}
	}
	var again []state.Change
	for i, err := range a.k.rt.batch(ctx, msgs) {
		c := sent[i]
		switch {
		case err == nil:
			a.writes++
		case c.Verb == state.Delete && isGone(err):
		case c.Verb == state.Add && c.Route != nil && errors.Is(err, unix.EEXIST):
			again = append(again, c)
		case c.Verb != state.Delete && errors.Is(err, unix.EEXIST):
		default:
			a.failedAt(c, err)
		}
	}
	if len(again) > 0 {
		a.routesInTheWay(ctx, again)
	}
}

func isGone(err error) bool {
	for _, e := range []error{unix.ENOENT, unix.ESRCH, unix.ENODEV, unix.EADDRNOTAVAIL, unix.EAFNOSUPPORT} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// routesInTheWay deals with routes in whose place there is one. If it is as
// wanted, good; if it is ours, it is replaced; a foreign one stays.
func (a *applier) routesInTheWay(ctx context.Context, changes []state.Change) {
	have, err := a.k.routes(ctx, 0)
	if err != nil {
		a.failed(fmt.Errorf("list routes: %w", err))
		return
	}
	type key struct {
		dst           netip.Prefix
		table, metric uint32
	}
	ours := map[key]state.Route{}
	for _, r := range have {
		ours[key{r.Dst, r.Table, r.Metric}] = r.state(a.k.name)
	}
	for _, c := range changes {
		r, ok := ours[key{c.Route.Dst, c.Route.Table, c.Route.Metric}]
		if !ok {
			a.failedAt(c, fmt.Errorf("a route with the same metric %w", ErrForeign))
			continue
		}
		if r == *c.Route {
			continue
		}
		c.Verb = state.Replace
		m, err := a.message(c)
		if err == nil {
			err = a.send(ctx, m)
		}
		if err != nil {
			a.failedAt(c, err)
		}
	}
}

var errNoLink = errors.New("no such interface")

func (a *applier) message(c state.Change) (message, error) {
	switch {
	case c.Addr != nil:
		return a.addr(c.Verb, *c.Addr)
	case c.Neigh != nil:
		return a.neigh(c.Verb, *c.Neigh)
	case c.Route != nil:
		return a.route(c.Verb, *c.Route)
	default:
		return ruleRequest(c.Verb, *c.Rule), nil
	}
}

func (a *applier) linkIndex(name string) (uint32, error) {
	i, ok := a.index[name]
	if !ok {
		i = a.k.index(name)
		a.index[name] = i
	}
	if i == 0 {
		return 0, fmt.Errorf("%s: %w", name, errNoLink)
	}
	return uint32(i), nil
}

func family(a netip.Addr) byte {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func (a *applier) addr(verb state.Verb, x state.Addr) (message, error) {
	index, err := a.linkIndex(x.Link)
	if err != nil {
		return nil, err
	}
	fixed := make([]byte, addrLength)
	fixed[0], fixed[1] = family(x.Prefix.Addr()), byte(x.Prefix.Bits())
	copy(fixed[4:], host32(index))
	typ, flags := uint16(unix.RTM_NEWADDR), uint16(unix.NLM_F_CREATE|unix.NLM_F_REPLACE)
	if !a.k.gatewayMAC(x.Link) {
		flags = unix.NLM_F_CREATE | unix.NLM_F_EXCL // or one of somebody else's became ours
	}
	if verb == state.Delete {
		typ, flags = unix.RTM_DELADDR, 0
	}
	m := newMessage(typ, flags, fixed).
		attr(unix.IFA_LOCAL, x.Prefix.Addr().AsSlice()).
		attr(unix.IFA_ADDRESS, x.Prefix.Addr().AsSlice())
	if verb != state.Delete {
		m = m.u8(ifaProto, marks.RouteProtocol)
	}
	if verb != state.Delete && x.Prefix.Addr().Is6() {
		m = m.u32(unix.IFA_FLAGS, unix.IFA_F_NODAD)
	}
	return m, nil
}

func (a *applier) neigh(verb state.Verb, n state.Neigh) (message, error) {
	index, err := a.linkIndex(n.Link)
	if err != nil {
		return nil, err
	}
	fixed := make([]byte, neighLength)
	fixed[0] = family(n.IP)
	copy(fixed[4:], host32(index))
	if verb == state.Delete {
		return newMessage(unix.RTM_DELNEIGH, 0, fixed).attr(unix.NDA_DST, n.IP.AsSlice()), nil
	}
	fixed[8] = unix.NUD_PERMANENT
	return newMessage(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, fixed).
		attr(unix.NDA_DST, n.IP.AsSlice()).
		attr(unix.NDA_LLADDR, n.MAC[:]), nil
}

// route adds exclusively, so that no foreign route is overwritten; only what
// was read as ours is replaced.
func (a *applier) route(verb state.Verb, r state.Route) (message, error) {
	typ, flags := uint16(unix.RTM_NEWROUTE), uint16(unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	switch verb {
	case state.Replace:
		flags = unix.NLM_F_CREATE | unix.NLM_F_REPLACE
	case state.Delete:
		typ, flags = unix.RTM_DELROUTE, 0
	}
	fixed := make([]byte, routeLength)
	fixed[0], fixed[1] = family(r.Dst.Addr()), byte(r.Dst.Bits())
	fixed[4] = unix.RT_TABLE_UNSPEC
	fixed[5] = marks.RouteProtocol
	fixed[6] = unix.RT_SCOPE_UNIVERSE
	fixed[7] = unix.RTN_UNICAST
	switch {
	case r.Kind == "blackhole":
		fixed[7] = unix.RTN_BLACKHOLE
	case r.Kind == "unreachable":
		fixed[7] = unix.RTN_UNREACHABLE
	case r.Kind == KindForeign:
		fixed[7] = unix.RTN_UNSPEC
	case r.Dst.Addr().Is4() && !r.Via.IsValid():
		fixed[6] = unix.RT_SCOPE_LINK
	}
	if verb == state.Delete {
		fixed[6] = unix.RT_SCOPE_NOWHERE // any
	} else if r.Via.IsValid() {
		// The router of a link on which the host itself need have no address. And the kernel
		// tells of a bridge's new IPv6 address later than of the routes that follow it: BIRD
		// would not take a next hop that it cannot see to be on the link.
		copy(fixed[8:], host32(unix.RTNH_F_ONLINK))
	}
	m := newMessage(typ, flags, fixed).
		attr(unix.RTA_DST, r.Dst.Addr().AsSlice()).
		u32(unix.RTA_TABLE, r.Table).
		u32(unix.RTA_PRIORITY, r.Metric)
	if r.Link != "" {
		index, err := a.linkIndex(r.Link)
		if err != nil {
			return nil, err
		}
		m = m.u32(unix.RTA_OIF, index)
	}
	switch {
	case !r.Via.IsValid():
	case r.Via.Is4() == r.Dst.Addr().Is4():
		m = m.attr(unix.RTA_GATEWAY, r.Via.AsSlice())
	default:
		m = m.attr(unix.RTA_VIA, append([]byte{family(r.Via), 0}, r.Via.AsSlice()...))
	}
	return m, nil
}

func ruleRequest(verb state.Verb, r state.Rule) message {
	typ, flags := uint16(unix.RTM_NEWRULE), uint16(unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	if verb == state.Delete {
		typ, flags = unix.RTM_DELRULE, 0
	}
	fixed := make([]byte, ruleLength)
	fixed[0], fixed[7] = byte(r.Family), unix.FR_ACT_TO_TBL
	if r.Unreachable {
		fixed[7] = unix.FR_ACT_UNREACHABLE
	}
	m := newMessage(typ, flags, fixed).
		u32(unix.FRA_PRIORITY, uint32(r.Priority)).
		u8(unix.FRA_PROTOCOL, marks.RouteProtocol)
	if !r.Unreachable {
		m = m.u32(unix.FRA_TABLE, r.Table)
	}
	if r.Mark != 0 {
		m = m.u32(unix.FRA_FWMARK, r.Mark).u32(unix.FRA_FWMASK, marks.FwmarkMask)
	}
	if r.SuppressDefault {
		m = m.u32(unix.FRA_SUPPRESS_PREFIXLEN, 0)
	}
	if r.HostRoutesOnly {
		m = m.u32(unix.FRA_SUPPRESS_PREFIXLEN, uint32(r.BelowHost()))
	}
	return m
}

// nft sends the changes to the table in transactions.
func (a *applier) nft(ctx context.Context, changes []state.Change) {
	for len(changes) > 0 {
		c := changes[0]
		if c.Skeleton == nil {
			n := 1
			for n < min(len(changes), maxElements) && changes[n].Elem != nil {
				n++
			}
			a.elems(ctx, changes[:n])
			changes = changes[n:]
			continue
		}
		if c.Verb == state.Delete {
			for _, f := range families {
				err := a.k.nft.transaction(ctx, []message{familyMessage(f, unix.NFT_MSG_DELTABLE, 0)})
				switch {
				case err == nil:
					a.writes++
				case !isGone(err):
					a.failedAt(c, err)
				}
			}
			changes = changes[1:]
			continue
		}
		n := 1
		for n < len(changes) && changes[n].Elem != nil && changes[n].Verb == state.Add {
			n++
		}
		if err := a.skeleton(ctx, *c.Skeleton, changes[1:n]); err != nil {
			a.failedAt(c, err)
		}
		changes = changes[n:]
	}
}

// skeleton makes the tables and their elements in one transaction: in between
// there is never a guard that knows no one. Then it marks them as complete;
// without the mark it is made again.
func (a *applier) skeleton(ctx context.Context, version string, elems []state.Change) error {
	msgs, err := skeletonMessages()
	if err != nil {
		return err
	}
	if err := a.k.nft.transaction(ctx, append(msgs, elemMessages(elems)...)); err != nil {
		return err
	}
	a.writes += 1 + len(elems)
	_, print, err := a.k.fingerprint(ctx)
	if err != nil {
		return err
	}
	return a.k.nft.transaction(ctx, []message{chain{name: version + "_" + print}.message()})
}

// elems sends one transaction; when that is refused, each change by itself: one
// that is gone already must not keep the others.
func (a *applier) elems(ctx context.Context, changes []state.Change) {
	err := a.k.nft.transaction(ctx, elemMessages(changes))
	if err == nil {
		a.writes += len(changes)
		return
	}
	for i, c := range changes {
		if len(changes) > 1 {
			err = a.k.nft.transaction(ctx, elemMessages([]state.Change{c}))
		}
		missing := errors.Is(err, unix.ENOENT)
		if missing && c.Verb == state.Replace || errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EEXIST) {
			// Nothing to replace; or a map element with another value to add.
			verb := state.Add
			if !missing {
				verb = state.Replace
			}
			err = a.k.nft.transaction(ctx, elemMessages([]state.Change{{Verb: verb, Elem: c.Elem}}))
			missing = errors.Is(err, unix.ENOENT)
		}
		switch {
		case err == nil:
			a.writes++
		case c.Verb == state.Delete && missing:
		case missing: // the set itself: somebody took the table
			a.failedAt(c, err)
			a.more += len(changes) - i - 1
			return
		default:
			a.failedAt(c, err)
		}
	}
}

// elemMessages packs neighbouring changes of one kind into messages.
func elemMessages(changes []state.Change) []message {
	var msgs []message
	for len(changes) > 0 {
		first := changes[0]
		set, n := setOf(*first.Elem), 1
		for n < min(len(changes), messageElements) && changes[n].Verb == first.Verb && setOf(*changes[n].Elem) == set {
			n++
		}
		elems := make([]state.Elem, n)
		for i, c := range changes[:n] {
			elems[i] = *c.Elem
		}
		changes = changes[n:]
		if first.Verb != state.Add {
			msgs = append(msgs, elemsMessage(unix.NFT_MSG_DELSETELEM, elems))
		}
		if first.Verb != state.Delete {
			msgs = append(msgs, elemsMessage(unix.NFT_MSG_NEWSETELEM, elems))
		}
	}
	return msgs
}
