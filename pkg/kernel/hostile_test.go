package kernel_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/slash32/slash32/pkg/config"
	"github.com/slash32/slash32/pkg/evidence"
	"github.com/slash32/slash32/pkg/intent"
	"github.com/slash32/slash32/pkg/kernel"
	"github.com/slash32/slash32/pkg/mac"
	"github.com/slash32/slash32/pkg/state"
	"github.com/slash32/slash32/pkg/traffic"
)

const hostPort = 7777 // where the host serves guests, or does not

// arp makes an ARP frame.
func arp(op byte, from, sender mac.Addr, ip string, target string) []byte {
	f := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, from[:]...)
	f = append(f, 8, 6, 0, 1, 8, 0, 6, 4, 0, op)
	f = append(append(f, sender[:]...), netip.MustParseAddr(ip).AsSlice()...)
	return append(append(f, 0, 0, 0, 0, 0, 0), netip.MustParseAddr(target).AsSlice()...)
}

// inVLAN puts a tag into a frame.
func inVLAN(kind, id uint16, frame []byte) []byte {
	f := binary.BigEndian.AppendUint16(bytes.Clone(frame[:12]), kind)
	return append(binary.BigEndian.AppendUint16(f, id), frame[12:]...)
}

// icmp6 makes an ICMPv6 message: type, four bytes, addresses and text.
func icmp6(from mac.Addr, src, dst string, typ byte, addrs []string, text string) []byte {
	b := make1(typ, 8)
	for _, a := range addrs {
		b = append(b, netip.MustParseAddr(a).AsSlice()...)
	}
	return ip(from, src, dst, unix.IPPROTO_ICMPV6, append(b, text...))
}

// icmp4 makes an ICMP message.
func icmp4(from mac.Addr, src, dst string, typ byte, text string) []byte {
	b := append(make1(typ, 8), text...)
	binary.BigEndian.PutUint16(b[2:], sum(b))
	return ip(from, src, dst, unix.IPPROTO_ICMP, b)
}

// fragments cuts the payload of an IP frame in two at a multiple of 8.
func fragments(frame []byte, at int) [][]byte {
	const ether = 14
	if frame[12] == 8 {
		one, two := bytes.Clone(frame[:ether+20+at]), bytes.Clone(frame[:ether+20])
		two = append(two, frame[ether+20+at:]...)
		for i, f := range [][]byte{one, two} {
			h := f[ether : ether+20]
			binary.BigEndian.PutUint16(h[2:], uint16(len(f)-ether))
			binary.BigEndian.PutUint16(h[4:], 99)
			binary.BigEndian.PutUint16(h[6:], []uint16{0x2000, uint16(at / 8)}[i])
			h[10], h[11] = 0, 0
			binary.BigEndian.PutUint16(h[10:], sum(h))
		}
		return [][]byte{one, two}
	}
	var out [][]byte
	payload := frame[ether+40:]
	for i, part := range [][]byte{payload[:at], payload[at:]} {
		f := bytes.Clone(frame[:ether+40])
		offset := []uint16{1, uint16(at)}[i] // in bytes, of which the last three bits are the flag
		f = append(f, f[ether+6], 0)
		f = append(binary.BigEndian.AppendUint16(f, offset), 0, 0, 0, 99)
		f = append(f, part...)
		f[ether+6] = unix.IPPROTO_FRAGMENT
		binary.BigEndian.PutUint16(f[ether+4:], uint16(len(f)-ether-40))
		out = append(out, f)
	}
	return out
}

// hostSocket hears what UDP the host gets on hostPort.
func hostSocket(t *testing.T) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrInet6{Port: hostPort})
	}
	if err == nil {
		err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 20})
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

// heard is the next datagram.
func heard(t *testing.T, fd int) string {
	t.Helper()
	b := make([]byte, 200)
	n, _, err := unix.Recvfrom(fd, b, 0)
	if err != nil {
		t.Fatalf("the host heard nothing: %v", err)
	}
	return string(b[:n])
}

// attack is what a guest tries; text "bad" is in all that must not pass.
type attack struct {
	name   string
	frames [][]byte
	want   kernel.SpoofCount // what is counted for it
}

