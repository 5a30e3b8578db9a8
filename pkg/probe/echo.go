package probe

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/slash32/slash32/pkg/wire"
)

// ICMP types (RFC 792, RFC 4443).
const (
	echoRequest4 = 8
	echoReply4   = 0
	echoRequest6 = 128
	echoReply6   = 129
)

// echo asks by ICMP echo requests.
type echo struct {
	conn net.PacketConn
	name string
	v6   bool
	id   uint16
	buf  [256]byte
}

// openEcho opens a raw socket that is bound to the interface: an answer that
// comes another way is none.
func openEcho(name string, v6 bool) (socket, error) {
	network, any := "ip4:icmp", "0.0.0.0"
	if v6 {
		network, any = "ip6:ipv6-icmp", "::"
	}
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var failed error
		err := raw.Control(func(fd uintptr) { failed = unix.BindToDevice(int(fd), name) })
		if err == nil {
			err = failed
		}
		return err
	}}
	conn, err := config.ListenPacket(context.Background(), network, any)
	if err != nil {
		return nil, fmt.Errorf("probe by ICMP on %s: %w", name, err)
	}
	return &echo{conn: conn, name: name, v6: v6, id: uint16(rand.Uint32())}, nil
}

func (e *echo) ask(a netip.Addr) error {
	b := []byte{echoRequest4, 0, 0, 0, 0, 0, 0, 1}
	if e.v6 {
		b[0] = echoRequest6 // the kernel fills in its checksum (RFC 3542 §3.1)
	}
	binary.BigEndian.PutUint16(b[4:], e.id)
	if !e.v6 {
		binary.BigEndian.PutUint16(b[2:], wire.Checksum(b))
	}
	_, err := e.conn.WriteTo(b, &net.IPAddr{IP: a.AsSlice()})
	return err
}

func (e *echo) read() (netip.Addr, string, error) {
	n, from, err := e.conn.ReadFrom(e.buf[:])
	if err != nil {
		return netip.Addr{}, "", err
	}
	ip, ok := from.(*net.IPAddr)
	reply := byte(echoReply4)
	if e.v6 {
		reply = echoReply6
	}
	if !ok || n < 8 || e.buf[0] != reply || binary.BigEndian.Uint16(e.buf[4:]) != e.id {
		return netip.Addr{}, "", nil
	}
	a, _ := netip.AddrFromSlice(ip.IP)
	return a.Unmap(), "answers a ping on " + e.name, nil
}

func (e *echo) deadline(t time.Time) error { return e.conn.SetReadDeadline(t) }
func (e *echo) close()                     { _ = e.conn.Close() }
