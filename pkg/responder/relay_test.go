package responder_test

import (
	"bytes"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/slash32/slash32/pkg/lease"
	"github.com/slash32/slash32/pkg/responder"
	"github.com/slash32/slash32/pkg/wire"
)

var (
	serverA    = ip("10.9.0.11")
	serverB    = ip("10.9.0.12")
	server6A   = ip("fd09::11")
	leased4    = ip("10.20.0.107")
	other4     = ip("10.20.0.108")
	delegated6 = netip.MustParsePrefix("2001:db8:f000::/56")
	circuit    = responder.CircuitID([16]byte{15: 7}, guestMAC)
)

func relayNIC() responder.NIC {
	n := fullNIC()
	n.V4.Addr, n.V4.Extra, n.V4.Client = netip.Addr{}, []netip.Addr{extra4}, "auto"
	n.V6.Addrs = nil
	n.Relay = &responder.Relay{
		Index: 2, Servers4: []netip.Addr{serverA, serverB}, Servers6: []netip.Addr{server6A},
		Link4: ip("10.20.0.0"), Link6: ip("2001:db8:20::"), Circuit: circuit, Host: "hv1",
	}
	return n
}

// bench is a link that is relayed, with its guest.
type bench struct {
	*testing.T
	l   *responder.Link
	g   responder.Guest
	now time.Time
}

func newBench(t *testing.T) *bench { return &bench{T: t, l: mustCompile(t, relayNIC()), now: epoch} }

// up sends a client's message and returns what goes to the servers, after the
// header.
func (b *bench) up(c client4, want responder.Verdict, header string) wire.DHCP4 {
	b.Helper()
	out, v := b.l.Respond(&b.g, b.now, c.frame(), make([]byte, responder.MaxReply))
	if v != want {
		b.Fatalf("verdict %s, want %s", v, want)
	}
	if out == nil {
		return wire.DHCP4{}
	}
	if got := fmt.Sprintf("%x", out[:responder.RelayHeader]); got != header {
		b.Errorf("header %s, want %s", got, header)
	}
	m, ok := wire.ParseDHCP4(out[responder.RelayHeader:])
	if !ok {
		b.Fatal("not a DHCP message")
	}
	return m
}

// server4 is a server's answer.
type server4 struct {
	kind    uint8
	server  netip.Addr
	yiaddr  netip.Addr
	ciaddr  netip.Addr
	xid     uint32
	flags   uint16
	options string
	plain   bool // without lease time and mask
}

func (s server4) message() []byte {
	if s.xid == 0 {
		s.xid = 0x11223344
	}
	b := wire.AppendDHCP4(nil, wire.DHCP4{Op: 2, Hops: 1, XID: s.xid, Flags: s.flags, YIAddr: s.yiaddr, CIAddr: s.ciaddr, GIAddr: ip("10.9.0.1"), CHAddr: guestMAC})
	b = wire.AppendOption4(b, wire.Opt4MessageType, []byte{s.kind})
	b = append(b, opt4Addr(wire.Opt4ServerID, s.server)...)
	if !s.plain {
		b = append(b, opt4(wire.Opt4Lease, "\x00\x00\x00\x3c")+opt4(wire.Opt4SubnetMask, "\xff\xff\xff\x00")+opt4Addr(wire.Opt4Router, ip("10.20.0.1"))...)
	}
	b = append(b, s.options...)
	b = append(b, opt4(wire.Opt4RelayAgent, "\x01\x16"+string(circuit))...)
	return append(b, wire.Opt4End)
}

// down delivers a server's answer and returns what the guest is sent.
func (b *bench) down(from uint8, s server4, want responder.Verdict) told4 {
	b.Helper()
	reply, v := b.l.FromServer4(&b.g, b.now, from, s.message(), make([]byte, responder.MaxReply))
	if v != want || (reply != nil) != (v == responder.DHCP4Answered) {
		b.Fatalf("verdict %s and %d bytes, want %s", v, len(reply), want)
	}
	if reply == nil {
		return told4{}
	}
	checkReply4(b.T, reply)
	return read4(b.T, reply)
}

