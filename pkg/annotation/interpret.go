package annotation

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/slash32/slash32/pkg/mac"
	"github.com/slash32/slash32/pkg/names"
	"github.com/slash32/slash32/pkg/problem"
)

// element is the annotation before its values are understood: what XML and
// YAML have in common.
type element struct {
	name  string
	line  int
	attrs []attr
	kids  []element
	text  string
}

type attr struct {
	name, value string
	line        int
}

// form is how the annotation was written; it only makes a difference for what
// messages call things.
type form struct {
	attr, element string
	tag           string // format of an element's name
}

var (
	xmlForm  = form{"attribute", "element", "<%s>"}
	yamlForm = form{"key", "key", "%s"}
)

// How many of each the annotation may have: what fits into DHCP and RA
// messages, and into a plan of reasonable size.
const (
	MaxInterfaces = 16
	MaxAddresses  = 64 // per interface, as all below
	MaxServers    = 8  // DNS, and again NTP
	MaxSearch     = 8
	MaxRoutes     = 16
	MaxPrefixes   = 16
	MaxForwards   = 64
	MaxPorts      = 1024 // that one <forward> has
	MaxBoots      = 8
	MaxOptions    = 32
	MaxRelays     = 4
)

// MTUs that the annotation and the configuration may give, in bytes: from what
// every IPv4 host takes (RFC 791) to what a bridge can have.
const (
	MinMTU = 576
	MaxMTU = 65535
)

// The attributes of <network>: the domain's own, and the short form for the
// only or first NIC.
var (
	domainAttrs    = []string{"hostname", "domain"}
	shortAttrs     = []string{"network", "client", "mtu", "ipv4", "ipv6", "dns", "search", "ntp", "nat"}
	networkAttrs   = append(slices.Clone(domainAttrs), shortAttrs...)
	interfaceAttrs = []string{"mac", "network", "client", "mtu"}
	interfaceKids  = []string{"address", "prefix", "dns", "search", "ntp", "route", "nat", "forward", "boot", "option", "relay", "portal"}
)

// leafAttrs has the attributes of the elements in <interface>, the one that a
// bare value stands for first.
var leafAttrs = map[string][]string{
	"address": {"ip"},
	"prefix":  {"net", "mode", "length", "exclude", "onlink"},
	"dns":     {"server"},
	"search":  {"domain"},
	"ntp":     {"server"},
	"route":   {"to"},
	"nat":     {"mode", "to", "public"},
	"forward": {"port", "to", "proto", "family", "addr"},
	"boot":    {"file", "server", "for", "once", "params"},
	"option":  {"code", "type", "value", "force"},
	"relay":   {"server"},
	"portal":  {"url"},
}

// meant has words that people write for ours and that are not just misspelt.
var meant = map[string]string{
	"nic": "interface", "interfaces": "interface", "addresses": "address", "addr": "address", "ip": "address",
	"routes": "route", "nameserver": "dns", "dhcp": "client", "prefixes": "prefix", "name": "hostname", "profile": "network",
}

type interpreter struct {
	form     form
	problems problem.List
}

// interpret turns the element <network> into the annotation.
func interpret(root element, f form) (*Network, problem.List) {
	in := &interpreter{form: f}
	n := &Network{Line: root.line}
	short := Interface{Line: root.line}
	shortName := ""
	in.attrs(root, networkAttrs, func(a attr) {
		switch a.name {
		case "hostname":
			n.Hostname = in.hostname(a)
			return
		case "domain":
			n.Domain = in.domainName(a, a.value)
			return
		}
		if shortName == "" {
			shortName = a.name
		}
		in.short(&short, a)
	})
	for _, k := range root.kids {
		if k.name != "interface" {
			in.unknownKid(root, k, []string{"interface"})
			continue
		}
		if shortName != "" {
			in.add(problem.EDuplicate, k.line, fmt.Sprintf("%s beside %s %q of %s, which is the short form for the only NIC", in.tag("interface"), in.form.attr, shortName, in.tag("network")),
				fmt.Sprintf("move %s into the %s, or remove the %[2]s", shortName, in.tag("interface")))
			break
		}
		if len(n.Interfaces) == MaxInterfaces {
			in.tooMany(k.line, in.tag("interface"), MaxInterfaces)
			break
		}
		n.Interfaces = append(n.Interfaces, in.iface(k))
	}
	if len(n.Interfaces) == 0 {
		n.Interfaces = []Interface{short}
	}
	in.noText(root, "")
	return n, in.problems
}

