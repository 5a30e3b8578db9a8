package reconcile_test

import (
	"net/netip"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/slash32/slash32/pkg/config"
	"github.com/slash32/slash32/pkg/lease"
	"github.com/slash32/slash32/pkg/responder"
	"github.com/slash32/slash32/pkg/spool"
)

// configure replaces the agent by one with the default network's pool.
func (b *bed) configure(from config.Pool6) {
	b.Helper()
	c := config.Default()
	n := c.Networks[config.DefaultNetwork]
	n.Pool6 = from
	c.Networks[config.DefaultNetwork] = n
	b.config = c
	b.restart()
}

func (b *bed) gives(prefix string, valid time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.upstream, b.settled = spool.Given{}, true
	if prefix != "" {
		t := time.Now().Add(b.now + valid)
		b.upstream = spool.Given{Prefix: netip.MustParsePrefix(prefix), Preferred: t.Add(-valid / 2), Valid: t}
	}
}

const pooledVM = `<slash32:network xmlns:slash32='urn:slash32:domain:1'><interface><address ip="auto"/><prefix net="auto/64" mode="slaac"/><prefix net="auto/60" mode="delegate"/></interface></slash32:network>`

// routes6 are the IPv6 routes of ours.
func (b *bed) routes6() string {
	b.Helper()
	return b.sh("ip -6 route show table all proto 32")
}

func (b *bed) want(text string, want ...string) {
	b.Helper()
	for _, w := range want {
		w, not := strings.CutPrefix(w, "!")
		if regexp.MustCompile(w).MatchString(text) == not {
			b.Fatalf("%q there: %v; it is:\n%s", w, not, text)
		}
	}
}

// TestPool: a VM's address and prefixes come from the network's pool, stay what
// they are in the next agent, and follow the pool's prefix.
func TestPool(t *testing.T) {
	b := newBed(t)
	b.configure(config.Pool6{Prefix: netip.MustParsePrefix("2001:db8:1:f00::/56")})
	b.run(1, pooledVM)
	b.pass()
	b.want(b.routes6(),
		`(?m)^2001:db8:1:f00:\S+ dev s32-vm1 metric 1024`,
		`(?m)^2001:db8:1:f01::/64 dev s32-vm1 metric 1024`,
		`(?m)^unreachable 2001:db8:1:f10::/60 dev lo metric 3072`,
		`(?m)^unreachable 2001:db8:1:f00::/56 dev lo metric 4096`)
	before := b.routes6()
	b.restart()
	b.pass()
	if n := b.writes(); n != 0 || b.routes6() != before {
		t.Errorf("the next agent wrote %d times; routes\n%s\nbefore\n%s", n, b.routes6(), before)
	}
	binding, err := b.spool.Binding(id(1))
	if err != nil || len(binding.NICs[0].V6.Prefixes) != 2 || len(binding.NICs[0].V6.Addrs) != 1 {
		t.Fatalf("binding %+v: %v", binding, err)
	}

	b.configure(config.Pool6{Prefix: netip.MustParsePrefix("2001:db8:2::/56")})
	b.pass()
	b.want(b.routes6(), `(?m)^2001:db8:2:1::/64 dev s32-vm1`, `(?m)^2001:db8:1:f01::/64 dev s32-vm1`)
	binding, _ = b.spool.Binding(id(1))
	ps := binding.NICs[0].V6.Prefixes
	if len(ps) != 4 || ps[0].Deprecated || !ps[2].Deprecated || ps[2].Until == 0 || len(binding.NICs[0].V6.Addrs) != 1 {
		t.Errorf("binding %+v", binding.NICs[0].V6)
	}
	// The old address is on its way out as the prefixes are: the guest learns when it
	// ends, and it works until then.
	terms := binding.NICs[0].V6.Terms
	if len(terms) != 1 || !netip.MustParsePrefix("2001:db8:1:f00::/64").Contains(terms[0].Addr) || terms[0].Until != ps[2].Until {
		t.Fatalf("addresses %v end %+v", binding.NICs[0].V6.Addrs, terms)
	}
	old := regexp.QuoteMeta(terms[0].Addr.String())
	b.want(b.routes6(), `(?m)^`+old+` dev s32-vm1 metric 1024`)
	b.want(b.ours(), `guard6 { "s32-vm1" \. `+old+` }`, `neighbour `+old+` dev s32-vm1 lladdr 52:54:00:00:00:01`)
	b.later(3 * time.Hour)
	b.pass()
	b.want(b.routes6(), `(?m)^2001:db8:2:1::/64 dev s32-vm1`, `!2001:db8:1:`)
	b.want(b.ours(), `!`+old)
	if binding, _ = b.spool.Binding(id(1)); len(binding.NICs[0].V6.Terms) != 0 {
		t.Errorf("after three hours: %+v", binding.NICs[0].V6)
	}

	b.end(1)
	b.pass()
	b.want(b.routes6(), `!s32-vm1`)
	b.run(1, pooledVM)
	b.pass()
	b.want(b.routes6(), `(?m)^2001:db8:2:1::/64 dev s32-vm1`)
}

