package responder_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/slash32/slash32/pkg/lease"
	"github.com/slash32/slash32/pkg/marks"
	"github.com/slash32/slash32/pkg/responder"
	"github.com/slash32/slash32/pkg/wire"
)

// TestPrefixReplies is what a guest hears of which nothing is known.
func TestPrefixReplies(t *testing.T) {
	l := mustCompile(t, prefixNIC())
	dns := "\ndns 2620:fe::fe\nsearch example.org eng.example.org"
	offer := func(x string) string {
		return "ADVERTISE\npreference 255\nIA_PD 8 T1 1800 T2 2880\n  " + x + " 3600 7200" + dns
	}
	for _, c := range []struct{ message, want string }{
		{"pd_solicit", offer("2001:db8:2:10::/60")},
		{"pd_solicit_hint", offer("2001:db8:2:4::/62")},
		{"pd_solicit_exact", offer("2001:db8:2:80::/57")},
		{"pd_solicit_taken", offer("2001:db8:2:10::/60")},
		{"pd_solicit_foreign", offer("2001:db8:2:8::/61")},
		{"pd_solicit_deprecated", offer("2001:db8:2:10::/60")},
		{"pd_solicit_exclude", strings.Replace(offer("2001:db8:2::/56"), "7200", "7200 without 2001:db8:2::/64", 1)},
		{"pd_solicit_exclude_within", strings.Replace(offer("2001:db8:2::/56"), "7200", "7200 without 2001:db8:2::/64", 1)},
		{"pd_solicit_whole", offer("2001:db8:2:80::/57")},
		{"pd_solicit_several", "ADVERTISE\npreference 255\nIA_PD 8 T1 1800 T2 2880\n  2001:db8:2:10::/60 3600 7200\n" +
			"IA_NA 8 T1 1800 T2 2880\n  2001:db8:1::42 3600 7200\n  2001:db8:1::43 3600 7200\n" +
			"IA_PD 9 T1 1800 T2 2880\n  2001:db8:2:1::/64 3600 7200\nIA_PD 10 T1 1800 T2 2880\n  2001:db8:2:80::/57 3600 7200" + dns},
		{"pd_solicit_rapid", "REPLY\nrapid commit\nIA_PD 8 T1 1800 T2 2880\n  2001:db8:2:10::/60 3600 7200" + dns},
		{"pd_solicit_aftr", offer("2001:db8:2:10::/60") + "\naftr [aftr.example.org] <nil>"},
		{"pd_request", "REPLY\nIA_PD 8 T1 1800 T2 2880\n  2001:db8:2:10::/60 3600 7200" + dns},
		{"pd_renew_unknown", "REPLY\nIA_PD 8 T1 1800 T2 2880\n  2001:db8:2:f0::/60 3600 7200" + dns},
		{"pd_renew_foreign", "REPLY\nIA_PD 8 T1 1800 T2 2880\n  2001:db8:2:10::/60 3600 7200\n  2001:db8:bad::/60 0 0" + dns},
		{"pd_renew_deprecated", "REPLY\nIA_NA 7 T1 1800 T2 2880\n  2001:db8:1::42 3600 7200\n  2001:db8:1::43 3600 7200\n" +
			"IA_PD 8 T1 1800 T2 2880\n  2001:db8:2:10::/60 3600 7200\n  2001:db8:8:10::/60 0 2000" + dns},
		{"pd_renew_two", "REPLY\nIA_PD 8 T1 1800 T2 2880\n  2001:db8:2:10::/60 3600 7200\n  2001:db8:2:20::/60 0 0" + dns},
		{"pd_rebind", "REPLY\nIA_PD 8 T1 1800 T2 2880\n  2001:db8:2:10::/60 3600 7200" + dns},
		{"pd_confirm_addresses", "REPLY\nstatus Success"},
		{"pd_release_unknown", "REPLY\nstatus Success\nIA_PD 8 T1 0 T2 0 NoBinding"},
		{"pd_in_na", "ADVERTISE\npreference 255\nIA_NA 7 T1 1800 T2 2880\n  2001:db8:1::42 3600 7200\n  2001:db8:1::43 3600 7200" + dns},
		{"pd_address_in_pd", "REPLY\nIA_PD 8 T1 1800 T2 2880\n  2001:db8:2:10::/60 3600 7200" + dns},
		{"pd_prefix_in_na", "REPLY\nIA_NA 7 T1 1800 T2 2880\n  2001:db8:1::42 3600 7200\n  2001:db8:1::43 3600 7200" + dns},
		{"pd_prefix_alone", "REPLY" + dns},
		{"boot6_uefi", "ADVERTISE\npreference 255" + dns + "\nboot tftp://[2001:db8::7]/snp.efi"},
		{"boot6_http", "ADVERTISE\npreference 255" + dns + "\nboot http://[2001:db8::7]/snp.efi\nclass [\"HTTPClient\"]"},
		{"boot6_ipxe", "REPLY\nrefresh 1800" + dns + "\nboot http://[2001:db8::7]/boot.ipxe"},
		{"boot6_params", "REPLY\nrefresh 1800" + dns + "\nboot http://[2001:db8::7]/boot.ipxe\nparams [\"console=ttyS0\" \"quiet\"]"},
		{"boot6_bios_has_no_url", "ADVERTISE\npreference 255" + dns},
	} {
		m := find(t, prefixMessages(), c.message)
		if d := cmp.Diff(strings.Split(c.want, "\n"), lines6(ask6(t, l, m.frame, m.want))); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.message, d)
		}
	}
	// There is no way to route to a source that is not on the link.
	b, _ := respond(l, find(t, prefixMessages(), "pd_solicit_global_source").frame, make([]byte, responder.MaxReply))
	if !strings.Contains(string(b), "link-local") {
		t.Errorf("%x", b)
	}
}

