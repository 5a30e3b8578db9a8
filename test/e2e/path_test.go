package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/slash32/slash32/test/lab"
)

// TestGuests shows that each guest got its address and routes by DHCP.
func TestGuests(t *testing.T) {
	ctx := scenario(t)
	for _, tt := range []struct {
		guest, address, routes string
	}{
		{"web", web4, "default via 169.254.0.1 dev eth0 \n169.254.0.1 dev eth0 scope link \n"},
		{"mail", mail4, "default via 169.254.0.1 dev eth0 \n169.254.0.1 dev eth0 scope link \n"},
		{"seed", seed4, "default via 172.16.0.1 dev eth0 \n172.16.0.1 dev eth0 scope link \n"},
	} {
		t.Run(tt.guest, func(t *testing.T) {
			guest := world.Console(tt.guest)
			out, err := guest.Run(ctx, "ip -4 address show dev eth0")
			must(t, err)
			if !strings.Contains(out, "inet "+tt.address+"/32 scope global eth0") {
				t.Errorf("no address %s/32: %s", tt.address, out)
			}
			routes, err := guest.Run(ctx, "ip route show")
			must(t, err)
			if diff := cmp.Diff(tt.routes, routes); diff != "" {
				t.Errorf("routes (-want +got):\n%s", diff)
			}
			name, err := guest.Run(ctx, "hostname")
			must(t, err)
			if name != tt.guest+"\n" {
				t.Errorf("hostname %q by DHCP, want %s", name, tt.guest)
			}
			resolver, err := guest.Run(ctx, "cat /etc/resolv.conf")
			must(t, err)
			if !strings.Contains(resolver, "nameserver "+lab.Internet4) {
				t.Errorf("resolv.conf is %q, want the host's resolver %s", resolver, lab.Internet4)
			}
		})
	}
}

// TestIPv6 shows that a guest with an IPv6 address has it by DHCPv6 and its
// default route by RA, and that one without has no default route.
func TestIPv6(t *testing.T) {
	ctx := scenario(t)
	guest := world.Console("mail")
	for command, want := range map[string]string{
		"ip -6 address show dev eth0": "inet6 " + mail6 + "/128 scope global",
		"ip -6 route show default":    "default via fe80::1 dev eth0",
	} {
		eventually(ctx, t, want, func() error {
			out, err := guest.Run(ctx, command)
			if err == nil && !strings.Contains(out, want) {
				err = fmt.Errorf("the guest has %q", out)
			}
			return err
		})
	}
	out, err := world.Console("web").Run(ctx, "ip -6 route show default")
	must(t, err)
	if out != "" {
		t.Errorf("a guest without IPv6 has a default route: %q", out)
	}
}

// TestTraffic shows that private guests leave masqueraded, that routed ones
// are reached as they are, and that guests reach each other.
func TestTraffic(t *testing.T) {
	ctx := scenario(t)
	for _, tt := range []struct{ guest, source string }{
		{"web", lab.Uplink4},
		{"seed", lab.Uplink4},
		{"mail", mail4},
	} {
		seen := capture(ctx, t, world.Inet, "up0", "icmp[icmptype] == icmp-echo")
		_, err := world.Console(tt.guest).Run(ctx, "ping -c 1 -W 5 "+lab.Internet4)
		must(t, err)
		eventually(ctx, t, tt.guest+" leaves as "+tt.source, func() error {
			return seen.contains("IP " + tt.source + " > " + lab.Internet4 + ": ICMP echo request")
		})
	}
	must(t, world.Inet.Ping(ctx, mail4))
	must(t, world.Inet.Ping(ctx, mail6))
	_, err := world.Console("mail").Run(ctx, "ping -6 -c 1 -W 5 "+lab.Internet6)
	must(t, err)
	_, err = world.Console("web").Run(ctx, "ping -c 1 -W 5 "+mail4)
	must(t, err)
	if _, err := world.Inet.Exec(ctx, "ping", "-c", "1", "-W", "1", web4); err == nil {
		t.Errorf("the internet reaches the private address %s", web4)
	}
}

