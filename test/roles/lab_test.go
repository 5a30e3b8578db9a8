// Package roles_test puts hosts, a router and an internet into network namespaces
// and plays the three roles of a host: it routes for its own VMs by another router, it
// routes for other hosts' VMs, or both. What a host's configuration file and its VMs'
// annotations say is planned and applied as the agent does it; a guest is a namespace
// with the addresses that a responder would have given it.
package roles_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/sirupsen/logrus"
	"github.com/vishvananda/netns"

	"github.com/slash32/slash32/pkg/config"
	"github.com/slash32/slash32/pkg/intent"
	"github.com/slash32/slash32/pkg/kernel"
	"github.com/slash32/slash32/pkg/marks"
	"github.com/slash32/slash32/pkg/plan"
	"github.com/slash32/slash32/pkg/source"
	"github.com/slash32/slash32/pkg/state"
)

// space is one network namespace.
type space struct {
	t    *testing.T
	name string
	ns   netns.NsHandle
}

// newSpace makes a namespace, which nobody else sees, with its loopback up.
func newSpace(t *testing.T, name string) *space {
	t.Helper()
	s := &space{t: t, name: name, ns: netns.None()}
	err := onThread(func() (err error) {
		s.ns, err = netns.New()
		return err
	})
	if err != nil {
		t.Fatalf("make namespace %s (it takes root): %v", name, err)
	}
	t.Cleanup(func() { _ = s.ns.Close() })
	s.run("ip link set lo up")
	return s
}

// onThread runs f on a thread of its own, which dies with it.
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- f()
	}()
	return <-done
}

// inside runs f on a thread that is in the namespace.
func (s *space) inside(f func() error) error {
	return onThread(func() error {
		if err := netns.Set(s.ns); err != nil {
			return fmt.Errorf("enter namespace %s: %w", s.name, err)
		}
		return f()
	})
}

func (s *space) try(line string) (string, error) {
	var out []byte
	err := s.inside(func() (err error) {
		f := strings.Fields(line)
		out, err = exec.Command(f[0], f[1:]...).CombinedOutput()
		return err
	})
	return string(out), err
}

// run runs commands, one a line.
func (s *space) run(lines ...string) string {
	s.t.Helper()
	all := ""
	for _, line := range lines {
		out, err := s.try(line)
		if err != nil {
			s.t.Fatalf("%s: %s: %v: %s", s.name, line, err, out)
		}
		all += out
	}
	return all
}

// cable is a pair of interfaces, one in each namespace.
func cable(a *space, nameA string, b *space, nameB string) {
	a.t.Helper()
	err := a.inside(func() error {
		out, err := exec.Command("ip", "link", "add", nameA, "type", "veth", "peer", "name", nameB, "netns", fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), b.ns)).CombinedOutput()
		if err != nil {
			return errors.New(string(out))
		}
		return nil
	})
	if err != nil {
		a.t.Fatalf("cable from %s to %s: %v", a.name, b.name, err)
	}
	a.run("ip link set " + nameA + " up")
	b.run("ip link set " + nameB + " up")
}

// lan is a switch.
func lan(t *testing.T) *space {
	s := newSpace(t, "switch")
	s.run("ip link add sw type bridge mcast_snooping 0", "ip link set sw up")
	return s
}

func (s *space) plug(to *space, name string) {
	s.t.Helper()
	near := "to-" + to.name
	cable(s, near, to, name)
	s.run("ip link set " + near + " master sw")
}

// host is a host with slash32.
type host struct {
	*space
	dir    string
	config string
	vms    []string // XML
}

func newHost(t *testing.T, name, config string) *host {
	return &host{space: newSpace(t, name), dir: t.TempDir(), config: config}
}

const domain = `<domain type="qemu">
  <name>%[1]s</name>
  <uuid>%[2]s</uuid>
  <metadata><slash32:network xmlns:slash32="urn:slash32:domain:1"><interface mac="%[3]s" network="public">%[4]s</interface></slash32:network></metadata>
  <devices><interface type="bridge"><mac address="%[3]s"/><source bridge="s32-%[1]s"/></interface></devices>
</domain>`

