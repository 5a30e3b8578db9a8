package pool_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/slash32/slash32/pkg/config"
	"github.com/slash32/slash32/pkg/intent"
	"github.com/slash32/slash32/pkg/mac"
	"github.com/slash32/slash32/pkg/pool"
	"github.com/slash32/slash32/pkg/problem"
)

var (
	byValue = cmp.Options{
		cmp.Comparer(func(x, y netip.Addr) bool { return x == y }),
		cmp.Comparer(func(x, y netip.Prefix) bool { return x == y }),
	}
	t0    = time.Unix(1_800_000_000, 0)
	never time.Time
)

func id(n byte) uuid.UUID { return uuid.UUID{15: n} }

// vm is a VM with one NIC on network lan that asks for an address and for prefixes
// of those lengths.
func vm(n byte, auto ...uint8) *intent.VM {
	nic := intent.NIC{MAC: mac.Addr{0x52, 0x54, 0, 0, 0, n}, Network: config.Network{Name: "lan"}, Auto6: true, Line: 4}
	for i, a := range auto {
		nic.Prefixes = append(nic.Prefixes, intent.Prefix{Auto: a, Mode: "delegate", Length: 64, Line: 5 + i})
	}
	return &intent.VM{UUID: id(n), Name: fmt.Sprintf("web%d", n), NICs: []intent.NIC{nic}}
}

// got is what a VM has, in words.
func got(t *testing.T, p *pool.Pool, v *intent.VM, now time.Time) string {
	t.Helper()
	_, problems := p.Resolve(v, "lan", now)
	if _, err := pool.Encode(*p); err != nil {
		t.Errorf("the pool is not valid any more: %v", err)
	}
	var s []string
	for _, a := range slices.Concat(v.NICs[0].Addrs6, v.NICs[0].Old6) {
		w := a.String()
		for _, x := range v.NICs[0].Terms {
			if x.Addr == a {
				w += ends(x.Preferred, x.Until)
			}
		}
		s = append(s, w)
	}
	for _, x := range v.NICs[0].Prefixes {
		w := x.Net.String()
		if x.Deprecated {
			w += " deprecated"
		}
		s = append(s, w+ends(x.Preferred, x.Until))
	}
	for _, x := range problems {
		s = append(s, string(x.Code))
	}
	return strings.Join(s, ", ")
}

// ends is like " +14400s", or " +3600s +14400s" with the end of the preferred
// lifetime.
func ends(preferred, until int64) (s string) {
	for _, at := range []int64{preferred, until} {
		if at != 0 {
			s += fmt.Sprintf(" +%ds", at-t0.Unix())
		}
	}
	return s
}

func want(t *testing.T, what, have, want string) {
	t.Helper()
	if have != want {
		t.Errorf("%s:\n have %s\n want %s", what, have, want)
	}
}

func number(t *testing.T, p *pool.Pool, prefix string, preferred, valid, now time.Time) {
	t.Helper()
	var x netip.Prefix
	if prefix != "" {
		x = netip.MustParsePrefix(prefix)
	}
	if _, err := p.Renumber(x, preferred, valid, now); err != nil {
		t.Fatal(err)
	}
}

// The host parts of VMs 1 to 3: a VM finds the same when the pool is lost.
const host1, host2, host3 = "ab3f:8066:2054:4624", "c961:aa56:4404:8704", "8bd3:35be:6b7f:faf0"

