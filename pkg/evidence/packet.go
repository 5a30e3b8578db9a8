package evidence

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/slash32/slash32/pkg/mac"
	"github.com/slash32/slash32/pkg/wire"
)

// reason is why a packet was dropped, by the name of the set that counts it.
func reason(set string) string {
	texts := map[string]string{
		"spoof4":    "for its IPv4 source",
		"spoof6":    "for its IPv6 source",
		"spoof_mac": "for its MAC address",
		"spoof_arp": "ARP whose sender is not the guest",
		"spoof_nd":  "neighbour discovery for what is not the guest's",
		"rogue_ra":  "a router advertisement",
		"redirects": "a redirect",
		"rogue":     "a DHCP server's message",
		"apart":     "to others, since its network is isolated",
		"closed":    "to a service of the host that is not open to guests",
	}
	if t := texts[set]; t != "" {
		return t
	}
	return fmt.Sprintf("for %.32q", set)
}

// Packet is the beginning of one packet. All of it is the guest's to choose.
type Packet struct {
	Protocol uint16 // EtherType
	Header   []byte // Ethernet, where there is one
	Data     []byte // from the network header on, cut anywhere
}

// String is the packet on one line, of addresses and numbers only.
func (p Packet) String() string {
	s := ""
	switch {
	case p.Protocol == unix.ETH_P_ARP:
		s = p.arp()
	case len(p.Data) > 0 && p.Data[0]>>4 == 4:
		s = p.ipv4()
	case len(p.Data) > 0 && p.Data[0]>>4 == 6:
		s = p.ipv6()
	}
	if s == "" {
		s = fmt.Sprintf("%d bytes of protocol %#04x", len(p.Data), p.Protocol)
	}
	if len(p.Header) >= 12 {
		s += ", from " + mac.Addr(p.Header[6:12]).String()
	}
	return s
}

func (p Packet) arp() string {
	a, ok := wire.ParseARP(p.Data)
	if !ok {
		return "ARP that is not of Ethernet and IPv4"
	}
	return fmt.Sprintf("ARP operation %d, sender %s at %s, target %s", a.Op, a.Sender, a.SenderMAC, a.Target)
}

func (p Packet) ipv4() string {
	const header = 20
	if len(p.Data) < header {
		return ""
	}
	src, _ := netip.AddrFromSlice(p.Data[12:16])
	dst, _ := netip.AddrFromSlice(p.Data[16:20])
	var payload []byte
	if n := int(p.Data[0]&0xf) * 4; n >= header && n <= len(p.Data) {
		payload = p.Data[n:]
	}
	fragment := binary.BigEndian.Uint16(p.Data[6:])
	if fragment&0x1fff != 0 {
		payload = nil // not its first
	}
	return between(src, dst, p.Data[9], payload) + map[bool]string{true: ", a fragment"}[fragment&0x3fff != 0]
}

func (p Packet) ipv6() string {
	const header = 40
	if len(p.Data) < header {
		return ""
	}
	src, _ := netip.AddrFromSlice(p.Data[8:24])
	dst, _ := netip.AddrFromSlice(p.Data[24:40])
	return between(src, dst, p.Data[6], p.Data[header:])
}

// between is who sends what to whom, with ports or type where payload has them.
func between(src, dst netip.Addr, proto byte, payload []byte) string {
	names := map[byte]string{unix.IPPROTO_TCP: "TCP", unix.IPPROTO_UDP: "UDP", unix.IPPROTO_ICMP: "ICMP", unix.IPPROTO_ICMPV6: "ICMPv6"}
	s := fmt.Sprintf("%s > %s, ", src, dst)
	switch name := names[proto]; {
	case name == "":
		return s + fmt.Sprintf("IP protocol %d", proto)
	case len(payload) < 4:
		return s + name
	case proto == unix.IPPROTO_TCP || proto == unix.IPPROTO_UDP:
		return s + fmt.Sprintf("%s %d > %d", name, binary.BigEndian.Uint16(payload), binary.BigEndian.Uint16(payload[2:]))
	default:
		return s + fmt.Sprintf("%s type %d", name, payload[0])
	}
}
