package upstream

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"go.uber.org/goleak"

	"github.com/slash32/slash32/test/wait"
)

// patience only bounds a test that would hang.
const patience = time.Minute

// network is two namespaces with a cable between them: up0 in ours, srv0 in the
// servers'.
type network struct {
	t             *testing.T
	ours, servers netns.NsHandle
	dir           string
}

func makeNetwork(t *testing.T) *network {
	t.Helper()
	runtime.LockOSThread() // the thread dies with the test
	old := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, old) }) // after all others
	n := &network{t: t, dir: t.TempDir()}
	for _, ns := range []*netns.NsHandle{&n.servers, &n.ours} {
		var err error
		if *ns, err = netns.New(); err != nil {
			t.Fatalf("make a network namespace (it takes root): %v", err)
		}
		t.Cleanup(func() { _ = ns.Close() })
		n.do("ip link set lo up", "sysctl -qw net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.all.forwarding=1")
	}
	n.do("ip link add up0 type veth peer name srv0")
	l, err := netlink.LinkByName("srv0")
	if err == nil {
		err = netlink.LinkSetNsFd(l, int(n.servers))
	}
	if err != nil {
		t.Fatal(err)
	}
	n.do("ip link set up0 address 52:54:00:00:00:01 up")
	n.at(n.servers, func() {
		n.do("ip link set srv0 address 52:54:00:00:00:99 up", "ip -6 address add 2001:db8:20::1/64 dev srv0 nodad")
	})
	return n
}

// at does something in another namespace.
func (n *network) at(ns netns.NsHandle, do func()) {
	n.t.Helper()
	if err := netns.Set(ns); err != nil {
		n.t.Fatal(err)
	}
	do()
	if err := netns.Set(n.ours); err != nil {
		n.t.Fatal(err)
	}
}

func (n *network) do(lines ...string) {
	n.t.Helper()
	for _, line := range lines {
		f := strings.Fields(line)
		if out, err := exec.Command(f[0], f[1:]...).CombinedOutput(); err != nil {
			n.t.Fatalf("%s: %v: %s", line, err, out)
		}
	}
}

// server is a real DHCPv6 server.
type server struct {
	cmd *exec.Cmd
	log *output
}

// output is what a process wrote.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

func (n *network) start(ready string, env []string, argv ...string) *server {
	n.t.Helper()
	s := &server{cmd: exec.Command(argv[0], argv[1:]...), log: &output{}}
	s.cmd.Stdout, s.cmd.Stderr, s.cmd.Env = s.log, s.log, append(os.Environ(), env...)
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var err error
	n.at(n.servers, func() { err = s.cmd.Start() })
	if err != nil {
		n.t.Fatalf("%v. Fix: test/setup.sh test", err)
	}
	n.t.Cleanup(func() {
		s.kill()
		if n.t.Failed() {
			n.t.Logf("%s:\n%.6000s", argv[0], s.log)
		}
	})
	wait.For(n.t, patience, argv[0]+" to serve", func() bool { return strings.Contains(s.log.String(), ready) })
	return s
}

// kill ends it, without a farewell.
func (s *server) kill() {
	if s.cmd.ProcessState == nil {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
	}
}

// kea starts a Kea that delegates the /56s of a prefix, from lease file leases.
func (n *network) kea(leases, prefix string) *server {
	n.t.Helper()
	p := netip.MustParsePrefix(prefix)
	conf := filepath.Join(n.dir, "kea.json")
	text := fmt.Sprintf(`{ "Dhcp6": {
 "interfaces-config": { "interfaces": ["srv0"] },
 "server-id": { "type": "EN", "enterprise-id": 2495, "identifier": "0123456789", "persist": false },
 "lease-database": { "type": "memfile", "persist": true, "name": %q, "lfc-interval": 0 },
 "renew-timer": 5, "rebind-timer": 8, "preferred-lifetime": 15, "valid-lifetime": 20,
 "option-data": [ { "code": 82, "data": "0000003c", "csv-format": false } ],
 "subnet6": [ { "id": 1, "subnet": "2001:db8:20::/64", "interface": "srv0",
  "pd-pools": [ { "prefix": %q, "prefix-len": %d, "delegated-len": 56 } ] } ],
 "loggers": [ { "name": "kea-dhcp6", "severity": "INFO", "output_options": [ { "output": "stdout", "flush": true } ] } ] } }`, leases, p.Addr(), p.Bits())
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		n.t.Fatal(err)
	}
	return n.start("DHCP6_STARTED", []string{"KEA_PIDFILE_DIR=" + n.dir, "KEA_LOCKFILE_DIR=" + n.dir}, "kea-dhcp6", "-c", conf)
}

