// Package systemd_test installs slash32 as its README says on a machine that
// systemd runs, and uses it there: the units, their sandboxes and their restarts.
// It needs root, the packages that lab.Missing names, systemd-container, and the
// binaries in bin/.
package systemd_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/slash32/slash32/pkg/control"
	"github.com/slash32/slash32/test/lab"
)

// patience is how long a step may take before the test gives up.
const patience = 2 * time.Minute

const addr = "10.42.0.7"

// A boot file for once makes its responder keep a lease file.
var web = lab.Domain{Name: "web", Metadata: "<network xmlns='urn:slash32:domain:1'><interface><address ip='" + addr + "'/><boot file='http://192.0.2.1/x' once='yes'/></interface></network>"}

func require(t *testing.T) {
	t.Helper()
	err := lab.Missing()
	if err == nil {
		_, err = exec.LookPath("systemd-nspawn")
	}
	if err == nil {
		_, err = os.Stat(filepath.Join("..", "..", "bin", "slash32d"))
	}
	if err == nil {
		return
	}
	t.Fatalf("%v. Fix: test/setup.sh test; make build", err)
}

// TestInstalled is one story, since each step needs the one before.
func TestInstalled(t *testing.T) {
	require(t)
	m := boot(t)
	before := m.files(t)

	m.do(t, "make", "-C", "/src", "install")
	m.do(t, "systemctl", "enable", "--now", "slash32d")
	m.do(t, "systemctl", "start", "libvirtd")
	m.do(t, "systemctl", "reload", "libvirtd")
	t.Cleanup(func() {
		if t.Failed() {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			out, _ := m.exec(ctx, "sh", "-c", `
				journalctl --no-pager -o short-monotonic -n 150 -u 'slash32*' -u libvirtd
				slash32 show web; slash32 show rel; ip -d addr; nft list table inet slash32
				tail -n +1 /var/lib/slash32/leases/* /var/lib/lab/console/*.log; journalctl --no-pager -o short-monotonic -u srv`)
			t.Logf("the machine:\n%s", out)
		}
	})

	steps := []struct {
		name string
		run  func(*testing.T, *machine)
	}{
		{"units are valid", verify},
		{"units are closed", exposure},
		{"agent", agent},
		{"VM starts", startVM},
		{"responder is confined", responder},
		{"restarts do not disturb the guest", restarts},
		{"nftables.service flushes", flushed},
		{"a wiped run directory is made again", wiped},
		{"responder comes back", revival},
		{"VM stops", stopVM},
		{"a VM is relayed", relayed},
		{"responder that cannot start refuses the VM", refusal},
	}
	for _, s := range steps {
		if !t.Run(s.name, func(t *testing.T) { s.run(t, m) }) {
			t.FailNow()
		}
	}

	// State stays: a machine that has booted from the network once must not do so
	// again because slash32 was installed anew; and what was counted is for the bill.
	m.do(t, "systemctl", "stop", "slash32d") // it writes its counters once more
	m.do(t, "rm", "/var/lib/slash32/leases/"+lab.DefaultUUID(web.Name)+".json", "/var/lib/slash32/counters.json")
	m.do(t, "make", "-C", "/src", "uninstall")
	if diff := cmp.Diff(before, m.files(t)); diff != "" {
		t.Errorf("uninstall left or took something (- before, + after):\n%s", diff)
	}
	m.await(t, "no unit is left", func() error {
		out, err := m.exec(t.Context(), "systemctl", "list-units", "--all", "--no-legend", "--plain", "*slash32*")
		if strings.Contains(out, "slash32d") || strings.Contains(out, "slash32-responder") {
			err = errors.New(out)
		}
		return err
	})
}

// files are all files that an installation could have to do with.
func (m *machine) files(t *testing.T) string {
	t.Helper()
	out := m.do(t, "sh", "-c", `
		find /usr/local /etc /usr/lib/systemd /usr/lib/sysusers.d /usr/lib/tmpfiles.d -path /etc/libvirt -prune -o -print | grep -v -e '/\.updated$' -e '^/etc/.*-$' | sort
		find /etc /usr /var /run -xdev -path /var/log/journal -prune -o -name '*slash32*' ! -name 'slash32-test*' -print | sort
		grep -rlw slash32 /etc 2>/dev/null | grep -v -- '-$' | sort # not the backups of passwd(5)
		ls -A /etc/libvirt/hooks 2>/dev/null
		getent passwd slash32 || true`)
	return out
}