func checkReply4(t *testing.T, reply []byte) {
	t.Helper()
	eth, _, _ := wire.ParseEther(reply)
	if eth.Dst != guestMAC && eth.Dst.String() != "ff:ff:ff:ff:ff:ff" || eth.Src != gatewayMAC {
		t.Errorf("frame from %s to %s", eth.Src, eth.Dst)
	}
}

func options(m wire.DHCP4) map[uint8]string {
	out := map[uint8]string{}
	for o := m.Options(); o.Next(); {
		out[o.Code] += string(o.Data)
	}
	return out
}

const toAll, toFirst, toSecond = "010204ff", "01020400", "01020401"

// TestRelay4 follows a client through a lease that two servers in failover have a
// hand in.
func TestRelay4(t *testing.T) {
	b := newBench(t)
	ours, wanted := opt4Addr(wire.Opt4ServerID, gateway4), opt4Addr(wire.Opt4RequestedIP, leased4)

	m := b.up(client4{kind: wire.DHCP4Discover, options: opt4(wire.Opt4RelayAgent, "\x01\x03lie")}, responder.DHCP4Relayed, toAll)
	agent := "\x01\x16" + string(circuit) + "\x02\x03hv1" + "\x05\x04\x0a\x14\x00\x00" + "\x0b\x04\xa9\xfe\x00\x01"
	if got := options(m); got[82] != agent || got[53] != "\x01" || m.Hops != 1 || m.CHAddr != guestMAC {
		t.Errorf("DISCOVER is relayed with option 82 %q, hops %d", got[82], m.Hops)
	}

	// Both servers offer the same address: the guest hears it once.
	r := b.down(0, server4{kind: wire.DHCP4Offer, server: serverA, yiaddr: leased4}, responder.DHCP4Answered)
	if r.options[54] != string(gateway4.AsSlice()) || r.options[82] != "" || r.YIAddr != leased4 || !r.GIAddr.IsUnspecified() || r.Hops != 0 || r.dst != leased4 || r.options[3] != "\x0a\x14\x00\x01" {
		t.Errorf("the OFFER reaches the guest as %+v", r)
	}
	b.down(1, server4{kind: wire.DHCP4Offer, server: serverB, yiaddr: leased4}, responder.DHCP4LateAnswer)
	b.down(1, server4{kind: wire.DHCP4Offer, server: serverB, yiaddr: other4, flags: 0x8000}, responder.DHCP4Answered)

	// The client chooses; the servers are told which of them it was.
	m = b.up(client4{kind: wire.DHCP4Request, options: ours + opt4Addr(wire.Opt4RequestedIP, other4)}, responder.DHCP4Relayed, toAll)
	if got := options(m)[54]; got != string(serverB.AsSlice()) {
		t.Errorf("REQUEST names server %x", got)
	}
	m = b.up(client4{kind: wire.DHCP4Request, options: ours + wanted}, responder.DHCP4Relayed, toAll)
	if got := options(m)[54]; got != string(serverA.AsSlice()) {
		t.Errorf("REQUEST names server %x", got)
	}
	b.down(0, server4{kind: wire.DHCP4Ack, server: serverA, yiaddr: leased4}, responder.DHCP4Answered)
	want := lease.V4{Addr: leased4, Bits: 24, Server: serverA, From: serverA, Expires: epoch.Unix() + 60}
	if b.g.V4 != want {
		t.Errorf("the lease is %+v", b.g.V4)
	}
	b.down(1, server4{kind: wire.DHCP4Ack, server: serverB, yiaddr: leased4}, responder.DHCP4LateAnswer)
	if b.g.V4 != want {
		t.Errorf("the second ACK changed the lease to %+v", b.g.V4)
	}

	// Renewing reaches the one server, rebinding all; the survivor takes over.
	renew := client4{kind: wire.DHCP4Request, m: wire.DHCP4{CIAddr: leased4}, src: leased4, dst: gateway4}
	b.up(renew, responder.DHCP4RelayedToOne, toFirst)
	rebind := client4{kind: wire.DHCP4Request, m: wire.DHCP4{CIAddr: leased4}, src: leased4}
	b.up(rebind, responder.DHCP4Relayed, toAll)
	b.now = b.now.Add(50 * time.Second)
	r = b.down(1, server4{kind: wire.DHCP4Ack, server: serverB, yiaddr: leased4, ciaddr: leased4}, responder.DHCP4Answered)
	if r.dst != leased4 || b.g.V4.Server != serverB || b.g.V4.Expires != epoch.Unix()+110 {
		t.Errorf("rebound: %+v, to %s", b.g.V4, r.dst)
	}

	// What outlives the responder is enough to renew.
	kept := b.g.Kept
	b.g = responder.Guest{Kept: kept}
	b.up(renew, responder.DHCP4RelayedToOne, toSecond)

	m = b.up(client4{kind: wire.DHCP4Release, m: wire.DHCP4{CIAddr: leased4}, src: leased4, dst: gateway4, options: ours}, responder.DHCP4RelayedToOne, toSecond)
	if got := options(m)[54]; got != string(serverB.AsSlice()) || b.g.V4 != (lease.V4{}) {
		t.Errorf("RELEASE names server %x, the lease is %+v", got, b.g.V4)
	}
	b.down(0, server4{kind: wire.DHCP4Ack, server: serverA, yiaddr: leased4}, responder.DHCP4LateAnswer)
}

