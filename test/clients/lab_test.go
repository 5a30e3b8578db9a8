// Package clients runs real DHCP clients in a guest's namespaces against the
// real responder on a real bridge. It takes root and the clients' packages.
package clients

import (
	"encoding/json"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/slash32/slash32/pkg/control"
	"github.com/slash32/slash32/pkg/mac"
	"github.com/slash32/slash32/pkg/marks"
	"github.com/slash32/slash32/pkg/responder"
	"github.com/slash32/slash32/pkg/spool"
)

const (
	guestMAC = "52:54:00:00:00:01"
	gateway  = "172.16.0.1"
	first    = "192.168.1.26"
	second   = "192.168.1.27"
	first6   = "2001:db8:1::42"
	second6  = "2001:db8:1::43"
	mtu      = "1400"

	// Somewhere behind the gateway.
	outside  = "198.51.100.1"
	outside6 = "2001:db8:ff::1"

	// router is the gateway that a classic lease pretends; stranger is somebody
	// else on the link that it pretends.
	router   = "192.168.1.1"
	stranger = "192.168.1.200"

	// patience is how long a client may take for one step. The slowest waits
	// for its timers and probes its address for seconds.
	patience = 90 * time.Second
)

// binary is the responder, built by TestMain.
var binary string

func TestMain(m *testing.M) { os.Exit(build(m)) }

func build(m *testing.M) int {
	// The clients wait for their timers, they don't compute.
	flag.Parse()
	if err := flag.Set("test.parallel", "24"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	dir, err := os.MkdirTemp("", "clients")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	binary = filepath.Join(dir, "slash32-responder")
	cmd := exec.Command("go", "build", "-o", binary, "github.com/slash32/slash32/cmd/slash32-responder")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build the responder: %v: %s\n", err, out)
		return 1
	}
	code := m.Run()
	whole := flag.Lookup("test.run").Value.String() == ""
	for _, m := range []*matrix{&table, &table6} {
		if err := m.print(filepath.Join("..", "..", "build", "test"), whole); err != nil {
			fmt.Fprintln(os.Stderr, "the matrix of clients:", err)
			code = 1
		}
	}
	return code
}

// need fails the test when a program is missing and names its package.
func need(t *testing.T, program, pkg string) {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		t.Fatalf("%s is not installed. Fix: apt-get install %s", program, pkg)
	}
}

// until waits for what to return nil.
func until(t *testing.T, what func() error) {
	t.Helper()
	within(t, patience, what)
}

// within is until for what may take longer.
func within(t *testing.T, patience time.Duration, what func() error) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(200 * time.Millisecond) // most of what is asked takes a process or three
	defer tick.Stop()
	for {
		err := what()
		if err == nil {
			return
		}
		select {
		case <-deadline:
			t.Fatalf("after %v: %v", patience, err)
		case <-tick.C:
		}
	}
}

// lab is one VM: a host's side with a bridge, its responder, and a guest.
type lab struct {
	t           *testing.T
	host, guest *space
	dir         string // of the VM
	spool       *spool.Spool
	binding     responder.Binding
	responder   *process
}

