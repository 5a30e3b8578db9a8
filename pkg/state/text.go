package state

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/slash32/slash32/pkg/mac"
	"github.com/slash32/slash32/pkg/marks"
)

const familyIPv6 = 10 // AF_INET6

// String is the link like "ip -d link" prints it, without what is only read.
func (l Link) String() string {
	s := fmt.Sprintf("%s mtu %d address %s group %d alias %s", l.Name, l.MTU, l.MAC, marks.LinkGroup, l.Alias())
	if l.Deviates != "" {
		s += " deviates " + l.Deviates
	}
	if l.Up {
		return s + " up"
	}
	return s + " down"
}

// String is the address like "ip address" prints it.
func (a Addr) String() string { return a.Prefix.String() + " dev " + a.Link }

// String is the neighbour like "ip neigh" prints it.
func (n Neigh) String() string {
	return n.IP.String() + " dev " + n.Link + " lladdr " + n.MAC.String() + " PERMANENT"
}

// String is the tap like "ip link" takes it.
func (t Tap) String() string {
	if t.Bridge == "" {
		return t.Name + " nomaster"
	}
	return t.Name + " master " + t.Bridge
}

// proxyString is a proxy like "ip neigh show proxy" prints it, without that
// word.
func proxyString(k NeighKey) string { return k.IP.String() + " dev " + k.Link }

