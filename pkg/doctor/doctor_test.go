package doctor_test

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/slash32/slash32/pkg/config"
	"github.com/slash32/slash32/pkg/doctor"
	"github.com/slash32/slash32/pkg/firewall"
	"github.com/slash32/slash32/pkg/kernel"
)

// healthy is a host where nothing is wrong.
func healthy() doctor.Facts {
	return doctor.Facts{
		Surroundings: kernel.Surroundings{
			Defaults: []kernel.DefaultRoute{{Link: "eth0", Metric: 100}, {IPv6: true, Link: "eth0", Metric: 1024, Protocol: 9}},
			Settings: map[string]string{
				"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1", "net/ipv4/conf/all/rp_filter": "1",
				"net/ipv4/conf/eth0/rp_filter": "1", "net/ipv6/conf/eth0/accept_ra": "2", "net/ipv6/conf/eth0/forwarding": "1",
				"net/bridge/bridge-nf-call-iptables": "1",
			},
		},
		Guests:  []doctor.Guest{{VM: "web1", Bridge: "s32-web1", Tap: "vnet0", IPv4: netip.MustParseAddr("203.0.113.42"), IPv6: netip.MustParseAddr("2001:db8::42")}},
		Auto:    true,
		Forward: "manage",
		Coexist: config.Default().Coexist,
	}
}

func forward(family, table, name string, drop bool, rules ...firewall.Rule) firewall.Chain {
	return firewall.Chain{Family: family, Table: table, Name: name, Forward: true, Drop: drop, Rules: rules}
}

func jump(to string) firewall.Rule { return firewall.Rule{Verdict: firewall.Jump, Chain: to} }

// groups is a rule like the agent's for one direction.
func groups(f firewall.Field) firewall.Rule {
	return firewall.Rule{Verdict: firewall.Accept, Matches: []firewall.Match{{Field: f, Values: [][]byte{{32, 0, 0, 0}}}}}
}