// dhcpd starts an ISC dhcpd that delegates the /56s of 2001:db8:e000::/48.
func (n *network) dhcpd() *server {
	n.t.Helper()
	conf, leases := filepath.Join(n.dir, "dhcpd.conf"), filepath.Join(n.dir, "dhcpd.leases")
	for path, text := range map[string]string{leases: "", conf: `default-lease-time 20; preferred-lifetime 15; min-lease-time 10; max-lease-time 60;
option dhcp-renewal-time 5; option dhcp-rebinding-time 8;
subnet6 2001:db8:20::/64 { prefix6 2001:db8:e000:: 2001:db8:e000:ff00:: /56; }
`} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			n.t.Fatal(err)
		}
	}
	return n.start("Server starting service", nil, "dhcpd", "-6", "-d", "-cf", conf, "-lf", leases, "-pf", filepath.Join(n.dir, "dhcpd.pid"), "srv0")
}

// running is a client that runs.
type running struct {
	*Client
	log  *logtest.Hook
	stop func()

	mu   sync.Mutex
	told [][]Lease
}

func (n *network) client(hint uint8) *running {
	log, said := logtest.NewNullLogger()
	log.SetLevel(logrus.DebugLevel)
	r := &running{log: said}
	r.Client = &Client{Interface: "up0", Hint: hint, State: filepath.Join(n.dir, "state", "up0.json"), Log: log, Changed: func(l []Lease) {
		r.mu.Lock()
		r.told = append(r.told, l)
		r.mu.Unlock()
	}}
	return r
}

func (n *network) run(hint uint8) *running {
	n.t.Helper()
	r := n.client(hint)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := netns.Set(n.ours); err != nil {
			ended <- err
			return
		}
		ended <- r.Run(ctx)
	}()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			n.t.Error(err)
		}
	})
	n.t.Cleanup(func() {
		r.stop()
		if n.t.Failed() {
			for _, e := range r.log.AllEntries() {
				n.t.Logf("%s %s", e.Level, e.Message)
			}
			n.t.Logf("status: %+v", r.Status())
		}
	})
	return r
}

// first is what there is to number from, by the last call of Changed.
func (r *running) first() (Lease, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.told) == 0 || len(r.told[len(r.told)-1]) == 0 {
		return Lease{}, false
	}
	return r.told[len(r.told)-1][0], true
}

// has waits until the first prefix lies in one.
func (r *running) has(t *testing.T, in string) Lease {
	t.Helper()
	var l Lease
	wait.For(t, patience, "a prefix of "+in, func() bool {
		var ok bool
		l, ok = r.first()
		return ok && netip.MustParsePrefix(in).Contains(l.Prefix.Addr())
	})
	return l
}

// answered waits until a server has answered since.
func (r *running) answered(t *testing.T, before Lease) Lease {
	t.Helper()
	l := before
	wait.For(t, patience, "a renewal of "+before.Prefix.String(), func() bool {
		l, _ = r.first()
		return l.Prefix == before.Prefix && l.Valid.After(before.Valid.Add(time.Second))
	})
	return l
}