func TestResolve(t *testing.T) {
	for _, c := range []struct {
		name, base string
		asks       [][]uint8 // of VM 1 and so on
		want       []string
	}{
		{"first fit, aligned, behind the addresses", "2001:db8::/56", [][]uint8{{64}, {60, 64}, {57, 64}}, []string{
			"2001:db8::" + host1 + ", 2001:db8:0:1::/64",
			"2001:db8::" + host2 + ", 2001:db8:0:10::/60, 2001:db8:0:2::/64",
			"2001:db8::" + host3 + ", 2001:db8:0:80::/57, 2001:db8:0:3::/64"}},
		{"a /64 has addresses only", "2001:db8::/64", [][]uint8{{}, {64}}, []string{
			"2001:db8::" + host1, "2001:db8::" + host2 + ", E113"}},
		{"a /63 has one /64", "2001:db8::/63", [][]uint8{{64}, {64}}, []string{
			"2001:db8::" + host1 + ", 2001:db8:0:1::/64", "2001:db8::" + host2 + ", E113"}},
		{"a /60", "2001:db8::/60", [][]uint8{{61}, {62}, {60, 61, 80, 63}}, []string{
			"2001:db8::" + host1 + ", 2001:db8:0:8::/61", "2001:db8::" + host2 + ", 2001:db8:0:4::/62",
			"2001:db8::" + host3 + ", 2001:db8:0:2::/63, E113, E113, E113"}},
		{"longer than a /64", "2001:db8::/96", [][]uint8{{}}, []string{"2001:db8::2054:4624"}},
		{"no base", "", [][]uint8{{64, 64}}, []string{"W211"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var p pool.Pool
			if c.base != "" {
				number(t, &p, c.base, never, never, t0)
			}
			var first []*intent.VM
			for i, auto := range c.asks {
				v := vm(byte(i+1), auto...)
				want(t, v.Name, got(t, &p, v, t0), c.want[i])
				first = append(first, v)
			}
			// Again, the other way round and from the file: nothing changes.
			b, err := pool.Encode(p)
			if err != nil {
				t.Fatal(err)
			}
			if p, err = pool.Decode(b); err != nil {
				t.Fatal(err)
			}
			for i := len(first) - 1; i >= 0; i-- {
				again := vm(byte(i+1), c.asks[i]...)
				changed, _ := p.Resolve(again, "lan", t0.Add(time.Minute))
				if d := cmp.Diff(first[i], again, byValue); d != "" || changed {
					t.Errorf("again: changed %v (-first +again):\n%s", changed, d)
				}
			}
		})
	}
}

func TestProblemsSayWhoWhatWhyAndHow(t *testing.T) {
	var p pool.Pool
	_, none := p.Resolve(vm(1, 64), "lan", t0)
	number(t, &p, "2001:db8::/64", never, never, t0)
	_, small := p.Resolve(vm(1, 64), "lan", t0)
	number(t, &p, "2001:db8:1::/60", never, never, t0)
	_, large := p.Resolve(vm(1, 60), "lan", t0)
	_, long := p.Resolve(vm(1, 80), "lan", t0)
	_, full := p.Resolve(vm(1, 61, 61), "lan", t0)
	for _, c := range []struct {
		have problem.List
		want string
	}{
		{none, `web1: W211 line 4: network "lan" has no IPv6 prefix at the moment to take auto from; the VM starts without and gets it when there is one. Fix: see why`},
		{small, `web1: E113 line 5: the pool 2001:db8::/64 of network "lan" has room for single addresses only, not for a /64. Fix: write ipv6="auto" without`},
		{large, `web1: E113 line 5: the pool 2001:db8:1::/60 of network "lan" cannot have a /60; its first /64 is for single addresses. Fix: ask for a prefix longer than /60`},
		{long, `web1: E113 line 5: a prefix of /80 is not taken from a pool; the longest is /64. Fix: write net="auto/64"`},
		{full, `web1: E113 line 6: the pool 2001:db8:1::/60 of network "lan" has no /61 left. Fix: undefine VMs`},
	} {
		if len(c.have) != 1 || !strings.HasPrefix(c.have[0].String(), c.want) {
			t.Errorf("have %v\nwant %s", c.have, c.want)
		}
	}
}

