package relay

import (
	"context"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/slash32/slash32/pkg/marks"
	"github.com/slash32/slash32/test/lab"
)

// dhclientScript configures the interface as a script of dhclient's does, and says
// what it was called for.
const dhclientScript = `#!/bin/sh
echo "$reason $new_ip_address$new_ip6_address $new_dhcp_server_identifier" >>"$DHLOG"
case $reason in
BOUND | RENEW | REBIND | REBOOT)
	[ "$old_ip_address" = "$new_ip_address" ] || ip -4 address flush dev eth0
	ip address replace "$new_ip_address/$new_subnet_mask" dev eth0
	ip route replace default via ${new_routers%% *}
	;;
BOUND6 | RENEW6 | REBIND6) ip address replace "$new_ip6_address/128" dev eth0 ;;
EXPIRE | FAIL | RELEASE | STOP) ip -4 address flush dev eth0 ;;
EXPIRE6 | RELEASE6 | STOP6) ip -6 address flush dev eth0 scope global ;;
esac
`

const dhclientConfig = `
timeout 60; retry 2; initial-interval 1; initial-delay 0; backoff-cutoff 2; select-timeout 0;
request subnet-mask, routers, dhcp-server-identifier;
`

// namespace is a guest that is no machine but a network namespace on the bridge of
// a VM that never runs: for clients that take too long in an emulated machine. All
// of ours and of libvirt is as for any other VM.
type namespace struct {
	guest
	node   *lab.Node
	client *lab.Process
}

func plug(ctx context.Context, t *testing.T, host int, name, metadata string) *namespace {
	t.Helper()
	n := &namespace{guest: guest{t, ctx, hosts[host], name}}
	hv := n.host.HV
	must(t, n.host.Run(ctx, lab.Domain{Name: name, Metadata: metadata, Cheap: true}))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := n.host.Remove(ctx, name); err != nil {
			t.Error(err)
		}
		if err := each(ctx, hv, "ip netns del "+name); err != nil {
			t.Error(err)
		}
	})
	var err error
	n.node, err = n.host.AddNode(ctx, name)
	must(t, err)
	n.cable()
	must(t, hv.WriteFile("/etc/dhclient-"+name, dhclientScript, 0o755))
	must(t, hv.WriteFile("/etc/dhclient-"+name+".conf", dhclientConfig, 0o644))
	for _, family := range []string{"4", "6"} {
		must(t, hv.WriteFile(n.file(family, "leases"), "", 0o644))
		must(t, hv.WriteFile(n.file(family, "log"), "", 0o644))
	}
	return n
}

// cable puts the guest on the VM's bridge.
func (n *namespace) cable() {
	n.Helper()
	must(n.T, each(n.ctx, n.host.HV,
		"ip link add p-"+n.name+" type veth peer name eth0 address "+lab.DefaultMAC(n.name, 0)+" netns "+n.name,
		"ip link set p-"+n.name+" master "+lab.DefaultBridge(n.name)+" addrgenmode none up",
		"ip -n "+n.name+" link set eth0 up"))
}

// uncable takes it off. A bridge with a port is one in use.
func (n *namespace) uncable() {
	n.Helper()
	must(n.T, each(n.ctx, n.host.HV, "ip link del p-"+n.name))
}

func (n *namespace) file(family, kind string) string {
	return "/var/lib/" + n.name + family + "." + kind
}

func (n *namespace) arguments(family string) []string {
	return []string{"dhclient", "-" + family, "-v", "-e", "DHLOG=" + n.file(family, "log"), "-cf", "/etc/dhclient-" + n.name + ".conf",
		"-lf", n.file(family, "leases"), "-pf", "/run/" + n.name + family + ".pid", "-sf", "/etc/dhclient-" + n.name}
}

// ask starts dhclient.
func (n *namespace) ask(family string) {
	n.Helper()
	var err error
	n.client, err = n.node.Start("/var/log/"+n.name+".log", append(n.arguments(family), "-d", "eth0")...)
	must(n.T, err)
	n.Cleanup(func() {
		if pid, err := n.client.PID(); err == nil && pid != 0 {
			_ = n.client.Signal(syscall.SIGKILL)
		}
	})
}

// crash ends dhclient without a word.
func (n *namespace) crash() {
	n.Helper()
	must(n.T, n.client.Signal(syscall.SIGKILL))
}

