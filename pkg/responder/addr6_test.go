package responder_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/slash32/slash32/pkg/marks"
	"github.com/slash32/slash32/pkg/responder"
	"github.com/slash32/slash32/pkg/wire"
)

// na is an IA_NA that lists addresses.
func na(iaid uint32, addrs ...string) string {
	var options []string
	for _, a := range addrs {
		options = append(options, addr6(ip(a)))
	}
	return ia6(wire.Opt6IANA, iaid, options...)
}

// TestAddressRenumbering: an address from a pool is given for what the pool has
// left, and the old one runs out beside the new one.
func TestAddressRenumbering(t *testing.T) {
	const old, x = "2001:db8:2::42", "2001:db8:3::42"
	h := newHome(t, func(n *responder.NIC) {
		n.V6.Prefixes, n.V6.Addrs = nil, []netip.Addr{ip(old)}
		n.V6.Terms = responder.Terms{{Addr: ip(old), Preferred: epoch.Unix() + 1000, Until: epoch.Unix() + 5000}}
	})
	grant := func(iaid, t1, t2 int, lines ...string) string {
		return fmt.Sprintf("IA_NA %d T1 %d T2 %d\n  ", iaid, t1, t2) + strings.Join(lines, "\n  ")
	}
	none := func(iaid int) string { return fmt.Sprintf("IA_NA %d T1 0 T2 0 NoAddrsAvail", iaid) }
	h.ask(wire.DHCP6Solicit, na(7), grant(7, 500, 800, old+" 1000 5000"))
	h.ask(wire.DHCP6Request, na(7, old), grant(7, 500, 800, old+" 1000 5000"))
	h.now = h.now.Add(100 * time.Second)
	h.ask(wire.DHCP6Renew, na(7, old)+na(8, old), grant(7, 450, 720, old+" 900 4900")+"\n"+none(8))

	// The preferred lifetime is over and there is nothing else: nothing new, and the
	// client asks again before it ends.
	h.now = h.now.Add(900 * time.Second)
	h.ask(wire.DHCP6Renew, na(7, old), grant(7, 2000, 3200, old+" 0 4000"))
	h.ask(wire.DHCP6Solicit, na(7, old), none(7))
	h.ask(wire.DHCP6Solicit, na(7, old)+opt6(wire.Opt6RapidCommit, ""), none(7))

	until := h.now.Unix() + 3000
	h.set(h.nic, func(n *responder.NIC) {
		n.V6.Addrs = []netip.Addr{ip(x)}
		n.V6.Terms = responder.Terms{{Addr: ip(old), Until: until}}
	})
	h.ask(wire.DHCP6Renew, na(7, old), grant(7, 1800, 2880, x+" 3600 7200", old+" 0 3000"))
	h.ask(wire.DHCP6Rebind, na(7, old, x, "2001:db8::1"), grant(7, 1800, 2880, x+" 3600 7200", old+" 0 3000", "2001:db8::1 0 0"))
	h.ask(wire.DHCP6Renew, na(7)+na(8, old), grant(7, 1800, 2880, x+" 3600 7200")+"\n"+none(8))
	h.ask(wire.DHCP6Solicit, na(7, old), grant(7, 1800, 2880, x+" 3600 7200"))
	h.ask(wire.DHCP6Request, na(7, old), grant(7, 1800, 2880, x+" 3600 7200"))
	h.ask(wire.DHCP6Confirm, na(7, old), "")
	h.ask(wire.DHCP6Release, na(7, old), "")
	h.now = h.now.Add(3000 * time.Second)
	h.ask(wire.DHCP6Renew, na(7, old, x), grant(7, 1800, 2880, x+" 3600 7200", old+" 0 0"))
	h.ask(wire.DHCP6Confirm, na(7, old), "status NotOnLink")
	h.ask(wire.DHCP6Release, na(7, old), "IA_NA 7 T1 0 T2 0 NoBinding")
}

// TestOldAddress: one on its way out is still the guest's to use, and still a reason
// to ask by DHCPv6.
func TestOldAddress(t *testing.T) {
	old := ip("2001:db8:2::42")
	n := fullNIC()
	n.V6.Prefixes = nil
	n.V6.Addrs, n.V6.Terms = nil, responder.Terms{{Addr: old, Until: epoch.Unix() + 60}}
	l := mustCompile(t, n)
	if flags, _ := prefixesOf(t, l.Unsolicited(epoch, make([]byte, responder.MaxReply))); flags&wire.RAManaged == 0 {
		t.Errorf("flags %#x", flags)
	}
	probe := ip6Frame(ip("::"), wire.SolicitedNode(old), wire.ProtoICMPv6, 255, nsMessage(old))
	if b, v := respond(l, probe, make([]byte, responder.MaxReply)); b != nil || v != responder.NDOwn {
		t.Errorf("its duplicate detection: %s, %x", v, b)
	}
	n.V6.Terms[0].Addr = gateway6
	if _, err := responder.Compile(n); err == nil {
		t.Error("the gateway's address is the guest's")
	}
}

