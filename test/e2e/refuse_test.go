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
		says:   []string{"198.51.100.77", "announced by another host", "via 192.0.2.1 dev up0 proto bird"},
	}, {
		name:   "address of the host itself",
		domain: lab.Domain{Metadata: lab.Annotation(`ipv4="192.0.2.2"`)},
		code:   problem.EAddressInUse,
		says:   []string{"192.0.2.2", "this host itself", "up0"},
	}, {
		name:   "address answered on the uplink",
		domain: lab.Domain{Metadata: lab.Annotation(`ipv4="192.0.2.1" network="probed"`)},
		code:   problem.EAddressInUse,
		says:   []string{"192.0.2.1", "somebody answers", "on up0"},
	}, {
		name:   "IPv6 address answered on the uplink",
		domain: lab.Domain{Metadata: lab.Annotation(`ipv6="2001:db8:0:1::1" network="probed"`)},
		code:   problem.EAddressInUse,
		says:   []string{"2001:db8:0:1::1", "somebody answers", "on up0"},
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
