package reconcile

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/slash32/slash32/pkg/config"
	"github.com/slash32/slash32/pkg/intent"
	"github.com/slash32/slash32/pkg/problem"
	"github.com/slash32/slash32/pkg/responder"
)

// openPools reads the networks' IPv6 pools and renumbers them to what the
// configuration says or upstream routers have given.
func (p *pass) openPools() {
	p.expiry = time.Time{}
	pools, errs := p.Spool.OpenPools(p.config, p.Now())
	p.pools = pools
	p.bad = append(p.bad, errs...)
	for _, name := range slices.Sorted(maps.Keys(p.config.Networks)) {
		if from := p.config.Networks[name].Pool6; from.Upstream != "" {
			if err := p.upstream(name, from); err != nil {
				p.bad = append(p.bad, err)
			}
		}
	}
	if p.defined != nil {
		pools.Sweep(p.defined)
		p.defined = nil
	}
	p.facts.Pools = pools.Bases()
	if t := pools.Ends(); !t.IsZero() {
		p.ends(t)
	}
	p.sayBases()
}

// upstream numbers a network from what its upstream router has given; without
// one, from a unique local prefix.
func (p *pass) upstream(name string, from config.Pool6) error {
	if p.Upstream == nil {
		return nil
	}
	given, settled := p.Upstream(from.Upstream)
	if !given.Prefix.IsValid() {
		if !settled {
			return nil // what there was stays for the moment
		}
		return p.pools.Local(name)
	}
	share, ok := p.config.Share(name, given.Prefix)
	if !ok {
		p.warnings = append(p.warnings, problem.Problem{
			Code: problem.WNoPool, What: fmt.Sprintf("network %s: the prefix %s that was given on %s is too small for the networks that ask there", name, given.Prefix, from.Upstream),
			Fix: "ask for a shorter one (length_hint), or for fewer networks",
		})
		return p.pools.Local(name)
	}
	given.Prefix = share
	return p.pools.Renumber(name, given)
}

// sayBases logs where a network's prefixes come from, when that changes.
func (p *pass) sayBases() {
	if p.bases == nil {
		p.bases = map[string]string{}
	}
	maps.DeleteFunc(p.bases, func(name string, _ string) bool { _, ok := p.config.Networks[name]; return !ok })
	for name, n := range p.config.Networks {
		base, ok := p.pools.Current(name)
		line := ""
		switch {
		case !ok && n.Pool6.Upstream != "":
			line = fmt.Sprintf("network %s: no IPv6 prefix yet from the router on %s", name, n.Pool6.Upstream)
		case !ok:
		case n.Pool6.Upstream != "" && base.Addr().IsPrivate() && !p.wasGiven(n):
			line = fmt.Sprintf("network %s: no router on %s gives a prefix; guests get the unique local %s, which this host has made and keeps", name, n.Pool6.Upstream, base)
		case n.Pool6.Upstream != "":
			line = fmt.Sprintf("network %s: guests get IPv6 of %s, given by the router on %s", name, base, n.Pool6.Upstream)
		case n.Pool6.ULA:
			line = fmt.Sprintf("network %s: guests get IPv6 of the unique local %s, which this host has made and keeps", name, base)
		default:
			line = fmt.Sprintf("network %s: guests get IPv6 of %s", name, base)
		}
		if line != "" && line != p.bases[name] {
			p.Log.Info(line)
		}
		p.bases[name] = line
	}
}

// wasGiven tells whether the network's router gives something at present.
func (p *pass) wasGiven(n config.Network) bool {
	if p.Upstream == nil {
		return false
	}
	given, _ := p.Upstream(n.Pool6.Upstream)
	return given.Prefix.IsValid()
}

// number gives a VM what it asks of its networks' pools. It reports whether the VM
// can be planned.
func (p *pass) number(v *vm, asked intent.VM) bool {
	given, ps := p.pools.Resolve(asked)
	v.problems = append(v.problems, ps...)
	if len(ps.Fatal()) > 0 {
		return false
	}
	given.NICs = slices.Clone(given.NICs)
	for i, n := range given.NICs {
		given.NICs[i].Tap = v.tap(n.MAC)
	}
	v.intent, v.asked, v.planned = given, asked, true
	return true
}

// retired notes when prefixes that a VM has no more are to be forgotten.
func (p *pass) retired(b responder.Binding) {
	for _, n := range b.NICs {
		for _, x := range n.V6.Prefixes {
			if x.Until != 0 {
				p.ends(time.Unix(x.Until, 0))
			}
		}
	}
}
