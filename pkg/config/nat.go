package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/slash32/slash32/pkg/yamltree"
)

// nat reads the class of source translation: a word, or snat and what it is to.
func (p *parser) nat(e yamltree.Entry, n *Network) {
	v, ok := p.scalar(e)
	if !ok {
		return
	}
	words := strings.FieldsFunc(v, func(c rune) bool { return c == ' ' || c == ',' })
	if len(words) == 0 || words[0] != string(NATSource) {
		nat := string(n.NAT)
		p.word(e, &nat, string(NATNone), string(NATPrivate), string(NATAll), string(NATSource))
		if NAT(nat) != NATSource {
			n.NAT, n.SNAT = NAT(nat), nil
		}
		return
	}
	if len(words) == 1 {
		p.bad(e, v, "names no address", "write it like snat 203.0.113.9, or snat 203.0.113.9 2001:db8::9")
		return
	}
	var to []netip.Addr
	for _, w := range words[1:] {
		ip, ok := p.address(e, w)
		switch {
		case !ok:
			return
		case reserved(ip) || ip.IsLinkLocalUnicast():
			p.bad(e, w, "is not an address that anybody could answer", "write one that is routed to this host")
			return
		case slices.ContainsFunc(to, func(o netip.Addr) bool { return o.Is4() == ip.Is4() }):
			p.bad(e, w, "is a second address of its family", "write one of each family at most")
			return
		}
		to = append(to, ip)
	}
	n.NAT, n.SNAT = NATSource, to
}

// MaxConntrackLimit is what conntrack_limit may be at most: what a new connection
// costs grows with those that the guest has.
const MaxConntrackLimit = 100_000

// limit reads how many connections a guest may have.
func (p *parser) limit(e yamltree.Entry, to *uint32) {
	v, ok := p.scalar(e)
	if !ok {
		return
	}
	if v == "none" {
		*to = 0
		return
	}
	n, err := strconv.ParseUint(v, 10, 32)
	if err != nil || n == 0 || n > MaxConntrackLimit {
		p.bad(e, v, fmt.Sprintf("is not a number of connections from 1 to %d", MaxConntrackLimit), "write a number, like 20000, or none")
		return
	}
	*to = uint32(n)
}
