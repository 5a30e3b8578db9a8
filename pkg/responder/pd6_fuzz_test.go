package responder_test

import (
	"strings"
	"testing"
	"time"

	"github.com/slash32/slash32/pkg/marks"
	"github.com/slash32/slash32/pkg/responder"
	"github.com/slash32/slash32/pkg/wire"
)

// TestDelegationFits: however much a message asks for, the reply is no longer than
// the link takes, and what it grants is kept.
func TestDelegationFits(t *testing.T) {
	for _, mtu := range []uint16{1280, 1500} {
		for name, ias := range map[string]string{
			"many IAs":        strings.Repeat(pd(1), 80),
			"many prefixes":   pd(1, strings.Split(strings.Repeat("2001:db8:bad::/64 ", 44)+"::/64", " ")...),
			"many deprecated": pd(1, strings.Split(strings.TrimSpace(strings.Repeat("2001:db8:8:1::/64 ", 44)), " ")...),
			"excluding":       oro6(wire.Opt6PDExclude) + strings.Repeat(pd(1, "::/56"), 20),
		} {
			n := prefixNIC()
			n.MTU = mtu
			h := newHome(t, nil)
			h.set(n, nil)
			options := opt6(wire.Opt6ClientID, strings.Repeat("d", 130)) + opt6(wire.Opt6ServerID, marks.ServerDUID) + ias
			f := client6{kind: wire.DHCP6Renew, options: options}.frame()
			b, v := respond(h.l, f, make([]byte, responder.MaxReply))
			checkReply(t, h.l, n, f, b, v)
			b, _ = h.l.Respond(&h.g, h.now, f, make([]byte, responder.MaxReply))
			checkKept(t, n, &h.g, h.now)
			checkGranted(t, &h.g, h.now, b)
			if t.Failed() {
				t.Fatalf("%s, MTU %d", name, mtu)
			}
		}
	}
}

// checkGranted holds a REPLY to what is kept.
func checkGranted(t *testing.T, g *responder.Guest, now time.Time, frame []byte) {
	t.Helper()
	_, _, p := reply6(t, frame)
	_, p, _ = wire.ParseUDP(p)
	m, _ := wire.ParseDHCP6(p)
	if m.Type != wire.DHCP6Reply {
		return
	}
	for o := m.Options(); o.Next(); {
		if o.Code != wire.Opt6IAPD {
			continue
		}
		ia, _ := wire.ParseIA6(o.Code, o.Data)
		for o := ia.Options(); o.Next(); {
			p, ok := wire.ParseIAPrefix6(o.Data)
			if !ok || o.Code != wire.Opt6IAPrefix || p.Valid == 0 {
				continue
			}
			kept := false
			for _, e := range g.Prefixes {
				kept = kept || e.Prefix == p.Prefix && e.IAID == ia.IAID && e.Expires == now.Unix()+int64(p.Valid)
			}
			if !kept {
				t.Errorf("IA %d has %s for %d s, kept is %+v", ia.IAID, p.Prefix, p.Valid, g.Prefixes)
			}
		}
	}
}

// FuzzDelegation sends messages one after the other to one guest's link, and
// moves it to another binding in between.
func FuzzDelegation(f *testing.F) {
	for _, m := range prefixMessages() {
		if m.want.Class() == responder.ClassDHCP6 {
			f.Add(m.frame[62:], uint16(1800))
		}
	}
	f.Add([]byte(strings.Repeat(pd(1, "::/56")+pd(2), 3)), uint16(0))
	f.Add([]byte(pd(1)+pd(1, "2001:db8:8::/56", "2001:db8:8::/60", "::/56")), uint16(91))
	after := prefixNIC()
	after.V6.Prefixes[2], after.V6.Prefixes[3] = after.V6.Prefixes[3], after.V6.Prefixes[2]
	after.V6.Prefixes[2].Deprecated, after.V6.Prefixes[3].Deprecated = false, true
	nics := []responder.NIC{prefixNIC(), after}
	links := []*responder.Link{mustCompile(f, nics[0]), mustCompile(f, nics[1])}
	f.Fuzz(func(t *testing.T, b []byte, step uint16) {
		var g responder.Guest
		now, out := epoch, make([]byte, responder.MaxReply)
		both := opt6(wire.Opt6ClientID, clientDUID) + opt6(wire.Opt6ServerID, marks.ServerDUID)
		if len(b) > 1300 {
			b = b[:1300]
		}
		half := len(b) / 2
		for i, c := range []client6{
			{kind: wire.DHCP6Request, options: both + string(b)},
			{kind: wire.DHCP6Renew, options: both + string(b[:half])},
			{kind: wire.DHCP6Solicit, options: both[:len(clientDUID)+4] + string(b)},
			{kind: wire.DHCP6Rebind, options: both[:len(clientDUID)+4] + string(b)},
			{kind: wire.DHCP6Request, options: both + string(b[half:]), src: ip("fe80::7")},
			{kind: wire.DHCP6Release, options: both + string(b[half:])},
		} {
			l, n := links[i/3], nics[i/3]
			before := g
			reply, v := l.Respond(&g, now, c.frame(), out)
			checkKept(t, n, &g, now)
			if reply != nil {
				checkGranted(t, &g, now, reply)
			}
			if v == responder.DHCP6Advertise && before.Kept != g.Kept {
				t.Errorf("an offer is kept: %+v", g.Prefixes)
			}
			now = now.Add(time.Duration(step) * time.Second)
		}
	})
}
