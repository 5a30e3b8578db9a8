package config

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/slash32/slash32/pkg/names"
	"github.com/slash32/slash32/pkg/problem"
	"github.com/slash32/slash32/pkg/yamltree"
)

func (p *parser) classic(e yamltree.Entry, to *uint8) {
	v, ok := p.scalar(e)
	if !ok {
		return
	}
	n, err := strconv.ParseUint(strings.TrimPrefix(v, "/"), 10, 8)
	if err != nil || n < MinClassic || n > MaxClassic {
		p.bad(e, v, fmt.Sprintf("is not the length of a prefix from %d to %d", MinClassic, MaxClassic), "write a number, like 24")
		return
	}
	*to = uint8(n)
}

// probe reads how a VM's addresses are looked for before it starts.
func (p *parser) probe(e yamltree.Entry, n *Network) {
	vs, ok := p.list(e, 2)
	if !ok {
		return
	}
	arp, icmp := false, false
	for _, v := range vs {
		switch v {
		case "arp":
			arp = true
		case "icmp":
			icmp = true
		case "none":
			if len(vs) > 1 {
				p.bad(e, v, "is there with something else", "write [arp], [icmp], [arp, icmp] or none")
				return
			}
		default:
			p.bad(e, v, "is not known", "write [arp], [icmp], [arp, icmp] or none")
			return
		}
	}
	n.ProbeARP, n.ProbeICMP = arp, icmp
}

func (p *parser) portal(e yamltree.Entry, to *string) {
	v, ok := p.scalar(e)
	if ok && !names.URI(v) {
		p.bad(e, v, "is not the URI of a captive portal's API", "write it like https://portal.example.org/api")
	} else if ok {
		*to = v
	}
}

// relay reads the servers alone, or a mapping with them.
func (p *parser) relay(e yamltree.Entry, to *Relay) {
	if e.Value.Kind != yamltree.Map {
		p.relayServers(e, &to.Servers)
		return
	}
	path := p.path
	p.path = p.key(e.Key)
	defer func() { p.path = path }()
	for _, kv := range e.Value.Entries {
		switch kv.Key {
		case "servers":
			p.relayServers(kv, &to.Servers)
		case "link4":
			p.relayAddress(kv, &to.Link4, netip.Addr.Is4, "IPv4")
		case "link6":
			p.relayAddress(kv, &to.Link6, netip.Addr.Is6, "IPv6")
		case "source4":
			p.relayAddress(kv, &to.Source4, netip.Addr.Is4, "IPv4")
		default:
			p.unknown(kv, relayKeys)
		}
	}
	if len(to.Servers) == 0 {
		p.add(problem.EConfig, e.Line, p.path+" names no servers to relay to", "write servers: [192.0.2.11, 192.0.2.12]")
	}
}

func (p *parser) relayServers(e yamltree.Entry, to *[]netip.Addr) {
	unfit := func(ip netip.Addr) bool { return reserved(ip) || ip.IsLinkLocalUnicast() }
	p.addresses(e, to, MaxRelays, unfit, "is not an address that this host can reach a server at")
}

func (p *parser) relayAddress(e yamltree.Entry, to *netip.Addr, family func(netip.Addr) bool, name string) {
	v, ok := p.scalar(e)
	if !ok {
		return
	}
	ip, ok := p.address(e, v)
	if !ok {
		return
	}
	if !family(ip) || reserved(ip) {
		p.bad(e, v, "is not an "+name+" address for this", "write one of the guests' subnet on the server, or for source4 one of this host's")
		return
	}
	*to = ip
}

// short is a duration without the zeros that its String has.
func short(d time.Duration) string {
	if d >= 24*time.Hour && d%(24*time.Hour) == 0 {
		return strconv.Itoa(int(d/(24*time.Hour))) + "d"
	}
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = s[:len(s)-2]
	}
	if strings.HasSuffix(s, "h0m") {
		s = s[:len(s)-2]
	}
	return s
}
