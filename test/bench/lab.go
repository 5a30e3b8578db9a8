package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/slash32/slash32/pkg/mac"
	"github.com/slash32/slash32/pkg/marks"
	"github.com/slash32/slash32/pkg/responder"
)

const (
	serverNS = "srv"
	guestNS  = "cli"
	gateway  = "172.16.0.1"
	guestIP  = "192.168.1.26"
)

// bed is the test bed: two network namespaces, in the first one bridge per VM,
// in the second the other end of its only port.
type bed struct {
	dir string // scratch folder
	bin string
	gen string // the guest's side, compiled
	c   string // the C responder, compiled
	n   int
}

func bridge(i int) string { return "br" + strconv.Itoa(i) }
func guest(i int) string  { return "e" + strconv.Itoa(i) }
func guestMAC(i int) string {
	return fmt.Sprintf("52:54:00:00:%02x:%02x", i>>8, i&0xff)
}
func vmDir(i int) string  { return filepath.Join("/run/slash32/vm", vmUUID(i)) }
func vmUUID(i int) string { return fmt.Sprintf("00000000-0000-4000-8000-%012d", i) }

func command(ctx context.Context, name string, args ...string) error {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

func newBed(ctx context.Context, bin string, n int) (*bed, error) {
	b := &bed{bin: bin, n: n, dir: "/run/bench"}
	for _, d := range []string{b.dir, "/run/netns"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, fmt.Errorf("make scratch folder: %w", err)
		}
	}
	src, err := sources()
	if err != nil {
		return nil, err
	}
	b.gen, b.c = filepath.Join(b.dir, "gen"), filepath.Join(b.dir, "c-responder")
	for out, c := range map[string]string{b.gen: "gen.c", b.c: "responder.c"} {
		if err := command(ctx, "cc", "-O2", "-static", "-o", out, filepath.Join(src, c)); err != nil {
			return nil, fmt.Errorf("compile %s: %w", c, err)
		}
	}
	for _, ns := range []string{serverNS, guestNS} {
		if err := command(ctx, "ip", "netns", "add", ns); err != nil {
			return nil, err
		}
	}
	var links strings.Builder
	for i := range n {
		fmt.Fprintf(&links, "link add %s address %s type bridge mcast_snooping 0 stp_state 0 forward_delay 0\n", bridge(i), marks.GatewayMAC)
		fmt.Fprintf(&links, "link add t%d type veth peer name %s address %s netns %s\n", i, guest(i), guestMAC(i), guestNS)
		fmt.Fprintf(&links, "link set t%d master %s up\naddress add %s/32 dev %s\nlink set %s up\n", i, bridge(i), gateway, bridge(i), bridge(i))
	}
	if err := batch(ctx, serverNS, links.String()); err != nil {
		return nil, err
	}
	// As on a bridge of ours: the kernel would answer ARP before any of them.
	if err := command(ctx, "ip", "netns", "exec", serverNS, "sysctl", "-qw", "net.ipv4.conf.all.arp_ignore=8"); err != nil {
		return nil, err
	}
	links.Reset()
	for i := range n {
		fmt.Fprintf(&links, "link set %s up\n", guest(i))
	}
	if err := batch(ctx, guestNS, links.String()); err != nil {
		return nil, err
	}
	for i := range n {
		if err := b.files(i); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// sources finds the C sources: beside this program's source in the checkout.
func sources() (string, error) {
	for _, d := range []string{"test/bench/c", "c"} {
		if _, err := os.Stat(filepath.Join(d, "gen.c")); err == nil {
			return filepath.Abs(d)
		}
	}
	return "", fmt.Errorf("find test/bench/c/gen.c: run bench from the top of the checkout")
}

func batch(ctx context.Context, ns, lines string) error {
	cmd := exec.CommandContext(ctx, "ip", "-n", ns, "-batch", "-")
	cmd.Stdin = strings.NewReader(lines)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("ip -batch in %s: %w: %s", ns, err, bytes.TrimSpace(out))
	}
	return nil
}

// files writes what the servers of bridge i read: our binding, dhcpd.conf.
func (b *bed) files(i int) error {
	g, err := mac.Parse(guestMAC(i))
	if err != nil {
		return err
	}
	gw, err := mac.Parse(marks.GatewayMAC)
	if err != nil {
		return err
	}
	dns := netip.MustParseAddr("9.9.9.9")
	bind := responder.Binding{Version: responder.BindingVersion, UUID: vmUUID(i), Name: "vm" + strconv.Itoa(i), NICs: []responder.NIC{{
		Bridge: bridge(i), GuestMAC: g, GatewayMAC: gw, MTU: 1500, Hostname: "vm" + strconv.Itoa(i), Domain: "example.org",
		V4: responder.V4{Addr: netip.MustParseAddr(guestIP), Gateway: netip.MustParseAddr(gateway), DNS: []netip.Addr{dns}, Lease: 3600, T1: 1800, T2: 3150},
		V6: responder.V6{Gateway: marks.DefaultGateway6, Addrs: []netip.Addr{netip.MustParseAddr("2001:db8:1::42")},
			DNS: []netip.Addr{netip.MustParseAddr("2620:fe::fe")}, Preferred: 3600, Valid: 7200, RouterLifetime: 1800},
	}}}
	j, err := json.Marshal(bind)
	if err != nil {
		return fmt.Errorf("encode binding: %w", err)
	}
	dir := vmDir(i)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make VM directory: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "binding.json"), j, 0o644); err != nil {
		return fmt.Errorf("write binding: %w", err)
	}
	conf := fmt.Sprintf(`option domain-name-servers 9.9.9.9;
option subnet-mask 255.255.255.255;
option routers %[1]s;
default-lease-time 3600;
ping-check false;
authoritative;
ignore-client-uids true;
one-lease-per-client true;
shared-network "%[2]s" {
	subnet %[1]s netmask 255.255.255.255 { }
	subnet %[3]s netmask 255.255.255.255 { range %[3]s; }
}
lease-file-name "%[4]s";
`, gateway, bridge(i), guestIP, b.path(i, "leases"))
	if err := os.WriteFile(b.path(i, "dhcpd.conf"), []byte(conf), 0o644); err != nil {
		return fmt.Errorf("write dhcpd.conf: %w", err)
	}
	return nil
}

