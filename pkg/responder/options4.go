package responder

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"

	"github.com/slash32/slash32/pkg/names"
	"github.com/slash32/slash32/pkg/wire"
)

// Flags of option 81 (RFC 4702 §2.1).
const (
	fqdnS = 1 << 0 // the server updates the name's address record
	fqdnO = 1 << 1 // the server does otherwise than the client asked
	fqdnE = 1 << 2 // the name is in DNS's encoding
	fqdnN = 1 << 3 // the server updates nothing
)

// option4 is one option that a client may be sent.
type option4 struct {
	whole []byte // code, length, data; in several parts when it is long (RFC 3396)
	short []byte // takes its place where there is no room for the whole; or empty
	force bool   // sent unasked, too
}

// table4 has the options of one profile.
type table4 struct {
	index   [256]uint8 // of a code in options, plus 1
	options []option4
	common  []uint8 // the codes that a client without a list of its own gets, in order
	forced  []uint8 // the codes of those that everybody gets, in order
}

func (t *table4) get(code uint8) *option4 {
	if i := t.index[code]; i != 0 {
		return &t.options[i-1]
	}
	return nil
}

// put adds an option or replaces it. An empty one is one that is absent:
// Windows ignores a message with an option of length 0.
func (t *table4) put(code uint8, data []byte) *option4 {
	if len(data) == 0 {
		return &option4{}
	}
	if t.index[code] == 0 {
		t.options = append(t.options, option4{})
		t.index[code] = uint8(len(t.options))
	}
	o := t.get(code)
	*o = option4{whole: wire.AppendOption4(nil, code, data)}
	return o
}

// classic4 is the link that a classic lease pretends: the longest prefix of at
// most bits in which the guest is neither the network nor the broadcast
// address, and as the gateway the network's own when it lies there, else the
// first address that is not the guest's.
func classic4(v V4, bits int) (link netip.Prefix, gateway netip.Addr) {
	if bits == 0 {
		bits = 24
	}
	for ; ; bits-- {
		link = netip.PrefixFrom(v.Addr, bits).Masked()
		if v.Addr != link.Addr() && v.Addr != last4(link) || bits <= 1 {
			break
		}
	}
	if link.Contains(v.Gateway) {
		return link, v.Gateway
	}
	for gateway = link.Addr().Next(); gateway == v.Addr || slices.Contains(v.Extra, gateway); {
		gateway = gateway.Next()
	}
	return link, gateway
}

// last4 is a prefix's broadcast address.
func last4(p netip.Prefix) netip.Addr {
	a := p.Addr().As4()
	n := binary.BigEndian.Uint32(a[:]) | (1<<(32-p.Bits()) - 1)
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, n)))
}

// compileTable makes the options of a lease with the given prefix and router.
// onLink tells that the router is in the prefix.
func compileTable(n NIC, link netip.Prefix, router netip.Addr, onLink bool) (*table4, error) {
	v := n.V4
	domain := strings.TrimSuffix(n.Domain, ".")
	if _, err := wire.AppendNames(nil, nonEmpty(domain)...); err != nil {
		return nil, err
	}
	search, err := wire.AppendNamesCompressed(nil, n.Search...)
	if err != nil {
		return nil, err
	}
	t1, t2 := times4(v)
	t := &table4{options: make([]option4, 0, 20+len(v.Options))}
	u32 := func(x uint32) []byte { return binary.BigEndian.AppendUint32(nil, x) }
	mask := ^uint32(0) << (32 - link.Bits())
	routes, short := routes4(router, v.Routes, onLink), routes4(router, nil, onLink)

	t.put(wire.Opt4SubnetMask, u32(mask)).force = true
	t.put(wire.Opt4Router, wire.AppendAddrs4(nil, router)).force = true
	for _, code := range []uint8{wire.Opt4ClasslessRoutes, wire.Opt4MicrosoftRoutes} {
		o := t.put(code, routes)
		o.short = wire.AppendOption4(nil, code, short)
		o.force = code == wire.Opt4ClasslessRoutes
	}
	t.put(wire.Opt4Lease, u32(v.Lease)).force = true
	t.put(wire.Opt4T1, u32(t1)).force = true
	t.put(wire.Opt4T2, u32(t2)).force = true
	t.put(wire.Opt4DNS, wire.AppendAddrs4(nil, v.DNS...))
	t.put(wire.Opt4Domain, []byte(domain))
	t.put(wire.Opt4Hostname, []byte(label(n.Hostname)))
	t.put(wire.Opt4Search, search)
	t.put(wire.Opt4MTU, binary.BigEndian.AppendUint16(nil, n.MTU))
	t.put(wire.Opt4NTP, wire.AppendAddrs4(nil, v.NTP...))
	t.put(wire.Opt4Portal, []byte(n.Portal))
	if link.Bits() < 31 {
		t.put(wire.Opt4Broadcast, wire.AppendAddrs4(nil, last4(link)))
	}
	if v.V6Only != 0 && len(n.V6.Addrs) > 0 {
		t.put(wire.Opt4V6Only, u32(v.V6Only))
	}
	for _, o := range v.Options {
		t.put(o.Code, o.Data).force = o.Force
	}
	t.order(v.Options)
	return t, nil
}

