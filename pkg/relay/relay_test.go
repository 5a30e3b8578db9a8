package relay

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/sirupsen/logrus"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/slash32/slash32/pkg/mac"
	"github.com/slash32/slash32/pkg/responder"
	"github.com/slash32/slash32/pkg/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The host is 10.9.0.1 and fd09::1, the servers 10.9.0.11 and .12 and fd09::11;
// all on the loopback of a namespace.
var (
	host4   = netip.MustParseAddr("10.9.0.1")
	server4 = netip.MustParseAddr("10.9.0.11")
	second4 = netip.MustParseAddr("10.9.0.12")
	server6 = netip.MustParseAddr("fd09::11")
	guest   = mac.MustParse("52:54:00:ab:cd:01")
	other   = mac.MustParse("52:54:00:ab:cd:02")
)

// bed is a relay in a namespace with two VMs.
type bed struct {
	*testing.T
	relay    *Relay
	vms      []VM
	ends     []*net.UnixConn // the responders'
	changed  chan uuid.UUID
	servers  map[netip.Addr]*net.UDPConn
	stranger *net.UDPConn
}

func newBed(t *testing.T) *bed {
	t.Helper()
	runtime.LockOSThread() // the thread dies with the test, and the namespace with it
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatalf("make a network namespace (it takes root): %v", err)
	}
	for _, line := range []string{"ip link set lo up", "ip address add 10.9.0.1/32 dev lo", "ip address add 10.9.0.11/32 dev lo", "ip address add 10.9.0.12/32 dev lo",
		"ip address add 10.9.0.13/32 dev lo", "ip -6 address add fd09::1/128 dev lo nodad", "ip -6 address add fd09::11/128 dev lo nodad"} {
		f := strings.Fields(line)
		if out, err := exec.Command(f[0], f[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", line, err, out)
		}
	}
	log := logrus.New()
	log.SetOutput(t.Output())
	b := &bed{T: t, changed: make(chan uuid.UUID, 8), servers: map[netip.Addr]*net.UDPConn{}}
	b.relay = &Relay{Changed: func(id uuid.UUID) { b.changed <- id }, Credentials: func(uid uint32) bool { return uid == 0 }, Log: log}
	// On one loopback every address would be reached from itself.
	b.relay.source = func(_, server netip.Addr) (netip.Addr, error) {
		if server.Is4() {
			return host4, nil
		}
		return netip.MustParseAddr("fd09::1"), nil
	}
	for i, m := range []mac.Addr{guest, other} {
		dir := t.TempDir()
		v := VM{UUID: uuid.UUID{15: byte(i + 1)}, Dir: dir, NICs: []NIC{{MAC: mac.MustParse("52:54:00:00:00:09")}, {MAC: m, Servers4: []netip.Addr{server4, second4}, Servers6: []netip.Addr{server6}}}}
		c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, relaySocket), Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		b.vms, b.ends = append(b.vms, v), append(b.ends, c)
	}
	for _, a := range []netip.AddrPort{netip.AddrPortFrom(server4, 67), netip.AddrPortFrom(second4, 67), netip.AddrPortFrom(server6, 547)} {
		b.servers[a.Addr()] = b.udp(a)
	}
	b.stranger = b.udp(netip.MustParseAddrPort("10.9.0.13:67"))
	b.relay.init()
	b.relay.apply(b.vms) // on this thread, for its namespace
	t.Cleanup(func() {
		b.relay.apply(nil)
		b.relay.wg.Wait()
	})
	return b
}

func (b *bed) udp(at netip.AddrPort) *net.UDPConn {
	b.Helper()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = c.Close() })
	return c
}

func (b *bed) send(vm int, message []byte) {
	b.Helper()
	if _, err := b.ends[vm].WriteToUnix(message, &net.UnixAddr{Name: filepath.Join(b.vms[vm].Dir, uplinkSocket), Net: "unixgram"}); err != nil {
		b.Fatal(err)
	}
}

// next is the next message that c receives.
func next(t *testing.T, c net.Conn) []byte {
	t.Helper()
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 2048)
	n, err := c.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return buf[:n]
}

// request is one of VM 0's.
func request() []byte { return requestOf(guest, responder.CircuitID(uuid.UUID{15: 1}, guest)) }

// requestOf has an option 82 for each circuit identifier.
func requestOf(from mac.Addr, circuits ...[]byte) []byte {
	b := wire.AppendDHCP4(nil, wire.DHCP4{Op: 1, Hops: 1, CHAddr: from})
	for _, c := range circuits {
		b = wire.AppendOption4(b, wire.Opt4RelayAgent, append([]byte{1, uint8(len(c))}, c...))
	}
	return append(b, wire.Opt4End)
}