// release has another dhclient give back what the file says. It takes the address
// away at once, and a message that still waits for ARP goes with it.
func (n *namespace) release(family string) {
	n.Helper()
	must(n.T, n.node.Ping(n.ctx, "169.254.0.1"))
	n.crash()
	if _, err := n.node.Exec(n.ctx, append(n.arguments(family), "-r", "eth0")...); err != nil {
		n.Fatal(err)
	}
}

// told waits until dhclient has called its script for a reason, once more than
// before.
func (n *namespace) told(family, reason string, before int) string {
	n.Helper()
	var line string
	eventually(n.ctx, n.T, n.name+" is told "+reason, func() error {
		log, err := n.host.HV.ReadFile(n.file(family, "log"))
		if err != nil {
			return err
		}
		seen := 0
		for l := range strings.Lines(log) {
			if strings.HasPrefix(l, reason+" ") {
				seen++
				line = strings.TrimSpace(l)
			}
		}
		if seen <= before {
			return fmt.Errorf("it was told:\n%s", log)
		}
		return nil
	})
	return line
}

// TestDhclient: at a reboot, the client asks for its lease by broadcast. Both
// servers of the pair have it and grant it, at both of their addresses; the client
// hears of it once.
func TestDhclient(t *testing.T) {
	ctx := scenario(t)
	wire := watch(ctx, t, hosts[0].Router, "srv", "udp port 67")
	n := plug(ctx, t, 0, "dhc", lab.Annotation(`network="isc"`))
	inside := watch(ctx, t, n.node, "eth0", "udp port 68")
	n.ask("4")
	line := n.told("4", "BOUND", 0)
	l := n.leased(false)
	if line != "BOUND "+l.Addr+" 169.254.0.1" {
		t.Errorf("dhclient says %q, the agent has %+v", line, l)
	}
	eventually(ctx, t, l.Addr+" is routed", func() error { return n.programmed(l.Addr) })
	must(t, n.host.HV.Ping(ctx, l.Addr))

	n.crash()
	dropped := n.verdict("dhcp4_late_answer")
	on, in := acks(wire, l.Addr), acks(inside, l.Addr)
	n.ask("4")
	n.told("4", "REBOOT", 0)
	eventually(ctx, t, "four ACKs on the servers' network, one at the guest", func() error {
		late := n.verdict("dhcp4_late_answer") - dropped
		if got := acks(wire, l.Addr) - on; got != 4 || late != 3 || acks(inside, l.Addr)-in != 1 {
			return fmt.Errorf("%d on the servers' network, %d at the guest, %d dropped", got, acks(inside, l.Addr)-in, late)
		}
		return nil
	})
	for _, server := range []string{primary, secondary} {
		if !strings.Contains(wire.String(), server+".67 > "+giaddrs[0]+".67: BOOTP/DHCP, Reply") {
			t.Errorf("%s did not answer", server)
		}
	}
	if now, err := n.lease(false); err != nil || now.Addr != l.Addr {
		t.Errorf("the lease is %+v, %v", now, err)
	}

	n.release("4")
	eventually(ctx, t, "a released address is withdrawn", func() error { return n.withdrawn(l.Addr) })
}

// acks counts the ACKs of an address in a capture of tcpdump -v.
func acks(c *capture, addr string) (n int) {
	for message := range strings.SplitSeq(c.String(), "BOOTP/DHCP, ") {
		if strings.HasPrefix(message, "Reply") && strings.Contains(message, "Your-IP "+addr+"\n") && strings.Contains(message, "(53), length 1: ACK") {
			n++
		}
	}
	return n
}

// TestHonoured: how a server finds the guest's subnet, and by which name the client
// knows it. Kea and ISC dhcpd as they come honour link selection (TestFailover,
// TestKea) and giaddr, and ignore the server-id override; ISC dhcpd can be told to
// honour it. The client sees no difference.
func TestHonoured(t *testing.T) {
	for _, c := range []struct {
		network, server, subnet, name string
		wire                          []string
	}{
		{"giaddr", kea, "10.22.0.1", kea, []string{"Server-ID (54), length 4: " + kea, "Gateway-IP " + inSubnet}},
		{"override", single, "10.22.0.2", single, []string{"Server-ID (54), length 4: 169.254.0.1", "Gateway-IP " + inSubnet}},
	} {
		t.Run(c.network, func(t *testing.T) {
			ctx := scenario(t)
			wire := watch(ctx, t, hosts[0].Router, "srv", "src "+c.server+" and udp port 67")
			n := plug(ctx, t, 0, "by-"+c.network, lab.Annotation(`network="`+c.network+`"`))
			n.ask("4")
			line := n.told("4", "BOUND", 0)
			l := n.leased(false)
			if !strings.HasPrefix(l.Addr, c.subnet) || l.Server != c.name || line != "BOUND "+l.Addr+" 169.254.0.1" {
				t.Errorf("dhclient says %q, the agent has %+v", line, l)
			}
			eventually(ctx, t, "the answers are on the wire", func() error {
				if acks(wire, l.Addr) != 1 {
					return fmt.Errorf("%s", wire)
				}
				return nil
			})
			for _, want := range append(c.wire, "Agent-Information (82)", "Circuit-ID SubOption 1, length 22", "Remote-ID SubOption 2, length 2: hv") {
				if strings.Count(wire.String(), want) != 2 {
					t.Errorf("OFFER and ACK lack %q:\n%s", want, wire)
				}
			}
			n.release("4")
			eventually(ctx, t, "a released address is withdrawn", func() error { return n.withdrawn(l.Addr) })
		})
	}
}

