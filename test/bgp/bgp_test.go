package bgp

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/slash32/slash32/test/lab"
)

// What the VM has that there is a guest in.
const (
	vm4       = "198.18.32.7"
	vm6       = "2001:db8:3200::7"
	pool      = "2001:db8:3200:a0::/60" // of which the guest asks for a prefix
	delegated = "2001:db8:3200:a0::/64" // what it gets
	container = "2001:db8:3200:a0::2"
	routed    = "2001:db8:3200:b0::/64"
	behind    = "2001:db8:3200:b0::1" // an address of that
)

const annotation = `<slash32:network xmlns:slash32='urn:slash32:domain:1'><interface>` +
	`<address ip="` + vm4 + `"/><address ip="` + vm6 + `"/>` +
	`<prefix net="` + pool + `" mode="delegate" length="64"/><prefix net="` + routed + `" mode="route"/>` +
	`</interface></slash32:network>`

// theirs are the VM's routes to announce: of the pool, what is delegated.
var theirs = []string{vm4, vm6, delegated, routed}

// TestAnnounced has one lab for both daemons, one after the other.
func TestAnnounced(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	w := makeWorld(ctx, t)
	defer w.print(t)
	// What must not be announced is there all the time: a network that says so, its
	// pool, and an address that is not of the prefixes.
	for name, annotation := range map[string]string{
		"quiet":   `network="quiet" ipv4="198.18.32.66" ipv6="2001:db8:3200::66"`,
		"foreign": `ipv4="198.18.99.1" ipv6="2001:db8:9900::1"`,
	} {
		must(t, w.Run(ctx, lab.Domain{Name: name, Cheap: true, Metadata: lab.Annotation(annotation)}))
		must(t, w.WaitOnline(ctx, name))
	}
	for _, d := range []daemon{
		&bird{processes: map[string]*lab.Process{}},
		&frr{zebra: map[string]*lab.Process{}, bgpd: map[string]*lab.Process{}},
	} {
		if !t.Run(d.name(), func(t *testing.T) { scenario(ctx, t, w, d) }) {
			return
		}
	}
}

// scenario is one story, since each step needs the one before.
func scenario(ctx context.Context, t *testing.T, w *world, d daemon) {
	nodes := []*lab.Node{w.Router, w.hv2, w.HV}
	w.learned(ctx, t, d, "daemons started", func() error {
		for _, n := range nodes {
			if err := d.start(ctx, w.Lab, n); err != nil {
				return err
			}
		}
		return nil
	})
	// Each time another one: what was delegated to a VM is remembered.
	vm := "web" + strings.ToLower(d.name())
	guest := w.Console(vm)
	w.learned(ctx, t, d, "VM started", func() error {
		return w.Run(ctx, lab.Domain{Name: vm, Metadata: annotation, Router: true})
	}, vm4, vm6, routed)
	w.learned(ctx, t, d, "its guest has booted and asked for a prefix", func() error {
		return guest.WaitFor(ctx, "GUEST ready")
	}, theirs...)
	_, err := guest.Run(ctx, "ip -6 address add "+behind+"/64 dev lo")
	must(t, err)
	reached(ctx, t, w, vm4, vm6, container, behind)
	ownTime(ctx, t, w, d)

	// It is restarted, and nobody loses a route by that.
	watch := watchRoutes(ctx, t, w.Router)
	w.learned(ctx, t, d, "daemon killed and started", func() error {
		if err := d.end(w.HV, syscall.SIGKILL); err != nil {
			return err
		}
		return d.start(ctx, w.Lab, w.HV)
	}, theirs...)
	reached(ctx, t, w, vm4, vm6)
	watch.none(t)

	bridge(ctx, t, w, d, vm)

	w.learned(ctx, t, d, "VM destroyed", func() error { return w.Remove(ctx, vm) })

	cheap := lab.Domain{Name: "crash", Cheap: true, Metadata: lab.Annotation(`ipv4="198.18.32.8" ipv6="2001:db8:3200::8"`)}
	two := []string{"198.18.32.8", "2001:db8:3200::8"}
	w.learned(ctx, t, d, "another VM started", func() error { return w.Run(ctx, cheap) }, two...)
	w.learned(ctx, t, d, "its QEMU killed", func() error { return w.KillQEMU(ctx, cheap.Name) })
	must(t, w.Remove(ctx, cheap.Name))

	for _, n := range nodes {
		must(t, d.end(n, syscall.SIGTERM))
	}
	for _, n := range nodes {
		must(t, lab.Wait(ctx, func() error {
			left, err := routes(ctx, n, d.protocol(), every)
			if err == nil && len(left) > 0 {
				err = fmt.Errorf("%s has left %q on %s", d.name(), left, n.Name)
			}
			return err
		}))
	}
}