// TestUpstream: while the router upstream is not known the VM has nothing, without
// one it has a unique local prefix that stays the same, and what the router gives
// takes that one's place.
func TestUpstream(t *testing.T) {
	b := newBed(t)
	b.configure(config.Pool6{Upstream: "up0"})
	b.run(1, pooledVM)
	b.pass()
	b.want(b.routes6(), `!s32-vm1`)
	b.want(b.problems(0), "W211")

	b.gives("", 0)
	b.pass()
	b.want(b.routes6(), `(?m)^fd[0-9a-f:]+1::/64 dev s32-vm1`)
	local := regexp.MustCompile(`(?m)^fd[0-9a-f]+:[0-9a-f]+:[0-9a-f]+:1::/64`).FindString(b.routes6())
	b.want(b.log.String(), "which this host has made and keeps")

	b.gives("2001:db8:1:f00::/56", time.Hour)
	b.pass()
	b.want(b.routes6(), `(?m)^2001:db8:1:f01::/64 dev s32-vm1`, `(?m)^`+local)
	// What the router gives is for as long as it says, addresses and prefixes.
	binding, err := b.spool.Binding(id(1))
	if err != nil {
		t.Fatal(err)
	}
	v := binding.NICs[0].V6
	preferred, until := b.upstream.Preferred.Unix(), b.upstream.Valid.Unix()
	if len(v.Addrs) != 1 || len(v.Terms) != 2 || v.Terms[0] != (responder.Term{Addr: v.Addrs[0], Preferred: preferred, Until: until}) ||
		v.Prefixes[0].Preferred != preferred || v.Prefixes[1].Preferred != preferred || v.Prefixes[1].Until != until {
		t.Errorf("binding %+v, given %+v", v, b.upstream)
	}
	if n := b.loop.Status().VMs[0].NICs[0]; len(n.IPv6) != 1 || n.IPv6[0] != v.Addrs[0].String() || len(n.Deprecated) != 1 || !strings.HasPrefix(n.Deprecated[0], "fd") {
		t.Errorf("status has %v, deprecated %v", n.IPv6, n.Deprecated)
	}
	b.later(50 * time.Minute)
	b.gives("2001:db8:1:f00::/56", time.Hour) // renewed
	b.pass()
	b.later(50 * time.Minute)
	b.pass()
	b.want(b.routes6(), `(?m)^2001:db8:1:f01::/64 dev s32-vm1`)
	b.later(30 * time.Minute) // not renewed
	b.gives("", 0)
	b.pass()
	b.want(b.routes6(), `(?m)^`+local, `!2001:db8:1:`)
}

// TestRetired: a prefix that is taken out of the annotation is deprecated, and
// forgotten after two hours.
func TestRetired(t *testing.T) {
	b := newBed(t)
	vm := func(prefixes string) string {
		return `<slash32:network xmlns:slash32='urn:slash32:domain:1'><interface><address ip="2001:db8::7"/>` + prefixes + `</interface></slash32:network>`
	}
	b.run(1, vm(`<prefix net="2001:db8:1::/64" mode="slaac"/>`))
	b.pass()
	b.want(b.routes6(), `(?m)^2001:db8:1::/64 dev s32-vm1`)
	b.run(1, vm(""))
	b.loop.Poke("libvirt", true)
	b.pass()
	b.want(b.routes6(), `!2001:db8:1::/64`)
	prefixes := func() responder.Prefixes {
		binding, err := b.spool.Binding(id(1))
		if err != nil {
			t.Fatal(err)
		}
		return binding.NICs[0].V6.Prefixes
	}
	if ps := prefixes(); len(ps) != 1 || !ps[0].Deprecated {
		t.Errorf("prefixes %+v", ps)
	}
	b.restart()
	b.pass()
	if ps := prefixes(); len(ps) != 1 || !ps[0].Deprecated {
		t.Errorf("with the next agent: prefixes %+v", ps)
	}
	b.later(3 * time.Hour)
	b.pass()
	if ps := prefixes(); len(ps) != 0 {
		t.Errorf("after three hours: prefixes %+v", ps)
	}
}

