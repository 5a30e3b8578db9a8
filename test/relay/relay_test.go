package relay

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/slash32/slash32/pkg/control"
	"github.com/slash32/slash32/test/lab"
)

func scenario(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	t.Cleanup(cancel)
	t.Cleanup(func() {
		if t.Failed() {
			for i, h := range hosts {
				t.Logf("host %d:\n%s", i+1, h.Tails(20))
			}
		}
	})
	return ctx
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func eventually(ctx context.Context, t *testing.T, what string, check func() error) {
	t.Helper()
	start := time.Now()
	if err := lab.Wait(ctx, check); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	t.Logf("%s: after %d ms", what, time.Since(start).Milliseconds())
}

// guest is a VM on one of the hosts.
type guest struct {
	*testing.T
	ctx  context.Context
	host *lab.Lab
	name string
}

// boot starts a VM and waits for its lease.
func boot(ctx context.Context, t *testing.T, host int, name, network string, v6 bool) guest {
	t.Helper()
	g := guest{t, ctx, hosts[host], name}
	must(t, g.host.Run(ctx, lab.Domain{Name: name, Metadata: lab.Annotation(`network="` + network + `"`), DHCPv6: v6}))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := g.host.Remove(ctx, name); err != nil {
			t.Error(err)
		}
	})
	return g
}

func (g guest) show() control.VM {
	g.Helper()
	v, err := g.host.Show(g.ctx, g.name)
	must(g.T, err)
	return v
}

// lease is the newest lease of a family, as the agent has it.
func (g guest) lease(v6 bool) (control.Lease, error) {
	v, err := g.host.Show(g.ctx, g.name)
	if err != nil {
		return control.Lease{}, err
	}
	for _, l := range v.NICs[0].Leases {
		if strings.Contains(l.Addr, ":") == v6 {
			return l, nil
		}
	}
	return control.Lease{}, fmt.Errorf("%s has no lease: %+v, responder %v", g.name, v.NICs[0], v.Responder.NICs[0].Verdicts)
}

func (g guest) verdict(name string) uint64 {
	g.Helper()
	return g.show().Responder.NICs[0].Verdicts[name]
}

// renews has the guest renew by unicast, and waits until the one server has
// granted that.
func (g guest) renews() {
	g.Helper()
	asked, granted := g.verdict("dhcp4_relayed_to_one"), g.verdict("dhcp4_answered")
	_, err := g.host.Console(g.name).Run(g.ctx, "kill -USR1 $(cat /run/udhcpc.pid)")
	must(g.T, err)
	eventually(g.ctx, g.T, g.name+" renews with the one server", func() error {
		v, err := g.host.Show(g.ctx, g.name)
		if err != nil {
			return err
		}
		n := v.Responder.NICs[0].Verdicts
		if n["dhcp4_relayed_to_one"] <= asked || n["dhcp4_answered"] <= granted {
			return fmt.Errorf("verdicts %v", n)
		}
		return nil
	})
}

// leased waits for a lease.
func (g guest) leased(v6 bool) control.Lease {
	g.Helper()
	var l control.Lease
	eventually(g.ctx, g.T, g.name+" has a lease", func() (err error) {
		l, err = g.lease(v6)
		return err
	})
	return l
}

// programmed tells whether route, neighbour and guard of an address are there.
func (g guest) programmed(addr string) error {
	s, err := g.host.HV.KernelState(g.ctx)
	if err != nil {
		return err
	}
	bridge := lab.DefaultBridge(g.name)
	route := addr + " dev " + bridge
	if !strings.Contains(s, route) || strings.Count(s, addr) < 3 {
		return fmt.Errorf("the kernel has %d of route, neighbour and guard of %s:\n%s", strings.Count(s, addr), addr, s)
	}
	return nil
}

