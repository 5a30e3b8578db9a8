package state_test

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/slash32/slash32/pkg/state"
)

// translated is one with a forward, an address that stands for its own, and a
// source address of its own.
func translated(to string) state.State {
	s := one()
	own := netip.MustParsePrefix("192.0.2.1/32")
	port := netip.MustParseAddrPort(to)
	s.Elems[state.Elem{Set: state.SetForward4, Addr: netip.MustParsePrefix("0.0.0.0/32"), Proto: 6, Port: 8022, To: port}] = struct{}{}
	s.Elems[state.Elem{Set: state.SetPublic4, Addr: netip.MustParsePrefix("203.0.113.50/32"), To: netip.AddrPortFrom(own.Addr(), 0)}] = struct{}{}
	s.Elems[state.Elem{Set: state.SetSNAT4, Link: "eth0", Addr: own, To: netip.MustParseAddrPort("203.0.113.9:0")}] = struct{}{}
	return s
}

func TestDiffTranslation(t *testing.T) {
	for _, tt := range []struct {
		name       string
		have, want state.State
		changes    string
	}{
		{"comes", one(), translated("192.0.2.1:22"), `add element forward4 { 0.0.0.0 . tcp . 8022 : 192.0.2.1 . 22 }
add element public4 { 203.0.113.50 : 192.0.2.1 }
add element snat4 { "eth0" . 192.0.2.1 : 203.0.113.9 }
`},
		// Its connections go with it.
		{"goes", translated("192.0.2.1:22"), one(), `delete element forward4 { 0.0.0.0 . tcp . 8022 : 192.0.2.1 . 22 }
delete element public4 { 203.0.113.50 : 192.0.2.1 }
delete element snat4 { "eth0" . 192.0.2.1 : 203.0.113.9 }
flush connections by forward4 { 0.0.0.0 . tcp . 8022 : 192.0.2.1 . 22 }
flush connections by public4 { 203.0.113.50 : 192.0.2.1 }
flush connections by snat4 { "eth0" . 192.0.2.1 : 203.0.113.9 }
`},
		{"moves", translated("192.0.2.1:22"), translated("192.0.2.1:23"), `replace element forward4 { 0.0.0.0 . tcp . 8022 : 192.0.2.1 . 23 } (was: forward4 { 0.0.0.0 . tcp . 8022 : 192.0.2.1 . 22 })
flush connections by forward4 { 0.0.0.0 . tcp . 8022 : 192.0.2.1 . 22 }
`},
		// The VM's own flush has its translations.
		{"with the VM", translated("192.0.2.1:22"), state.New(), `delete route 192.0.2.1 dev br1 table main proto 32 metric 1024
flush connections of 192.0.2.1
delete link br1 mtu 1500 address 02:73:6c:33:32:01 group 32 alias slash32:u1:52:54:00:ab:cd:01 up
delete table inet slash32 v1
`},
	} {
		if d := cmp.Diff(tt.changes, lines(state.Diff(tt.have, tt.want))); d != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, d)
		}
	}
}

func TestOnlyTranslation(t *testing.T) {
	two := vm(translated("192.0.2.1:22"), "br2", "u2", "192.0.2.2")
	if got := state.Only(two, "br1"); len(got.Elems) != 6 {
		t.Errorf("of the VM that is translated:\n%s", got)
	}
	if got := state.Only(two, "br2"); len(got.Elems) != 3 {
		t.Errorf("of the other:\n%s", got)
	}
	var want state.State
	state.Keep(&want, two, "br1")
	if len(want.Elems) != 6 {
		t.Errorf("kept:\n%s", want)
	}
}

// TestKeepNoTrack: what a link is untracked with stays with it.
func TestKeepNoTrack(t *testing.T) {
	have := one()
	have.Elems[state.Elem{Set: state.SetNoTrack, Link: "br1"}] = struct{}{}
	have.Elems[state.Elem{Set: state.SetNoTrackUplink, Link: "eth0"}] = struct{}{}
	var want state.State
	state.Keep(&want, have, "br1")
	if d := cmp.Diff(have.String(), want.String()); d != "" {
		t.Errorf("(-have +kept):\n%s", d)
	}
}
