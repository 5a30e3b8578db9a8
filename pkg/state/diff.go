package state

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Diff lists the changes that lead from have to want, in the order in which
// they are safe, the same for the same states.
//
// First what goes: proxies, routes (so that a routing daemon withdraws them; the
// kernel announces no removal when a link goes), the tracked connections of their
// addresses, elements, neighbours, rules, links. Then what comes: the skeleton,
// links with their settings and only then up, other settings, addresses,
// elements, neighbours, rules, the taps, which then meet a guard, the routes, and
// the proxies, which draw traffic, last.
//
// An object whose key stays is replaced, not removed and added; where the
// kernel cannot (a route that moves to another table, another rule with the same
// priority), the old one goes last. A skeleton that
// comes or changes brings every wanted element right behind it. Settings are
// never removed. Neighbours and addresses of a link that goes, go with it. A tap is
// libvirt's: one that is in no bridge is put into its own, and one that is in its own
// gets the hairpin mode that is wanted; that is all.
func Diff(have, want State) []Change {
	d := differ{have: have, want: want}
	d.routesGo, d.routesLack = apart(have.Routes, want.Routes, compareRoute)
	if !d.skeletonComes() {
		d.elemsGo, d.elemsLack = apart(have.Elems, want.Elems, compareElem)
		d.out = slices.Grow(d.out, len(d.routesGo)+len(d.routesLack)+len(d.elemsGo)+len(d.elemsLack))
	}
	d.deletes()
	d.skeleton()
	d.links()
	d.addrs()
	d.elems()
	d.neighs()
	d.rules()
	d.taps()
	d.routes()
	for _, k := range without(d.want.Proxies, d.have.Proxies, compareNeigh) {
		d.add(Change{Verb: Add, Proxy: &k})
	}
	return append(d.out, d.late...)
}

type differ struct {
	have, want State
	out        []Change
	replaced   map[Route]Route // wanted route -> the one in its place
	elemsDone  bool            // added with the skeleton
	late       []Change        // deletes of what something else takes the place of

	routesGo, routesLack []Route
	elemsGo, elemsLack   []Elem
}

func (d *differ) add(c Change) { d.out = append(d.out, c) }

// linkGoes tells whether the link is there and not wanted.
func (d *differ) linkGoes(name string) bool {
	_, had := d.have.Links[name]
	_, wanted := d.want.Links[name]
	return had && !wanted
}

func (d *differ) deletes() {
	for _, k := range without(d.have.Proxies, d.want.Proxies, compareNeigh) {
		d.add(Change{Verb: Delete, Proxy: &k})
	}
	d.pairRoutes()
	taken := map[Route]bool{}
	for _, old := range d.replaced {
		taken[old] = true
	}
	type place struct {
		dst  netip.Prefix
		link string
	}
	wanted := map[place]bool{}
	if len(d.routesGo) > 0 {
		for r := range d.want.Routes {
			wanted[place{r.Dst, r.Link}] = true
		}
	}
	var flush []netip.Prefix
	for _, r := range d.routesGo {
		if taken[r] {
			continue
		}
		c := Change{Verb: Delete, Route: &r}
		if wanted[place{r.Dst, r.Link}] {
			d.late = append(d.late, c)
			continue
		}
		d.add(c)
		if _, guest := d.have.Links[r.Link]; guest { // not a default route of a table, say
			flush = append(flush, r.Dst)
		}
	}
	d.flush(flush)

	if !d.skeletonGoes() && !d.skeletonComes() {
		var keys map[Elem]Elem
		if len(d.elemsGo) > 0 {
			keys = valued(d.want.Elems)
		}
		for _, e := range d.elemsGo {
			if _, stays := keys[e.key()]; !stays {
				d.add(Change{Verb: Delete, Elem: &e})
			}
		}
		// Connections go on by what was looked up when they began. Those that are
		// made between these two see no element of what goes.
		flushed := map[netip.Prefix]bool{}
		for _, p := range flush {
			flushed[p] = true
		}
		for _, e := range d.elemsGo {
			if _, stays := keys[e.key()]; !stays && e.To.IsValid() && !flushed[e.guest()] {
				d.add(Change{Verb: Flush, Translation: &e})
			}
		}
	}
	for _, k := range without(d.have.Neighs, d.want.Neighs, compareNeigh) {
		if _, ok := d.want.Neighs[k]; !ok && !d.linkGoes(k.Link) {
			d.add(Change{Verb: Delete, Neigh: &Neigh{NeighKey: k, MAC: d.have.Neighs[k]}})
		}
	}
	places := map[[2]int]bool{}
	for r := range d.want.Rules {
		places[[2]int{r.Family, r.Priority}] = true
	}
	for _, r := range without(d.have.Rules, d.want.Rules, compareRule) {
		c := Change{Verb: Delete, Rule: &r}
		if places[[2]int{r.Family, r.Priority}] {
			d.late = append(d.late, c)
			continue
		}
		d.add(c)
	}
	for _, n := range without(d.have.Links, d.want.Links, strings.Compare) {
		if l := d.have.Links[n]; d.linkGoes(n) {
			d.add(Change{Verb: Delete, Link: &l})
		}
	}
}

