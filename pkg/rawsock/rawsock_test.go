package rawsock

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/slash32/slash32/pkg/mac"
	"github.com/slash32/slash32/pkg/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	guest   = mac.MustParse("52:54:00:00:00:01")
	gateway = mac.MustParse("02:73:6c:33:32:01")
	other   = mac.MustParse("52:54:00:00:00:02")

	allRouters = mac.MustParse("33:33:00:00:00:02")
	solicited  = mac.MustParse("33:33:ff:00:00:01")
	allServers = mac.MustParse("33:33:00:01:00:02")
)

func ether(dst, src mac.Addr, typ uint16, payload ...byte) []byte {
	f := append(append([]byte{}, dst[:]...), src[:]...)
	return append(binary.BigEndian.AppendUint16(f, typ), payload...)
}

func arp(dst, src mac.Addr, mark byte) []byte {
	return ether(dst, src, 0x0806, append([]byte{0, 1, 8, 0, 6, 4, 0, 1}, append(make([]byte, 19), mark)...)...)
}

// ip4 is an IPv4 packet with the given flags and offset field, options in words,
// destination port and payload.
func ip4(dst mac.Addr, proto byte, fragment uint16, options int, port uint16, payload ...byte) []byte {
	p := append(make([]byte, 20+4*options+8), payload...)
	p[0] = 0x45 + byte(options)
	for i := range 4 * options {
		p[20+i] = 1 // no operation
	}
	// Complete, because a bridge with netfilter drops what is not.
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	binary.BigEndian.PutUint16(p[6:], fragment)
	p[8], p[9] = 64, proto
	copy(p[16:], []byte{192, 0, 2, 1})
	binary.BigEndian.PutUint16(p[10:], checksum(p[:20+4*options]))
	binary.BigEndian.PutUint16(p[20+4*options:], 68)
	binary.BigEndian.PutUint16(p[22+4*options:], port)
	return ether(dst, guest, 0x0800, p...)
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	sum = sum>>16 + sum&0xffff
	return ^uint16(sum>>16 + sum)
}

func ip6(dst mac.Addr, next byte, payload ...byte) []byte {
	p := make([]byte, 40)
	p[0], p[5], p[6], p[7] = 0x60, byte(len(payload)), next, 255
	return ether(dst, guest, 0x86dd, append(p, payload...)...)
}

func tagged(tag uint16, f []byte) []byte {
	t := append(append([]byte{}, f[:12]...), byte(tag>>8), byte(tag), 0, 7)
	return append(t, f[12:]...)
}

var frames = []struct {
	name  string
	frame []byte
	pass  bool
}{
	{"ARP, broadcast", arp(mac.Broadcast, guest, 1), true},
	{"ARP, unicast", arp(gateway, guest, 1), true},
	{"DHCPv4, broadcast", ip4(mac.Broadcast, 17, 0, 0, 67), true},
	{"DHCPv4, unicast", ip4(gateway, 17, 0x4000, 0, 67), true},
	{"DHCPv4 behind IP options", ip4(mac.Broadcast, 17, 0, 3, 67), true},
	{"router solicitation", ip6(allRouters, 58, 133, 0, 0, 0), true},
	{"neighbour solicitation, multicast", ip6(solicited, 58, 135, 0, 0, 0), true},
	{"neighbour solicitation, unicast", ip6(gateway, 58, 135, 0, 0, 0), true},
	{"DHCPv6", ip6(allServers, 17, 2, 34, 2, 35), true},
	{"DHCPv6, unicast", ip6(gateway, 17, 2, 34, 2, 35), true},
	{"DHCPv4 to a client", ip4(mac.Broadcast, 17, 0, 0, 68), true},
	{"DHCPv6 to a client", ip6(gateway, 17, 2, 35, 2, 34), true},
	{"router advertisement", ip6(gateway, 58, 134, 0, 0, 0), true},

	{"ARP of another MAC", arp(mac.Broadcast, other, 1), false},
	{"ARP of the gateway's MAC", arp(mac.Broadcast, gateway, 1), false},
	{"TCP", ip4(gateway, 6, 0, 0, 67), false},
	{"UDP to another port", ip4(gateway, 17, 0, 0, 53), false},
	{"first fragment of DHCPv4", ip4(mac.Broadcast, 17, 0x2000, 0, 67), false},
	{"last fragment of DHCPv4", ip4(mac.Broadcast, 17, 0x0001, 0, 67), false},
	{"TCP over IPv6", ip6(gateway, 6, 2, 34, 2, 35), false},
	{"UDP over IPv6 to another port", ip6(gateway, 17, 2, 34, 0, 53), false},
	{"neighbour advertisement", ip6(gateway, 58, 136, 0, 0, 0), false},
	{"echo request", ip6(gateway, 58, 128, 0, 0, 0), false},
	{"router solicitation behind an extension header", ip6(allRouters, 0, 58, 0, 1, 4, 0, 0, 0, 0, 133), false},
	{"another protocol", ether(gateway, guest, 0x88cc), false},
	{"ARP in a VLAN", tagged(0x8100, arp(mac.Broadcast, guest, 1)), false},
	{"ARP in a provider's VLAN", tagged(0x88a8, arp(mac.Broadcast, guest, 1)), false},
}

