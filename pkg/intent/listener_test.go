package intent_test

import (
	"net/netip"
	"testing"

	"github.com/slash32/slash32/pkg/annotation"
	"github.com/slash32/slash32/pkg/intent"
)

func TestShadowed(t *testing.T) {
	const tcp, udp = 6, 17
	all := annotation.Forward{Proto: "tcp", Family: "both", Port: 22, Last: 22, To: 22, Line: 3}
	with := func(edit func(*annotation.Forward)) annotation.Forward {
		f := all
		edit(&f)
		return f
	}
	v4 := with(func(f *annotation.Forward) { f.Family = "ipv4" })
	v6 := with(func(f *annotation.Forward) { f.Family = "ipv6" })
	at := with(func(f *annotation.Forward) { f.Addr = netip.MustParseAddr("192.0.2.10") })
	for _, tt := range []struct {
		name    string
		forward annotation.Forward
		proto   uint8
		listens string
		both    bool
		want    bool
	}{
		{name: "all addresses", forward: all, proto: tcp, listens: "0.0.0.0:22", want: true},
		{name: "all IPv6 addresses", forward: all, proto: tcp, listens: "[::]:22", want: true},
		{name: "one address", forward: all, proto: tcp, listens: "192.0.2.9:22", want: true},
		{name: "another port", forward: all, proto: tcp, listens: "0.0.0.0:23"},
		{name: "another protocol", forward: all, proto: udp, listens: "0.0.0.0:22"},
		{name: "loopback", forward: all, proto: tcp, listens: "127.0.0.1:22"},
		{name: "IPv6 loopback", forward: all, proto: tcp, listens: "[::1]:22"},
		{name: "link-local", forward: all, proto: tcp, listens: "[fe80::1]:22"},
		{name: "IPv4 only", forward: v4, proto: tcp, listens: "[::]:22"},
		{name: "IPv4 only, a socket for both", forward: v4, proto: tcp, listens: "[::]:22", both: true, want: true},
		{name: "IPv6 only", forward: v6, proto: tcp, listens: "0.0.0.0:22"},
		{name: "IPv6 only, IPv6", forward: v6, proto: tcp, listens: "[2001:db8::9]:22", want: true},
		{name: "of one address", forward: at, proto: tcp, listens: "192.0.2.10:22", want: true},
		{name: "of another address", forward: at, proto: tcp, listens: "192.0.2.9:22"},
		{name: "of one of all addresses", forward: at, proto: tcp, listens: "0.0.0.0:22"},
		{name: "first of a range", forward: with(func(f *annotation.Forward) { f.Last = 30 }), proto: tcp, listens: "0.0.0.0:22", want: true},
		{name: "last of a range", forward: with(func(f *annotation.Forward) { f.Last = 30 }), proto: tcp, listens: "0.0.0.0:30", want: true},
		{name: "behind a range", forward: with(func(f *annotation.Forward) { f.Last = 30 }), proto: tcp, listens: "0.0.0.0:31"},
		{name: "both protocols", forward: with(func(f *annotation.Forward) { f.Proto = "both" }), proto: udp, listens: "0.0.0.0:22", want: true},
		{name: "UDP", forward: with(func(f *annotation.Forward) { f.Proto = "udp" }), proto: udp, listens: "0.0.0.0:22", want: true},
		{name: "UDP, TCP listens", forward: with(func(f *annotation.Forward) { f.Proto = "udp" }), proto: tcp, listens: "0.0.0.0:22"},
	} {
		vm := intent.VM{Name: "web1", NICs: []intent.NIC{{Forwards: []annotation.Forward{tt.forward}}}}
		l := intent.Listener{Proto: tt.proto, Addr: netip.MustParseAddrPort(tt.listens), Both: tt.both}
		ps := intent.Shadowed(vm, []intent.Listener{l, l})
		if len(ps) > 1 || (len(ps) == 1) != tt.want || len(ps.Fatal()) > 0 {
			t.Errorf("%s: %v", tt.name, ps)
		}
	}
	vm := intent.VM{Name: "web1", NICs: []intent.NIC{{Forwards: []annotation.Forward{all}}}}
	const want = "web1: W115 line 3: port tcp/22 is forwarded to the VM, and a program of the host listens on tcp/0.0.0.0:22: who is not on the host gets the VM instead. " +
		"Fix: forward another port, or one of an address that the program does not need (addr); ss -lnp 'sport = :22' shows the program"
	if got := intent.Shadowed(vm, []intent.Listener{{Proto: tcp, Addr: netip.MustParseAddrPort("0.0.0.0:22")}}).Error(); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}
