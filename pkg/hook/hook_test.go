package hook_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/slash32/slash32/pkg/hook"
	"github.com/slash32/slash32/pkg/kernel"
	"github.com/slash32/slash32/pkg/probe"
	"github.com/slash32/slash32/pkg/spool"
	"github.com/slash32/slash32/pkg/state"
	"github.com/slash32/slash32/pkg/traffic"
)

// bed is a hook on a real kernel in a network namespace of its own.
type bed struct {
	*testing.T
	hook   *hook.Hook
	kernel *kernel.Kernel
	spool  *spool.Spool
	resp   map[string]bool
	poked  int
	agent  bool // one listens
	opened int  // how often the kernel was opened

	probed []probe.Target
	hits   []probe.Hit
	misses []error

	log strings.Builder

	failApply error
	failReady error
	now       time.Time
}

// handle is what the hook opens: the bed's kernel, kept open.
type handle struct {
	*kernel.Kernel
	b *bed
}

func (h handle) Close() {}

func (h handle) Apply(ctx context.Context, cs []state.Change) (int, error) {
	if h.b.failApply != nil && slices.ContainsFunc(cs, func(c state.Change) bool { return c.Verb == state.Add }) {
		// Half of it is done, then the kernel refuses.
		n, err := h.Kernel.Apply(ctx, cs[:len(cs)/2])
		return n, errors.Join(h.b.failApply, err)
	}
	return h.Kernel.Apply(ctx, cs)
}

func (b *bed) Start(_ context.Context, dir string) error { b.resp[dir] = true; return nil }
func (b *bed) Stop(_ context.Context, dir string) error  { delete(b.resp, dir); return nil }
func (b *bed) WaitReady(context.Context, string) error   { return b.failReady }

func newBed(t *testing.T) *bed {
	t.Helper()
	runtime.LockOSThread() // the thread dies with the test, and the namespace with it
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatalf("make a network namespace (it takes root): %v", err)
	}
	log := logrus.New()
	log.SetOutput(t.Output())
	k, err := kernel.New(log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	dirs := spool.Dirs{Run: filepath.Join(t.TempDir(), "run"), Config: t.TempDir(), State: t.TempDir()}
	b := &bed{T: t, kernel: k, spool: &spool.Spool{Dirs: dirs}, resp: map[string]bool{}, now: time.Now()}
	b.hook = &hook.Hook{
		Dirs:     dirs,
		Kernel:   func() (hook.Kernel, error) { b.opened++; return handle{k, b}, nil },
		Launcher: func(string) hook.Launcher { return b },
		Poke:     func(string) bool { b.poked++; return b.agent },
		Probe: func(_ context.Context, ts []probe.Target, wait time.Duration) ([]probe.Hit, []error) {
			if wait != 250*time.Millisecond {
				t.Errorf("probed for %v", wait)
			}
			b.probed = append(b.probed, ts...)
			return b.hits, b.misses
		},
		Now: func() time.Time { return b.now },
		Log: log,
	}
	log.SetOutput(io.MultiWriter(t.Output(), &b.log))
	return b
}

func id(n int) uuid.UUID { return uuid.UUID{15: byte(n)} }

// dom is a domain's XML; zero fields have defaults.
type dom struct {
	n          int
	annotation string // attributes; "-": none
	children   string
	bridge     string
	nic        string // type
}

func (d dom) xml() string {
	if d.bridge == "" {
		d.bridge = fmt.Sprintf("s32-vm%d", d.n)
	}
	if d.nic == "" {
		d.nic = "bridge"
	}
	metadata := "<slash32:network xmlns:slash32='urn:slash32:domain:1' " + d.annotation + "/>"
	if d.children != "" {
		metadata = strings.TrimSuffix(metadata, "/>") + ">" + d.children + "</slash32:network>"
	}
	if d.annotation == "-" {
		metadata = ""
	}
	return fmt.Sprintf(`<domain type='qemu'><name>vm%[1]d</name><uuid>%[2]s</uuid>
<metadata>
%[3]s
</metadata>
<devices><interface type='%[4]s'><mac address='52:54:00:00:00:%02[1]x'/><source %[4]s='%[5]s'/></interface></devices></domain>`,
		d.n, id(d.n), metadata, d.nic, d.bridge)
}

func (b *bed) call(op string, d dom) error {
	return b.hook.Run(context.Background(), []string{fmt.Sprintf("vm%d", d.n), op, "begin", "-"}, strings.NewReader(d.xml()))
}

