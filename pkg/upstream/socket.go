package upstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// The ports and the group of servers and relays (RFC 8415 §7.1, §7.2).
const (
	clientPort = 546
	serverPort = 547
)

var servers = netip.MustParseAddr("ff02::1:2")

// socket is the way to the servers of an interface.
type socket struct {
	*net.UDPConn
	to netip.AddrPort
	hw net.HardwareAddr
}

// open makes a socket at the interface's link-local address, in the network
// namespace of the calling thread.
func open(link string) (*socket, error) {
	i, err := net.InterfaceByName(link)
	if err != nil {
		return nil, fmt.Errorf("find the interface: %w", err)
	}
	if i.Flags&net.FlagUp == 0 {
		return nil, errors.New("the interface is down")
	}
	addrs, err := i.Addrs()
	if err != nil {
		return nil, fmt.Errorf("read its addresses: %w", err)
	}
	// Not the name: the library remembers numbers of names, of another namespace's
	// or of an interface that is gone.
	zone := strconv.Itoa(i.Index)
	var own netip.Addr
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is6() && p.Addr().IsLinkLocalUnicast() {
			own = p.Addr().WithZone(zone)
			break
		}
	}
	if !own.IsValid() {
		return nil, errors.New("the interface has no link-local address")
	}
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var failed error
		err := raw.Control(func(fd uintptr) { failed = unix.BindToDevice(int(fd), link) })
		return errors.Join(err, failed)
	}}
	c, err := config.ListenPacket(context.Background(), "udp6", netip.AddrPortFrom(own, clientPort).String())
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return nil, fmt.Errorf("%w. Fix: stop the other DHCPv6 client of this interface (dhclient, dhcpcd, systemd-networkd, NetworkManager)", err)
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return nil, fmt.Errorf("its link-local address is not usable yet: %w", err)
	case err != nil:
		return nil, err
	}
	return &socket{c.(*net.UDPConn), netip.AddrPortFrom(servers.WithZone(zone), serverPort), i.HardwareAddr}, nil
}

func (s *socket) send(b []byte) error {
	_, err := s.WriteToUDPAddrPort(b, s.to)
	return err
}

// receive hands on what arrives, until the socket is closed or fails, and returns
// why. What is longer than any message is left out.
func (s *socket) receive(ctx context.Context, got chan<- []byte) error {
	b := make([]byte, maxMessage+1)
	for {
		n, _, err := s.ReadFromUDPAddrPort(b)
		if err != nil {
			return err
		}
		if n > maxMessage {
			continue
		}
		select {
		case got <- append([]byte(nil), b[:n]...):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