func (in *interpreter) add(code problem.Code, line int, what, fix string) {
	if len(in.problems) < maxProblems {
		in.problems = append(in.problems, problem.Problem{Code: code, Line: line, What: what, Fix: fix})
	}
}

// short reads one attribute of the short form.
func (in *interpreter) short(i *Interface, a attr) {
	switch a.name {
	case "network", "client", "mtu":
		in.ifaceAttr(i, a)
	case "nat":
		in.nat(i, a.line, map[string]attr{"mode": a})
	case "ipv4", "ipv6":
		for _, v := range in.list(a, MaxAddresses) {
			if v == "auto" && a.name == "ipv6" {
				in.auto6(i, a)
			} else if ip, ok := in.guestAddr(a, v); !ok {
				continue
			} else if family := fmt.Sprintf("ipv%d", version(ip)); family != a.name {
				in.bad(a, v, "is not an IPv"+a.name[3:]+" address", fmt.Sprintf("move it to %s %q", in.form.attr, family))
			} else {
				i.Addresses = append(i.Addresses, Address{a.line, ip})
			}
		}
	case "dns":
		i.DNS = in.servers(a, i.DNS)
	case "ntp":
		i.NTP = in.servers(a, i.NTP)
	case "search":
		i.Search = in.search(a, i.Search)
	}
}

func (in *interpreter) ifaceAttr(i *Interface, a attr) {
	switch a.name {
	case "mac":
		m, err := mac.Parse(a.value)
		if err != nil || m.IsZero() || m.IsMulticast() {
			in.bad(a, a.value, "is not the MAC address of a NIC", "write it as libvirt does, like 52:54:00:ab:cd:01")
			return
		}
		i.MAC = m
	case "network":
		if !names.Network(a.value) {
			in.bad(a, a.value, "is not the name of a network", "use a name that slash32.yaml has under networks")
			return
		}
		i.Network = a.value
	case "client":
		i.Client = in.word(a, "auto", "routed", "classic")
	case "mtu":
		v, err := strconv.ParseUint(a.value, 10, 16)
		if err != nil || v < MinMTU {
			in.bad(a, a.value, fmt.Sprintf("is not an MTU from %d to %d", MinMTU, MaxMTU), "write the bytes as a number, like 1500")
			return
		}
		i.MTU = uint16(v)
	}
}

func (in *interpreter) iface(e element) Interface {
	i := Interface{Line: e.line}
	in.attrs(e, interfaceAttrs, func(a attr) { in.ifaceAttr(&i, a) })
	nat := false
	for _, k := range e.kids {
		known, ok := leafAttrs[k.name]
		if !ok {
			in.unknownKid(e, k, interfaceKids)
			continue
		}
		for _, kk := range k.kids {
			in.unknownKid(k, kk, nil)
		}
		in.noText(k, known[0])
		got := map[string]attr{}
		in.attrs(k, known, func(a attr) { got[a.name] = a })
		main, has := got[known[0]]
		if !has && k.name != "nat" {
			if k.text == "" {
				in.add(problem.EValue, k.line, fmt.Sprintf("%s has no %s %q", in.tag(k.name), in.form.attr, known[0]), in.example(k.name))
			}
			continue
		}
		switch k.name {
		case "address":
			if main.value == "auto" {
				in.auto6(&i, main)
			} else if ip, ok := in.guestAddr(main, main.value); ok && in.room(k, len(i.Addresses), MaxAddresses) {
				i.Addresses = append(i.Addresses, Address{k.line, ip})
			}
		case "prefix":
			if p, ok := in.prefix(k, main, got); ok && in.room(k, len(i.Prefixes), MaxPrefixes) {
				i.Prefixes = append(i.Prefixes, p)
			}
		case "dns":
			i.DNS = in.servers(main, i.DNS)
		case "ntp":
			i.NTP = in.servers(main, i.NTP)
		case "search":
			i.Search = in.search(main, i.Search)
		case "route":
			if p, ok := in.route(main); ok && in.room(k, len(i.Routes), MaxRoutes) {
				i.Routes = append(i.Routes, p)
			}
		case "nat":
			if nat {
				in.add(problem.EDuplicate, k.line, "a second "+in.tag("nat")+" in one "+in.tag("interface"), "keep one")
			}
			nat = true
			in.nat(&i, k.line, got)
		case "forward":
			if f, ok := in.forward(k, got); ok && in.room(k, len(i.Forwards), MaxForwards) {
				i.Forwards = append(i.Forwards, f)
			}
		case "boot":
			if boot, ok := in.boot(k, main, got); ok && in.room(k, len(i.Boots), MaxBoots) {
				i.Boots = in.addBoot(i.Boots, boot)
			}
		case "option":
			if o, ok := in.option(k, main, got); ok && in.room(k, len(i.Options), MaxOptions) {
				i.Options = in.addOption(i.Options, o)
			}
		case "relay":
			i.Relay = in.relays(main, i.Relay)
		case "portal":
			if i.Portal != "" {
				in.add(problem.EDuplicate, k.line, "a second "+in.tag("portal")+" in one "+in.tag("interface"), "keep one")
				continue
			}
			i.Portal = in.portal(main)
		}
	}
	in.noText(e, "")
	return i
}

