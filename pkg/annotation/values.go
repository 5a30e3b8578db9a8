package annotation

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/slash32/slash32/pkg/names"
	"github.com/slash32/slash32/pkg/problem"
)

// guestAddr reads one address that a VM can have.
func (in *interpreter) guestAddr(a attr, v string) (netip.Addr, bool) {
	if v == "auto" {
		in.add(problem.EUnsupported, a.line, a.name+` "auto": IPv4 addresses are not taken from a pool`, "write the address itself")
		return netip.Addr{}, false
	}
	ip, ok := in.addr(a, v, "write an address like 203.0.113.42 or 2001:db8::42")
	if !ok {
		return ip, false
	}
	if is := Unfit(ip); is != "" {
		in.bad(a, v, is+", which no VM can have", "write an address that is routed to this host")
		return ip, false
	}
	return ip, true
}

// Unfit says why ip cannot be a VM's own; "" when it can.
func Unfit(ip netip.Addr) string {
	switch {
	case ip.IsUnspecified():
		return "is the unspecified address"
	case ip.IsLoopback():
		return "is a loopback address"
	case ip.IsMulticast():
		return "is a multicast address"
	case ip.IsLinkLocalUnicast():
		return "is a link-local address"
	case ip.Is4() && (ip.As4()[0] == 0 || ip.As4()[0] >= 240):
		return "is a reserved address (RFC 1122 §3.2.1.3, RFC 1112 §4)"
	case ip.Is6() && embedded.Contains(ip):
		return "is a reserved address (RFC 4291 §2.5.5)"
	}
	return ""
}

// embedded holds ::a.b.c.d, deprecated; ::ffff:a.b.c.d is refused before.
var embedded = netip.MustParsePrefix("::/96")

// addr reads any address, and says what is the matter with what is almost one.
func (in *interpreter) addr(a attr, v, otherwise string) (netip.Addr, bool) {
	ip, err := netip.ParseAddr(v)
	switch {
	case err != nil:
		if host, _, cut := strings.Cut(v, "/"); cut {
			if h, err := netip.ParseAddr(host); err == nil && h.Zone() == "" {
				in.bad(a, v, "has a prefix length", "write the address alone: "+h.String())
				return ip, false
			}
		}
		if plain, ok := withoutZeros(v); ok {
			in.bad(a, v, "has leading zeros, which some programs read as octal", "write "+plain)
			return ip, false
		}
		in.bad(a, v, "is not an IP address", otherwise)
		return ip, false
	case ip.Zone() != "":
		in.bad(a, v, "has a zone", "write "+ip.WithZone("").String())
		return ip, false
	case ip.Is4In6():
		in.bad(a, v, "is an IPv4 address in IPv6 form", "write "+ip.Unmap().String())
		return ip, false
	}
	return ip, true
}

func withoutZeros(v string) (string, bool) {
	parts := strings.Split(v, ".")
	if len(parts) != 4 {
		return "", false
	}
	for i, p := range parts {
		n, err := strconv.ParseUint(p, 10, 8)
		if err != nil {
			return "", false
		}
		parts[i] = strconv.FormatUint(n, 10)
	}
	return strings.Join(parts, "."), true
}

// servers reads a list of DNS or NTP servers and adds it to have.
func (in *interpreter) servers(a attr, have []netip.Addr) []netip.Addr {
	unfit := func(ip netip.Addr) bool { return !reachable(ip) }
	return in.addresses(a, have, MaxServers, unfit, "is not an address that a guest can reach", "servers of one kind")
}