func (b *bed) must(op string, d dom) {
	b.Helper()
	if err := b.call(op, d); err != nil {
		b.Fatalf("%s: %v", op, err)
	}
}

func (b *bed) sh(line string) string {
	b.Helper()
	f := strings.Fields(line)
	out, err := exec.Command(f[0], f[1:]...).CombinedOutput()
	if err != nil {
		b.Fatalf("%s: %v: %s", line, err, out)
	}
	return string(out)
}

// all is everything that a start could leave: kernel objects, files, responders.
func (b *bed) all() string {
	b.Helper()
	s, err := b.kernel.Read(context.Background(), state.Scope{})
	if err != nil {
		b.Fatal(err)
	}
	out := s.String() + b.sh("ip -br link") + b.sh("nft list tables")
	err = filepath.WalkDir(b.spool.Run, func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() && e.Name() != "lock" {
			out += path + "\n"
		}
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		b.Fatal(err)
	}
	for dir := range b.resp {
		out += "responder " + dir + "\n"
	}
	return out
}

func (b *bed) wantEmpty(what string) {
	b.Helper()
	if d := cmp.Diff(newBedState, b.all()); d != "" {
		b.Errorf("%s leaves something: %s", what, d)
	}
}

// newBedState is what all gives before anything.
const newBedState = "lo               DOWN           00:00:00:00:00:00 <LOOPBACK> \n"

var web = dom{n: 1, annotation: `ipv4="203.0.113.42" ipv6="2001:db8::42"`}

func TestLife(t *testing.T) {
	for _, agent := range []bool{false, true} {
		t.Run(fmt.Sprintf("agent %v", agent), func(t *testing.T) {
			b := newBed(t)
			b.agent = agent
			b.must("prepare", web)
			out := b.sh("ip -d link show s32-vm1")
			for _, want := range []string{"02:73:6c:33:32:01", "group 32", "alias slash32:" + id(1).String() + ":52:54:00:00:00:01", "state", "mcast_router 2", "mcast_snooping 0"} {
				if !strings.Contains(out, want) {
					t.Errorf("the bridge lacks %q:\n%s", want, out)
				}
			}
			if out := b.sh("ip addr show s32-vm1"); !strings.Contains(out, "169.254.0.1/32") || !strings.Contains(out, "fe80::1/64") {
				t.Errorf("addresses:\n%s", out)
			}
			d, err := b.spool.Declaration(id(1))
			if err != nil || d.Phase != spool.Preparing || d.Generation != 1 || !slices.Equal(d.Bridges, []string{"s32-vm1"}) || len(d.Addrs) != 2 || d.XML != web.xml() {
				t.Errorf("declaration %+v, %v", d, err)
			}
			if !b.resp[b.spool.VMDir(id(1))] || b.poked != 1 {
				t.Errorf("responders %v, poked %d", b.resp, b.poked)
			}
			b.must("start", web)
			b.must("started", web)
			if d, _ := b.spool.Declaration(id(1)); d.Phase != spool.Started {
				t.Errorf("phase %s", d.Phase)
			}
			b.must("reconnect", web)
			// What the agent adds, the hook takes away again, with or without it.
			b.sh("ip route add 203.0.113.42 dev s32-vm1 proto 32 metric 1024")
			b.sh("ip neigh add 203.0.113.42 lladdr 52:54:00:00:00:01 dev s32-vm1 nud permanent")
			b.must("stopped", web)
			if out := b.sh("ip route show proto 32"); out != "" {
				t.Errorf("the route stays: %s", out)
			}
			b.must("stopped", web)
			b.must("release", web)
			if agent {
				if d, err := b.spool.Declaration(id(1)); err != nil || d.Phase != spool.Released {
					t.Errorf("no tombstone: %+v, %v", d, err)
				}
				if err := b.spool.Remove(id(1)); err != nil {
					t.Fatal(err)
				}
			}
			b.wantEmpty("release")
			b.must("release", web)
			b.must("stopped", web)
			b.wantEmpty("a second release")

			b.must("prepare", web)
			b.must("stopped", web) // the start failed
			b.must("release", web)
			_ = b.spool.Remove(id(1))
			b.wantEmpty("a start that failed")
		})
	}
}