func attacks(own, other mac.Addr) []attack {
	one := func(name string, want kernel.SpoofCount, frames ...[]byte) attack { return attack{name, frames, want} }
	count4, count6 := kernel.SpoofCount{IPv4: 1}, kernel.SpoofCount{IPv6: 1}
	return []attack{
		one("IPv4 source of another guest", count4, udp(own, "10.1.0.1", away4, 9, "bad")),
		one("IPv4 source of the host", count4, udp(own, "192.0.2.10", away4, 9, "bad")),
		one("IPv4 source of the gateway, to another guest", count4, udp(own, "169.254.0.1", "10.1.0.1", 9, "bad")),
		one("IPv4 source of the host, to the host", count4, udp(own, "127.0.0.1", "192.0.2.10", hostPort, "bad")),
		one("IPv6 source of another guest", count6, udp(own, "2001:db8::1", away6, 9, "bad")),
		one("IPv6 source of the host, to another guest", count6, udp(own, "2001:db8:ffff::10", "2001:db8::1", 9, "bad")),
		one("no IPv4 source", kernel.SpoofCount{}, udp(own, "0.0.0.0", away4, 9, "bad")),
		one("link-local IPv6 source, beyond the link", kernel.SpoofCount{}, udp(own, "fe80::2", away6, 9, "bad")),
		one("MAC", kernel.SpoofCount{MAC: 2}, udp(other, "10.1.0.0", away4, 9, "bad"), udp(other, "2001:db8::", away6, 9, "bad")),
		one("a fragment with another's source", count4, fragments(udp(own, "10.1.0.1", away4, 9, "bad bad bad bad"), 16)[1]),
		one("an IPv6 fragment with another's source", count6, fragments(udp(own, "2001:db8::1", away6, 9, "bad bad bad bad"), 16)[1]),

		one("ARP for another's address", kernel.SpoofCount{ARP: 2}, arp(2, own, own, "10.1.0.1", "10.1.0.1"), arp(1, own, own, "192.0.2.1", "169.254.0.1")),
		one("ARP as the gateway", kernel.SpoofCount{ARP: 1}, arp(2, own, own, "169.254.0.1", "169.254.0.1")),
		one("ARP with another's MAC within", kernel.SpoofCount{ARP: 1}, arp(2, own, other, "10.1.0.0", "169.254.0.1")),
		one("ARP from another's MAC", kernel.SpoofCount{ARP: 1}, arp(2, other, own, "10.1.0.0", "169.254.0.1")),

		one("advertisement of another's address", kernel.SpoofCount{ND: 1}, icmp6(own, "fe80::2", "fe80::1", 136, []string{"2001:db8::1"}, "")),
		one("advertisement of the gateway", kernel.SpoofCount{ND: 1}, icmp6(own, "fe80::2", "ff02::1", 136, []string{"fe80::1"}, "")),
		one("advertisement to another guest", kernel.SpoofCount{ND: 1}, icmp6(own, "2001:db8::", "2001:db8::1", 136, []string{"2001:db8::"}, "bad")),
		one("solicitation of another guest", kernel.SpoofCount{ND: 1}, icmp6(own, "2001:db8::", "2001:db8::1", 135, []string{"2001:db8::1"}, "bad")),
		one("router advertisement", kernel.SpoofCount{RA: 2}, icmp6(own, "fe80::2", "ff02::1", 134, nil, "\x00\x00\x00\x00\x00\x00\x00\x00"), icmp6(own, "fe80::2", "fe80::1", 134, nil, "\x00\x00\x00\x00\x00\x00\x00\x00")),
		one("router advertisement to another guest", kernel.SpoofCount{RA: 1}, icmp6(own, "2001:db8::", "2001:db8::1", 134, nil, "bad bad!")),
		// The counter of fragments has what a guest sends in pieces, whatever it is.
		one("router advertisement in fragments", kernel.SpoofCount{RA: 1, Fragments: 2}, fragments(icmp6(own, "fe80::2", "fe80::1", 134, nil, "\x00\x00\x00\x00\x00\x00\x00\x00bad bad "), 8)...),

		one("redirect to the host", kernel.SpoofCount{Redirect: 1}, icmp4(own, "10.1.0.0", "192.0.2.10", 5, "bad")),
		one("redirect to another guest", kernel.SpoofCount{Redirect: 1}, icmp4(own, "10.1.0.0", "10.1.0.1", 5, "bad")),
		one("redirect to the world", kernel.SpoofCount{Redirect: 1}, icmp4(own, "10.1.0.0", away4, 5, "bad")),
		one("IPv6 redirect to the host", kernel.SpoofCount{Redirect: 1}, icmp6(own, "fe80::2", "fe80::1", 137, []string{away6, away6}, "bad")),
		one("IPv6 redirect to another guest", kernel.SpoofCount{Redirect: 1}, icmp6(own, "2001:db8::", "2001:db8::1", 137, []string{away6, away6}, "bad")),

		one("DHCP server on the link", kernel.SpoofCount{Rogue: 1}, ip(own, "10.1.0.0", "255.255.255.255", unix.IPPROTO_UDP, server(67, 68))),
		one("DHCP server for another guest", kernel.SpoofCount{Rogue: 1}, ip(own, "10.1.0.0", "10.1.0.1", unix.IPPROTO_UDP, server(67, 68))),
		one("DHCPv6 server on the link", kernel.SpoofCount{Rogue: 1}, ip(own, "fe80::2", "ff02::1", unix.IPPROTO_UDP, server(547, 546))),
		one("DHCPv6 server for another guest", kernel.SpoofCount{Rogue: 1}, ip(own, "2001:db8::", "2001:db8::1", unix.IPPROTO_UDP, server(547, 546))),

		// The kernel takes a tag with a number for another's frame, and one without for
		// no tag.
		one("VLAN", kernel.SpoofCount{}, inVLAN(unix.ETH_P_8021Q, 7, udp(own, "10.1.0.0", away4, 9, "bad")), inVLAN(unix.ETH_P_8021Q, 7, udp(own, "2001:db8::", "2001:db8::1", 9, "bad"))),
		one("provider's VLAN", kernel.SpoofCount{}, inVLAN(unix.ETH_P_8021AD, 7, udp(own, "10.1.0.0", away4, 9, "bad")), inVLAN(unix.ETH_P_8021AD, 7, inVLAN(unix.ETH_P_8021Q, 8, udp(own, "10.1.0.0", away4, 9, "bad")))),
		one("ARP in a VLAN", kernel.SpoofCount{}, inVLAN(unix.ETH_P_8021Q, 7, arp(2, own, own, "10.1.0.1", "10.1.0.1"))),
		one("another's source behind a priority tag", count4, inVLAN(unix.ETH_P_8021Q, 0, udp(own, "10.1.0.1", away4, 9, "bad"))),

		one("the host's services", kernel.SpoofCount{Closed: 4},
			udp(own, "10.1.0.0", "192.0.2.10", hostPort, "bad"), udp(own, "10.1.0.0", "169.254.0.1", hostPort, "bad"),
			udp(own, "2001:db8::", "2001:db8:ffff::10", hostPort, "bad"), udp(own, "fe80::2", "fe80::1", hostPort, "bad")),
		one("the host's services in fragments", kernel.SpoofCount{Closed: 1, Fragments: 2}, fragments(udp(own, "10.1.0.0", "192.0.2.10", hostPort, "bad bad bad bad"), 8)...),
		one("echo of an address that is not the gateway's", kernel.SpoofCount{Closed: 2}, icmp4(own, "10.1.0.0", "192.0.2.10", 8, "bad"), icmp6(own, "2001:db8::", "2001:db8:ffff::10", 128, nil, "bad")),
		one("TCP to the host", kernel.SpoofCount{Closed: 1}, ip(own, "10.1.0.0", "192.0.2.10", unix.IPPROTO_TCP, syn(22))),
	}
}