func (d *differ) flush(prefixes []netip.Prefix) {
	slices.SortFunc(prefixes, netip.Prefix.Compare)
	for _, p := range slices.Compact(prefixes) {
		d.add(Change{Verb: Flush, Flow: &p})
	}
}

// skeletonGoes tells whether the whole table is to be removed.
func (d *differ) skeletonGoes() bool {
	return d.have.Skeleton != "" && d.want.Skeleton == "" && len(d.want.Links) == 0
}

// skeletonComes tells whether the table is to be made (again).
func (d *differ) skeletonComes() bool {
	return d.want.Skeleton != "" && d.want.Skeleton != d.have.Skeleton
}

func (d *differ) skeleton() {
	if d.skeletonGoes() {
		d.add(Change{Verb: Delete, Skeleton: &d.have.Skeleton})
		return
	}
	if !d.skeletonComes() {
		return
	}
	c := Change{Verb: Add, Skeleton: &d.want.Skeleton}
	if d.have.Skeleton != "" {
		c.Verb, c.Was = Replace, d.have.Skeleton
	}
	d.add(c)
	for _, e := range sorted(d.want.Elems, compareElem) {
		d.add(Change{Verb: Add, Elem: &e})
	}
	d.elemsDone = true
}

// links makes and repairs the links. A link that comes up gets its settings
// while it is down.
func (d *differ) links() {
	var up []Change
	rising := map[string]bool{} // links that are down and come up
	for _, n := range without(d.want.Links, d.have.Links, strings.Compare) {
		want := d.want.Links[n].planned()
		l, there := d.have.Links[n]
		have := l.planned()
		if there && have == want {
			continue
		}
		before := want
		before.Up = there && have.Up && want.Up
		switch {
		case !there:
			d.add(Change{Verb: Add, Link: &before})
		case have != before:
			d.add(Change{Verb: Replace, Was: have.diff(before), Link: &before})
		}
		if before.Up == want.Up {
			continue
		}
		rising[n] = true
		up = append(up, Change{Verb: Replace, Was: "down", Link: &want})
	}
	// The settings that turn forwarding on for the whole host come last: what
	// must be set before (accept_ra of the uplink) is.
	lacking := without(d.want.Sysctls, d.have.Sysctls, compareSysctl)
	var others []string
	for _, p := range lacking {
		if rising[SysctlLink(p)] {
			d.sysctl(p)
		} else {
			others = append(others, p)
		}
	}
	d.out = append(d.out, up...)
	for _, p := range others {
		d.sysctl(p)
	}
}

func (d *differ) sysctl(path string) {
	d.add(Change{Verb: Add, Was: d.have.Sysctls[path], Sysctl: &Sysctl{Path: path, Value: d.want.Sysctls[path]}})
}