// units are the installed units, the template with an instance.
var units = []string{"slash32d.service", "slash32-responder@.service"}

func verify(t *testing.T, m *machine) {
	for _, u := range units {
		// It says what is wrong and exits 0.
		out := m.do(t, "systemd-analyze", "verify", "/usr/local/lib/systemd/system/"+u)
		if out != "" {
			t.Errorf("%s: %s", u, out)
		}
	}
}

// The most that "systemd-analyze security" may say, times ten. What is left of
// the responder's is that it opens packet sockets on the host's network as root;
// it gives both up before it reads a frame, which the analysis does not see.
var exposureLimits = map[string]string{"slash32d.service": "25", "slash32-responder@.service": "20"}

func exposure(t *testing.T, m *machine) {
	for u, limit := range exposureLimits {
		out, err := m.exec(t.Context(), "systemd-analyze", "security", "--offline=true", "--threshold="+limit, "/usr/local/lib/systemd/system/"+u)
		lines := strings.Split(strings.TrimSpace(out), "\n")
		t.Logf("%s", lines[len(lines)-1])
		if err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	}
}

// properties of a unit.
func (m *machine) properties(t *testing.T, unit string, names ...string) map[string]string {
	t.Helper()
	p := map[string]string{}
	for _, line := range strings.Split(m.do(t, "systemctl", "show", unit, "-p", strings.Join(names, ",")), "\n") {
		if k, v, ok := strings.Cut(line, "="); ok {
			p[k] = v
		}
	}
	return p
}

// status of the main process of a unit, from proc(5).
func (m *machine) status(t *testing.T, pid string, names ...string) map[string]string {
	t.Helper()
	s := map[string]string{}
	for _, line := range strings.Split(m.do(t, "cat", "/proc/"+pid+"/status"), "\n") {
		k, v, _ := strings.Cut(line, ":")
		for _, n := range names {
			if k == n {
				s[k] = strings.Join(strings.Fields(v), " ")
			}
		}
	}
	return s
}

func agent(t *testing.T, m *machine) {
	p := m.properties(t, "slash32d", "ActiveState", "SubState", "Type", "WatchdogUSec", "NRestarts", "MainPID", "UnitFileState")
	pid := p["MainPID"]
	delete(p, "MainPID")
	want := map[string]string{
		"ActiveState": "active", "SubState": "running", "Type": "notify", "WatchdogUSec": "30s", "NRestarts": "0", "UnitFileState": "enabled",
	}
	if diff := cmp.Diff(want, p); diff != "" {
		t.Error(diff)
	}
	const capabilities = "0000000000003400" // CAP_NET_ADMIN, CAP_NET_BIND_SERVICE, CAP_NET_RAW
	wantStatus := map[string]string{"CapEff": capabilities, "CapBnd": capabilities, "NoNewPrivs": "1", "Seccomp": "2"}
	if diff := cmp.Diff(wantStatus, m.status(t, pid, "CapEff", "CapBnd", "NoNewPrivs", "Seccomp")); diff != "" {
		t.Error(diff)
	}
	m.awaitLibvirt(t)
}

// awaitLibvirt waits until the agent knows libvirt's list, and holds that its
// first pass wrote nothing.
func (m *machine) awaitLibvirt(t *testing.T) {
	t.Helper()
	m.await(t, "the agent knows libvirt's list", func() error {
		out, err := m.command(t.Context(), "slash32", "status", "-j").Output()
		if err != nil {
			return err
		}
		var s control.Status
		if err := json.Unmarshal(out, &s); err != nil {
			return err
		}
		if s.FirstPassWrites != 0 {
			t.Errorf("the agent's first pass wrote %d times", s.FirstPassWrites)
		}
		if s.Degraded != "" {
			return errors.New(s.Degraded)
		}
		return nil
	})
}

func unitOf(d lab.Domain) string { return "slash32-responder@" + lab.DefaultUUID(d.Name) + ".service" }

// start defines a VM and starts it.
func (m *machine) start(t *testing.T, vm lab.Domain) {
	t.Helper()
	xml, err := vm.XML()
	if err != nil {
		t.Fatal(err)
	}
	define := m.command(t.Context(), "virsh", "-c", "qemu:///system", "define", "/dev/stdin")
	define.Stdin = strings.NewReader(xml)
	if out, err := define.CombinedOutput(); err != nil {
		t.Fatalf("define: %v\n%s", err, out)
	}
	m.do(t, "virsh", "-c", "qemu:///system", "start", vm.Name)
}

