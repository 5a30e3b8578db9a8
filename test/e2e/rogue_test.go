package e2e

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/slash32/slash32/pkg/mac"
	"github.com/slash32/slash32/pkg/marks"
	"github.com/slash32/slash32/pkg/wire"
	"github.com/slash32/slash32/test/lab"
)

const (
	rogue4  = "198.51.100.60"
	rogue6  = "2001:db8:100::60"
	rogueLL = "fe80::bad"

	roguePrefix = "2001:db8:bad::/64"
)

// TestRogueServer lets a guest be DHCP server and router for everybody: on its
// own link, where the responder counts it, and beyond, where the guard does.
// Nothing of it is seen on another VM's link or on the uplink.
func TestRogueServer(t *testing.T) {
	ctx := scenario(t)
	start(ctx, t, lab.Domain{Name: "rogue", Metadata: lab.Annotation(`ipv4="` + rogue4 + `" ipv6="` + rogue6 + `"`)})
	guest := world.Console("rogue")
	must(t, guest.WaitFor(ctx, "GUEST bound"))
	must(t, world.WaitOnline(ctx, "rogue"))
	sender(ctx, t, guest)

	from := fmt.Sprintf("src host %s or src host %s or src host %s", rogue4, rogue6, rogueLL)
	others := map[string]*recording{
		"the link of mail": capture(ctx, t, world.HV, lab.DefaultBridge("mail"), from),
		"the link of web":  capture(ctx, t, world.HV, lab.DefaultBridge("web"), from),
		"the uplink":       capture(ctx, t, world.Router, "hv0", from),
	}
	offer := wire.AppendDHCP4(nil, wire.DHCP4{Op: 2, YIAddr: netip.MustParseAddr("198.51.100.66"), SIAddr: netip.MustParseAddr(rogue4)})
	offer = append(wire.AppendOption4(offer, wire.Opt4MessageType, []byte{wire.DHCP4Offer}), wire.Opt4End)
	advertise := wire.AppendDHCP6(nil, wire.DHCP6{Type: wire.DHCP6Advertise})
	for _, f := range []struct {
		name  string
		frame []byte
	}{
		{"OFFER on its link", udp(rogue4, "255.255.255.255", 67, 68, offer)},
		{"OFFER to the host", udp(rogue4, "192.0.2.2", 67, 68, offer)},
		{"OFFER to another VM", udp(rogue4, mail4, 67, 68, offer)},
		{"OFFER to one behind NAT", udp(rogue4, web4, 67, 68, offer)},
		{"OFFER to the world", udp(rogue4, lab.Internet4, 67, 68, offer)},
		{"ADVERTISE on its link", udp(rogueLL, "ff02::1", 547, 546, advertise)},
		{"ADVERTISE to another VM", udp(rogue6, mail6, 547, 546, advertise)},
		{"ADVERTISE to the world", udp(rogue6, lab.Internet6, 547, 546, advertise)},
		{"router advertisement", ip6(rogueLL, "ff02::1", wire.ProtoICMPv6, rogueRA())},
		// No server's: these pass, and come after all of the above.
		{"to mail", udp(rogue4, mail4, 5001, 68, offer)},
		{"to web", udp(rogue4, web4, 5001, 68, offer)},
		{"to the world", udp(rogue4, lab.Internet4, 5001, 68, offer)},
		{"to mail, IPv6", udp(rogue6, mail6, 5001, 546, advertise)},
		{"to the world, IPv6", udp(rogue6, lab.Internet6, 5001, 546, advertise)},
	} {
		_, err := guest.Run(ctx, "echo "+base64.StdEncoding.EncodeToString(f.frame)+" | base64 -d | /run/send")
		if err != nil {
			t.Fatalf("%s: %v", f.name, err)
		}
	}
	for where, lines := range map[string][]string{
		"the link of mail": {rogue4 + ".5001 > " + mail4 + ".68:", rogue6 + ".5001 > " + mail6 + ".546:"},
		"the link of web":  {rogue4 + ".5001 > " + web4 + ".68:"},
		"the uplink":       {rogue4 + ".5001 > " + lab.Internet4 + ".68:", rogue6 + ".5001 > " + lab.Internet6 + ".546:"},
	} {
		for _, line := range lines {
			eventually(ctx, t, where+": what is no server's passes", func() error { return others[where].contains(line) })
		}
	}
	for where, seen := range others {
		for _, no := range []string{rogue4 + ".67 >", rogue6 + ".547 >", rogueLL, "router advertisement"} {
			if seen.contains(no) == nil {
				t.Errorf("%q on %s: %s", no, where, seen.text())
			}
		}
	}

	verdicts := map[string]uint64{"dhcp4_rogue": 5, "dhcp6_rogue": 3, "nd_rogue_ra": 1}
	eventually(ctx, t, "all of it is counted", func() error {
		vm, err := world.Show(ctx, "rogue")
		if err != nil {
			return err
		}
		got := map[string]uint64{}
		for name := range verdicts {
			got[name] = vm.Responder.NICs[0].Verdicts[name]
		}
		if d := cmp.Diff(verdicts, got); d != "" || vm.NICs[0].Spoofed.Rogue != 8 {
			return fmt.Errorf("dropped as a server's: %d, want 8; the responder's verdicts (-want +got):\n%s", vm.NICs[0].Spoofed.Rogue, d)
		}
		return nil
	})
	out, err := world.Slash32(ctx, "show", "rogue")
	must(t, err)
	for _, line := range []string{"8 as a DHCP server", "5 dhcp4_rogue", "3 dhcp6_rogue", "1 nd_rogue_ra"} {
		if !strings.Contains(out, line) {
			t.Errorf("slash32 show lacks %q:\n%s", line, out)
		}
	}
	// The other guest has believed nothing of it.
	for _, command := range []string{"ip address show dev eth0", "ip -6 route show default"} {
		out, err := world.Console("mail").Run(ctx, command)
		must(t, err)
		if strings.Contains(out, "198.51.100.66") || strings.Contains(out, rogueLL) {
			t.Errorf("mail took the rogue's word: %s", out)
		}
	}
	// Nor has the host: no address, no route, no neighbour.
	learned := hv(ctx, t, "sh", "-c", "ip -6 address show; ip -6 route show table all; ip -6 neigh show")
	if strings.Contains(learned, rogueLL) || strings.Contains(learned, "2001:db8:bad:") {
		t.Errorf("the host took the rogue's word: %s", learned)
	}
}