// addrs adds before it deletes: when the last IPv4 address of a link goes, the
// kernel drops the routes of the link.
func (d *differ) addrs() {
	for _, a := range without(d.want.Addrs, d.have.Addrs, compareAddr) {
		d.add(Change{Verb: Add, Addr: &a})
	}
	for _, a := range without(d.have.Addrs, d.want.Addrs, compareAddr) {
		if !d.linkGoes(a.Link) {
			d.add(Change{Verb: Delete, Addr: &a})
		}
	}
}

func (d *differ) elems() {
	if d.elemsDone || len(d.elemsLack) == 0 {
		return
	}
	keys := valued(d.have.Elems)
	var flush []Elem
	for _, e := range d.elemsLack {
		old, there := keys[e.key()]
		if !there {
			d.add(Change{Verb: Add, Elem: &e})
			continue
		}
		d.add(Change{Verb: Replace, Was: old.String(), Elem: &e})
		if old.To.IsValid() {
			flush = append(flush, old)
		}
	}
	for _, e := range flush {
		d.add(Change{Verb: Flush, Translation: &e})
	}
}

func (d *differ) neighs() {
	for _, k := range without(d.want.Neighs, d.have.Neighs, compareNeigh) {
		c := Change{Verb: Add, Neigh: &Neigh{NeighKey: k, MAC: d.want.Neighs[k]}}
		if old, there := d.have.Neighs[k]; there {
			c.Verb, c.Was = Replace, old.String()
		}
		d.add(c)
	}
}

func (d *differ) rules() {
	for _, r := range without(d.want.Rules, d.have.Rules, compareRule) {
		d.add(Change{Verb: Add, Rule: &r})
	}
}

func (d *differ) taps() {
	for _, name := range without(d.want.Taps, d.have.Taps, strings.Compare) {
		if bridge, there := d.have.Taps[name]; there && bridge == "" {
			d.add(Change{Verb: Add, Tap: &Tap{Name: name, Bridge: d.want.Taps[name]}})
		}
	}
	for _, name := range sorted(d.want.Taps, strings.Compare) {
		_, wanted := d.want.Hairpins[name]
		_, is := d.have.Hairpins[name]
		if bridge, there := d.have.Taps[name]; wanted == is || !there || bridge != "" && bridge != d.want.Taps[name] {
			continue
		}
		verb := Add
		if is {
			verb = Delete
		}
		d.add(Change{Verb: verb, Hairpin: &Tap{Name: name, Bridge: d.want.Taps[name]}})
	}
}

type routeKey struct {
	dst           netip.Prefix
	table, metric uint32
}

func (r Route) key() routeKey { return routeKey{r.Dst, r.Table, r.Metric} }

// pairRoutes finds the wanted routes that take the place of one with the same
// key. A route over a link that goes is not replaced but withdrawn first.
func (d *differ) pairRoutes() {
	d.replaced = map[Route]Route{}
	free := map[routeKey][]Route{}
	for _, r := range d.routesGo {
		if !d.linkGoes(r.Link) {
			free[r.key()] = append(free[r.key()], r)
		}
	}
	for _, r := range d.routesLack {
		if f := free[r.key()]; len(f) > 0 {
			d.replaced[r], free[r.key()] = f[0], f[1:]
		}
	}
}

// routes adds what lacks. Connections of a prefix that moves from one VM of
// ours to another are flushed once it has moved.
func (d *differ) routes() {
	var flush []netip.Prefix
	for _, r := range d.routesLack {
		old, ok := d.replaced[r]
		if !ok {
			d.add(Change{Verb: Add, Route: &r})
			continue
		}
		d.add(Change{Verb: Replace, Was: old.String(), Route: &r})
		from, ours := d.have.Links[old.Link]
		if ours && old.Link != r.Link && from.UUID != d.want.Links[r.Link].UUID {
			flush = append(flush, r.Dst)
		}
	}
	d.flush(flush)
}

// planned is the link without what is only read.
func (l Link) planned() Link {
	l.Ports, l.Index = "", 0
	return l
}

