package kernel

import (
	"context"
	"errors"
	"fmt"
	"maps"

	"golang.org/x/sys/unix"

	"github.com/slash32/slash32/pkg/state"
)

// kindTap is what the kernel calls a tap, and a tun.
const kindTap = "tun"

// taps looks where the interfaces are. All that are in bridges have come in one
// list; the others are asked for by name, which are few.
func (r *reader) taps(names []string) error {
	for _, name := range names {
		l, in := r.in[name]
		if !in {
			var err error
			if l, err = r.k.linkByName(name); errors.Is(err, unix.ENODEV) {
				continue
			} else if err != nil {
				return fmt.Errorf("read link %s: %w", name, err)
			}
		}
		if l.hairpin {
			r.state.Hairpins[name] = struct{}{}
		}
		switch {
		case l.master != 0:
			r.state.Taps[name] = r.linkName(l.master)
		case l.kind == kindTap:
			r.state.Taps[name] = ""
		}
	}
	if !r.scoped() {
		known := maps.Clone(r.state.Hairpins)
		r.k.hairpins.Store(&known)
	}
	return nil
}

// isHairpin tells whether a port's options are those that (applier).hairpin gives it.
func isHairpin(b []byte) bool {
	var mode, multicast, broadcast bool
	attrs(b, func(typ uint16, d []byte) {
		on := len(d) == 1 && d[0] != 0
		switch typ {
		case unix.IFLA_BRPORT_MODE:
			mode = on
		case unix.IFLA_BRPORT_MCAST_FLOOD:
			multicast = on
		case unix.IFLA_BRPORT_BCAST_FLOOD:
			broadcast = on
		}
	})
	return mode && !multicast && !broadcast
}

// hairpins makes ports send what is for the guest itself back to it, or no longer.
// What the bridge would send to all its ports does not come back: a guest that hears
// its own neighbour solicitations takes its addresses for another's. The host's own
// multicasts and broadcasts go to each port all the same (br_flood).
func (a *applier) hairpins(ctx context.Context, changes []state.Change) {
	for _, c := range changes {
		if err := a.hairpin(ctx, *c.Hairpin, c.Verb != state.Delete); err != nil {
			a.failedAt(c, err)
		}
	}
}

func (a *applier) hairpin(ctx context.Context, t state.Tap, on bool) error {
	l, in, err := a.isIn(t)
	if err != nil || !in || l.hairpin == on {
		return err
	}
	var mode, flood byte = 0, 1
	if on {
		mode, flood = 1, 0
	}
	err = a.send(ctx, newMessage(unix.RTM_NEWLINK, 0, ifinfo(l.index, 0, 0)).nest(unix.IFLA_LINKINFO, func(m message) message {
		return m.attr(unix.IFLA_INFO_SLAVE_KIND, []byte(kindBridge)).nest(unix.IFLA_INFO_SLAVE_DATA, func(m message) message {
			return m.u8(unix.IFLA_BRPORT_MODE, mode).u8(unix.IFLA_BRPORT_MCAST_FLOOD, flood).u8(unix.IFLA_BRPORT_BCAST_FLOOD, flood)
		})
	}))
	if err == nil {
		return nil
	}
	if _, in, again := a.isIn(t); again == nil && !in { // it has gone meanwhile
		return nil
	}
	return err
}

// isIn tells whether the interface is in the bridge, and that is ours.
func (a *applier) isIn(t state.Tap) (l link, in bool, err error) {
	bridge, err := a.k.linkByName(t.Bridge)
	if err == nil {
		l, err = a.k.linkByName(t.Name)
	}
	if errors.Is(err, unix.ENODEV) {
		return link{}, false, nil
	}
	return l, err == nil && bridge.ours() && l.master == bridge.index, err
}

// taps puts taps into their bridges. One that has gone or has been put somewhere
// since it was looked at is left alone.
func (a *applier) taps(ctx context.Context, changes []state.Change) {
	for _, c := range changes {
		if err := a.tap(ctx, *c.Tap); err != nil {
			a.failedAt(c, err)
		}
	}
}

func (a *applier) tap(ctx context.Context, t state.Tap) error {
	l, err := a.k.linkByName(t.Name)
	switch {
	case errors.Is(err, unix.ENODEV):
		return nil
	case err != nil:
		return err
	case l.master != 0 || l.kind != kindTap:
		return nil
	}
	bridge, err := a.k.linkByName(t.Bridge)
	switch {
	case err != nil:
		return err
	case !bridge.ours():
		return ErrForeign
	}
	err = a.send(ctx, newMessage(unix.RTM_NEWLINK, 0, ifinfo(l.index, 0, 0)).u32(unix.IFLA_MASTER, uint32(bridge.index)))
	if errors.Is(err, unix.ENODEV) { // it has gone meanwhile
		return nil
	}
	return err
}
