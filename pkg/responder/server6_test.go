package responder

import (
	"bytes"
	"context"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	logtest "github.com/sirupsen/logrus/hooks/test"

	"github.com/slash32/slash32/pkg/marks"
	"github.com/slash32/slash32/pkg/wire"
)

// TestServerSpacesAdvertisements: a guest without an address is answered to all
// nodes, and no guest makes that more than one in raSpacing.
func TestServerSpacesAdvertisements(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPipe()
		s, _ := start(t, p, DefaultLimits())
		if f := <-p.out; !isRA(f) {
			t.Fatalf("not a router advertisement: %x", f)
		}
		rs := testFrame6(netip.IPv6Unspecified(), netip.MustParseAddr("ff02::2"), wire.ProtoICMPv6, []byte{wire.ICMP6RouterSolicit, 7: 0})
		time.Sleep(time.Second)
		for range 5 {
			p.in <- rs
		}
		from := time.Now()
		if f := <-p.out; !isRA(f) || time.Since(from) != raSpacing-time.Second {
			t.Errorf("answered after %s: %x", time.Since(from), f)
		}
		time.Sleep(raSpacing)
		if n := len(drain(p)); n != 0 {
			t.Errorf("%d frames more", n)
		}
		from = time.Now()
		p.in <- rs
		if f := <-p.out; !isRA(f) || time.Since(from) != 0 || !bytes.Equal(f, s.link.Load().Unsolicited(time.Now(), make([]byte, MaxReply))) {
			t.Errorf("answered after %s: %x", time.Since(from), f)
		}
		// From an address it is answered at once.
		p.in <- testFrame6(netip.MustParseAddr("fe80::7"), netip.MustParseAddr("ff02::2"), wire.ProtoICMPv6, []byte{wire.ICMP6RouterSolicit, 7: 0})
		synctest.Wait()
		if got := drain(p); len(got) != 1 || !isRA(got[0]) || got[0][0] != testGuest[0] {
			t.Errorf("%x", got)
		}
		if c := s.Counters(); c.Verdicts[RAMulticast] != 6 || c.Verdicts[RAReply] != 1 {
			t.Errorf("%d and %d", c.Verdicts[RAMulticast], c.Verdicts[RAReply])
		}
	})
}

func testFrame6(src, dst netip.Addr, proto uint8, payload []byte) []byte {
	b := wire.AppendEther(nil, wire.Ether{Dst: wire.MulticastMAC(dst), Src: testGuest, Type: wire.EtherTypeIPv6})
	b = wire.AppendIPv6(b, wire.IPv6{Src: src, Dst: dst, Proto: proto, HopLimit: 255}, len(payload))
	return append(b, payload...)
}

// ordered is a connection that notes what comes after what.
type ordered struct {
	*pipe
	events *[]string
}

func (o ordered) WriteFrame([]byte) error { *o.events = append(*o.events, "sent"); return nil }

// TestServerKeepsBeforeItSends: a prefix is on disk before the guest has it, and
// the guest does not make the disk the slowest part of the host.
func TestServerKeepsBeforeItSends(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		link, err := Compile(NIC{
			Bridge: "br0", GuestMAC: testGuest, GatewayMAC: testGateway, MTU: 1500,
			V6: V6{
				Gateway: netip.MustParseAddr("fe80::1"), Preferred: 3600, Valid: 7200,
				Prefixes: Prefixes{{Net: netip.MustParsePrefix("2001:db8::/56"), Mode: ModeDelegate, Length: 64}},
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		request := func(iaid uint32) []byte {
			b := wire.AppendDHCP6(nil, wire.DHCP6{Type: wire.DHCP6Request, XID: 1})
			b = wire.AppendOption6(b, wire.Opt6ClientID, []byte("\x00\x03id"))
			b = wire.AppendOption6(b, wire.Opt6ServerID, []byte(marks.ServerDUID))
			at := len(b)
			b = wire.EndOption6(wire.BeginIA6(b, wire.IA6{Code: wire.Opt6IAPD, IAID: iaid}), at)
			b = append(wire.AppendUDP(nil, wire.UDP{Src: 546, Dst: 547}, len(b)), b...)
			return testFrame6(netip.MustParseAddr("fe80::7"), allDHCP6Agents, wire.ProtoUDP, b)
		}
		var events []string
		log, _ := logtest.NewNullLogger()
		s := NewServer(ordered{newPipe(), &events}, link, DefaultLimits(), log)
		var kept Kept
		s.Restore(Kept{}, func(k Kept) { kept = k; events = append(events, "kept") })
		out := make([]byte, MaxReply)
		s.handle(request(7), out)
		if len(events) != 2 || events[0] != "kept" || events[1] != "sent" {
			t.Errorf("%q", events)
		}
		if p := kept.Prefixes[0]; p.Prefix.String() != "2001:db8::/64" || p.Via.String() != "fe80::7" || p.IAID != 7 || p.Expires < time.Now().Unix() {
			t.Errorf("kept %+v", p)
		}
		for i := range uint32(50) {
			s.handle(request(100+i), out)
		}
		if n := len(events) / 2; n != int(writeLimit().Burst) || s.Counters().RateLimited != 31 || s.guest.Kept != kept {
			t.Errorf("written %d times in a burst, the guest has %+v", n, s.guest.Prefixes)
		}

		// A new process knows it.
		again := NewServer(ordered{newPipe(), &events}, link, DefaultLimits(), log)
		again.Restore(kept, nil)
		if again.guest.Prefixes != kept.Prefixes {
			t.Error("not restored")
		}
	})
}

// TestServerNeverRetires: nothing that the server sends when it ends takes the
// router away from the guest.
func TestServerNeverRetires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPipe()
		log, _ := logtest.NewNullLogger()
		s := NewServer(p, testLink(t), DefaultLimits(), log)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- s.Run(ctx) }()
		synctest.Wait()
		s.Swap(testLink(t))
		time.Sleep(raSpacing)
		synctest.Wait()
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		frames := drain(p)
		for _, f := range frames {
			if ra, _, ok := wire.ParseRA(f[offICMP6:]); !ok || ra.Lifetime != 1800 {
				t.Errorf("%v %+v", ok, ra)
			}
		}
		if len(frames) != 2 {
			t.Errorf("%d frames", len(frames))
		}
	})
}