// TestLiveChange shows that an address added with virsh metadata --live is
// routed at once and guarded no more, and one taken away is not.
func TestLiveChange(t *testing.T) {
	ctx := scenario(t)
	before := mustEverything(ctx, t)
	const added = "198.51.100.8"
	guest := world.Console("mail")
	_, err := guest.Run(ctx, "ip address add "+added+"/32 dev eth0")
	must(t, err)
	annotate := func(attributes string) {
		t.Helper()
		virsh(ctx, t, "metadata", "mail", "--uri", "urn:slash32:domain:1", "--key", "slash32", "--live",
			"--set", "<network "+attributes+"/>")
	}
	annotate(`ipv4="198.51.100.7 198.51.100.8" ipv6="2001:db8:100::7"`)
	must(t, world.Inet.Ping(ctx, added))
	_, err = guest.Run(ctx, "ping -c 1 -W 5 -I "+added+" "+lab.Internet4)
	must(t, err)

	annotate(`ipv4="198.51.100.7" ipv6="2001:db8:100::7"`)
	back(ctx, t, "the added address is gone", before)
	_, err = guest.Run(ctx, "ip address del "+added+"/32 dev eth0")
	must(t, err)
	must(t, world.Inet.Ping(ctx, mail4))
}

// TestRenew shows that a guest can renew its lease.
func TestRenew(t *testing.T) {
	ctx := scenario(t)
	renewals := func() uint64 {
		vm, err := world.Show(ctx, "web")
		must(t, err)
		return vm.Responder.NICs[0].Verdicts["dhcp4_ack_renew"]
	}
	before := renewals()
	_, err := world.Console("web").Run(ctx, "kill -USR1 $(cat /run/udhcpc.pid)")
	must(t, err)
	eventually(ctx, t, "the lease is renewed", func() error {
		if n := renewals(); n == before {
			return fmt.Errorf("still %d renewals", n)
		}
		return nil
	})
}

// TestPolicyRouting shows a VM of a network with its own table: it leaves by
// that table's uplink, and the internet, other VMs and the host reach it.
func TestPolicyRouting(t *testing.T) {
	ctx := scenario(t)
	before := mustEverything(ctx, t)
	const routed, private = "198.51.100.30", "10.43.0.2"
	start(ctx, t, lab.Domain{
		Name:     "policy",
		Metadata: lab.Annotation(fmt.Sprintf(`ipv4="%s %s" network="policy"`, private, routed)),
	})
	guest := world.Console("policy")
	must(t, guest.WaitFor(ctx, "GUEST bound"))
	if _, err := world.HV.Exec(ctx, "sh", "-c", "ip route show table 100 proto 32 | grep "+routed); err != nil {
		t.Error(err)
	}
	if routes := hv(ctx, t, "ip", "route", "show", "table", "main", "proto", "32"); strings.Contains(routes, routed) {
		t.Errorf("table main has a route to %s too: %s", routed, routes)
	}

	seen := capture(ctx, t, world.Inet, "up0", "icmp[icmptype] == icmp-echo")
	_, err := guest.Run(ctx, "ping -c 1 -W 5 "+lab.Internet4)
	must(t, err)
	eventually(ctx, t, "masqueraded to the address of the table's uplink", func() error {
		return seen.contains("IP " + lab.Policy4 + " > " + lab.Internet4 + ": ICMP echo request")
	})
	_, err = guest.Run(ctx, "ip address add "+routed+"/32 dev eth0")
	must(t, err)
	replies := capture(ctx, t, world.Router, "hv1", "icmp[icmptype] == icmp-echoreply")
	must(t, world.Inet.Ping(ctx, routed))
	eventually(ctx, t, "the answer leaves by the table's uplink", func() error {
		return replies.contains("IP " + routed + " > " + lab.Internet4 + ": ICMP echo reply")
	})
	_, err = world.Console("web").Run(ctx, "ping -c 1 -W 5 "+routed)
	must(t, err)
	must(t, world.HV.Ping(ctx, routed))

	must(t, world.Remove(ctx, "policy"))
	back(ctx, t, "all of it is gone", before)
}
