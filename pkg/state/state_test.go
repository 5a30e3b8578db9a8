package state_test

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/slash32/slash32/pkg/mac"
	"github.com/slash32/slash32/pkg/state"
)

var guest = mac.MustParse("52:54:00:ab:cd:01")

// vm fills in the objects of one VM on a bridge with one address.
func vm(s state.State, bridge, uuid, addr string) state.State {
	a := netip.MustParseAddr(addr)
	p := netip.PrefixFrom(a, a.BitLen())
	s.Links[bridge] = state.Link{Name: bridge, UUID: uuid, Guest: guest, MAC: mac.MustParse("02:73:6c:33:32:01"), MTU: 1500, Up: true}
	s.Sysctls["net/ipv4/conf/"+bridge+"/arp_ignore"] = "8"
	s.Addrs[state.Addr{Link: bridge, Prefix: netip.MustParsePrefix("169.254.0.1/32")}] = struct{}{}
	s.Neighs[state.NeighKey{Link: bridge, IP: a}] = guest
	s.Routes[state.Route{Dst: p, Table: 254, Metric: 1024, Link: bridge}] = struct{}{}
	s.Elems[state.Elem{Set: state.SetGuard4, Link: bridge, Addr: p}] = struct{}{}
	s.Elems[state.Elem{Set: state.SetMasq4, Link: "eth0", Addr: p}] = struct{}{}
	s.Elems[state.Elem{Set: state.SetSpoof4, Link: bridge}] = struct{}{}
	s.Skeleton = "v1"
	return s
}

func one() state.State { return vm(state.New(), "br1", "u1", "192.0.2.1") }

// v6 adds an address that is proxied, and a pool of which a part is delegated.
func v6(s state.State, bridge string) state.State {
	a, via := netip.MustParseAddr("2001:db8::7"), netip.MustParseAddr("fe80::7")
	host, part := netip.PrefixFrom(a, 128), netip.MustParsePrefix("2001:db8:1:10::/60")
	s.Routes[state.Route{Dst: host, Table: 254, Metric: 1024, Link: bridge}] = struct{}{}
	s.Routes[state.Route{Dst: part, Table: 254, Metric: 1024, Link: bridge, Via: via}] = struct{}{}
	s.Routes[state.Route{Dst: netip.MustParsePrefix("2001:db8:1::/56"), Table: 254, Metric: 1024, Kind: "unreachable"}] = struct{}{}
	s.Neighs[state.NeighKey{Link: bridge, IP: via}] = guest
	s.Proxies[state.NeighKey{Link: "eth0", IP: a}] = struct{}{}
	s.Elems[state.Elem{Set: state.SetGuard6, Link: bridge, Addr: host}] = struct{}{}
	s.Elems[state.Elem{Set: state.SetGuard6, Link: bridge, Addr: part}] = struct{}{}
	s.Elems[state.Elem{Set: state.SetMasq6, Link: "eth0", Addr: part}] = struct{}{}
	return s
}

func lines(changes []state.Change) string {
	var b strings.Builder
	for _, c := range changes {
		b.WriteString(c.String() + "\n")
	}
	return b.String()
}