// reached pings from the second host, from the container on it and, by way of the
// router, from the internet.
func reached(ctx context.Context, t *testing.T, w *world, addrs ...string) {
	t.Helper()
	for _, n := range []*lab.Node{w.hv2, w.peer, w.Inet} {
		for _, a := range addrs {
			if err := n.Ping(ctx, a); err != nil {
				t.Fatalf("from %s: %v\n%s", n.Name, err, w.daemonLogs())
			}
		}
	}
}

// ownTime is what the daemon takes for a route that just goes and comes, of the
// second host: what the steps with VMs are to be measured by.
func ownTime(ctx context.Context, t *testing.T, w *world, d daemon) {
	t.Helper()
	const route = "198.18.32.200 dev vm-peer proto 32 metric 1024"
	for _, there := range []bool{false, true} {
		step, command := "a route deleted by hand on the second host", "del "
		if there {
			step, command = "and added", "add "
		}
		as := func(n *lab.Node, protocol string) func() error {
			return func() error {
				have, err := routes(ctx, n, protocol, every)
				if err == nil && slices.Contains(have, "198.18.32.200") != there {
					err = fmt.Errorf("%s has %q", n.Name, have)
				}
				return err
			}
		}
		w.step(ctx, t, d, step, func() error {
			_, err := w.hv2.Exec(ctx, strings.Fields("ip route "+command+route)...)
			return err
		}, [len(columns)]func() error{as(w.HV, d.protocol()), as(w.Router, d.protocol()), as(w.hv2, "32")})
	}
}

// bridge deletes the VM's bridge by hand, first with the agent, which makes it
// again and puts the tap back, then without.
func bridge(ctx context.Context, t *testing.T, w *world, d daemon, vm string) {
	t.Helper()
	name := lab.DefaultBridge(vm)
	index := func() string { return hv(ctx, t, w, "cat", "/sys/class/net/"+name+"/ifindex") }
	before := index()
	w.learned(ctx, t, d, "bridge deleted by hand", func() error {
		hv(ctx, t, w, "ip", "link", "del", name)
		return lab.Wait(ctx, func() error {
			if now, err := w.HV.ReadFile("/sys/class/net/" + name + "/ifindex"); err != nil || now == before {
				return fmt.Errorf("the agent has not made the bridge again: %w", err)
			}
			return nil
		})
	}, theirs...)
	reached(ctx, t, w, vm4, vm6, container, behind)

	must(t, w.KillAgent())
	w.learned(ctx, t, d, "bridge deleted by hand, no agent", func() error {
		hv(ctx, t, w, "ip", "link", "del", name)
		return nil
	})
	w.learned(ctx, t, d, "agent started", func() error { return w.StartAgent(ctx) }, theirs...)
	reached(ctx, t, w, vm4, vm6, container, behind)
}

// hv runs a command on the VM's host, which must succeed.
func hv(ctx context.Context, t *testing.T, w *world, args ...string) string {
	t.Helper()
	out, err := w.HV.Exec(ctx, args...)
	must(t, err)
	return out
}

// watch is what the kernel says of a node's routes.
type watch struct {
	node    *lab.Node
	log     string
	process *lab.Process
}

// watchRoutes watches from now on.
func watchRoutes(ctx context.Context, t *testing.T, n *lab.Node) *watch {
	t.Helper()
	w := &watch{node: n, log: "/var/log/routes-" + n.Name}
	must(t, n.WriteFile(w.log, "", 0o644))
	var err error
	w.process, err = n.Start(w.log, "ip", "monitor", "route")
	must(t, err)
	// It says when it has begun by nothing but what it hears.
	must(t, lab.Wait(ctx, func() error {
		if _, err := n.Exec(ctx, "ip", "route", "append", "blackhole", "198.18.77.0/24"); err != nil {
			return err
		}
		if _, err := n.Exec(ctx, "ip", "route", "del", "blackhole", "198.18.77.0/24"); err != nil {
			return err
		}
		log, err := n.ReadFile(w.log)
		if err == nil && log == "" {
			err = errors.New("ip monitor has not said anything")
		}
		return err
	}))
	return w
}

// none ends it, and fails the test when a VM's route was deleted meanwhile.
func (w *watch) none(t *testing.T) {
	t.Helper()
	must(t, w.process.Signal(syscall.SIGTERM))
	log, err := w.node.ReadFile(w.log)
	must(t, err)
	for line := range strings.Lines(log) {
		if rest, ok := strings.CutPrefix(line, "Deleted "); ok && announcedPrefix(rest) {
			t.Errorf("%s lost a route: %s", w.node.Name, line)
		}
	}
}