func TestFilter(t *testing.T) {
	vm, err := bpf.NewVM(requests(guest))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range frames {
		n, err := vm.Run(f.frame)
		if err != nil {
			t.Fatal(err)
		}
		if (n > 0) != f.pass {
			t.Errorf("%s: passes %v, want %v", f.name, n > 0, f.pass)
		}
	}
	for n := range len(frames[2].frame) { // cut anywhere: no verdict but a clean one
		if _, err := vm.Run(frames[2].frame[:n]); err != nil {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
}

func FuzzFilter(f *testing.F) {
	for _, s := range frames {
		f.Add(s.frame)
	}
	vm, err := bpf.NewVM(requests(guest))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, frame []byte) {
		n, err := vm.Run(frame)
		if err != nil {
			t.Fatal(err)
		}
		if n > 0 && (len(frame) < 14 || !bytes.Equal(frame[6:12], guest[:])) {
			t.Errorf("a frame that is not the guest's passes: %x", frame)
		}
	})
}

func run(t *testing.T, command string) {
	t.Helper()
	words := strings.Fields(command)
	if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", command, err, out)
	}
}

// lab puts the test's thread into a network namespace of its own, which goes
// with the thread, and in it a bridge br0 whose only port leads to eth0. It
// returns a socket that sends frames as the guest.
func lab(t *testing.T) int {
	t.Helper()
	runtime.LockOSThread() // for good: the thread must not serve other tests
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatalf("make a network namespace: %v. Fix: run the tests as root", err)
	}
	run(t, "ip link add br0 address "+gateway.String()+" type bridge mcast_snooping 0 stp_state 0 forward_delay 0")
	run(t, "ip link add port type veth peer name eth0 address "+guest.String())
	run(t, "ip link set eth0 addrgenmode none") // the kernel's own solicitations would be the guest's
	run(t, "ip link set port master br0 up")
	run(t, "ip link set eth0 up")
	run(t, "ip link set br0 up")
	return sender(t, "eth0")
}

// sender sends whole frames on an interface.
func sender(t *testing.T, name string) int {
	t.Helper()
	link, err := net.InterfaceByName(name)
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: link.Index}); err != nil {
		t.Fatal(err)
	}
	return fd
}

func mustOpen(t *testing.T) *Conn {
	t.Helper()
	c, err := Open("br0", guest)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func send(t *testing.T, fd int, frame []byte) {
	t.Helper()
	if _, err := unix.Write(fd, frame); err != nil {
		t.Fatalf("send: %v", err)
	}
}

func read(t *testing.T, c *Conn) []byte {
	t.Helper()
	buf := make([]byte, MaxFrame)
	n, err := c.ReadFrame(buf)
	if err != nil {
		t.Fatal(err)
	}
	return buf[:n]
}

func TestRequestsReachTheReaderAndNothingElse(t *testing.T) {
	fd := lab(t)
	c := mustOpen(t)
	bridge := sender(t, "br0")
	for i, f := range frames {
		// What must not pass is followed by a frame that does.
		mark := arp(mac.Broadcast, guest, byte(100+i))
		// The host's own frames stay away, even under the guest's name.
		send(t, bridge, arp(mac.Broadcast, guest, 99))
		send(t, fd, f.frame)
		send(t, fd, mark)
		got := read(t, c)
		kind := binary.BigEndian.Uint16(f.frame[12:])
		if f.pass || kind == wire.EtherTypeVLAN || kind == wire.EtherTypeQinQ {
			want := f.frame
			if !f.pass {
				want = f.frame[:wire.TaggedLen] // to be counted, and no more
			}
			if !bytes.Equal(got, want) {
				t.Fatalf("%s: read %x, want %x", f.name, got, want)
			}
			got = read(t, c)
		}
		if !bytes.Equal(got, mark) {
			t.Fatalf("%s: read %x, want the frame after it, %x", f.name, got, mark)
		}
	}
}

func TestLongFrameIsCut(t *testing.T) {
	fd := lab(t)
	run(t, "ip link set eth0 mtu 9000")
	run(t, "ip link set port mtu 9000")
	run(t, "ip link set br0 mtu 9000")
	c := mustOpen(t)
	send(t, fd, ip4(gateway, 17, 0, 0, 67, make([]byte, 5000)...))
	buf := make([]byte, 9000)
	n, err := c.ReadFrame(buf)
	if err != nil || n != MaxFrame {
		t.Errorf("read %d bytes, %v; want %d", n, err, MaxFrame)
	}
}

func TestFilterIsLocked(t *testing.T) {
	lab(t)
	c := mustOpen(t)
	err := c.control(func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0) })
	if !errors.Is(err, unix.EPERM) {
		t.Errorf("the filter can be taken off: %v", err)
	}
	err = c.control(func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_LOCK_FILTER, 0) })
	if !errors.Is(err, unix.EPERM) {
		t.Errorf("the lock can be taken off: %v", err)
	}
}