// A domain that is not ours costs nothing: the kernel is not even opened.
func TestNotOurs(t *testing.T) {
	b := newBed(t)
	for _, op := range []string{"prepare", "start", "started", "stopped", "release", "migrate", "restore", "reconnect", "attach", "something-new"} {
		b.must(op, dom{n: 1, annotation: "-"})
		b.must(op, dom{n: 1, annotation: "-", nic: "network", bridge: "default"})
	}
	for _, op := range []string{"restore", "something-new"} {
		b.must(op, web)
	}
	if b.opened != 0 || b.poked != 0 {
		t.Errorf("the kernel was opened %d times, the agent poked %d times", b.opened, b.poked)
	}
	if _, err := os.Stat(b.spool.Run); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the run directory was made: %v", err)
	}
}

// forwarding is a VM with an address and a forward.
func forwarding(n int, addr, forward string) dom {
	return dom{n: n, annotation: `><interface><address ip="` + addr + `"/><forward ` + forward + `/></interface></slash32:network><other`}
}

// Different ports of the host's, or the same of other protocols, are no conflict.
func TestForwards(t *testing.T) {
	b := newBed(t)
	b.must("prepare", forwarding(1, "203.0.113.42", `port="8022" to="22"`))
	b.must("prepare", forwarding(2, "203.0.113.43", `port="8023" to="22"`))
	b.must("prepare", forwarding(3, "203.0.113.44", `port="8022" to="22" proto="udp"`))
	d, err := b.spool.Declaration(id(3))
	if err != nil || len(d.Forwards) != 1 || d.Forwards[0] != "ipv4 udp/8022 to 22" {
		t.Errorf("declared %v, %v", d.Forwards, err)
	}
}