// TestPreferredEnds: what a pool has left of its preferred lifetime caps that of
// prefixes in advertisements and of delegated ones.
func TestPreferredEnds(t *testing.T) {
	h := newHome(t, func(n *responder.NIC) {
		n.V6.Prefixes[0].Preferred, n.V6.Prefixes[0].Until = epoch.Unix()+1000, epoch.Unix()+9000
		n.V6.Prefixes = append(n.V6.Prefixes, responder.Prefix{
			Net: pfx("2001:db8:9::/64"), Mode: responder.ModeSLAAC, Preferred: epoch.Unix() + 1000, Until: epoch.Unix() + 9000,
		}, responder.Prefix{
			Net: pfx("2001:db8:a::/64"), Mode: responder.ModeSLAAC, Preferred: epoch.Unix() + 1000,
		})
	})
	const x = "2001:db8:2::/64"
	advertised := func(want ...[2]uint32) {
		t.Helper()
		_, got := prefixesOf(t, h.l.Unsolicited(h.now, make([]byte, responder.MaxReply)))
		for i, w := range want {
			if len(got) != len(want) || got[i].Preferred != w[0] || got[i].Valid != w[1] {
				t.Errorf("%+v, want %v", got, want)
			}
		}
	}
	h.ask(wire.DHCP6Request, pd(8), "IA_PD 8 T1 500 T2 800\n  "+x+" 1000 7200")
	advertised([2]uint32{1000, 9000}, [2]uint32{1000, 14400})
	h.now = h.now.Add(900 * time.Second)
	h.ask(wire.DHCP6Renew, pd(8, x), "IA_PD 8 T1 50 T2 80\n  "+x+" 100 7200")
	advertised([2]uint32{100, 8100}, [2]uint32{100, 14400})
	h.now = h.now.Add(100 * time.Second)
	h.ask(wire.DHCP6Renew, pd(8, x), "IA_PD 8 T1 3550 T2 5680\n  "+x+" 0 7100")
	h.ask(wire.DHCP6Solicit, pd(8, x), "IA_PD 8 T1 0 T2 0 NoPrefixAvail")
	advertised([2]uint32{0, 8000}, [2]uint32{0, 14400})
}

// TestAddressesAllocateNothing has a guest with many addresses that end.
func TestAddressesAllocateNothing(t *testing.T) {
	n, out := fullNIC(), make([]byte, responder.MaxReply)
	var listed []string
	for i := range 30 {
		a := netip.AddrFrom16([16]byte{0x20, 1, 15: byte(i + 1)})
		if i < 20 {
			n.V6.Addrs = append(n.V6.Addrs, a)
		}
		n.V6.Terms = append(n.V6.Terms, responder.Term{Addr: a, Preferred: epoch.Unix() + 10, Until: epoch.Unix() + 20})
		listed = append(listed, a.String())
	}
	l := mustCompile(t, n)
	var g responder.Guest
	for _, kind := range []uint8{wire.DHCP6Request, wire.DHCP6Renew, wire.DHCP6Release} {
		f := client6{kind: kind, options: opt6(wire.Opt6ClientID, clientDUID) + opt6(wire.Opt6ServerID, marks.ServerDUID) + na(7, listed...)}.frame()
		for _, after := range []time.Duration{0, 15 * time.Second, time.Minute} {
			if allocs := testing.AllocsPerRun(20, func() { l.Respond(&g, epoch.Add(after), f, out) }); allocs != 0 {
				t.Errorf("message %d after %s: %v allocations", kind, after, allocs)
			}
		}
	}
}

// TestTermsFile: what an older version has written is read as it was, and what this
// one writes is read again.
func TestTermsFile(t *testing.T) {
	const before = `{"gateway":"fe80::1","addrs":["2001:db8::7"],"preferred":3600,"valid":3600,"router_lifetime":1800,` +
		`"prefixes":[{"net":"2001:db8:1::/64","mode":"slaac","deprecated":true,"until":1700000000}]}`
	read := func(text string) (v responder.V6, err error) {
		d := json.NewDecoder(strings.NewReader(text))
		d.DisallowUnknownFields()
		err = d.Decode(&v)
		return v, err
	}
	v, err := read(before)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := json.Marshal(v); err != nil || string(again) != before {
		t.Errorf("%s: %v", again, err)
	}
	v.Terms = responder.Terms{{Addr: ip("2001:db8::7"), Preferred: 1, Until: 2}, {Addr: ip("2001:db8::8"), Until: 3}}
	v.Prefixes[0].Preferred = 4
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := read(string(text)); err != nil || !slices.Equal(again.Terms, v.Terms) || again.Prefixes[0] != v.Prefixes[0] {
		t.Errorf("%s: %+v: %v", text, again, err)
	}
	if _, err := read(`{"terms":[{"addr":"2001:db8::7","more":1}]}`); err == nil {
		t.Error("what is not known is read")
	}
}
