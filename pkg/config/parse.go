package config

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/slash32/slash32/pkg/names"
	"github.com/slash32/slash32/pkg/problem"
	"github.com/slash32/slash32/pkg/yamltree"
)

// maxProblems is how many problems are reported of one file.
const maxProblems = 32

var (
	topKeys     = []string{"networks", "forwarding", "launch", "libvirt", "hooks", "coexist", "local_prefixes", "log_drops"}
	networkKeys = []string{"uplink", "table", "gateway4", "gateway6", "dns", "search", "ntp", "mtu", "lease", "nat", "notrack", "conntrack_limit", "announce", "isolate", "conflict", "probe", "probe_wait",
		"client", "classic", "decline", "ipv6_only", "portal", "relay", "ipv6_pool", "pref64", "aftr", "proxy_ndp", "proxy_arp", "router4", "router6", "subnets", "downlink", "addresses", "host_services"}
	poolKeys  = []string{"upstream", "length_hint"}
	relayKeys = []string{"servers", "link4", "link6", "source4"}
)

// Parse reads one file over the defaults. What is wrong is left at its default
// and reported with file, line, key and the likely fix.
func Parse(file string, b []byte) (Config, problem.List) { return Reader{}.Parse(file, b) }

// Parse is the function of the same name, with the reader's table names.
func (r Reader) Parse(file string, b []byte) (Config, problem.List) {
	c := Default()
	ps := r.merge(&c, file, b)
	return c, append(ps, c.topology(file)...)
}

// merge reads one file over what c holds already.
func (r Reader) merge(c *Config, file string, b []byte) problem.List {
	p := &parser{file: file, tables: r.table}
	tree, err := yamltree.Parse(b)
	if err != nil {
		line, text := 0, err.Error()
		var e *yamltree.Error
		if errors.As(err, &e) {
			line, text = e.Line, e.Text
		}
		p.add(problem.EConfig, line, "the file cannot be read as YAML: "+text, "write key: value, indented by spaces")
		return p.problems
	}
	switch tree.Kind {
	case yamltree.Null: // only comments
	case yamltree.Map:
		p.top(c, tree)
	default:
		p.add(problem.EConfig, tree.Line, "the file holds "+tree.Kind.String()+" where keys are expected", "write key: value, like networks:")
	}
	return p.problems
}

type parser struct {
	file     string
	path     string // of the mapping in hand, like networks.public
	tables   func(name string) (Table, bool)
	problems problem.List
}

func (p *parser) add(code problem.Code, line int, what, fix string) {
	if len(p.problems) < maxProblems {
		p.problems = append(p.problems, problem.Problem{Code: code, File: p.file, Line: line, What: what, Fix: fix})
	}
}

// bad reports a value.
func (p *parser) bad(e yamltree.Entry, value, is, fix string) {
	p.add(problem.EConfig, e.Line, fmt.Sprintf("%s: %s %s", p.key(e.Key), problem.Quote(value), is), fix)
}

func (p *parser) key(k string) string {
	if p.path == "" {
		return k
	}
	return p.path + "." + k
}

func (p *parser) unknown(e yamltree.Entry, known []string) {
	fix := "use one of " + strings.Join(known, ", ")
	if near := problem.Nearest(e.Key, known); near != "" {
		fix = fmt.Sprintf("did you mean %q?", near)
	} else if p.path == "" && slices.Contains(networkKeys, e.Key) {
		fix = fmt.Sprintf("it belongs to a network: networks: {default: {%s: ...}}", e.Key)
	}
	where := "at the top"
	if p.path != "" {
		where = "in " + p.path
	}
	p.add(problem.EConfig, e.Line, fmt.Sprintf("unknown key %s %s", problem.Quote(e.Key), where), fix)
}

func (p *parser) top(c *Config, tree yamltree.Node) {
	for _, e := range tree.Entries {
		switch e.Key {
		case "networks":
			p.networks(c, e)
		case "forwarding":
			p.word(e, &c.Forwarding, "manage", "check")
		case "launch":
			p.word(e, &c.Launch, "auto", "systemd", "process")
		case "libvirt":
			v, ok := p.scalar(e)
			if ok && (!strings.Contains(v, "://") || strings.ContainsAny(v, " \t\n\x00") || len(v) > 255) {
				p.bad(e, v, "is not a libvirt URI", "write it like qemu:///system")
			} else if ok {
				c.LibvirtURI = v
			}
		case "hooks":
			p.hooks(c, e)
		case "coexist":
			p.coexist(&c.Coexist, e)
		case "local_prefixes":
			p.localPrefixes(e, &c.LocalPrefixes)
		case "log_drops":
			p.boolean(e, &c.LogDrops)
		default:
			p.unknown(e, topKeys)
		}
	}
}