func (b *bed) path(i int, name string) string { return filepath.Join(b.dir, strconv.Itoa(i)+"."+name) }

// server is one kind of server: its name and the command for bridge i.
type server struct {
	name string
	argv func(b *bed, i int) []string
	// bounded: its launcher leaves it few privileges.
	bounded bool
	// dhcpOnly: answers neither ARP nor neighbour solicitations itself.
	dhcpOnly bool
}

// command is the server's command line for the generator to run.
func (s server) command(b *bed, i int) []string {
	if s.bounded {
		return append([]string{"bounded"}, s.argv(b, i)...)
	}
	return s.argv(b, i)
}

var (
	ours = server{name: "slash32", bounded: true, argv: func(b *bed, i int) []string {
		return []string{filepath.Join(b.bin, "slash32-responder"), "-unlimited", vmDir(i)}
	}}
	cServer = server{name: "C", argv: func(b *bed, i int) []string {
		return []string{b.c, bridge(i), guestMAC(i), guestIP, gateway}
	}}
	dnsmasq = server{name: "dnsmasq", dhcpOnly: true, argv: func(b *bed, i int) []string {
		return []string{"/usr/sbin/dnsmasq", "-k", "-C", "/dev/null", "--port=0", "--user=root", "--interface=" + bridge(i), "--bind-dynamic", "--no-ping",
			"--dhcp-authoritative", "--pid-file=" + b.path(i, "dnsmasq.pid"), "--dhcp-leasefile=" + b.path(i, "dnsmasq.leases"), "--log-facility=/dev/null",
			"--dhcp-range=" + guestIP + "," + guestIP + ",255.255.255.252,1h", "--shared-network=" + bridge(i) + "," + guestIP, "--dhcp-option=3," + gateway, "--dhcp-option=6,9.9.9.9"}
	}}
	isc = server{name: "ISC dhcpd", dhcpOnly: true, argv: func(b *bed, i int) []string {
		return []string{"/usr/sbin/dhcpd", "-4", "-f", "-q", "--no-pid", "-cf", b.path(i, "dhcpd.conf"), bridge(i)}
	}}
)

// environment is the same for every server; ours is started by launch with it.
func environment() []string {
	return []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "GOMAXPROCS=1", "SLASH32_RUN_DIR=/run/slash32"}
}

// prepare clears what an earlier run of server s left for bridge i.
func (b *bed) prepare(i int) error {
	for _, n := range []string{"leases", "leases~", "dnsmasq.leases", "dnsmasq.pid"} {
		if err := os.RemoveAll(b.path(i, n)); err != nil {
			return fmt.Errorf("clear lease file: %w", err)
		}
	}
	return os.WriteFile(b.path(i, "leases"), nil, 0o644)
}

// start runs server s on bridge i; realtime pins it to core 0 with priority.
func (b *bed) start(ctx context.Context, s server, i int, realtime bool, cgroup string) (*exec.Cmd, error) {
	if err := b.prepare(i); err != nil {
		return nil, err
	}
	argv := []string{"ip", "netns", "exec", serverNS}
	if realtime {
		argv = append(argv, "taskset", "-c", "0", "chrt", "-f", "10")
	}
	argv = append(argv, s.argv(b, i)...)
	if cgroup != "" { // from outside: ip netns exec mounts another /sys
		argv = append([]string{"sh", "-c", `echo $$ > "$0" && exec "$@"`, filepath.Join(cgroup, "cgroup.procs")}, argv...)
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = environment()
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", s.name, err)
	}
	return cmd, nil
}

func stop(cmd *exec.Cmd) {
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
}

// ask runs the generator in the guest's namespace on core 1 and returns the
// numbers it printed. A loss is an error unless tolerate is set.
func (b *bed) ask(ctx context.Context, realtime bool, args ...string) ([]float64, error) {
	argv := []string{"netns", "exec", guestNS}
	if realtime {
		argv = append(argv, "taskset", "-c", "1", "chrt", "-f", "10")
	}
	argv = append(append(argv, b.gen), args...)
	cmd := exec.CommandContext(ctx, "ip", argv...)
	cmd.Env = environment()
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("gen %s: %w: %s%s", strings.Join(args, " "), err, out, errs.String())
	}
	var nums []float64
	for _, w := range strings.Fields(string(out)) {
		v, err := strconv.ParseFloat(w, 64)
		if err != nil {
			return nil, fmt.Errorf("gen %s printed %q: %w", args[0], out, err)
		}
		nums = append(nums, v)
	}
	return nums, nil
}

// ready waits until the server on bridge i answers one exchange.
func (b *bed) ready(ctx context.Context, i int) error {
	deadline := time.Now().Add(20 * time.Second)
	for {
		_, err := b.ask(ctx, false, "exchange", guest(i), guestMAC(i), "1")
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("wait for the server on %s: %w", bridge(i), err)
		}
	}
}