func newLab(t *testing.T, change func(*responder.NIC)) *lab {
	t.Helper()
	need(t, "ip", "iproute2")
	need(t, "nft", "nftables")
	need(t, "nsenter", "util-linux")
	l := &lab{t: t, host: newSpace(t), guest: newSpace(t)}
	l.directories()
	// From outside the PID namespaces: the kernel looks the guest up by its number.
	cable := exec.Command("nsenter", "-t", strconv.Itoa(l.host.pid), "-n", "--",
		"ip", "link", "add", "port", "type", "veth", "peer", "name", "eth0", "address", guestMAC, "netns", strconv.Itoa(l.guest.pid))
	if out, err := cable.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v: %s", cable, err, out)
	}
	// As the hook and the agent make it, without a VM.
	l.host.must(`
		ip link set lo up
		ip link add br0 address ` + marks.GatewayMAC + ` type bridge mcast_snooping 0 stp_state 0 forward_delay 0
		ip link set br0 addrgenmode none
		cd /proc/sys/net
		echo 0 > ipv6/conf/br0/accept_ra
		echo 1 > ipv4/conf/br0/rp_filter
		echo 8 > ipv4/conf/br0/arp_ignore
		nft -f - <<-END
			table inet slash32 {
				chain input {
					type filter hook input priority 0
					iifname br0 udp dport { 67, 547 } drop
					iifname br0 icmpv6 type { nd-router-solicit, nd-neighbor-solicit } drop
				}
			}
		END
		ip link set br0 up
		ip addr add ` + gateway + `/32 dev br0
		ip addr add fe80::1/64 dev br0 nodad
		ip link set port master br0 addrgenmode none
		ip link set port up
		ip link add behind type bridge
		ip link set behind up
		ip addr add ` + outside + `/32 dev behind
		ip addr add ` + outside6 + `/128 dev behind nodad
		` + countUnicast + `
		for a in ` + first + ` ` + second + `; do
			ip neigh add $a lladdr ` + guestMAC + ` dev br0 nud permanent
			ip route add $a dev br0 proto 32
		done
		for a in ` + first6 + ` ` + second6 + `; do
			ip neigh add $a lladdr ` + guestMAC + ` dev br0 nud permanent
			ip route add $a dev br0 proto 32
		done
	`)
	// Files that clients write are the guest's own.
	l.guest.must(`
		mount --make-rprivate /
		mount -t proc proc /proc
		mount -t sysfs -o ro sysfs /sys
		mount -t tmpfs tmpfs /run
		mount -t tmpfs tmpfs /var/lib
		mkdir -p /run/lock /var/lib/dhcp /var/lib/dhcpcd
		cp -a /etc /run/etc
		mount --bind /run/etc /etc
		rm -f /etc/resolv.conf
		touch /etc/resolv.conf
		echo 00000000000040008000000000000001 > /etc/machine-id
		ip link set lo up
	`)
	l.binding = responder.Binding{Version: responder.BindingVersion, UUID: vmID.String(), Name: "web1", NICs: []responder.NIC{{
		Bridge: "br0", GuestMAC: mac.MustParse(guestMAC), GatewayMAC: mac.MustParse(marks.GatewayMAC), MTU: 1400,
		Hostname: "web1", Domain: "example.org", Search: []string{"example.org", "eng.example.org"},
		V4: responder.V4{
			Addr: netip.MustParseAddr(first), Gateway: netip.MustParseAddr(gateway),
			DNS: []netip.Addr{netip.MustParseAddr("9.9.9.9")}, Lease: 3600, T1: 1800, T2: 3150,
		},
		V6: responder.V6{
			Gateway: marks.DefaultGateway6, Addrs: []netip.Addr{netip.MustParseAddr(first6)},
			DNS: []netip.Addr{netip.MustParseAddr("2620:fe::fe")}, Preferred: 3600, Valid: 7200, RouterLifetime: 1800,
		},
	}}}
	if change != nil {
		change(&l.binding.NICs[0])
	}
	l.write()
	if err := l.spool.EnsureLease(vmID, l.binding); err != nil {
		t.Fatal(err)
	}
	l.serve()
	l.guest.must("ip link set eth0 up")
	return l
}

// vmID names the VM and its files.
var vmID = uuid.MustParse("00000000-0000-4000-8000-000000000001")

// directories makes those of a host, with those on the way to the VM's open to the
// account that the responder changes to.
func (l *lab) directories() {
	l.t.Helper()
	top := l.t.TempDir()
	dirs := spool.Dirs{Config: top, Run: top, State: top}
	l.dir = dirs.VMDir(vmID)
	err := os.MkdirAll(l.dir, 0o755)
	if err == nil {
		l.spool, err = spool.Open(dirs)
	}
	if err == nil {
		err = os.Chmod(top, 0o755)
	}
	if err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) write() {
	l.t.Helper()
	text, err := json.Marshal(l.binding)
	if err != nil {
		l.t.Fatal(err)
	}
	aside := filepath.Join(l.dir, "new")
	if err := os.WriteFile(aside, text, 0o644); err != nil {
		l.t.Fatal(err)
	}
	if err := os.Rename(aside, filepath.Join(l.dir, "binding.json")); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) socket() string { return filepath.Join(l.dir, "responder.sock") }

