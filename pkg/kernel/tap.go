package kernel

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/slash32/slash32/pkg/state"
)

// kindTap is what the kernel calls a tap, and a tun.
const kindTap = "tun"

// taps looks where the interfaces are. All that are in bridges have come in one
// list; the others are asked for by name, which are few.
func (r *reader) taps(names []string) error {
	for _, name := range names {
		if bridge, ok := r.in[name]; ok {
			r.state.Taps[name] = r.linkName(bridge)
			continue
		}
		l, err := r.k.linkByName(name)
		if errors.Is(err, unix.ENODEV) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read link %s: %w", name, err)
		}
		switch {
		case l.master != 0:
			r.state.Taps[name] = r.linkName(l.master)
		case l.kind == kindTap:
			r.state.Taps[name] = ""
		}
	}
	return nil
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
