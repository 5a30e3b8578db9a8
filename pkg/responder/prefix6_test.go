package responder_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/mdlayher/ndp"

	"github.com/slash32/slash32/pkg/responder"
	"github.com/slash32/slash32/pkg/wire"
)

// prefixesOf are the prefix information options of a router advertisement.
func prefixesOf(t *testing.T, frame []byte) (flags uint8, got []wire.NDPrefix) {
	t.Helper()
	_, _, p := reply6(t, frame)
	ra, o, ok := wire.ParseRA(p)
	if !ok {
		t.Fatalf("%x", p)
	}
	for o.Next() {
		if x, ok := wire.ParseNDPrefix(o.Data); ok && o.Type == wire.OptNDPrefix {
			got = append(got, x)
		}
	}
	return ra.Flags, got
}

// TestPrefixInformation: lifetimes count down to the end of a prefix, in solicited
// and unsolicited advertisements.
func TestPrefixInformation(t *testing.T) {
	n := prefixNIC()
	n.V6.Prefixes[0].Until = epoch.Add(10000 * time.Second).Unix()
	l := mustCompile(t, n)
	const auto, link, pd = wire.PrefixAutonomous, wire.PrefixOnLink, wire.PrefixPreferPD
	for after, want := range map[time.Duration][][2]uint32{ // valid and preferred
		0:                   {{10000, 7200}, {3600, 0}, {14400, 7200}},
		time.Second:         {{9999, 7200}, {3599, 0}, {14400, 7200}},
		4000 * time.Second:  {{6000, 6000}, {0, 0}, {14400, 7200}},
		20000 * time.Second: {{0, 0}, {0, 0}, {14400, 7200}},
		-3 * time.Hour:      {{14400, 7200}, {7200, 0}, {14400, 7200}}, // a clock that goes wrong
	} {
		now := epoch.Add(after)
		all := []wire.NDPrefix{
			{Prefix: pfx("2001:db8:1:42::/64"), Flags: auto | link | pd},
			{Prefix: pfx("2001:db8:9::/64"), Flags: auto},
			{Prefix: pfx("2001:db8:2::/64"), Flags: auto | pd},
		}
		for i := range all {
			all[i].Valid, all[i].Preferred = want[i][0], want[i][1]
		}
		var g responder.Guest
		frames := map[string][]byte{"unsolicited": l.Unsolicited(now, make([]byte, responder.MaxReply))}
		for _, name := range []string{"pd_rs", "pd_rs_unspecified"} {
			frames[name], _ = l.Respond(&g, now, find(t, prefixMessages(), name).frame, make([]byte, responder.MaxReply))
		}
		for name, f := range frames {
			flags, got := prefixesOf(t, f)
			if d := cmp.Diff(all, got, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); d != "" {
				t.Errorf("%s after %s (-want +got):\n%s", name, after, d)
			}
			if flags != wire.RAManaged|wire.RAOther {
				t.Errorf("flags %#x", flags)
			}
		}
	}
}