func TestRenumber(t *testing.T) {
	var p pool.Pool
	number(t, &p, "2001:db8:1::/56", t0.Add(time.Hour), t0.Add(4*time.Hour), t0)
	want(t, "at first", got(t, &p, vm(1, 64, 60), t0),
		"2001:db8:1:0:"+host1+" +3600s +14400s, 2001:db8:1:1::/64 +3600s +14400s, 2001:db8:1:10::/60 +3600s +14400s")
	number(t, &p, "2001:db8:1::/56", t0.Add(2*time.Hour), t0.Add(5*time.Hour), t0)
	want(t, "renewed", got(t, &p, vm(1, 64), t0), "2001:db8:1:0:"+host1+" +7200s +18000s, 2001:db8:1:1::/64 +7200s +18000s")
	want(t, "after its preferred lifetime", got(t, &p, vm(1, 64), t0.Add(2*time.Hour)), "2001:db8:1:0:"+host1+" +7200s +18000s, 2001:db8:1:1::/64 deprecated +7200s +18000s")

	number(t, &p, "2001:db8:2::/56", never, never, t0.Add(time.Hour))
	want(t, "another prefix", got(t, &p, vm(1, 64), t0.Add(time.Hour)),
		"2001:db8:2:0:"+host1+", 2001:db8:1:0:"+host1+" +10800s, 2001:db8:2:1::/64, 2001:db8:1:1::/64 deprecated +10800s")
	want(t, "who comes later has nothing of what goes", got(t, &p, vm(2, 64), t0.Add(time.Hour)), "2001:db8:2:0:"+host2+", 2001:db8:2:2::/64")

	// A smaller one: what fits stays, the rest moves, and keeps its old place in
	// what goes.
	want(t, "another length", got(t, &p, vm(1, 64, 60), t0.Add(time.Hour)),
		"2001:db8:2:0:"+host1+", 2001:db8:1:0:"+host1+" +10800s, 2001:db8:2:1::/64, 2001:db8:2:10::/60, 2001:db8:1:1::/64 deprecated +10800s")
	number(t, &p, "2001:db8:3::/60", never, never, t0.Add(2*time.Hour))
	want(t, "a smaller base", got(t, &p, vm(1, 64, 60), t0.Add(2*time.Hour)),
		"2001:db8:3:0:"+host1+", 2001:db8:2:0:"+host1+" +14400s, 2001:db8:1:0:"+host1+" +10800s, 2001:db8:3:1::/64, "+
			"2001:db8:2:1::/64 deprecated +14400s, 2001:db8:1:1::/64 deprecated +10800s, 2001:db8:2:10::/60 deprecated +14400s, E113")
	want(t, "as time goes", got(t, &p, vm(1, 64), t0.Add(3*time.Hour)), "2001:db8:3:0:"+host1+", 2001:db8:2:0:"+host1+
		" +14400s, 2001:db8:3:1::/64, 2001:db8:2:1::/64 deprecated +14400s")
	want(t, "and it is over", got(t, &p, vm(1, 64), t0.Add(4*time.Hour)), "2001:db8:3:0:"+host1+", 2001:db8:3:1::/64")
	if !p.Expire(t0.Add(4*time.Hour)) || len(p.Bases) != 1 || p.Expire(t0.Add(4*time.Hour)) {
		t.Errorf("bases %v", p.Bases)
	}

	// Back to one that is on its way out, and then to none.
	number(t, &p, "2001:db8:2::/56", never, never, t0.Add(5*time.Hour))
	number(t, &p, "2001:db8:3::/60", never, never, t0.Add(5*time.Hour))
	want(t, "there and back", got(t, &p, vm(1, 64), t0.Add(5*time.Hour)),
		"2001:db8:3:0:"+host1+", 2001:db8:2:0:"+host1+" +25200s, 2001:db8:3:1::/64, 2001:db8:2:1::/64 deprecated +25200s")
	number(t, &p, "", never, never, t0.Add(5*time.Hour))
	want(t, "withdrawn", got(t, &p, vm(1, 64), t0.Add(5*time.Hour)),
		"2001:db8:3:0:"+host1+" +25200s, 2001:db8:2:0:"+host1+" +25200s, 2001:db8:3:1::/64 deprecated +25200s, 2001:db8:2:1::/64 deprecated +25200s, W211")
	want(t, "and over", got(t, &p, vm(1, 64), t0.Add(7*time.Hour)), "W211")
	number(t, &p, "2001:db8:4::/56", t0, t0, t0.Add(7*time.Hour))
	want(t, "one whose time is over", got(t, &p, vm(1, 64), t0.Add(7*time.Hour)), "W211")
	number(t, &p, "2001:db8:4::/56", never, never, t0.Add(7*time.Hour))
	want(t, "the same place again", got(t, &p, vm(1, 64), t0.Add(7*time.Hour)), "2001:db8:4:0:"+host1+", 2001:db8:4:1::/64")

	// An overlapping one.
	number(t, &p, "2001:db8:4:10::/60", never, never, t0.Add(8*time.Hour))
	want(t, "a part of the old one", got(t, &p, vm(1, 64), t0.Add(8*time.Hour)), "2001:db8:4:10:"+host1+", 2001:db8:4:0:"+host1+
		" +36000s, 2001:db8:4:11::/64, 2001:db8:4:1::/64 deprecated +36000s")
	number(t, &p, "2001:db8:5::/80", never, never, t0.Add(8*time.Hour))
	want(t, "one too small for the host part", got(t, &p, vm(1), t0.Add(8*time.Hour)), "2001:db8:5::8066:2054:4624, 2001:db8:4:10:"+host1+" +36000s, 2001:db8:4:0:"+host1+" +36000s")
}