// order fills in what is sent unasked.
func (t *table4) order(own []Option) {
	common := []uint8{
		wire.Opt4SubnetMask, wire.Opt4Router, wire.Opt4ClasslessRoutes, wire.Opt4DNS, wire.Opt4Domain,
		wire.Opt4Hostname, wire.Opt4Broadcast, wire.Opt4MTU, wire.Opt4Search, wire.Opt4NTP, wire.Opt4T1, wire.Opt4T2,
	}
	for _, o := range own {
		if o.Force {
			common = append(common, o.Code)
		}
	}
	for _, code := range common {
		if o := t.get(code); o != nil {
			t.common = append(t.common, code)
			if o.force {
				t.forced = append(t.forced, code)
			}
		}
	}
}

// times4 fills in the defaults of RFC 2131 §4.4.5.
func times4(v V4) (t1, t2 uint32) {
	t1, t2 = v.T1, v.T2
	if t2 == 0 {
		t2 = max(t1, uint32(uint64(v.Lease)*7/8))
	}
	if t1 == 0 {
		t1 = min(v.Lease/2, t2)
	}
	return t1, t2
}

// routes4 is the data of options 121 and 249. A gateway off the link is made
// reachable first, since clients install routes in this order; the default
// comes last.
func routes4(gateway netip.Addr, extra []netip.Prefix, onLink bool) []byte {
	var b []byte
	if !onLink {
		b = wire.AppendRoute4(b, netip.PrefixFrom(gateway, 32), netip.IPv4Unspecified())
	}
	for _, to := range extra {
		if to.Bits() > 0 {
			b = wire.AppendRoute4(b, to, gateway)
		}
	}
	return wire.AppendRoute4(b, netip.PrefixFrom(netip.IPv4Unspecified(), 0), gateway)
}

// label is the first label of a host name, or "" when that is none. Clients
// hand the name to shell scripts, hence the narrow choice of characters.
func label(name string) string {
	name, _, _ = strings.Cut(name, ".")
	name = strings.Trim(name[:min(len(name), 63)], "-")
	if !names.Label(name) {
		return ""
	}
	return name
}

func nonEmpty(s string) []string {
	if s == "" {
		return nil
	}
	return []string{s}
}

// fqdn4 has the answers to option 81: with flags that tell that nobody here
// updates DNS, and the name in both forms that a client may ask in.
type fqdn4 struct{ text, encoded []byte }

func compileFQDN(n NIC) (f fqdn4, err error) {
	name := label(n.Hostname)
	if name == "" {
		return f, nil
	}
	partial := name // RFC 4702 §2.3.1: a name without its domain does not end in 0
	if n.Domain != "" {
		name += "." + strings.TrimSuffix(n.Domain, ".")
	}
	encoded, err := wire.AppendNames(nil, name)
	if err != nil {
		return f, err
	}
	if name == partial {
		encoded = encoded[:len(encoded)-1]
	}
	const rcode = 255 // RFC 4702 §2.2: both are obsolete
	if head := []byte{fqdnN, rcode, rcode}; len(encoded) <= 252 {
		f.text = wire.AppendOption4(nil, wire.Opt4FQDN, append(head, name...))
		head = []byte{fqdnN | fqdnE, rcode, rcode}
		f.encoded = wire.AppendOption4(nil, wire.Opt4FQDN, append(head, encoded...))
	}
	return f, nil
}