// serve starts the responder and waits until it answers.
func (l *lab) serve(flags ...string) {
	l.t.Helper()
	state := filepath.Dir(filepath.Dir(l.dir))
	l.responder = l.host.start(append(append([]string{"env", "SLASH32_STATE_DIR=" + state, binary, "-user", "nobody"}, flags...), l.dir)...)
	until(l.t, func() error {
		_, err := control.QueryResponder(l.t.Context(), l.socket())
		return err
	})
}

// change gives the responder another binding.
func (l *lab) change(f func(*responder.NIC)) {
	l.t.Helper()
	f(&l.binding.NICs[0])
	l.write()
	if _, err := control.ReloadResponder(l.t.Context(), l.socket()); err != nil {
		l.t.Fatal(err)
	}
}

// count is how often the responder came to a verdict.
func (l *lab) count(verdict string) uint64 {
	l.t.Helper()
	r, err := control.QueryResponder(l.t.Context(), l.socket())
	if err != nil {
		l.t.Fatal(err)
	}
	return r.NICs[0].Verdicts[verdict]
}

// sees waits until the responder has come to a verdict once more than n times.
func (l *lab) sees(verdict string, n uint64) {
	l.t.Helper()
	until(l.t, func() error {
		r, err := control.QueryResponder(l.t.Context(), l.socket())
		if err != nil {
			return err
		}
		if r.NICs[0].Verdicts[verdict] <= n {
			return fmt.Errorf("%s: %d times, want more than %d; all: %v", verdict, r.NICs[0].Verdicts[verdict], n, r.NICs[0].Verdicts)
		}
		return nil
	})
}

// has waits until what a command prints in the guest has all the lines; spaces
// at their ends do not count, and "..." at the end stands for anything.
func (l *lab) has(command string, lines ...string) {
	l.t.Helper()
	until(l.t, func() error {
		out, err := l.guest.sh(command)
		if err != nil {
			return err
		}
		for _, want := range lines {
			if !hasLine(out, want) {
				return fmt.Errorf("%s has no line %q:\n%s", command, want, out)
			}
		}
		return nil
	})
}

func hasLine(text, want string) bool {
	start, open := strings.CutSuffix(want, "...")
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == want || open && strings.HasPrefix(line, start) {
			return true
		}
	}
	return false
}

// lacks waits until a command prints nothing in the guest that contains word.
func (l *lab) lacks(command, word string) {
	l.t.Helper()
	until(l.t, func() error {
		out, err := l.guest.sh(command)
		if err == nil && strings.Contains(out, word) {
			err = fmt.Errorf("%s still has %q:\n%s", command, word, out)
		}
		return err
	})
}

// crash ends all that runs in the guest, with the helpers that a client has. The
// guest's PID namespace bounds it; its first process is spared by the kernel.
func (l *lab) crash() { l.guest.must("kill -9 -1") }

// countUnicast makes the counter of unicasts.
const countUnicast = `nft 'table netdev wire { counter unicast {}; chain in { type filter hook ingress device port priority 0; ` +
	`ether daddr ` + marks.GatewayMAC + ` udp dport 67 counter name unicast; }; }'`

// deaf loses what the guest sends to the gateway by unicast and its RENEW, which
// DHCPv6 sends to all, so that it has to rebind; hear ends that.
func (l *lab) deaf() {
	l.host.must(`nft 'table netdev deaf { chain in { type filter hook ingress device port priority -1; ` +
		`ether daddr ` + marks.GatewayMAC + ` udp dport 67 drop; udp dport 547 @th,64,8 5 drop; }; }'`)
}
func (l *lab) hear() { l.host.must("nft delete table netdev deaf") }

// unicasts is how many DHCPv4 messages the guest has sent to the gateway alone.
func (l *lab) unicasts() int {
	l.t.Helper()
	_, after, _ := strings.Cut(l.host.must("nft list counter netdev wire unicast"), "packets ")
	var n int
	if _, err := fmt.Sscanf(after, "%d", &n); err != nil {
		l.t.Fatalf("read the counter of unicast messages: %v", err)
	}
	return n
}

func address(s string) func(*responder.NIC) {
	return func(n *responder.NIC) { n.V4.Addr = netip.MustParseAddr(s) }
}

func address6(s string) func(*responder.NIC) {
	return func(n *responder.NIC) { n.V6.Addrs = []netip.Addr{netip.MustParseAddr(s)} }
}