// diff says what of l is not as in want.
func (l Link) diff(want Link) string {
	var s []string
	if l.Up && !want.Up {
		s = append(s, "up")
	}
	if !l.Up && want.Up {
		s = append(s, "down")
	}
	if l.MTU != want.MTU {
		s = append(s, "mtu "+strconv.Itoa(int(l.MTU)))
	}
	if l.MAC != want.MAC {
		s = append(s, "address "+l.MAC.String())
	}
	if l.UUID != want.UUID || l.Guest != want.Guest {
		s = append(s, "alias "+l.Alias())
	}
	if l.Deviates != want.Deviates {
		s = append(s, l.Deviates)
	}
	return strings.Join(s, " ")
}

// guest is the guest's side of an element that translates.
func (e Elem) guest() netip.Prefix {
	switch e.Set {
	case SetSNAT4, SetSNAT6, SetSNATNet4, SetSNATNet6:
		return e.Addr
	}
	return host(e.To.Addr())
}

// key is the element without its value.
func (e Elem) key() Elem {
	e.Mark, e.Limit, e.To = 0, 0, netip.AddrPort{}
	return e
}

// valued finds the elements that have a value by their key: the others are
// their key.
func valued(m map[Elem]struct{}) map[Elem]Elem {
	keys := map[Elem]Elem{}
	for e := range m {
		if e.Mark != 0 || e.Limit != 0 || e.To != (netip.AddrPort{}) {
			keys[e.key()] = e
		}
	}
	return keys
}

func compareRoute(a, b Route) int {
	return cmp.Or(
		cmp.Compare(a.Table, b.Table),
		a.Dst.Compare(b.Dst),
		cmp.Compare(a.Metric, b.Metric),
		strings.Compare(a.Link, b.Link),
		a.Via.Compare(b.Via),
		strings.Compare(a.Kind, b.Kind),
	)
}

// compareElem compares most with the least: a cold start sorts all there are.
func compareElem(a, b Elem) int {
	if c := strings.Compare(a.Set, b.Set); c != 0 {
		return c
	}
	if c := cmp.Compare(b.Addr.Bits(), a.Addr.Bits()); c != 0 { // what is one set in the kernel stays together
		return c
	}
	if c := strings.Compare(a.Link, b.Link); c != 0 {
		return c
	}
	if c := a.Addr.Compare(b.Addr); c != 0 {
		return c
	}
	return cmp.Or(
		a.Peer.Compare(b.Peer),
		slices.Compare(a.MAC[:], b.MAC[:]),
		cmp.Compare(a.Proto, b.Proto),
		cmp.Compare(a.Port, b.Port),
		cmp.Compare(a.Mark, b.Mark),
		cmp.Compare(a.Limit, b.Limit),
		a.To.Compare(b.To),
		endFirst(a, b), // where one interval ends and the next begins
	)
}

func endFirst(a, b Elem) int {
	switch {
	case a.End == b.End:
		return 0
	case a.End:
		return -1
	}
	return 1
}

func compareNeigh(a, b NeighKey) int {
	return cmp.Or(strings.Compare(a.Link, b.Link), a.IP.Compare(b.IP))
}

func compareAddr(a, b Addr) int {
	return cmp.Or(strings.Compare(a.Link, b.Link), a.Prefix.Compare(b.Prefix))
}

func compareRule(a, b Rule) int {
	suppress := func(r Rule) int {
		switch {
		case r.SuppressDefault:
			return 1
		case r.HostRoutesOnly:
			return 2
		case r.Unreachable:
			return 3
		}
		return 0
	}
	return cmp.Or(
		cmp.Compare(a.Family, b.Family),
		cmp.Compare(a.Priority, b.Priority),
		cmp.Compare(a.Mark, b.Mark),
		cmp.Compare(a.Table, b.Table),
		cmp.Compare(suppress(a), suppress(b)),
	)
}

func compareSysctl(a, b string) int {
	last := func(p string) int {
		switch p {
		case "net/ipv4/ip_forward":
			return 1
		case "net/ipv6/conf/all/forwarding":
			return 2
		}
		return 0
	}
	return cmp.Or(cmp.Compare(last(a), last(b)), strings.Compare(a, b))
}