func startVM(t *testing.T, m *machine) {
	m.start(t, web)
	if p := m.properties(t, unitOf(web), "ActiveState", "SubState"); p["SubState"] != "running" {
		t.Errorf("the responder's unit is %v", p)
	}
	m.await(t, "ping the guest", func() error {
		_, err := m.exec(t.Context(), "ping", "-c1", "-W1", addr)
		return err
	})
}

func responder(t *testing.T, m *machine) {
	pid := m.properties(t, unitOf(web), "MainPID")["MainPID"]
	uid := strings.TrimSpace(m.do(t, "id", "-u", "slash32"))
	gid := strings.TrimSpace(m.do(t, "id", "-g", "slash32"))
	const none = "0000000000000000"
	want := map[string]string{
		"Uid": strings.Join([]string{uid, uid, uid, uid}, " "), "Gid": strings.Join([]string{gid, gid, gid, gid}, " "), "Groups": "",
		"CapInh": none, "CapPrm": none, "CapEff": none, "CapBnd": none, "CapAmb": none, "NoNewPrivs": "1", "Seccomp": "2",
	}
	got := m.status(t, pid, "Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	cgroup := m.do(t, "cat", "/proc/"+pid+"/cgroup")
	if !strings.Contains(cgroup, "/slash32.slice/"+unitOf(web)) || strings.Contains(cgroup, "libvirtd") {
		t.Errorf("cgroup: %s", cgroup)
	}
	// Of what is private it sees its own VM's directory.
	m.do(t, "mkdir", "/run/slash32/vm/of-another-vm")
	seen := m.do(t, "sh", "-c", "cd /proc/"+pid+"/root && ls -A run/slash32/vm home root boot var etc/libvirt run/libvirt 2>&1 | grep -v '^ls:'")
	m.do(t, "rmdir", "/run/slash32/vm/of-another-vm")
	wantSeen := "boot:\n\netc/libvirt:\n\nhome:\n\nroot:\n\nrun/libvirt:\n\nrun/slash32/vm:\n" + lab.DefaultUUID(web.Name) + "\n\nvar:\nlib\ntmp\n"
	if diff := cmp.Diff(wantSeen, seen); diff != "" {
		t.Errorf("what the responder sees:\n%s", diff)
	}
	// And its own VM's lease file, which it writes in spite of all that.
	file := lab.DefaultUUID(web.Name) + ".json"
	m.do(t, "touch", "/var/lib/slash32/leases/of-another-vm.json")
	seen = m.do(t, "ls", "-A", "/proc/"+pid+"/root/var/lib/slash32/leases")
	m.do(t, "rm", "/var/lib/slash32/leases/of-another-vm.json")
	if seen != file+"\n" {
		t.Errorf("of the leases the responder sees %q", seen)
	}
	m.await(t, "the responder writes its lease file", func() error {
		text, err := m.exec(t.Context(), "cat", "/var/lib/slash32/leases/"+file)
		if err == nil && !strings.Contains(text, `"profile":"routed"`) {
			err = fmt.Errorf("it has %q", text[:min(len(text), 200)])
		}
		return err
	})
}

// qemu is the process of the VM: another one would be another boot.
func (m *machine) qemu(t *testing.T) string {
	t.Helper()
	return strings.TrimSpace(m.do(t, "cat", "/run/libvirt/qemu/"+web.Name+".pid"))
}

// gapless tells whether ping had an answer to each request before its last answer.
func gapless(report string) error {
	answered, last := 0, 0
	for line := range strings.Lines(report) {
		_, rest, ok := strings.Cut(line, "icmp_seq=")
		number, _, _ := strings.Cut(rest, " ")
		n, err := strconv.Atoi(number)
		if ok && err == nil {
			answered, last = answered+1, max(last, n)
		}
	}
	if answered == 0 || answered != last {
		return fmt.Errorf("%d of %d packets were answered", answered, last)
	}
	return nil
}

func restarts(t *testing.T, m *machine) {
	route := m.do(t, "ip", "route", "show", "proto", "32")
	if !strings.Contains(route, addr) {
		t.Errorf("no route of ours: %s", route)
	}
	vm, resp := m.qemu(t), m.properties(t, unitOf(web), "MainPID")["MainPID"]
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ping := m.command(ctx, "sh", "-c", "exec ping -n -i 0.05 -W 5 "+addr+" & p=$!; cat; kill -INT $p; wait $p")
	stdin, err := ping.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var report strings.Builder
	ping.Stdout, ping.Stderr = &report, &report
	if err := ping.Start(); err != nil {
		t.Fatal(err)
	}
	old := m.properties(t, "slash32d", "MainPID")["MainPID"]
	m.do(t, "systemctl", "restart", "slash32d")
	m.do(t, "systemctl", "kill", "--kill-whom=main", "--signal=KILL", "slash32d")
	m.await(t, "the agent comes back", func() error {
		p := m.properties(t, "slash32d", "SubState", "MainPID", "NRestarts")
		if p["SubState"] != "running" || p["MainPID"] == old || p["NRestarts"] == "0" {
			return fmt.Errorf("it is %v", p)
		}
		return nil
	})
	m.do(t, "systemctl", "restart", "libvirtd")
	m.do(t, "virsh", "-c", "qemu:///system", "domuuid", web.Name)
	m.awaitLibvirt(t)
	if err := stdin.Close(); err != nil {
		t.Error(err)
	}
	_ = ping.Wait() // complains of what was under way at its end
	if err := gapless(report.String()); err != nil {
		t.Errorf("%v: %s", err, report.String())
	}
	if got := m.do(t, "ip", "route", "show", "proto", "32"); got != route {
		t.Errorf("routes were\n%sand are\n%s", route, got)
	}
	if got := m.qemu(t); got != vm {
		t.Errorf("qemu was process %s and is %s", vm, got)
	}
	if got := m.properties(t, unitOf(web), "MainPID")["MainPID"]; got != resp {
		t.Errorf("the responder was process %s and is %s", resp, got)
	}
}

// flushed holds that systemctl returns, whatever it does with nftables.service, when the
// VM's guard stands again.
func flushed(t *testing.T, m *machine) {
	for _, verb := range []string{"start", "reload", "restart", "stop"} {
		m.do(t, "systemctl", verb, "nftables")
		if out := m.do(t, "nft", "list", "set", "inet", "slash32", "guard4"); !strings.Contains(out, addr) {
			t.Errorf("after %s:\n%s", verb, out)
		}
		m.do(t, "ping", "-c1", "-W5", addr)
	}
	if out := m.do(t, "journalctl", "-u", "nftables"); strings.Contains(out, "slash32:") {
		t.Errorf("sync complains:\n%s", out)
	}
	// The agent, in its sandbox, looks at what else there is.
	out, err := m.exec(t.Context(), "slash32", "doctor")
	if err != nil {
		t.Errorf("doctor: %v\n%s", err, out)
	}
	if out := m.do(t, "journalctl", "-u", "slash32d"); strings.Contains(out, "look for what keeps guests offline") {
		t.Errorf("the agent cannot look:\n%s", out)
	}
}

// wiped takes the run directory away under a running VM: its responder serves a
// socket that nobody finds any more, and another takes its place.
func wiped(t *testing.T, m *machine) {
	vm, old := m.qemu(t), m.properties(t, unitOf(web), "MainPID")["MainPID"]
	m.do(t, "sh", "-c", "systemctl stop slash32d; rm -rf /run/slash32/*; systemctl start slash32d")
	m.await(t, "another responder answers", func() error {
		out, err := m.exec(t.Context(), "slash32", "show", web.Name, "-j")
		if err != nil || !strings.Contains(out, `"up": true`) {
			return fmt.Errorf("%v: %s", err, out)
		}
		if pid := m.properties(t, unitOf(web), "MainPID")["MainPID"]; pid == old || pid == "0" {
			return fmt.Errorf("the unit's process is %s, as before", pid)
		}
		return nil
	})
	if n := strings.TrimSpace(m.do(t, "sh", "-c", "pgrep -c slash32-respond")); n != "1" {
		t.Errorf("%s responders run", n)
	}
	if got := m.qemu(t); got != vm {
		t.Errorf("qemu was process %s and is %s", vm, got)
	}
	m.do(t, "ping", "-c1", "-W5", addr)
}

func revival(t *testing.T, m *machine) {
	old := m.properties(t, unitOf(web), "MainPID")["MainPID"]
	m.do(t, "systemctl", "kill", "--kill-whom=main", "--signal=KILL", unitOf(web))
	m.await(t, "the responder comes back", func() error {
		if p := m.properties(t, unitOf(web), "SubState", "MainPID"); p["SubState"] != "running" || p["MainPID"] == old {
			return fmt.Errorf("it is %v", p)
		}
		return nil
	})
	m.do(t, "ping", "-c1", "-W5", addr)
}

func stopVM(t *testing.T, m *machine) {
	m.do(t, "virsh", "-c", "qemu:///system", "destroy", web.Name)
	m.nothingRuns(t)
}

// nothingRuns holds that of no VM anything is left.
func (m *machine) nothingRuns(t *testing.T) {
	t.Helper()
	m.await(t, "all of the VM is gone", func() error {
		out := m.do(t, "sh", "-c", `
			systemctl list-units --all --no-legend --plain 'slash32-responder@*'
			ip -o link show group 32; ip route show table all proto 32; ip rule show | grep -w 'proto 32' || true
			ls -A /run/slash32/vm`)
		if strings.TrimSpace(out) != "" {
			return fmt.Errorf("left: %s", out)
		}
		return nil
	})
}

// relayed holds that the agent and the responder can relay from within their
// sandboxes: DHCP ports, the sockets between them, the lease file.
func relayed(t *testing.T, m *machine) {
	m.do(t, "sh", "-ec", `
		ip netns add srv
		ip link add dh0 type veth peer name eth0 netns srv
		ip address add 10.9.0.1/24 dev dh0
		ip link set dh0 up
		ip -n srv address add 10.9.0.11/24 dev eth0
		ip -n srv link set eth0 up
		mkdir /run/srv
		: >/run/srv/leases
		cat >/run/srv/conf <<-END
			authoritative; ping-check false; default-lease-time 600;
			subnet 10.9.0.0 netmask 255.255.255.0 { range 10.9.0.100 10.9.0.109; option routers 10.9.0.1; }
		END
		systemd-run --quiet --unit=srv ip netns exec srv dhcpd -4 -f -cf /run/srv/conf -lf /run/srv/leases --no-pid eth0`)
	vm := lab.Domain{Name: "rel", Metadata: "<network xmlns='urn:slash32:domain:1'><interface><relay server='10.9.0.11'/></interface></network>"}
	m.start(t, vm)
	file := "/var/lib/slash32/leases/" + lab.DefaultUUID(vm.Name) + ".json"
	var leased string
	m.await(t, "the lease is in the file", func() error {
		out, err := m.exec(t.Context(), "cat", file)
		_, after, found := strings.Cut(out, `"v4":{"addr":"`)
		leased, _, _ = strings.Cut(after, `"`)
		if err == nil && !found {
			err = fmt.Errorf("it has %.200q", out)
		}
		return err
	})
	// reaches holds that the agent knows the lease, and that the guest has it.
	reaches := func() error {
		out, err := m.exec(t.Context(), "slash32", "show", vm.Name, "-j")
		if err == nil && !strings.Contains(out, "route "+leased+" dev ") {
			err = errors.New("there is no route")
		}
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		_, err = m.exec(t.Context(), "ping", "-c1", "-W1", leased)
		return err
	}
	m.await(t, "the guest at what it was leased", reaches)
	m.do(t, "systemctl", "kill", "--kill-whom=main", "--signal=KILL", "slash32d", unitOf(vm))
	m.await(t, "both have a successor that knows the lease", reaches)
	m.do(t, "virsh", "-c", "qemu:///system", "destroy", vm.Name)
	m.do(t, "virsh", "-c", "qemu:///system", "undefine", vm.Name)
	m.nothingRuns(t)
	m.do(t, "sh", "-ec", "systemctl stop srv; ip netns del srv; rm -r /run/srv "+file)
}

// refusal holds that a responder that systemd can't start refuses the VM, with
// the unit's name in the message, and that nothing of it is left.
func refusal(t *testing.T, m *machine) {
	m.do(t, "sh", "-c", `mkdir -p /run/systemd/system/slash32-responder@.service.d &&
		printf '[Service]\nExecStart=\nExecStart=/bin/false\n' >/run/systemd/system/slash32-responder@.service.d/broken.conf && systemctl daemon-reload`)
	out, err := m.exec(t.Context(), "virsh", "-c", "qemu:///system", "start", web.Name)
	if err == nil || !strings.Contains(out, "journalctl -u "+unitOf(web)) {
		t.Errorf("%v: %s", err, out)
	}
	m.nothingRuns(t)
	m.do(t, "sh", "-c", "rm -r /run/systemd/system/slash32-responder@.service.d && systemctl daemon-reload")
	m.do(t, "virsh", "-c", "qemu:///system", "start", web.Name)
	m.do(t, "virsh", "-c", "qemu:///system", "destroy", web.Name)
	m.do(t, "virsh", "-c", "qemu:///system", "undefine", web.Name)
	m.nothingRuns(t)
}