// attrs calls f for each known attribute and reports the others.
func (in *interpreter) attrs(e element, known []string, f func(attr)) {
	seen := map[string]bool{}
	for _, a := range e.attrs {
		switch {
		case seen[a.name]:
			in.add(problem.EDuplicate, a.line, fmt.Sprintf("%s %q twice in %s", in.form.attr, clip(a.name), in.tag(e.name)), "keep one; lists are separated by spaces")
		case !slices.Contains(known, a.name):
			in.unknownAttr(e, a, known)
		case strings.TrimSpace(a.value) == "":
			in.add(problem.EValue, a.line, fmt.Sprintf("%s %q of %s is empty", in.form.attr, a.name, in.tag(e.name)), "give it a value or remove it")
		default:
			a.value = strings.TrimSpace(a.value)
			f(a)
		}
		seen[a.name] = true
	}
}

func (in *interpreter) unknownAttr(e element, a attr, known []string) {
	fix := ""
	if e.name == "network" && in.form == yamlForm {
		known = append(slices.Clone(known), "interface")
	}
	switch near := likely(a.name, known); {
	case near != "":
		fix = fmt.Sprintf("did you mean %q?", near)
	case e.name == "network" && (a.name == "mac" || slices.Contains(interfaceKids, a.name) || slices.Contains(interfaceKids, meant[a.name])):
		fix = fmt.Sprintf("for addresses use ipv4 and ipv6; for the rest an %s inside %s", in.tag("interface"), in.tag("network"))
		if in.form == yamlForm {
			fix = "for addresses use ipv4 and ipv6; for the rest a list below interface"
		}
	case e.name == "interface" && (a.name == "ipv4" || a.name == "ipv6"):
		fix = in.example("address") + " in the " + in.tag("interface")
	case e.name == "interface" && slices.Contains(interfaceKids, a.name):
		fix = in.example(a.name) + " in the " + in.tag("interface")
	case e.name == "interface" && slices.Contains(domainAttrs, a.name):
		fix = "move it to " + in.tag("network")
		if in.form == yamlForm {
			fix = "move it out of interface, to the top"
		}
	case len(known) == 1:
		fix = "the only one is " + known[0]
	default:
		fix = "use one of " + strings.Join(known, ", ")
	}
	in.add(problem.EUnknown, a.line, fmt.Sprintf("unknown %s %s in %s", in.form.attr, problem.Quote(a.name), in.tag(e.name)), fix)
}

func (in *interpreter) unknownKid(e, k element, known []string) {
	fix := ""
	switch near := likely(k.name, known); {
	case near != "":
		fix = fmt.Sprintf("did you mean %s?", in.tag(near))
	case e.name == "network" && slices.Contains(interfaceKids, k.name):
		fix = fmt.Sprintf("put it in an <interface>, like <interface><%s .../></interface>", k.name)
	case e.name == "network" && slices.Contains(networkAttrs, k.name):
		fix = fmt.Sprintf("write it as an attribute, like <network %s=\"...\"/>", k.name)
	case len(known) == 0:
		fix = fmt.Sprintf("%s has attributes only: %s", in.tag(e.name), strings.Join(leafAttrs[e.name], ", "))
	default:
		fix = "use one of " + strings.Join(known, ", ")
	}
	in.add(problem.EUnknown, k.line, fmt.Sprintf("unknown %s %s in %s", in.form.element, problem.Quote(k.name), in.tag(e.name)), fix)
}