func TestDiff(t *testing.T) {
	edit := func(s state.State, f func(s *state.State)) state.State {
		f(&s)
		return s
	}
	mark := func(s state.State, mark, table uint32) state.State {
		s.Elems[state.Elem{Set: state.SetMark, Link: "br1", Mark: mark}] = struct{}{}
		s.Rules[state.Rule{Family: 2, Priority: 32000, Table: table, SuppressDefault: true}] = struct{}{}
		s.Rules[state.Rule{Family: 10, Priority: 32400, Mark: mark, Table: table}] = struct{}{}
		return s
	}
	taps := func(s state.State, pairs ...string) state.State {
		for i := 0; i < len(pairs); i += 2 {
			s.Taps[pairs[i]] = pairs[i+1]
		}
		return s
	}
	hairpins := func(s state.State, names ...string) state.State {
		for _, n := range names {
			s.Hairpins[n] = struct{}{}
		}
		return s
	}
	for _, tt := range []struct {
		name       string
		have, want state.State
		changes    string
	}{
		{
			name:    "a tap in no bridge",
			have:    taps(one(), "vnet0", ""),
			want:    taps(one(), "vnet0", "br1"),
			changes: "add tap vnet0 master br1\n",
		},
		{
			name: "hairpins: of a tap that is put back, one that is there, elsewhere, gone, no longer wanted",
			have: hairpins(taps(one(), "vnet0", "", "vnet1", "br1", "vnet2", "br0", "vnet4", "br1"), "vnet4"),
			want: hairpins(taps(one(), "vnet0", "br1", "vnet1", "br1", "vnet2", "br1", "vnet3", "br1", "vnet4", "br1"), "vnet0", "vnet1", "vnet2", "vnet3"),
			changes: `add tap vnet0 master br1
add hairpin vnet0 master br1
add hairpin vnet1 master br1
delete hairpin vnet4 master br1
`,
		},
		{
			name: "taps that are gone, elsewhere, or not wanted",
			have: taps(one(), "vnet1", "br0", "vnet2", "br1", "vnet3", ""),
			want: taps(one(), "vnet0", "br1", "vnet1", "br1"),
		},
		{
			name: "a tap of a bridge that is made again",
			have: taps(state.State{Skeleton: "v1", Taps: map[string]string{}, Elems: one().Elems, Sysctls: one().Sysctls}, "vnet0", ""),
			want: taps(one(), "vnet0", "br1"),
			changes: `add link br1 mtu 1500 address 02:73:6c:33:32:01 group 32 alias slash32:u1:52:54:00:ab:cd:01 down
replace link br1 mtu 1500 address 02:73:6c:33:32:01 group 32 alias slash32:u1:52:54:00:ab:cd:01 up (was: down)
add address 169.254.0.1/32 dev br1
add neighbour 192.0.2.1 dev br1 lladdr 52:54:00:ab:cd:01 PERMANENT
add tap vnet0 master br1
add route 192.0.2.1 dev br1 table main proto 32 metric 1024
`,
		},
		{name: "nothing to nothing", have: state.State{}, want: state.State{}},
		{name: "the same", have: one(), want: one()},
		{
			name: "what is only read counts for nothing",
			have: edit(one(), func(s *state.State) {
				l := s.Links["br1"]
				l.Ports, l.Index = "vnet0", 7
				s.Links["br1"] = l
			}),
			want: one(),
		},
		{
			name: "from nothing",
			have: state.State{},
			want: edit(mark(one(), 0x200000, 100), func(s *state.State) {
				s.Sysctls["net/ipv4/ip_forward"] = "1"
				s.Sysctls["net/ipv6/conf/all/forwarding"] = "1"
				s.Sysctls["net/ipv6/conf/eth0/accept_ra"] = "2"
			}),
			changes: `add table inet slash32 v1
add element guard4 { "br1" . 192.0.2.1 }
add element marks { "br1" : 0x00200000 }
add element masq4 { "eth0" . 192.0.2.1 }
add element spoof4 { "br1" }
add link br1 mtu 1500 address 02:73:6c:33:32:01 group 32 alias slash32:u1:52:54:00:ab:cd:01 down
add sysctl net/ipv4/conf/br1/arp_ignore = 8
replace link br1 mtu 1500 address 02:73:6c:33:32:01 group 32 alias slash32:u1:52:54:00:ab:cd:01 up (was: down)
add sysctl net/ipv6/conf/eth0/accept_ra = 2
add sysctl net/ipv4/ip_forward = 1
add sysctl net/ipv6/conf/all/forwarding = 1
add address 169.254.0.1/32 dev br1
add neighbour 192.0.2.1 dev br1 lladdr 52:54:00:ab:cd:01 PERMANENT
add rule -4 32000: from all lookup 100 suppress_prefixlength 0 proto 32
add rule -6 32400: from all fwmark 0x200000/0x3fe00000 lookup 100 proto 32
add route 192.0.2.1 dev br1 table main proto 32 metric 1024
`,
		},
		{
			name: "to nothing",
			have: mark(one(), 0x200000, 100),
			want: state.State{},
			changes: `delete route 192.0.2.1 dev br1 table main proto 32 metric 1024
flush connections of 192.0.2.1
delete rule -4 32000: from all lookup 100 suppress_prefixlength 0 proto 32
delete rule -6 32400: from all fwmark 0x200000/0x3fe00000 lookup 100 proto 32
delete link br1 mtu 1500 address 02:73:6c:33:32:01 group 32 alias slash32:u1:52:54:00:ab:cd:01 up
delete table inet slash32 v1
`,
		},
		{
			name: "one of two goes",
			have: vm(one(), "br2", "u2", "192.0.2.2"),
			want: one(),
			changes: `delete route 192.0.2.2 dev br2 table main proto 32 metric 1024
flush connections of 192.0.2.2
delete element guard4 { "br2" . 192.0.2.2 }
delete element masq4 { "eth0" . 192.0.2.2 }
delete element spoof4 { "br2" }
delete link br2 mtu 1500 address 02:73:6c:33:32:01 group 32 alias slash32:u2:52:54:00:ab:cd:01 up
`,
		},
		{
			name: "an address moves to another VM",
			have: vm(one(), "br2", "u2", "192.0.2.2"),
			want: edit(vm(one(), "br2", "u2", "192.0.2.2"), func(s *state.State) {
				p := netip.MustParsePrefix("192.0.2.1/32")
				delete(s.Routes, state.Route{Dst: p, Table: 254, Metric: 1024, Link: "br1"})
				s.Routes[state.Route{Dst: p, Table: 254, Metric: 1024, Link: "br2"}] = struct{}{}
			}),
			changes: `replace route 192.0.2.1 dev br2 table main proto 32 metric 1024 (was: 192.0.2.1 dev br1 table main proto 32 metric 1024)
flush connections of 192.0.2.1
`,
		},
		{
			name: "an address comes back on another bridge: withdrawn first",
			have: one(),
			want: vm(state.New(), "br2", "u1", "192.0.2.1"),
			changes: `delete route 192.0.2.1 dev br1 table main proto 32 metric 1024
flush connections of 192.0.2.1
delete element guard4 { "br1" . 192.0.2.1 }
delete element spoof4 { "br1" }
delete link br1 mtu 1500 address 02:73:6c:33:32:01 group 32 alias slash32:u1:52:54:00:ab:cd:01 up
add link br2 mtu 1500 address 02:73:6c:33:32:01 group 32 alias slash32:u1:52:54:00:ab:cd:01 down
add sysctl net/ipv4/conf/br2/arp_ignore = 8
replace link br2 mtu 1500 address 02:73:6c:33:32:01 group 32 alias slash32:u1:52:54:00:ab:cd:01 up (was: down)
add address 169.254.0.1/32 dev br2
add element guard4 { "br2" . 192.0.2.1 }
add element spoof4 { "br2" }
add neighbour 192.0.2.1 dev br2 lladdr 52:54:00:ab:cd:01 PERMANENT
add route 192.0.2.1 dev br2 table main proto 32 metric 1024
`,
		},
		{
			name: "drift of every kind",
			have: edit(mark(one(), 0x200000, 100), func(s *state.State) {
				l := s.Links["br1"]
				l.MTU, l.Up, l.Deviates = 1400, false, "stp"
				s.Links["br1"] = l
				s.Sysctls["net/ipv4/conf/br1/arp_ignore"] = "0"
				for k := range s.Neighs {
					s.Neighs[k] = mac.MustParse("52:54:00:00:00:99")
				}
				clear(s.Routes)
				s.Routes[state.Route{Dst: netip.MustParsePrefix("192.0.2.1/32"), Table: 254, Metric: 1024, Link: "eth0"}] = struct{}{}
				delete(s.Elems, state.Elem{Set: state.SetMark, Link: "br1", Mark: 0x200000})
				s.Elems[state.Elem{Set: state.SetMark, Link: "br1", Mark: 0x400000}] = struct{}{}
				delete(s.Rules, state.Rule{Family: 2, Priority: 32000, Table: 100, SuppressDefault: true})
				s.Rules[state.Rule{Family: 2, Priority: 32000, Table: 101}] = struct{}{}
			}),
			want: mark(one(), 0x200000, 100),
			changes: `replace link br1 mtu 1500 address 02:73:6c:33:32:01 group 32 alias slash32:u1:52:54:00:ab:cd:01 down (was: mtu 1400 stp)
add sysctl net/ipv4/conf/br1/arp_ignore = 8 (was: 0)
replace link br1 mtu 1500 address 02:73:6c:33:32:01 group 32 alias slash32:u1:52:54:00:ab:cd:01 up (was: down)
replace element marks { "br1" : 0x00200000 } (was: marks { "br1" : 0x00400000 })
replace neighbour 192.0.2.1 dev br1 lladdr 52:54:00:ab:cd:01 PERMANENT (was: 52:54:00:00:00:99)
add rule -4 32000: from all lookup 100 suppress_prefixlength 0 proto 32
replace route 192.0.2.1 dev br1 table main proto 32 metric 1024 (was: 192.0.2.1 dev eth0 table main proto 32 metric 1024)
delete rule -4 32000: from all lookup 101 proto 32
`,
		},
		{
			name: "another gateway address: the new one first",
			have: one(),
			want: edit(one(), func(s *state.State) {
				clear(s.Addrs)
				s.Addrs[state.Addr{Link: "br1", Prefix: netip.MustParsePrefix("172.16.0.1/32")}] = struct{}{}
			}),
			changes: `add address 172.16.0.1/32 dev br1
delete address 169.254.0.1/32 dev br1
`,
		},
		{
			name: "another table: the old route last",
			have: one(),
			want: edit(one(), func(s *state.State) {
				clear(s.Routes)
				s.Routes[state.Route{Dst: netip.MustParsePrefix("192.0.2.1/32"), Table: 100, Metric: 1024, Link: "br1"}] = struct{}{}
			}),
			changes: `add route 192.0.2.1 dev br1 table 100 proto 32 metric 1024
delete route 192.0.2.1 dev br1 table main proto 32 metric 1024
`,
		},
		{
			name: "a damaged table comes anew with its elements",
			have: edit(one(), func(s *state.State) { s.Skeleton = "damaged" }),
			want: one(),
			changes: `replace table inet slash32 v1 (was: damaged)
add element guard4 { "br1" . 192.0.2.1 }
add element masq4 { "eth0" . 192.0.2.1 }
add element spoof4 { "br1" }
`,
		},
		{
			name: "a prefix, a pool and a proxy come",
			have: one(),
			want: v6(one(), "br1"),
			changes: `add element guard6 { "br1" . 2001:db8::7 }
add element guard6 { "br1" . 2001:db8:1:10::/60 }
add element masq6 { "eth0" . 2001:db8:1:10::/60 }
add neighbour fe80::7 dev br1 lladdr 52:54:00:ab:cd:01 PERMANENT
add route 2001:db8::7 dev br1 table main proto 32 metric 1024
add route unreachable 2001:db8:1::/56 table main proto 32 metric 1024
add route 2001:db8:1:10::/60 via fe80::7 dev br1 table main proto 32 metric 1024
add proxy 2001:db8::7 dev eth0
`,
		},
		{
			name: "they go",
			have: v6(one(), "br1"),
			want: one(),
			changes: `delete proxy 2001:db8::7 dev eth0
delete route 2001:db8::7 dev br1 table main proto 32 metric 1024
delete route unreachable 2001:db8:1::/56 table main proto 32 metric 1024
delete route 2001:db8:1:10::/60 via fe80::7 dev br1 table main proto 32 metric 1024
flush connections of 2001:db8::7
flush connections of 2001:db8:1:10::/60
delete element guard6 { "br1" . 2001:db8::7 }
delete element guard6 { "br1" . 2001:db8:1:10::/60 }
delete element masq6 { "eth0" . 2001:db8:1:10::/60 }
delete neighbour fe80::7 dev br1 lladdr 52:54:00:ab:cd:01 PERMANENT
`,
		},
		{
			name: "the whole pool is delegated, to another router, and comes back",
			have: edit(one(), func(s *state.State) {
				s.Routes[state.Route{Dst: netip.MustParsePrefix("2001:db8:1::/56"), Table: 254, Metric: 1024, Kind: "unreachable"}] = struct{}{}
				s.Routes[state.Route{Dst: netip.MustParsePrefix("2001:db8:2::/56"), Table: 254, Metric: 1024, Link: "br1", Via: netip.MustParseAddr("fe80::7")}] = struct{}{}
			}),
			want: edit(one(), func(s *state.State) {
				s.Routes[state.Route{Dst: netip.MustParsePrefix("2001:db8:1::/56"), Table: 254, Metric: 1024, Link: "br1", Via: netip.MustParseAddr("fe80::7")}] = struct{}{}
				s.Routes[state.Route{Dst: netip.MustParsePrefix("2001:db8:2::/56"), Table: 254, Metric: 1024, Link: "br1", Via: netip.MustParseAddr("fe80::8")}] = struct{}{}
			}),
			changes: `replace route 2001:db8:1::/56 via fe80::7 dev br1 table main proto 32 metric 1024 (was: unreachable 2001:db8:1::/56 table main proto 32 metric 1024)
replace route 2001:db8:2::/56 via fe80::8 dev br1 table main proto 32 metric 1024 (was: 2001:db8:2::/56 via fe80::7 dev br1 table main proto 32 metric 1024)
`,
		},
		{
			name: "a proxy moves to another uplink",
			have: v6(one(), "br1"),
			want: edit(v6(one(), "br1"), func(s *state.State) {
				clear(s.Proxies)
				s.Proxies[state.NeighKey{Link: "eth1", IP: netip.MustParseAddr("2001:db8::7")}] = struct{}{}
			}),
			changes: `delete proxy 2001:db8::7 dev eth0
add proxy 2001:db8::7 dev eth1
`,
		},
		{
			name: "no skeleton planned but links: the table stays",
			have: one(),
			want: edit(one(), func(s *state.State) { s.Skeleton = "" }),
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.changes, lines(state.Diff(tt.have, tt.want))); diff != "" {
				t.Errorf("changes (-want +got):\n%s", diff)
			}
		})
	}
}