// addresses reads a list of servers' addresses and adds it to have, limit in all.
func (in *interpreter) addresses(a attr, have []netip.Addr, limit int, unfit func(netip.Addr) bool, is, kind string) []netip.Addr {
	for _, v := range in.list(a, limit) {
		ip, ok := in.addr(a, v, "write its address; names are not looked up")
		switch {
		case !ok:
		case unfit(ip):
			in.bad(a, v, is, "write the server's own address")
		case slices.Contains(have, ip):
			in.add(problem.EDuplicate, a.line, fmt.Sprintf("%s %s is given twice", a.name, ip), "remove one")
		case len(have) == limit:
			in.tooMany(a.line, kind, limit)
			return have
		default:
			have = append(have, ip)
		}
	}
	return have
}

func (in *interpreter) search(a attr, have []string) []string {
	for _, v := range in.list(a, MaxSearch) {
		d := in.domainName(a, v)
		switch {
		case d == "":
		case slices.Contains(have, d):
			in.add(problem.EDuplicate, a.line, fmt.Sprintf("search domain %s is given twice", d), "remove one")
		case len(have) == MaxSearch:
			in.tooMany(a.line, "search domains", MaxSearch)
			return have
		default:
			have = append(have, d)
		}
	}
	return have
}

// prefixOf reads a prefix whose host bits are zero.
func (in *interpreter) prefixOf(a attr) (netip.Prefix, bool) {
	p, err := netip.ParsePrefix(a.value)
	if err != nil {
		fix := "write address/length, like " + map[bool]string{true: "10.20.0.0/16", false: "2001:db8:1:a0::/60"}[a.name == "to"]
		if ip, err := netip.ParseAddr(a.value); err == nil && ip.Zone() == "" {
			fix = fmt.Sprintf("write %s/%d", ip, ip.BitLen())
		}
		in.bad(a, a.value, "is not a prefix", fix)
		return p, false
	}
	if p.Addr().Is4In6() {
		in.bad(a, a.value, "is an IPv4 prefix in IPv6 form", "write it as IPv4")
		return p, false
	}
	if p != p.Masked() {
		in.bad(a, a.value, "has bits set beyond its length", "write "+p.Masked().String())
		return p, false
	}
	return p, true
}

func (in *interpreter) route(a attr) (netip.Prefix, bool) {
	p, ok := in.prefixOf(a)
	switch ip := p.Addr(); {
	case !ok:
		return p, false
	case p.Bits() == 0:
		in.bad(a, a.value, "is the default route, which the guest gets anyway", "remove it")
		return p, false
	case ip.IsLoopback() || ip.IsMulticast() || ip.IsLinkLocalUnicast():
		in.bad(a, a.value, "is nothing that a gateway forwards", "remove it")
		return p, false
	}
	return p, true
}

// auto6 asks for an IPv6 address from the network's pool.
func (in *interpreter) auto6(i *Interface, a attr) {
	if i.Auto6 {
		in.add(problem.EDuplicate, a.line, "auto is given twice; one address comes from the pool", "remove one")
		return
	}
	i.Auto6, i.Auto6Line = true, a.line
}

// The lengths that a VM's IPv6 prefix may have. A longer one could hold no link
// with autoconfiguration (RFC 4291 §2.5.4); a shorter one is a site's share
// (RFC 6177 §2).
const (
	MinPrefix = 48
	MaxPrefix = 64
)