// home is a link with its guest.
type home struct {
	*testing.T
	nic responder.NIC
	l   *responder.Link
	g   responder.Guest
	src netip.Addr
	now time.Time
}

func newHome(t *testing.T, change func(*responder.NIC)) *home {
	n := fullNIC()
	n.V6.Addrs, n.V6.DNS, n.Search, n.Domain = nil, nil, nil, ""
	n.V6.Prefixes = responder.Prefixes{{Net: pfx("2001:db8:2::/60"), Mode: responder.ModeDelegate, Length: 64}}
	h := &home{T: t, src: guestLL, now: epoch}
	h.set(n, change)
	return h
}

// set gives the guest another binding.
func (h *home) set(n responder.NIC, change func(*responder.NIC)) {
	h.Helper()
	if change != nil {
		change(&n)
	}
	h.nic, h.l = n, mustCompile(h, n)
}

// ask sends a message with IAs and wants the reply's.
func (h *home) ask(kind uint8, ias, want string) {
	h.Helper()
	options := opt6(wire.Opt6ClientID, clientDUID)
	switch kind {
	case wire.DHCP6Request, wire.DHCP6Renew, wire.DHCP6Release, wire.DHCP6Decline:
		options += opt6(wire.Opt6ServerID, marks.ServerDUID)
	}
	b, v := h.l.Respond(&h.g, h.now, client6{kind: kind, src: h.src, options: options + ias}.frame(), make([]byte, responder.MaxReply))
	if b == nil {
		h.Fatalf("verdict %s", v)
	}
	_, hd, p := reply6(h.T, b)
	if hd.Dst != h.src {
		h.Errorf("to %s", hd.Dst)
	}
	_, p, _ = wire.ParseUDP(p)
	got := strings.Join(lines6(parse6(h.T, p)), "\n")
	for _, head := range []string{"ADVERTISE\npreference 255\n", "REPLY\n", "status Success"} {
		got = strings.TrimPrefix(got, head)
	}
	if d := cmp.Diff(want, strings.TrimPrefix(got, "\n")); d != "" {
		h.Errorf("%s (-want +got):\n%s", v, d)
	}
	checkKept(h.T, h.nic, &h.g, h.now)
}