// TestRenumberOverlapping: nobody has what is somebody's of a newer base, and who
// comes is given what nobody has, as long as there is any.
func TestRenumberOverlapping(t *testing.T) {
	var p pool.Pool
	number(t, &p, "2001:db8:1::/56", never, never, t0)
	two := func(n byte) *intent.VM { return vm(n, 64, 63) }
	want(t, "the first VM", got(t, &p, two(1), t0), "2001:db8:1:0:"+host1+", 2001:db8:1:1::/64, 2001:db8:1:2::/63")
	want(t, "the second VM", got(t, &p, two(2), t0), "2001:db8:1:0:"+host2+", 2001:db8:1:4::/64, 2001:db8:1:6::/63")

	number(t, &p, "2001:db8:1:4::/62", never, never, t0)
	const old = " +7200s"
	want(t, "what the first has of the old one is nobody's in the new one", got(t, &p, two(1), t0), "2001:db8:1:4:"+host1+", 2001:db8:1:0:"+host1+old+
		", 2001:db8:1:5::/64, 2001:db8:1:6::/63, 2001:db8:1:1::/64 deprecated"+old+", 2001:db8:1:2::/63 deprecated"+old)
	want(t, "the second's is the first's now, and there is no room", got(t, &p, two(2), t0), "2001:db8:1:4:"+host2+", 2001:db8:1:0:"+host2+old+", E113, E113")

	p = pool.Pool{}
	number(t, &p, "2001:db8:1:4::/62", never, never, t0)
	want(t, "in a small one", got(t, &p, vm(1, 64), t0), "2001:db8:1:4:"+host1+", 2001:db8:1:5::/64")
	number(t, &p, "2001:db8:1::/60", never, never, t0)
	want(t, "in a wider one", got(t, &p, vm(1, 64), t0), "2001:db8:1:0:"+host1+", 2001:db8:1:4:"+host1+old+
		", 2001:db8:1:1::/64, 2001:db8:1:5::/64 deprecated"+old)
	want(t, "who comes is not given what another had", got(t, &p, vm(2, 62, 62), t0), "2001:db8:1:0:"+host2+", 2001:db8:1:8::/62, 2001:db8:1:c::/62")
	want(t, "unless there is nothing else", got(t, &p, vm(3, 62), t0), "2001:db8:1:0:"+host3+", 2001:db8:1:4::/62")
	want(t, "then he loses it", got(t, &p, vm(1, 64), t0), "2001:db8:1:0:"+host1+", 2001:db8:1:1::/64")

	p = pool.Pool{}
	number(t, &p, "2001:db8:1::/60", never, never, t0)
	want(t, "in the first part", got(t, &p, vm(1, 64), t0), "2001:db8:1:0:"+host1+", 2001:db8:1:1::/64")
	number(t, &p, "2001:db8:1::/56", never, never, t0)
	want(t, "the same place of the whole is the same", got(t, &p, vm(1, 64), t0), "2001:db8:1:0:"+host1+", 2001:db8:1:1::/64")
}

func TestRenumberRefuses(t *testing.T) {
	for _, s := range []string{"10.0.0.0/8", "2001:db8::1/64", "fe80::/64", "ff00::/8", "2001:db8::/97", "::/8", "::ffff:0:0/96", "2000::/7"} {
		var p pool.Pool
		if changed, err := p.Renumber(netip.MustParsePrefix(s), never, never, t0); err == nil || changed || len(p.Bases) > 0 {
			t.Errorf("%s: %v, %v", s, changed, err)
		}
	}
}

func TestOnlyThisNetworkAndWhatIsAsked(t *testing.T) {
	var p pool.Pool
	number(t, &p, "2001:db8::/56", never, never, t0)
	v := vm(1, 64)
	given := intent.Prefix{Net: netip.MustParsePrefix("2001:db8:9::/64"), Mode: "slaac"}
	v.NICs[0].Prefixes = append([]intent.Prefix{given}, v.NICs[0].Prefixes...)
	v.NICs[0].Addrs6 = []netip.Addr{netip.MustParseAddr("2001:db8:9::1")}
	other := vm(1, 64).NICs[0]
	other.MAC, other.Network.Name = mac.Addr{2, 5: 9}, "dmz"
	v.NICs = append(v.NICs, other)
	want(t, "both", got(t, &p, v, t0), "2001:db8:9::1, 2001:db8::"+host1+", 2001:db8:9::/64, 2001:db8:0:1::/64")
	if d := cmp.Diff(other, v.NICs[1], byValue); d != "" {
		t.Errorf("the other network's NIC (-want +got):\n%s", d)
	}
	want(t, "twice", got(t, &p, v, t0), "2001:db8:9::1, 2001:db8::"+host1+", 2001:db8:9::/64, 2001:db8:0:1::/64")
}

