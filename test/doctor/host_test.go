// Package doctor_test holds slash32 against the firewalls that hosts have: real rules
// as Docker writes them, real ufw, real firewalld. It needs root, the packages that
// test/setup.sh installs, and the binaries in bin/. All of it is in namespaces of its
// own: a host with the agent and a VM's bridge, a guest, and somebody outside.
package doctor_test

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/slash32/slash32/pkg/cli"
	"github.com/slash32/slash32/pkg/control"
	"github.com/slash32/slash32/test/wait"
)

// limit bounds a step of a test that would hang.
const limit = 60 * time.Second

// space is a set of namespaces: network, mounts and processes. All in it ends with it.
type space struct {
	*testing.T
	init    *exec.Cmd
	daemons []*exec.Cmd
}

// private gives a space its own /run, /etc, /var and /sys.
const private = `
	mount --make-rprivate /
	mount -t proc proc /proc
	mount -t sysfs sysfs /sys
	mount -t tmpfs tmpfs /run
	mount -t tmpfs tmpfs /mnt
	for d in etc var; do
		mkdir /mnt/$d /mnt/$d.work
		mount -t overlay -o lowerdir=/$d,upperdir=/mnt/$d,workdir=/mnt/$d.work overlay /$d
	done
	rm -rf /etc/slash32 /var/lib/slash32
	ip link set lo up
	echo ready
	exec cat`

func newSpace(t *testing.T) *space {
	t.Helper()
	s := &space{T: t, init: exec.Command("sh", "-ec", private)}
	s.init.SysProcAttr = &syscall.SysProcAttr{
		Setsid: true, Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL,
	}
	stdin, err := s.init.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := s.init.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	s.init.Stderr = t.Output()
	runtime.LockOSThread() // Pdeathsig is of the thread
	if err := s.init.Start(); err != nil {
		t.Fatalf("make namespaces (it takes root): %v", err)
	}
	t.Cleanup(func() {
		_ = stdin.Close()
		_ = s.init.Process.Kill()
		_ = s.init.Wait() // "signal: killed", and all processes with it
		for _, d := range s.daemons {
			_ = d.Wait()
		}
	})
	if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "ready\n" {
		t.Fatalf("set up the namespaces: %q, %v", line, err)
	}
	return s
}

func (s *space) pid() string { return strconv.Itoa(s.init.Process.Pid) }