func TestOnlyAndKeep(t *testing.T) {
	both := vm(one(), "br2", "u2", "192.0.2.2")
	both.Sysctls["net/ipv4/ip_forward"] = "1"
	both.Taps["vnet2"] = "br2"
	both.Elems[state.Elem{Set: state.SetMark, Link: "br2", Mark: 0x400000}] = struct{}{}
	rule := state.Rule{Family: 2, Priority: 32401, Mark: 0x400000, Table: 200}
	both.Rules[rule] = struct{}{}
	connected := state.Rule{Family: 2, Priority: 32001, Table: 200, SuppressDefault: true}
	both.Rules[connected] = struct{}{}
	both.Rules[state.Rule{Family: 2, Priority: 31999, Table: 254, HostRoutesOnly: true}] = struct{}{}
	both.Rules[state.Rule{Family: 2, Priority: 32400, Mark: 0x200000, Table: 100}] = struct{}{}

	// What keeps an isolated VM from its network's subnets is the VM's.
	subnet, outside := netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("192.0.2.2/32")
	both.Elems[state.Elem{Set: state.SetInside4, Addr: subnet, Peer: outside}] = struct{}{}
	both.Elems[state.Elem{Set: state.SetInside4, Addr: outside, Peer: subnet}] = struct{}{}

	only := state.Only(both, "br1")
	want := one()
	want.Skeleton = ""
	if diff := cmp.Diff(want.String(), only.String()); diff != "" {
		t.Errorf("only br1 (-want +got):\n%s", diff)
	}
	if got := lines(state.Diff(state.Only(both, "br2"), state.New())); strings.Contains(got, "table inet") || strings.Contains(got, "rule") {
		t.Errorf("the removal of one link touches what others use:\n%s", got)
	}

	kept := one()
	state.Keep(&kept, both, "br2")
	want = both.Clone()
	delete(want.Sysctls, "net/ipv4/ip_forward")
	delete(want.Rules, state.Rule{Family: 2, Priority: 32400, Mark: 0x200000, Table: 100})
	if diff := cmp.Diff(want.String(), kept.String()); diff != "" {
		t.Errorf("br1 planned, br2 kept (-want +got):\n%s", diff)
	}

	var empty state.State
	state.Keep(&empty, both, "br1")
	if diff := cmp.Diff(one().String(), empty.String()); diff != "" {
		t.Errorf("br1 kept (-want +got):\n%s", diff)
	}
}