// TestRelay4Retries: a client that asks again is answered again, and the servers
// learn which offer it took even when it changes the transaction.
func TestRelay4Retries(t *testing.T) {
	b := newBench(t)
	offer := func(from uint8, server, a netip.Addr, want responder.Verdict) {
		t.Helper()
		b.down(from, server4{kind: wire.DHCP4Offer, server: server, yiaddr: a}, want)
	}
	for range 3 { // the first two are lost
		b.up(client4{kind: wire.DHCP4Discover}, responder.DHCP4Relayed, toAll)
		offer(0, serverA, leased4, responder.DHCP4Answered)
		offer(1, serverB, leased4, responder.DHCP4LateAnswer)
		offer(0, serverA, leased4, responder.DHCP4LateAnswer)
	}
	// The partner is faster the next time: it is the one that was chosen.
	b.up(client4{kind: wire.DHCP4Discover}, responder.DHCP4Relayed, toAll)
	offer(1, serverB, leased4, responder.DHCP4Answered)
	request := client4{kind: wire.DHCP4Request, m: wire.DHCP4{XID: 7}, options: opt4Addr(54, gateway4) + opt4Addr(50, leased4)}
	if got := options(b.up(request, responder.DHCP4Relayed, toAll))[54]; got != string(serverB.AsSlice()) {
		t.Errorf("REQUEST names server %x", got)
	}
	b.down(1, server4{kind: wire.DHCP4Ack, server: serverB, yiaddr: leased4}, responder.DHCP4LateAnswer) // to the old transaction
	b.down(1, server4{kind: wire.DHCP4Ack, server: serverB, yiaddr: leased4, xid: 7}, responder.DHCP4Answered)
	held := b.g.V4

	// No more offers than there is room for.
	b.up(client4{kind: wire.DHCP4Discover, m: wire.DHCP4{XID: 8}}, responder.DHCP4Relayed, toAll)
	for i := range 6 {
		want := responder.DHCP4Answered
		if i >= 4 {
			want = responder.DHCP4LateAnswer
		}
		b.down(0, server4{kind: wire.DHCP4Offer, server: serverA, yiaddr: netip.AddrFrom4([4]byte{10, 20, 0, byte(10 + i)}), xid: 8}, want)
	}

	// What the guest does not hold it cannot give back for another.
	b.up(client4{kind: wire.DHCP4Release, m: wire.DHCP4{CIAddr: other4}, src: other4, dst: gateway4}, responder.DHCP4Relayed, toAll)
	b.up(client4{kind: wire.DHCP4Decline, options: opt4Addr(50, other4)}, responder.DHCP4Relayed, toAll)
	if b.g.V4 != held {
		t.Errorf("the lease is %+v, want %+v", b.g.V4, held)
	}
	m := b.up(client4{kind: wire.DHCP4Decline, options: opt4Addr(50, leased4) + opt4Addr(54, gateway4)}, responder.DHCP4Relayed, toAll)
	if got := options(m)[54]; got != string(serverB.AsSlice()) || b.g.V4 != (lease.V4{}) {
		t.Errorf("DECLINE names server %x, the lease is %+v", got, b.g.V4)
	}
}

