package annotation

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/slash32/slash32/pkg/problem"
)

// nat reads how the sources of a NIC are translated: the mode, and the addresses
// that it is to, beside it or behind it ("snat 203.0.113.9").
func (in *interpreter) nat(i *Interface, line int, got map[string]attr) {
	mode, given := got["mode"]
	if !given {
		mode = attr{name: "mode", value: "masquerade", line: line}
	}
	words := strings.Fields(mode.value)
	if len(words) == 0 {
		words = []string{""}
	}
	mode.value = words[0]
	if mode.value == "private" || mode.value == "all" {
		in.bad(mode, mode.value, "is a network's setting in slash32.yaml", "write masquerade or none, or leave it out to do as the network says")
		return
	}
	kind := in.word(mode, "none", "masquerade", "snat", "one-to-one")
	if kind == "" {
		return
	}
	to := attr{name: mode.name, value: strings.Join(words[1:], " "), line: mode.line}
	for _, x := range [...][2]string{{"to", "snat"}, {"public", "one-to-one"}} {
		name, with := x[0], x[1]
		a, ok := got[name]
		switch {
		case !ok:
		case kind != with:
			in.add(problem.EValue, a.line, fmt.Sprintf("%s %q goes with mode %q only; this one is %q", in.form.attr, name, with, kind), "remove it, or change the mode")
			return
		default:
			to = attr{name: name, value: strings.TrimSpace(to.value + " " + a.value), line: a.line}
		}
	}
	example := map[string]string{"snat": `mode="snat" to="203.0.113.9"`, "one-to-one": `mode="one-to-one" public="203.0.113.50"`}[kind]
	switch {
	case example == "" && to.value != "":
		in.bad(to, to.value, "stands behind a mode that has no address", "write "+kind+" alone")
		return
	case example != "" && to.value == "":
		in.add(problem.EValue, mode.line, fmt.Sprintf("%s %q names no address", mode.name, kind), "write <nat "+example+"/>")
		return
	}
	addrs, ok := in.translations(to)
	if ok {
		i.NAT, i.NATTo, i.NATLine = kind, addrs, line
	}
}

// translations reads the addresses that a VM's are translated to: one of each
// family at most.
func (in *interpreter) translations(a attr) ([]netip.Addr, bool) {
	var out []netip.Addr
	for _, v := range in.list(a, 2) {
		ip, ok := in.addr(a, v, "write an address like 203.0.113.9 or 2001:db8::9")
		if !ok {
			return nil, false
		}
		if is := Unfit(ip); is != "" {
			in.bad(a, v, is+", which nobody could answer", "write an address that is routed to this host")
			return nil, false
		}
		if slices.ContainsFunc(out, func(o netip.Addr) bool { return o.Is4() == ip.Is4() }) {
			in.bad(a, v, fmt.Sprintf("is a second IPv%d address", version(ip)), "write one of each family at most")
			return nil, false
		}
		out = append(out, ip)
	}
	return out, true
}

// forward reads one port, or several in a row, of the host's.
func (in *interpreter) forward(e element, got map[string]attr) (Forward, bool) {
	f := Forward{Line: e.line, Proto: "tcp", Family: "both"}
	if a, ok := got["proto"]; ok {
		if f.Proto = in.word(a, "tcp", "udp", "both"); f.Proto == "" {
			return f, false
		}
	}
	if a, ok := got["addr"]; ok {
		if f.Addr, ok = in.hostAddr(a); !ok {
			return f, false
		}
		f.Family = fmt.Sprintf("ipv%d", version(f.Addr))
	}
	if a, ok := got["family"]; ok {
		family := in.word(a, "ipv4", "ipv6", "both")
		if f.Addr.IsValid() && family != "" && family != f.Family {
			in.bad(a, family, "is not the family of addr "+f.Addr.String(), "remove one of the two")
			return f, false
		}
		if f.Family = family; family == "" {
			return f, false
		}
	}
	return f, in.ports(&f, got)
}

func (in *interpreter) ports(f *Forward, got map[string]attr) bool {
	a := got["port"]
	first, last, several := strings.Cut(a.value, "-")
	var ok bool
	if f.Port, ok = in.port(a, first); !ok {
		return false
	}
	f.Last = f.Port
	if several {
		if f.Last, ok = in.port(a, last); !ok {
			return false
		}
	}
	switch n := int(f.Last) - int(f.Port) + 1; {
	case n < 1:
		in.bad(a, a.value, "ends before it begins", fmt.Sprintf("write %d-%d", f.Last, f.Port))
		return false
	case n > MaxPorts:
		in.bad(a, a.value, fmt.Sprintf("is %d ports, and one forward has %d at most", n, MaxPorts), `forward fewer, or give the VM an address: <nat mode="one-to-one" public="..."/>`)
		return false
	}
	f.To = f.Port
	if to, has := got["to"]; has {
		if f.To, ok = in.port(to, to.value); !ok {
			return false
		}
		if end := int(f.To) + int(f.Last-f.Port); end > 65535 {
			in.bad(to, to.value, fmt.Sprintf("is the first of %d ports, and the last would be %d", f.Last-f.Port+1, end), "write a smaller one")
			return false
		}
	}
	for _, p := range [...]uint16{67, 68, 546, 547} { // the guests' own DHCP is with the host
		if f.Proto != "tcp" && f.Port <= p && p <= f.Last {
			in.bad(a, a.value, fmt.Sprintf("has port %d/udp, which is DHCP's", p), "write another")
			return false
		}
	}
	return true
}

func (in *interpreter) port(a attr, v string) (uint16, bool) {
	n, err := strconv.ParseUint(v, 10, 16)
	if err != nil || n == 0 {
		fix := "write a number, like 22"
		if a.name == "port" {
			fix += ", or several, like 8000-8010"
		}
		in.bad(a, v, "is not a port from 1 to 65535", fix)
		return 0, false
	}
	return uint16(n), true
}

// hostAddr reads an address that this host has, as far as that can be known
// without looking at it.
func (in *interpreter) hostAddr(a attr) (netip.Addr, bool) {
	ip, ok := in.addr(a, a.value, "write an address of the host, like 192.0.2.10")
	if !ok {
		return ip, false
	}
	if is := Unfit(ip); is != "" {
		in.bad(a, a.value, is+", by which no port is forwarded", "write another address of the host")
		return ip, false
	}
	return ip, true
}