// TestTwoMinds: two servers that do not know each other. Both offer an address of
// their own; the one that the client takes is told so by its name.
func TestTwoMinds(t *testing.T) {
	ctx := scenario(t)
	n := plug(ctx, t, 0, "minds", "<network xmlns='urn:slash32:domain:1'><interface network='giaddr'><relay server='"+kea+"'/><relay server='"+single+"'/></interface></network>")
	n.ask("4")
	n.told("4", "BOUND", 0)
	l := n.leased(false)
	owner := map[bool]string{true: kea, false: single}[strings.HasPrefix(l.Addr, "10.22.0.1")]
	if l.Server != owner {
		t.Errorf("lease %+v, want it of %s", l, owner)
	}
	eventually(ctx, t, "both have offered", func() error {
		if offers := n.verdict("dhcp4_answered"); offers < 3 {
			return fmt.Errorf("%d answers were passed on", offers)
		}
		return nil
	})
	eventually(ctx, t, l.Addr+" is routed", func() error { return n.programmed(l.Addr) })
	n.release("4")
	eventually(ctx, t, "a released address is withdrawn", func() error { return n.withdrawn(l.Addr) })
}

// TestLiveChange: a running VM that was answered is relayed from now on, and the
// other way round.
func TestLiveChange(t *testing.T) {
	ctx := scenario(t)
	n := plug(ctx, t, 0, "live", lab.Annotation(`ipv4="10.50.0.7"`))
	change := func(metadata string) {
		t.Helper()
		_, err := n.host.Virsh(ctx, "metadata", "live", "--uri", marks.Namespace, "--key", "slash32", "--live", "--set", metadata)
		must(t, err)
	}
	n.ask("4")
	n.told("4", "BOUND", 0)
	eventually(ctx, t, "10.50.0.7 is routed", func() error { return n.programmed("10.50.0.7") })
	n.crash()
	must(t, n.host.HV.WriteFile(n.file("4", "leases"), "", 0o644))

	change(`<network network="kea"/>`)
	eventually(ctx, t, "10.50.0.7 is withdrawn", func() error { return n.withdrawn("10.50.0.7") })
	n.ask("4")
	n.told("4", "BOUND", 1)
	l := n.leased(false)
	eventually(ctx, t, l.Addr+" is routed", func() error { return n.programmed(l.Addr) })
	n.crash()
	must(t, n.host.HV.WriteFile(n.file("4", "leases"), "", 0o644))

	change(`<network ipv4="10.50.0.8"/>`)
	eventually(ctx, t, l.Addr+" is withdrawn", func() error { return n.withdrawn(l.Addr) })
	n.ask("4")
	if line := n.told("4", "BOUND", 2); line != "BOUND 10.50.0.8 169.254.0.1" {
		t.Errorf("dhclient says %q", line)
	}
	eventually(ctx, t, "10.50.0.8 is routed", func() error { return n.programmed("10.50.0.8") })
}

// TestForeignIdentifier: a guest cannot ask for another machine's lease.
func TestForeignIdentifier(t *testing.T) {
	ctx := scenario(t)
	n := plug(ctx, t, 0, "liar", lab.Annotation(`network="kea"`))
	must(t, n.host.HV.WriteFile("/etc/dhclient-liar.conf", dhclientConfig+"send dhcp-client-identifier 1:52:54:00:12:34:56;\n", 0o644))
	n.ask("4")
	eventually(ctx, t, "it is refused", func() error {
		if n.verdict("dhcp4_foreign") == 0 || n.verdict("dhcp4_relayed") != 0 {
			return fmt.Errorf("verdicts %v", n.show().Responder.NICs[0].Verdicts)
		}
		return nil
	})
}

