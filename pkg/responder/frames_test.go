package responder_test

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/slash32/slash32/pkg/mac"
	"github.com/slash32/slash32/pkg/marks"
	"github.com/slash32/slash32/pkg/responder"
	"github.com/slash32/slash32/pkg/wire"
)

var (
	ip = netip.MustParseAddr

	guestMAC   = mac.MustParse("52:54:00:ab:cd:01")
	strangeMAC = mac.MustParse("52:54:00:ab:cd:99")
	gatewayMAC = mac.MustParse(marks.GatewayMAC)
	guest4     = ip("203.0.113.42")
	extra4     = ip("203.0.113.43")
	gateway4   = ip("169.254.0.1")
	guest6     = ip("2001:db8:1::42")
	second6    = ip("2001:db8:1::43")
	guestLL    = ip("fe80::5054:ff:feab:cd01")
	gateway6   = ip("fe80::1")
	zero4      = netip.IPv4Unspecified()
	zero6      = netip.IPv6Unspecified()
	all4       = ip("255.255.255.255")
	agents6    = ip("ff02::1:2")
	strange4   = ip("192.0.2.7")
	strange6   = ip("2001:db8:bad::1")
	clientDUID = "\x00\x01\x00\x01\x2a\x2b\x2c\x2d\x52\x54\x00\xab\xcd\x01"
)

// fullNIC is a binding with everything in it.
func fullNIC() responder.NIC {
	return responder.NIC{
		Bridge: "sl-web1", GuestMAC: guestMAC, GatewayMAC: gatewayMAC, MTU: 1500,
		Hostname: "web1", Domain: "example.org", Search: []string{"example.org", "eng.example.org"},
		V4: responder.V4{
			Addr: guest4, Extra: []netip.Addr{extra4}, Gateway: gateway4,
			Routes: []netip.Prefix{netip.MustParsePrefix("10.20.0.0/16")},
			DNS:    []netip.Addr{ip("9.9.9.9"), ip("1.1.1.1")},
			NTP:    []netip.Addr{ip("203.0.113.1")},
			Lease:  3600, T1: 1800, T2: 3150,
			Client: "routed",
		},
		V6: responder.V6{
			Gateway: gateway6, Addrs: []netip.Addr{guest6, second6},
			Routes:    []netip.Prefix{netip.MustParsePrefix("2001:db8:aa::/48")},
			DNS:       []netip.Addr{ip("2620:fe::fe")},
			NTP:       []netip.Addr{ip("2001:db8::123")},
			Preferred: 3600, Valid: 7200, RouterLifetime: 1800,
		},
	}
}