func TestRefusals(t *testing.T) {
	long := strings.Repeat("<!-- padding -->", 70_000)
	for _, c := range []struct {
		name  string
		setup func(*bed)
		vm    dom
		want  []string // in the message
	}{
		{"address in use", func(b *bed) { b.must("prepare", web) },
			dom{n: 2, annotation: `ipv4="203.0.113.42"`}, []string{"vm2: E101", "line 3", "203.0.113.42", "vm1"}},
		{"second address in use", func(b *bed) { b.must("prepare", web) },
			dom{n: 2, annotation: `ipv4="203.0.113.43" ipv6="2001:db8:0::42"`}, []string{"vm2: E101", "2001:db8::42", "vm1"}},
		{"bridge in use", func(b *bed) { b.must("prepare", web) },
			dom{n: 2, annotation: `ipv4="203.0.113.43"`, bridge: "s32-vm1"}, []string{"vm2: E104", "s32-vm1", "vm1"}},
		{"port in use", func(b *bed) { b.must("prepare", forwarding(1, "203.0.113.42", `port="8000-8030" to="22"`)) },
			forwarding(2, "203.0.113.43", `port="8022" to="22"`), []string{"vm2: E115 line 3: port tcp/8022", "forwarded to running VM vm1", "tcp/8000-8030"}},
		{"public address in use", func(b *bed) { b.must("prepare", web) },
			dom{n: 2, annotation: `ipv4="10.0.0.43" nat="one-to-one 203.0.113.42"`}, []string{"vm2: E101", "203.0.113.42", "vm1"}},
		{"public address is the host's", func(b *bed) { b.uplink() },
			dom{n: 2, annotation: `ipv4="10.0.0.43" nat="one-to-one 192.0.2.1"`}, []string{"vm2: E101", "192.0.2.1 is an address of this host itself"}},
		{"route without declaration", func(b *bed) {
			b.must("prepare", web)
			b.must("started", web)
			b.sh("ip route add 203.0.113.42 dev s32-vm1 proto 32 metric 1024")
			b.sh("ip link add tap1 type veth peer name tap1p")
			b.sh("ip link set tap1 master s32-vm1")
			if err := b.spool.Remove(id(1)); err != nil {
				b.Fatal(err)
			}
		}, dom{n: 2, annotation: `ipv4="203.0.113.42"`}, []string{"vm2: E101", "s32-vm1", id(1).String()}},
		{"unknown attribute", nil, dom{n: 2, annotation: `ip4="203.0.113.42"`}, []string{"vm2: E103 line 3", `"ip4"`, `"ipv4"`}},
		{"malformed address", nil, dom{n: 2, annotation: `ipv4="203.0.113.420"`}, []string{"vm2: E102 line 3", "203.0.113.420"}},
		{"announced by another host", func(b *bed) {
			b.uplink()
			b.sh("ip route add 203.0.113.42 via 192.0.2.3 dev up0 proto bird")
		}, dom{n: 2, annotation: `ipv4="203.0.113.42"`}, []string{"vm2: E101", "line 3", "203.0.113.42", "announced by another host", "E101 line 3: address 203.0.113.42 is announced by another host: route via 192.0.2.3 dev up0 proto bird (12). Fix: "}},
		{"announced by another host, IPv6", func(b *bed) {
			b.uplink()
			b.sh("ip -6 route add 2001:db8::42 via fe80::3 dev up0 proto zebra")
		}, dom{n: 2, annotation: `ipv6="2001:db8::42"`}, []string{"vm2: E101", "2001:db8::42", "via fe80::3 dev up0 proto zebra (11). Fix: "}},
		{"announced by two hosts", func(b *bed) {
			b.uplink()
			b.sh("ip route add 203.0.113.42 proto 77 nexthop via 192.0.2.3 nexthop via 192.0.2.4")
		}, dom{n: 2, annotation: `ipv4="203.0.113.42"`}, []string{"vm2: E101", "route dev up0 (and other next hops) proto 77. Fix: "}},
		{"announced in the network's table, which nobody uses yet", func(b *bed) {
			b.uplink()
			b.write("slash32.yaml", "networks: {policy: {table: 100}}\n")
			b.sh("ip route add 203.0.113.42 via 192.0.2.3 dev up0 proto bgp table 100")
		}, dom{n: 2, annotation: `network="policy" ipv4="203.0.113.42"`}, []string{"vm2: E101", "via 192.0.2.3 dev up0 proto bgp (186)"}},
		{"announced in the network's table, which a VM uses", func(b *bed) {
			b.uplink()
			b.write("slash32.yaml", "networks: {policy: {table: 100}}\n")
			b.must("prepare", dom{n: 1, annotation: `network="policy" ipv4="203.0.113.43"`})
			b.sh("ip rule add pref 32000 lookup 100 suppress_prefixlength 0 protocol 32") // as the agent does
			b.sh("ip route add 203.0.113.42 via 192.0.2.3 dev up0 proto ospf table 100")
		}, dom{n: 2, annotation: `network="policy" ipv4="203.0.113.42"`}, []string{"vm2: E101", "via 192.0.2.3 dev up0 proto ospf (188)"}},
		{"a network's broadcast address", func(b *bed) { b.uplink() },
			dom{n: 2, annotation: `ipv4="192.0.2.255"`}, []string{"vm2: E101", "192.0.2.255", "broadcast", "up0"}},
		{"address of a local VM, with warn", func(b *bed) {
			b.uplink()
			b.write("slash32.yaml", "networks: {default: {conflict: warn, probe: [arp], probe_wait: 250ms}}\n")
			b.must("prepare", dom{n: 1, annotation: `ipv4="203.0.113.42"`})
			b.Cleanup(func() {
				if len(b.probed) != 1 { // vm1's
					b.Errorf("the network was asked for what a local VM has: %v", b.probed)
				}
			})
		}, dom{n: 2, annotation: `ipv4="203.0.113.42"`}, []string{"vm2: E101", "belongs to running VM vm1"}},
		{"the host's own address", func(b *bed) { b.uplink() },
			dom{n: 2, annotation: `ipv4="192.0.2.1"`}, []string{"vm2: E101", "192.0.2.1", "this host itself"}},
		{"answered on the uplink", func(b *bed) {
			b.uplink()
			b.write("slash32.yaml", "networks: {default: {probe: [arp], probe_wait: 250ms}}\n")
			b.hits = []probe.Hit{{Addr: netip.MustParseAddr("203.0.113.42"), By: "answers ARP at 52:54:00:00:00:99 on up0"}}
		}, dom{n: 2, annotation: `ipv4="203.0.113.42"`}, []string{"vm2: E101", "somebody answers ARP at 52:54:00:00:00:99 on up0"}},
		{"bridge with a physical port", func(b *bed) {
			b.sh("ip link add br0 type bridge")
			b.sh("ip link add enp4s0 type veth peer name cable")
			b.sh("ip link set enp4s0 master br0")
		}, dom{n: 2, annotation: `ipv4="203.0.113.42"`, bridge: "br0"}, []string{"vm2: E106", "br0", "enp4s0", "s32-vm2"}},
		{"bridge that is not ours", func(b *bed) { b.sh("ip link add br0 type bridge") },
			dom{n: 2, annotation: `ipv4="203.0.113.42"`, bridge: "br0"}, []string{"vm2: E106", "br0", "not one that slash32 made"}},
		{"not a bridge", func(b *bed) { b.sh("ip link add br0 type veth peer name br0p") },
			dom{n: 2, annotation: `ipv4="203.0.113.42"`, bridge: "br0"}, []string{"vm2: E106", "br0", "veth"}},
		{"long bridge name", nil, dom{n: 2, annotation: `ipv4="203.0.113.42"`, bridge: "a-much-too-long-name"}, []string{"vm2: E107", "a-much-too-long-name", "15"}},
		{"type network", nil, dom{n: 2, annotation: `ipv4="203.0.113.42"`, nic: "network", bridge: "default"}, []string{"vm2: E108", "network"}},
		{"configuration", func(b *bed) { b.write("slash32.yaml", "networks:\n  default:\n    upling: eth0\n") },
			dom{n: 2, annotation: `ipv4="203.0.113.42"`}, []string{"vm2: E112", "slash32.yaml:3", "upling", "uplink"}},
		{"unknown network", nil, dom{n: 2, annotation: `ipv4="203.0.113.42" network="pubic"`}, []string{"vm2: E111", "pubic"}},
		{"XML too long", nil, dom{n: 2, annotation: `ipv4="203.0.113.42"/>` + long + `<x`}, []string{"vm2: E100", "1048576"}},
		{"the kernel refuses", func(b *bed) { b.failApply = errors.New("no buffer space available") }, web, []string{"vm1: E130", "no buffer space"}},
		{"the responder does not start", func(b *bed) { b.failReady = errors.New("cannot open a packet socket") }, web, []string{"vm1: E130", "cannot open a packet socket"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBed(t)
			if c.setup != nil {
				c.setup(b)
			}
			before := b.all()
			err := b.call("prepare", c.vm)
			if err == nil {
				t.Fatal("it was let start")
			}
			for _, w := range c.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("the message lacks %q: %v", w, err)
				}
			}
			if strings.ContainsAny(err.Error(), "\n\r") {
				t.Errorf("more than one line: %q", err)
			}
			if d := cmp.Diff(before, b.all()); d != "" {
				t.Errorf("something is left, or the other VM was disturbed: %s", d)
			}
			// libvirt calls these after a start that was refused.
			b.must("stopped", c.vm)
			b.must("release", c.vm)
			if d := cmp.Diff(before, b.all()); d != "" {
				t.Errorf("stopped or release of what never started changed something: %s", d)
			}
		})
	}
}