// TestGreedy: a guest that calls itself something else each time gets no more
// addresses than the server has for a circuit, and only the newest is routed.
func TestGreedy(t *testing.T) {
	ctx := scenario(t)
	n := plug(ctx, t, 0, "greedy", lab.Annotation(`network="override"`))
	var last string
	for i, name := range []string{"a", "b", "c"} {
		must(t, n.host.HV.WriteFile("/etc/dhclient-greedy.conf", dhclientConfig+"send dhcp-client-identifier \"guest-"+name+"\";\n", 0o644))
		must(t, n.host.HV.WriteFile(n.file("4", "leases"), "", 0o644))
		n.ask("4")
		if name == "c" {
			break
		}
		addr := strings.Fields(n.told("4", "BOUND", i))[1]
		eventually(ctx, t, addr+" is routed", func() error { return n.programmed(addr) })
		if last != "" {
			eventually(ctx, t, last+" is not", func() error { return n.withdrawn(last) })
		}
		last = addr
		n.crash()
	}
	must(t, servers["s4"].says(ctx, "no available billing", 1))
	if err := n.programmed(last); err != nil {
		t.Error(err)
	}
}

// TestDhclient6: addresses are routed until they are released; delegated prefixes
// are passed on and kept.
func TestDhclient6(t *testing.T) {
	ctx := scenario(t)
	n := plug(ctx, t, 1, "six", lab.Annotation(`network="kea"`))
	eventually(ctx, t, "the link-local address is there", func() error {
		out, err := n.node.Exec(ctx, "ip", "-6", "address", "show", "dev", "eth0")
		if err == nil && (!strings.Contains(out, "fe80::") || strings.Contains(out, "tentative")) {
			err = fmt.Errorf("%s", out)
		}
		return err
	})
	var err error
	n.client, err = n.node.Start("/var/log/six.log", append(n.arguments("6"), "-P", "-N", "-D", "LL", "-d", "eth0")...)
	must(t, err)
	n.told("6", "BOUND6", 0)
	l := n.leased(true)
	eventually(ctx, t, l.Addr+" is routed", func() error { return n.programmed(l.Addr) })
	must(t, n.host.HV.Ping(ctx, l.Addr))
	file := "/var/lib/slash32/leases/" + lab.DefaultUUID("six") + ".json"
	kept := func() error {
		text, err := n.host.HV.ReadFile(file)
		if err == nil && !strings.Contains(text, `"prefix":"2001:db8:f0`) {
			err = fmt.Errorf("%s has %s", file, strings.Join(strings.Fields(text), " "))
		}
		return err
	}
	eventually(ctx, t, "the delegated prefix is kept", kept)

	n.crash()
	_, err = n.node.Exec(ctx, append(n.arguments("6"), "-P", "-N", "-D", "LL", "-r", "eth0")...)
	must(t, err)
	eventually(ctx, t, "a released address is withdrawn", func() error { return n.withdrawn(l.Addr) })
}

// TestHostRestarts: /run is empty, and what is leased is routed again before the
// guest has said a word.
func TestHostRestarts(t *testing.T) {
	ctx := scenario(t)
	n := plug(ctx, t, 1, "boot", lab.Annotation(`network="kea"`))
	n.ask("4")
	n.told("4", "BOUND", 0)
	l := n.leased(false)
	eventually(ctx, t, l.Addr+" is routed", func() error { return n.programmed(l.Addr) })
	n.crash()
	n.uncable()
	_, err := n.host.Virsh(ctx, "destroy", "boot")
	must(t, err)
	eventually(ctx, t, "a stopped VM has no routes", func() error { return n.withdrawn(l.Addr) })
	must(t, n.host.KillAgent())
	must(t, each(ctx, n.host.HV, "rm -rf /run/slash32"))
	must(t, n.host.StartAgent(ctx))
	_, err = n.host.Virsh(ctx, "start", "boot", "--paused")
	must(t, err)
	eventually(ctx, t, l.Addr+" is routed again", func() error { return n.programmed(l.Addr) })
	if now, err := n.lease(false); err != nil || now != l {
		t.Errorf("lease %+v, %v, want %+v", now, err, l)
	}
	// And it renews with the server that leased it.
	n.cable()
	n.ask("4")
	n.told("4", "REBOOT", 0)
	if now := n.leased(false); now.Addr != l.Addr {
		t.Errorf("lease %+v, want %+v", now, l)
	}
}
