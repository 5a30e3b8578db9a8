package probe

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/mdlayher/packet"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/slash32/slash32/pkg/mac"
	"github.com/slash32/slash32/pkg/wire"
)

// link asks by ARP or Neighbour Discovery.
type link struct {
	conn *packet.Conn
	name string
	own  mac.Addr
	v6   bool
	buf  [256]byte
}

// openLink opens a packet socket that sees ARP, or neighbour advertisements, only.
func openLink(name string, v6 bool) (socket, error) {
	ifi, err := ethernet(name)
	if err != nil {
		return nil, fmt.Errorf("probe on %s: %w", name, err)
	}
	program := []bpf.Instruction{
		bpf.LoadAbsolute{Off: 12, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: wire.EtherTypeARP, SkipTrue: 1},
		bpf.RetConstant{Val: 0},
		bpf.RetConstant{Val: 256},
	}
	protocol := unix.ETH_P_ARP
	if v6 {
		protocol = unix.ETH_P_IPV6
		program = []bpf.Instruction{
			bpf.LoadAbsolute{Off: wire.EtherLen + 6, Size: 1},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: wire.ProtoICMPv6, SkipTrue: 1},
			bpf.RetConstant{Val: 0},
			bpf.LoadAbsolute{Off: wire.EtherLen + wire.IPv6Len, Size: 1},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: wire.ICMP6NeighbourAdvert, SkipTrue: 1},
			bpf.RetConstant{Val: 0},
			bpf.RetConstant{Val: 256},
		}
	}
	filter, err := bpf.Assemble(program)
	if err != nil {
		return nil, fmt.Errorf("probe on %s: assemble the filter: %w", name, err)
	}
	conn, err := packet.Listen(ifi, packet.Raw, protocol, &packet.Config{Filter: filter})
	if err != nil {
		return nil, fmt.Errorf("probe on %s: %w", name, err)
	}
	return &link{conn: conn, name: name, own: mac.Addr(ifi.HardwareAddr), v6: v6}, nil
}

// ethernet finds an Ethernet interface that frames can be sent on.
func ethernet(name string) (*net.Interface, error) {
	ifi, err := net.InterfaceByName(name)
	switch {
	case err != nil:
		return nil, err
	case len(ifi.HardwareAddr) != 6:
		return nil, errors.New("it is not an Ethernet interface")
	case ifi.Flags&net.FlagUp == 0:
		return nil, errors.New("it is down")
	case ifi.Flags&net.FlagRunning == 0:
		return nil, errors.New("it has no carrier")
	}
	return ifi, nil
}

func (l *link) ask(a netip.Addr) error {
	frame, to := arpProbe(l.own, a), mac.Broadcast
	if l.v6 {
		frame, to = dadSolicit(l.own, a), wire.MulticastMAC(wire.SolicitedNode(a))
	}
	_, err := l.conn.WriteTo(frame, &packet.Addr{HardwareAddr: to[:]})
	return err
}

// arpProbe is a request without a sender's address, which no cache is spoilt by
// (RFC 5227 §2.1.1).
func arpProbe(own mac.Addr, a netip.Addr) []byte {
	b := wire.AppendEther(nil, wire.Ether{Dst: mac.Broadcast, Src: own, Type: wire.EtherTypeARP})
	return wire.AppendARP(b, wire.ARP{Op: wire.ARPRequest, SenderMAC: own, Sender: netip.IPv4Unspecified(), Target: a})
}

// dadSolicit is what a host sends before it uses a: from the unspecified address
// and without its own link-layer address (RFC 4862 §5.4.2).
func dadSolicit(own mac.Addr, a netip.Addr) []byte {
	group := wire.SolicitedNode(a)
	message := wire.AppendNS(nil, a)
	b := wire.AppendEther(nil, wire.Ether{Dst: wire.MulticastMAC(group), Src: own, Type: wire.EtherTypeIPv6})
	ip := len(b)
	b = wire.AppendIPv6(b, wire.IPv6{Src: netip.IPv6Unspecified(), Dst: group, Proto: wire.ProtoICMPv6, HopLimit: wire.NDHopLimit}, len(message))
	b = append(b, message...)
	wire.SetICMP6Checksum(b[ip+8:ip+wire.IPv6Len], b[ip+wire.IPv6Len:])
	return b
}

func (l *link) read() (netip.Addr, string, error) {
	n, _, err := l.conn.ReadFrom(l.buf[:])
	if err != nil {
		return netip.Addr{}, "", err
	}
	a, by, how := owner(l.buf[:n])
	if !a.IsValid() || by == l.own {
		return netip.Addr{}, "", nil
	}
	return a, fmt.Sprintf("%s at %s on %s", how, by, l.name), nil
}

// owner reads from any frame who says to have which address, or is about to take
// it, and how: the sender of an ARP packet or the target of its probe (RFC 5227
// §2.1.1), the target of a neighbour advertisement.
func owner(frame []byte) (a netip.Addr, by mac.Addr, how string) {
	eth, b, ok := wire.ParseEther(frame)
	switch {
	case !ok:
	case eth.Type == wire.EtherTypeARP:
		p, ok := wire.ParseARP(b)
		switch {
		case !ok:
		case !p.Sender.IsUnspecified():
			return p.Sender, p.SenderMAC, "answers ARP"
		case p.Op == wire.ARPRequest:
			return p.Target, p.SenderMAC, "probes for it by ARP, too,"
		}
	case eth.Type == wire.EtherTypeIPv6:
		ip, b, ok := wire.ParseIPv6(b)
		// RFC 4861 §7.1.2; the target follows four bytes of header and flags.
		if ok && ip.Proto == wire.ProtoICMPv6 && ip.HopLimit == wire.NDHopLimit && len(b) >= 24 && b[0] == wire.ICMP6NeighbourAdvert {
			return netip.AddrFrom16([16]byte(b[8:24])), eth.Src, "answers Neighbour Discovery"
		}
	}
	return netip.Addr{}, mac.Addr{}, ""
}

func (l *link) deadline(t time.Time) error { return l.conn.SetReadDeadline(t) }
func (l *link) close()                     { _ = l.conn.Close() }