// Prefixes and proxies are their link's; what covers the rest of a pool is kept
// with a part of it, and removed by nobody who removes one link.
func TestOnlyAndKeepIPv6(t *testing.T) {
	both := vm(v6(one(), "br1"), "br2", "u2", "192.0.2.2")
	host := state.Route{Dst: netip.MustParsePrefix("2001:db8::/32"), Table: 254, Metric: 4096, Kind: "unreachable"}
	both.Routes[host] = struct{}{}
	both.Proxies[state.NeighKey{Link: "eth0", IP: netip.MustParseAddr("2001:db8::99")}] = struct{}{}

	want := v6(one(), "br1")
	want.Skeleton = ""
	for r := range want.Routes {
		if r.Kind != "" {
			delete(want.Routes, r)
		}
	}
	if diff := cmp.Diff(want.String(), state.Only(both, "br1").String()); diff != "" {
		t.Errorf("only br1 (-want +got):\n%s", diff)
	}

	kept := vm(state.New(), "br2", "u2", "192.0.2.2")
	kept.Proxies[state.NeighKey{Link: "eth0", IP: netip.MustParseAddr("2001:db8::99")}] = struct{}{}
	taken := kept.Clone()
	state.Keep(&kept, both, "br1")
	if diff := cmp.Diff(both.String(), kept.String()); diff != "" {
		t.Errorf("br1 kept (-want +got):\n%s", diff)
	}
	over := state.Route{Dst: netip.MustParsePrefix("2001:db8:1::/56"), Table: 254, Metric: 1024, Link: "br2"}
	taken.Routes[over] = struct{}{}
	state.Keep(&taken, both, "br1")
	for r := range taken.Routes {
		if r.Dst == over.Dst && r != over {
			t.Errorf("kept in the place of a wanted route: %s", r)
		}
	}
	gone := v6(one(), "br1")
	state.Keep(&gone, one(), "br1")
	if len(gone.Proxies) > 0 {
		t.Errorf("a proxy that is not there is kept: %s", gone)
	}
}

