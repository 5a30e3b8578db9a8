package config

import (
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/slash32/slash32/pkg/names"
	"github.com/slash32/slash32/pkg/problem"
	"github.com/slash32/slash32/pkg/yamltree"
)

// The lengths of a pool of IPv6 prefixes: from an allocation of a provider's to
// one link.
const (
	MinPool6 = 16
	MaxPool6 = 64
)

// pool6 reads a prefix, "ula", or a mapping with the interface to ask on.
func (p *parser) pool6(e yamltree.Entry, to *Pool6) {
	if e.Value.Kind == yamltree.Map {
		p.upstream(e, to)
		return
	}
	v, ok := p.scalar(e)
	switch {
	case !ok:
	case v == "none" || v == "":
		*to = Pool6{}
	case v == "ula":
		*to = Pool6{ULA: true}
	default:
		if net, ok := p.prefix6(e, v, MinPool6, MaxPool6); ok {
			*to = Pool6{Prefix: net}
		}
	}
}

// prefix6 reads an IPv6 prefix for guests whose length is within the bounds.
func (p *parser) prefix6(e yamltree.Entry, v string, least, most int) (netip.Prefix, bool) {
	net, err := netip.ParsePrefix(v)
	switch ip := net.Addr(); {
	case err != nil || !ip.Is6() || ip.Is4In6():
		p.bad(e, v, "is not an IPv6 prefix", "write it like 2001:db8:1::/56")
	case net != net.Masked():
		p.bad(e, v, "has bits set beyond its length", "write "+net.Masked().String())
	case reserved(ip) || ip.IsLinkLocalUnicast() || ip.IsUnspecified():
		p.bad(e, v, "is not a prefix that guests can have", "write one that is routed to this host")
	case net.Bits() < least || net.Bits() > most:
		p.bad(e, v, fmt.Sprintf("has a length that is not from %d to %d", least, most), fmt.Sprintf("write one like %s/%d", ip, most))
	default:
		return net, true
	}
	return netip.Prefix{}, false
}

func (p *parser) upstream(e yamltree.Entry, to *Pool6) {
	path := p.path
	p.path = p.key(e.Key)
	defer func() { p.path = path }()
	*to = Pool6{}
	for _, kv := range e.Value.Entries {
		switch kv.Key {
		case "upstream":
			if v, ok := p.scalar(kv); ok && (!names.Interface(v) || v == "auto") {
				p.bad(kv, v, "is not the name of an interface", "write a name that ip link shows")
			} else if ok {
				to.Upstream = v
			}
		case "length_hint":
			v, ok := p.scalar(kv)
			n, err := strconv.ParseUint(strings.TrimPrefix(v, "/"), 10, 8)
			if ok && (err != nil || n < MinPool6 || n > MaxPool6) {
				p.bad(kv, v, fmt.Sprintf("is not a length from %d to %d", MinPool6, MaxPool6), "write a number, like 56")
			} else if ok {
				to.Hint = uint8(n)
			}
		default:
			p.unknown(kv, poolKeys)
		}
	}
	if to.Upstream == "" {
		p.add(problem.EConfig, e.Line, p.path+" names no interface to ask for a prefix on", "write {upstream: eth0, length_hint: 56}")
	}
}

// pref64 reads the prefix of a NAT64 in one of the lengths that an RA can say
// (RFC 8781 §4).
func (p *parser) pref64(e yamltree.Entry, to *netip.Prefix) {
	v, ok := p.scalar(e)
	if !ok {
		return
	}
	net, ok := p.prefix6(e, v, 32, 96)
	if !ok {
		return
	}
	switch net.Bits() {
	case 32, 40, 48, 56, 64, 96:
		*to = net
	default:
		p.bad(e, v, "has a length that a NAT64's prefix cannot have (RFC 6052 §2.2)", "write a /96, like 64:ff9b::/96")
	}
}

func (p *parser) aftr(e yamltree.Entry, to *string) {
	v, ok := p.scalar(e)
	if ok && !names.Domain(v) {
		p.bad(e, v, "is not the name of an AFTR", "write a full host name, like aftr.example.net")
	} else if ok {
		*to = v
	}
}

func (p *parser) hooks(c *Config, e yamltree.Entry) {
	if e.Value.Kind != yamltree.Map {
		p.add(problem.EConfig, e.Line, "hooks holds "+e.Value.Kind.String()+" where keys are expected", "write hooks: {prefix: /usr/local/sbin/on-prefix}")
		return
	}
	p.path = "hooks"
	defer func() { p.path = "" }()
	for _, kv := range e.Value.Entries {
		if kv.Key != "prefix" {
			p.unknown(kv, []string{"prefix"})
			continue
		}
		v, ok := p.scalar(kv)
		if ok && (!filepath.IsAbs(v) || filepath.Clean(v) != v || strings.ContainsRune(v, 0)) {
			p.bad(kv, v, "is not an absolute path", "write the program's whole path; it is run without a shell")
		} else if ok {
			c.Hooks.Prefix = v
		}
	}
}

// pools holds that no two networks have a part of the same pool.
func (p *parser) pools(c *Config, line int) {
	all := slices.Sorted(maps.Keys(c.Networks))
	for i, a := range all {
		for _, b := range all[:i] {
			x, y := c.Networks[a].Pool6.Prefix, c.Networks[b].Pool6.Prefix
			if x.IsValid() && y.IsValid() && x.Overlaps(y) {
				p.add(problem.EConfig, line, fmt.Sprintf("networks.%s.ipv6_pool: %s overlaps %s of network %s", a, x, y, b), "give each network a part of its own")
			}
		}
	}
}

// Share is a network's part of what its upstream gives: the networks that ask on
// the same interface divide it evenly, in the order of their names. ok is false
// when the prefix is too small for that, or the network asks on no interface.
func (c Config) Share(network string, given netip.Prefix) (share netip.Prefix, ok bool) {
	upstream := c.Networks[network].Pool6.Upstream
	if upstream == "" {
		return netip.Prefix{}, false
	}
	index, count := 0, 0
	for _, name := range slices.Sorted(maps.Keys(c.Networks)) {
		if c.Networks[name].Pool6.Upstream != upstream {
			continue
		}
		if name == network {
			index = count
		}
		count++
	}
	bits := given.Bits()
	for 1<<(bits-given.Bits()) < count {
		bits++
	}
	if bits > MaxPool6 {
		return netip.Prefix{}, false
	}
	a := given.Masked().Addr().As16()
	for i := range bits - given.Bits() { // the index's bits stand before bit number "bits"
		if index>>i&1 == 1 {
			at := bits - 1 - i
			a[at/8] |= 0x80 >> (at % 8)
		}
	}
	return netip.PrefixFrom(netip.AddrFrom16(a), bits), true
}