// forward is a RELAY-FORW with an Interface-Id for each circuit identifier.
func forward(circuits ...[]byte) []byte {
	b := append([]byte{wire.DHCP6RelayForward, 0}, make([]byte, 32)...)
	for _, c := range circuits {
		b = wire.AppendOption6(b, wire.Opt6InterfaceID, c)
	}
	return wire.AppendOption6(b, wire.Opt6RelayMessage, []byte("x"))
}

func answer(vm uuid.UUID, to mac.Addr, mark string) []byte {
	b := wire.AppendDHCP4(nil, wire.DHCP4{Op: 2, GIAddr: host4, CHAddr: to})
	b = wire.AppendOption4(b, wire.Opt4RelayAgent, append([]byte{2, 1, 'x', 1, responder.CircuitLen}, responder.CircuitID(vm, to)...))
	b = wire.AppendOption4(b, wire.Opt4Message, []byte(mark))
	return append(b, wire.Opt4End)
}

func (b *bed) reply(c *net.UDPConn, message []byte) {
	b.Helper()
	if _, err := c.WriteToUDPAddrPort(message, netip.AddrPortFrom(host4, 67)); err != nil {
		b.Fatal(err)
	}
}

func header(bs ...byte) []byte { return bs }

func TestCarry(t *testing.T) {
	b := newBed(t)
	all := append(header(responder.RelayVersion, 1, 4, responder.RelayAll), request()...)
	b.send(0, all)
	want := request()
	copy(want[24:28], host4.AsSlice())
	for _, s := range []netip.Addr{server4, second4} {
		if got := next(t, b.servers[s]); !bytes.Equal(got, want) {
			t.Errorf("%s got %x", s, got)
		}
	}
	// One server alone: the other one's next message is the one after that.
	b.send(0, append(header(responder.RelayVersion, 1, 4, 1), request()...))
	next(t, b.servers[second4])
	// What is not for a server of the NIC's goes nowhere.
	for _, bad := range [][]byte{
		nil, {1}, {1, 1, 4}, {1, 1, 4, 0}, {2, 1, 4, 0xff}, {1, 9, 4, 0xff}, {1, 1, 4, 2}, {1, 1, 5, 0xff}, {1, 0, 4, 0xff},
		append(header(1, 1, 4, 0xff), make([]byte, 100)...), append(header(1, 1, 4, 0xff), make([]byte, 1600)...),
	} {
		if len(bad) >= 4 && len(bad) < 100 {
			bad = append(bad, request()...)
			if bad[1] == 1 && bad[2] == 4 && bad[3] == 0 && bad[0] == 1 {
				continue // a good one
			}
		}
		b.send(0, bad)
	}
	b.send(0, append(header(responder.RelayVersion, 1, 4, 0), append(request(), "last"...)...))
	if got := next(t, b.servers[server4]); !bytes.HasSuffix(got, []byte("last")) {
		t.Errorf("the first server got %x before", got)
	}

	// Answers reach the VM that they name, from its own servers only.
	b.reply(b.stranger, answer(b.vms[0].UUID, guest, "stranger"))
	b.reply(b.servers[server4], answer(b.vms[0].UUID, other, "another MAC"))
	b.reply(b.servers[server4], answer(uuid.UUID{15: 9}, guest, "no VM"))
	b.reply(b.servers[server4], []byte("junk"))
	b.reply(b.servers[second4], answer(b.vms[1].UUID, other, "second"))
	b.reply(b.servers[second4], answer(b.vms[0].UUID, guest, "first"))
	for i, want := range []string{"first", "second"} {
		got := next(t, b.ends[i])
		if !bytes.Equal(got[:4], header(responder.RelayVersion, 1, 4, 1)) || !bytes.Contains(got, []byte(want)) {
			t.Errorf("VM %d got %x", i, got)
		}
	}

	// DHCPv6.
	own := responder.CircuitID(b.vms[1].UUID, other)
	for _, bad := range [][]byte{
		{}, forward(), forward(responder.CircuitID(b.vms[0].UUID, guest)), forward(own, own), append(forward(own), 0, 1), forward(own)[:20],
		append([]byte{wire.DHCP6RelayReply}, forward(own)[1:]...),
	} {
		b.send(1, append(header(responder.RelayVersion, 1, 6, responder.RelayAll), bad...))
	}
	b.send(1, append(header(responder.RelayVersion, 1, 6, responder.RelayAll), forward(own)...))
	if got := next(t, b.servers[server6]); !bytes.Equal(got, forward(own)) {
		t.Errorf("the DHCPv6 server got %x", got)
	}
	six := append([]byte{wire.DHCP6RelayReply, 0}, make([]byte, 32)...)
	six = wire.AppendOption6(six, wire.Opt6InterfaceID, responder.CircuitID(b.vms[1].UUID, other))
	if _, err := b.servers[server6].WriteToUDPAddrPort(six, netip.MustParseAddrPort("[fd09::1]:547")); err != nil {
		t.Fatal(err)
	}
	if got := next(t, b.ends[1]); !bytes.Equal(got, append(header(responder.RelayVersion, 1, 6, 0), six...)) {
		t.Errorf("VM 1 got %x", got)
	}

	// News of leases.
	b.send(1, header(responder.RelayVersion, 1, 0, 0))
	if id := <-b.changed; id != b.vms[1].UUID {
		t.Errorf("leases of %s have changed", id)
	}
}