func TestWhatIsNotAskedIsFree(t *testing.T) {
	var p pool.Pool
	number(t, &p, "2001:db8::/60", never, never, t0)
	got(t, &p, vm(1, 61), t0)
	if changed, problems := p.Resolve(&intent.VM{UUID: id(1)}, "lan", t0); changed || len(problems) > 0 { // could not be derived
		t.Errorf("without NICs: changed, %v", problems)
	}
	want(t, "kept", got(t, &p, vm(2, 61), t0), "2001:db8::"+host2+", E113")
	got(t, &p, vm(1), t0)
	want(t, "free", got(t, &p, vm(2, 61), t0), "2001:db8::"+host2+", 2001:db8:0:8::/61")
	want(t, "another length", got(t, &p, vm(2, 64), t0), "2001:db8::"+host2+", 2001:db8:0:1::/64")
	if !p.Free(id(2)) || p.Free(id(2)) || len(p.Blocks) != 1 {
		t.Errorf("left: %v", p.Blocks)
	}
}

func TestSweep(t *testing.T) {
	var p pool.Pool
	number(t, &p, "2001:db8::/56", never, never, t0)
	got(t, &p, vm(1, 64), t0)
	got(t, &p, vm(2, 64), t0)
	day := func(n int) time.Time { return t0.Add(time.Duration(n) * 24 * time.Hour) }
	for _, c := range []struct {
		at      time.Time
		defined []uuid.UUID
		changed bool
		left    int
	}{
		{day(0).Add(time.Hour), []uuid.UUID{id(1), id(2)}, false, 4}, // written once a day
		{day(1), []uuid.UUID{id(1), id(2)}, true, 4},
		{day(7), []uuid.UUID{id(1)}, true, 4},
		{day(8), []uuid.UUID{id(1)}, true, 2},
		{day(8), []uuid.UUID{id(1)}, false, 2},
		{day(16), nil, true, 0},
	} {
		if changed := p.Sweep(c.defined, c.at); changed != c.changed || len(p.Blocks) != c.left {
			t.Errorf("%v: changed %v, left %v", c.at, changed, p.Blocks)
		}
	}
}