func TestRelay4Refusals(t *testing.T) {
	b := newBench(t)
	b.up(client4{kind: wire.DHCP4Discover, m: wire.DHCP4{Hops: 16}}, responder.DHCP4RelayLoop, "")
	b.up(client4{kind: wire.DHCP4Discover, m: wire.DHCP4{GIAddr: extra4}}, responder.DHCP4Relay, "")
	b.up(client4{kind: wire.DHCP4Request, options: opt4Addr(54, strange4) + opt4Addr(50, leased4)}, responder.DHCP4OtherServer, "")
	b.up(client4{kind: wire.DHCP4Offer}, responder.DHCP4Rogue, "")
	// Another machine's identifier would get the guest that one's lease.
	b.up(client4{kind: wire.DHCP4Discover, options: opt4(61, "\x01\x52\x54\x00\x00\x00\x99")}, responder.DHCP4Foreign, "")
	b.up(client4{kind: wire.DHCP4Discover, options: opt4(61, "\x01"+string(guestMAC[:]))}, responder.DHCP4Relayed, toAll)
	b.up(client4{kind: wire.DHCP4Discover, options: opt4(61, "\xff\x00\x00\x00\x01\x00\x02\x00\x00")}, responder.DHCP4Relayed, toAll)
	b.up(client4{kind: 10}, responder.DHCP4Unknown, "")
	b.up(client4{}, responder.DHCP4Unknown, "")
	long := ""
	for range 5 {
		long += opt4(43, string(make([]byte, 255)))
	}
	b.up(client4{kind: wire.DHCP4Discover, options: long}, responder.DHCP4Malformed, "")

	// A NAK ends the lease.
	b.g.V4 = lease.V4{Addr: leased4, Server: serverA, From: serverA, Expires: 1 << 40}
	b.up(client4{kind: wire.DHCP4Request, options: opt4Addr(50, leased4)}, responder.DHCP4Relayed, toAll)
	r := b.down(0, server4{kind: wire.DHCP4Nak, server: serverA, plain: true}, responder.DHCP4Answered)
	if r.dst != all4 || b.g.V4 != (lease.V4{}) {
		t.Errorf("NAK to %s, lease %+v", r.dst, b.g.V4)
	}
	// INFORM leases nothing.
	b.up(client4{kind: wire.DHCP4Inform, m: wire.DHCP4{CIAddr: extra4}, src: extra4}, responder.DHCP4Relayed, toAll)
	if b.down(0, server4{kind: wire.DHCP4Ack, server: serverA, ciaddr: extra4, plain: true}, responder.DHCP4Answered); b.g.V4 != (lease.V4{}) {
		t.Errorf("INFORM leased %+v", b.g.V4)
	}

	good := server4{kind: wire.DHCP4Offer, server: serverA, yiaddr: leased4}
	b.up(client4{kind: wire.DHCP4Discover}, responder.DHCP4Relayed, toAll)
	for name, c := range map[string]struct {
		from   uint8
		change func([]byte) []byte
		want   responder.Verdict
	}{
		"unknown server":     {2, nil, responder.DHCP4BadAnswer},
		"another guest":      {0, func(m []byte) []byte { m[28] ^= 4; return m }, responder.DHCP4BadAnswer},
		"a request":          {0, func(m []byte) []byte { m[0] = 1; return m }, responder.DHCP4BadAnswer},
		"another exchange":   {0, func(m []byte) []byte { m[4]++; return m }, responder.DHCP4LateAnswer},
		"cut":                {0, func(m []byte) []byte { return m[:239] }, responder.DHCP4BadAnswer},
		"option cut":         {0, func(m []byte) []byte { return append(m[:len(m)-1], 12, 50, 'x') }, responder.DHCP4BadAnswer},
		"without server":     {0, func(m []byte) []byte { return append(m[:240], 53, 1, 2, 255) }, responder.DHCP4BadAnswer},
		"not an answer":      {0, func(m []byte) []byte { m[242] = 4; return m }, responder.DHCP4BadAnswer},
		"longer than a link": {0, func(m []byte) []byte { return append(m, make([]byte, 1400)...) }, responder.DHCP4BadAnswer},
	} {
		m := good.message()
		if c.change != nil {
			m = c.change(m)
		}
		if reply, v := b.l.FromServer4(&b.g, b.now, c.from, m, make([]byte, responder.MaxReply)); v != c.want || reply != nil {
			t.Errorf("%s: %s, %d bytes", name, v, len(reply))
		}
	}
	if _, v := mustCompile(t, fullNIC()).FromServer4(&b.g, b.now, 0, good.message(), make([]byte, responder.MaxReply)); v != responder.DHCP4BadAnswer {
		t.Errorf("a link that is not relayed: %s", v)
	}
}

