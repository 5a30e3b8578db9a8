package kernel_test

import (
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/slash32/slash32/pkg/config"
	"github.com/slash32/slash32/pkg/intent"
)

// reachable has the internet route to the VMs' own addresses.
func (l natLab) reachable() { l.inet.run("ip route add 10.1.0.0/16 via 192.0.2.10") }

// silent are three VMs of which the first two are routed without being tracked.
func silent() []intent.VM {
	list := vms(3)
	for i := range 2 {
		n := &list[i].NICs[0]
		n.NAT, n.Network.NAT, n.Network.NoTrack = config.NATNone, config.NATNone, true
		n.Network.Services = []config.Service{{Proto: config.ProtoTCP, Port: 80}}
	}
	list[2].NICs[0].Network.Uplink = "wan0"
	list[2].NICs[0].Forwards = translated()[0].NICs[0].Forwards
	return list
}

// TestNoTrack: what is between the internet and routed guests leaves no trace, and
// what else they do works, with a firewall that refuses half-seen connections.
func TestNoTrack(t *testing.T) {
	l := newNATLab(t)
	l.reachable()
	want := build(t, l.k, silent())
	converge(t, l.k, want)
	run(t, "sysctl -qw net.netfilter.nf_conntrack_tcp_loose=0")
	nft(t, `table inet firewall {
 chain forward { type filter hook forward priority 0; ct state invalid counter drop
}
 chain input { type filter hook input priority 0; policy drop; ct state established,related accept; iif lo accept; meta l4proto ipv6-icmp accept; tcp dport 80 accept
}
}
`)
	for _, m := range []machine{l.inet, l.host, l.guest[0], l.guest[1], l.guest[2]} {
		m.serve(22)
		m.serve(80)
	}
	for _, proto := range []string{"tcp", "udp"} {
		for _, x := range []struct {
			from machine
			to   string
			want string
		}{
			{l.guest[0], inet4, "inet:80 from 10.1.0.0"},
			{l.guest[0], inet6, "inet:80 from 2001:db8::"},
			{l.inet, "10.1.0.0", "vm0:80 from " + inet4},
			{l.inet, "2001:db8::", "vm0:80 from " + inet6},
			{l.guest[0], "10.1.0.1", "vm1:80 from 10.1.0.0"},
			{l.guest[1], "2001:db8::", "vm0:80 from 2001:db8::1"},
		} {
			x.from.asks(proto, "", at(x.to, 80), x.want)
		}
	}
	if out := run(t, "conntrack -L") + run(t, "conntrack -L -f ipv6"); strings.Contains(out, "dport=80") {
		t.Errorf("tracked:\n%s", out)
	}
	for _, proto := range []string{"tcp", "udp"} {
		l.guest[0].asks(proto, "", at("10.1.0.2", 80), "vm2:80 from 10.1.0.0")
		l.guest[2].asks(proto, "", at("2001:db8::", 80), "vm0:80 from 2001:db8::2")
		l.guest[0].asks(proto, "", at(host4, 8022), "vm2:22 from 10.1.0.0")
		l.guest[0].asks(proto, "", at(host6, 8022), "vm2:22 from 2001:db8::")
		l.inet.asks(proto, "", at(host4, 8022), "vm2:22 from "+inet4)
		l.host.asks(proto, "", at("10.1.0.0", 80), "vm0:80 from 169.254.0.1")
		l.host.asks(proto, "", at("2001:db8::", 80), "vm0:80 from "+host6)
	}
	l.guest[0].asks("tcp", "", at(host4, 80), "host:80 from 10.1.0.0")
	if out := run(t, "conntrack -L -s 10.1.0.0 -d 10.1.0.2"); !strings.Contains(out, "dport=80") {
		t.Errorf("a connection to a guest whose connections are tracked is not:\n%s", out)
	}
	for _, tt := range []struct{ do, want string }{
		{"nft flush set inet slash32 no_track", `add element no_track { "s32-vm1" }`},
		{"nft flush set inet slash32 no_track_uplink", `add element no_track_uplink { "wan0" }`},
		{"nft add element inet slash32 no_track { s32-vm2 }", `delete element no_track { "s32-vm2" }`},
	} {
		drift(t, l.k, []string{tt.do})
		if changes := converge(t, l.k, want); len(changes) == 0 || !strings.Contains(fmt.Sprint(changes), tt.want) {
			t.Errorf("%s: no change with %q in %v", tt.do, tt.want, changes)
		}
	}
}

// TestConntrackLimit: a guest has so many connections at a time each way, and others
// have theirs.
func TestConntrackLimit(t *testing.T) {
	l := newNATLab(t)
	l.reachable()
	list := vms(3)
	for i := range 2 {
		n := &list[i].NICs[0]
		n.NAT, n.Network.MaxConns = config.NATNone, 3
	}
	want := build(t, l.k, list)
	converge(t, l.k, want)
	l.inet.serve(9)
	for _, g := range l.guest {
		g.serve(9)
	}
	refused := func(set string) bool {
		return strings.Contains(run(t, "nft list set inet slash32 "+set), `"s32-vm0" ct count over 3 counter packets 1 `)
	}
	for _, x := range []struct {
		set, to, answer string
		from, other     machine
		toOther, by     string
	}{
		{"limit_from", inet4, "inet:9 from 10.1.0.0", l.guest[0], l.guest[1], inet4, "inet:9 from 10.1.0.1"},
		{"limit_to", "10.1.0.0", "vm0:9 from " + inet4, l.inet, l.inet, "10.1.0.1", "vm1:9 from " + inet4},
	} {
		var open []net.Conn
		for range 3 {
			open = append(open, x.from.asks("udp", "", at(x.to, 9), x.answer))
		}
		if t.Failed() {
			return
		}
		fourth, err := x.from.dial("udp", "", at(x.to, 9))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fourth.Write([]byte("?")); err != nil {
			t.Fatal(err)
		}
		// Those that are open go on, and another guest's begin.
		for _, c := range open {
			if got, err := exchange(c); err != nil || got != x.answer {
				t.Errorf("%s: one that was open: %q, %v", x.set, got, err)
			}
		}
		x.other.asks("udp", "", at(x.toOther, 9), x.by)
		if !refused(x.set) {
			t.Errorf("not counted as refused: %s", run(t, "nft list set inet slash32 "+x.set))
		}
		// A pass leaves the counts alone. One less, and there is room.
		converge(t, l.k, want)
		if !refused(x.set) {
			t.Error("a pass began to count anew")
		}
		port := open[0].LocalAddr().(*net.UDPAddr).Port
		run(t, fmt.Sprintf("conntrack -D -p udp --sport %d --dport 9", port))
		x.from.asks("udp", "", at(x.to, 9), x.answer)
	}
	for _, tt := range []struct{ do, want string }{
		{"nft flush set inet slash32 limit_from", `add element limit_from { "s32-vm1" ct count over 3 }`},
		{"nft delete element inet slash32 limit_to { s32-vm0 ct count over 3 counter } ; add element inet slash32 limit_to { s32-vm0 ct count over 4 counter }", `replace element limit_to { "s32-vm0" ct count over 3 } (was: limit_to { "s32-vm0" ct count over 4 })`},
	} {
		drift(t, l.k, []string{tt.do})
		if changes := converge(t, l.k, want); len(changes) == 0 || !strings.Contains(fmt.Sprint(changes), tt.want) {
			t.Errorf("%s: no change with %q in %v", tt.do, tt.want, changes)
		}
	}
}
