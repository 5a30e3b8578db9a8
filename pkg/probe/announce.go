package probe

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/mdlayher/packet"

	"github.com/slash32/slash32/pkg/mac"
	"github.com/slash32/slash32/pkg/wire"
)

// How often an address is announced, and how long apart:
// MAX_NEIGHBOR_ADVERTISEMENT and RetransTimer (RFC 4861 §7.2.6, §10).
const (
	announceTimes = 3
	announceEvery = time.Second
)

// Announce tells the neighbours on an interface that addresses are to be found at
// its link-layer address now: by unsolicited neighbour advertisements to all nodes
// with the Override flag, as for a host that another node answers for (RFC 4861
// §7.2.6, RFC 6275 §10.4.1), and by ARP announcements (RFC 5227 §2.3). Three times,
// a second apart, or until ctx ends, whose error it then returns.
func Announce(ctx context.Context, link string, addrs []netip.Addr) error {
	return announce(ctx, link, addrs, announceEvery)
}

func announce(ctx context.Context, link string, addrs []netip.Addr, every time.Duration) error {
	ifi, err := ethernet(link)
	if err != nil {
		return fmt.Errorf("announce on %s: %w", link, err)
	}
	conn, err := packet.Listen(ifi, packet.Raw, 0, nil) // protocol 0: it hears nothing
	if err != nil {
		return fmt.Errorf("announce on %s: %w", link, err)
	}
	defer conn.Close()
	own := mac.Addr(ifi.HardwareAddr)
	from := linkLocal(ifi)
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for i := range announceTimes {
		if i > 0 {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-ticker.C:
			}
		}
		for _, a := range addrs {
			frame := arpAnnouncement(own, a)
			if a.Is6() {
				frame = advertisement(own, from, a)
			}
			if _, err := conn.WriteTo(frame, &packet.Addr{HardwareAddr: net.HardwareAddr(frame[:6])}); err != nil {
				return fmt.Errorf("announce %s on %s: %w", a, link, err)
			}
		}
	}
	return nil
}

// linkLocal is the interface's link-local address; not valid: it has none.
func linkLocal(ifi *net.Interface) netip.Addr {
	addrs, err := ifi.Addrs()
	if err != nil {
		return netip.Addr{}
	}
	for _, x := range addrs {
		if p, ok := x.(*net.IPNet); ok {
			if a, ok := netip.AddrFromSlice(p.IP); ok && a.Is6() && a.IsLinkLocalUnicast() {
				return a
			}
		}
	}
	return netip.Addr{}
}

// arpAnnouncement is a request from a for itself.
func arpAnnouncement(own mac.Addr, a netip.Addr) []byte {
	b := wire.AppendEther(nil, wire.Ether{Dst: mac.Broadcast, Src: own, Type: wire.EtherTypeARP})
	return wire.AppendARP(b, wire.ARP{Op: wire.ARPRequest, SenderMAC: own, Sender: a, Target: a})
}

// advertisement is an unsolicited neighbour advertisement. Its source is an
// address of the interface, or the one that is announced.
func advertisement(own mac.Addr, from, a netip.Addr) []byte {
	if !from.IsValid() {
		from = a
	}
	all := netip.IPv6LinkLocalAllNodes()
	message := wire.AppendNA(nil, wire.NAOverride, a, own)
	b := wire.AppendEther(nil, wire.Ether{Dst: wire.MulticastMAC(all), Src: own, Type: wire.EtherTypeIPv6})
	ip := len(b)
	b = wire.AppendIPv6(b, wire.IPv6{Src: from, Dst: all, Proto: wire.ProtoICMPv6, HopLimit: wire.NDHopLimit}, len(message))
	b = append(b, message...)
	wire.SetICMP6Checksum(b[ip+8:ip+wire.IPv6Len], b[ip+wire.IPv6Len:])
	return b
}