// TestRelayARP: a relayed guest is answered for its subnet, not for its lease.
func TestRelayARP(t *testing.T) {
	b := newBench(t)
	b.up(client4{kind: wire.DHCP4Discover}, responder.DHCP4Relayed, toAll)
	b.g.V4 = lease.V4{Addr: leased4}
	for target, want := range map[netip.Addr]responder.Verdict{
		ip("10.20.0.1"): responder.ARPProxy, gateway4: responder.ARPReply, leased4: responder.ARPOwn, extra4: responder.ARPOwn,
	} {
		frame := ether(gatewayMAC, wire.EtherTypeARP, wire.AppendARP(nil, wire.ARP{Op: 1, SenderMAC: guestMAC, Sender: ip("0.0.0.0"), Target: target}))
		if _, v := b.l.Respond(&b.g, b.now, frame, make([]byte, responder.MaxReply)); v != want {
			t.Errorf("who has %s: %s, want %s", target, v, want)
		}
	}
}

// wrap is a server's message in a RELAY-REPL.
func wrap(id []byte, peer netip.Addr, inner []byte) []byte {
	b := append([]byte{wire.DHCP6RelayReply, 0}, ip("2001:db8:20::").AsSlice()...)
	b = append(b, peer.AsSlice()...)
	b = append(b, opt6(wire.Opt6InterfaceID, string(id))...)
	return append(b, opt6(wire.Opt6RelayMessage, string(inner))...)
}

