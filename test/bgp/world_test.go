// Package bgp tests that routing daemons announce VMs and nothing else, by the
// configurations that slash32 ships for BIRD and FRR: a host with the agent, libvirt
// and a guest under QEMU, a second host, and a router between them that reflects
// their routes and forwards. It takes root, the packages that lab.Missing names,
// bird2, frr, and the binaries in bin/.
package bgp

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/slash32/slash32/test/lab"
)

// config has a network for each reason not to announce a route: "quiet" by its
// metric, the pool by that of what nobody uses of it.
const config = `
networks:
  default:
    uplink: fab0
  quiet:
    uplink: fab0
    announce: false
    ipv6_pool: 2001:db8:3200:f000::/56
`

// The fabric is one network that both hosts and the router are on.
const fabric = `
	ip -n rtr link add fab type bridge forward_delay 0 mcast_snooping 0
	ip link add fab0 type veth peer name to-hv netns rtr
	ip -n hv2 link add fab0 type veth peer name to-hv2 netns rtr
	for port in to-hv to-hv2; do ip -n rtr link set $port master fab up; done
	address() { # command number device
		$1 link set $3 addrgenmode none up
		$1 address add 10.99.0.$2/24 dev $3
		$1 address add 2001:db8:99::$2/64 dev $3 nodad
		$1 address add fe80::$2/64 dev $3 nodad
	}
	address "ip -n rtr" 1 fab
	address ip 11 fab0
	address "ip -n hv2" 12 fab0

	ip netns exec hv2 sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 \
		net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0
	ip -n hv2 route add default via 10.99.0.1
	ip -n hv2 route add default via 2001:db8:99::1
	ip -n inet route add 198.18.32.0/24 via 203.0.113.1
	ip -n inet route add 2001:db8:3200::/48 via 2001:db8:9::1

	# What the second host has instead of a VM, with the routes of one.
	ip -n hv2 link add vm-peer type veth peer name eth0 netns peer
	ip -n peer link set eth0 addrgenmode none up
	ip -n hv2 link set vm-peer addrgenmode none up
	ip -n hv2 address add 169.254.0.1/32 dev vm-peer
	ip -n hv2 address add fe80::1/64 dev vm-peer nodad
	ip -n peer address add 198.18.32.200/32 dev eth0
	ip -n peer address add 2001:db8:3200::200/128 dev eth0 nodad
	ip -n peer address add fe80::200/64 dev eth0 nodad
	ip -n peer route add 169.254.0.1 dev eth0
	ip -n peer route add default via 169.254.0.1
	ip -n peer route add default via fe80::1 dev eth0
	ip -n hv2 route add 198.18.32.200 dev vm-peer proto 32 metric 1024
	ip -n hv2 -6 route add 2001:db8:3200::200 dev vm-peer proto 32 metric 1024
`

// world is the lab and the table of what was done in it.
type world struct {
	*lab.Lab
	hv2, peer *lab.Node
	rows      []row
}

// columns are who is looked at.
var columns = [...]string{"VM's host", "router", "second host"}

// row is a line of the table: how long after a step each had the routes, or
// had them no more.
type row struct {
	daemon, step string
	after        [len(columns)]time.Duration
}

func makeWorld(ctx context.Context, t *testing.T) *world {
	t.Helper()
	bin, err := filepath.Abs("../../bin")
	must(t, err)
	if _, err := os.Stat(filepath.Join(bin, "slash32d")); err != nil {
		t.Fatalf("find what is to be tested: %v. Fix: make build", err)
	}
	for program, pkg := range map[string]string{"/usr/sbin/bird": "bird2", "/usr/lib/frr/bgpd": "frr"} {
		if _, err := os.Stat(program); err != nil {
			t.Fatalf("find a routing daemon: %v. Fix: apt-get install --no-install-recommends %s", err, pkg)
		}
	}
	l, err := lab.Up(ctx, lab.Options{BinDir: bin, Config: config})
	must(t, err)
	w := &world{Lab: l}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(l.Tails(25))
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	w.hv2, err = l.AddNode(ctx, "hv2")
	must(t, err)
	w.peer, err = l.AddNode(ctx, "peer")
	must(t, err)
	_, err = l.HV.Exec(ctx, "bash", "-euc", fabric)
	must(t, err)
	must(t, l.StartAgent(ctx))
	return w
}