// TestDelegation: what the responder has delegated is routed behind the guest until
// it ends, also by the next agent, and the user's program is told.
func TestDelegation(t *testing.T) {
	b := newBed(t)
	b.configure(config.Pool6{Prefix: netip.MustParsePrefix("2001:db8:1:f00::/56")})
	b.run(1, pooledVM)
	b.pass()
	soon := time.Now().Add(time.Hour).Unix()
	inside := lease.Prefix{Prefix: netip.MustParsePrefix("2001:db8:1:f12::/64"), Via: netip.MustParseAddr("fe80::7"), Expires: soon}
	outside := lease.Prefix{Prefix: netip.MustParsePrefix("2001:db8:1:f20::/64"), Via: netip.MustParseAddr("fe80::7"), Expires: soon}
	b.lease(1, lease.NIC{Prefixes: []lease.Prefix{inside, outside}})
	b.pass()
	b.want(b.routes6(), `(?m)^2001:db8:1:f12::/64 via fe80::7 dev s32-vm1 metric 1024`, `!2001:db8:1:f20`)
	b.want(b.ours(), `guard6 { "s32-vm1" \. 2001:db8:1:f12::/64 }`, `neighbour fe80::7 dev s32-vm1 lladdr 52:54:00:00:00:01`)
	if len(b.prefixes) != 1 || b.prefixes[0].Prefix != inside.Prefix || b.prefixes[0].Name != "vm1" {
		t.Errorf("told: %v", b.prefixes)
	}
	if n := b.loop.Status().VMs[0].NICs[0]; len(n.Delegated) != 1 || len(n.Prefixes) != 2 {
		t.Errorf("status %+v", n)
	}

	// As after the host was booted: no run directory, no routes, a new agent.
	if err := os.RemoveAll(b.spool.Run + "/vm"); err != nil {
		t.Fatal(err)
	}
	b.sh("ip -6 route del 2001:db8:1:f12::/64")
	b.restart()
	b.pass()
	b.want(b.routes6(), `(?m)^2001:db8:1:f12::/64 via fe80::7 dev s32-vm1`)

	b.later(90 * time.Minute)
	b.pass()
	b.want(b.routes6(), `!f12`)
	b.want(b.ours(), `!f12`)
	if len(b.prefixes) != 0 {
		t.Errorf("told: %v", b.prefixes)
	}
}

// TestHostilePrefixes: a guest, or a server that it is relayed to, cannot have what
// is not its own.
func TestHostilePrefixes(t *testing.T) {
	b := newBed(t)
	b.run(1, relayedVM)
	b.run(2, annotated("ipv6='2001:db8:42::7'"))
	b.pass()
	soon := time.Now().Add(time.Hour).Unix()
	ll, p := netip.MustParseAddr("fe80::7"), netip.MustParsePrefix
	b.lease(1, lease.NIC{Prefixes: []lease.Prefix{
		{Prefix: p("2001:db8:42::/64"), Via: ll, Expires: soon},
		{Prefix: p("2001:db8:43::/64"), Via: netip.MustParseAddr("2001:db8::1"), Expires: soon},
		{Prefix: p("fe80::/64"), Via: ll, Expires: soon},
		{Prefix: p("2001:db8::/32"), Via: ll, Expires: soon},
		{Prefix: p("10.0.0.0/8"), Via: ll, Expires: soon},
		{Prefix: p("2001:db8:44::/56"), Via: ll, Expires: soon},
	}})
	b.pass()
	b.want(b.routes6(), `(?m)^2001:db8:44::/56 via fe80::7 dev s32-vm1`, `!2001:db8:42::/64`, `!2001:db8:43`, `!2001:db8::/32`, `!fe80::/64 via`)
	b.want(b.problems(0), "E101.*overlaps address 2001:db8:42::7", "W209.*2001:db8:43::/64 was asked for from 2001:db8::1")
}
