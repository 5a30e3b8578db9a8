package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/slash32/slash32/pkg/control"
	"github.com/slash32/slash32/test/lab"
)

// A provider's link that is not routed: all of its /64 is on it, and the provider's
// router asks for every address.
const (
	onLinkNet    = "2001:db8:300::/64"
	onLinkRouter = "2001:db8:300::1"
	onLinkHost   = "2001:db8:300::2"
	onLinkGuest  = "2001:db8:300::42"
	advertised   = "2001:db8:200::" // a /64 that is routed to the host
)

// makeL2 adds that link, l2, with the provider's router, and routes the prefix that
// a guest is advertised.
func makeL2(ctx context.Context, l *lab.Lab) error {
	if _, err := l.AddNode(ctx, "provider"); err != nil {
		return err
	}
	_, err := l.HV.Exec(ctx, "sh", "-ec", `
		ip link add l2 type veth peer name eth0 netns provider
		for n in "" "-n provider"; do ip $n link set $([ -n "$n" ] && echo eth0 || echo l2) addrgenmode none; done
		ip address add fe80::5/64 dev l2 nodad
		ip address add `+onLinkHost+`/64 dev l2 nodad
		ip link set l2 up
		ip -n provider address add fe80::b/64 dev eth0 nodad
		ip -n provider address add `+onLinkRouter+`/64 dev eth0 nodad
		ip -n provider link set eth0 up
		ip -n rtr route add `+advertised+`/64 via 2001:db8:0:1::2
		ip -n inet route add `+advertised+`/64 via 2001:db8:9::1
	`)
	return err
}

// slaac6 is what a guest makes of its MAC in the advertised prefix.
func slaac6(t *testing.T, guest *lab.Console) string {
	t.Helper()
	ctx := scenario(t)
	addr := ""
	eventually(ctx, t, "an address by SLAAC", func() error {
		out, err := guest.Run(ctx, "ip -6 -o address show dev eth0 scope global")
		if err != nil {
			return err
		}
		for line := range strings.Lines(out) {
			fields := strings.Fields(line)
			if len(fields) > 3 && strings.HasPrefix(fields[3], strings.TrimSuffix(advertised, ":")) && !strings.Contains(line, "tentative") {
				addr = strings.TrimSuffix(fields[3], "/64")
				return nil
			}
		}
		return fmt.Errorf("the guest has %q", out)
	})
	return addr
}

// learned prints all values that a variable of dhcpcd's has had.
func learned(name string) string {
	return "sed -n 's/^" + name + "=//p' /run/dhcpcd.env | sort -u"
}

// TestOnLink is a guest with an address that a provider's router looks for on the
// link, and a prefix for SLAAC.
func TestOnLink(t *testing.T) {
	ctx := scenario(t)
	provider := world.Node("provider")
	before := mustEverything(ctx, t)
	proxied := func() string { return hv(ctx, t, "ip", "-6", "neigh", "show", "proxy") }
	adverts := capture(ctx, t, provider, "eth0", "icmp6 and ip6[40] == 136")
	start(ctx, t, lab.Domain{Name: "onlink", DHCPv6: true, Metadata: `<slash32:network xmlns:slash32='urn:slash32:domain:1'>
		<interface network="onlink"><address ip="` + onLinkGuest + `"/><prefix net="` + advertised + `/64" mode="slaac"/></interface></slash32:network>`})
	guest := world.Console("onlink")

	t.Run("announced", func(t *testing.T) {
		eventually(ctx, t, "an unsolicited advertisement", func() error {
			return adverts.contains("> ff02::1: ICMP6, neighbor advertisement, tgt is " + onLinkGuest)
		})
		if got, want := proxied(), onLinkGuest+" dev l2 "; !strings.HasPrefix(got, want) || strings.Count(got, "\n") != 1 {
			t.Errorf("proxies are %q, want one line %q", got, want)
		}
	})
	t.Run("settings", func(t *testing.T) {
		for command, want := range map[string]string{
			"ip -6 route show default | grep -c . ":                "1\n",
			"ip -6 route show default | cut -d' ' -f1-5":           "default via fe80::1 dev eth0\n",
			learned("nd1_mtu"):                                     "1400\n",
			learned("nd1_rdnss1_servers"):                          "2001:db8:9::53\n",
			learned("nd1_dnssl1_search"):                           "example.org\n",
			learned("new_dhcp6_name_servers"):                      "2001:db8:9::53\n",
			learned("new_dhcp6_domain_search"):                     "example.org\n",
			"ip -6 address show dev eth0 | grep -c " + onLinkGuest: "1\n",
		} {
			eventually(ctx, t, command, func() error {
				out, err := guest.Run(ctx, command)
				if err == nil && out != want {
					note, _ := guest.Run(ctx, "cat /run/dhcpcd.env")
					err = fmt.Errorf("%q, want %q: %s", out, want, note)
				}
				return err
			})
		}
	})
	t.Run("reached", func(t *testing.T) {
		must(t, provider.Ping(ctx, onLinkGuest))
		must(t, world.Inet.Ping(ctx, slaac6(t, guest)))
		_, err := guest.Run(ctx, "ping -6 -c 1 -W 5 "+onLinkRouter)
		must(t, err)
		// Whatever is not a guest's is not answered for.
		if _, err := provider.Exec(ctx, "ping", "-n", "-c", "1", "-W", "1", "2001:db8:300::43"); err == nil {
			t.Error("somebody answers for an address that is nobody's")
		}
	})
	must(t, world.Remove(ctx, "onlink"))
	back(ctx, t, "all of it is gone", before)
	if got := proxied(); got != "" {
		t.Errorf("proxies are left: %q", got)
	}
}

// TestSnooping shows that a responder hears multicasts of the guest's on a bridge
// that snoops and has no querier, and that the agent switches snooping off again.
func TestSnooping(t *testing.T) {
	ctx := scenario(t)
	before := mustEverything(ctx, t)
	must(t, world.StopAgent())
	hv(ctx, t, "ip", "link", "set", lab.DefaultBridge("mail"), "type", "bridge", "mcast_snooping", "1")
	guest := world.Console("mail")
	verdict := func(name string) uint64 {
		t.Helper()
		r, err := control.QueryResponder(ctx, world.HV.Path("/run/slash32/vm/"+lab.DefaultUUID("mail")+"/responder.sock"))
		must(t, err)
		return r.NICs[0].Verdicts[name]
	}
	for _, ask := range []struct{ verdict, command string }{
		{"nd_advert", "ip neigh flush dev eth0; ping -6 -c 1 -W 5 " + lab.Internet6},
		{"dhcp6_confirm", "dhcpcd -n eth0"},
	} {
		n := verdict(ask.verdict)
		_, err := guest.Run(ctx, ask.command)
		must(t, err)
		eventually(ctx, t, ask.verdict, func() error {
			if now := verdict(ask.verdict); now <= n {
				return fmt.Errorf("%d, was %d", now, n)
			}
			return nil
		})
	}
	must(t, world.StartAgent(ctx))
	back(ctx, t, "snooping is off", before)
	must(t, world.Inet.Ping(ctx, mail6))
}