// TestKea is a client's life with a real server: it gets a prefix, renews it, is
// started anew, sees the server restarted and then renumbered, the link down and
// up, and gives the prefix back.
func TestKea(t *testing.T) {
	n := makeNetwork(t)
	const a, b = "2001:db8:f000::/44", "2001:db8:e000::/44"
	leases := filepath.Join(n.dir, "leases6.csv")
	kea := n.kea(leases, a)
	c := n.run(56)
	l := c.has(t, a)
	if l.Prefix.Bits() != 56 || time.Until(l.Valid) > 21*time.Second || !l.Preferred.Before(l.Valid) {
		t.Errorf("delegated: %+v", l)
	}
	c.answered(t, l)
	if s := c.Status(); s.Phase != "bound" || s.Server == "" || s.Counts.Malformed+s.Counts.Stray+s.Counts.Refused > 0 {
		t.Errorf("status: %+v", s)
	}

	// A restart gives nothing back, and what it had is in use at once.
	c.stop()
	if s := kea.log.String(); strings.Contains(s, "RELEASE") {
		t.Error("it has released")
	}
	c = n.run(56)
	wait.For(t, patience, "the known prefix", func() bool { _, ok := c.first(); return ok })
	if c.mu.Lock(); c.told[0][0].Prefix != l.Prefix {
		t.Errorf("told at first: %+v", c.told[0])
	}
	c.mu.Unlock()
	l = c.answered(t, c.has(t, l.Prefix.String()))

	// The server is away for some time, and back.
	kea.kill()
	wait.For(t, patience, "a renewal that is not answered", func() bool { return c.Status().Phase == "renewing" })
	kea = n.kea(leases, a)
	l = c.answered(t, l)

	// The server delegates of another prefix from now on.
	kea.kill()
	kea = n.kea(leases, b)
	renumbered := c.has(t, b)
	if s := c.Status(); s.Leases[0] != renumbered || strings.Contains(fmt.Sprint(s.Leases[1:]), b) {
		t.Errorf("leases: %+v", s.Leases)
	}

	// The cable is out and in.
	before := c.Status().Counts
	n.do("ip link set up0 down")
	c.Poke()
	wait.For(t, patience, "the fault", func() bool { return strings.Contains(c.Status().Fault, "down") })
	n.do("ip link set up0 up")
	c.Poke()
	c.answered(t, renumbered)
	if s := c.Status(); s.Fault != "" || s.Counts.Sent == before.Sent {
		t.Errorf("status: %+v", s)
	}

	// It is not wanted any more.
	c.stop()
	if err := c.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	wait.For(t, patience, "the server to hear it", func() bool { return strings.Contains(kea.log.String(), "DHCP6_RELEASE_PD") })
	k, err := load(c.State)
	if err != nil || len(k.leases) > 0 || k.server != nil || len(k.duid) == 0 {
		t.Errorf("kept: %+v, %v", k, err)
	}
	if err := c.Release(t.Context()); err != nil {
		t.Errorf("again: %v", err)
	}
}

// TestAnotherServer is the server that delegated gone for good, and another one
// there that has other prefixes.
func TestAnotherServer(t *testing.T) {
	n := makeNetwork(t)
	c := n.run(56) // no server yet
	wait.For(t, patience, "it to ask", func() bool { return c.Status().Counts.Sent > 1 })
	dhcpd := n.dhcpd()
	l := c.has(t, "2001:db8:e000::/48")
	c.answered(t, l)
	first := c.Status().Server
	dhcpd.kill()
	n.kea(filepath.Join(n.dir, "leases6.csv"), "2001:db8:f000::/44")
	c.has(t, "2001:db8:f000::/44")
	if s := c.Status(); s.Server == first {
		t.Errorf("status: %+v", s)
	}
}

// TestReleaseEnds holds that a server that is away keeps nobody waiting for ever.
func TestReleaseEnds(t *testing.T) {
	n := makeNetwork(t)
	c := n.client(56)
	k := kept{duid: ourDUID, server: firstDUID, leases: []Lease{{Prefix: ulaPrefix}}}
	if err := save(c.State, k); err != nil {
		t.Fatal(err)
	}
	n.do("ip link set up0 down")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Release(ctx); err == nil || !strings.Contains(err.Error(), "up0") {
		t.Errorf("with the interface down: %v", err)
	}
	if k, err := load(c.State); err != nil || len(k.leases) != 1 {
		t.Errorf("kept: %+v, %v", k, err)
	}
	n.do("ip link set up0 up")
	if err := c.Release(t.Context()); err != nil {
		t.Error(err)
	}
	if e := c.log.LastEntry(); e == nil || !strings.Contains(e.Message, "no server answers the RELEASE of fd00:1::/48") {
		t.Errorf("said: %v", e)
	}
}
