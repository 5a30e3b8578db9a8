package pool

import (
	"fmt"
	"net/netip"
	"slices"
	"sort"
	"time"

	"github.com/google/uuid"

	"github.com/slash32/slash32/pkg/intent"
	"github.com/slash32/slash32/pkg/mac"
	"github.com/slash32/slash32/pkg/problem"
)

// outgoing is how long a base that is replaced stays valid, at most (RFC 9096 §3.5).
const outgoing = 2 * time.Hour

// Blocks of a VM that is not defined any more are kept for that long, and it is
// noted once a day that it is.
const (
	keepUnseen = 7 * 24 * time.Hour
	seenEvery  = 24 * time.Hour
)

// Resolve gives the NICs of a VM that are of this network what they ask for with
// auto, and fills it in: the address into Addrs6, the prefix into Prefixes; what
// they still have of bases on their way out into Old6 and at the end of Prefixes; and
// when an address ends into Terms.
// The VM is one as intent derives it, also when it asks for nothing (any more):
// what it had is free. What cannot be given is left out, and said: EPoolFull when
// there is no room, WNoPool when there is no base (yet). When changed is true the
// pool is to be written before the VM uses what it got.
func (p *Pool) Resolve(vm *intent.VM, network string, now time.Time) (changed bool, problems problem.List) {
	r := resolver{pool: p, vm: vm, network: network, now: now}
	r.base, r.usable = p.Current(now)
	r.index()
	r.free()
	for i := range vm.NICs {
		if n := &vm.NICs[i]; n.Network.Name == network {
			r.nic(n)
		}
	}
	return r.changed, r.problems
}

// ask is a NIC, and what it asks for.
type ask struct {
	mac mac.Addr
	use string
}

// resolver is at work for one VM.
type resolver struct {
	pool     *Pool
	vm       *intent.VM
	network  string
	now      time.Time
	base     Base
	usable   bool  // there is a base
	mine     []int // of the pool's blocks, those of the VM
	changed  bool
	noPool   bool // said
	problems problem.List
}

func (r *resolver) index() {
	r.mine = r.mine[:0]
	for i, b := range r.pool.Blocks {
		if b.VM == r.vm.UUID {
			r.mine = append(r.mine, i)
		}
	}
}

// free takes back what the VM does not ask for any more, or asks for in another
// length. One without NICs is one that could not be derived.
func (r *resolver) free() {
	if len(r.vm.NICs) == 0 || !r.usable {
		return
	}
	asked := map[ask]int{} // bits
	for _, n := range r.vm.NICs {
		if n.Network.Name != r.network {
			continue
		}
		if n.Auto6 {
			asked[ask{n.MAC, useAddr}] = 128
		}
		auto := 0
		for _, x := range n.Prefixes {
			if x.Auto != 0 && !x.Deprecated {
				asked[ask{n.MAC, usePrefix(auto)}] = int(x.Auto)
				auto++
			}
		}
	}
	gone := func(b Block) bool { return asked[ask{b.MAC, b.Use}] != b.At.Bits() }
	if slices.ContainsFunc(r.mine, func(i int) bool { return gone(r.pool.Blocks[i]) }) {
		r.pool.drop(func(b Block) bool { return b.VM == r.vm.UUID && gone(b) })
		r.changed = true
		r.index()
	}
}

func (r *resolver) nic(n *intent.NIC) {
	if n.Auto6 {
		now, later := r.have(n, useAddr, 128, n.Line)
		n.Addrs6 = with(n.Addrs6, now)
		n.Old6 = with(nil, later)
		n.Terms = nil
		for _, h := range slices.Concat(now, later) {
			if h.preferred != 0 || h.until != 0 {
				n.Terms = append(n.Terms, intent.Term{Addr: h.at.Addr(), Preferred: h.preferred, Until: h.until})
			}
		}
	}
	var prefixes, out []intent.Prefix
	auto := 0
	for _, x := range n.Prefixes {
		if x.Auto == 0 || x.Net.IsValid() {
			prefixes = append(prefixes, x)
			continue
		}
		now, later := r.have(n, usePrefix(auto), int(x.Auto), x.Line)
		auto++
		for _, h := range now {
			prefixes = append(prefixes, h.fill(x))
		}
		for _, h := range later {
			out = append(out, h.fill(x))
		}
	}
	n.Prefixes = append(prefixes, out...)
}

// with are the addresses and what is held, each once.
func with(addrs []netip.Addr, more []held) []netip.Addr {
	addrs = slices.Clip(addrs)
	for _, h := range more {
		if a := h.at.Addr(); !slices.Contains(addrs, a) {
			addrs = append(addrs, a)
		}
	}
	return addrs
}