// guest makes a VM's XML, and a namespace in its place.
func (h *host) guest(name string, addrs ...string) *space {
	h.t.Helper()
	mac := fmt.Sprintf("52:54:00:ab:%02x:%02x", len(name), name[len(name)-1])
	elements := ""
	for _, a := range addrs {
		elements += `<address ip="` + a + `"/>`
	}
	h.vms = append(h.vms, fmt.Sprintf(domain, name, uuid.NewSHA1(uuid.Nil, []byte(name)), mac, elements))
	h.pass()
	g := newSpace(h.t, name)
	cable(h.space, "tap-"+name, g, "eth0")
	h.run("ip link set tap-" + name + " master s32-" + name)
	g.run("ip link set eth0 address "+mac, "sysctl -qw net.ipv6.conf.eth0.accept_ra=0")
	for _, a := range addrs {
		if strings.Contains(a, ":") {
			g.run("ip address add " + a + "/128 dev eth0 nodad")
		} else {
			g.run("ip address add " + a + "/32 dev eth0")
		}
	}
	g.run(
		"ip neigh replace 169.254.0.1 lladdr "+marks.GatewayMAC+" dev eth0 nud permanent",
		"ip neigh replace fe80::1 lladdr "+marks.GatewayMAC+" dev eth0 nud permanent",
		"ip route add 169.254.0.1 dev eth0", "ip route add default via 169.254.0.1", "ip -6 route add default via fe80::1 dev eth0",
	)
	return g
}

// pass is what an agent without memory does: it reads all, plans and applies. It
// returns how many objects it wrote.
func (h *host) pass() (writes int) {
	h.t.Helper()
	ctx := context.Background()
	err := h.inside(func() error {
		log := logrus.New()
		log.SetOutput(h.t.Output())
		k, err := kernel.New(log)
		if err != nil {
			return err
		}
		defer k.Close()
		c, ps := config.Parse(h.name+".yaml", []byte(h.config))
		if len(ps) > 0 {
			return ps
		}
		var vms []intent.VM
		for _, xml := range h.vms {
			r := source.Load([]byte(xml), c, h.dir)
			if len(r.Problems) > 0 || !r.Annotated {
				return fmt.Errorf("%s: %w", xml, r.Problems)
			}
			vms = append(vms, r.VM)
		}
		facts, err := k.Facts(ctx, plan.Interfaces(c)...)
		if err != nil {
			return err
		}
		want := plan.Build(vms, c, facts).State
		have, err := k.Read(ctx, state.Scope{Sysctls: want.HostSysctls()})
		if err != nil {
			return err
		}
		writes, err = k.Apply(ctx, state.Diff(have, want))
		return err
	})
	if err != nil {
		h.t.Fatalf("%s: %v", h.name, err)
	}
	return writes
}

// settled is a pass after which nothing is left to do.
func (h *host) settled() {
	h.t.Helper()
	if n := h.pass(); n != 0 {
		h.t.Errorf("%s: a second pass wrote %d objects", h.name, n)
	}
}

// wiped is a pass after everything of ours but the bridges is gone.
func (h *host) wiped() {
	h.t.Helper()
	h.run("nft flush ruleset",
		"ip route flush table all proto 32", "ip -6 route flush table all proto 32",
		"ip rule flush protocol 32", "ip -6 rule flush protocol 32",
		"ip neigh flush all nud permanent", "sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0")
	if h.pass() == 0 {
		h.t.Errorf("%s: nothing was made again", h.name)
	}
}

// patience bounds the wait for a way that must be there; links, neighbours and
// bridges' ports take a moment.
const patience = 30 * time.Second

func family(addr string) string {
	if strings.Contains(addr, ":") {
		return "-6"
	}
	return "-4"
}

// reaches waits until the namespace has an answer from the address.
func (s *space) reaches(addr string) {
	s.t.Helper()
	out := ""
	for end := time.Now().Add(patience); time.Now().Before(end); {
		var err error
		if out, err = s.try("ping " + family(addr) + " -n -c 1 -W 1 " + addr); err == nil {
			return
		}
	}
	s.t.Fatalf("%s does not reach %s: %s", s.name, addr, out)
}

// misses checks that three questions are not answered.
func (s *space) misses(addr string) {
	s.t.Helper()
	if out, err := s.try("ping " + family(addr) + " -n -c 3 -i 0.2 -W 1 " + addr); err == nil || !strings.Contains(out, "3 packets transmitted, 0 received") {
		s.t.Errorf("%s reaches %s: %s", s.name, addr, out)
	}
}