func (in *interpreter) prefix(e element, net attr, got map[string]attr) (Prefix, bool) {
	out := Prefix{Line: e.line}
	var bits int
	if size, auto := strings.CutPrefix(net.value, "auto"); auto {
		n, err := strconv.ParseUint(strings.TrimPrefix(size, "/"), 10, 8)
		if err != nil || size[0] != '/' {
			in.bad(net, net.value, "is not auto and a length", "write auto/64 or auto/60")
			return Prefix{}, false
		}
		bits, out.Auto = int(n), uint8(n)
	} else {
		p, ok := in.prefixOf(net)
		switch is := Unfit(p.Addr()); {
		case !ok:
			return Prefix{}, false
		case p.Addr().Is4():
			in.bad(net, net.value, "is an IPv4 prefix; only IPv6 prefixes are a guest's", `write each IPv4 address as <address ip="..."/>`)
			return Prefix{}, false
		case is != "":
			in.bad(net, net.value, is+", which is nobody's prefix", "write a prefix that is routed to this host")
			return Prefix{}, false
		}
		bits, out.Net = p.Bits(), p
	}
	if bits < MinPrefix || bits > MaxPrefix {
		in.bad(net, net.value, fmt.Sprintf("has a length that is not from %d to %d", MinPrefix, MaxPrefix), "write a /64 for one link or a /60 for sixteen; single addresses are <address ip=\"...\"/>")
		return Prefix{}, false
	}
	mode, ok := got["mode"]
	if !ok {
		in.add(problem.EValue, e.line, fmt.Sprintf("%s has no %s \"mode\"", in.tag("prefix"), in.form.attr), "write slaac, delegate or route")
		return Prefix{}, false
	}
	if out.Mode = in.word(mode, "slaac", "delegate", "route"); out.Mode == "" {
		return Prefix{}, false
	}
	if out.Mode == "slaac" && bits != 64 {
		in.bad(net, net.value, "is not a /64, and guests make addresses in no other (RFC 4862 §5.5.3)", "write a /64, or mode "+problem.Quote("delegate"))
		return Prefix{}, false
	}
	for _, x := range [...]struct{ name, mode string }{{"length", "delegate"}, {"exclude", "delegate"}, {"onlink", "slaac"}} {
		if a, given := got[x.name]; given && out.Mode != x.mode {
			in.add(problem.EValue, a.line, fmt.Sprintf("%s %q goes with mode %q only; this one is %q", in.form.attr, x.name, x.mode, out.Mode), "remove it, or change the mode")
			return Prefix{}, false
		}
	}
	return out, in.prefixDetails(&out, bits, got)
}

func (in *interpreter) prefixDetails(out *Prefix, bits int, got map[string]attr) bool {
	if out.Mode == "delegate" {
		out.Length = MaxPrefix
	}
	if l, ok := got["length"]; ok {
		n, err := strconv.ParseUint(l.value, 10, 8)
		if err != nil || int(n) < bits || n > MaxPrefix {
			in.bad(l, l.value, fmt.Sprintf("is not a length from %d to %d", bits, MaxPrefix), "write a number, like 64")
			return false
		}
		out.Length = uint8(n)
	}
	if x, ok := got["exclude"]; ok {
		p, ok := in.prefixOf(x)
		switch {
		case !ok:
			return false
		case out.Auto != 0:
			in.bad(x, x.value, "cannot be in a prefix that is not known yet", "remove it, and add a prefix of mode slaac for the link")
			return false
		case p.Bits() != 64 || p.Bits() <= bits || !out.Net.Contains(p.Addr()):
			in.bad(x, x.value, fmt.Sprintf("is not a /64 in %s and smaller than it", out.Net), "write one /64 of it, which stays on the link (RFC 6603)")
			return false
		}
		out.Exclude = p
	}
	if a, ok := got["onlink"]; ok {
		out.OnLink = in.word(a, "yes", "no") == "yes"
	}
	return true
}

// hostname reads one label (RFC 1123 §2.1).
func (in *interpreter) hostname(a attr) string {
	if names.Label(a.value) {
		return a.value
	}
	fix := "use letters, digits and dashes, at most 63"
	if first, rest, ok := strings.Cut(a.value, "."); ok && names.Label(first) && names.Domain(rest) {
		fix = fmt.Sprintf("write hostname=%q domain=%q", first, rest)
	}
	in.bad(a, a.value, "is not a host name", fix)
	return ""
}

// domainName reads a domain's name, without the final dot; "" when it is none.
func (in *interpreter) domainName(a attr, v string) string {
	d := strings.TrimSuffix(v, ".")
	if !names.Domain(d) {
		in.bad(a, v, "is not a domain name", "write it like example.org; international names in their xn-- form")
		return ""
	}
	return strings.ToLower(d)
}