func TestSplit(t *testing.T) {
	for _, tt := range []struct {
		in          string
		n           int
		first, last string
	}{
		{"2001:db8:1:2::/64", 1, "2001:db8:1:2::/64", "2001:db8:1:2::/64"},
		{"2001:db8:1:2::/63", 2, "2001:db8:1:2::/64", "2001:db8:1:3::/64"},
		{"2001:db8:1:10::/60", 1, "2001:db8:1:10::/60", "2001:db8:1:10::/60"},
		{"2001:db8:1:80::/57", 8, "2001:db8:1:80::/60", "2001:db8:1:f0::/60"},
		{"2001:db8:1:1ff::/55", 2, "2001:db8:1::/56", "2001:db8:1:100::/56"},
		{"2001:db8:1:8000::/49", 8, "2001:db8:1:8000::/52", "2001:db8:1:f000::/52"},
		{"2001:db8:8::/45", 8, "2001:db8:8::/48", "2001:db8:f::/48"},
		{in: "2001:db8::/44"},
		{in: "::/0"},
		{in: "2001:db8::/65"},
		{in: "2001:db8::7/128"},
		{in: "192.0.2.0/24"},
	} {
		got := state.Split(netip.MustParsePrefix(tt.in))
		if len(got) != tt.n || tt.n > 0 && (got[0] != netip.MustParsePrefix(tt.first) || got[tt.n-1] != netip.MustParsePrefix(tt.last)) {
			t.Errorf("%s: %v", tt.in, got)
		}
	}
}