// server is a datagram between ports, with the text that must not pass.
func server(from, to uint16) []byte {
	p := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, from), to)
	return append(p, 0, 11, 0, 0, 'b', 'a', 'd')
}

// syn is the first segment of a connection.
func syn(port uint16) []byte {
	p := make([]byte, 20)
	binary.BigEndian.PutUint16(p, 5000)
	binary.BigEndian.PutUint16(p[2:], port)
	p[12], p[13] = 5<<4, 2
	return p
}

func spoofed(t *testing.T, k *kernel.Kernel, link string) kernel.SpoofCount {
	t.Helper()
	counts, err := k.Spoofed(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return counts[link]
}

func (l *lab) guests() []intent.VM { return vms(len(l.guest)) }

// barrier returns once all that the guest sent has been dealt with, with what has
// come out at the uplinks and the other guests since the last.
func (l *lab) barrier(t *testing.T) [][]byte {
	t.Helper()
	own := l.guests()[0].NICs[0].MAC
	var seen [][]byte
	for _, to := range []struct {
		port     *port
		src, dst string
	}{
		{l.wan, "10.1.0.0", away4}, {l.guest[1], "10.1.0.0", "10.1.0.1"}, {l.guest[2], "10.1.0.0", "10.1.0.2"},
		{l.wan, "2001:db8::", away6}, {l.guest[1], "2001:db8::", "2001:db8::1"}, {l.guest[2], "2001:db8::", "2001:db8::2"},
	} {
		l.guest[0].send(udp(own, to.src, to.dst, 9, "good, to "+to.dst))
		seen = append(seen, to.port.until("good, to "+to.dst)...)
	}
	return seen
}

// TestHostileGuest has a guest try all that a guest must not be able to: nothing
// of it comes out anywhere, the host's neighbours stay as they are, and each
// reason is counted by its name, for this guest only.
func TestHostileGuest(t *testing.T) {
	l := newLab(t)
	host := hostSocket(t)
	own, other := l.guests()[0].NICs[0].MAC, l.guests()[1].NICs[0].MAC
	l.barrier(t)
	neighbours := func() string {
		return run(t, "ip -4 neigh show nud permanent nud stale nud reachable") + run(t, "ip -6 neigh show nud permanent nud stale nud reachable")
	}
	before := neighbours()
	last := spoofed(t, l.k, "s32-vm0")
	for _, a := range attacks(own, other) {
		for _, f := range a.frames {
			l.guest[0].send(f)
		}
		for _, f := range l.barrier(t) {
			if bytes.Contains(f, []byte("bad")) {
				t.Errorf("%s: passed: % x", a.name, f)
			}
		}
		now := spoofed(t, l.k, "s32-vm0")
		if got := minus(now, last); got != a.want {
			t.Errorf("%s: counted %+v, want %+v", a.name, got, a.want)
		}
		last = now
	}
	if now := neighbours(); now != before {
		t.Errorf("the host's neighbours were\n%s\nand are\n%s", before, now)
	}
	for _, vm := range []string{"s32-vm1", "s32-vm2"} {
		if c := spoofed(t, l.k, vm); c != (kernel.SpoofCount{}) {
			t.Errorf("counted for %s: %+v", vm, c)
		}
	}

	// What is the guest's own, and for the gateway, is not counted.
	for _, f := range [][]byte{
		arp(1, own, own, "10.1.0.0", "169.254.0.1"),
		arp(1, own, own, "0.0.0.0", "10.1.0.0"),
		arp(2, own, own, "10.1.0.0", "10.1.0.0"),
		icmp6(own, "2001:db8::", "fe80::1", 136, []string{"2001:db8::"}, ""),
		icmp6(own, "fe80::2", "ff02::1", 136, []string{"fe80::2"}, ""),
		udp(own, "10.1.0.0", "224.0.0.251", 5353, "multicast"),
		udp(own, "fe80::2", "ff02::fb", 5353, "multicast"),
	} {
		l.guest[0].send(f)
	}
	l.guest[0].send(icmp4(own, "10.1.0.0", "169.254.0.1", 8, "echo four"))
	l.guest[0].until("echo four")
	l.guest[0].send(icmp6(own, "2001:db8::", "fe80::1", 128, nil, "echo six "))
	l.guest[0].until("echo six ")
	l.barrier(t)
	if got := minus(spoofed(t, l.k, "s32-vm0"), last); got != (kernel.SpoofCount{}) {
		t.Errorf("counted what is the guest's own: %+v", got)
	}

	// Fragments of its own go through, and are counted.
	whole := udp(own, "10.1.0.0", away4, 9, "a datagram in two pieces")
	for _, f := range fragments(whole, 16) {
		l.guest[0].send(f)
	}
	l.wan.until("in two pieces")
	for _, f := range fragments(udp(own, "2001:db8::", away6, 9, "a datagram in two parts."), 16) {
		l.guest[0].send(f)
	}
	l.wan.until("in two parts.")
	if got := minus(spoofed(t, l.k, "s32-vm0"), last); got != (kernel.SpoofCount{Fragments: 4}) {
		t.Errorf("fragments: counted %+v", got)
	}

	// The host heard none of what was for its port: it hears the first that is let
	// through.
	l.open(t, config.Service{Proto: config.ProtoUDP, Port: hostPort})
	l.guest[0].send(udp(own, "10.1.0.0", "192.0.2.10", hostPort, "good one"))
	if got := heard(t, host); got != "good one" {
		t.Errorf("the host heard %q", got)
	}
}

// open opens the host to the guests: for services, or, without any, altogether.
func (l *lab) open(t *testing.T, services ...config.Service) {
	t.Helper()
	all := l.guests()
	for i := range all {
		n := &all[i].NICs[0].Network
		n.Services, n.Open = services, len(services) == 0
	}
	l.want = build(t, l.k, all)
	converge(t, l.k, l.want)
}

func minus(a, b kernel.SpoofCount) kernel.SpoofCount {
	return kernel.SpoofCount{
		IPv4: a.IPv4 - b.IPv4, IPv6: a.IPv6 - b.IPv6, MAC: a.MAC - b.MAC, ARP: a.ARP - b.ARP, ND: a.ND - b.ND, RA: a.RA - b.RA,
		Redirect: a.Redirect - b.Redirect, Rogue: a.Rogue - b.Rogue, Closed: a.Closed - b.Closed, Apart: a.Apart - b.Apart, Fragments: a.Fragments - b.Fragments,
	}
}

// TestServices: what the host serves to guests is what the network opens.
func TestServices(t *testing.T) {
	l := newLab(t)
	host := hostSocket(t)
	own := l.guests()[0].NICs[0].MAC
	say := func(src, dst string, port uint16, text string) {
		l.guest[0].send(udp(own, src, dst, port, text))
	}
	// The host's own connections to a guest are answered though nothing is open.
	if err := unix.Sendto(host, []byte("question"), 0, &unix.SockaddrInet6{Port: 9999, Addr: netip.MustParseAddr("::ffff:10.1.0.0").As16()}); err != nil {
		t.Fatal(err)
	}
	q := l.guest[0].until("question")
	question := q[len(q)-1]
	say("10.1.0.0", "192.0.2.10", hostPort, "bad: not from the port that was asked")
	answer := bytes.Clone(udp(own, "10.1.0.0", source(question).String(), hostPort, "answer"))
	copy(answer[34:36], question[36:38]) // from the port that was asked
	l.guest[0].send(answer)
	if got := heard(t, host); got != "answer" {
		t.Errorf("the host heard %q", got)
	}

	l.open(t, config.Service{Proto: config.ProtoUDP, Port: hostPort}, config.Service{Proto: config.ProtoTCP, Port: 22})
	for _, dst := range []string{"192.0.2.10", "169.254.0.1", "2001:db8:ffff::10"} {
		src := "10.1.0.0"
		if netip.MustParseAddr(dst).Is6() {
			src = "2001:db8::"
		}
		say(src, dst, hostPort+1, "bad: another port")
		say(src, dst, 22, "bad: another protocol")
		say(src, dst, hostPort, "to "+dst)
		if got := heard(t, host); got != "to "+dst {
			t.Errorf("the host heard %q", got)
		}
	}
	if got := spoofed(t, l.k, "s32-vm0").Closed; got != 7 {
		t.Errorf("%d closed, want 7", got)
	}
	l.open(t)
	say("10.1.0.0", "192.0.2.10", hostPort, "all is open")
	if got := heard(t, host); got != "all is open" {
		t.Errorf("the host heard %q", got)
	}
	l.guest[0].send(icmp4(own, "10.1.0.0", "192.0.2.10", 8, "echo all"))
	l.guest[0].until("echo all")
}

// TestBeforeTheGuard: with what a start prepares, and no element yet, nothing of
// a guest gets anywhere.
func TestBeforeTheGuard(t *testing.T) {
	l := newLab(t)
	host := hostSocket(t)
	own := l.guests()[0].NICs[0].MAC
	bare := l.want.Clone()
	for e := range bare.Elems {
		if e.Link == "s32-vm0" {
			delete(bare.Elems, e)
		}
	}
	converge(t, l.k, bare)
	for _, f := range [][]byte{
		udp(own, "10.1.0.0", away4, 9, "bad"), udp(own, "10.1.0.0", "10.1.0.1", 9, "bad"), udp(own, "10.1.0.0", "192.0.2.10", hostPort, "bad"),
		udp(own, "2001:db8::", away6, 9, "bad"), udp(own, "2001:db8::", "2001:db8::1", 9, "bad"), udp(own, "fe80::2", "fe80::1", hostPort, "bad"),
		arp(2, own, own, "10.1.0.1", "10.1.0.1"),
	} {
		l.guest[0].send(f)
	}
	l.want = build(t, l.k, l.guests())
	l.open(t)
	for _, f := range l.barrier(t) {
		if bytes.Contains(f, []byte("bad")) {
			t.Errorf("passed: % x", f)
		}
	}
	l.guest[0].send(udp(own, "10.1.0.0", "192.0.2.10", hostPort, "good one"))
	if got := heard(t, host); got != "good one" {
		t.Errorf("the host heard %q", got)
	}
}

// TestManySources: a guest that sends from many MAC addresses takes nothing of
// the host's memory: the bridge learns none, and its own guest hears all the same.
func TestManySources(t *testing.T) {
	l := newLab(t)
	own := l.guests()[0].NICs[0].MAC
	for i := range 1000 {
		from := mac.Addr{2, 0, 0, 0, byte(i >> 8), byte(i)}
		l.guest[0].send(udp(from, "10.1.0.0", away4, 9, "bad"))
	}
	l.barrier(t)
	if learnt := run(t, "bridge fdb show br s32-vm0 dynamic"); learnt != "" {
		t.Errorf("the bridge learnt:\n%.400s", learnt)
	}
	l.guest[0].send(icmp4(own, "10.1.0.0", "169.254.0.1", 8, "are you there"))
	l.guest[0].until("are you there")
	if got := spoofed(t, l.k, "s32-vm0").MAC; got != 1000 {
		t.Errorf("%d counted, want 1000", got)
	}
}

// TestTraffic: bytes and packets by direction and class, which only what is
// forwarded counts in.
func TestTraffic(t *testing.T) {
	l := newLab(t)
	c := hostConfig()
	c.LocalPrefixes = []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("2001:db8::/48"), netip.MustParsePrefix("198.51.100.7/32")}
	l.want = buildOf(t, l.k, c, l.guests())
	converge(t, l.k, l.want)
	own := l.guests()[0].NICs[0].MAC
	const text = 100
	payload := func(mark string) string { return mark + string(make([]byte, text-len(mark))) }
	send := func(to *port, src, dst, mark string) {
		t.Helper()
		l.guest[0].send(udp(own, src, dst, 9, payload(mark)))
		to.until(mark)
	}
	send(l.wan, "10.1.0.0", away4, "one")
	send(l.wan, "10.1.0.0", away4, "two")
	send(l.wan, "2001:db8::", away6, "three")
	send(l.wan, "10.1.0.0", "198.51.100.7", "four")
	send(l.guest[1], "10.1.0.0", "10.1.0.1", "five")
	send(l.guest[1], "2001:db8::", "2001:db8::1", "six")
	l.guest[0].send(udp(own, "10.1.0.1", away4, 9, payload("bad"))) // dropped
	l.guest[0].send(icmp4(own, "10.1.0.0", "169.254.0.1", 8, "to the gateway"))
	l.guest[0].until("to the gateway")
	// From the world: an answer, through the translation.
	uplink, err := netlink.LinkByName("wan0")
	if err != nil {
		t.Fatal(err)
	}
	answer := udp(own, away4, "192.0.2.10", 5000, payload("seven"))
	copy(answer, uplink.Attrs().HardwareAddr)
	binary.BigEndian.PutUint16(answer[34:], 9)
	l.wan.send(answer)
	l.guest[0].until("seven")
	const small, large = 28 + text, 48 + text // IPv4, IPv6
	want := map[string]traffic.Traffic{
		"s32-vm0": {
			Out: traffic.Classes{
				Internet: traffic.Count{Packets: 3, Bytes: 2*small + large},
				Local:    traffic.Count{Packets: 3, Bytes: 2*small + large},
			},
			In: traffic.Classes{Internet: traffic.Count{Packets: 1, Bytes: small}},
		},
		"s32-vm1": {In: traffic.Classes{Local: traffic.Count{Packets: 2, Bytes: small + large}}},
		"s32-vm2": {},
	}
	got, err := l.k.Traffic(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for link, w := range want {
		if got[link] != w {
			t.Errorf("%s: %+v, want %+v", link, got[link], w)
		}
	}
	if one, err := l.k.TrafficOf(context.Background(), []string{"s32-vm0", "s32-none"}); err != nil || len(one) != 1 || one["s32-vm0"] != want["s32-vm0"] {
		t.Errorf("of one: %+v, %v", one, err)
	}
	// A pass, and other prefixes, leave them.
	c.LocalPrefixes = nil
	for _, p := range []string{"10.0.0.0/9", "10.128.0.0/9", "192.0.2.0/24", "240.0.0.0/4", "2001:db8::/32", "f000::/4"} { // side by side, and up to the last address
		c.LocalPrefixes = append(c.LocalPrefixes, netip.MustParsePrefix(p))
	}
	l.want = buildOf(t, l.k, c, l.guests())
	converge(t, l.k, l.want)
	if again, err := l.k.Traffic(context.Background()); err != nil || again["s32-vm0"] != want["s32-vm0"] {
		t.Errorf("after a pass: %+v, %v", again["s32-vm0"], err)
	}
	send(l.guest[1], "10.1.0.0", "10.1.0.1", "eight")
	if got, err := l.k.Traffic(context.Background()); err != nil || got["s32-vm0"].Out.Local.Packets != 4 {
		t.Errorf("with prefixes side by side: %+v, %v", got["s32-vm0"], err)
	}
	for _, line := range []string{
		"nft delete element inet slash32 local4 { 192.0.2.0/24 }", "nft add element inet slash32 local6 { 2001:db9::-2001:db9::7 }", "nft flush set inet slash32 local4",
	} {
		drift(t, l.k, []string{line})
		converge(t, l.k, l.want)
	}
}

// TestSamples: of what a guest's guard drops, the log gets a few lines a minute for
// each reason, with the VM's name, however much it is.
func TestSamples(t *testing.T) {
	l := newLab(t)
	own, other := l.guests()[0].NICs[0].MAC, l.guests()[1].NICs[0].MAC
	out := make(chan string, 1000)
	log := logrus.New()
	log.SetOutput(writer(func(p []byte) { out <- string(p) }))
	samples := &evidence.Runner{
		Link: l.k.LinkName, Now: time.Now, Log: log,
		VM: func(bridge string) string { return map[string]string{"s32-vm0": "web1"}[bridge] },
	}
	samples.Set(true)
	lacking := map[string]bool{}
	for _, reason := range state.GuardCounters {
		lacking[reason] = true
	}
	delete(lacking, state.SetFragment) // not dropped
	delete(lacking, state.SetApart)    // this one is not isolated
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	lines := map[string]int{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer cancel()
		for len(lacking) > 0 {
			for _, a := range attacks(own, other) {
				for _, f := range a.frames {
					if _, err := unix.Write(l.guest[0].fd, f); err != nil {
						t.Errorf("send: %v", err)
						return
					}
				}
			}
			for wait := time.After(20 * time.Millisecond); ; { // for those that follow
				select {
				case line := <-out:
					_, rest, _ := strings.Cut(line, "reason=")
					reason, _, _ := strings.Cut(rest, " ")
					lines[strings.TrimSpace(reason)]++
					delete(lacking, strings.TrimSpace(reason))
					if !strings.Contains(line, "vm=web1") {
						t.Errorf("no name of the VM: %s", line)
					}
					continue
				case <-ctx.Done():
					return
				case <-wait:
				}
				break
			}
		}
	}()
	// It listens in the namespace of the thread that runs it.
	if err := samples.Run(ctx); err != nil {
		t.Error(err)
	}
	<-done
	if len(lacking) > 0 {
		t.Errorf("nothing was logged of %v; lines: %v", lacking, lines)
	}
	for reason, n := range lines {
		if n > 3 {
			t.Errorf("%d lines of %s", n, reason)
		}
	}
}

type writer func([]byte)

func (w writer) Write(p []byte) (int, error) { w(p); return len(p), nil }