func (p *parser) networks(c *Config, all yamltree.Entry) {
	if all.Value.Kind != yamltree.Map {
		p.add(problem.EConfig, all.Line, "networks holds "+all.Value.Kind.String()+" where names of networks are expected", "write networks: {default: {uplink: auto}}")
		return
	}
	for _, e := range all.Value.Entries {
		if !names.Network(e.Key) {
			p.add(problem.EConfig, e.Line, "networks: "+problem.Quote(e.Key)+" is not a name for a network", "use letters, digits, dots, dashes and underscores, at most 32")
			continue
		}
		n, ok := c.Networks[e.Key]
		if !ok {
			if len(c.Networks) == MaxNetworks {
				p.add(problem.EConfig, e.Line, fmt.Sprintf("more than %d networks", MaxNetworks), "remove some")
				return
			}
			n = newNetwork(e.Key)
		}
		switch e.Value.Kind {
		case yamltree.Map:
			p.path = "networks." + e.Key
			for _, kv := range e.Value.Entries {
				p.network(&n, kv)
			}
			p.path = ""
		case yamltree.Null: // every key at its default
		default:
			p.add(problem.EConfig, e.Line, fmt.Sprintf("networks.%s holds %s where keys are expected", e.Key, e.Value.Kind), "write "+e.Key+": {uplink: auto}")
		}
		c.Networks[e.Key] = n
	}
	p.pools(c, all.Line)
}

func (p *parser) network(n *Network, e yamltree.Entry) {
	switch e.Key {
	case "uplink":
		if v, ok := p.scalar(e); ok && !names.Interface(v) {
			p.bad(e, v, "is not the name of an interface", "write a name that ip link shows, or auto")
		} else if ok {
			n.Uplink = v
		}
	case "table":
		p.table(e, &n.Table)
	case "gateway4":
		p.gateway4(e, &n.Gateway4)
	case "gateway6":
		p.gateway6(e, &n.Gateway6)
	case "dns":
		p.servers(e, &n.DNS)
	case "ntp":
		p.servers(e, &n.NTP)
	case "search":
		p.search(e, &n.Search)
	case "mtu":
		v, ok := p.scalar(e)
		if !ok {
			return
		}
		if v == "auto" {
			n.MTU = 0
		} else if m, err := strconv.ParseUint(v, 10, 16); err != nil || m < MinMTU {
			p.bad(e, v, fmt.Sprintf("is not an MTU from %d to 65535", MinMTU), "write the bytes as a number, like 1500, or auto")
		} else {
			n.MTU = uint16(m)
		}
	case "lease":
		p.duration(e, &n.Lease, MinLease, MaxLease, time.Second)
	case "nat":
		p.nat(e, n)
	case "notrack":
		p.boolean(e, &n.NoTrack)
	case "conntrack_limit":
		p.limit(e, &n.MaxConns)
	case "announce":
		p.boolean(e, &n.Announce)
	case "isolate":
		p.boolean(e, &n.Isolate)
	case "conflict":
		p.word(e, &n.Conflict, "refuse", "warn")
	case "probe":
		p.probe(e, n)
	case "probe_wait":
		p.duration(e, &n.ProbeWait, MinProbeWait, MaxProbeWait, time.Millisecond)
	case "client":
		p.word(e, &n.Client, "auto", "routed", "classic")
	case "classic":
		p.classic(e, &n.Classic)
	case "decline":
		p.word(e, &n.Decline, "offer", "hold")
	case "ipv6_only":
		p.duration(e, &n.V6Only, MinV6Only, MaxV6Only, time.Second)
	case "portal":
		p.portal(e, &n.Portal)
	case "relay":
		p.relay(e, &n.Relay)
	case "ipv6_pool":
		p.pool6(e, &n.Pool6)
	case "pref64":
		p.pref64(e, &n.PREF64)
	case "aftr":
		p.aftr(e, &n.AFTR)
	case "proxy_ndp":
		p.boolean(e, &n.ProxyNDP)
	case "proxy_arp":
		p.boolean(e, &n.ProxyARP)
	case "router4":
		p.router(e, &n.Router4, netip.IPv4Unspecified())
	case "router6":
		p.router(e, &n.Router6, netip.IPv6Unspecified())
	case "subnets":
		p.subnets(e, &n.Subnets)
	case "downlink":
		p.downlink(e, &n.Downlink)
	case "addresses":
		p.addresses(e, &n.Addrs, MaxAddrs, reserved, "is not an address that this host can have there")
	case "host_services":
		p.services(e, n)
	default:
		p.unknown(e, networkKeys)
	}
}