// routes are the destinations of a node's routes in main that are so, sorted.
func routes(ctx context.Context, n *lab.Node, proto string, so func(words []string) bool) ([]string, error) {
	var all []string
	for _, family := range []string{"-4", "-6"} {
		out, err := n.Exec(ctx, "ip", family, "route", "show", "proto", proto)
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(out) {
			words := strings.Fields(line)
			if words[0] == "unreachable" {
				words = words[1:]
			}
			if so(words) {
				all = append(all, words[0])
			}
		}
	}
	slices.Sort(all)
	return all, nil
}

func every([]string) bool { return true }

// announced tells whether a route of protocol 32 is one to announce.
func announced(words []string) bool {
	i := slices.Index(words, "metric")
	return i > 0 && words[i+1] == "1024" && announcedPrefix(words[0])
}

// announcedPrefix tells whether a destination is of the prefixes to announce.
func announcedPrefix(dst string) bool {
	return strings.HasPrefix(dst, "198.18.32.") || strings.HasPrefix(dst, "2001:db8:3200:")
}

// learned does something and waits until the host has the routes of its VMs, and
// router and second host have them by BGP and no others: these are all that is
// announced. It notes when each had.
func (w *world) learned(ctx context.Context, t *testing.T, d daemon, step string, do func() error, vms ...string) {
	t.Helper()
	peer := []string{"198.18.32.200", "2001:db8:3200::200"}
	vms = slices.Sorted(slices.Values(vms))
	all := slices.Sorted(slices.Values(slices.Concat(vms, peer)))
	has := func(n *lab.Node, proto string, so func([]string) bool, want []string) error {
		have, err := routes(ctx, n, proto, so)
		if err == nil && !slices.Equal(have, want) {
			err = fmt.Errorf("%s has %q of protocol %s, want %q", n.Name, have, proto, want)
		}
		return err
	}
	checks := [len(columns)]func() error{
		func() error {
			return errors.Join(has(w.HV, "32", announced, vms), has(w.HV, d.protocol(), every, peer))
		},
		func() error { return has(w.Router, d.protocol(), every, all) },
		func() error { return has(w.hv2, d.protocol(), every, vms) },
	}
	w.step(ctx, t, d, step, do, checks)
}

// step does something, waits until all checks are nil and notes when each was.
func (w *world) step(ctx context.Context, t *testing.T, d daemon, step string, do func() error, checks [len(columns)]func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	start := time.Now()
	if err := do(); err != nil {
		t.Fatalf("%s: %v", step, err)
	}
	r := row{daemon: d.name(), step: step}
	g, ctx := errgroup.WithContext(ctx)
	for i, check := range checks {
		g.Go(func() error {
			err := lab.Wait(ctx, check)
			r.after[i] = time.Since(start)
			return err
		})
	}
	err := g.Wait()
	w.rows = append(w.rows, r)
	if err != nil {
		t.Fatalf("%s: %v\n%s", step, err, w.daemonLogs())
	}
}

// print writes the table to build/test/bgp.txt and the test's log.
func (w *world) print(t *testing.T) {
	var out strings.Builder
	table := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "daemon\tstep\t"+strings.Join(columns[:], "\t"))
	for _, r := range w.rows {
		fmt.Fprintf(table, "%s\t%s", r.daemon, r.step)
		for _, d := range r.after {
			fmt.Fprintf(table, "\t%.2f s", d.Seconds())
		}
		fmt.Fprintln(table)
	}
	_ = table.Flush()
	t.Log("\n" + out.String())
	dir := filepath.Join("..", "..", "build", "test")
	must(t, os.MkdirAll(dir, 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "bgp.txt"), []byte(out.String()), 0o644))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