func (b *bed) write(name, text string) {
	b.Helper()
	path := filepath.Join(b.hook.Dirs.Config, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		b.Fatal(err)
	}
}

// A file below domains.d stands in for the metadata.
func TestDomainFile(t *testing.T) {
	b := newBed(t)
	b.write("domains.d/vm1.yaml", "ipv4: 203.0.113.42\n")
	plain := dom{n: 1, annotation: "-"}
	b.must("prepare", plain)
	if _, err := b.spool.Declaration(id(1)); err != nil {
		t.Fatal(err)
	}
	// Removed while the VM runs: the teardown still happens.
	if err := os.Remove(filepath.Join(b.hook.Dirs.Config, "domains.d/vm1.yaml")); err != nil {
		t.Fatal(err)
	}
	b.must("stopped", plain)
	b.must("release", plain)
	b.wantEmpty("release")
}

// A stopped or release that comes after the next start tears nothing down.
func TestLateRelease(t *testing.T) {
	b := newBed(t)
	b.must("prepare", web)
	b.must("started", web)
	b.sh("ip link add tap1 type veth peer name tap1p")
	b.sh("ip link set tap1 master s32-vm1")
	before := b.all()
	b.must("stopped", web)
	b.must("release", web)
	if d := cmp.Diff(before, b.all()); d != "" {
		t.Error(d)
	}
	if d, err := b.spool.Declaration(id(1)); err != nil || d.Phase != spool.Started {
		t.Errorf("%+v, %v", d, err)
	}
}

