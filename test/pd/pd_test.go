// Package pd tests prefix delegation over all levels at once, with real parts: a
// border router with kea, a host with the agent, the responder and libvirt, a VM
// under QEMU that is a router itself, and a container behind it. It takes root, the
// packages that lab.Missing names, kea, and the binaries in bin/.
package pd

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/slash32/slash32/pkg/mac"
	"github.com/slash32/slash32/test/lab"
)

const config = `
networks:
  default:
    uplink: up0
    ipv6_pool: {upstream: up0, length_hint: 56}
hooks: {prefix: /etc/slash32/prefix}
`

// prefixHook is the user's program that is told of delegated prefixes.
const (
	prefixHook = `#!/bin/sh
echo "$SLASH32_ACTION $SLASH32_PREFIX $SLASH32_NEXT_HOP $SLASH32_VM" >>` + told + `
`
	told = "/var/log/prefixes"
)

const vm = "pdvm"

// world is the lab and what its levels have, as last looked at.
type world struct {
	*lab.Lab
	t      *testing.T
	ctx    context.Context
	border *border
	rows   []row
}

// row is a line of the table.
type row struct {
	step    string
	level   levels
	took    time.Duration
	silence string // the longest time without an answer, where that was looked for
}

// levels are what each level has.
type levels struct {
	border []netip.Prefix // routed to the host
	pools  []netip.Prefix // of the host's networks, as "slash32 status" says
	guest  []netip.Prefix // on the VM's lan0 and not deprecated
	routes []string       // of protocol 32 on the host
	in     error          // of a ping from the container to the internet
	out    error          // and of one to it
}

// look asks all levels.
func (w *world) look(ctx context.Context) (l levels, err error) {
	if l.border, err = w.border.delegated(ctx); err != nil {
		return l, err
	}
	status, err := w.Status(ctx)
	if err != nil {
		return l, err
	}
	for _, pool := range status.Pools {
		for _, word := range strings.FieldsFunc(pool, func(r rune) bool { return r == ' ' || r == ',' }) {
			if p, err := netip.ParsePrefix(word); err == nil {
				l.pools = append(l.pools, p)
			}
		}
	}
	table, err := w.HV.Exec(ctx, "ip", "-6", "route", "show", "proto", "32")
	if err != nil {
		return l, err
	}
	for line := range strings.Lines(table) {
		l.routes = append(l.routes, shortRoute(line))
	}
	slices.Sort(l.routes)
	if _, err := w.Virsh(ctx, "domid", vm); err != nil {
		l.in, l.out = err, err
		return l, nil // there is no guest
	}
	console := w.Console(vm)
	addrs, err := console.Run(ctx, "ip -6 -o address show dev lan0 scope global")
	if err != nil {
		return l, err
	}
	for line := range strings.Lines(addrs) {
		fields := strings.Fields(line)
		if len(fields) > 3 && !strings.Contains(line, "deprecated") {
			if p, err := netip.ParsePrefix(fields[3]); err == nil {
				l.guest = append(l.guest, p.Masked())
			}
		}
	}
	_, l.in = console.Run(ctx, "container ping -6 -c 1 -W 1 "+lab.Internet6)
	l.out = fmt.Errorf("the VM has no prefix")
	for _, p := range l.guest {
		_, l.out = w.Inet.Exec(ctx, "ping", "-n", "-c", "1", "-W", "1", container(p).String())
	}
	return l, nil
}

// container is the address of the container of a guest that has a prefix.
func container(p netip.Prefix) netip.Addr { return p.Addr().Next().Next() }

// shortRoute is a line of ip route without what is always the same.
func shortRoute(line string) string {
	var out []string
	for words := strings.Fields(line); len(words) > 0; words = words[1:] {
		switch words[0] {
		case "metric", "pref", "proto", "error":
			words = words[1:]
			continue
		case "onlink":
			continue
		}
		out = append(out, words[0])
	}
	return strings.TrimSuffix(strings.Join(out, " "), " dev lo")
}

// step does something and waits until all levels are as they have to be after it.
func (w *world) step(name string, do func() error, check func(levels) error) levels {
	w.t.Helper()
	start := time.Now()
	if err := do(); err != nil {
		w.t.Fatalf("%s: %v", name, err)
	}
	ctx, cancel := context.WithTimeout(w.ctx, time.Minute)
	defer cancel()
	var now levels
	said := ""
	err := lab.Wait(ctx, func() (err error) {
		if now, err = w.look(ctx); err == nil {
			err = check(now)
		}
		if err != nil && err.Error() != said {
			said = err.Error()
			w.t.Logf("%s, after %.1f s: %s", name, time.Since(start).Seconds(), said)
		}
		return err
	})
	w.rows = append(w.rows, row{step: name, level: now, took: time.Since(start)})
	if err != nil {
		w.t.Fatalf("%s: %v\n%+v", name, err, now)
	}
	return now
}

