package kernel_test

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/slash32/slash32/pkg/firewall"
	"github.com/slash32/slash32/pkg/firewall/firewalltest"
	"github.com/slash32/slash32/pkg/kernel"
)

func restore(t testing.TB, program, rules string) {
	t.Helper()
	cmd := exec.Command(program, "--noflush")
	cmd.Stdin = strings.NewReader(rules)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", program, err, out)
	}
}

func name16(s string) []byte { return append([]byte(s), make([]byte, 16-len(s))...) }
func u32(v byte) []byte      { return []byte{v, 0, 0, 0} } // of this machine

const (
	established = 2
	new_        = 8
)

// forwarded is a TCP packet between two interfaces.
func forwarded(in, out string, state byte) firewall.Packet {
	group := func(name string) []byte {
		if strings.HasPrefix(name, "s32-") {
			return u32(32)
		}
		return u32(0)
	}
	return firewall.Packet{
		firewall.IIFName: name16(in), firewall.OIFName: name16(out), firewall.IIFGroup: group(in), firewall.OIFGroup: group(out),
		firewall.NFProto: {unix.NFPROTO_IPV4}, firewall.L4Proto: {6}, firewall.CTState: u32(state), firewall.Bridged: {0},
	}
}

// fates of a packet in each forward chain of others, in words.
func fates(t testing.TB, k *kernel.Kernel, p firewall.Packet) string {
	t.Helper()
	s, err := k.Forwarding(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	var words []string
	for _, c := range s.Chains {
		if !c.Forward {
			continue
		}
		f := s.Fate(c, p)
		word := "accepted"
		if f.Dropped {
			word = "dropped by " + f.By
			if f.Accepted {
				word = "depends"
			}
		}
		words = append(words, c.Family+" "+c.Table+": "+word)
	}
	return strings.Join(words, "; ")
}

// TestForwarding holds that foreign rules are understood: what becomes of a packet,
// of the real rules as the programs write them.
func TestForwarding(t *testing.T) {
	out, in, reply := forwarded("s32-a", "eth0", new_), forwarded("eth0", "s32-a", new_), forwarded("eth0", "s32-a", established)
	type want struct {
		p    firewall.Packet
		fate string
	}
	for name, c := range map[string]struct {
		iptables, nft string
		want          []want
	}{
		"docker": {iptables: firewalltest.Docker, want: []want{
			{out, "ip filter: dropped by the policy of chain FORWARD"}, {in, "ip filter: dropped by the policy of chain FORWARD"},
			{forwarded("docker0", "eth0", new_), "ip filter: accepted"}, {forwarded("eth0", "docker0", established), "ip filter: accepted"},
			{forwarded("docker0", "s32-a", new_), "ip filter: accepted"},
		}},
		"docker half open": {iptables: firewalltest.Docker + "*filter\n-I DOCKER-USER -i s32-+ -j ACCEPT\n-I DOCKER-USER -o s32-+ -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\nCOMMIT\n", want: []want{
			{out, "ip filter: accepted"}, {reply, "ip filter: accepted"}, {in, "ip filter: dropped by the policy of chain FORWARD"},
		}},
		"docker by group": {iptables: firewalltest.Docker + "*filter\n-I DOCKER-USER -m devgroup --src-group 32 -j ACCEPT\nCOMMIT\n", want: []want{
			{out, "ip filter: accepted"}, {reply, "ip filter: dropped by the policy of chain FORWARD"},
		}},
		"after the return": {iptables: firewalltest.Docker + "*filter\n-A DOCKER-USER -i s32-+ -j ACCEPT\nCOMMIT\n", want: []want{
			{out, "ip filter: dropped by the policy of chain FORWARD"},
		}},
		"what is not known": {iptables: "*filter\n:FORWARD DROP [0:0]\n-A FORWARD -p tcp --dport 22 -j ACCEPT\n-A FORWARD -p udp -j ACCEPT\n-A FORWARD -m limit --limit 1/s -j LOG\nCOMMIT\n", want: []want{
			{out, "ip filter: depends"},
		}},
		"not ours": {iptables: "*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -m physdev --physdev-is-bridged -j DROP\n-A FORWARD ! -i s32-a -o eth1 -j REJECT\nCOMMIT\n", want: []want{
			{out, "ip filter: accepted"}, {forwarded("eth0", "eth1", new_), "ip filter: dropped by chain FORWARD"},
		}},
		"native": {nft: `
			table inet fw {
				set lans { type ifname; elements = { "s32-a", "s32-b" } }
				chain forward { type filter hook forward priority filter; policy drop;
					ct state vmap { established : accept, related : accept, invalid : drop }
					meta l4proto { icmp, icmpv6 } accept
					iifname @lans oifname "eth0" accept
					iifname "eth0" goto from_eth
				}
				chain from_eth { oifname { "s32-a", "s32-b" } meta nfproto ipv4 ct state new jump deny; accept; }
				chain deny { iifname "lo" return; reject with icmpx admin-prohibited; }
			}`, want: []want{
			{out, "inet fw: accepted"}, {reply, "inet fw: accepted"}, {in, "inet fw: dropped by chain deny"}, {forwarded("s32-a", "eth1", new_), "inet fw: dropped by the policy of chain forward"},
			{forwarded("eth0", "eth9", new_), "inet fw: accepted"},
		}},
		"addresses": {nft: `
			table ip fw { chain forward { type filter hook forward priority 5; ip saddr 10.42.0.0/16 drop; ip daddr 10.42.0.0/20 iifgroup 0 accept; ip daddr 10.0.0.0/8 drop; }; }`, want: []want{
			{out, "ip fw: depends"},
			{with(out, firewall.Source, 10, 42, 0, 7), "ip fw: dropped by chain forward"},
			{with(in, firewall.Destination, 10, 42, 0, 7), "ip fw: depends"}, // whose it is is not known
			{with(with(in, firewall.Source, 192, 0, 2, 1), firewall.Destination, 10, 42, 0, 7), "ip fw: accepted"},
			{with(with(in, firewall.Source, 192, 0, 2, 1), firewall.Destination, 10, 99, 0, 7), "ip fw: dropped by chain forward"},
		}},
		"two tables": {iptables: firewalltest.Docker, nft: `table inet o { chain f { type filter hook forward priority 10; iifname "s32-*" counter log prefix "x" reject; }; }`, want: []want{
			{out, "ip filter: dropped by the policy of chain FORWARD; inet o: dropped by chain f"},
			{in, "ip filter: dropped by the policy of chain FORWARD; inet o: accepted"},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			inNamespace(t)
			k := open(t)
			if c.iptables != "" {
				restore(t, "iptables-nft-restore", c.iptables)
			}
			if c.nft != "" {
				nft(t, c.nft)
			}
			for i, w := range c.want {
				if got := fates(t, k, w.p); got != w.fate {
					t.Errorf("packet %d: %s\nwant      %s", i, got, w.fate)
				}
			}
		})
	}
}

func with(p firewall.Packet, f firewall.Field, v ...byte) firewall.Packet {
	out := firewall.Packet{f: v}
	for field, v := range p {
		if field != f {
			out[field] = v
		}
	}
	return out
}

// TestOpen adds the rules of ours to Docker's own chain and takes nothing else away.
func TestOpen(t *testing.T) {
	inNamespace(t)
	k := open(t)
	ctx := context.Background()
	o := kernel.Opening{Family: "ip", Table: "filter", Chain: "DOCKER-USER"}
	must := func(wanted, change bool) {
		t.Helper()
		changed, err := k.Open(ctx, o, wanted)
		if err != nil || changed != change {
			t.Fatalf("changed %v, want %v: %v", changed, change, err)
		}
	}
	must(true, false) // there is no such table
	restore(t, "iptables-nft-restore", firewalltest.Docker+"*filter\n-I DOCKER-USER -s 198.51.100.1 -j DROP\nCOMMIT\n")
	before := run(t, "iptables-nft -S")
	must(false, false)
	must(true, true)
	must(true, false)
	const want = `-A DOCKER-USER -s 198.51.100.1/32 -j DROP
-A DOCKER-USER -m devgroup --src-group 0x20 -m comment --comment slash32 -j ACCEPT
-A DOCKER-USER -m devgroup --dst-group 0x20 -m comment --comment slash32 -j ACCEPT
-A DOCKER-USER -j RETURN
`
	if got := run(t, "iptables-nft -S"); !strings.HasSuffix(got, want) {
		t.Errorf("iptables -S:\n%s", got)
	}
	if got := fates(t, k, with(forwarded("s32-a", "eth0", new_), firewall.Source, 10, 42, 0, 7)) + ", " + fates(t, k, with(forwarded("eth0", "s32-a", new_), firewall.Source, 192, 0, 2, 1)); got != "ip filter: accepted, ip filter: accepted" {
		t.Error(got)
	}
	// Whoever takes one away, or has them stand behind the end, gets them back.
	run(t, "iptables-nft -D DOCKER-USER 3")
	must(true, true)
	run(t, "iptables-nft -I DOCKER-USER -j RETURN")
	must(true, true)
	must(true, false)
	run(t, "iptables-nft -D DOCKER-USER -j RETURN")
	run(t, "iptables-nft -A DOCKER-USER -j RETURN")
	must(false, true)
	must(false, false)
	if got := run(t, "iptables-nft -S"); strings.ReplaceAll(got, "-A DOCKER-USER -j RETURN\n", "") != strings.ReplaceAll(before, "-A DOCKER-USER -j RETURN\n", "") {
		t.Errorf("it was\n%sand is\n%s", before, got)
	}

	// A chain of nft's.
	nft(t, `table inet firewalld { chain filter_FORWARD { type filter hook forward priority 10; ct state established accept; reject; }; }`)
	o = kernel.Opening{Family: "inet", Table: "firewalld", Chain: "filter_FORWARD", Native: true, First: true}
	must(true, true)
	must(true, false)
	if got := run(t, "nft list chain inet firewalld filter_FORWARD"); strings.Count(got, `accept comment "slash32"`) != 2 {
		t.Errorf("nft:\n%s", got)
	}
	must(false, true)
}

// TestWatchOthers holds that changes of other programs' chains are told, and who changed
// our table.
func TestWatchOthers(t *testing.T) {
	inNamespace(t)
	k := open(t)
	foreign := make(chan struct{}, 64)
	k.Foreign = func() {
		select {
		case foreign <- struct{}{}:
		default:
		}
	}
	converge(t, k, build(t, k, vms(1)))
	ctx, cancel := context.WithCancel(context.Background())
	reasons, done := make(chan string, 64), make(chan error, 1)
	go func() { done <- k.Watch(ctx, func(r string) { reasons <- r }) }()
	<-reasons // watching
	restore(t, "iptables-nft-restore", firewalltest.Docker)
	<-foreign
	select {
	case r := <-reasons:
		t.Errorf("Docker's rules woke for %q", r)
	default:
	}
	// The agent's own writes blame nobody.
	converge(t, k, build(t, k, vms(2)))
	<-reasons
	if ws := k.Writers(); len(ws) != 0 {
		t.Errorf("we are blamed: %v", ws)
	}
	cmd := exec.Command("nft", "delete", "table", "inet", "slash32")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("nft: %v: %s", err, out)
	}
	for r := ""; !strings.Contains(r, "table"); {
		r = <-reasons
	}
	want := []kernel.Writer{{Program: "nft", PID: cmd.Process.Pid}}
	if diff := cmp.Diff(want, k.Writers()); diff != "" {
		t.Error(diff)
	}
	if ws := k.Writers(); len(ws) != 0 {
		t.Errorf("said again: %v", ws)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// BenchmarkForwarding reads and follows rules of others, of which there are n.
func BenchmarkForwarding(b *testing.B) {
	for _, n := range []int{100, 1000, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			inNamespace(b)
			k := open(b)
			var rules strings.Builder
			rules.WriteString("*filter\n:FORWARD DROP [0:0]\n:S - [0:0]\n-A FORWARD -j S\n")
			for i := range n {
				fmt.Fprintf(&rules, "-A S -d 10.%d.%d.1/32 -p tcp -m tcp --dport 80 -m comment --comment service -j ACCEPT\n", i>>8, i&255)
			}
			rules.WriteString("COMMIT\n")
			restore(b, "iptables-nft-restore", rules.String())
			p := forwarded("s32-a", "eth0", new_)
			for b.Loop() {
				fates(b, k, p)
			}
		})
	}
}