func (p *parser) scalar(e yamltree.Entry) (string, bool) {
	if e.Value.Kind == yamltree.Scalar {
		return strings.TrimSpace(e.Value.Text), true
	}
	p.add(problem.EConfig, e.Line, fmt.Sprintf("%s holds %s where a value is expected", p.key(e.Key), e.Value.Kind), "give it one value, or remove it to have the default")
	return "", false
}

// list is the values of a list; one value alone is taken for a list of one.
func (p *parser) list(e yamltree.Entry, limit int) ([]string, bool) {
	var vs []string
	switch e.Value.Kind {
	case yamltree.Null:
		return nil, true
	case yamltree.Scalar:
		vs = strings.FieldsFunc(e.Value.Text, func(c rune) bool { return c == ' ' || c == ',' })
	case yamltree.List:
		for _, i := range e.Value.Items {
			if i.Kind != yamltree.Scalar {
				p.add(problem.EConfig, i.Line, fmt.Sprintf("%s holds %s in its list", p.key(e.Key), i.Kind), "write values only, like [a, b]")
				return nil, false
			}
			vs = append(vs, i.Text)
		}
	default:
		p.add(problem.EConfig, e.Line, fmt.Sprintf("%s holds %s where a list is expected", p.key(e.Key), e.Value.Kind), "write it like [a, b]")
		return nil, false
	}
	if len(vs) > limit {
		p.add(problem.EConfig, e.Line, fmt.Sprintf("%s has more than %d values", p.key(e.Key), limit), "remove some; a guest is told no more")
		return nil, false
	}
	return vs, true
}

func (p *parser) word(e yamltree.Entry, to *string, known ...string) {
	v, ok := p.scalar(e)
	if !ok {
		return
	}
	if slices.Contains(known, v) {
		*to = v
		return
	}
	fix := "write " + strings.Join(known, " or ")
	if near := problem.Nearest(v, known); near != "" {
		fix = fmt.Sprintf("did you mean %q?", near)
	}
	p.bad(e, v, "is not known", fix)
}

func (p *parser) boolean(e yamltree.Entry, to *bool) {
	v, ok := p.scalar(e)
	if !ok {
		return
	}
	switch v {
	case "true", "false":
		*to = v == "true"
	default:
		p.bad(e, v, "is not true or false", "write true or false")
	}
}

// duration reads a time between two bounds, a multiple of unit.
func (p *parser) duration(e yamltree.Entry, to *time.Duration, least, most, unit time.Duration) {
	v, ok := p.scalar(e)
	if !ok {
		return
	}
	d, err := time.ParseDuration(v)
	if days, found := strings.CutSuffix(v, "d"); found {
		var n uint64
		n, err = strconv.ParseUint(days, 10, 16)
		d = time.Duration(n) * 24 * time.Hour
	}
	if _, number := strconv.ParseUint(v, 10, 32); number == nil {
		p.bad(e, v, "has no unit", "write "+v+"s for seconds, or 1h, 30m, 7d")
	} else if err != nil {
		p.bad(e, v, "is not a duration", "write it like 1h, 30m or 7d")
	} else if d < least || d > most || d%unit != 0 {
		whole, like := " in whole seconds", "write it like 1h, 30m or 7d"
		if unit < time.Second {
			whole, like = "", "write it like 500ms or 1s"
		}
		p.bad(e, v, fmt.Sprintf("is not from %s to %s%s", short(least), short(most), whole), like)
	} else {
		*to = d
	}
}