func TestWriteReachesTheGuest(t *testing.T) {
	lab(t)
	c := mustOpen(t)
	eth, err := open("eth0", gateway)
	if err != nil {
		t.Fatal(err)
	}
	defer eth.Close()
	frame := arp(guest, gateway, 7)
	if err := c.WriteFrame(frame); err != nil {
		t.Fatal(err)
	}
	if got := read(t, eth); !bytes.Equal(got, frame) {
		t.Errorf("the guest got %x, want %x", got, frame)
	}
}

// A bridge that goes down and comes back is sat out; the reader goes on.
func TestDownIsSatOut(t *testing.T) {
	fd := lab(t)
	c := mustOpen(t)
	got := make(chan []byte, 1)
	go func() {
		buf := make([]byte, MaxFrame)
		n, err := c.ReadFrame(buf)
		if err != nil {
			t.Error(err)
		}
		got <- buf[:max(n, 0)]
	}()
	run(t, "ip link set br0 down")
	if err := c.WriteFrame(arp(guest, gateway, 1)); !errors.Is(err, unix.ENETDOWN) {
		t.Errorf("send while down: %v", err)
	}
	run(t, "ip link set br0 up")
	for {
		send(t, fd, arp(gateway, guest, 3))
		select {
		case f := <-got:
			if !bytes.Equal(f, arp(gateway, guest, 3)) {
				t.Errorf("read %x", f)
			}
			return
		default:
		}
	}
}

func TestRemovedBridgeIsGone(t *testing.T) {
	for _, how := range []string{"ip link set br0 down", ""} {
		lab(t)
		c := mustOpen(t)
		got := make(chan error, 1)
		go func() {
			_, err := c.ReadFrame(make([]byte, MaxFrame))
			got <- err
		}()
		if how != "" {
			run(t, how)
		}
		run(t, "ip link del br0")
		// Another one of that name does not count.
		run(t, "ip link add br0 type bridge")
		if err := <-got; !errors.Is(err, ErrGone) {
			t.Errorf("%q first: %v, want ErrGone", how, err)
		}
	}
}

func TestCloseEndsTheReader(t *testing.T) {
	lab(t)
	for _, down := range []bool{false, true} {
		c := mustOpen(t)
		if down {
			run(t, "ip link set br0 down")
		}
		got := make(chan error, 1)
		go func() {
			_, err := c.ReadFrame(make([]byte, MaxFrame))
			got <- err
		}()
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if err := <-got; !errors.Is(err, os.ErrClosed) {
			t.Errorf("down %v: %v, want os.ErrClosed", down, err)
		}
		if err := c.Close(); err != nil {
			t.Errorf("a second Close: %v", err)
		}
	}
}

func TestOpenSaysWhy(t *testing.T) {
	lab(t)
	for name, want := range map[string]error{"br9": unix.ENODEV, "a-name-of-more-than-15": unix.EINVAL} {
		_, err := Open(name, guest)
		if !errors.Is(err, want) || !strings.Contains(err.Error(), name) {
			t.Errorf("Open(%q): %v, want %v", name, err, want)
		}
	}
}

func TestNoAllocationPerFrame(t *testing.T) {
	fd := lab(t)
	c := mustOpen(t)
	buf, request, reply := make([]byte, MaxFrame), arp(gateway, guest, 1), arp(guest, gateway, 1)
	n := testing.AllocsPerRun(2000, func() {
		if _, err := unix.Write(fd, request); err != nil {
			t.Fatal(err)
		}
		if _, err := c.ReadFrame(buf); err != nil {
			t.Fatal(err)
		}
		if err := c.WriteFrame(reply); err != nil {
			t.Fatal(err)
		}
	})
	if n != 0 {
		t.Errorf("%v allocations per frame", n)
	}
}

// A guest that never pauses does not keep the only processor for the reader: the
// control socket is answered all the same. /dev/zero is such a guest. The process is
// idle, and the runtime's monitor thread asleep, when a first frame wakes the reader.
func TestBusyReaderLetsOthersRun(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	conn := func(name string, f *os.File, err error) *Conn {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		c, err := newConn(name, f)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	zero, err := os.Open("/dev/zero")
	flood := conn("zero", zero, err)
	firstOut, firstIn, err := os.Pipe()
	first := conn("first", firstOut, err)
	other, otherIn, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	cmd := exec.Command("sh", "-c", "sleep .3; echo >&3; sleep .3; echo >&4")
	cmd.ExtraFiles = []*os.File{firstIn, otherIn}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Wait() }()
	_, _ = firstIn.Close(), otherIn.Close()

	const enough = 10_000_000 // takes many times as long as the other sleeps
	var stop atomic.Bool
	read := make(chan int)
	go func() {
		buf, n := make([]byte, 8), 0
		_, err := first.ReadFrame(buf)
		for ; err == nil && n < enough && !stop.Load(); n++ {
			_, err = flood.ReadFrame(buf)
		}
		if err != nil {
			t.Error(err)
		}
		read <- n
	}()
	if _, err := other.Read(make([]byte, 1)); err != nil {
		t.Error(err)
	}
	stop.Store(true)
	if n := <-read; n == enough {
		t.Error("nobody else ran while the reader was busy")
	}
}
