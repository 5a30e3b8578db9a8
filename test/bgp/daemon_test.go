package bgp

import (
	"context"
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/slash32/slash32/test/lab"
)

// daemon is a routing daemon, on one node each.
type daemon interface {
	name() string
	protocol() string // that it gives its routes in the kernel
	// start starts it on a node, with the configuration that slash32 ships or, on
	// the router, the reflector's.
	start(ctx context.Context, l *lab.Lab, n *lab.Node) error
	// end ends it: SIGTERM for an orderly end.
	end(n *lab.Node, sig syscall.Signal) error
}

var (
	//go:embed testdata/reflector.bird
	reflectorBIRD string
	//go:embed testdata/reflector.frr
	reflectorFRR string
)

// numbers are the last parts of the hosts' addresses.
var numbers = map[string]string{"hv": "11", "hv2": "12"}

// shipped is a configuration in packaging/ with what it calls yours in the place of
// its examples. Each of these has to be there.
func shipped(path string, n *lab.Node) (string, error) {
	b, err := os.ReadFile(filepath.Join("..", "..", "packaging", path))
	if err != nil {
		return "", fmt.Errorf("read what is shipped: %w", err)
	}
	text := string(b)
	for _, yours := range [][2]string{
		{"203.0.113.0/24", "198.18.32.0/24"},
		{"2001:db8:1::/48", "2001:db8:3200::/48"},
		{"192.0.2.11", "10.99.0." + numbers[n.Name]},
		{"192.0.2.1", "10.99.0.1"},
		{"2001:db8:0:2::1", "2001:db8:99::1"},
	} {
		if !strings.Contains(text, yours[0]) {
			return "", fmt.Errorf("packaging/%s has no %s to be replaced", path, yours[0])
		}
		text = strings.ReplaceAll(text, yours[0], yours[1])
	}
	return text, nil
}

// bird is BIRD 2.
type bird struct{ processes map[string]*lab.Process }

func (*bird) name() string     { return "BIRD" }
func (*bird) protocol() string { return "bird" }

// birdBase is Debian's bird.conf without its protocols kernel.
const birdBase = `log stderr all;
protocol device { }
protocol direct { disabled; ipv4; ipv6; }
include "/etc/bird/%s/slash32.conf";
`

func (d *bird) start(_ context.Context, _ *lab.Lab, n *lab.Node) (err error) {
	dir := "/etc/bird/" + n.Name
	if err := os.MkdirAll(n.Path(dir), 0o755); err != nil {
		return fmt.Errorf("make a directory of the lab's: %w", err)
	}
	base, text := fmt.Sprintf(birdBase, n.Name), reflectorBIRD
	if n.Name == "rtr" {
		base = text
	} else if text, err = shipped("bird/slash32.conf", n); err != nil {
		return err
	}
	if err := n.WriteFile(dir+"/slash32.conf", text, 0o644); err != nil {
		return err
	}
	if err := n.WriteFile(dir+"/bird.conf", base, 0o644); err != nil {
		return err
	}
	d.processes[n.Name], err = n.Start("/var/log/routing-"+n.Name+".log",
		"bird", "-f", "-R", "-c", dir+"/bird.conf", "-s", "/run/bird-"+n.Name+".ctl")
	return err
}

func (d *bird) end(n *lab.Node, sig syscall.Signal) error {
	return d.processes[n.Name].Signal(sig)
}

// frr is FRR: zebra and bgpd.
type frr struct{ zebra, bgpd map[string]*lab.Process }

func (*frr) name() string     { return "FRR" }
func (*frr) protocol() string { return "bgp" }

// start does what frr.service does: the daemons start without a configuration and
// vtysh -b tells it them.
func (d *frr) start(ctx context.Context, l *lab.Lab, n *lab.Node) (err error) {
	dir := "/etc/frr/" + n.Name
	text := reflectorFRR
	if n.Name != "rtr" {
		if text, err = shipped("frr/frr.conf", n); err != nil {
			return err
		}
	}
	if _, err := n.Exec(ctx, "install", "-d", "-o", "frr", "-g", "frr", dir, "/run/frr/"+n.Name); err != nil {
		return err
	}
	for name, content := range map[string]string{"vtysh.conf": "service integrated-vtysh-config\n", "frr.conf": text} {
		if err := n.WriteFile(dir+"/"+name, content, 0o644); err != nil {
			return err
		}
	}
	for _, p := range []struct {
		name string
		of   map[string]*lab.Process
	}{{"zebra", d.zebra}, {"bgpd", d.bgpd}} {
		p.of[n.Name], err = n.Start("/var/log/routing-"+n.Name+".log",
			"/usr/lib/frr/"+p.name, "-N", n.Name, "-A", "127.0.0.1", "--log", "stdout")
		if err != nil {
			return err
		}
		err = lab.Wait(ctx, func() error {
			_, err := n.Exec(ctx, "vtysh", "-N", n.Name, "-d", p.name, "-c", "show version")
			return err
		})
		if err != nil {
			return err
		}
	}
	_, err = n.Exec(ctx, "vtysh", "-N", n.Name, "-b")
	return err
}

func (d *frr) end(n *lab.Node, sig syscall.Signal) error {
	if err := d.bgpd[n.Name].Signal(sig); err != nil {
		return err
	}
	return d.zebra[n.Name].Signal(sig)
}

// daemonLogs are the ends of the daemons' logs, for a test's failure.
func (w *world) daemonLogs() string {
	var b strings.Builder
	for _, n := range []*lab.Node{w.HV, w.Router, w.hv2} {
		s, err := n.ReadFile("/var/log/routing-" + n.Name + ".log")
		if err != nil {
			s = err.Error()
		}
		fmt.Fprintf(&b, "== %s\n%s\n", n.Name, s[max(0, len(s)-3000):])
	}
	return b.String()
}
