package evidence

import (
	"context"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestSampler(t *testing.T) {
	var s sampler
	now := time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)
	allowed := func(bridge, reason string, n int) (passed int) {
		for range n {
			if s.allow(bridge, reason, now) {
				passed++
			}
		}
		return passed
	}
	if n := allowed("a", "spoof4", 1000); n != perReason {
		t.Errorf("%d of one kind", n)
	}
	if n := allowed("a", "spoof6", 1000) + allowed("b", "spoof4", 1000); n != 2*perReason {
		t.Errorf("%d of two others", n)
	}
	for i := range 1000 {
		allowed(strings.Repeat("x", i), "spoof4", 1)
	}
	if s.all != perMinute || len(s.seen) > perMinute {
		t.Errorf("%d lines in a minute, %d remembered", s.all, len(s.seen))
	}
	now = now.Add(window)
	if n := allowed("a", "spoof4", 1000); n != perReason {
		t.Errorf("%d in the next minute", n)
	}
	now = now.Add(-time.Hour) // the clock was set
	if n := allowed("a", "spoof4", 1000); n != perReason {
		t.Errorf("%d after the clock went back", n)
	}
}

func TestPacket(t *testing.T) {
	ether := []byte{2, 0, 0, 0, 0, 1, 0x52, 0x54, 0, 0xab, 0xcd, 1, 8, 0}
	udp4 := []byte{0x45, 0, 0, 40, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 192, 0, 2, 1, 0x13, 0x88, 0, 53}
	fragment := append(append([]byte{}, udp4[:6]...), append([]byte{0, 5}, udp4[8:]...)...)
	tcp6 := append([]byte{0x60, 0, 0, 0, 0, 20, 6, 64, 0x20, 1, 0xd, 0xb8, 15: 0, 23: 1, 24: 0xfe, 25: 0x80, 39: 2}, 0, 22, 1, 0xbb)
	ra := append([]byte{0x60, 0, 0, 0, 0, 16, 58, 255, 39: 1}, 134, 0, 0, 0)
	arp := []byte{0, 1, 8, 0, 6, 4, 0, 2, 2, 0, 0, 0, 0, 1, 10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 169, 254, 0, 1}
	for _, tt := range []struct {
		p    Packet
		want string
	}{
		{Packet{unix.ETH_P_IP, ether, udp4}, "10.0.0.1 > 192.0.2.1, UDP 5000 > 53, from 52:54:00:ab:cd:01"},
		{Packet{unix.ETH_P_IP, nil, udp4[:22]}, "10.0.0.1 > 192.0.2.1, UDP"},
		{Packet{unix.ETH_P_IP, nil, fragment}, "10.0.0.1 > 192.0.2.1, UDP, a fragment"},
		{Packet{unix.ETH_P_IP, nil, udp4[:19]}, "19 bytes of protocol 0x0800"},
		{Packet{unix.ETH_P_IPV6, nil, tcp6}, "2001:db8::1 > fe80::2, TCP 22 > 443"},
		{Packet{unix.ETH_P_IPV6, nil, ra}, ":: > ::1, ICMPv6 type 134"},
		{Packet{unix.ETH_P_ARP, ether, arp}, "ARP operation 2, sender 10.0.0.1 at 02:00:00:00:00:01, target 169.254.0.1, from 52:54:00:ab:cd:01"},
		{Packet{unix.ETH_P_ARP, nil, arp[:20]}, "ARP that is not of Ethernet and IPv4"},
		{Packet{}, "0 bytes of protocol 0x0000"},
	} {
		if got := tt.p.String(); got != tt.want {
			t.Errorf("%q, want %q", got, tt.want)
		}
	}
	if got := reason("x\nlevel=error"); strings.Contains(got, "\n") {
		t.Errorf("%q", got)
	}
}

func FuzzPacket(f *testing.F) {
	f.Add(uint16(unix.ETH_P_IP), []byte("abcdefghijkl"), []byte{0x45, 19: 0})
	f.Add(uint16(unix.ETH_P_IPV6), []byte{}, []byte{0x60, 6: 58, 43: 1})
	f.Add(uint16(unix.ETH_P_ARP), []byte{1}, []byte{0, 1, 8, 0, 6, 4, 0, 1, 27: 0})
	f.Fuzz(func(t *testing.T, proto uint16, header, data []byte) {
		s := Packet{proto, header, data}.String()
		if len(s) > 200 || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' }) {
			t.Errorf("%q", s)
		}
	})
}

// lines are the log's, as they are written.
type lines chan string

func (l lines) Write(p []byte) (int, error) {
	l <- string(p)
	return len(p), nil
}

// TestRunner listens in a namespace whose loopback interface stands for a bridge.
func TestRunner(t *testing.T) {
	defer goleak.VerifyNone(t)
	runtime.LockOSThread() // the thread dies with the test, and the namespace with it
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatalf("make a network namespace (it takes root): %v", err)
	}
	const table = "table inet t {\n chain c {\n type filter hook input priority 0\n udp dport 53 log group 32 prefix \"closed\" snaplen 128 drop\n }\n}\n"
	nft := exec.Command("sh", "-c", "ip link set lo up && nft -f -")
	nft.Stdin = strings.NewReader(table)
	if out, err := nft.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	out := make(lines, 100)
	log := logrus.New()
	log.SetOutput(out)
	log.SetFormatter(&logrus.TextFormatter{DisableColors: true, DisableTimestamp: true})
	r := &Runner{
		Link: func(index int) string { return map[int]string{1: "lo"}[index] },
		VM:   func(bridge string) string { return map[string]string{"lo": "web1"}[bridge] },
		Now:  time.Now, Log: log,
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var seen []string
	sender := make(chan struct{})
	go func() {
		defer close(sender)
		defer cancel()
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		r.Set(false)
		r.Set(true)
		for len(seen) < perReason {
			select {
			case line := <-out:
				seen = append(seen, line)
			case <-tick.C: // it may not listen yet
				if err := unix.Sendto(fd, []byte("x"), 0, &unix.SockaddrInet4{Port: 53, Addr: [4]byte{127, 0, 0, 1}}); err != nil {
					t.Errorf("send: %v", err)
					return
				}
			case <-ctx.Done():
				return
			}
		}
		r.Set(false)
	}()
	// The socket is opened in the namespace of the thread that runs this.
	if err := r.Run(ctx); err != nil {
		t.Error(err)
	}
	<-sender
	if len(seen) != perReason {
		t.Fatalf("%d lines: %q", len(seen), seen)
	}
	for _, line := range seen {
		for _, want := range []string{"dropped to a service of the host that is not open to guests: 127.0.0.1 > 127.0.0.1, UDP ", " > 53", "vm=web1", "bridge=lo", "reason=closed"} {
			if !strings.Contains(line, want) {
				t.Errorf("%q lacks %q", line, want)
			}
		}
	}
}