func TestRelay6(t *testing.T) {
	b := newBench(t)
	client := opt6(wire.Opt6ClientID, clientDUID)
	send := func(c client6) []byte {
		t.Helper()
		out, v := b.l.Respond(&b.g, b.now, c.frame(), make([]byte, responder.MaxReply))
		if v != responder.DHCP6Relayed {
			t.Fatalf("verdict %s", v)
		}
		return out
	}
	solicit := client6{kind: wire.DHCP6Solicit, options: client + ia6(wire.Opt6IANA, 7)}
	out := send(solicit)
	inner := append(wire.AppendDHCP6(nil, wire.DHCP6{Type: wire.DHCP6Solicit, XID: 0x112233}), solicit.options...)
	want := append([]byte{1, 2, 6, 0xff, wire.DHCP6RelayForward, 0}, ip("2001:db8:20::").AsSlice()...)
	want = append(want, guestLL.AsSlice()...)
	want = append(want, opt6(wire.Opt6InterfaceID, string(circuit))+opt6(79, "\x00\x01"+string(guestMAC[:]))+opt6(wire.Opt6RelayMessage, string(inner))...)
	if !bytes.Equal(out, want) {
		t.Errorf("relayed\n%x, want\n%x", out, want)
	}

	answer := func(id []byte, kind uint8, xid uint32, options string) ([]byte, responder.Verdict) {
		m := append(wire.AppendDHCP6(nil, wire.DHCP6{Type: kind, XID: xid}), options...)
		return b.l.FromServer6(&b.g, b.now, 0, wrap(id, guestLL, m), make([]byte, responder.MaxReply))
	}
	address := func(a netip.Addr, valid uint32) string {
		return ia6(wire.Opt6IANA, 7, string(wire.AppendIAAddr6(nil, wire.IAAddr6{Addr: a, Preferred: valid, Valid: valid})))
	}
	server := opt6(wire.Opt6ServerID, "\x00\x03server")
	reply, v := answer(circuit, wire.DHCP6Reply, 0x112233, client+server+opt6(wire.Opt6ServerUnicast, string(server6A.AsSlice()))+address(guest6, 60))
	if v != responder.DHCP6Answered {
		t.Fatalf("verdict %s", v)
	}
	eth, p, _ := wire.ParseEther(reply)
	checkSums(t, eth.Type, p)
	h, p, _ := wire.ParseIPv6(p)
	_, p, _ = wire.ParseUDP(p)
	m, _ := wire.ParseDHCP6(p)
	var codes []uint16
	for o := m.Options(); o.Next(); {
		codes = append(codes, o.Code)
	}
	if d := cmp.Diff([]uint16{1, 2, 3}, codes); d != "" || h.Dst != guestLL || h.Src != gateway6 || eth.Dst != guestMAC {
		t.Errorf("from %s to %s, options (-want +got):\n%s", h.Src, h.Dst, d)
	}
	if got := (lease.V6{Addr: guest6, Expires: epoch.Unix() + 60}); b.g.V6[0] != got {
		t.Errorf("leased %+v", b.g.V6)
	}
	// Another server's REPLY to the same message is not for the guest.
	if _, v := answer(circuit, wire.DHCP6Reply, 0x112233, client+server+address(second6, 60)); v != responder.DHCP6LateAnswer || b.g.V6[1].Addr.IsValid() {
		t.Errorf("the second REPLY: %s, leased %+v", v, b.g.V6)
	}
	send(solicit)
	for range 2 { // to choose is the client's
		if _, v := answer(circuit, wire.DHCP6Advertise, 0x112233, client+server+address(second6, 60)); v != responder.DHCP6Answered || b.g.V6[1].Addr.IsValid() {
			t.Errorf("ADVERTISE: %s, leased %+v", v, b.g.V6)
		}
	}
	pd := string(ia6(wire.Opt6IAPD, 8, string(wire.AppendIAPrefix6(nil, wire.IAPrefix6{Prefix: delegated6, Preferred: 60, Valid: 60}))))
	answer(circuit, wire.DHCP6Reply, 0x112233, client+server+address(second6, 60)+pd)
	if want := (lease.Prefix{Prefix: delegated6, Via: guestLL, IAID: 8, Expires: epoch.Unix() + 60}); b.g.Prefixes[0] != want {
		t.Errorf("delegated %+v", b.g.Prefixes)
	}
	send(solicit)
	answer(circuit, wire.DHCP6Reply, 0x112233, client+server+address(guest6, 0)) // taken back
	if b.g.V6[0].Addr.IsValid() || b.g.V6[1].Addr != second6 {
		t.Errorf("leased %+v", b.g.V6)
	}
	send(client6{kind: wire.DHCP6Release, options: client + server + address(second6, 0) + pd})
	if b.g.V6[1].Addr.IsValid() || b.g.Prefixes[0].Prefix.IsValid() {
		t.Errorf("after RELEASE: %+v, %+v", b.g.V6, b.g.Prefixes)
	}
	for name, c := range map[string]struct {
		got  responder.Verdict
		want responder.Verdict
	}{
		"another VM's":     {second(answer([]byte("x"), wire.DHCP6Reply, 0x112233, "")), responder.DHCP6BadAnswer},
		"another exchange": {second(answer(circuit, wire.DHCP6Reply, 1, "")), responder.DHCP6LateAnswer},
		"a request":        {second(answer(circuit, wire.DHCP6Request, 0x112233, "")), responder.DHCP6BadAnswer},
		"malformed":        {second(answer(circuit, wire.DHCP6Reply, 0x112233, "\x00\x01\x00\xff")), responder.DHCP6BadAnswer},
		"reconfigure":      {second(answer(circuit, wire.DHCP6Reconfigure, 0, client+server)), responder.DHCP6Answered},
		"too long":         {second(answer(circuit, wire.DHCP6Reply, 0x112233, opt6(99, string(make([]byte, 1450))))), responder.DHCP6BadAnswer},
	} {
		if c.got != c.want {
			t.Errorf("%s: %s, want %s", name, c.got, c.want)
		}
	}
	// The guest is told to ask.
	ra := b.l.Unsolicited(epoch, make([]byte, responder.MaxReply))
	if ra[wire.EtherLen+wire.IPv6Len+5]&wire.RAManaged == 0 {
		t.Error("the router advertisement lacks the M flag")
	}
}