// holds compares what is kept, in any order: each as "IAID prefix via seconds".
func (h *home) holds(want ...string) {
	h.Helper()
	var got []string
	for _, p := range h.g.Prefixes {
		if p.Prefix.IsValid() {
			got = append(got, fmt.Sprintf("%d %s %s %d", p.IAID, p.Prefix, p.Via, p.Expires-h.now.Unix()))
		}
	}
	slices.Sort(want)
	slices.Sort(got)
	if d := cmp.Diff(want, got); d != "" {
		h.Errorf("kept (-want +got):\n%s", d)
	}
}

// checkKept holds what is kept to what is true of it whatever the guest sends:
// it is of the pools, nothing of it is twice, it is not on the link.
func checkKept(t *testing.T, n responder.NIC, g *responder.Guest, now time.Time) {
	t.Helper()
	for i, p := range g.Prefixes {
		if !p.Prefix.IsValid() {
			if p != (lease.Prefix{}) {
				t.Errorf("an empty entry has %+v", p)
			}
			continue
		}
		in, whole := false, false
		for _, pool := range n.V6.Prefixes {
			switch {
			case pool.Mode == responder.ModeDelegate && pool.Net.Bits() <= p.Prefix.Bits() && pool.Net.Contains(p.Prefix.Addr()):
				in, whole = true, pool.Exclude.IsValid() && p.Prefix.Bits() < pool.Exclude.Bits()
			case pool.Mode == responder.ModeSLAAC && pool.Net.Overlaps(p.Prefix):
				t.Errorf("%s is on the link as %s", p.Prefix, pool.Net)
			}
		}
		for _, pool := range n.V6.Prefixes {
			if pool.Exclude.IsValid() && pool.Exclude.Overlaps(p.Prefix) && !whole {
				t.Errorf("%s is excluded", p.Prefix)
			}
		}
		if !in || p.Prefix.Bits() > 64 || p.Prefix != p.Prefix.Masked() || !p.Via.IsLinkLocalUnicast() || p.Expires > now.Unix()+int64(n.V6.Valid) {
			t.Errorf("kept %+v", p)
		}
		for _, q := range g.Prefixes[:i] {
			if q.Prefix.IsValid() && q.Prefix.Overlaps(p.Prefix) && q.Expires > now.Unix() && p.Expires > now.Unix() {
				t.Errorf("kept %s and %s", q.Prefix, p.Prefix)
			}
		}
	}
}

func pd(iaid uint32, prefixes ...string) string {
	var options []string
	for _, p := range prefixes {
		options = append(options, prefix6(p))
	}
	return ia6(wire.Opt6IAPD, iaid, options...)
}

func granted(iaid int, x string) string {
	return fmt.Sprintf("IA_PD %d T1 1800 T2 2880\n  %s 3600 7200", iaid, x)
}

