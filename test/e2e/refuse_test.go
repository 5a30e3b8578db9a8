package e2e

import (
	"context"
	"strings"
	"testing"

	"github.com/slash32/slash32/pkg/problem"
	"github.com/slash32/slash32/test/lab"
)

// TestRefused starts what must not start. virsh shows one line of ours, and
// nothing of the domain is left.
func TestRefused(t *testing.T) {
	tests := []struct {
		name   string
		domain lab.Domain
		setup  []string // commands for the hypervisor
		undo   []string
		code   problem.Code
		says   []string
	}{{
		name:   "address of a running VM",
		domain: lab.Domain{Metadata: lab.Annotation(`ipv4="` + mail4 + `"`)},
		code:   problem.EAddressInUse,
		says:   []string{mail4, `mail`},
	}, {
		name:   "IPv6 address of a running VM",
		domain: lab.Domain{Metadata: lab.Annotation(`ipv6="` + mail6 + `"`)},
		code:   problem.EAddressInUse,
		says:   []string{mail6, `mail`},
	}, {
		name:   "unknown attribute",
		domain: lab.Domain{Metadata: lab.Annotation(`ipv4="10.42.0.99" gatway="10.42.0.1"`)},
		code:   problem.EUnknown,
		says:   []string{"gatway"},
	}, {
		name:   "malformed address",
		domain: lab.Domain{Metadata: lab.Annotation(`ipv4="10.42.0.299"`)},
		code:   problem.EValue,
		says:   []string{"10.42.0.299"},
	}, {
		name:   "no such network",
		domain: lab.Domain{Metadata: lab.Annotation(`ipv4="10.42.0.99" network="sead"`)},
		code:   problem.ENetwork,
		says:   []string{"sead", "seed"},
	}, {
		name:   "bridge with a foreign port",
		domain: lab.Domain{Metadata: lab.Annotation(`ipv4="10.42.0.99"`), NICs: []lab.NIC{{Source: "lan0"}}},
		setup: []string{
			"ip link add lan0 type bridge",
			"ip link add nic0 type veth peer name wire0",
			"ip link set nic0 master lan0 up",
		},
		undo: []string{"ip link delete nic0", "ip link delete lan0"},
		code: problem.EBridgeInUse,
		says: []string{"lan0", "nic0"},
	}, {
		name:   "bridge that is not ours",
		domain: lab.Domain{Metadata: lab.Annotation(`ipv4="10.42.0.99"`), NICs: []lab.NIC{{Source: "lan0"}}},
		setup:  []string{"ip link add lan0 type bridge"},
		undo:   []string{"ip link delete lan0"},
		code:   problem.EBridgeInUse,
		says:   []string{"lan0"},
	}, {
		name:   "bridge of another VM",
		domain: lab.Domain{Metadata: lab.Annotation(`ipv4="10.42.0.99"`), NICs: []lab.NIC{{Source: lab.DefaultBridge("mail")}}},
		code:   problem.EBridgeShared,
		says:   []string{lab.DefaultBridge("mail"), `mail`},
	}, {
		name:   "name of a bridge too long",
		domain: lab.Domain{Metadata: lab.Annotation(`ipv4="10.42.0.99"`), NICs: []lab.NIC{{Source: "bridge-of-refused"}}},
		code:   problem.EBridgeName,
		says:   []string{"bridge-of-refused", "15"},
	}, {
		name:   "NIC of type network",
		domain: lab.Domain{Metadata: lab.Annotation(`ipv4="10.42.0.99"`), NICs: []lab.NIC{{Type: "network", Source: "default"}}},
		code:   problem.ENICType,
		says:   []string{"network"},
	}, {
		name:   "announced by another host",
		domain: lab.Domain{Metadata: lab.Annotation(`ipv4="198.51.100.77"`)},
		setup:  []string{"ip route add 198.51.100.77 via 192.0.2.1 proto bird"},
		undo:   []string{"ip route delete 198.51.100.77"},
		code:   problem.EAddressInUse,
		says:   []string{"address 198.51.100.77 is announced by another host: route via 192.0.2.1 dev up0 proto bird (12). Fix: "},
	}, {
		name:   "address of the host itself",
		domain: lab.Domain{Metadata: lab.Annotation(`ipv4="192.0.2.2"`)},
		code:   problem.EAddressInUse,
		says:   []string{"192.0.2.2", "this host itself", "up0"},
	}, {
		name:   "address answered on the uplink",
		domain: lab.Domain{Metadata: lab.Annotation(`ipv4="192.0.2.1" network="probed"`)},
		code:   problem.EAddressInUse,
		says:   []string{"address 192.0.2.1 is in use: somebody answers ARP at " + routerMAC(t) + " on up0. Fix: "},
	}, {
		name:   "IPv6 address answered on the uplink",
		domain: lab.Domain{Metadata: lab.Annotation(`ipv6="2001:db8:0:1::1" network="probed"`)},
		code:   problem.EAddressInUse,
		says:   []string{"address 2001:db8:0:1::1 is in use: somebody answers Neighbour Discovery at " + routerMAC(t) + " on up0. Fix: "},
	}, {
		name:   "address on the internet that answers a ping",
		domain: lab.Domain{Metadata: lab.Annotation(`ipv4="` + lab.Internet4 + `" network="pinged"`)},
		code:   problem.EAddressInUse,
		says:   []string{"address " + lab.Internet4 + " is in use: somebody answers a ping on up0. Fix: "},
	}, {
		name:   "address of a running VM, in a network that only warns",
		domain: lab.Domain{Metadata: lab.Annotation(`ipv4="` + mail4 + `" network="warned"`)},
		code:   problem.EAddressInUse,
		says:   []string{mail4, "belongs to running VM mail"},
	}, {
		name:   "more interfaces than NICs",
		domain: lab.Domain{Metadata: "<network xmlns='urn:slash32:domain:1'><interface><address ip='10.42.0.98'/></interface><interface><address ip='10.42.0.99'/></interface></network>"},
		code:   problem.ENoNIC,
	}}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ctx := scenario(t)
			for _, command := range tt.setup {
				hv(ctx, t, strings.Fields(command)...)
			}
			cleanup(t, func(ctx context.Context) {
				for _, command := range tt.undo {
					hv(ctx, t, strings.Fields(command)...)
				}
			})
			tt.domain.Name = "refused"
			tt.domain.Cheap = true
			removeAfter(t, "refused")
			traffic := ping(ctx, t, mail4)
			before := mustEverything(ctx, t)
			must(t, world.Define(ctx, tt.domain))
			_, err := world.Virsh(ctx, "start", "refused", "--paused")
			if err == nil {
				t.Fatal("it started")
			}
			t.Log(err)
			// libvirt's own text comes first, then what the hook printed.
			_, ours, found := strings.Cut(err.Error(), "unexpected exit status 1: ")
			if !found {
				t.Fatal("libvirt shows nothing of the hook's")
			}
			if strings.Contains(strings.TrimSpace(ours), "\n") {
				t.Error("more than one line")
			}
			for _, s := range append(tt.says, "refused: ", string(tt.code)+" ", "Fix: ") {
				if !strings.Contains(ours, s) {
					t.Errorf("the message lacks %q", s)
				}
			}
			back(ctx, t, "nothing is left", before)
			traffic.more(ctx, t)
			if _, lost := traffic.count(); lost != 0 {
				t.Errorf("the running VM lost %d packets", lost)
			}
		})
	}
}