func (s *space) command(script string) *exec.Cmd {
	cmd := exec.Command("nsenter", "-t", s.pid(), "-n", "-m", "-p", "--", "sh", "-ec", script)
	bin, err := filepath.Abs("../../bin")
	if err != nil {
		s.Fatal(err)
	}
	cmd.Env = []string{"PATH=" + bin + ":/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "HOME=/root"}
	return cmd
}

// try runs a script and returns what it prints.
func (s *space) try(script string) (string, error) {
	out, err := s.command(script).CombinedOutput()
	return string(out), err
}

func (s *space) do(script string) string {
	s.Helper()
	out, err := s.try(script)
	if err != nil {
		s.Fatalf("%s: %v\n%s", script, err, out)
	}
	return out
}

// link adds a link whose peer is in the other space.
func (s *space) link(to *space, what string) {
	s.Helper()
	args := append([]string{"-t", s.pid(), "-n", "--", "ip", "link", "add"}, strings.Fields(what)...)
	if out, err := exec.Command("nsenter", append(args, "netns", to.pid())...).CombinedOutput(); err != nil {
		s.Fatalf("add link %s: %v\n%s", what, err, out)
	}
}

// daemon starts a program that lasts as long as the space.
func (s *space) daemon(script string) {
	s.Helper()
	cmd := s.command("exec " + script)
	cmd.Stdout, cmd.Stderr = s.Output(), s.Output()
	if err := cmd.Start(); err != nil {
		s.Fatal(err)
	}
	s.daemons = append(s.daemons, cmd)
}

// inside runs f on a thread in the space's network.
func (s *space) inside(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		fd, err := unix.Open("/proc/"+s.pid()+"/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = unix.Setns(fd, unix.CLONE_NEWNET)
			_ = unix.Close(fd)
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// serve listens on port 80 of both families until the test ends.
func (s *space) serve() {
	s.Helper()
	err := s.inside(func() error {
		l, err := net.Listen("tcp", "[::]:80")
		if err != nil {
			return err
		}
		s.Cleanup(func() { _ = l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = io.WriteString(c, "hello")
				_ = c.Close()
			}
		}()
		return nil
	})
	if err != nil {
		s.Fatal(err)
	}
}

// reaches has a TCP connection to somebody's port 80 made, with an answer.
func (s *space) reaches(addr string) error {
	return s.inside(func() error {
		c, err := net.DialTimeout("tcp", net.JoinHostPort(addr, "80"), time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(time.Second)); err != nil {
			return err
		}
		b, err := io.ReadAll(c)
		if err == nil && string(b) != "hello" {
			err = fmt.Errorf("%q", b)
		}
		return err
	})
}

// Addresses of the lab.
const (
	guest4, guest6     = "10.42.0.7", "2001:db8:42::7"
	outside4, outside6 = "192.0.2.1", "2001:db8:ffff::1"
)

// lab is a host with a VM, which libvirt does not run: its hook is called as libvirt
// would, and its tap is a veth.
type lab struct {
	*testing.T
	host, guest, outside *space
	runs                 bool // the agent does
}

const domain = `<domain type='qemu' id='1'><name>web1</name><uuid>00000000-0000-4000-8000-000000000001</uuid>
<metadata><slash32:network xmlns:slash32='urn:slash32:domain:1'><interface><address ip='` + guest4 + `'/><address ip='` + guest6 + `'/><nat mode='none'/></interface></slash32:network></metadata>
<devices><interface type='bridge'><mac address='52:54:00:00:00:01'/><source bridge='s32-web1'/><target dev='vnet0'/></interface></devices></domain>`

func newLab(t *testing.T) *lab {
	t.Helper()
	for _, name := range []string{"slash32", "slash32d", "slash32-hook", "slash32-responder"} {
		if _, err := os.Stat(filepath.Join("../../bin", name)); err != nil {
			t.Fatalf("%v. Fix: make build", err)
		}
	}
	l := &lab{T: t, host: newSpace(t), guest: newSpace(t), outside: newSpace(t)}
	l.host.link(l.outside, "up0 type veth peer name eth0")
	l.host.link(l.guest, "vnet0 type veth peer name eth0 address 52:54:00:00:00:01")
	l.host.do(`
		ip address add 192.0.2.2/24 dev up0
		ip address add 2001:db8:ffff::2/64 dev up0 nodad
		ip link set up0 up
		ip route add default via ` + outside4 + `
		ip route add default via ` + outside6 + `
		mkdir -p /etc/slash32/conf.d`)
	l.outside.do(`
		ip address add ` + outside4 + `/24 dev eth0
		ip address add ` + outside6 + `/64 dev eth0 nodad
		ip link set eth0 up
		ip route add ` + guest4 + ` via 192.0.2.2
		ip route add ` + guest6 + ` via 2001:db8:ffff::2`)
	l.configure("warn")
	l.host.daemon("slash32d")
	l.runs = true
	wait.For(t, limit, "the agent", func() bool { _, err := l.host.try("slash32 status"); return err == nil })
	for _, op := range []string{"prepare begin", "start begin", "started begin"} {
		if op == "start begin" { // as libvirt puts the tap into the bridge
			l.host.do("ip link set vnet0 master s32-web1; ip link set vnet0 up")
		}
		cmd := l.host.command("slash32-hook web1 " + op + " -")
		cmd.Stdin = strings.NewReader(domain)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("hook %s: %v: %s", op, err, out)
		}
	}
	l.guest.do(`
		ip address add ` + guest4 + `/32 dev eth0
		ip address add ` + guest6 + `/128 dev eth0 nodad
		ip link set eth0 up
		ip route add 169.254.0.1 dev eth0
		ip route add default via 169.254.0.1 src ` + guest4 + `
		ip route add default via fe80::1 dev eth0`)
	l.guest.serve()
	l.outside.serve()
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := l.host.try("slash32; slash32 doctor; nft list ruleset; ip -d addr; ip route; ip rule")
			t.Logf("the host:\n%s", out)
		}
	})
	l.open("in the beginning")
	return l
}

// configure sets coexist for all three; a running agent reads it.
func (l *lab) configure(mode string) {
	l.Helper()
	l.host.do("cat >/etc/slash32/slash32.yaml <<-END\nlaunch: process\nlibvirt: qemu+unix:///system?socket=/run/none\ncoexist: {docker: " + mode + ", ufw: " + mode + ", firewalld: " + mode + "}\nEND")
	if l.runs {
		l.host.do("kill -HUP $(pidof slash32d)")
	}
}