func (p *parser) table(e yamltree.Entry, to *Table) {
	v, ok := p.scalar(e)
	if !ok {
		return
	}
	if v == "auto" {
		*to = TableAuto
		return
	}
	t := TableMain
	if n, err := strconv.ParseUint(v, 10, 32); err == nil {
		t = Table(n)
	} else if v != "main" {
		if t, ok = p.tables(v); !ok {
			p.bad(e, v, "is not a routing table", "write auto or a number, or name it in /etc/iproute2/rt_tables")
			return
		}
	}
	switch t {
	case 0, 253, 255, TableAuto: // RT_TABLE_UNSPEC, _DEFAULT, _LOCAL, _MAX
		p.bad(e, v, "is not a routing table for routes to VMs", "write main, auto, or another number, like 90")
		return
	}
	*to = t
}

func (p *parser) address(e yamltree.Entry, v string) (netip.Addr, bool) {
	ip, err := netip.ParseAddr(v)
	if err == nil && ip.Zone() == "" && !ip.Is4In6() {
		return ip, true
	}
	fix := "write the address alone, like 203.0.113.1 or 2001:db8::1"
	if host, _, cut := strings.Cut(v, "/"); cut {
		if h, err := netip.ParseAddr(host); err == nil && h.Zone() == "" {
			fix = "write the address alone: " + h.String()
		}
	} else if err == nil {
		fix = "write " + ip.WithZone("").Unmap().String()
	}
	p.bad(e, v, "is not an IP address", fix)
	return ip, false
}

func (p *parser) gateway4(e yamltree.Entry, to *netip.Addr) {
	v, ok := p.scalar(e)
	if !ok {
		return
	}
	ip, ok := p.address(e, v)
	if !ok {
		return
	}
	if !ip.Is4() || reserved(ip) {
		p.bad(e, v, "is not an IPv4 address that a gateway can have", "use 169.254.0.1, the default, or another unicast address")
		return
	}
	*to = ip
}

func (p *parser) gateway6(e yamltree.Entry, to *netip.Addr) {
	v, ok := p.scalar(e)
	if !ok {
		return
	}
	ip, ok := p.address(e, v)
	if !ok {
		return
	}
	// A router advertises itself by its link-local address (RFC 4861 §6.1.2).
	if !ip.Is6() || !ip.IsLinkLocalUnicast() || ip == netip.MustParseAddr("fe80::") {
		p.bad(e, v, "is not a link-local IPv6 address", "use fe80::1, the default, or another address of fe80::/64")
		return
	}
	*to = ip
}

func (p *parser) servers(e yamltree.Entry, to *[]netip.Addr) {
	p.addresses(e, to, MaxServers, reserved, "is not an address that a guest can reach")
}

// addresses reads a list of servers' addresses, all of it or nothing.
func (p *parser) addresses(e yamltree.Entry, to *[]netip.Addr, limit int, unfit func(netip.Addr) bool, is string) {
	vs, ok := p.list(e, limit)
	if !ok {
		return
	}
	var out []netip.Addr
	for _, v := range vs {
		ip, ok := p.address(e, v)
		switch {
		case !ok:
			return
		case unfit(ip):
			p.bad(e, v, is, "write the server's own address")
			return
		case slices.Contains(out, ip):
			p.bad(e, v, "is given twice", "remove one")
			return
		}
		out = append(out, ip)
	}
	*to = out
}

// reserved tells whether ip is none that another host can be reached at.
func reserved(ip netip.Addr) bool {
	return ip.IsUnspecified() || ip.IsLoopback() || ip.IsMulticast() || (ip.Is4() && (ip.As4()[0] == 0 || ip.As4()[0] >= 240))
}

func (p *parser) search(e yamltree.Entry, to *[]string) {
	vs, ok := p.list(e, MaxSearch)
	if !ok {
		return
	}
	var out []string
	for _, v := range vs {
		d := strings.ToLower(strings.TrimSuffix(v, "."))
		switch {
		case !names.Domain(d):
			p.bad(e, v, "is not a domain name", "write it like example.org; international names in their xn-- form")
			return
		case slices.Contains(out, d):
			p.bad(e, v, "is given twice", "remove one")
			return
		}
		out = append(out, d)
	}
	*to = out
}