func TestULA(t *testing.T) {
	got, err := pool.ULA(bytes.NewReader([]byte{1, 2, 3, 4, 5}))
	if err != nil || got != netip.MustParsePrefix("fd01:203:405::/48") || pool.Usable(got) != nil {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := pool.ULA(bytes.NewReader(nil)); err == nil {
		t.Error("without random")
	}
}

func TestDecodeRefuses(t *testing.T) {
	const bases, block = `"bases":[{"number":1,"prefix":"2001:db8::/56"}]`, `{"vm":"00000000-0000-0000-0000-000000000001","mac":"52:54:00:00:00:01","use":"prefix:0","at":"0:0:0:1::/64","first":1,"seen":1}`
	with := func(old, new string) string {
		return `{"version":1,` + bases + `,"blocks":[` + strings.Replace(block, old, new, 1) + `]}`
	}
	if _, err := pool.Decode([]byte(with("", ""))); err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{
		``, `{}`, `null`, `{"version":2,"bases":[],"blocks":[]}`, `{"version":1,"bases":[],"blocks":[],"more":1}`, with("", "") + "x",
		`{"version":1,"bases":[{"number":0,"prefix":"2001:db8::/56"}]}`,
		`{"version":1,"bases":[{"number":1,"prefix":"fe80::/56"}]}`,
		`{"version":1,"bases":[{"number":1,"prefix":"2001:db8::/56","until":-1}]}`,
		`{"version":1,"bases":[{"number":2,"prefix":"2001:db8::/56"},{"number":1,"prefix":"2001:db8:1::/56"}]}`,
		`{"version":1,"bases":[{"number":2,"prefix":"2001:db8::/56"},{"number":1,"prefix":"2001:db8::/56","deprecated":true}]}`,
		with("000000000001", "000000000000"), with("52:54:00:00:00:01", ""), with("prefix:0", "prefix:00"), with("prefix:0", "prefix:-1"),
		with("prefix:0", "addr"), with("prefix:0", "x"), with("0:0:0:1::/64", "::/64"), with("0:0:0:1::/64", "::/60"), with("0:0:0:1::/64", "0:0:0:1::/80"),
		with("0:0:0:1::/64", "2001::/64"), with("0:0:0:1::/64", "0:0:0:1::1/64"), with("0:0:0:1::/64", "10.0.0.0/24"), with("0:0:0:1::/64", ""),
		with(`"first":1`, `"first":0`), with(`"first":1`, `"first":3,"last":2`), with(`"seen":1`, `"seen":-1`),
		with("", block+","), with("", strings.Replace(strings.Replace(block, "0:0:0:1::/64", "0:0:0:2::/64", 1), "prefix:0", "prefix:1", 1)+","),
		with("", strings.Replace(block, "0:0:0:1::/64", "0:0:0:0:1::/64", 1)+","),
	} {
		if p, err := pool.Decode([]byte(s)); err == nil {
			t.Errorf("%s: %+v", s, p)
		}
	}
}

// TestWalk is some months in the life of a pool: whatever happens, it stays valid, no
// two VMs share anything, and who is there keeps what it has.
func TestWalk(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var p pool.Pool
	now := t0
	lengths := []uint8{57, 60, 62, 63, 64}
	asks := map[byte][]uint8{}
	for range 1000 {
		now = now.Add(time.Duration(r.IntN(300)) * time.Minute)
		switch n := byte(1 + r.IntN(20)); r.IntN(12) {
		case 0:
			prefix := netip.MustParsePrefix(fmt.Sprintf("2001:db8:%x:%x::/%d", r.IntN(6), r.IntN(3)<<r.IntN(9), []int{48, 56, 60, 64, 80}[r.IntN(5)])).Masked()
			number(t, &p, prefix.String(), never, now.Add(time.Duration(r.IntN(600))*time.Minute), now)
		case 1:
			p.Free(id(n))
			delete(asks, n)
		case 2:
			p.Sweep([]uuid.UUID{id(1), id(2), id(n)}, now)
		default:
			asks[n] = nil
			for range r.IntN(3) {
				asks[n] = append(asks[n], lengths[r.IntN(len(lengths))])
			}
		}
		for n, auto := range asks { // who is given something may take it from another
			p.Resolve(vm(n, auto...), "lan", now)
		}
		owner := map[netip.Prefix]string{}
		for n, auto := range asks {
			v, again := vm(n, auto...), vm(n, auto...)
			p.Resolve(v, "lan", now)
			if changed, _ := p.Resolve(again, "lan", now); changed {
				t.Fatalf("%s: changed twice", v.Name)
			}
			if d := cmp.Diff(v, again, byValue); d != "" {
				t.Fatalf("%s moved:\n%s", v.Name, d)
			}
			all := make([]netip.Prefix, 0, 8)
			for _, a := range slices.Concat(v.NICs[0].Addrs6, v.NICs[0].Old6) {
				all = append(all, netip.PrefixFrom(a, 128))
			}
			for _, x := range v.NICs[0].Prefixes {
				all = append(all, x.Net)
			}
			for _, x := range all {
				for y, whose := range owner {
					if x.Overlaps(y) {
						t.Fatalf("%s of %s and %s of %s overlap", x, v.Name, y, whose)
					}
				}
				owner[x] = v.Name
			}
		}
		if _, err := pool.Encode(p); err != nil {
			t.Fatal(err)
		}
	}
}

// FuzzDecode: what can be read can be written and read again, and used.
func FuzzDecode(f *testing.F) {
	var p pool.Pool
	for i, s := range []string{"2001:db8::/56", "2001:db8:1::/60", "fd00::/48"} {
		if _, err := p.Renumber(netip.MustParsePrefix(s), never, never, t0); err != nil {
			f.Fatal(err)
		}
		p.Resolve(vm(byte(i+1), 57, 64), "lan", t0)
	}
	b, err := pool.Encode(p)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"version":1,"bases":[],"blocks":[]}`))
	f.Add([]byte(`{"version":1,"bases":[{"number":18446744073709551615,"prefix":"2000::/8","until":9223372036854775807}],"blocks":[]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := pool.Decode(b)
		if err != nil {
			return
		}
		again, err := pool.Encode(p)
		if err != nil {
			t.Fatal(err)
		}
		q, err := pool.Decode(again)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(p, q, byValue); d != "" {
			t.Errorf("(-read +again):\n%s", d)
		}
		for n := byte(1); n < 4; n++ {
			q.Resolve(vm(n, 57, 64), "lan", t0)
		}
		if _, err := pool.Encode(q); err != nil {
			t.Errorf("%s, then %v", b, err)
		}
	})
}