// ways are the connections through the host.
func (l *lab) ways() map[string]func() error {
	return map[string]func() error{
		"out, IPv4": func() error { return l.guest.reaches(outside4) },
		"out, IPv6": func() error { return l.guest.reaches(outside6) },
		"in, IPv4":  func() error { return l.outside.reaches(guest4) },
		"in, IPv6":  func() error { return l.outside.reaches(guest6) },
	}
}

// open waits until all connections can be made.
func (l *lab) open(when string) {
	l.Helper()
	for name, try := range l.ways() {
		wait.For(l, limit, name+" "+when, func() bool { return try() == nil })
	}
}

// closed holds that connections cannot be made.
func (l *lab) closed(when string, names ...string) {
	l.Helper()
	ways := l.ways()
	for _, name := range names {
		if ways[name]() == nil {
			l.Errorf("%s is open %s", name, when)
		}
	}
}

// findings of the operator's command; offline is what its exit code says.
func (l *lab) findings() (list []cli.Finding, offline bool) {
	l.Helper()
	out, err := l.host.command("slash32 doctor -j").Output()
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 1 || len(out) == 0) {
		l.Fatalf("doctor: %v: %s", err, out)
	}
	if err := json.Unmarshal(out, &list); err != nil {
		l.Fatalf("doctor: %v: %s", err, out)
	}
	return list, err != nil
}

// explained holds that doctor says by which code guests are offline, and that the
// agent's status says the same; it returns the commands of the fixes.
func (l *lab) explained(code string, says ...string) (fixes []string) {
	l.Helper()
	list, offline := l.findings()
	if !offline {
		l.Errorf("doctor says that all is well: %v", list)
	}
	for _, f := range list {
		if f.Impact != "offline" {
			continue
		}
		if string(f.Code) != code {
			l.Errorf("doctor: %s", f)
		}
		for _, s := range says {
			if !strings.Contains(f.What, s) {
				l.Errorf("nothing of %q in %s", s, f)
			}
		}
		_, commands, found := strings.Cut(f.Fix, "run: ")
		if !found {
			commands = f.Fix
		}
		fixes = append(fixes, strings.Split(commands, "; ")...)
	}
	wait.For(l, limit, "the warning in status", func() bool {
		return strings.Contains(strings.Join(l.status().Warnings, "\n"), code)
	})
	return fixes
}

// well holds that doctor finds nothing that keeps guests offline, or unreached, and
// that the agent's warnings end.
func (l *lab) well() {
	l.Helper()
	list, offline := l.findings()
	for _, f := range list {
		if offline || f.Impact == "partial" {
			l.Errorf("doctor: %s %s", f.Impact, f)
		}
	}
	wait.For(l, limit, "the end of the warnings", func() bool {
		return !strings.Contains(strings.Join(l.status().Warnings, "\n"), "W30")
	})
}

func (l *lab) status() (s control.Status) {
	l.Helper()
	out, err := l.host.command("slash32 status -j").Output()
	if err != nil {
		l.Fatalf("status: %v", err)
	}
	if err := json.Unmarshal(out, &s); err != nil {
		l.Fatal(err)
	}
	return s
}

// mine are the agent's rules in chains of others.
func (l *lab) mine() int {
	l.Helper()
	n := 0
	for line := range strings.Lines(l.host.do("nft list ruleset")) {
		if strings.Contains(line, `comment "slash32"`) || strings.Contains(line, "iifgroup 0x20  counter") || strings.Contains(line, "oifgroup 0x20  counter") {
			n++
		}
	}
	return n
}

// busConfig lets whoever is in the namespace do anything.
const busConfig = `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path=/run/dbus/system_bus_socket</listen>
  <auth>EXTERNAL</auth>
  <policy context="default"><allow user="*"/><allow own="*"/><allow send_destination="*"/><allow send_type="method_call"/><allow receive_sender="*"/></policy>
</busconfig>
`

// bus starts the host's system bus.
func (l *lab) bus() {
	l.Helper()
	l.host.do("mkdir -p /run/dbus; cat >/run/dbus/conf <<-'END'\n" + busConfig + "END")
	l.host.daemon("dbus-daemon --config-file=/run/dbus/conf --nofork --nopidfile")
	wait.For(l, limit, "the bus", func() bool { _, err := l.host.try("test -S /run/dbus/system_bus_socket"); return err == nil })
}
