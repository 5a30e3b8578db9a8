package responder_test

import (
	"bytes"
	"encoding/hex"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/slash32/slash32/pkg/mac"
	"github.com/slash32/slash32/pkg/responder"
	"github.com/slash32/slash32/pkg/wire"
)

var update = flag.Bool("update", false, "write the golden files")

// TestGolden holds every byte of every reply.
func TestGolden(t *testing.T) {
	const file = "testdata/replies.txtar"
	out := make([]byte, 0, responder.MaxReply)
	got := &txtar.Archive{Comment: []byte("The verdict and the reply to each message of frames_test.go.\nWrite it anew with go test -run Golden -update.\n")}
	for _, s := range sets() {
		l := mustCompile(t, s.nic)
		for _, m := range s.messages {
			reply, v := respond(l, m.frame, out)
			text := fmt.Sprintf("%s\n%s", v, hex.Dump(reply))
			got.Files = append(got.Files, txtar.File{Name: m.name, Data: []byte(text)})
		}
	}
	if *update {
		if err := os.WriteFile(file, txtar.Format(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(txtar.Format(want)), string(txtar.Format(got))); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestVerdicts(t *testing.T) {
	out := make([]byte, 0, responder.MaxReply)
	seen := map[responder.Verdict]bool{
		responder.DHCP4NoAddress:       true, // TestNoIPv4
		responder.ARPProxy:             true, // TestClassicARP
		responder.DHCP4Held:            true, // TestHold
		responder.DHCP4NoAutoConfigure: true, // TestNoAutoConfigure

		// TestRelay4, TestRelay4Refusals, TestRelay6
		responder.DHCP4Relayed: true, responder.DHCP4RelayedToOne: true, responder.DHCP4Answered: true, responder.DHCP4LateAnswer: true,
		responder.DHCP4BadAnswer: true, responder.DHCP4RelayLoop: true,
		responder.DHCP6Relayed: true, responder.DHCP6Answered: true, responder.DHCP6LateAnswer: true, responder.DHCP6BadAnswer: true,
	}
	names := map[string]bool{}
	for _, s := range sets() {
		l := mustCompile(t, s.nic)
		for _, m := range s.messages {
			if names[m.name] {
				t.Errorf("two messages are called %s", m.name)
			}
			names[m.name] = true
			reply, v := respond(l, m.frame, out)
			seen[v] = true
			if v != m.want {
				t.Errorf("%s: verdict %s, want %s", m.name, v, m.want)
			}
			checkReply(t, l, s.nic, m.frame, reply, v)
		}
	}
	for v := range responder.Verdict(responder.NumVerdicts) {
		if !seen[v] {
			t.Errorf("no message has the verdict %s", v)
		}
	}
}

// checkReply holds a reply to what is true of every one of them.
func checkReply(t *testing.T, l *responder.Link, n responder.NIC, frame, reply []byte, v responder.Verdict) {
	t.Helper()
	if v >= responder.NumVerdicts {
		t.Fatalf("verdict %d of %d", v, responder.NumVerdicts)
	}
	again, v2 := respond(l, frame, make([]byte, responder.MaxReply))
	if v2 != v || !bytes.Equal(again, reply) {
		t.Errorf("%s: another answer the second time: %s\n%x\n%x", v, v2, reply, again)
	}
	if reply == nil {
		return
	}
	h, b, ok := wire.ParseEther(reply)
	if !ok {
		t.Fatalf("%s: reply without Ethernet header: %x", v, reply)
	}
	group := h.Dst[0] == 0x33 && h.Dst[1] == 0x33
	if h.Dst != n.GuestMAC && h.Dst != mac.Broadcast && !group {
		t.Errorf("%s: reply to %s, want the guest, broadcast or multicast", v, h.Dst)
	}
	if h.Src != n.GatewayMAC {
		t.Errorf("%s: reply from %s, want %s", v, h.Src, n.GatewayMAC)
	}
	if most := min(int(n.MTU), 1500) + wire.EtherLen; len(reply) > most {
		t.Errorf("%s: reply of %d bytes, want at most %d", v, len(reply), most)
	}
	checkSums(t, h.Type, b)
}

// checkSums verifies lengths and checksums of a reply.
func checkSums(t *testing.T, typ uint16, b []byte) {
	t.Helper()
	switch typ {
	case wire.EtherTypeIPv4:
		h, p, ok := wire.ParseIPv4(b)
		if !ok || len(p)+wire.IPv4Len != len(b) {
			t.Fatalf("bad IPv4 header in %x", b)
		}
		if wire.Checksum(b[:wire.IPv4Len]) != 0 {
			t.Errorf("bad IPv4 checksum in %x", b)
		}
		if _, u, ok := wire.ParseUDP(p); !ok || len(u)+wire.UDPLen != len(p) || wire.SegmentChecksum(b[12:20], h.Proto, p) != 0 {
			t.Errorf("bad UDP length or checksum in %x", b)
		}
	case wire.EtherTypeIPv6:
		h, p, ok := wire.ParseIPv6(b)
		if !ok || len(p)+wire.IPv6Len != len(b) {
			t.Fatalf("bad IPv6 header in %x", b)
		}
		if wire.SegmentChecksum(b[8:40], h.Proto, p) != 0 {
			t.Errorf("bad checksum in %x", b)
		}
	case wire.EtherTypeARP:
		if len(b) != wire.ARPLen {
			t.Errorf("ARP of %d bytes", len(b))
		}
	}
}

func TestRespondAllocatesNothing(t *testing.T) {
	out := make([]byte, 0, responder.MaxReply)
	for _, s := range sets() {
		l := mustCompile(t, s.nic)
		for _, m := range s.messages {
			if n := testing.AllocsPerRun(20, func() { respond(l, m.frame, out) }); n != 0 {
				t.Errorf("%s: %v allocations", m.name, n)
			}
		}
		if n := testing.AllocsPerRun(20, func() { l.Unsolicited(epoch, out) }); n != 0 {
			t.Errorf("Unsolicited: %v allocations", n)
		}
	}
	nic := fullNIC()
	nic.V4.Client = "auto"
	nic.V4.Boots = []responder.Boot{{For: "ipxe", File: "http://192.0.2.7/x.ipxe", Once: true}}
	auto := mustCompile(t, nic)
	var g responder.Guest
	for _, client := range []string{biosPXE, uefiHTTP, biosIPXE, linux} {
		request := client4{kind: wire.DHCP4Request, options: client + opt4Addr(wire.Opt4RequestedIP, guest4)}.frame()
		if n := testing.AllocsPerRun(20, func() { auto.Respond(&g, epoch, request, out) }); n != 0 {
			t.Errorf("%q: %v allocations", client, n)
		}
	}
}

func TestVerdictNames(t *testing.T) {
	seen := map[string]bool{}
	for v := range responder.Verdict(responder.NumVerdicts) {
		s := v.String()
		if s == "" || seen[s] || strings.ToLower(s) != s || strings.ContainsAny(s, " -") {
			t.Errorf("verdict %d is called %q", v, s)
		}
		seen[s] = true
		want := "none"
		switch p, _, _ := strings.Cut(s, "_"); p {
		case "arp", "nd", "ra", "dhcp4", "dhcp6":
			want = p
		}
		if got := v.Class().String(); got != want {
			t.Errorf("%s is of class %s, want %s", s, got, want)
		}
	}
}

func TestCompileRefuses(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(n *responder.NIC)
		want   string
	}{
		{"no guest MAC", func(n *responder.NIC) { n.GuestMAC = mac.Addr{} }, "guest's MAC"},
		{"multicast guest", func(n *responder.NIC) { n.GuestMAC[0] |= 1 }, "guest's MAC"},
		{"no gateway MAC", func(n *responder.NIC) { n.GatewayMAC = mac.Addr{} }, "gateway's MAC"},
		{"one MAC", func(n *responder.NIC) { n.GatewayMAC = n.GuestMAC }, "same MAC"},
		{"IPv6 in V4", func(n *responder.NIC) { n.V4.Addr = guest6 }, "not an IPv4"},
		{"IPv6 gateway in V4", func(n *responder.NIC) { n.V4.Gateway = gateway6 }, "not an IPv4"},
		{"no gateway", func(n *responder.NIC) { n.V4.Gateway = netip.Addr{} }, "no gateway"},
		{"one address", func(n *responder.NIC) { n.V4.Gateway = guest4 }, "same address"},
		{"small MTU", func(n *responder.NIC) { n.MTU = 575 }, "too small"},
		{"no lease", func(n *responder.NIC) { n.V4.Lease = 0 }, "lease time is 0"},
		{"T1 after T2", func(n *responder.NIC) { n.V4.T1 = 3500 }, "not in this order"},
		{"T2 after lease", func(n *responder.NIC) { n.V4.T2 = 3601 }, "not in this order"},
		{"bad search", func(n *responder.NIC) { n.Search = []string{"a..b"} }, "empty label"},
		{"bad domain", func(n *responder.NIC) { n.Domain = "a..b" }, "empty label"},
		{"global IPv6 gateway", func(n *responder.NIC) { n.V6.Gateway = guest6 }, "not a link-local"},
		{"IPv4 in V6", func(n *responder.NIC) { n.V6.Addrs = []netip.Addr{guest4} }, "not an IPv6"},
		{"one IPv6 address", func(n *responder.NIC) { n.V6.Addrs = []netip.Addr{gateway6} }, "same address"},
		{"no lifetime", func(n *responder.NIC) { n.V6.Preferred = 0 }, "lifetimes"},
		{"IPv4 prefix", prefixes(responder.Prefix{Net: pfx("10.0.0.0/8"), Mode: responder.ModeSLAAC}), "not an IPv6 prefix"},
		{"no prefix", prefixes(responder.Prefix{Mode: responder.ModeSLAAC}), "not an IPv6 prefix"},
		{"host bits", prefixes(responder.Prefix{Net: pfx("2001:db8::1/64"), Mode: responder.ModeSLAAC}), "not an IPv6 prefix"},
		{"SLAAC in a /63", prefixes(responder.Prefix{Net: pfx("2001:db8::/63"), Mode: responder.ModeSLAAC}), "/64 alone"},
		{"a pool of /65", prefixes(responder.Prefix{Net: pfx("2001:db8::/65"), Mode: responder.ModeDelegate}), "delegated from"},
		{"a pool of /8", prefixes(responder.Prefix{Net: pfx("2000::/8"), Mode: responder.ModeDelegate}), "delegated from"},
		{"exclude elsewhere", prefixes(responder.Prefix{Net: pfx("2001:db8::/56"), Mode: responder.ModeDelegate, Exclude: pfx("2001:db9::/64")}), "not a part of"},
		{"exclude all", prefixes(responder.Prefix{Net: pfx("2001:db8::/56"), Mode: responder.ModeDelegate, Exclude: pfx("2001:db8::/56")}), "not a part of"},
		{"unknown mode", prefixes(responder.Prefix{Net: pfx("2001:db8::/56"), Mode: "x"}), "not for slaac"},
		{"delegation without lifetime", func(n *responder.NIC) {
			n.V6.Addrs, n.V6.Preferred = nil, 0
			n.V6.Prefixes = responder.Prefixes{{Net: pfx("2001:db8::/56"), Mode: responder.ModeDelegate}}
		}, "delegated prefixes"},
		{"NAT64 of /95", func(n *responder.NIC) { n.V6.PREF64 = pfx("64:ff9b::/95") }, "NAT64"},
		{"bad AFTR", func(n *responder.NIC) { n.V6.AFTR = "a..b" }, "AFTR"},
		{"long AFTR", func(n *responder.NIC) { n.V6.AFTR = strings.Repeat("a.", 200) + "org" }, "AFTR"},
		{"preferred beyond valid", func(n *responder.NIC) { n.V6.Preferred = 7201 }, "lifetimes"},
	} {
		n := fullNIC()
		c.change(&n)
		_, err := responder.Compile(n)
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), n.Bridge) {
			t.Errorf("%s: error %v, want one with %q", c.name, err, c.want)
		}
	}
}