func second(_ []byte, v responder.Verdict) responder.Verdict { return v }

func TestRelayAllocatesNothing(t *testing.T) {
	b := newBench(t)
	out := make([]byte, responder.MaxReply)
	discover, request := client4{kind: wire.DHCP4Discover}.frame(), client4{kind: wire.DHCP4Request, options: opt4Addr(54, gateway4) + opt4Addr(50, leased4)}.frame()
	offer, ack := server4{kind: wire.DHCP4Offer, server: serverA, yiaddr: leased4}.message(), server4{kind: wire.DHCP4Ack, server: serverA, yiaddr: leased4}.message()
	solicit := client6{kind: wire.DHCP6Solicit, options: opt6(wire.Opt6ClientID, clientDUID) + ia6(wire.Opt6IANA, 7)}.frame()
	if n := testing.AllocsPerRun(20, func() {
		b.l.Respond(&b.g, b.now, discover, out)
		b.l.FromServer4(&b.g, b.now, 0, offer, out)
		b.l.Respond(&b.g, b.now, request, out)
		b.l.FromServer4(&b.g, b.now, 0, ack, out)
		b.l.Respond(&b.g, b.now, solicit, out)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzFromServer: whatever a server sends, the frame goes to this guest, is no
// longer than the link takes and has right checksums.
func FuzzFromServer(f *testing.F) {
	f.Add(server4{kind: wire.DHCP4Ack, server: serverA, yiaddr: leased4}.message())
	f.Add(wrap(circuit, guestLL, append(wire.AppendDHCP6(nil, wire.DHCP6{Type: wire.DHCP6Reply, XID: 0x112233}), ia6(wire.Opt6IANA, 7, addr6(guest6))...)))
	l := mustCompile(f, relayNIC())
	f.Fuzz(func(t *testing.T, message []byte) {
		for _, from := range []func(*responder.Guest, time.Time, uint8, []byte, []byte) ([]byte, responder.Verdict){l.FromServer4, l.FromServer6} {
			var g responder.Guest
			out := make([]byte, responder.MaxReply)
			l.Respond(&g, epoch, client4{kind: wire.DHCP4Discover}.frame(), out)
			l.Respond(&g, epoch, client6{kind: wire.DHCP6Solicit, options: opt6(wire.Opt6ClientID, clientDUID)}.frame(), out)
			reply, _ := from(&g, epoch, 0, message, out)
			if reply == nil {
				continue
			}
			eth, b, _ := wire.ParseEther(reply)
			checkSums(t, eth.Type, b)
			if eth.Src != gatewayMAC || len(reply) > 1514 {
				t.Errorf("%d bytes from %s", len(reply), eth.Src)
			}
		}
	})
}