// What a hook that died left behind is taken over, and a wiped run directory
// does not keep a teardown from happening.
func TestLeftovers(t *testing.T) {
	b := newBed(t)
	b.must("prepare", web)
	b.must("prepare", web)
	if d, _ := b.spool.Declaration(id(1)); d.Generation != 2 {
		t.Errorf("generation %d", d.Generation)
	}
	if err := os.RemoveAll(b.spool.Run); err != nil {
		t.Fatal(err)
	}
	clear(b.resp)
	other := dom{n: 2, annotation: `ipv4="203.0.113.42"`, bridge: "s32-vm1"}
	b.must("prepare", other)
	if out := b.sh("ip link show s32-vm1"); !strings.Contains(out, id(2).String()) {
		t.Errorf("the left-over was not taken over:\n%s", out)
	}
	if err := os.RemoveAll(b.spool.Run); err != nil {
		t.Fatal(err)
	}
	clear(b.resp)
	b.must("stopped", other)
	b.must("release", other)
	b.wantEmpty("release without a declaration")
}

// A preparation that never got further counts for five minutes.
func TestStalePreparation(t *testing.T) {
	b := newBed(t)
	b.must("prepare", web)
	second := dom{n: 2, annotation: `ipv4="203.0.113.42"`}
	if err := b.call("prepare", second); err == nil {
		t.Fatal("two VMs with one address")
	}
	b.now = b.now.Add(spool.PrepareDeadline + time.Second)
	b.must("prepare", second)
}

// Only prepare and start may refuse: a reconnect that fails would have libvirt
// kill the VM.
func TestNeverFails(t *testing.T) {
	b := newBed(t)
	bad := dom{n: 1, annotation: `nonsense="1"`}
	for _, op := range []string{"started", "stopped", "release", "migrate", "restore", "reconnect", "attach"} {
		b.must(op, bad)
	}
	b.failReady = errors.New("no")
	b.must("reconnect", web)
	if err := b.hook.Run(context.Background(), []string{"vm1", "reconnect", "begin", "-"}, strings.NewReader("<slash32:network urn:slash32:domain:1")); err != nil {
		t.Error(err)
	}
	if err := b.hook.Run(context.Background(), nil, strings.NewReader("")); err == nil {
		t.Error("no arguments were taken")
	}
}

// Reconnect makes declaration, binding and responder anew where they lack.
func TestReconnect(t *testing.T) {
	b := newBed(t)
	b.must("prepare", web)
	if err := os.RemoveAll(b.spool.Run); err != nil {
		t.Fatal(err)
	}
	clear(b.resp)
	b.must("reconnect", web)
	d, err := b.spool.Declaration(id(1))
	if err != nil || d.Phase != spool.Started {
		t.Errorf("%+v, %v", d, err)
	}
	bind, err := b.spool.Binding(id(1))
	if err != nil || bind.NICs[0].V4.Addr != netip.MustParseAddr("203.0.113.42") {
		t.Errorf("%+v, %v", bind, err)
	}
	if !b.resp[b.spool.VMDir(id(1))] {
		t.Error("no responder")
	}
}

// The last VM that goes takes the table and the rules along, others do not. What
// covers a network's pool is nobody's and stays.
func TestLastOneSwitchesOff(t *testing.T) {
	b := newBed(t)
	b.write("slash32.yaml", "networks:\n  policy:\n    table: 100\n")
	second := dom{n: 2, annotation: `ipv4="203.0.113.43" network="policy"`}
	b.must("prepare", web)
	b.must("prepare", second)
	b.sh("ip rule add pref 32000 lookup 100 suppress_prefixlength 0 protocol 32") // as the agent does
	b.must("stopped", web)
	b.must("release", web)
	if out := b.sh("nft list tables"); !strings.Contains(out, "slash32") {
		t.Error("the table went with the first of two")
	}
	b.sh("ip -6 route add unreachable 2001:db8:ffff::/48 metric 4096 protocol 32") // the same: a pool's
	b.must("stopped", second)
	b.must("release", second)
	b.sh("ip -6 route del unreachable 2001:db8:ffff::/48 metric 4096 protocol 32")
	if out := b.sh("ip rule"); strings.Contains(out, "lookup 100") {
		t.Errorf("the rule stays:\n%s", out)
	}
	b.wantEmpty("the last release")
}

// uplink is a default route and a network to the outside.
func (b *bed) uplink() {
	b.Helper()
	for _, line := range []string{
		"ip link set lo up",
		"ip link add up0 type veth peer name up0p",
		"ip link set up0p up",
		"ip link set up0 up",
		"ip address add 192.0.2.1/24 dev up0",
		"ip route add default via 192.0.2.254",
	} {
		b.sh(line)
	}
}

