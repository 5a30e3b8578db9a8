package responder

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/slash32/slash32/pkg/mac"
	"github.com/slash32/slash32/pkg/wire"
)

// MaxReply is the length in bytes of the longest frame that Respond or
// Unsolicited returns: an Ethernet header and 1500 bytes, whatever the MTU.
const MaxReply = wire.EtherLen + maxPacket

// maxPacket is the longest IP packet that is sent even when the MTU is larger:
// no message needs more, and no client has to be trusted with more.
const maxPacket = 1500

// The smallest MTUs that carry DHCPv4 (RFC 2131 §2: a client must accept 576
// bytes) and IPv6 (RFC 8200 §5).
const (
	minMTU4 = 576
	minMTU6 = 1280
)

// Link is one NIC's compiled binding: reply templates, ready to copy. It is
// immutable and safe for concurrent use.
type Link struct {
	guest    mac.Addr
	limit    int // length of the longest frame sent
	v4       bool
	v6       bool
	arp      arpTemplates
	dhcp4    dhcp4Templates
	nd       ndTemplates
	dhcp6    dhcp6Templates
	own4     []netip.Addr // the guest's, never answered for
	own6     []netip.Addr
	prefixes *prefixes6 // or nil
	gw4      netip.Addr // invalid: no ARP, no DHCPv4
	gw6      netip.Addr
	offer4   netip.Addr // invalid: no lease
	forced   Profile    // unknown: the guest's messages decide
	hold     bool       // offer nothing for a while after a DECLINE

	fqdn    fqdn4
	boots   []boot4
	bootsID uint64 // their fingerprint; 0: there are none

	relay *relay // or nil
	index uint8  // of the NIC in the binding
}

// Compile checks n and precomputes every reply that it can lead to. An MTU of
// 0 counts as 1500. IPv6 is silent when it has no gateway or the MTU is below
// 1280, which is what the kernel does, too. The error is one that only a wrong
// binding can cause.
func Compile(n NIC) (*Link, error) {
	if n.MTU == 0 {
		n.MTU = maxPacket
	}
	if err := check(n); err != nil {
		return nil, fmt.Errorf("compile the link of bridge %q: %w", n.Bridge, err)
	}
	l := &Link{
		guest:  n.GuestMAC,
		limit:  wire.EtherLen + min(int(n.MTU), maxPacket),
		v4:     n.V4.Gateway.IsValid(),
		v6:     n.V6.Gateway.IsValid() && n.MTU >= minMTU6,
		gw4:    n.V4.Gateway,
		gw6:    n.V6.Gateway,
		offer4: n.V4.Addr,
		own6:   slices.Clone(n.V6.Addrs),
	}
	for _, t := range n.V6.old() {
		l.own6 = append(l.own6, t.Addr)
	}
	if n.V4.Addr.IsValid() {
		l.own4 = append(l.own4, n.V4.Addr)
	}
	l.own4 = append(l.own4, n.V4.Extra...)
	if n.Relay != nil {
		l.relay, l.index = compileRelay(n), n.Relay.Index
	}
	if len(n.V4.Boots) > 0 {
		l.boots, l.bootsID = compileBoots(n.V4.Boots)
	}
	if l.v4 {
		if err := l.compile4(n); err != nil {
			return nil, fmt.Errorf("compile the link of bridge %q: %w", n.Bridge, err)
		}
	}
	if l.v6 {
		search, err := wire.AppendNames(nil, n.searchList()...)
		if err != nil {
			return nil, fmt.Errorf("compile the link of bridge %q: %w", n.Bridge, err)
		}
		l.prefixes = compilePrefixes(n.V6)
		l.nd = compileND(n, l.prefixes, search, l.limit)
		if l.dhcp6, err = compileDHCP6(n, search); err != nil {
			return nil, fmt.Errorf("compile the link of bridge %q: %w", n.Bridge, err)
		}
	}
	return l, nil
}

// relays4 and relays6 tell whether a family is relayed and not answered.
func (l *Link) relays4() bool { return l.relay != nil && len(l.relay.servers4) > 0 }
func (l *Link) relays6() bool { return l.relay != nil && len(l.relay.servers6) > 0 }

func (l *Link) compile4(n NIC) (err error) {
	l.arp = compileARP(n)
	l.forced, l.hold = ParseProfile(n.V4.Client), n.V4.Hold
	if l.dhcp4, err = compileDHCP4(n); err != nil {
		return err
	}
	if l.fqdn, err = compileFQDN(n); err != nil {
		return err
	}
	return nil
}