// TestDelegation follows a prefix from the offer to its return.
func TestDelegation(t *testing.T) {
	h := newHome(t, nil)
	const x = "2001:db8:2::/64"
	h.ask(wire.DHCP6Solicit, pd(8), granted(8, x))
	h.holds()
	h.ask(wire.DHCP6Request, pd(8, x), granted(8, x))
	h.holds("8 " + x + " fe80::5054:ff:feab:cd01 7200")
	h.now = h.now.Add(1800 * time.Second)
	h.ask(wire.DHCP6Renew, pd(8, x), granted(8, x))
	h.holds("8 " + x + " fe80::5054:ff:feab:cd01 7200")
	// A restarted client has the same again, whatever it remembers.
	h.ask(wire.DHCP6Solicit, pd(8), granted(8, x))
	h.ask(wire.DHCP6Solicit, pd(8, "2001:db8:2:7::/64"), granted(8, "2001:db8:2:7::/64"))
	h.ask(wire.DHCP6Solicit, pd(8, "2001:db8:bad::/64"), granted(8, x))
	h.ask(wire.DHCP6Solicit, pd(8, "::/64"), granted(8, x))
	// Another IA has another.
	h.ask(wire.DHCP6Request, pd(9), granted(9, "2001:db8:2:1::/64"))
	h.ask(wire.DHCP6Renew, pd(8, x)+pd(9, "2001:db8:2:1::/64"), granted(8, x)+"\n"+granted(9, "2001:db8:2:1::/64"))
	// One that names the first's does not get it.
	h.ask(wire.DHCP6Renew, pd(10, x), "IA_PD 10 T1 1800 T2 2880\n  2001:db8:2:2::/64 3600 7200\n  "+x+" 0 0")
	h.holds("8 "+x+" fe80::5054:ff:feab:cd01 7200", "9 2001:db8:2:1::/64 fe80::5054:ff:feab:cd01 7200", "10 2001:db8:2:2::/64 fe80::5054:ff:feab:cd01 7200")
	// The client's address is what it asked from last.
	h.src = ip("fe80::7")
	h.ask(wire.DHCP6Rebind, pd(9, "2001:db8:2:1::/64"), granted(9, "2001:db8:2:1::/64"))
	h.holds("8 "+x+" fe80::5054:ff:feab:cd01 7200", "9 2001:db8:2:1::/64 fe80::7 7200", "10 2001:db8:2:2::/64 fe80::5054:ff:feab:cd01 7200")
	// What it has not cannot be given back, nor what another IA has.
	h.ask(wire.DHCP6Release, pd(8, "2001:db8:2:1::/64"), "IA_PD 8 T1 0 T2 0 NoBinding")
	h.ask(wire.DHCP6Release, pd(8), "IA_PD 8 T1 0 T2 0 NoBinding")
	h.ask(wire.DHCP6Release, pd(8, x)+pd(10, "2001:db8:2:2::/64"), "")
	h.ask(wire.DHCP6Release, pd(8, x), "IA_PD 8 T1 0 T2 0 NoBinding")
	h.ask(wire.DHCP6Decline, pd(9, "2001:db8:2:1::/64"), "")
	h.holds()
}

// TestDelegationIsRemembered: who comes back after his lease has ended gets the
// same prefix, unless another has it by then.
func TestDelegationIsRemembered(t *testing.T) {
	h := newHome(t, nil)
	h.ask(wire.DHCP6Request, pd(7), granted(7, "2001:db8:2::/64"))
	h.ask(wire.DHCP6Request, pd(8), granted(8, "2001:db8:2:1::/64"))
	h.now = h.now.Add(3 * time.Hour)
	h.ask(wire.DHCP6Solicit, pd(8), granted(8, "2001:db8:2:1::/64"))
	h.ask(wire.DHCP6Request, pd(9, "2001:db8:2:1::/64"), granted(9, "2001:db8:2:1::/64"))
	h.ask(wire.DHCP6Request, pd(8), granted(8, "2001:db8:2::/64"))
	h.holds("8 2001:db8:2::/64 fe80::5054:ff:feab:cd01 7200", "9 2001:db8:2:1::/64 fe80::5054:ff:feab:cd01 7200")
}

// TestDelegationAfterLoss: all that the responder needs is in what the client
// lists.
func TestDelegationAfterLoss(t *testing.T) {
	for _, kind := range []uint8{wire.DHCP6Request, wire.DHCP6Renew, wire.DHCP6Rebind} {
		h := newHome(t, nil)
		h.ask(kind, pd(8, "2001:db8:2:c::/62"), granted(8, "2001:db8:2:c::/62"))
		h.holds("8 2001:db8:2:c::/62 fe80::5054:ff:feab:cd01 7200")
	}
}

// TestDelegationOfAll: a pool that one IA has as a whole.
func TestDelegationOfAll(t *testing.T) {
	all := func(n *responder.NIC) { n.V6.Prefixes[0].Length = 60 }
	h := newHome(t, all)
	const x, none = "2001:db8:2::/60", "IA_PD 9 T1 0 T2 0 NoPrefixAvail"
	h.ask(wire.DHCP6Request, pd(8), granted(8, x))
	h.ask(wire.DHCP6Request, pd(9), none)
	h.ask(wire.DHCP6Renew, pd(9, "2001:db8:2:1::/64"), "IA_PD 9 T1 0 T2 0\n  2001:db8:2:1::/64 0 0")
	// It is the other's once the first is late with its renewal,
	h.now = h.now.Add(2880 * time.Second)
	h.ask(wire.DHCP6Solicit, pd(9), none)
	h.now = h.now.Add(time.Second)
	h.ask(wire.DHCP6Solicit, pd(9), granted(9, x))
	h.holds("8 " + x + " fe80::5054:ff:feab:cd01 4319") // an offer changes nothing
	h.ask(wire.DHCP6Request, pd(9, x), granted(9, x))
	h.holds("9 " + x + " fe80::5054:ff:feab:cd01 7200")
	// or at once when another system asks on the same link.
	h.src = ip("fe80::7")
	h.ask(wire.DHCP6Request, pd(10), granted(10, x))
	h.holds("10 " + x + " fe80::7 7200")
	h.ask(wire.DHCP6Request, pd(11), "IA_PD 11 T1 0 T2 0 NoPrefixAvail")
}

