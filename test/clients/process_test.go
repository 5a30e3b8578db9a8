package clients

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/slash32/slash32/pkg/mac"
	"github.com/slash32/slash32/pkg/responder"
	"github.com/slash32/slash32/pkg/wire"
)

// No thread of the responder has anything left once its socket answers.
func TestResponderHasNoPrivileges(t *testing.T) {
	t.Parallel()
	l := newLab(t, nil)
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", l.responder.pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, thread := range threads {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/status", l.responder.pid, thread.Name()))
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{
			"Uid:\t65534\t65534\t65534\t65534", "Gid:\t65534\t65534\t65534\t65534", "Groups:",
			"CapInh:\t0000000000000000", "CapPrm:\t0000000000000000", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "CapAmb:\t0000000000000000",
			"NoNewPrivs:\t1", "Seccomp:\t2",
		} {
			if !hasLine(string(status), want) {
				t.Errorf("thread %s: no line %q in\n%s", thread.Name(), want, status)
			}
		}
	}
	if len(threads) > 4 {
		t.Errorf("%d threads, want at most 4", len(threads))
	}
	fi, err := os.Stat(l.socket())
	if err != nil {
		t.Fatal(err)
	}
	if owner := fi.Sys().(*syscall.Stat_t).Uid; fi.Mode().Perm() != 0o660 || owner != 0 {
		t.Errorf("the control socket is %v of uid %d, want 0660 of root", fi.Mode(), owner)
	}
}

func TestUnknownAccountBecomesNobody(t *testing.T) {
	t.Parallel()
	l := newLab(t, nil)
	l.responder.kill(syscall.SIGTERM)
	l.serve("-user", "no-such-account")
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", l.responder.pid))
	if err != nil {
		t.Fatal(err)
	}
	if !hasLine(string(status), "Uid:\t65534\t65534\t65534\t65534") {
		t.Errorf("%s", status)
	}
	until(t, func() error { // its output comes through a pipe
		if n := strings.Count(l.responder.output.String(), "useradd"); n != 1 {
			return fmt.Errorf("%d log lines say how to make the account, want 1", n)
		}
		return nil
	})
}

// flood sends n ARP requests as the guest, as fast as it can.
func (l *lab) flood(n int) {
	l.t.Helper()
	guest := mac.MustParse(guestMAC)
	frame := wire.AppendEther(nil, wire.Ether{Dst: mac.Broadcast, Src: guest, Type: wire.EtherTypeARP})
	frame = wire.AppendARP(frame, wire.ARP{Op: wire.ARPRequest, SenderMAC: guest, Sender: netip.MustParseAddr(first), Target: netip.MustParseAddr(gateway)})
	l.raw(func(send func([]byte) error) error {
		for range n {
			if err := send(frame); err != nil {
				return err
			}
		}
		return nil
	})
}

// A storm is counted and logged once; the guest is served again after it.
//
// Not beside the others: a guest that gets no CPU is no storm.
func TestFloodIsLimited(t *testing.T) {
	l := newLab(t, nil)
	need(t, "udhcpc", "udhcpc")
	start := time.Now()
	l.flood(50_000)
	if n := l.count("rate_limited"); n == 0 {
		t.Error("nothing was limited")
	}
	limit := responder.DefaultLimits()[responder.ClassARP]
	most := uint64(limit.Burst) + uint64(limit.Rate)*uint64(1+time.Since(start)/time.Second)
	if n := l.count("arp_reply"); n == 0 || n > most {
		t.Errorf("%d of 50,000 answered, want at most %d", n, most)
	}
	if n := strings.Count(l.responder.output.String(), "\n"); n != 1 {
		t.Errorf("%d log lines, want 1:\n%s", n, l.responder.output)
	}
	l.guest.start("udhcpc", "-f", "-i", "eth0")
	l.has(show4, "inet "+first+"/24...")

	l.responder.kill(syscall.SIGTERM)
	l.serve("-unlimited")
	l.flood(5_000)
	if n := l.count("rate_limited"); n != 0 {
		t.Errorf("%d limited though nothing should be", n)
	}
}

// A responder that was killed leaves a socket file behind, which is no obstacle,
// and its successor tells the guest at once that the router is there.
func TestKilledAndStartedAgain(t *testing.T) {
	t.Parallel()
	l := newLab(t, nil)
	l.has(route6, "default via fe80::1 dev eth0 proto ra...")
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		l.responder.kill(sig)
		l.guest.must("ip -6 route flush proto ra")
		l.serve()
		l.has(route6, "default via fe80::1 dev eth0 proto ra...")
	}
}

// Reloads leave garbage behind, which is collected under the system call filter.
func TestReloadsWithoutEnd(t *testing.T) {
	t.Parallel()
	l := newLab(t, nil)
	for i := range 300 {
		l.change(address([]string{first, second}[i%2]))
	}
	dirty, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", l.responder.pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(dirty)) {
		var kib int
		if _, err := fmt.Sscanf(line, "Private_Dirty: %d kB", &kib); err == nil && kib > 4096 {
			t.Errorf("%d KiB after 300 reloads, want no growth without end", kib)
		}
	}
}

// A bridge that is set down is sat out; one that is removed ends the process
// with one line.
func TestBridgeGoesAway(t *testing.T) {
	t.Parallel()
	l := newLab(t, nil)
	l.host.must("ip link set br0 down")
	l.host.must("ip link set br0 up")
	l.guest.must("ip address add " + first + "/32 dev eth0; ip route add " + gateway + " dev eth0")
	until(t, func() error {
		_, err := l.guest.sh("busybox arping -c 1 -w 1 -I eth0 " + gateway)
		return err
	})
	l.host.must("ip link del br0")
	<-l.responder.ended
	if code := l.responder.cmd.ProcessState.ExitCode(); code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	text := l.responder.output.String()
	if strings.Count(text, "\n") != 1 || !strings.Contains(text, "bridge br0 was removed") {
		t.Errorf("it said:\n%s", text)
	}
}