func mustCompile(t testing.TB, n responder.NIC) *responder.Link {
	t.Helper()
	l, err := responder.Compile(n)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func ether(dst mac.Addr, typ uint16, payload []byte) []byte {
	return append(wire.AppendEther(nil, wire.Ether{Dst: dst, Src: guestMAC, Type: typ}), payload...)
}

func arpFrame(dst mac.Addr, p wire.ARP) []byte {
	if p.Op == 0 {
		p.Op = wire.ARPRequest
	}
	if p.SenderMAC.IsZero() {
		p.SenderMAC = guestMAC
	}
	return ether(dst, wire.EtherTypeARP, wire.AppendARP(nil, p))
}

func ip6Frame(src, dst netip.Addr, proto, hops uint8, payload []byte) []byte {
	to := gatewayMAC
	if dst.IsMulticast() {
		to = wire.MulticastMAC(dst)
	}
	b := wire.AppendIPv6(nil, wire.IPv6{Src: src, Dst: dst, Proto: proto, HopLimit: hops}, len(payload))
	return ether(to, wire.EtherTypeIPv6, append(b, payload...))
}

// ndMessage is an ICMPv6 message without target; its checksum stays wrong, as
// an offloading NIC would leave it.
func ndMessage(typ uint8, options ...byte) []byte {
	return append([]byte{typ, 0, 0xde, 0xad, 0, 0, 0, 0}, options...)
}

func nsMessage(target netip.Addr, options ...byte) []byte {
	t := target.As16()
	return append(append([]byte{wire.ICMP6NeighbourSolicit, 0, 0xde, 0xad, 0, 0, 0, 0}, t[:]...), options...)
}

func linkOption() []byte { return wire.AppendNDLink(nil, wire.OptNDSourceLink, guestMAC) }

func udp4Frame(src, dst netip.Addr, ports wire.UDP, payload []byte) []byte {
	to := gatewayMAC
	if dst == all4 {
		to = mac.Broadcast
	}
	b := wire.AppendIPv4(nil, wire.IPv4{Src: src, Dst: dst, Proto: wire.ProtoUDP, TTL: 64}, wire.UDPLen+len(payload))
	b = wire.AppendUDP(b, ports, len(payload))
	return ether(to, wire.EtherTypeIPv4, append(b, payload...))
}

// client4 is a DHCPv4 client's message.
type client4 struct {
	kind     uint8
	m        wire.DHCP4 // Op, XID and CHAddr have defaults
	src, dst netip.Addr // default 0.0.0.0 to broadcast
	options  string     // after the message type, without end
}

func (c client4) payload() []byte {
	if c.m.Op == 0 {
		c.m.Op = 1
	}
	if c.m.CHAddr.IsZero() {
		c.m.CHAddr = guestMAC
	}
	if c.m.XID == 0 {
		c.m.XID = 0x11223344
	}
	b := wire.AppendDHCP4(nil, c.m)
	if c.kind != 0 {
		b = wire.AppendOption4(b, wire.Opt4MessageType, []byte{c.kind})
	}
	return append(append(b, c.options...), wire.Opt4End)
}

func (c client4) frame() []byte {
	if !c.src.IsValid() {
		c.src = zero4
	}
	if !c.dst.IsValid() {
		c.dst = all4
	}
	return udp4Frame(c.src, c.dst, wire.UDP{Src: 68, Dst: 67}, c.payload())
}

func opt4(code uint8, data string) string {
	return string(wire.AppendOption4(nil, code, []byte(data)))
}

func opt4Addr(code uint8, a netip.Addr) string { return opt4(code, string(wire.AppendAddrs4(nil, a))) }

// client6 is a DHCPv6 client's message.
type client6 struct {
	kind     uint8
	src, dst netip.Addr // default the guest's link-local address to ff02::1:2
	options  string
}

func (c client6) frame() []byte {
	if !c.src.IsValid() {
		c.src = guestLL
	}
	if !c.dst.IsValid() {
		c.dst = agents6
	}
	b := append(wire.AppendDHCP6(nil, wire.DHCP6{Type: c.kind, XID: 0x112233}), c.options...)
	return ip6Frame(c.src, c.dst, wire.ProtoUDP, 1, append(wire.AppendUDP(nil, wire.UDP{Src: 546, Dst: 547}, len(b)), b...))
}

func opt6(code uint16, data string) string {
	return string(wire.AppendOption6(nil, code, []byte(data)))
}

func ia6(code uint16, iaid uint32, options ...string) string {
	b := wire.BeginIA6(nil, wire.IA6{Code: code, IAID: iaid})
	for _, o := range options {
		b = append(b, o...)
	}
	return string(wire.EndOption6(b, 0))
}

func addr6(a netip.Addr) string {
	return string(wire.AppendIAAddr6(nil, wire.IAAddr6{Addr: a, Preferred: 1, Valid: 2}))
}

func prefix6(p string) string {
	return string(wire.AppendIAPrefix6(nil, wire.IAPrefix6{Preferred: 1, Valid: 2, Prefix: netip.MustParsePrefix(p)}))
}

func oro6(codes ...uint16) string {
	var b []byte
	for _, c := range codes {
		b = binary.BigEndian.AppendUint16(b, c)
	}
	return opt6(wire.Opt6OptionRequest, string(b))
}

// message is one frame of the guest and what has to become of it.
type message struct {
	name  string
	frame []byte
	want  responder.Verdict
}

// messages has one of every kind, for the goldens, the fuzz seeds, the
// allocation test and the benchmarks. They are meant for fullNIC.
func messages() []message {
	m := append(linkMessages(), arpMessages()...)
	m = append(m, ndMessages()...)
	m = append(m, dhcp4Messages()...)
	return append(m, dhcp6Messages()...)
}

func linkMessages() []message {
	discover := client4{kind: wire.DHCP4Discover}.frame()
	foreign := append([]byte(nil), discover...)
	copy(foreign[6:12], strangeMAC[:])
	fragment := append([]byte(nil), discover...)
	fragment[wire.EtherLen+6] = 0x20
	short := append([]byte(nil), discover...)
	binary.BigEndian.PutUint16(short[wire.EtherLen+wire.IPv4Len+4:], 1400)
	return []message{
		{"empty", nil, responder.Truncated},
		{"short_ether", discover[:13], responder.Truncated},
		{"short_ip", discover[:30], responder.Truncated},
		{"short_dhcp", discover[:200], responder.Truncated},
		{"udp_longer_than_packet", short, responder.Truncated},
		{"vlan_cut", discover[:wire.TaggedLen], responder.VLAN},
		{"vlan", append(append(append([]byte(nil), discover[:12]...), 0x81, 0, 0, 5), discover[12:]...), responder.VLAN},
		{"foreign", foreign, responder.Foreign},
		{"fragment4", fragment, responder.Fragment},
		{"fragment6", ip6Frame(guestLL, agents6, 44, 1, make([]byte, 40)), responder.Fragment},
		{"lldp", ether(mac.MustParse("01:80:c2:00:00:0e"), 0x88cc, make([]byte, 46)), responder.NotOurs},
		{"mdns", udp4Frame(guest4, ip("224.0.0.251"), wire.UDP{Src: 5353, Dst: 5353}, make([]byte, 12)), responder.NotOurs},
		{"dns_to_gateway", udp4Frame(guest4, gateway4, wire.UDP{Src: 5000, Dst: 53}, make([]byte, 12)), responder.NotOurs},
		{"icmp4", ether(gatewayMAC, wire.EtherTypeIPv4, wire.AppendIPv4(nil, wire.IPv4{Src: guest4, Dst: gateway4, Proto: 1, TTL: 64}, 0)), responder.NotOurs},
		{"short_ip6", ether(gatewayMAC, wire.EtherTypeIPv6, make([]byte, 39)), responder.Truncated},
		{"short_icmp6", ip6Frame(guestLL, gateway6, wire.ProtoICMPv6, 255, []byte{135, 0, 0}), responder.Truncated},
		{"short_udp6", ip6Frame(guestLL, agents6, wire.ProtoUDP, 1, make([]byte, 7)), responder.Truncated},
		{"dns6_to_gateway", ip6Frame(guestLL, gateway6, wire.ProtoUDP, 64, wire.AppendUDP(nil, wire.UDP{Src: 5000, Dst: 53}, 0)), responder.NotOurs},
		{"ping6", ip6Frame(guestLL, gateway6, wire.ProtoICMPv6, 64, ndMessage(128)), responder.NotOurs},
		{"tcp6", ip6Frame(guestLL, gateway6, 6, 64, make([]byte, 20)), responder.NotOurs},
	}
}

func arpMessages() []message {
	return []message{
		{"arp_gateway", arpFrame(mac.Broadcast, wire.ARP{Sender: guest4, Target: gateway4}), responder.ARPReply},
		{"arp_gateway_unicast", arpFrame(gatewayMAC, wire.ARP{Sender: guest4, TargetMAC: gatewayMAC, Target: gateway4}), responder.ARPReply},
		{"arp_probe_gateway", arpFrame(mac.Broadcast, wire.ARP{Sender: zero4, Target: gateway4}), responder.ARPReply},
		{"arp_probe_own", arpFrame(mac.Broadcast, wire.ARP{Sender: zero4, Target: guest4}), responder.ARPOwn},
		{"arp_probe_extra", arpFrame(mac.Broadcast, wire.ARP{Sender: zero4, Target: extra4}), responder.ARPOwn},
		{"arp_announcement", arpFrame(mac.Broadcast, wire.ARP{Sender: guest4, Target: guest4}), responder.ARPAnnouncement},
		{"arp_claims_gateway", arpFrame(mac.Broadcast, wire.ARP{Sender: gateway4, Target: gateway4}), responder.ARPAnnouncement},
		{"arp_other", arpFrame(mac.Broadcast, wire.ARP{Sender: guest4, Target: strange4}), responder.ARPOther},
		{"arp_is_reply", arpFrame(gatewayMAC, wire.ARP{Op: wire.ARPReply, Sender: guest4, Target: gateway4}), responder.ARPNotRequest},
		{"arp_foreign", arpFrame(mac.Broadcast, wire.ARP{SenderMAC: strangeMAC, Sender: guest4, Target: gateway4}), responder.ARPForeign},
		{"arp_short", arpFrame(mac.Broadcast, wire.ARP{Sender: guest4, Target: gateway4})[:41], responder.ARPMalformed},
	}
}

func ndMessages() []message {
	nd := func(src, dst netip.Addr, b []byte) []byte { return ip6Frame(src, dst, wire.ProtoICMPv6, 255, b) }
	toGateway := wire.SolicitedNode(gateway6)
	routers := ip("ff02::2")
	return []message{
		{"ns_gateway", nd(guestLL, toGateway, nsMessage(gateway6, linkOption()...)), responder.NDAdvert},
		{"ns_gateway_global_source", nd(guest6, toGateway, nsMessage(gateway6, linkOption()...)), responder.NDAdvert},
		{"ns_gateway_unicast", nd(guestLL, gateway6, nsMessage(gateway6)), responder.NDAdvert},
		{"ns_dad_gateway", nd(zero6, toGateway, nsMessage(gateway6)), responder.NDDefend},
		{"ns_dad_own", nd(zero6, wire.SolicitedNode(guest6), nsMessage(guest6)), responder.NDOwn},
		{"ns_dad_link_local", nd(zero6, wire.SolicitedNode(guestLL), nsMessage(guestLL)), responder.NDOwn},
		{"ns_other", nd(guestLL, wire.SolicitedNode(strange6), nsMessage(strange6, linkOption()...)), responder.NDOther},
		{"ns_dad_with_link", nd(zero6, toGateway, nsMessage(gateway6, linkOption()...)), responder.NDMalformed},
		{"ns_dad_unicast", nd(zero6, gateway6, nsMessage(gateway6)), responder.NDMalformed},
		{"ns_from_group", nd(ip("ff02::1"), toGateway, nsMessage(gateway6)), responder.NDMalformed},
		{"ns_hop_limit", ip6Frame(guestLL, toGateway, wire.ProtoICMPv6, 254, nsMessage(gateway6)), responder.NDHopLimit},
		{"ns_short", nd(guestLL, toGateway, nsMessage(gateway6)[:23]), responder.NDMalformed},
		{"na", nd(guestLL, gateway6, wire.AppendNA(nil, wire.NASolicited, guestLL, guestMAC)), responder.NDNotSolicit},
		{"ra_rogue", nd(guestLL, ip("ff02::1"), wire.AppendRA(nil, wire.RA{Lifetime: 1800})), responder.NDRogueRA},
		{"rs", nd(guestLL, routers, ndMessage(133, linkOption()...)), responder.RAReply},
		{"rs_unspecified", nd(zero6, routers, ndMessage(133)), responder.RAMulticast},
		{"rs_unspecified_with_link", nd(zero6, routers, ndMessage(133, linkOption()...)), responder.NDMalformed},
		{"rs_bad_option", nd(guestLL, routers, ndMessage(133, 1, 0)), responder.NDMalformed},
	}
}

func dhcp4Messages() []message {
	id := opt4(wire.Opt4ClientID, "\xff\x01\x02\x03\x04\x00\x02client")
	ours, wanted := opt4Addr(wire.Opt4ServerID, gateway4), opt4Addr(wire.Opt4RequestedIP, guest4)
	wrong := opt4Addr(wire.Opt4RequestedIP, strange4)
	has := func(a netip.Addr) wire.DHCP4 { return wire.DHCP4{CIAddr: a} }
	return []message{
		{"discover", client4{kind: wire.DHCP4Discover, options: id}.frame(), responder.DHCP4Offer},
		{"discover_broadcast", client4{kind: wire.DHCP4Discover, m: wire.DHCP4{Flags: wire.DHCP4Broadcast}}.frame(), responder.DHCP4Offer},
		{"discover_msft", client4{kind: wire.DHCP4Discover, options: opt4(wire.Opt4VendorClass, "MSFT 5.0")}.frame(), responder.DHCP4Offer},
		{"discover_asks_249", client4{kind: wire.DHCP4Discover, options: opt4(wire.Opt4ParameterList, "\x01\x03\xf9")}.frame(), responder.DHCP4Offer},
		{"request_selecting", client4{kind: wire.DHCP4Request, options: ours + wanted + id}.frame(), responder.DHCP4Ack},
		{"request_selecting_wrong", client4{kind: wire.DHCP4Request, options: ours + wrong + id}.frame(), responder.DHCP4Nak},
		{"request_other_server", client4{kind: wire.DHCP4Request, options: opt4Addr(wire.Opt4ServerID, strange4) + wanted}.frame(), responder.DHCP4OtherServer},
		{"request_reboot", client4{kind: wire.DHCP4Request, options: wanted}.frame(), responder.DHCP4AckReboot},
		{"request_reboot_wrong", client4{kind: wire.DHCP4Request, options: wrong}.frame(), responder.DHCP4Nak},
		{"request_renew", client4{kind: wire.DHCP4Request, m: has(guest4), src: guest4, dst: gateway4}.frame(), responder.DHCP4AckRenew},
		{"request_renew_wrong", client4{kind: wire.DHCP4Request, m: has(strange4), src: strange4, dst: gateway4}.frame(), responder.DHCP4Nak},
		{"request_renew_elsewhere", client4{kind: wire.DHCP4Request, m: has(guest4), src: guest4, dst: strange4}.frame(), responder.NotOurs},
		{"request_rebind", client4{kind: wire.DHCP4Request, m: has(guest4), src: guest4}.frame(), responder.DHCP4AckRebind},
		{"request_rebind_wrong", client4{kind: wire.DHCP4Request, m: has(strange4), src: strange4}.frame(), responder.DHCP4Nak},
		{"request_for_nothing", client4{kind: wire.DHCP4Request, options: ours}.frame(), responder.DHCP4Malformed},
		{"inform", client4{kind: wire.DHCP4Inform, m: has(extra4), src: extra4}.frame(), responder.DHCP4AckInform},
		{"inform_without_ciaddr", client4{kind: wire.DHCP4Inform}.frame(), responder.DHCP4AckInform},
		{"decline", client4{kind: wire.DHCP4Decline, options: ours + wanted}.frame(), responder.DHCP4Decline},
		{"release", client4{kind: wire.DHCP4Release, m: has(guest4), src: guest4, dst: gateway4, options: ours}.frame(), responder.DHCP4Release},
		{"discover_preferences", client4{kind: wire.DHCP4Discover, options: id + opt4(wire.Opt4ParameterList, "\x2a\x06\x79\x03\x01\x77\xfb")}.frame(), responder.DHCP4Offer},
		{"discover_fqdn", client4{kind: wire.DHCP4Discover, options: opt4(wire.Opt4FQDN, "\x01\x00\x00old") + opt4(wire.Opt4ParameterList, "\x03\x51")}.frame(), responder.DHCP4Offer},
		{"decline_other_server", client4{kind: wire.DHCP4Decline, options: opt4Addr(wire.Opt4ServerID, strange4) + wanted}.frame(), responder.DHCP4OtherServer},
		{"release_other_server", client4{kind: wire.DHCP4Release, m: has(guest4), src: guest4, dst: gateway4, options: opt4Addr(wire.Opt4ServerID, strange4)}.frame(), responder.DHCP4OtherServer},
		{"lease_query", client4{kind: 10, m: has(guest4)}.frame(), responder.DHCP4Unknown},
		{"relayed_own", client4{kind: wire.DHCP4Discover, m: wire.DHCP4{GIAddr: guest4, Hops: 1}}.frame(), responder.DHCP4Offer},
		{"relayed_own_wrong", client4{kind: wire.DHCP4Request, m: wire.DHCP4{GIAddr: guest4, Hops: 1}, options: wrong}.frame(), responder.DHCP4Nak},
		{"relayed", client4{kind: wire.DHCP4Discover, m: wire.DHCP4{GIAddr: strange4}}.frame(), responder.DHCP4Relay},
		{"chaddr_foreign", client4{kind: wire.DHCP4Discover, m: wire.DHCP4{CHAddr: strangeMAC}}.frame(), responder.DHCP4Foreign},
		{"offer_rogue", client4{kind: wire.DHCP4Offer}.frame(), responder.DHCP4Rogue},
		{"bootreply_rogue", client4{kind: wire.DHCP4Offer, m: wire.DHCP4{Op: 2}}.frame(), responder.DHCP4Rogue},
		{"offer_to_client_rogue", udp4Frame(guest4, all4, wire.UDP{Src: 67, Dst: 68}, client4{kind: wire.DHCP4Offer, m: wire.DHCP4{Op: 2}}.payload()), responder.DHCP4Rogue},
		{"bootp", client4{}.frame(), responder.DHCP4Unknown},
		{"kind_99", client4{kind: 99}.frame(), responder.DHCP4Unknown},
		{"options_malformed", client4{kind: wire.DHCP4Discover, options: "\x0c\xf0x"}.frame(), responder.DHCP4Malformed},
		{"client_id_too_long", client4{kind: wire.DHCP4Discover, options: id + opt4(wire.Opt4ClientID, string(make([]byte, 255)))}.frame(), responder.DHCP4Malformed},
		{"no_cookie", udp4Frame(zero4, all4, wire.UDP{Src: 68, Dst: 67}, make([]byte, 300)), responder.DHCP4Malformed},
	}
}

func dhcp6Messages() []message {
	client, server := opt6(wire.Opt6ClientID, clientDUID), opt6(wire.Opt6ServerID, marks.ServerDUID)
	both := client + server
	na, pd := ia6(wire.Opt6IANA, 7), ia6(wire.Opt6IAPD, 8)
	held := ia6(wire.Opt6IANA, 7, addr6(guest6), addr6(second6))
	foreign := ia6(wire.Opt6IANA, 7, addr6(guest6), addr6(strange6))
	heldPD := ia6(wire.Opt6IAPD, 8, prefix6("2001:db8:bad::/56"))
	asks := oro6(wire.Opt6DNS, wire.Opt6Search, wire.Opt6SNTP, wire.Opt6NTP)
	return []message{
		{"solicit", client6{kind: wire.DHCP6Solicit, options: client + na + asks}.frame(), responder.DHCP6Advertise},
		{"solicit_rapid", client6{kind: wire.DHCP6Solicit, options: client + na + opt6(wire.Opt6RapidCommit, "")}.frame(), responder.DHCP6RapidReply},
		{"solicit_rapid_pd_only", client6{kind: wire.DHCP6Solicit, options: client + pd + opt6(wire.Opt6RapidCommit, "")}.frame(), responder.DHCP6Advertise},
		{"solicit_several", client6{kind: wire.DHCP6Solicit, options: client + pd + na + ia6(wire.Opt6IANA, 9) + string(wire.EndOption6(wire.BeginIA6(nil, wire.IA6{Code: wire.Opt6IATA, IAID: 10}), 0))}.frame(), responder.DHCP6Advertise},
		{"solicit_no_client_id", client6{kind: wire.DHCP6Solicit, options: na}.frame(), responder.DHCP6Malformed},
		{"solicit_with_server_id", client6{kind: wire.DHCP6Solicit, options: both + na}.frame(), responder.DHCP6Malformed},
		{"solicit_unicast", client6{kind: wire.DHCP6Solicit, dst: gateway6, options: client + na}.frame(), responder.DHCP6Unicast},
		{"solicit_from_unspecified", client6{kind: wire.DHCP6Solicit, src: zero6, options: client + na}.frame(), responder.DHCP6Malformed},
		{"request", client6{kind: wire.DHCP6Request, options: both + held + asks}.frame(), responder.DHCP6Request},
		{"request_foreign", client6{kind: wire.DHCP6Request, options: both + foreign}.frame(), responder.DHCP6Request},
		{"request6_other_server", client6{kind: wire.DHCP6Request, options: client + opt6(wire.Opt6ServerID, "\x00\x03other") + held}.frame(), responder.DHCP6OtherServer},
		{"request_no_server_id", client6{kind: wire.DHCP6Request, options: client + held}.frame(), responder.DHCP6Malformed},
		{"request_unicast", client6{kind: wire.DHCP6Request, dst: gateway6, options: both + held}.frame(), responder.DHCP6UseMulticast},
		{"confirm", client6{kind: wire.DHCP6Confirm, options: client + held}.frame(), responder.DHCP6Confirm},
		{"confirm_foreign", client6{kind: wire.DHCP6Confirm, options: client + foreign}.frame(), responder.DHCP6NotOnLink},
		{"confirm_nothing", client6{kind: wire.DHCP6Confirm, options: client + na}.frame(), responder.DHCP6NothingToDo},
		{"renew", client6{kind: wire.DHCP6Renew, options: both + held}.frame(), responder.DHCP6Renew},
		{"renew_foreign", client6{kind: wire.DHCP6Renew, options: both + foreign + heldPD}.frame(), responder.DHCP6Renew},
		{"rebind", client6{kind: wire.DHCP6Rebind, options: client + held + pd}.frame(), responder.DHCP6Rebind},
		{"release6", client6{kind: wire.DHCP6Release, options: both + held}.frame(), responder.DHCP6Release},
		{"release_foreign", client6{kind: wire.DHCP6Release, options: both + ia6(wire.Opt6IANA, 7, addr6(strange6)) + heldPD}.frame(), responder.DHCP6Release},
		{"decline6", client6{kind: wire.DHCP6Decline, options: both + held}.frame(), responder.DHCP6Decline},
		{"information_request", client6{kind: wire.DHCP6InformationRequest, options: client + asks}.frame(), responder.DHCP6Information},
		{"information_request_anonymous", client6{kind: wire.DHCP6InformationRequest}.frame(), responder.DHCP6Information},
		{"information_request_with_ia", client6{kind: wire.DHCP6InformationRequest, options: na}.frame(), responder.DHCP6Malformed},
		{"relay6", client6{kind: wire.DHCP6RelayForward, options: client}.frame(), responder.DHCP6Relay},
		{"reply_rogue", client6{kind: wire.DHCP6Reply, options: both}.frame(), responder.DHCP6Rogue},
		{"reply_to_client_rogue", ip6Frame(guestLL, agents6, wire.ProtoUDP, 1, wire.AppendUDP(nil, wire.UDP{Src: 547, Dst: 546}, 0)), responder.DHCP6Rogue},
		{"solicit_elsewhere", client6{kind: wire.DHCP6Solicit, dst: strange6, options: client + na}.frame(), responder.NotOurs},
		{"information_request_all_servers", client6{kind: wire.DHCP6InformationRequest, dst: ip("ff05::1:3")}.frame(), responder.DHCP6Information},
		{"client_id_twice", client6{kind: wire.DHCP6Solicit, options: client + client + na}.frame(), responder.DHCP6Malformed},
		{"client_id_long", client6{kind: wire.DHCP6Solicit, options: opt6(wire.Opt6ClientID, string(make([]byte, 131))) + na}.frame(), responder.DHCP6Malformed},
		{"server_id_empty", client6{kind: wire.DHCP6Request, options: client + opt6(wire.Opt6ServerID, "") + held}.frame(), responder.DHCP6Malformed},
		{"short_dhcp6", ip6Frame(guestLL, agents6, wire.ProtoUDP, 1, append(wire.AppendUDP(nil, wire.UDP{Src: 546, Dst: 547}, 3), 1, 2, 3)), responder.DHCP6Malformed},
		{"kind6_99", client6{kind: 99, options: client}.frame(), responder.DHCP6Unknown},
		{"options6_malformed", client6{kind: wire.DHCP6Solicit, options: client + na[:10]}.frame(), responder.DHCP6Malformed},
		{"ia_short", client6{kind: wire.DHCP6Solicit, options: client + opt6(wire.Opt6IANA, "short")}.frame(), responder.DHCP6Malformed},
		{"ia_address_short", client6{kind: wire.DHCP6Solicit, options: client + ia6(wire.Opt6IANA, 7, opt6(wire.Opt6IAAddr, "short"))}.frame(), responder.DHCP6Malformed},
	}
}

// epoch is when the frames of the tests arrive.
var epoch = time.Date(2026, 11, 25, 8, 0, 0, 0, time.UTC)

// respond is Respond for a guest of which nothing is known.
func respond(l *responder.Link, frame, out []byte) ([]byte, responder.Verdict) {
	var g responder.Guest
	return l.Respond(&g, epoch, frame, out)
}