// TestTakenElsewhere: what does not refuse the start is a warning that stays with
// the VM.
// A forward that takes the place of a program of the host is said, and does not keep
// the VM from starting.
func TestPortOfTheHost(t *testing.T) {
	b := newBed(t)
	b.sh("ip link set lo up")
	l, err := net.Listen("tcp4", "0.0.0.0:22")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	const code = "W115"
	b.must("prepare", dom{n: 1, children: `<interface><address ip="10.0.0.1"/><forward port="2222" to="22"/></interface>`})
	if got := b.log.String(); strings.Contains(got, code) {
		t.Errorf("another port: %s", got)
	}
	b.must("prepare", dom{n: 2, children: `<interface><address ip="10.0.0.2"/><forward port="22"/></interface>`})
	if got := b.log.String(); !strings.Contains(got, "vm2: W115 line 3: port tcp/22 is forwarded") {
		t.Errorf("log: %s", got)
	}
	if _, err := b.spool.Declaration(id(2)); err != nil {
		t.Error(err)
	}
}

func TestTakenElsewhere(t *testing.T) {
	const quick = "networks: {default: {conflict: warn, probe: [arp, icmp], probe_wait: 250ms}}\n"
	vm := dom{n: 2, annotation: `ipv4="203.0.113.42" ipv6="2001:db8::42"`}
	warnings := func(b *bed) string {
		d, err := b.spool.Declaration(id(2))
		if err != nil {
			b.Fatal(err)
		}
		return strings.Join(d.Warnings, "\n")
	}
	t.Run("warn", func(t *testing.T) {
		b := newBed(t)
		b.uplink()
		b.sh("ip route add 203.0.113.42 via 192.0.2.3 dev up0 proto bird")
		b.write("slash32.yaml", quick)
		b.must("prepare", vm)
		if got := warnings(b); !strings.Contains(got, "vm2: W101 line 3: address 203.0.113.42 is announced by another host") {
			t.Errorf("warnings: %s", got)
		}
	})
	t.Run("probe", func(t *testing.T) {
		b := newBed(t)
		b.uplink()
		b.write("slash32.yaml", "networks: {default: {uplink: up0, conflict: warn, probe: [arp, icmp], probe_wait: 250ms}}\n")
		b.misses = []error{errors.New("no carrier")}
		b.must("prepare", vm)
		want := []probe.Target{
			{Addr: netip.MustParseAddr("203.0.113.42"), Link: "up0", ARP: true, ICMP: true},
			{Addr: netip.MustParseAddr("2001:db8::42"), Link: "up0", ARP: true, ICMP: true},
		}
		if !slices.Equal(b.probed, want) {
			t.Errorf("probed %v", b.probed)
		}
		if got := warnings(b); !strings.Contains(got, "W102") || !strings.Contains(got, "no carrier") {
			t.Errorf("warnings: %s", got)
		}
	})
	t.Run("no uplink", func(t *testing.T) {
		b := newBed(t)
		b.write("slash32.yaml", quick)
		b.must("prepare", vm)
		if got := warnings(b); len(b.probed) > 0 || !strings.Contains(got, "W102") {
			t.Errorf("probed %v, warnings: %s", b.probed, got)
		}
	})
	// The uplink of one family does not keep the other's from being asked.
	t.Run("no IPv6 uplink", func(t *testing.T) {
		b := newBed(t)
		b.uplink()
		b.write("slash32.yaml", "networks: {default: {probe: [arp], probe_wait: 250ms}}\n")
		b.hits = []probe.Hit{{Addr: netip.MustParseAddr("203.0.113.42"), By: "answers ARP at 52:54:00:00:00:99 on up0"}}
		err := b.call("prepare", vm)
		want := []probe.Target{{Addr: netip.MustParseAddr("203.0.113.42"), Link: "up0", ARP: true}}
		if err == nil || !strings.Contains(err.Error(), "vm2: E101 line 3: address 203.0.113.42 is in use: somebody answers ARP at 52:54:00:00:00:99 on up0. Fix: ") || !slices.Equal(b.probed, want) {
			t.Errorf("%v, probed %v", err, b.probed)
		}
		b.hits = nil
		b.must("prepare", vm)
		if got := warnings(b); !strings.Contains(got, "W102") || !strings.Contains(got, "2001:db8::42") {
			t.Errorf("warnings: %s", got)
		}
	})
	t.Run("not asked for", func(t *testing.T) {
		b := newBed(t)
		b.uplink()
		b.sh("ip route add blackhole 203.0.113.0/24")
		b.sh("ip route add 203.0.112.0/20 via 192.0.2.3 proto bird")
		b.must("prepare", vm)
		if got := warnings(b); got != "" || len(b.probed) > 0 {
			t.Errorf("probed %v, warnings: %s", b.probed, got)
		}
	})
	// While a VM migrates here, its old host still announces it.
	t.Run("migration", func(t *testing.T) {
		b := newBed(t)
		b.uplink()
		b.sh("ip route add 203.0.113.42 via 192.0.2.3 dev up0 proto bird")
		b.write("slash32.yaml", "networks: {default: {probe: [arp], probe_wait: 250ms}}\n")
		b.must("migrate", vm)
		b.must("prepare", vm)
		if got := warnings(b); got != "" || len(b.probed) > 0 {
			t.Errorf("probed %v, warnings: %s", b.probed, got)
		}
		b.must("stopped", vm)
		b.must("release", vm)
		if err := b.call("prepare", vm); err == nil {
			t.Error("the next start counts as a migration, too")
		}
		b.must("restore", vm)
		if err := b.call("prepare", vm); err == nil {
			t.Error("a restore counts as a migration")
		}
		b.must("migrate", vm)
		b.now = b.now.Add(time.Hour)
		if err := b.call("prepare", vm); err == nil {
			t.Error("a migration that came to nothing is remembered for an hour")
		}
		b.now = time.Now()
		b.sh("ip address add 203.0.113.42/32 dev lo")
		b.must("migrate", vm)
		if err := b.call("prepare", vm); err == nil || !strings.Contains(err.Error(), "this host itself, on lo") {
			t.Errorf("a VM migrates to the host that has its address: %v", err)
		}
	})
}