// likely is the known word that was meant, if one is close.
func likely(word string, known []string) string {
	if m := meant[strings.ToLower(word)]; slices.Contains(known, m) {
		return m
	}
	return problem.Nearest(word, known)
}

// noText reports text in an element; where it was meant for an attribute the
// fix shows how.
func (in *interpreter) noText(e element, main string) {
	if e.text == "" {
		return
	}
	fix := "remove it; values are attributes"
	if main != "" {
		fix = fmt.Sprintf("write <%s %s=%s/>", e.name, main, problem.Quote(e.text))
	}
	in.add(problem.EValue, e.line, fmt.Sprintf("text %s in <%s>", problem.Quote(e.text), e.name), fix)
}

func (in *interpreter) room(e element, have, limit int) bool {
	if have < limit {
		return true
	}
	in.tooMany(e.line, in.tag(e.name)+" in one "+in.tag("interface"), limit)
	return false
}

func (in *interpreter) tooMany(line int, what string, limit int) {
	in.add(problem.EValue, line, fmt.Sprintf("more than %d %s", limit, what), "remove some")
}

// bad reports a value that is malformed or out of range.
func (in *interpreter) bad(a attr, value, is, fix string) {
	in.add(problem.EValue, a.line, fmt.Sprintf("%s %s %s", a.name, problem.Quote(value), is), fix)
}

func (in *interpreter) list(a attr, limit int) []string {
	vs := strings.FieldsFunc(a.value, func(c rune) bool { return strings.ContainsRune(", \t\r\n", c) })
	if len(vs) > limit {
		in.tooMany(a.line, "values in "+a.name, limit)
		return vs[:limit]
	}
	return vs
}

func (in *interpreter) word(a attr, known ...string) string {
	if slices.Contains(known, a.value) {
		return a.value
	}
	fix := "write " + strings.Join(known, " or ")
	if near := problem.Nearest(a.value, known); near != "" {
		fix = fmt.Sprintf("did you mean %q?", near)
	}
	in.bad(a, a.value, "is not known", fix)
	return ""
}

func version(ip netip.Addr) int {
	if ip.Is4() {
		return 4
	}
	return 6
}

// tag is an element's name as it is written.
func (in *interpreter) tag(name string) string { return fmt.Sprintf(in.form.tag, clip(name)) }

// example shows how an element is written.
func (in *interpreter) example(name string) string {
	x, y := "", ""
	switch name {
	case "address":
		x, y = `ip="203.0.113.42"`, "203.0.113.42"
	case "prefix":
		x, y = `net="2001:db8:1:a0::/60" mode="delegate"`, `{net: "2001:db8:1:a0::/60", mode: delegate}`
	case "dns":
		x, y = `server="9.9.9.9"`, "9.9.9.9"
	case "search":
		x, y = `domain="example.org"`, "example.org"
	case "ntp":
		x, y = `server="203.0.113.1"`, "203.0.113.1"
	case "route":
		x, y = `to="10.20.0.0/16"`, "10.20.0.0/16"
	case "nat":
		x, y = `mode="masquerade"`, "masquerade"
	case "forward":
		x, y = `proto="tcp" port="8022" to="22"`, "{proto: tcp, port: 8022, to: 22}"
	case "boot":
		x, y = `server="203.0.113.5" file="ipxe.efi"`, "{server: 203.0.113.5, file: ipxe.efi}"
	case "option":
		x, y = `code="43" type="hex" value="01:04:0a"`, `{code: 43, type: hex, value: "01:04:0a"}`
	case "relay":
		x, y = `server="192.0.2.11"`, "192.0.2.11"
	case "portal":
		x, y = `url="https://portal.example.org/api"`, `"https://portal.example.org/api"`
	}
	if in.form == yamlForm {
		return fmt.Sprintf("write %s: %s", name, y)
	}
	return fmt.Sprintf("write <%s %s/>", name, x)
}