func check(n NIC) error {
	switch {
	case n.GuestMAC.IsZero() || n.GuestMAC.IsMulticast():
		return fmt.Errorf("the guest's MAC %q is not a unicast address", n.GuestMAC)
	case n.GatewayMAC.IsZero() || n.GatewayMAC.IsMulticast():
		return fmt.Errorf("the gateway's MAC %q is not a unicast address", n.GatewayMAC)
	case n.GuestMAC == n.GatewayMAC:
		return fmt.Errorf("guest and gateway have the same MAC %s", n.GuestMAC)
	}
	if err := check4(n); err != nil {
		return err
	}
	return check6(n)
}

func check4(n NIC) error {
	v := n.V4
	switch {
	case v.Gateway.IsValid() && !v.Gateway.Is4():
		return fmt.Errorf("the IPv4 gateway %s is not an IPv4 address", v.Gateway)
	case v.Addr.IsValid() && !v.Addr.Is4():
		return fmt.Errorf("the IPv4 address %s is not an IPv4 address", v.Addr)
	case !v.Addr.IsValid():
		return nil
	case !v.Gateway.IsValid():
		return fmt.Errorf("the IPv4 address %s has no gateway", v.Addr)
	case v.Addr == v.Gateway:
		return fmt.Errorf("guest and gateway have the same address %s", v.Addr)
	case n.MTU < minMTU4:
		return fmt.Errorf("an MTU of %d is too small for DHCPv4, which needs %d", n.MTU, minMTU4)
	case v.Lease == 0:
		return errors.New("the DHCPv4 lease time is 0")
	case v.T1 > v.T2 && v.T2 != 0 || v.T2 > v.Lease || v.T1 > v.Lease:
		return fmt.Errorf("the times T1 %d, T2 %d and lease %d are not in this order", v.T1, v.T2, v.Lease)
	case v.Classic > 30:
		return fmt.Errorf("a prefix of length %d has no room for guest and gateway", v.Classic)
	}
	switch v.Client {
	case "", "auto", "routed", "classic":
	default:
		return fmt.Errorf("the client %q is not auto, routed or classic", v.Client)
	}
	for _, o := range v.Options {
		if o.Code == wire.Opt4Pad || o.Code == wire.Opt4End || len(o.Data) == 0 || len(o.Data) > 255 {
			return fmt.Errorf("option %d of %d bytes cannot be sent", o.Code, len(o.Data))
		}
	}
	for _, b := range v.Boots {
		if b.File == "" || len(b.File) > 255 {
			return fmt.Errorf("a boot file's name has %d bytes, not 1 to 255", len(b.File))
		}
	}
	return nil
}

func check6(n NIC) error {
	v := n.V6
	if !v.Gateway.IsValid() {
		return nil
	}
	if !v.Gateway.Is6() || v.Gateway.Is4In6() || !v.Gateway.IsLinkLocalUnicast() || v.Gateway.Zone() != "" {
		return fmt.Errorf("the IPv6 gateway %s is not a link-local address", v.Gateway)
	}
	addrs := slices.Clone(v.Addrs)
	for _, t := range v.Terms {
		addrs = append(addrs, t.Addr)
	}
	for _, a := range addrs {
		if !a.Is6() || a.Is4In6() || a.IsMulticast() || a.IsUnspecified() {
			return fmt.Errorf("%s is not an IPv6 address for a guest", a)
		}
		if a == v.Gateway {
			return fmt.Errorf("guest and gateway have the same address %s", a)
		}
	}
	if len(addrs) > 0 && (v.Preferred == 0 || v.Preferred > v.Valid) {
		return fmt.Errorf("the lifetimes of the IPv6 addresses, preferred %d and valid %d, are not in this order or 0", v.Preferred, v.Valid)
	}
	return checkPrefixes(v)
}

// searchList is what a resolver should try: the search list, or else the
// domain.
func (n NIC) searchList() []string {
	if len(n.Search) == 0 && n.Domain != "" {
		return []string{n.Domain}
	}
	return n.Search
}

// Lease is what a guest of the profile gets by DHCPv4, like "203.0.113.42/24 via
// 203.0.113.1"; "" when that is nothing.
func (l *Link) Lease(p Profile) string { return l.dhcp4.leases[p] }