// rogueRA tells everybody to use the guest as the router and to take an address of
// its prefix.
func rogueRA() []byte {
	return wire.AppendNDPrefix(wire.AppendRA(nil, wire.RA{Lifetime: 1800}), wire.NDPrefix{
		Prefix: netip.MustParsePrefix(roguePrefix), Flags: wire.PrefixOnLink | wire.PrefixAutonomous, Valid: 7200, Preferred: 7200,
	})
}

// sender puts the program of testdata/send.c into the guest.
func sender(ctx context.Context, t *testing.T, guest *lab.Console) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "send")
	out, err := exec.CommandContext(ctx, "gcc", "-static", "-nostdlib", "-Os", "-fno-stack-protector", "-fno-asynchronous-unwind-tables",
		"-Wl,--build-id=none,-z,noseparate-code,-s", "-o", path, "testdata/send.c").CombinedOutput()
	if err != nil {
		t.Fatalf("build the guest's sender: %v: %s", err, out)
	}
	b, err := os.ReadFile(path)
	must(t, err)
	_, err = guest.Run(ctx, "echo "+base64.StdEncoding.EncodeToString(b)+" | base64 -d >/run/send && chmod +x /run/send")
	must(t, err)
}

// udp is a frame of the rogue guest's.
func udp(src, dst string, sport, dport uint16, payload []byte) []byte {
	s, d := netip.MustParseAddr(src), netip.MustParseAddr(dst)
	datagram := append(wire.AppendUDP(nil, wire.UDP{Src: sport, Dst: dport}, len(payload)), payload...)
	if s.Is6() {
		return ip6(src, dst, wire.ProtoUDP, datagram)
	}
	wire.SetUDPChecksum(append(s.AsSlice(), d.AsSlice()...), datagram)
	b := wire.AppendIPv4(ether(d, wire.EtherTypeIPv4), wire.IPv4{Src: s, Dst: d, Proto: wire.ProtoUDP, TTL: 64}, len(datagram))
	return append(b, datagram...)
}

func ip6(src, dst string, proto uint8, message []byte) []byte {
	s, d := netip.MustParseAddr(src), netip.MustParseAddr(dst)
	addrs := append(s.AsSlice(), d.AsSlice()...)
	if proto == wire.ProtoUDP {
		wire.SetUDPChecksum(addrs, message)
	} else {
		wire.SetICMP6Checksum(addrs, message)
	}
	b := wire.AppendIPv6(ether(d, wire.EtherTypeIPv6), wire.IPv6{Src: s, Dst: d, Proto: proto, HopLimit: wire.NDHopLimit}, len(message))
	return append(b, message...)
}

func ether(dst netip.Addr, typ uint16) []byte {
	to := mac.MustParse(marks.GatewayMAC)
	switch {
	case dst.Is6() && dst.IsMulticast():
		to = wire.MulticastMAC(dst)
	case dst == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		to = mac.Broadcast
	}
	return wire.AppendEther(nil, wire.Ether{Dst: to, Src: mac.MustParse(lab.DefaultMAC("rogue", 0)), Type: typ})
}
