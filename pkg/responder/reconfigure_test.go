package responder

import (
	"bytes"
	"crypto/hmac"
	"crypto/md5"
	"encoding/binary"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"

	"github.com/slash32/slash32/pkg/marks"
	"github.com/slash32/slash32/pkg/wire"
)

const testDUID = "\x00\x03\x00\x01\x52\x54\x00\x00\x00\x01"

// ask6Frame is a client's message with an IA_NA and these options.
func ask6Frame(kind uint8, options ...uint16) []byte {
	b := wire.AppendDHCP6(nil, wire.DHCP6{Type: kind, XID: 7})
	b = wire.AppendOption6(b, wire.Opt6ClientID, []byte(testDUID))
	if kind != wire.DHCP6Solicit && kind != wire.DHCP6InformationRequest && kind != wire.DHCP6Rebind {
		b = wire.AppendOption6(b, wire.Opt6ServerID, []byte(marks.ServerDUID))
	}
	if kind != wire.DHCP6InformationRequest {
		b = wire.EndOption6(wire.BeginIA6(b, wire.IA6{Code: wire.Opt6IANA, IAID: 1}), len(b))
	}
	for _, o := range options {
		b = wire.AppendOption6(b, o, nil)
	}
	b = append(wire.AppendUDP(nil, wire.UDP{Src: 546, Dst: 547}, len(b)), b...)
	return testFrame6(netip.MustParseAddr("fe80::7"), allDHCP6Agents, wire.ProtoUDP, b)
}

// read6 is a message as another implementation reads it.
func read6(t *testing.T, frame []byte) *dhcpv6.Message {
	t.Helper()
	if len(frame) < offDHCP6 || !bytes.Equal(frame[:6], testGuest[:]) || wire.SegmentChecksum(frame[offIPv6Src:offUDP6], wire.ProtoUDP, frame[offUDP6:]) != 0 {
		t.Fatalf("%x", frame)
	}
	if to := netip.AddrFrom16([16]byte(frame[offIPv6Dst:])); to.String() != "fe80::7" {
		t.Errorf("to %s", to)
	}
	m, err := dhcpv6.MessageFromBytes(frame[offDHCP6:])
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// auth takes the authentication apart.
func auth(t *testing.T, m *dhcpv6.Message, kind uint8) (replay uint64, value []byte) {
	t.Helper()
	o := m.GetOneOption(dhcpv6.OptionAuth)
	if o == nil {
		t.Fatalf("no authentication in %s", m.Summary())
	}
	b := o.ToBytes()
	if len(b) != 28 || b[0] != 3 || b[1] != 1 || b[2] != 0 || b[11] != kind {
		t.Fatalf("authentication %x", b)
	}
	return binary.BigEndian.Uint64(b[3:]), b[12:]
}

func otherLink(t *testing.T) *Link {
	t.Helper()
	l, err := Compile(NIC{
		Bridge: "br0", GuestMAC: testGuest, GatewayMAC: testGateway, MTU: 1500,
		V6: V6{Gateway: netip.MustParseAddr("fe80::1"), Addrs: []netip.Addr{netip.MustParseAddr("2001:db8::43")}, Preferred: 3600, Valid: 7200, RouterLifetime: 1800},
	})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// TestReconfigure: a client that accepts it is told to renew when its leases are
// others, until it does, with a proof that it is us.
func TestReconfigure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPipe()
		s, _ := start(t, p, DefaultLimits())
		ask := func(kind uint8, options ...uint16) *dhcpv6.Message {
			t.Helper()
			drain(p)
			p.in <- ask6Frame(kind, options...)
			synctest.Wait()
			for _, f := range drain(p) {
				if !isRA(f) {
					return read6(t, f)
				}
			}
			t.Fatal("no answer")
			return nil
		}
		// quiet waits for a time and returns what came besides RAs.
		quiet := func(d time.Duration) (got [][]byte) {
			time.Sleep(d)
			synctest.Wait()
			for _, f := range drain(p) {
				if !isRA(f) {
					got = append(got, f)
				}
			}
			return got
		}
		m := ask(wire.DHCP6Solicit, wire.Opt6ReconfigureAccept)
		if m.GetOneOption(dhcpv6.OptionReconfAccept) == nil || m.GetOneOption(dhcpv6.OptionAuth) != nil {
			t.Errorf("offered %s", m.Summary())
		}
		s.Swap(otherLink(t))
		if got := quiet(time.Minute); len(got) != 0 {
			t.Errorf("who has nothing is told %x", got)
		}
		m = ask(wire.DHCP6Request, wire.Opt6ReconfigureAccept)
		replay, key := auth(t, m, 1)
		if m.GetOneOption(dhcpv6.OptionReconfAccept) == nil || bytes.Equal(key, make([]byte, 16)) {
			t.Errorf("granted %s, key %x", m.Summary(), key)
		}
		s.Swap(otherLink(t))
		if got := quiet(time.Minute); len(got) != 0 {
			t.Errorf("the same leases are told as %x", got)
		}

		s.Swap(testLink(t))
		var at []time.Duration
		from := time.Now()
		for len(at) < reconfigureTries {
			if f := <-p.out; !isRA(f) {
				at = append(at, time.Since(from))
				m := read6(t, f)
				again, sum := auth(t, m, 2)
				if again <= replay {
					t.Errorf("replay detection %d after %d", again, replay)
				}
				replay = again
				blank := bytes.Clone(f[offDHCP6:])
				clear(blank[len(blank)-16:])
				h := hmac.New(md5.New, key)
				h.Write(blank)
				if !hmac.Equal(h.Sum(nil), sum) {
					t.Errorf("digest %x", sum)
				}
				if m.MessageType != dhcpv6.MessageTypeReconfigure || m.TransactionID != [3]byte{} ||
					string(m.Options.ClientID().ToBytes()) != testDUID || string(m.Options.ServerID().ToBytes()) != marks.ServerDUID ||
					!bytes.Equal(m.GetOneOption(dhcpv6.OptionReconfMessage).ToBytes(), []byte{5}) {
					t.Errorf("told %s", m.Summary())
				}
			}
		}
		want := []time.Duration{0, 2, 6, 14, 30, 62, 126, 254}
		for i := range at {
			if at[i] != want[i]*time.Second {
				t.Errorf("told at %v", at)
			}
		}
		if got := quiet(time.Hour); len(got) != 0 {
			t.Errorf("told again: %x", got)
		}

		// It stops when the client renews.
		s.Swap(otherLink(t))
		if got := quiet(time.Second); len(got) != 1 {
			t.Errorf("%d messages", len(got))
		}
		if m := ask(wire.DHCP6Renew, wire.Opt6ReconfigureAccept); len(m.Options.OneIANA().Options.Addresses()) != 1 {
			t.Errorf("renewed %s", m.Summary())
		}
		if got := quiet(time.Hour); len(got) != 0 {
			t.Errorf("told again: %x", got)
		}
		// Who begins anew without the option accepts none.
		if m := ask(wire.DHCP6Request); m.GetOneOption(dhcpv6.OptionReconfAccept) != nil || m.GetOneOption(dhcpv6.OptionAuth) != nil {
			t.Errorf("granted %s", m.Summary())
		}
		s.Swap(testLink(t))
		if got := quiet(time.Hour); len(got) != 0 {
			t.Errorf("told %x", got)
		}
	})
}