// TestPrefixModes is what the flags say of the binding.
func TestPrefixModes(t *testing.T) {
	slaac := responder.Prefix{Net: pfx("2001:db8:1::/64"), Mode: responder.ModeSLAAC}
	pool := responder.Prefix{Net: pfx("2001:db8:2::/56"), Mode: responder.ModeDelegate}
	gone, goneSLAAC := pool, slaac
	gone.Deprecated, goneSLAAC.Deprecated = true, true
	route := responder.Prefix{Net: pfx("2001:db8:3::/56"), Mode: responder.ModeRoute}
	const m, o, a, p = wire.RAManaged, wire.RAOther, wire.PrefixAutonomous, wire.PrefixPreferPD
	for name, c := range map[string]struct {
		prefixes responder.Prefixes
		flags    uint8
		want     []uint8 // flags of the prefixes
	}{
		"none":                {nil, o, nil},
		"routed":              {responder.Prefixes{route}, o, nil},
		"SLAAC alone":         {responder.Prefixes{slaac}, o, []uint8{a}},
		"delegation":          {responder.Prefixes{pool}, m | o, nil},
		"both":                {responder.Prefixes{pool, slaac}, m | o, []uint8{a | p}},
		"a pool that goes":    {responder.Prefixes{gone, slaac}, m | o, []uint8{a}},
		"both, deprecated":    {responder.Prefixes{pool, goneSLAAC}, m | o, []uint8{a}},
		"deprecated for good": {responder.Prefixes{goneSLAAC}, o, []uint8{a}},
	} {
		n := fullNIC()
		n.V6.Addrs, n.V6.Prefixes = nil, c.prefixes
		flags, got := prefixesOf(t, mustCompile(t, n).Unsolicited(epoch, make([]byte, responder.MaxReply)))
		var have []uint8
		for _, x := range got {
			have = append(have, x.Flags)
		}
		if d := cmp.Diff(c.want, have); d != "" || flags != c.flags {
			t.Errorf("%s: flags %#x, want %#x (-want +got):\n%s", name, flags, c.flags, d)
		}
	}
	n := fullNIC()
	n.MTU = 1280
	for i := range 60 {
		n.V6.Prefixes = append(n.V6.Prefixes, responder.Prefix{Net: netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 1, 7: uint8(i)}), 64), Mode: responder.ModeSLAAC, Until: 1})
	}
	f := mustCompile(t, n).Unsolicited(epoch, make([]byte, responder.MaxReply))
	if _, got := prefixesOf(t, f); len(got) < 30 || len(f) > 1294 {
		t.Errorf("%d prefixes in %d bytes", len(got), len(f))
	}
}

// TestRouterAdvertisementOracle has another implementation read all of it.
func TestRouterAdvertisementOracle(t *testing.T) {
	want := fullRA()
	hour := time.Hour
	want.Options = []ndp.Option{
		want.Options[0], want.Options[1],
		&ndp.PrefixInformation{PrefixLength: 64, OnLink: true, AutonomousAddressConfiguration: true, ValidLifetime: 4 * hour, PreferredLifetime: 2 * hour, Prefix: ip("2001:db8:1:42::")},
		&ndp.PrefixInformation{PrefixLength: 64, AutonomousAddressConfiguration: true, ValidLifetime: hour, Prefix: ip("2001:db8:9::")},
		&ndp.PrefixInformation{PrefixLength: 64, AutonomousAddressConfiguration: true, ValidLifetime: 4 * hour, PreferredLifetime: 2 * hour, Prefix: ip("2001:db8:2::")},
		want.Options[2], want.Options[3],
		&ndp.PREF64{Lifetime: 1800 * time.Second, Prefix: pfx("64:ff9b::/96")},
		want.Options[4],
	}
	_, _, got := readND(t, mustCompile(t, prefixNIC()).Unsolicited(epoch, make([]byte, responder.MaxReply)))
	comparePrefixes := cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })
	if d := cmp.Diff(ndp.Message(want), got, compareAddrs, comparePrefixes); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// TestOnLinkAdvertisement: who answers for another neither claims to be it nor
// overrides it.
func TestOnLinkAdvertisement(t *testing.T) {
	l := mustCompile(t, prefixNIC())
	for name, dst := range map[string]netip.Addr{
		"pd_ns_on_link": guestLL, "pd_ns_on_link_without_link": ip("2001:db8:1:42::1"), "pd_ns_on_link_unicast": guestLL,
	} {
		to, got, m := askND(t, l, find(t, prefixMessages(), name).frame, responder.NDProxy)
		want := &ndp.NeighborAdvertisement{
			Solicited: true, TargetAddress: onLink6,
			Options: []ndp.Option{&ndp.LinkLayerAddress{Direction: ndp.Target, Addr: gatewayMAC[:]}},
		}
		if d := cmp.Diff(ndp.Message(want), m, compareAddrs); d != "" || to != guestMAC || got != dst {
			t.Errorf("%s: to %s %s (-want +got):\n%s", name, to, got, d)
		}
	}
	// What the binding gives the guest is the guest's, there too.
	n := prefixNIC()
	n.V6.Addrs = append(n.V6.Addrs, onLink6)
	if b, v := respond(mustCompile(t, n), find(t, prefixMessages(), "pd_ns_on_link").frame, make([]byte, responder.MaxReply)); v != responder.NDOwn || b != nil {
		t.Errorf("a solicitation for the guest's address: %s", v)
	}
}
