package e2e

import (
	"testing"

	"github.com/slash32/slash32/test/lab"
)

// TestRepair breaks what the agent keeps, one thing after the other.
func TestRepair(t *testing.T) {
	bridge := lab.DefaultBridge("mail")
	for _, tt := range []struct{ name, command string }{
		{"nft flushed", "nft flush ruleset"},
		{"table deleted", "nft delete table inet slash32"},
		{"guard element deleted", "nft delete element inet slash32 guard4 '{ " + bridge + " . " + mail4 + " }'"},
		{"routes flushed", "ip route flush proto 32; ip -6 route flush proto 32"},
		{"rules deleted", "ip rule flush proto 32; ip -6 rule flush proto 32"},
		{"bridge down", "ip link set " + bridge + " down"},
		{"bridge deleted", "ip link del " + bridge},
		{"tap taken out of its bridge", "ip link set $(ls /sys/class/net/" + bridge + "/brif) nomaster"},
		{"neighbours deleted", "ip neigh flush nud permanent dev " + bridge},
		{"neighbour changed", "ip neigh replace " + mail4 + " lladdr 52:54:00:00:00:99 dev " + bridge},
		{"gateway address deleted", "ip address flush dev " + bridge},
		{"sysctl changed", "sysctl -qw net.ipv4.conf." + bridge + ".rp_filter=0"},
		{"group and MTU changed", "ip link set " + bridge + " group 0 mtu 1400"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx := scenario(t)
			sysctls := func() string { return hv(ctx, t, "sysctl", "-a", "-r", `\.`+bridge+`\.`) }
			before, settings := mustEverything(ctx, t), sysctls()
			hv(ctx, t, "sh", "-c", tt.command)
			back(ctx, t, "repaired", before)
			eventually(ctx, t, "sysctls", func() error {
				if now := sysctls(); now != settings {
					return errDiff(settings, now)
				}
				return nil
			})
			must(t, world.Inet.Ping(ctx, mail4))
			must(t, world.Inet.Ping(ctx, mail6))
		})
	}
}

// TestRunDirectoryWiped wipes the run directory while the agent is down: the
// agent makes it again from libvirt's list, and no second responder.
func TestRunDirectoryWiped(t *testing.T) {
	ctx := scenario(t)
	before := mustEverything(ctx, t)
	traffic := ping(ctx, t, mail4)
	must(t, world.StopAgent())
	hv(ctx, t, "sh", "-c", "rm -rf /run/slash32")
	must(t, world.StartAgent(ctx))
	for _, vm := range []string{"web", "mail", "seed"} {
		must(t, world.WaitOnline(ctx, vm))
	}
	back(ctx, t, "all is as before", before)
	if answered, lost := traffic.count(); lost != 0 {
		t.Errorf("%d packets lost, %d answered", lost, answered)
	}
}