// TestForgery: a responder speaks for its own guest only.
func TestForgery(t *testing.T) {
	b := newBed(t)
	own, another := responder.CircuitID(b.vms[0].UUID, guest), responder.CircuitID(b.vms[1].UUID, other)
	answer := request()
	answer[0] = 2
	for name, bad := range map[string][]byte{
		"another guest": requestOf(other, own), "another circuit": requestOf(guest, another), "two": requestOf(guest, own, own),
		"none": requestOf(guest), "both": requestOf(guest, another, own), "an answer": answer, "cut": append(request()[:262], 82, 9),
	} {
		b.send(0, append(header(responder.RelayVersion, 1, 4, 0), append(bad, name...)...))
	}
	b.send(0, append(header(responder.RelayVersion, 1, 4, 0), append(request(), "last"...)...))
	if got := next(t, b.servers[server4]); !bytes.HasSuffix(got, []byte("last")) {
		t.Errorf("the server got %q before", got)
	}
}

// TestSet: sockets come and go with the VMs that need them.
func TestSet(t *testing.T) {
	b := newBed(t)
	b.relay.apply(b.vms[:1])
	if _, err := b.ends[1].WriteToUnix([]byte("x"), &net.UnixAddr{Name: filepath.Join(b.vms[1].Dir, uplinkSocket), Net: "unixgram"}); err == nil {
		t.Error("the socket of a VM that is gone takes messages")
	}
	b.relay.apply(nil)
	if c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(host4, 67))); err != nil {
		t.Errorf("the port is still in use: %v", err)
	} else {
		_ = c.Close()
	}
	// A port that is taken is said, and the next set tries again.
	taken := b.udp(netip.AddrPortFrom(host4, 67))
	b.relay.apply(b.vms)
	if b.relay.sources[host4] != nil {
		t.Error("the port was taken twice")
	}
	_ = taken.Close()
	b.relay.apply(b.vms)
	b.send(0, append(header(responder.RelayVersion, 1, 4, 0), request()...))
	next(t, b.servers[server4])
}

// TestCredentials: another user's process is not a responder.
func TestCredentials(t *testing.T) {
	b := newBed(t)
	b.relay.apply(nil)
	b.relay.wg.Wait()
	asked := 0
	b.relay.Credentials = func(uint32) bool { asked++; return asked > 1 }
	b.relay.apply(b.vms)
	b.send(0, append(header(responder.RelayVersion, 1, 4, 0), append(request(), "first"...)...))
	b.send(0, append(header(responder.RelayVersion, 1, 4, 0), append(request(), "second"...)...))
	if got := next(t, b.servers[server4]); !bytes.HasSuffix(got, []byte("second")) {
		t.Errorf("the server got %q", got)
	}
}

func TestRunEnds(t *testing.T) {
	r := &Relay{Log: logrus.New()}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- r.Run(ctx) }()
	r.Set(nil)
	r.Set(nil)
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestBudget(t *testing.T) {
	var b budget
	now := time.Unix(1_800_000_000, 0)
	n := 0
	for b.take(now, 5, 20) {
		n++
	}
	if n != 20 {
		t.Errorf("%d at once", n)
	}
	n = 0
	for now = now.Add(time.Second); b.take(now, 5, 20); n++ {
	}
	if n != 5 {
		t.Errorf("%d after a second", n)
	}
}

func FuzzCircuit(f *testing.F) {
	f.Add(answer(uuid.UUID{1}, guest, "x"))
	f.Add([]byte{13, 0})
	f.Add(request())
	f.Add(forward(responder.CircuitID(uuid.UUID{1}, guest)))
	f.Fuzz(func(_ *testing.T, b []byte) {
		circuit4(b, host4)
		circuit6(b)
		own4(b, responder.CircuitID(uuid.UUID{1}, guest), guest)
		own6(b, responder.CircuitID(uuid.UUID{1}, guest))
		stamp(bytes.Clone(b), host4)
	})
}