// held is something that a NIC has of a base.
type held struct {
	at               netip.Prefix
	deprecated       bool
	preferred, until int64
}

func (h held) fill(x intent.Prefix) intent.Prefix {
	x.Net, x.Deprecated, x.Preferred, x.Until = h.at, h.deprecated, h.preferred, h.until
	return x
}

// have gives the NIC its block, and returns what it has in the current base (one
// or none) and in those on their way out.
func (r *resolver) have(n *intent.NIC, use string, bits, line int) (current, out []held) {
	p := r.pool
	has := func(b Block) bool { return b.MAC == n.MAC && b.Use == use }
	if r.usable {
		at := slices.IndexFunc(r.mine, func(i int) bool { return has(p.Blocks[i]) && p.Blocks[i].Last == 0 })
		if at < 0 {
			r.give(n, use, bits, line)
		} else if b := &p.Blocks[r.mine[at]]; r.now.Sub(time.Unix(b.Seen, 0)).Abs() >= seenEvery {
			b.Seen = r.now.Unix()
			r.changed = true
		}
	} else {
		r.none(line)
	}
	for n, base := range p.Bases {
		if base.over(r.now) {
			continue
		}
		for _, i := range r.mine {
			b := p.Blocks[i]
			if !has(b) || !base.has(b) {
				continue
			}
			if _, gone := p.inUse(p.Bases[:n], join(base.Prefix, b.At), r.now); gone {
				continue
			}
			h := held{join(base.Prefix, b.At), base.deprecated(r.now), base.Preferred, base.Until}
			if r.usable && base.Number == r.base.Number {
				current = append(current, h)
			} else {
				out = append(out, h)
			}
		}
	}
	return current, out
}

// give takes a block that the NIC does not have yet.
func (r *resolver) give(n *intent.NIC, use string, bits, line int) {
	p := r.pool
	at, ok := r.place(n, use, bits)
	if !ok {
		r.full(use, bits, line)
		return
	}
	p.Blocks = append(p.Blocks, Block{VM: r.vm.UUID, MAC: n.MAC, Use: use, At: at, First: r.base.Number, Seen: r.now.Unix()})
	p.sort()
	r.changed = true
	r.index()
}

// place finds one for a block, if possible one that nobody has in an older base:
// otherwise he loses that.
func (r *resolver) place(n *intent.NIC, use string, bits int) (at netip.Prefix, ok bool) {
	p, base := r.pool, r.base.Prefix
	if len(p.Blocks) >= MaxBlocks {
		return at, false
	}
	older := p.Bases[1:] // the current one is the first
	for _, bases := range [][]Base{older, nil} {
		avoid := func(x netip.Prefix) (netip.Prefix, bool) { return p.inUse(bases, x, r.now) }
		if use == useAddr {
			at, ok = p.freeAddr(base, r.vm.UUID, n.MAC, avoid)
		} else {
			at, ok = p.freePrefix(base, bits, avoid)
		}
		if ok {
			break
		}
	}
	return at, ok
}

func (r *resolver) full(use string, bits, line int) {
	base := r.base.Prefix
	what := fmt.Sprintf("the pool %s of network %q has no /%d left", base, r.network, bits)
	fix := "undefine VMs that are not needed, ask for a longer prefix, or give the network a larger ipv6_pool; what undefined VMs had is free after a week"
	switch {
	case use != useAddr && base.Bits() >= areaBits:
		what = fmt.Sprintf("the pool %s of network %q has room for single addresses only, not for a /%d", base, r.network, bits)
		fix = "write ipv6=\"auto\" without a prefix, or give the network an ipv6_pool shorter than /64"
	case use != useAddr && bits > areaBits:
		what = fmt.Sprintf("a prefix of /%d is not taken from a pool; the longest is /%d", bits, areaBits)
		fix = fmt.Sprintf("write net=\"auto/%d\"", areaBits)
	case use != useAddr && bits <= base.Bits():
		what = fmt.Sprintf("the pool %s of network %q cannot have a /%d; its first /64 is for single addresses", base, r.network, bits)
		fix = fmt.Sprintf("ask for a prefix longer than /%d, or give the network a larger ipv6_pool", base.Bits())
	}
	r.add(problem.EPoolFull, line, what, fix)
}

// none says that there is no base, once for a VM.
func (r *resolver) none(line int) {
	if !r.noPool {
		r.noPool = true
		r.add(problem.WNoPool, line, fmt.Sprintf("network %q has no IPv6 prefix at the moment to take auto from; the VM starts without and gets it when there is one", r.network),
			"see why the upstream delegates none, with slash32 status, or set ipv6_pool of the network")
	}
}