// TestRelayed: a relayed VM needs no address, and gets a lease file. What the agent
// says that it was leased is nobody else's to have.
func TestRelayed(t *testing.T) {
	b := newBed(t)
	b.write("slash32.yaml", "networks: {ext: {relay: [192.0.2.11]}}\n")
	relayed := dom{n: 1, annotation: `network="ext"`}
	b.must("prepare", relayed)
	b.must("started", relayed)
	if info, err := os.Stat(b.spool.LeaseFile(id(1))); err != nil || info.Mode() != 0o600 {
		t.Errorf("the lease file: %v, %v", info, err)
	}
	d, err := b.spool.Declaration(id(1))
	if err != nil {
		t.Fatal(err)
	}
	d.Addrs = append(d.Addrs, netip.MustParseAddr("203.0.113.42"))
	if err := b.spool.WriteDeclaration(d); err != nil {
		t.Fatal(err)
	}
	if err := b.call("prepare", dom{n: 2, annotation: `ipv4="203.0.113.42"`}); err == nil || !strings.Contains(err.Error(), "E101") || !strings.Contains(err.Error(), "vm1") {
		t.Errorf("the leased address of another VM: %v", err)
	}

	// A state directory that cannot be written is no reason not to start.
	b.hook.Dirs.State = "/dev/null/x"
	b.must("prepare", dom{n: 3, annotation: `network="ext"`})
	if !b.resp[b.spool.VMDir(id(3))] {
		t.Error("no responder was started")
	}
}

// TestCountersAreLeft: what a VM's traffic counters said last is left for the
// agent, once.
func TestCountersAreLeft(t *testing.T) {
	b := newBed(t)
	b.agent = true
	b.must("prepare", web)
	b.must("started", web)
	b.sh(`nft add element inet slash32 in_internet { "s32-vm1" counter packets 3 bytes 300 }`)
	b.sh(`nft add element inet slash32 out_local { "s32-vm1" counter packets 1 bytes 50 }`)
	b.must("stopped", web)
	b.must("stopped", web)
	b.must("release", web)
	boot, err := spool.BootID()
	if err != nil {
		t.Fatal(err)
	}
	left, err := b.spool.LeftCounters()
	if err != nil || len(left) != 1 {
		t.Fatalf("left: %v, %v", left, err)
	}
	want := traffic.Final{Boot: boot, Bridges: map[string]traffic.Traffic{"s32-vm1": {
		In: traffic.Classes{Internet: traffic.Count{Packets: 3, Bytes: 300}}, Out: traffic.Classes{Local: traffic.Count{Packets: 1, Bytes: 50}},
	}}}
	for name, f := range left {
		if d := cmp.Diff(want, f); d != "" || !strings.HasPrefix(name, id(1).String()) {
			t.Errorf("%s: %s", name, d)
		}
	}
}