func TestExamine(t *testing.T) {
	docker := []firewall.Chain{forward("ip", "filter", "FORWARD", true, jump("DOCKER-USER")), {Family: "ip", Table: "filter", Name: "DOCKER-USER"}}
	for _, c := range []struct {
		name   string
		change func(*doctor.Facts)
		want   string
	}{
		{"healthy", func(*doctor.Facts) {}, ""},
		{"docker", func(f *doctor.Facts) { f.Rules.Chains = docker },
			`offline W301 Docker: the policy of chain FORWARD in table ip filter drops what guests send, the replies to guests and new connections to guests (web1); what table inet slash32 accepts is still asked of every other table. Fix: write coexist: {docker: manage} in slash32.yaml, or run: iptables -I DOCKER-USER -m devgroup --src-group 32 -j ACCEPT; iptables -I DOCKER-USER -m devgroup --dst-group 32 -j ACCEPT
note W306 br_netfilter filters (net.bridge.bridge-nf-call-iptables): frames that a bridge of yours carries between its own ports are dropped by the same chains; slash32's bridges have one port. Fix: sysctl -w net.bridge.bridge-nf-call-iptables=0, if nothing on this host filters bridged frames by iptables
`},
		{"docker is ignored", func(f *doctor.Facts) { f.Rules.Chains, f.Coexist.Docker = docker, config.Ignore }, ""},
		{"docker opened", func(f *doctor.Facts) {
			f.Rules.Chains = []firewall.Chain{docker[0], {Family: "ip", Table: "filter", Name: "DOCKER-USER", Rules: []firewall.Rule{groups(firewall.IIFGroup), groups(firewall.OIFGroup)}}}
		}, ""},
		{"docker for IPv6 hits no guest without", func(f *doctor.Facts) {
			f.Guests[0].IPv6 = netip.Addr{}
			f.Rules.Chains = []firewall.Chain{forward("ip6", "filter", "FORWARD", true), {Family: "ip6", Table: "filter", Name: "DOCKER-USER"}}
		}, ""},
		{"only what comes in", func(f *doctor.Facts) {
			f.Settings["net/bridge/bridge-nf-call-iptables"] = "0"
			f.Rules.Chains = []firewall.Chain{forward("inet", "fw", "fwd", true, groups(firewall.IIFGroup),
				firewall.Rule{Verdict: firewall.Accept, Matches: []firewall.Match{{Field: firewall.CTState, Mask: []byte{6, 0, 0, 0}, Values: [][]byte{{0, 0, 0, 0}}, Negate: true}}})}
		}, `partial W304 the policy of chain fwd in table inet fw drops new connections to guests (web1); what table inet slash32 accepts is still asked of every other table. Fix: add to its configuration, and run: nft insert rule inet fw fwd iifgroup 32 accept; nft insert rule inet fw fwd oifgroup 32 accept
`},
		{"it depends", func(f *doctor.Facts) {
			f.Rules.Chains = []firewall.Chain{forward("inet", "fw", "fwd", true, firewall.Rule{Verdict: firewall.Accept, Matches: []firewall.Match{{}}})}
		}, ""},
		{"too much to read", func(f *doctor.Facts) { f.Rules = firewall.Ruleset{Partial: true, Chains: docker} }, ""},
		{"jumps in a circle", func(f *doctor.Facts) {
			f.Rules.Chains = []firewall.Chain{forward("ip", "filter", "FORWARD", true, jump("FORWARD"))}
		}, ""},
		{"ufw in manage", func(f *doctor.Facts) {
			f.Settings["net/bridge/bridge-nf-call-iptables"] = "0"
			f.Coexist.UFW = config.Manage
			f.Guests = append(f.Guests, doctor.Guest{VM: "db", Bridge: "lan9", IPv4: netip.MustParseAddr("203.0.113.43")})
			f.Rules.Chains = []firewall.Chain{forward("ip", "filter", "FORWARD", false, jump("ufw-reject-forward")), {Family: "ip", Table: "filter", Name: "ufw-reject-forward", Rules: []firewall.Rule{{Verdict: firewall.Drop}}}}
		}, `offline W302 ufw: chain ufw-reject-forward in table ip filter drops what guests send, the replies to guests and new connections to guests (db, web1); what table inet slash32 accepts is still asked of every other table; coexist says manage, and the agent's rules are not there or do not come first. Fix: ufw route allow in on lan9; ufw route allow out on lan9; ufw route allow in on s32-+; ufw route allow out on s32-+
`},
		{"legacy iptables", func(f *doctor.Facts) { f.Legacy = []string{"filter", "nat"} },
			"note W305 legacy iptables has a filter table, which is not read; its FORWARD chain may drop what guests send. Fix: look at iptables-legacy -S FORWARD; let iptables be iptables-nft (update-alternatives --config iptables)\n"},
		{"networkd", func(f *doctor.Facts) {
			f.Networkd = doctor.Networkd{Runs: true, ForeignRules: true, Managed: []string{"s32-web1"}}
		}, "risk W307 systemd-networkd has ManageForeignRoutingPolicyRules on: whenever it starts or reconfigures a link it removes policy rules, and routes on links that it manages; the agent puts them back. Fix: write [Network], ManageForeignRoutes=no and ManageForeignRoutingPolicyRules=no to /etc/systemd/networkd.conf.d/10-slash32.conf, and systemctl restart systemd-networkd\n" +
			"risk W307 systemd-networkd manages s32-web1: it removes addresses and routes of slash32's there. Fix: write [Match], MACAddress=02:73:6c:33:32:01, [Link] and Unmanaged=yes to /etc/systemd/network/05-slash32.network, and networkctl reload\n"},
		{"networkd does not run", func(f *doctor.Facts) { f.Networkd = doctor.Networkd{ForeignRules: true} }, ""},
		{"NetworkManager", func(f *doctor.Facts) { f.Manager = []string{"vnet0", "lan9"} },
			"risk W308 NetworkManager manages vnet0 and lan9: it may take a tap out of its bridge or addresses off it. Fix: write [keyfile] and unmanaged-devices+=interface-name:s32-*;interface-name:vnet*;interface-name:lan9 to /etc/NetworkManager/conf.d/slash32.conf, and nmcli general reload\n"},
		{"strict uplink", func(f *doctor.Facts) { f.Uplinks = []string{"bond0"} },
			"offline W309 rp_filter is strict on uplink bond0, and the host's default route is not by it: what comes from the Internet there is dropped. Fix: sysctl -w net.ipv4.conf.bond0.rp_filter=2\n"},
		{"loose uplink", func(f *doctor.Facts) {
			f.Uplinks = []string{"bond0"}
			f.Settings["net/ipv4/conf/bond0/rp_filter"] = "2"
		}, ""},
		{"accept_ra", func(f *doctor.Facts) { f.Settings["net/ipv6/conf/eth0/accept_ra"] = "1" },
			"risk W310 the IPv6 default route by eth0 is from router advertisements, which the kernel ignores where forwarding is on and accept_ra is 1: it goes when its lifetime ends. Fix: sysctl -w net.ipv6.conf.eth0.accept_ra=2\n"},
		{"accept_ra without forwarding", func(f *doctor.Facts) {
			f.Settings["net/ipv6/conf/eth0/accept_ra"], f.Settings["net/ipv6/conf/eth0/forwarding"] = "1", "0"
			f.Guests = nil
		}, ""},
		{"two default routes", func(f *doctor.Facts) {
			f.Defaults = append(f.Defaults[:1:1], kernel.DefaultRoute{Link: "wlan0", Metric: 600})
		}, "note W311 there are IPv4 default routes by eth0 (metric 100) and wlan0 (metric 600); guests' traffic is translated for eth0 and goes where the kernel sends it. Fix: name the uplink in slash32.yaml (networks: {default: {uplink: eth0}}), or give the other route a larger metric\n"},
		{"forwarding", func(f *doctor.Facts) { f.Settings["net/ipv4/ip_forward"] = "0" },
			"offline W312 net.ipv4.ip_forward is 0: guests reach nothing beyond this host. Fix: sysctl -w net.ipv4.ip_forward=1; with forwarding: manage the agent does it when the first VM starts\n"},
		{"forwarding of one link", func(f *doctor.Facts) { f.Settings["net/ipv4/conf/eth0/forwarding"] = "0" },
			"offline W312 net.ipv4.conf.eth0.forwarding is 0: guests reach nothing beyond this host. Fix: sysctl -w net.ipv4.conf.eth0.forwarding=1; with forwarding: manage the agent does it when the first VM starts\n"},
		{"forwarding before the first VM", func(f *doctor.Facts) { f.Settings["net/ipv4/ip_forward"], f.Guests = "0", nil }, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := healthy()
			c.change(&f)
			var got strings.Builder
			for _, x := range doctor.Examine(f) {
				fmt.Fprintf(&got, "%s %s\n", x.Impact, x.Problem)
			}
			if diff := cmp.Diff(c.want, got.String()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// fakeKernel knows links by index, and nothing more.
type fakeKernel map[string]int

func (k fakeKernel) Index(link string) int { return k[link] }
func (fakeKernel) Surroundings(context.Context, []string) (kernel.Surroundings, error) {
	return kernel.Surroundings{}, nil
}
func (fakeKernel) Open(context.Context, kernel.Opening, bool) (bool, error) { return false, nil }

// TestReader reads what other programs keep in files.
func TestReader(t *testing.T) {
	root := t.TempDir()
	for path, text := range map[string]string{
		"run/systemd/system/x":                                  "",
		"sys/fs/cgroup/system.slice/systemd-networkd.service/x": "",
		"sys/fs/cgroup/system.slice/NetworkManager.service/x":   "",
		"etc/systemd/networkd.conf":                             "[Network]\n#ManageForeignRoutes=no\nManageForeignRoutes=yes\n",
		"usr/lib/systemd/networkd.conf":                         "[Network]\nManageForeignRoutingPolicyRules=no\n",
		"usr/local/lib/systemd/networkd.conf.d/10-slash32.conf": "[Network]\nManageForeignRoutes = no\n",
		"usr/lib/systemd/networkd.conf.d/10-slash32.conf":       "[Network]\nManageForeignRoutingPolicyRules=false\n",
		"etc/systemd/networkd.conf.d/05-early.conf":             "[Other]\nManageForeignRoutingPolicyRules=0\n[Network]\nManageForeignRoutes=true\n",
		"run/systemd/netif/links/7":                             "ADMIN_STATE=unmanaged\nOPER_STATE=routable\n",
		"run/systemd/netif/links/8":                             "ADMIN_STATE=configured\n",
		"run/NetworkManager/devices/7":                          "[device]\nmanaged=false\n",
		"run/NetworkManager/devices/8":                          "[device]\nmanaged=true\nconnection-uuid=x\n",
	} {
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r := doctor.Reader{Kernel: fakeKernel{"s32-web1": 7, "vnet0": 8}, Root: root}
	c := config.Default()
	c.Networks["public"] = config.Network{Uplink: "bond0"}
	f, err := r.Read(t.Context(), []doctor.Guest{{Bridge: "s32-web1", Tap: "vnet0"}, {Bridge: "gone"}}, c)
	if err != nil {
		t.Fatal(err)
	}
	want := doctor.Networkd{Runs: true, ForeignRoutes: false, ForeignRules: true, Managed: []string{"vnet0"}}
	if diff := cmp.Diff(want, f.Networkd); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"vnet0"}, f.Manager); diff != "" {
		t.Error(diff)
	}
	if !f.Auto || len(f.Uplinks) != 1 || f.Uplinks[0] != "bond0" {
		t.Errorf("uplinks %v, %v", f.Auto, f.Uplinks)
	}
	// Neither runs any more.
	if err := os.RemoveAll(filepath.Join(root, "sys")); err != nil {
		t.Fatal(err)
	}
	if f, err = r.Read(t.Context(), nil, c); err != nil || f.Networkd.Runs || f.Manager != nil {
		t.Errorf("%+v, %v, %v", f.Networkd, f.Manager, err)
	}
}