// TestDelegationIsBounded: the ninth IA has the prefix of the one that is the
// oldest; more than eight in one message have none.
func TestDelegationIsBounded(t *testing.T) {
	h := newHome(t, nil)
	at := func(i int) string { return fmt.Sprintf("2001:db8:2:%x::/64", i) }
	for i := range 8 {
		h.ask(wire.DHCP6Request, pd(uint32(i)), granted(i, strings.Replace(at(i), ":0::", "::", 1)))
		h.now = h.now.Add(time.Second)
	}
	h.ask(wire.DHCP6Request, pd(8), granted(8, at(8)))
	for i, p := range h.g.Prefixes {
		if p.IAID == 0 {
			t.Errorf("entry %d is %+v", i, p)
		}
	}
	var ias, want string
	for i := range 9 {
		ias += pd(uint32(20 + i))
		if i < 8 {
			x := at(i)
			if i == 0 {
				x = "2001:db8:2::/64"
			}
			want += granted(20+i, x) + "\n"
		}
	}
	h.g = responder.Guest{}
	h.ask(wire.DHCP6Solicit, ias, want+"IA_PD 28 T1 0 T2 0 NoPrefixAvail")
	h.ask(wire.DHCP6Request, ias, want+"IA_PD 28 T1 0 T2 0 NoPrefixAvail")
}

// TestHints: every length is answered with the closest one that the pool has, and
// a REQUEST gets what was offered.
func TestHints(t *testing.T) {
	for _, length := range []uint8{0, 56, 60, 64} {
		for hint := range 129 {
			h := newHome(t, func(n *responder.NIC) {
				n.V6.Prefixes = responder.Prefixes{
					{Net: pfx("2001:db8:2::/56"), Mode: responder.ModeDelegate, Length: length},
					{Net: pfx("2001:db8:2:80::/64"), Mode: responder.ModeSLAAC},
				}
			})
			bits := min(max(hint, 57), 64) // half of the pool: the rest is on the link
			switch {
			case hint == 0 && length == 0:
				bits = 64
			case hint == 0:
				bits = max(int(length), 57)
			}
			want := granted(8, fmt.Sprintf("2001:db8:2::/%d", bits))
			h.ask(wire.DHCP6Solicit, pd(8, fmt.Sprintf("::/%d", hint)), want)
			h.ask(wire.DHCP6Request, pd(8, fmt.Sprintf("2001:db8:2::/%d", bits)), want)
			// Who would like another length then can have it.
			h.ask(wire.DHCP6Solicit, pd(8, "::/58"), granted(8, "2001:db8:2::/58"))
			h.ask(wire.DHCP6Request, pd(8, "2001:db8:2::/58"), granted(8, "2001:db8:2::/58"))
			h.holds("8 2001:db8:2::/58 fe80::5054:ff:feab:cd01 7200")
		}
	}
}