// whole is nil when a prefix of the pool goes down all levels and pings come through.
func (w *world) whole(pool netip.Prefix) func(levels) error {
	return func(l levels) error {
		switch {
		case len(l.guest) != 1:
			return fmt.Errorf("the VM has the prefixes %v, want one", l.guest)
		case !pool.Contains(l.guest[0].Addr()):
			return fmt.Errorf("the VM has %v, which is not of %v", l.guest[0], pool)
		case len(l.pools) != 1 || !pool.Contains(l.pools[0].Addr()) || !l.pools[0].Contains(l.guest[0].Addr()):
			return fmt.Errorf("the host's pools are %v, the VM has %v", l.pools, l.guest[0])
		case !slices.Equal(l.border, l.pools):
			return fmt.Errorf("the border routes %v to the host, whose pools are %v", l.border, l.pools)
		case l.in != nil:
			return fmt.Errorf("container to internet: %w", l.in)
		case l.out != nil:
			return fmt.Errorf("internet to container: %w", l.out)
		}
		return l.routed(l.guest[0])
	}
}

// routed is nil when the host has the route of a delegated prefix, and one only.
func (l levels) routed(p netip.Prefix) error {
	want := fmt.Sprintf("%s via %s dev %s", p, linkLocal(), lab.DefaultBridge(vm))
	n := 0
	for _, r := range l.routes {
		if r == want {
			n++
		}
	}
	if n != 1 {
		return fmt.Errorf("%d routes %q in\n%s", n, want, strings.Join(l.routes, "\n"))
	}
	return nil
}

// linkLocal is what the VM makes of its MAC.
func linkLocal() netip.Addr { return mac.MustParse(lab.DefaultMAC(vm, 0)).LinkLocal() }

// nothing is nil when the host has no route to anything within a prefix.
func (l levels) nothing(of netip.Prefix) error {
	for _, r := range l.routes {
		for _, word := range strings.Fields(r) {
			p, err := netip.ParsePrefix(word)
			if a, bad := netip.ParseAddr(word); bad == nil {
				p, err = netip.PrefixFrom(a, a.BitLen()), nil
			}
			if err == nil && of.Contains(p.Addr()) && p.Bits() >= of.Bits() {
				return fmt.Errorf("there is still the route %s", r)
			}
		}
	}
	return nil
}

// silent is nil when no ping comes through.
func (l levels) silent() error {
	if l.in == nil || l.out == nil {
		return fmt.Errorf("a ping came through: to the internet %v, from it %v", l.in, l.out)
	}
	return nil
}

// told waits until the user's program has been told so.
func (w *world) told(action string, p netip.Prefix) {
	w.t.Helper()
	line := fmt.Sprintf("%s %s %s %s\n", action, p, linkLocal(), vm)
	ctx, cancel := context.WithTimeout(w.ctx, time.Minute)
	defer cancel()
	if err := lab.Wait(ctx, func() error {
		text, err := w.HV.ReadFile(told)
		if err == nil && !strings.Contains(text, line) {
			err = fmt.Errorf("hooks.prefix was not told %q but %q", line, text)
		}
		return err
	}); err != nil {
		w.t.Error(err)
	}
}

func makeWorld(ctx context.Context, t *testing.T) *world {
	t.Helper()
	bin, err := filepath.Abs("../../bin")
	must(t, err)
	if _, err := os.Stat(filepath.Join(bin, "slash32d")); err != nil {
		t.Fatalf("find what is to be tested: %v. Fix: make build", err)
	}
	l, err := lab.Up(ctx, lab.Options{BinDir: bin, Config: config})
	must(t, err)
	border := &border{lab: l}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(l.Tails(40))
			t.Logf("== kea\n%s", border.log())
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	w := &world{Lab: l, t: t, ctx: ctx, border: border}
	must(t, l.HV.WriteFile("/etc/slash32/prefix", prefixHook, 0o755))
	for _, pool := range []netip.Prefix{firstPool, secondPool} {
		_, err := l.Inet.Exec(ctx, "ip", "-6", "route", "add", pool.String(), "via", "2001:db8:9::1")
		must(t, err)
		// What the border has delegated to nobody comes back to nobody.
		_, err = l.Router.Exec(ctx, "ip", "-6", "route", "add", "unreachable", pool.String())
		must(t, err)
	}
	must(t, w.border.start(ctx, firstPool))
	must(t, l.StartAgent(ctx))
	return w
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// print writes the table to build/test/pd.txt and the test's log.
func (w *world) print() {
	var out strings.Builder
	table := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "step\tdelegated at host\tat VM\troutes on host\tping in->out\tping out->in\ttime until so\tlongest silence")
	for _, r := range w.rows {
		routes := r.level.routes
		if len(routes) == 0 {
			routes = []string{"none"}
		}
		for i, route := range routes {
			if i == 0 {
				fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%.1f s\t%s\n", r.step, list(r.level.pools), list(r.level.guest), route,
					came(r.level.in), came(r.level.out), r.took.Seconds(), r.silence)
			} else {
				fmt.Fprintf(table, "\t\t\t%s\t\t\t\t\n", route)
			}
		}
	}
	_ = table.Flush()
	w.t.Log("\n" + out.String())
	dir := filepath.Join("..", "..", "build", "test")
	must(w.t, os.MkdirAll(dir, 0o755))
	must(w.t, os.WriteFile(filepath.Join(dir, "pd.txt"), []byte(out.String()), 0o644))
}

func list(prefixes []netip.Prefix) string {
	if len(prefixes) == 0 {
		return "none"
	}
	words := make([]string, len(prefixes))
	for i, p := range prefixes {
		words[i] = p.String()
	}
	return strings.Join(words, " ")
}

func came(err error) string {
	if err != nil {
		return "no"
	}
	return "yes"
}