func (r *resolver) add(code problem.Code, line int, what, fix string) {
	r.problems = append(r.problems, problem.Problem{Code: code, File: r.vm.File, Line: line, VM: r.vm.Name, What: what, Fix: fix})
}

// find is where a block at an address is, or would be.
func (p *Pool) find(a netip.Addr) (int, bool) {
	return sort.Find(len(p.Blocks), func(i int) int { return a.Compare(p.Blocks[i].At.Addr()) })
}

// Free takes back all that a VM has.
func (p *Pool) Free(vm uuid.UUID) (changed bool) {
	return p.drop(func(b Block) bool { return b.VM == vm })
}

// Sweep takes back what VMs have that are not defined and have not been for a week,
// and what was of bases that are gone. A listing that failed is none: do not Sweep
// then.
func (p *Pool) Sweep(defined []uuid.UUID, now time.Time) (changed bool) {
	known := make(map[uuid.UUID]bool, len(defined))
	for _, id := range defined {
		known[id] = true
	}
	for i, b := range p.Blocks {
		if age := now.Sub(time.Unix(b.Seen, 0)); known[b.VM] && age.Abs() >= seenEvery {
			p.Blocks[i].Seen = now.Unix()
			changed = true
		}
	}
	gone := p.drop(func(b Block) bool { return !known[b.VM] && now.Sub(time.Unix(b.Seen, 0)) >= keepUnseen })
	return p.Expire(now) || gone || changed
}

func (p *Pool) drop(gone func(Block) bool) (changed bool) {
	n := len(p.Blocks)
	p.Blocks = slices.DeleteFunc(p.Blocks, gone)
	return len(p.Blocks) != n
}

// Expire drops the bases whose valid lifetime is over, and what only they had.
func (p *Pool) Expire(now time.Time) (changed bool) {
	n := len(p.Bases)
	p.Bases = slices.DeleteFunc(p.Bases, func(b Base) bool { return b.over(now) })
	gone := p.drop(func(k Block) bool {
		return k.Last != 0 && !slices.ContainsFunc(p.Bases, func(b Base) bool { return b.has(k) })
	})
	return gone || len(p.Bases) != n
}

// Renumber makes prefix the pool's base. preferred and valid are when its
// lifetimes end; zero: never. The base before it is on its way out from then on:
// deprecated, and valid as long as it was but for two hours at most (RFC 9096
// §3.5). Blocks keep their place; what a base of another length has no room for
// gets another at the next Resolve. A prefix that is not valid, or whose time is
// over, leaves the pool without a current base.
//
// A base on its way out may overlap the new one. Then what a VM has of the older one
// and any VM has of the newer one is of the newer one alone.
func (p *Pool) Renumber(prefix netip.Prefix, preferred, valid, now time.Time) (changed bool, err error) {
	if prefix.IsValid() {
		if err := Usable(prefix); err != nil {
			return false, err
		}
	}
	p.Version = FileVersion
	changed = p.Expire(now)
	next := Base{Prefix: prefix, Preferred: unix(preferred), Until: unix(valid)}
	given := prefix.IsValid() && !next.over(now)
	if current, ok := p.Current(now); ok {
		if given && current.Prefix == prefix {
			next.Number = current.Number
			changed = changed || current != next
			p.Bases[0] = next
			return changed, nil
		}
		p.Bases[0].retire(now)
		changed = true
	}
	if !given {
		return changed, nil
	}
	next.Number = p.nextNumber()
	p.Bases = slices.DeleteFunc(p.Bases, func(b Base) bool { return b.Prefix == prefix })
	p.Bases = slices.Insert(p.Bases, 0, next)
	p.Bases = p.Bases[:min(len(p.Bases), MaxBases)]
	for i, b := range p.Blocks {
		if b.Last == 0 && !fits(prefix, b.At) {
			p.Blocks[i].Last = next.Number - 1
		}
	}
	p.Expire(now)
	return true, nil
}

// retire puts a base on its way out.
func (b *Base) retire(now time.Time) {
	b.Deprecated, b.Preferred = true, 0
	if last := now.Add(outgoing).Unix(); b.Until == 0 || b.Until > last {
		b.Until = last
	}
}

// nextNumber is a number that no base has had.
func (p *Pool) nextNumber() uint64 {
	var n uint64
	for _, b := range p.Bases {
		n = max(n, b.Number)
	}
	for _, b := range p.Blocks {
		n = max(n, b.First, b.Last)
	}
	return n + 1
}

func unix(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return max(t.Unix(), 1)
}