// TestRenumbering: the old prefix runs out beside the new one.
func TestRenumbering(t *testing.T) {
	h := newHome(t, nil)
	const old, x = "2001:db8:2::/64", "2001:db8:3::/64"
	h.ask(wire.DHCP6Request, pd(8), granted(8, old))
	h.now = h.now.Add(600 * time.Second)
	until := h.now.Add(2 * time.Hour).Unix()
	h.set(h.nic, func(n *responder.NIC) {
		n.V6.Prefixes = responder.Prefixes{
			{Net: pfx("2001:db8:2::/60"), Mode: responder.ModeDelegate, Length: 64, Deprecated: true, Until: until},
			{Net: pfx("2001:db8:3::/60"), Mode: responder.ModeDelegate, Length: 64},
		}
	})
	both := granted(8, x) + "\n  " + old + " 0 6600"
	h.ask(wire.DHCP6Renew, pd(8, old), both)
	h.holds("8 "+old+" fe80::5054:ff:feab:cd01 6600", "8 "+x+" fe80::5054:ff:feab:cd01 7200")
	h.ask(wire.DHCP6Renew, pd(8, old, x), both)
	// A client that starts again is not given the old one.
	h.ask(wire.DHCP6Solicit, pd(8, old), granted(8, x))
	h.now = h.now.Add(6600 * time.Second)
	h.ask(wire.DHCP6Renew, pd(8, old, x), granted(8, x)+"\n  "+old+" 0 0")

	// Nothing new yet: the client asks again before the old one ends.
	h = newHome(t, nil)
	h.ask(wire.DHCP6Request, pd(8), granted(8, old))
	h.set(h.nic, func(n *responder.NIC) {
		n.V6.Prefixes[0].Deprecated, n.V6.Prefixes[0].Until = true, h.now.Add(time.Hour).Unix()
	})
	h.ask(wire.DHCP6Renew, pd(8, old), "IA_PD 8 T1 1800 T2 2880\n  "+old+" 0 3600")
	h.ask(wire.DHCP6Solicit, pd(8, old), "IA_PD 8 T1 0 T2 0 NoPrefixAvail")

	// A pool that ends caps what it gives; one that is gone gives nothing back.
	h = newHome(t, func(n *responder.NIC) { n.V6.Prefixes[0].Until = epoch.Add(1000 * time.Second).Unix() })
	h.ask(wire.DHCP6Request, pd(8), "IA_PD 8 T1 500 T2 800\n  "+old+" 1000 1000")
	h.holds("8 " + old + " fe80::5054:ff:feab:cd01 1000")
	h.now = h.now.Add(1000 * time.Second)
	h.ask(wire.DHCP6Renew, pd(8, old), "IA_PD 8 T1 0 T2 0\n  "+old+" 0 0")
	h.set(h.nic, func(n *responder.NIC) { n.V6.Prefixes = nil })
	h.ask(wire.DHCP6Renew, pd(8, old), "IA_PD 8 T1 0 T2 0\n  "+old+" 0 0")
	h.holds()
}

// TestSameTimes: T1 and T2 are the same in all IAs of a message.
func TestSameTimes(t *testing.T) {
	h := newHome(t, func(n *responder.NIC) {
		n.V6.Addrs = []netip.Addr{guest6}
		n.V6.Prefixes[0].Until = epoch.Add(1000 * time.Second).Unix()
	})
	h.ask(wire.DHCP6Request, ia6(wire.Opt6IANA, 7)+pd(8)+ia6(wire.Opt6IANA, 9),
		"IA_NA 7 T1 500 T2 800\n  2001:db8:1::42 3600 7200\nIA_PD 8 T1 500 T2 800\n  2001:db8:2::/64 1000 1000\nIA_NA 9 T1 0 T2 0 NoAddrsAvail")
}

// TestDelegationAllocatesNothing has a guest with as many prefixes as there may be.
func TestDelegationAllocatesNothing(t *testing.T) {
	l, out := mustCompile(t, prefixNIC()), make([]byte, responder.MaxReply)
	var frames [][]byte
	for i, kind := range []uint8{wire.DHCP6Request, wire.DHCP6Renew, wire.DHCP6Release} {
		options := opt6(wire.Opt6ClientID, clientDUID) + opt6(wire.Opt6ServerID, marks.ServerDUID)
		for j := range 10 {
			options += pd(uint32(i+j), "2001:db8:8::/64", fmt.Sprintf("2001:db8:2:%x::/64", i+1))
		}
		frames = append(frames, client6{kind: kind, options: options}.frame())
	}
	var g responder.Guest
	if n := testing.AllocsPerRun(20, func() {
		for _, f := range frames {
			l.Respond(&g, epoch, f, out)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
