package pd

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/slash32/slash32/pkg/control"
	"github.com/slash32/slash32/test/lab"
)

// annotation asks for one of each from the network's pool.
const annotation = `<slash32:network xmlns:slash32='urn:slash32:domain:1'><interface>` +
	`<address ip="198.51.100.50"/><address ip="auto"/><prefix net="auto/64" mode="slaac"/><prefix net="auto/60" mode="delegate" length="64"/></interface></slash32:network>`

// TestLevels delegates from the border to the container, renumbers at the top,
// restarts every level and releases at the bottom. Routes and reachability follow
// each time, and nothing is done by hand.
func TestLevels(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	w := makeWorld(ctx, t)
	defer w.print()
	console := w.Console(vm)
	nothing := func() error { return nil }

	l := w.step("VM started", func() error {
		return w.Run(ctx, lab.Domain{Name: vm, Metadata: annotation, Router: true})
	}, w.whole(firstPool))
	old := l.guest[0]
	w.told("add", old)

	l = w.step("renumbered at the top", func() error { return w.border.restart(ctx, secondPool) }, w.whole(secondPool))
	now := l.guest[0]
	w.told("add", now)
	w.step("the old prefix has ended", nothing, func(l levels) error {
		return errors.Join(w.whole(secondPool)(l), l.nothing(firstPool))
	})
	w.told("remove", old)

	same := func(l levels) error {
		if err := w.whole(secondPool)(l); err != nil {
			return err
		}
		if l.guest[0] != now {
			return errOther(now, l.guest[0])
		}
		return nil
	}
	w.pinged("kea restarted", now, func() error { return w.border.restart(ctx, secondPool) }, same)
	w.pinged("agent restarted", now, func() error {
		if err := w.StopAgent(); err != nil {
			return err
		}
		return w.StartAgent(ctx)
	}, same)
	w.pinged("agent killed", now, func() error {
		if err := w.KillAgent(); err != nil {
			return err
		}
		return w.StartAgent(ctx)
	}, same)
	w.pinged("responder killed", now, w.newResponder, same)
	w.pinged("host's reboot", now, w.reboot, same)
	w.step("VM's dhcpcd killed", func() error {
		_, err := console.Run(ctx, killDhcpcd+"; "+startDhcpcd)
		return err
	}, same)
	w.step("released at the bottom", func() error {
		_, err := console.Run(ctx, releaseDhcpcd)
		return err
	}, func(l levels) error { return errors.Join(l.nothing(now), l.silent()) })
	w.told("remove", now)
	w.step("asked for again", func() error {
		_, err := console.Run(ctx, startDhcpcd)
		return err
	}, w.whole(secondPool))
	w.step("VM destroyed", func() error { return w.Remove(ctx, vm) }, func(l levels) error {
		if len(l.routes) != 1 {
			return fmt.Errorf("the routes of the host are %q, want that of the unused pool only", l.routes)
		}
		return l.silent()
	})
	w.told("remove", now)
}

// What is done to dhcpcd in the VM. A signal that comes while its script runs is
// lost on it, so the one that makes it release is sent until it has ended.
const (
	startDhcpcd   = "dhcpcd -q -j /run/dhcpcd.log -f /etc/dhcpcd.router.conf eth0 lan0"
	killDhcpcd    = "killall -9 dhcpcd"
	releaseDhcpcd = "while kill -ALRM $(cat /run/dhcpcd/pid) 2>/dev/null; do usleep 300000; done"
)

func errOther(want, got netip.Prefix) error {
	return fmt.Errorf("the VM has %v, it had %v", got, want)
}

// responder is what the VM's responder says of itself.
func (w *world) responder() (control.Responder, error) {
	return control.QueryResponder(w.ctx, w.HV.Path("/run/slash32/vm/"+lab.DefaultUUID(vm)+"/responder.sock"))
}

// killResponder kills the VM's responder (-9).
func (w *world) killResponder() error {
	r, err := w.responder()
	if err != nil {
		return err
	}
	_, err = w.HV.Exec(w.ctx, "kill", "-9", fmt.Sprint(r.PID))
	return err
}

// newResponder kills the VM's responder and waits for the next one.
func (w *world) newResponder() error {
	old, err := w.responder()
	if err != nil {
		return err
	}
	if err := w.killResponder(); err != nil {
		return err
	}
	return lab.Wait(w.ctx, func() error {
		r, err := w.responder()
		if err == nil && r.PID == old.PID {
			err = errors.New("the killed responder still answers")
		}
		return err
	})
}

// reboot is what a reboot of the host is to slash32 while the VM's disk, here its
// memory, stays: agent and responder end at once, the run directory is gone and so
// is all that was in the kernel.
func (w *world) reboot() error {
	if err := w.KillAgent(); err != nil {
		return err
	}
	if err := w.killResponder(); err != nil {
		return err
	}
	_, err := w.HV.Exec(w.ctx, "sh", "-ec", `
		rm -rf /run/slash32
		ip route flush proto 32
		ip -6 route flush proto 32
		ip -6 route flush type unreachable proto 32
		ip neigh flush nud permanent dev `+lab.DefaultBridge(vm)+`
		nft delete table inet slash32
	`)
	if err != nil {
		return err
	}
	return w.StartAgent(w.ctx)
}