// TestReconfigureAllocatesNothing: the answer to who accepts one is as cheap as
// all others.
func TestReconfigureAllocatesNothing(t *testing.T) {
	l, out := testLink(t), make([]byte, MaxReply)
	var g Guest
	g.accepts.key[0] = 1
	frame := ask6Frame(wire.DHCP6Request, wire.Opt6ReconfigureAccept)
	if n := testing.AllocsPerRun(20, func() { l.Respond(&g, time.Unix(1, 0), frame, out) }); n != 0 || g.accepts.duidN == 0 {
		t.Errorf("%v allocations, %+v", n, g.accepts)
	}
}

// TestMoves is when a guest is told.
func TestMoves(t *testing.T) {
	link := func(p ...Prefix) *Link {
		l, err := Compile(NIC{
			Bridge: "br0", GuestMAC: testGuest, GatewayMAC: testGateway,
			V6: V6{Gateway: netip.MustParseAddr("fe80::1"), Preferred: 3600, Valid: 7200, Prefixes: p},
		})
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	pool := Prefix{Net: netip.MustParsePrefix("2001:db8:2::/56"), Mode: ModeDelegate}
	old, later, other := pool, pool, pool
	old.Deprecated, later.Until = true, 1<<40
	other.Net = netip.MustParsePrefix("2001:db8:3::/56")
	slaac := Prefix{Net: netip.MustParsePrefix("2001:db8:4::/64"), Mode: ModeSLAAC}
	for name, c := range map[string]struct {
		from, to []Prefix
		want     bool
	}{
		"nothing":          {nil, nil, false},
		"the same":         {[]Prefix{pool}, []Prefix{pool}, false},
		"its end moves":    {[]Prefix{pool}, []Prefix{later}, false},
		"SLAAC comes":      {[]Prefix{pool}, []Prefix{pool, slaac}, false},
		"the first pool":   {nil, []Prefix{pool}, true},
		"deprecated":       {[]Prefix{pool}, []Prefix{other, old}, true},
		"another":          {[]Prefix{pool}, []Prefix{other}, true},
		"gone for good":    {[]Prefix{pool}, nil, true},
		"SLAAC in between": {[]Prefix{slaac, pool}, []Prefix{pool}, false},
	} {
		if got := link(c.to...).moves(link(c.from...)); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}

	address := func(addrs []netip.Addr, terms ...Term) *Link {
		l, err := Compile(NIC{
			Bridge: "br0", GuestMAC: testGuest, GatewayMAC: testGateway,
			V6: V6{Gateway: netip.MustParseAddr("fe80::1"), Preferred: 3600, Valid: 7200, Addrs: addrs, Terms: terms},
		})
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	a, b := []netip.Addr{netip.MustParseAddr("2001:db8::1")}, []netip.Addr{netip.MustParseAddr("2001:db8::2")}
	ends, endsLater := Term{Addr: a[0], Preferred: 1 << 39, Until: 1 << 39}, Term{Addr: a[0], Preferred: 1 << 40, Until: 1 << 40}
	if address(a, endsLater).moves(address(a, ends)) {
		t.Error("an address's end moves: told")
	}
	if !address(b, ends).moves(address(a, ends)) || !address(nil, ends).moves(address(a, ends)) {
		t.Error("an address is on its way out: not told")
	}
}
