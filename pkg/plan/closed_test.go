package plan_test

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/slash32/slash32/pkg/config"
	"github.com/slash32/slash32/pkg/intent"
	"github.com/slash32/slash32/pkg/plan"
)

func TestClosed(t *testing.T) {
	const own, uplink, other = "169.254.0.1", "192.0.2.10", "9.9.9.9"
	list := func(as ...string) []netip.Addr { return addrs(t, as) }
	facts := plan.Facts{
		Resolvers: list(uplink),
		Links:     map[string]plan.Link{"eth0": {Addrs: []netip.Prefix{netip.MustParsePrefix(uplink + "/24")}}},
	}
	for _, c := range []struct {
		name    string
		network config.Network
		dns     []netip.Addr
		ntp     []netip.Addr
		want    string
	}{
		{"told by another server", config.Network{Relay: config.Relay{Servers: list("192.0.2.1")}}, nil, nil, ""},
		{"the host's resolver is the host", config.Network{}, nil, nil,
			"web1: W116 line 4: the VM is told of the DNS server 192.0.2.10, which is this host, and network default does not open its port. Fix: add udp/53 and tcp/53 to host_services of the network, or name another server\n"},
		{"the gateway as NTP server", config.Network{}, list(other), list(own, own),
			"web1: W116 line 4: the VM is told of the NTP server 169.254.0.1, which is this host, and network default does not open its port. Fix: add udp/123 to host_services of the network, or name another server\n"},
		{"elsewhere", config.Network{DNS: list(other)}, nil, nil, ""},
		{"opened", config.Network{Services: []config.Service{{Proto: config.ProtoUDP, Port: 53}}}, nil, nil, ""},
		{"only by TCP", config.Network{Services: []config.Service{{Proto: config.ProtoTCP, Port: 53}}, Addrs: list("192.0.2.11")}, list("192.0.2.11"), nil,
			"web1: W116 line 4: the VM is told of the DNS server 192.0.2.11, which is this host, and network default does not open its port. Fix: add udp/53 and tcp/53 to host_services of the network, or name another server\n"},
		{"all is open", config.Network{Open: true}, list(own), list(own), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.network.Name, c.network.Gateway4 = "default", netip.MustParseAddr(own)
			vm := intent.VM{Name: "web1", NICs: []intent.NIC{{Network: c.network, DNS: c.dns, NTP: c.ntp, Relay: c.network.Relay, Line: 4}}}
			got := ""
			for _, p := range facts.Closed(vm) {
				got += p.String() + "\n"
			}
			if d := cmp.Diff(c.want, got); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}