func prefixes(p ...responder.Prefix) func(n *responder.NIC) {
	return func(n *responder.NIC) { n.V6.Prefixes = p }
}

// TestNoIPv4 has a NIC with IPv6 alone, and one whose address is not given out.
func TestNoIPv4(t *testing.T) {
	out := make([]byte, 0, responder.MaxReply)
	discover := client4{kind: wire.DHCP4Discover}.frame()
	arp := arpFrame(mac.Broadcast, wire.ARP{Sender: guest4, Target: gateway4})

	n := fullNIC()
	n.V4 = responder.V4{Gateway: gateway4}
	l := mustCompile(t, n)
	if r, v := respond(l, discover, out); r != nil || v != responder.DHCP4NoAddress {
		t.Errorf("DISCOVER without an address: %s %x", v, r)
	}
	if _, v := respond(l, arp, out); v != responder.ARPReply {
		t.Errorf("ARP for the gateway without an address: %s, want %s", v, responder.ARPReply)
	}

	n.V4 = responder.V4{}
	l = mustCompile(t, n)
	for _, f := range [][]byte{discover, arp} {
		if r, v := respond(l, f, out); r != nil || v != responder.NotOurs {
			t.Errorf("no IPv4 at all: %s %x", v, r)
		}
	}
}

func TestNoIPv6(t *testing.T) {
	out := make([]byte, 0, responder.MaxReply)
	for name, change := range map[string]func(n *responder.NIC){
		"no gateway": func(n *responder.NIC) { n.V6 = responder.V6{} },
		"small MTU":  func(n *responder.NIC) { n.MTU = 1279 },
	} {
		n := fullNIC()
		change(&n)
		l := mustCompile(t, n)
		for _, m := range append(ndMessages(), dhcp6Messages()...) {
			if r, v := respond(l, m.frame, out); r != nil || v != responder.NotOurs {
				t.Errorf("%s: %s: %s %x", name, m.name, v, r)
			}
		}
		if r := l.Unsolicited(epoch, out); r != nil {
			t.Errorf("%s: unsolicited %x", name, r)
		}
	}
}

func BenchmarkRespond(b *testing.B) {
	l := mustCompile(b, fullNIC())
	out := make([]byte, 0, responder.MaxReply)
	for _, m := range messages() {
		b.Run(m.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				respond(l, m.frame, out)
			}
		})
	}
}