// Forced is the profile that every client gets; ProfileUnknown when its messages
// decide. A relayed guest's lease is the server's affair: it is taken for classic.
func (l *Link) Forced() Profile {
	if l.relays4() {
		return ProfileClassic
	}
	return l.forced
}

// Respond judges one frame from the guest that arrived at now. The reply, if
// any, is written into out, whose capacity must be at least MaxReply and which
// must not overlap frame, and returned as out[:n]; nil means silence. What the
// frame tells of the guest is noted in g. It depends on nothing else and
// allocates nothing.
//
// The link is the identity: whatever a frame claims, a reply goes to the
// guest's MAC, to broadcast or to an IPv6 multicast group, and nowhere else.
func (l *Link) Respond(g *Guest, now time.Time, frame, out []byte) ([]byte, Verdict) {
	eth, b, ok := wire.ParseEther(frame)
	switch {
	case len(frame) == wire.TaggedLen:
		return nil, VLAN
	case !ok:
		return nil, Truncated
	case eth.Type == wire.EtherTypeVLAN || eth.Type == wire.EtherTypeQinQ:
		return nil, VLAN
	case eth.Src != l.guest:
		return nil, Foreign
	case eth.Type == wire.EtherTypeARP && l.v4:
		return l.respondARP(g, b, out)
	case eth.Type == wire.EtherTypeIPv4 && l.v4:
		return l.respondIPv4(g, now, b, out)
	case eth.Type == wire.EtherTypeIPv6 && l.v6:
		return l.respondIPv6(g, now, b, out)
	}
	return nil, NotOurs
}

func (l *Link) respondIPv4(g *Guest, now time.Time, b, out []byte) ([]byte, Verdict) {
	ip, b, ok := wire.ParseIPv4(b)
	switch {
	case !ok:
		return nil, Truncated
	case ip.Proto != wire.ProtoUDP:
		return nil, NotOurs
	case ip.Fragment:
		return nil, Fragment
	}
	udp, b, ok := wire.ParseUDP(b)
	switch {
	case !ok:
		return nil, Truncated
	case udp.Dst == wire.DHCP4ClientPort && udp.Src == wire.DHCP4ServerPort:
		return nil, DHCP4Rogue
	case udp.Dst != wire.DHCP4ServerPort:
		return nil, NotOurs
	case ip.Dst != broadcast4 && ip.Dst != l.gw4:
		return nil, NotOurs
	}
	return l.respondDHCP4(g, now, ip.Dst == l.gw4, b, out)
}

func (l *Link) respondIPv6(g *Guest, now time.Time, b, out []byte) ([]byte, Verdict) {
	ip, b, ok := wire.ParseIPv6(b)
	switch {
	case !ok:
		return nil, Truncated
	case ip.Proto == protoFragment:
		return nil, Fragment
	case ip.Proto == wire.ProtoICMPv6:
		return l.respondND(g, now, ip, b, out)
	case ip.Proto != wire.ProtoUDP:
		return nil, NotOurs
	}
	udp, b, ok := wire.ParseUDP(b)
	switch {
	case !ok:
		return nil, Truncated
	case udp.Dst == wire.DHCP6ClientPort && udp.Src == wire.DHCP6ServerPort:
		return nil, DHCP6Rogue
	case udp.Dst != wire.DHCP6ServerPort:
		return nil, NotOurs
	}
	return l.respondDHCP6(g, now, ip, b, out)
}

// protoFragment is the next header value of a fragment (RFC 8200 §4.5).
const protoFragment = 44

var broadcast4 = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// Offsets into a reply frame.
const (
	offIPv4Len = wire.EtherLen + 2
	offIPv4Src = wire.EtherLen + 12
	offIPv4Dst = wire.EtherLen + 16
	offUDP4    = wire.EtherLen + wire.IPv4Len
	offDHCP4   = offUDP4 + wire.UDPLen

	offIPv6Len = wire.EtherLen + 4
	offIPv6Src = wire.EtherLen + 8
	offIPv6Dst = wire.EtherLen + 24
	offICMP6   = wire.EtherLen + wire.IPv6Len
	offTarget  = offICMP6 + 8 // of a neighbour advertisement
	offUDP6    = offICMP6
	offDHCP6   = offUDP6 + wire.UDPLen
)
