package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/slash32/slash32/pkg/intent"
)

// What golang.org/x/sys/unix lacks of linux/inet_diag.h and net/tcp_states.h.
const (
	diagRequestLength = 56 // struct inet_diag_req_v2
	diagMessageLength = 72 // struct inet_diag_msg
	diagV6Only        = 11 // INET_DIAG_SKV6ONLY
	stateClose        = 7  // TCP_CLOSE: of UDP, a socket that is not connected
	stateListen       = 10 // TCP_LISTEN
)

// Listeners lists the ports that programs in the namespace listen on: TCP sockets
// that listen, UDP sockets that anybody may send to. The kernel leaves out the
// connections, however many there are. It takes no privilege.
func (k *Kernel) Listeners(ctx context.Context) ([]intent.Listener, error) {
	var c *conn
	err := k.inside(func() (err error) {
		c, err = dial(unix.NETLINK_SOCK_DIAG)
		return err
	})
	if err != nil {
		return nil, err
	}
	defer c.close()
	var all []intent.Listener
	for _, proto := range []struct {
		number byte
		state  int
	}{{unix.IPPROTO_TCP, stateListen}, {unix.IPPROTO_UDP, stateClose}} {
		for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
			fixed := make([]byte, diagRequestLength)
			fixed[0], fixed[1] = family, proto.number
			copy(fixed[4:], host32(1<<proto.state))
			var got []intent.Listener
			err := c.dump(ctx, newMessage(unix.SOCK_DIAG_BY_FAMILY, 0, fixed), func() { got = nil }, func(typ uint16, b []byte) {
				if l, ok := parseListener(b); ok && typ == unix.SOCK_DIAG_BY_FAMILY {
					l.Proto = proto.number
					got = append(got, l)
				}
			})
			if errors.Is(err, unix.ENOENT) && family == unix.AF_INET6 { // a kernel without IPv6
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("list the ports that the host listens on: %w", err)
			}
			all = append(all, got...)
		}
	}
	return all, nil
}

// parseListener reads a struct inet_diag_msg. One without a port is not bound.
func parseListener(b []byte) (intent.Listener, bool) {
	if len(b) < diagMessageLength {
		return intent.Listener{}, false
	}
	var l intent.Listener
	port := binary.BigEndian.Uint16(b[4:])
	switch b[0] {
	case unix.AF_INET:
		l.Addr = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[8:])), port)
	case unix.AF_INET6:
		l.Addr = netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[8:])).Unmap(), port)
		l.Both = l.Addr.Addr() == netip.IPv6Unspecified()
		attrs(b[diagMessageLength:], func(typ uint16, d []byte) {
			if typ == diagV6Only && len(d) > 0 && d[0] != 0 {
				l.Both = false
			}
		})
	}
	return l, l.Addr.IsValid() && port != 0
}