// prefixString leaves out the length of a single address.
func prefixString(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

// String is the route like "ip route show table all" prints it.
func (r Route) String() string {
	var s string
	if r.Kind != "" {
		s = r.Kind + " "
	}
	s += prefixString(r.Dst)
	if r.Via.IsValid() {
		s += " via " + r.Via.String()
	}
	if r.Link != "" {
		s += " dev " + r.Link
	}
	return s + " table " + tableName(r.Table) + " proto " + strconv.Itoa(marks.RouteProtocol) +
		" metric " + strconv.FormatUint(uint64(r.Metric), 10)
}

// BelowHost is the length of the longest prefix that is not a host route.
func (r Rule) BelowHost() int {
	if r.Family == familyIPv6 {
		return 127
	}
	return 31
}

// String is the rule like "ip rule" prints it.
func (r Rule) String() string {
	s := strconv.Itoa(r.Priority) + ": from all"
	if r.Mark != 0 {
		s += fmt.Sprintf(" fwmark %#x/%#x", r.Mark, uint32(marks.FwmarkMask))
	}
	if r.Unreachable {
		s += " unreachable"
	} else {
		s += " lookup " + tableName(r.Table)
	}
	if r.SuppressDefault {
		s += " suppress_prefixlength 0"
	}
	if r.HostRoutesOnly {
		s += " suppress_prefixlength " + strconv.Itoa(r.BelowHost())
	}
	s += " proto " + strconv.Itoa(marks.RouteProtocol)
	if r.Family == familyIPv6 {
		return "-6 " + s
	}
	return "-4 " + s
}

// String is the element like "nft list set" prints it, with the set's name.
func (e Elem) String() string {
	if e.Set == SetLocal4 || e.Set == SetLocal6 {
		return e.Set + " { " + map[bool]string{true: "before ", false: "from "}[e.End] + prefixString(e.Addr) + " }"
	}
	var key []string
	if e.Link != "" {
		key = append(key, strconv.Quote(e.Link))
	}
	switch e.Set {
	case SetItself:
		key = append(key, strconv.Quote(e.Link))
	case SetARP:
		key = append(key, e.MAC.String())
	}
	if !e.MAC.IsZero() {
		key = append(key, e.MAC.String())
	}
	for _, p := range []netip.Prefix{e.Addr, e.Peer} {
		if p.IsValid() {
			key = append(key, prefixString(p))
		}
	}
	if e.Proto != 0 {
		key = append(key, protocol(e.Proto), strconv.Itoa(int(e.Port)))
	}
	s := e.Set + " { " + strings.Join(key, " . ")
	if e.Set == SetMark {
		s += fmt.Sprintf(" : %#08x", e.Mark)
	}
	if e.Limit != 0 {
		s += fmt.Sprintf(" ct count over %d", e.Limit)
	}
	if e.To.IsValid() {
		s += " : " + e.To.Addr().String()
		if e.To.Port() != 0 {
			s += " . " + strconv.Itoa(int(e.To.Port()))
		}
	}
	return s + " }"
}

// protocol is an IP protocol like nft(8) prints it.
func protocol(p uint8) string {
	switch p {
	case 6:
		return "tcp"
	case 17:
		return "udp"
	}
	return strconv.Itoa(int(p))
}

func tableName(t uint32) string {
	if t == 254 {
		return "main"
	}
	return strconv.FormatUint(uint64(t), 10)
}

// String is the change on one line: "add route 192.0.2.1 dev ...".
func (c Change) String() string {
	s := string(c.Verb) + " "
	switch {
	case c.Link != nil:
		s += "link " + c.Link.String()
	case c.Tap != nil:
		s += "tap " + c.Tap.String()
	case c.Hairpin != nil:
		s += "hairpin " + c.Hairpin.String()
	case c.Sysctl != nil:
		s += "sysctl " + c.Sysctl.Path + " = " + c.Sysctl.Value
	case c.Addr != nil:
		s += "address " + c.Addr.String()
	case c.Neigh != nil:
		s += "neighbour " + c.Neigh.String()
	case c.Proxy != nil:
		s += "proxy " + proxyString(*c.Proxy)
	case c.Route != nil:
		s += "route " + c.Route.String()
	case c.Rule != nil:
		s += "rule " + c.Rule.String()
	case c.Skeleton != nil:
		s += "table inet " + marks.NftTable + " " + *c.Skeleton
	case c.Elem != nil:
		s += "element " + c.Elem.String()
	case c.Translation != nil:
		s += "connections by " + c.Translation.String()
	case c.Flow != nil:
		s += "connections of " + prefixString(*c.Flow)
	}
	if c.Was != "" {
		s += " (was: " + c.Was + ")"
	}
	return s
}

// String is the whole state as sorted text, one object a line, the same for
// the same state.
func (s State) String() string {
	var b strings.Builder
	for _, n := range sorted(s.Links, strings.Compare) {
		fmt.Fprintln(&b, "link", s.Links[n])
	}
	for _, p := range sorted(s.Sysctls, strings.Compare) {
		fmt.Fprintln(&b, "sysctl", p, "=", s.Sysctls[p])
	}
	for _, a := range sorted(s.Addrs, compareAddr) {
		fmt.Fprintln(&b, "address", a)
	}
	for _, k := range sorted(s.Neighs, compareNeigh) {
		fmt.Fprintln(&b, "neighbour", Neigh{k, s.Neighs[k]})
	}
	for _, n := range sorted(s.Taps, strings.Compare) {
		fmt.Fprintln(&b, "tap", Tap{n, s.Taps[n]})
	}
	for _, n := range sorted(s.Hairpins, strings.Compare) {
		fmt.Fprintln(&b, "hairpin", n)
	}
	for _, k := range sorted(s.Proxies, compareNeigh) {
		fmt.Fprintln(&b, "proxy", proxyString(k))
	}
	for _, r := range sorted(s.Rules, compareRule) {
		fmt.Fprintln(&b, "rule", r)
	}
	for _, r := range sorted(s.Routes, compareRoute) {
		fmt.Fprintln(&b, "route", r)
	}
	if s.Skeleton != "" {
		fmt.Fprintln(&b, "table inet", marks.NftTable, s.Skeleton)
	}
	for _, e := range sorted(s.Elems, compareElem) {
		fmt.Fprintln(&b, "element", e)
	}
	return b.String()
}

// Document is a State as stable JSON: every list is sorted.
type Document struct {
	Links      []LinkDocument  `json:"links"`
	Sysctls    []Sysctl        `json:"sysctls"`
	Addresses  []AddrDocument  `json:"addresses"`
	Neighbours []NeighDocument `json:"neighbours"`
	Taps       []Tap           `json:"taps"`
	Hairpins   []string        `json:"hairpins"`
	Proxies    []ProxyDocument `json:"proxies"`
	Rules      []RuleDocument  `json:"rules"`
	Routes     []RouteDocument `json:"routes"`
	Skeleton   string          `json:"skeleton"`
	Elements   []ElemDocument  `json:"elements"`
}

// LinkDocument is a Link in JSON.
type LinkDocument struct {
	Name     string   `json:"name"`
	Address  mac.Addr `json:"address"`
	MTU      uint16   `json:"mtu"`
	Up       bool     `json:"up"`
	Alias    string   `json:"alias"`
	Deviates string   `json:"deviates,omitempty"`
	Ports    []string `json:"ports,omitempty"`
}

// AddrDocument is an Addr in JSON.
type AddrDocument struct {
	Link   string       `json:"link"`
	Prefix netip.Prefix `json:"prefix"`
}

// NeighDocument is a Neigh in JSON.
type NeighDocument struct {
	Link string     `json:"link"`
	IP   netip.Addr `json:"ip"`
	MAC  mac.Addr   `json:"mac"`
}

// ProxyDocument is one of State.Proxies in JSON.
type ProxyDocument struct {
	Link string     `json:"link"`
	IP   netip.Addr `json:"ip"`
}

// RuleDocument is a Rule in JSON; Family is "ipv4" or "ipv6".
type RuleDocument struct {
	Family          string `json:"family"`
	Priority        int    `json:"priority"`
	Mark            uint32 `json:"mark,omitempty"`
	Table           uint32 `json:"table"`
	Unreachable     bool   `json:"unreachable,omitempty"`
	SuppressDefault bool   `json:"suppress_default,omitempty"`
	HostRoutesOnly  bool   `json:"host_routes_only,omitempty"`
}

// RouteDocument is a Route in JSON.
type RouteDocument struct {
	Dst    netip.Prefix `json:"dst"`
	Table  uint32       `json:"table"`
	Metric uint32       `json:"metric"`
	Link   string       `json:"link,omitempty"`
	Via    *netip.Addr  `json:"via,omitempty"`
	Kind   string       `json:"kind,omitempty"`
}

// ElemDocument is an Elem in JSON.
type ElemDocument struct {
	Set     string        `json:"set"`
	Link    string        `json:"link,omitempty"`
	Address *netip.Prefix `json:"address,omitempty"`
	Peer    *netip.Prefix `json:"peer,omitempty"`
	MAC     *mac.Addr     `json:"mac,omitempty"`
	Proto   string        `json:"proto,omitempty"`
	Port    uint16        `json:"port,omitempty"`
	Mark    uint32        `json:"mark,omitempty"`
	Limit   uint32        `json:"limit,omitempty"`
	To      *netip.Addr   `json:"to,omitempty"`
	ToPort  uint16        `json:"to_port,omitempty"`
	End     bool          `json:"end,omitempty"`
}

// Document lists the state for JSON.
func (s State) Document() Document {
	d := Document{
		Links:      []LinkDocument{},
		Sysctls:    []Sysctl{},
		Addresses:  []AddrDocument{},
		Neighbours: []NeighDocument{},
		Taps:       []Tap{},
		Hairpins:   append([]string{}, sorted(s.Hairpins, strings.Compare)...),
		Proxies:    []ProxyDocument{},
		Rules:      []RuleDocument{},
		Routes:     []RouteDocument{},
		Skeleton:   s.Skeleton,
		Elements:   []ElemDocument{},
	}
	for _, n := range sorted(s.Links, strings.Compare) {
		l := s.Links[n]
		doc := LinkDocument{Name: n, Address: l.MAC, MTU: l.MTU, Up: l.Up, Alias: l.Alias(), Deviates: l.Deviates}
		if l.Ports != "" {
			doc.Ports = slices.Sorted(strings.SplitSeq(l.Ports, ","))
		}
		d.Links = append(d.Links, doc)
	}
	for _, p := range sorted(s.Sysctls, strings.Compare) {
		d.Sysctls = append(d.Sysctls, Sysctl{Path: p, Value: s.Sysctls[p]})
	}
	for _, a := range sorted(s.Addrs, compareAddr) {
		d.Addresses = append(d.Addresses, AddrDocument(a))
	}
	for _, k := range sorted(s.Neighs, compareNeigh) {
		d.Neighbours = append(d.Neighbours, NeighDocument{Link: k.Link, IP: k.IP, MAC: s.Neighs[k]})
	}
	for _, n := range sorted(s.Taps, strings.Compare) {
		d.Taps = append(d.Taps, Tap{n, s.Taps[n]})
	}
	for _, k := range sorted(s.Proxies, compareNeigh) {
		d.Proxies = append(d.Proxies, ProxyDocument(k))
	}
	for _, r := range sorted(s.Rules, compareRule) {
		doc := RuleDocument{"ipv4", r.Priority, r.Mark, r.Table, r.Unreachable, r.SuppressDefault, r.HostRoutesOnly}
		if r.Family == familyIPv6 {
			doc.Family = "ipv6"
		}
		d.Rules = append(d.Rules, doc)
	}
	for _, r := range sorted(s.Routes, compareRoute) {
		doc := RouteDocument{Dst: r.Dst, Table: r.Table, Metric: r.Metric, Link: r.Link, Kind: r.Kind}
		if r.Via.IsValid() {
			doc.Via = &r.Via
		}
		d.Routes = append(d.Routes, doc)
	}
	for _, e := range sorted(s.Elems, compareElem) {
		doc := ElemDocument{Set: e.Set, Link: e.Link, Port: e.Port, Mark: e.Mark, Limit: e.Limit, End: e.End}
		if e.Proto != 0 {
			doc.Proto = protocol(e.Proto)
		}
		if to := e.To.Addr(); to.IsValid() {
			doc.To, doc.ToPort = &to, e.To.Port()
		}
		if e.Addr.IsValid() {
			doc.Address = &e.Addr
		}
		if e.Peer.IsValid() {
			doc.Peer = &e.Peer
		}
		if !e.MAC.IsZero() {
			doc.MAC = &e.MAC
		}
		d.Elements = append(d.Elements, doc)
	}
	return d
}

// MarshalJSON writes the Document.
func (s State) MarshalJSON() ([]byte, error) { return json.Marshal(s.Document()) }