// routerMAC is the MAC of who answers on the hypervisor's uplink.
func routerMAC(t *testing.T) string {
	t.Helper()
	out, err := world.Router.Exec(t.Context(), "ip", "-brief", "link", "show", "hv0") // name, state, MAC
	must(t, err)
	f := strings.Fields(out)
	if len(f) < 3 {
		t.Fatalf("no MAC in %q", out)
	}
	return f[2]
}

// TestWarned starts a VM whose address another host announces, in a network that
// only warns: it runs, and status and show say where the address was seen.
func TestWarned(t *testing.T) {
	ctx := scenario(t)
	hv(ctx, t, "ip", "route", "add", "198.51.100.78", "via", "192.0.2.1", "proto", "bird")
	cleanup(t, func(ctx context.Context) {
		hv(ctx, t, "ip", "route", "delete", "198.51.100.78", "via", "192.0.2.1", "proto", "bird")
	})
	before := mustEverything(ctx, t)
	start(ctx, t, lab.Domain{Name: "warned", Cheap: true, Metadata: lab.Annotation(`ipv4="198.51.100.78" ipv6="2001:db8:0:1::1" network="warned"`)})
	must(t, world.WaitOnline(ctx, "warned"))
	for _, command := range [][]string{{"status"}, {"show", "warned"}} {
		out, err := world.Slash32(ctx, command...)
		must(t, err)
		for _, line := range []string{
			"warned: W101 line ", "address 198.51.100.78 is announced by another host: route via 192.0.2.1 dev up0 proto bird (12)",
			"address 2001:db8:0:1::1 is in use: somebody answers Neighbour Discovery at " + routerMAC(t) + " on up0",
		} {
			if !strings.Contains(out, line) {
				t.Errorf("slash32 %s lacks %q:\n%s", command[0], line, out)
			}
		}
	}
	must(t, world.Remove(ctx, "warned"))
	back(ctx, t, "nothing is left", before)
}