func TestCloneSharesNothing(t *testing.T) {
	a := one()
	b := a.Clone()
	clear(a.Routes)
	clear(a.Elems)
	a.Taps["vnet0"] = "br1"
	a.Hairpins["vnet0"] = struct{}{}
	a.Proxies[state.NeighKey{}] = struct{}{}
	if diff := cmp.Diff(one().String(), b.String()); diff != "" {
		t.Errorf("the clone changed (-want +got):\n%s", diff)
	}
}

func TestHostSysctls(t *testing.T) {
	s := one()
	for _, p := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding", "net/ipv6/conf/eth0/accept_ra"} {
		s.Sysctls[p] = "1"
	}
	want := []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding", "net/ipv6/conf/eth0/accept_ra"}
	if diff := cmp.Diff(want, s.HostSysctls()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestAlias(t *testing.T) {
	l := one().Links["br1"]
	uuid, m, ok := state.ParseAlias(l.Alias())
	if uuid != l.UUID || m != l.Guest || !ok {
		t.Errorf("ParseAlias(%q) = %q, %v, %v", l.Alias(), uuid, m, ok)
	}
	for _, bad := range []string{"", "slash32:", "slash32:u", "slash32:u:5", "other:u:52:54:00:ab:cd:01"} {
		if uuid, _, ok := state.ParseAlias(bad); ok {
			t.Errorf("ParseAlias(%q) took it for %q's", bad, uuid)
		}
	}
}

func TestJSON(t *testing.T) {
	s := one()
	s.Proxies[state.NeighKey{Link: "eth0", IP: netip.MustParseAddr("2001:db8::7")}] = struct{}{}
	s.Taps["vnet0"], s.Taps["vnet1"] = "br1", ""
	s.Hairpins["vnet0"] = struct{}{}
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"links":[{"name":"br1","address":"02:73:6c:33:32:01","mtu":1500,"up":true,"alias":"slash32:u1:52:54:00:ab:cd:01"}],` +
		`"sysctls":[{"path":"net/ipv4/conf/br1/arp_ignore","value":"8"}],` +
		`"addresses":[{"link":"br1","prefix":"169.254.0.1/32"}],` +
		`"neighbours":[{"link":"br1","ip":"192.0.2.1","mac":"52:54:00:ab:cd:01"}],` +
		`"taps":[{"name":"vnet0","bridge":"br1"},{"name":"vnet1","bridge":""}],"hairpins":["vnet0"],` +
		`"proxies":[{"link":"eth0","ip":"2001:db8::7"}],` +
		`"rules":[],` +
		`"routes":[{"dst":"192.0.2.1/32","table":254,"metric":1024,"link":"br1"}],` +
		`"skeleton":"v1",` +
		`"elements":[{"set":"guard4","link":"br1","address":"192.0.2.1/32"},{"set":"masq4","link":"eth0","address":"192.0.2.1/32"},{"set":"spoof4","link":"br1"}]}`
	if diff := cmp.Diff(want, string(b)); diff != "" {
		t.Errorf("JSON (-want +got):\n%s", diff)
	}
}