func (g guest) withdrawn(addr string) error {
	s, err := g.host.HV.KernelState(g.ctx)
	if err == nil && strings.Contains(s, addr+" ") {
		err = fmt.Errorf("the kernel still has %s:\n%s", addr, s)
	}
	return err
}

// capture is what tcpdump saw.
type capture struct {
	mu   sync.Mutex
	text strings.Builder
}

func (c *capture) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.text.Write(b)
}

func (c *capture) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.text.String()
}

func watch(ctx context.Context, t *testing.T, n *lab.Node, link, filter string) *capture {
	t.Helper()
	ctx, cancel := context.WithCancel(ctx)
	var out, errs capture
	var cmd *exec.Cmd = n.Command(ctx, "tcpdump", "-l", "-n", "-v", "-i", link, filter)
	cmd.Stdout, cmd.Stderr = &out, &errs
	must(t, cmd.Start())
	t.Cleanup(func() { cancel(); _ = cmd.Wait() })
	eventually(ctx, t, "tcpdump listens on "+link, func() error {
		if !strings.Contains(errs.String(), "listening on") {
			return fmt.Errorf("it says %q", errs.String())
		}
		return nil
	})
	return &out
}

// TestFailover: guests on two hosts, one server of the pair dies.
func TestFailover(t *testing.T) {
	ctx := scenario(t)
	wire := watch(ctx, t, hosts[0].Router, "srv", "udp port 67")
	one, two := boot(ctx, t, 0, "one", "isc", false), boot(ctx, t, 1, "two", "isc", false)
	guests := []guest{one, two}
	leases := map[string]control.Lease{}
	for _, g := range guests {
		l := g.leased(false)
		leases[g.name] = l
		if !strings.HasPrefix(l.Addr, "10.20.0.") || l.Server != primary && l.Server != secondary {
			t.Errorf("%s: lease %+v", g.name, l)
		}
		must(t, g.host.Console(g.name).WaitFor(ctx, "GUEST bound "+l.Addr+"/24"))
		eventually(ctx, t, g.name+" is routed", func() error { return g.programmed(l.Addr) })
		must(t, g.host.HV.Ping(ctx, l.Addr))
		out, err := g.host.Console(g.name).Run(ctx, "ip route; cat /etc/resolv.conf; ip neigh")
		must(t, err)
		for _, want := range []string{"default via 10.20.0.1", "nameserver 9.9.9.9"} {
			if !strings.Contains(out, want) {
				t.Errorf("%s lacks %q: %s", g.name, want, out)
			}
		}
		text, err := g.host.Slash32(ctx, "show", g.name)
		must(t, err)
		t.Log(text)
		for _, want := range []string{"relay     to " + primary, "lease     " + l.Addr + ", ends in", "by " + l.Server} {
			if !strings.Contains(text, want) {
				t.Errorf("slash32 show lacks %q", want)
			}
		}
	}
	if leases["one"].Addr == leases["two"].Addr {
		t.Fatal("two guests have one address")
	}
	// Both servers heard of each guest from its host's relay; option 82 names it.
	for i, g := range guests {
		for _, s := range []string{primary, secondary, primary2, secondary2} {
			if !strings.Contains(wire.String(), giaddrs[i]+".67 > "+s+".67: BOOTP/DHCP, Request from "+lab.DefaultMAC(g.name, 0)) {
				t.Errorf("%s heard nothing of %s from %s", s, g.name, giaddrs[i])
			}
		}
	}
	// The one that answers does so twice: on the servers' network there are two
	// offers and two ACKs, the guest got one of each.
	for i, g := range guests {
		answers := strings.Count(wire.String(), "67 > "+giaddrs[i]+".67: BOOTP/DHCP, Reply")
		passed, dropped := g.verdict("dhcp4_answered"), g.verdict("dhcp4_late_answer")
		t.Logf("%s: %d answers on the wire, %d passed on, %d came second and were dropped", g.name, answers, passed, dropped)
		if dropped == 0 || passed > 2 || answers < 3 {
			t.Errorf("%s was not kept from duplicates", g.name)
		}
	}

	// A renewal goes to the one server.
	for _, g := range guests {
		g.renews()
	}

	// The owner of the first guest's lease dies: it keeps its address, from the
	// other one.
	dead, survivor := "s1", secondary
	if leases["one"].Server == secondary {
		dead, survivor = "s2", primary
	}
	must(t, servers[dead].process.Signal(syscall.SIGKILL))
	eventually(ctx, t, "the survivor renews", func() error {
		l, err := one.lease(false)
		if err == nil && l.Server != survivor {
			err = fmt.Errorf("lease %+v", l)
		}
		if err == nil && l.Addr != leases["one"].Addr {
			t.Fatalf("the address changed from %s to %s", leases["one"].Addr, l.Addr)
		}
		return err
	})
	must(t, one.host.HV.Ping(ctx, leases["one"].Addr))
	if l, err := two.lease(false); err != nil || l.Addr != leases["two"].Addr {
		t.Errorf("the other guest's lease is %+v, %v", l, err)
	}

	// The agent dies and comes back: it finds the lease and changes nothing.
	must(t, one.host.KillAgent())
	if err := one.programmed(leases["one"].Addr); err != nil {
		t.Error(err)
	}
	must(t, one.host.StartAgent(ctx))
	if l := one.leased(false); l.Addr != leases["one"].Addr {
		t.Errorf("after the agent's restart: %+v", l)
	}
	s, err := one.host.Status(ctx)
	must(t, err)
	if s.FirstPassWrites != 0 {
		t.Errorf("the agent's first pass wrote %d times", s.FirstPassWrites)
	}
	// So does the responder: it knows the server to renew with.
	pid := one.show().Responder.PID
	_, err = one.host.HV.Exec(ctx, "kill", "-9", fmt.Sprint(pid))
	must(t, err)
	eventually(ctx, t, "a new responder is there", func() error {
		v, err := one.host.Show(ctx, "one")
		if err == nil && (v.Responder.PID == pid || !v.Responder.Up) {
			err = fmt.Errorf("responder %+v", v.Responder)
		}
		return err
	})
	one.renews()

	// RELEASE withdraws at once.
	_, err = two.host.Console("two").Run(ctx, "kill -USR2 $(cat /run/udhcpc.pid)")
	must(t, err)
	eventually(ctx, t, "a released address is withdrawn", func() error { return two.withdrawn(leases["two"].Addr) })

	// A guest that is silent loses its address when the lease ends, with or without
	// a responder.
	_, err = one.host.Virsh(ctx, "suspend", "one")
	must(t, err)
	eventually(ctx, t, "an expired address is withdrawn", func() error { return one.withdrawn(leases["one"].Addr) })
	_, err = one.host.Virsh(ctx, "resume", "one")
	must(t, err)
	if l := one.leased(false); l.Addr == "" {
		t.Error("no lease after the guest went on")
	}
}

// TestKea: link selection chooses the subnet; DHCPv6 is relayed to the same server.
func TestKea(t *testing.T) {
	ctx := scenario(t)
	for host, name := range []string{"kea1", "kea2"} {
		g := boot(ctx, t, host, name, "kea", true)
		l := g.leased(false)
		if !strings.HasPrefix(l.Addr, "10.21.0.") || l.Server != kea {
			t.Errorf("lease %+v", l)
		}
		l6 := g.leased(true)
		if !strings.HasPrefix(l6.Addr, "2001:db8:21::1") {
			t.Errorf("IPv6 lease %+v", l6)
		}
		for _, a := range []string{l.Addr, l6.Addr} {
			eventually(ctx, t, a+" is routed", func() error { return g.programmed(a) })
			must(t, g.host.HV.Ping(ctx, a))
		}
		g.renews()
		b, err := json.Marshal(g.show().NICs[0])
		must(t, err)
		t.Logf("%s", b)
	}
}
