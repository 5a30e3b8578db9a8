package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/slash32/slash32/pkg/control"
	"github.com/slash32/slash32/pkg/marks"
	"github.com/slash32/slash32/test/lab"
)

// TestSpoof lets a guest send with what is not its own. Nothing of it leaves,
// and it is counted.
func TestSpoof(t *testing.T) {
	ctx := scenario(t)
	const (
		forged4 = "198.51.100.200"
		forged6 = "2001:db8:100::bad"
		own6    = "2001:db8:100::9"
	)
	start(ctx, t, lab.Domain{
		Name:     "spoofer",
		Metadata: lab.Annotation(`ipv4="198.51.100.9" ipv6="` + own6 + `"`),
		DHCPv6:   true,
	})
	guest := world.Console("spoofer")
	must(t, guest.WaitFor(ctx, "GUEST bound"))
	must(t, world.Inet.Ping(ctx, own6))

	leaving := capture(ctx, t, world.Router, "hv0", "icmp[icmptype] == icmp-echo or icmp6[icmp6type] == icmp6-echo")
	for _, tt := range []struct {
		name, command string
		count         func(control.Spoofed) uint64
	}{
		{"IPv4 source", "ip address add " + forged4 + "/32 dev eth0; ping -c 3 -W 1 -I " + forged4 + " " + lab.Internet4 +
			"; ip address del " + forged4 + "/32 dev eth0", func(s control.Spoofed) uint64 { return s.IPv4 }},
		{"source of another VM", "ip address add " + mail4 + "/32 dev eth0; ping -c 3 -W 1 -I " + mail4 + " " + lab.Internet4 +
			"; ip address del " + mail4 + "/32 dev eth0", func(s control.Spoofed) uint64 { return s.IPv4 }},
		{"IPv6 source", "echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad; ip address add " + forged6 + "/128 dev eth0; ping -6 -c 3 -W 1 -I " + forged6 + " " + lab.Internet6 +
			"; ip address del " + forged6 + "/128 dev eth0", func(s control.Spoofed) uint64 { return s.IPv6 }},
		// The responder does not answer another MAC's ARP request for the gateway.
		{"MAC", "mac=$(cat /sys/class/net/eth0/address); ip link set eth0 address 52:54:00:66:66:66; arp -s 169.254.0.1 " + marks.GatewayMAC +
			"; ping -c 3 -W 1 " + lab.Internet4 + "; ip link set eth0 address $mac", func(s control.Spoofed) uint64 { return s.MAC }},
	} {
		spoofed := func() uint64 {
			vm, err := world.Show(ctx, "spoofer")
			must(t, err)
			return tt.count(vm.NICs[0].Spoofed)
		}
		before := spoofed()
		out, err := guest.Run(ctx, tt.command)
		must(t, err)
		if !strings.Contains(out, "3 packets transmitted, 0 packets received") {
			t.Errorf("%s: the guest's ping printed %q", tt.name, out)
		}
		eventually(ctx, t, tt.name+" is counted", func() error {
			if n := spoofed(); n < before+3 {
				return fmt.Errorf("%d counted, want 3 more than %d", n, before)
			}
			return nil
		})
	}
	// What the guest sends as itself leaves, and comes after all the rest.
	_, err := guest.Run(ctx, "ping -c 1 -W 5 "+lab.Internet4)
	must(t, err)
	eventually(ctx, t, "the guest's own packet leaves", func() error {
		return leaving.contains("IP 198.51.100.9 > " + lab.Internet4)
	})
	for _, forged := range []string{"IP " + forged4, "IP " + mail4, "IP6 " + forged6} {
		if leaving.contains(forged+" >") == nil {
			t.Errorf("a packet left: %s", leaving.text())
		}
	}
	if n := strings.Count(leaving.text(), "IP 198.51.100.9 >"); n != 1 {
		t.Errorf("%d packets of the guest's own address left, want 1: with another MAC none should: %s", n, leaving.text())
	}
}
