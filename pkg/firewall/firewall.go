// Package firewall is a model of other programs' nftables chains and of what a
// packet meets in them. It is pure: package kernel fills it in.
package firewall

import (
	"bytes"
	"slices"
)

// Ruleset is the chains of all tables that have a base chain at the forward hook.
type Ruleset struct {
	Chains  []Chain
	Partial bool // there were more rules than are read; nothing is certain
}

// Chain is one chain with its rules.
type Chain struct {
	Family string // ip, ip6 or inet
	Table  string
	Name   string
	// Forward tells that it is a base chain at the forward hook, Drop that its
	// policy is to drop.
	Forward, Drop bool
	Priority      int32
	Rules         []Rule
}

// Rule is one rule: when all of Matches hold, the verdict follows.
type Rule struct {
	Handle  uint64
	Comment string
	Matches []Match
	Verdict Verdict // "" goes on
	Chain   string  // that Jump and Goto name
	Cases   []Case  // of a verdict map, looked up by Field
	Field   Field
}

// Case is one element of a verdict map.
type Case struct {
	Key     []byte
	Verdict Verdict
	Chain   string
}

// Verdict is what a rule does with a packet.
type Verdict string

// The verdicts. Other is one that takes the packet elsewhere, like a queue.
const (
	Accept Verdict = "accept"
	Drop   Verdict = "drop"
	Return Verdict = "return"
	Jump   Verdict = "jump"
	Goto   Verdict = "goto"
	Other  Verdict = "other"
)

// Field is what of a packet a match looks at.
type Field uint8

// The fields. What a match of Unknown says is not known.
const (
	Unknown Field = iota
	IIFName
	OIFName
	IIFGroup
	OIFGroup
	NFProto
	L4Proto
	CTState
	CTStatus
	Source
	Destination
	Bridged // one byte, 1 for a frame that is bridged and not routed
)

// Match compares a field, as far as Mask covers it (nil: all of it), with values
// of which one must be its beginning. Negate turns it round.
type Match struct {
	Field  Field
	Mask   []byte
	Values [][]byte
	Negate bool
}

// Unconditional tells whether every packet meets the rule's verdict.
func (r Rule) Unconditional() bool { return len(r.Matches) == 0 && len(r.Cases) == 0 }

// Packet is what is known of a packet, field by field in the bytes that the
// kernel has; a field that lacks is not known.
type Packet map[Field][]byte

// Fate is what may become of a packet in one base chain: both are true when it
// depends on what is not known.
type Fate struct {
	Accepted, Dropped bool
	By                string // where it may be dropped: chain FORWARD's policy, chain X
}

// steps bounds the walk through one base chain: chains may jump to each other.
const (
	steps    = 200_000
	maxDepth = 16 // NFT_JUMP_STACK_SIZE
)

// Fate follows the packet through a base chain.
func (s Ruleset) Fate(base Chain, p Packet) Fate {
	w := walker{packet: p, chains: map[string]*Chain{}}
	for i, c := range s.Chains {
		if c.Family == base.Family && c.Table == base.Table {
			w.chains[c.Name] = &s.Chains[i]
		}
	}
	if w.walk(base.Name, 0) {
		if base.Drop {
			w.drop("the policy of chain " + base.Name)
		} else {
			w.fate.Accepted = true
		}
	}
	if w.lost || s.Partial {
		w.fate.Accepted, w.fate.Dropped = true, true
	}
	return w.fate
}

type walker struct {
	packet Packet
	chains map[string]*Chain
	fate   Fate
	taken  int
	lost   bool // the walk was given up
}

// drop notes the last place: those before it were only possible, since the walk went
// on.
func (w *walker) drop(by string) { w.fate.Dropped, w.fate.By = true, by }

// walk tells whether the packet may come out at the end of the chain.
func (w *walker) walk(name string, depth int) (through bool) {
	c := w.chains[name]
	if c == nil || depth > maxDepth {
		w.lost = true
		return true
	}
	for _, r := range c.Rules {
		if w.taken++; w.taken > steps {
			w.lost = true
			return true
		}
		met := w.met(r.Matches)
		if met == no {
			continue
		}
		ended, out := w.verdicts(r, c.Name, depth)
		through = through || out
		if met == yes && ended {
			return through
		}
	}
	return true
}

// verdicts follows what a rule does. ended tells that the packet does not come to
// the next rule, out that it may come out at the end of the chain.
func (w *walker) verdicts(r Rule, chain string, depth int) (ended, out bool) {
	if len(r.Cases) == 0 {
		return w.verdict(r.Verdict, r.Chain, chain, depth)
	}
	value, known := w.packet[r.Field]
	for _, c := range r.Cases {
		if known && !bytes.HasPrefix(value, c.Key) {
			continue
		}
		end, o := w.verdict(c.Verdict, c.Chain, chain, depth)
		out = out || o
		if known {
			return end, out
		}
	}
	return false, out
}

func (w *walker) verdict(v Verdict, to, chain string, depth int) (ended, out bool) {
	switch v {
	case Accept:
		w.fate.Accepted = true
		return true, false
	case Drop:
		w.drop("chain " + chain)
		return true, false
	case Return:
		return true, true
	case Jump:
		return !w.walk(to, depth+1), false
	case Goto:
		return true, w.walk(to, depth+1)
	case Other:
		w.fate.Accepted, w.fate.Dropped = true, true
		return true, false
	}
	return false, false
}

type answer int

const (
	no answer = iota
	maybe
	yes
)

// met tells whether the packet meets all matches.
func (w *walker) met(ms []Match) answer {
	all := yes
	for _, m := range ms {
		all = min(all, w.packet.meets(m))
	}
	return all
}

func (p Packet) meets(m Match) answer {
	value, known := p[m.Field]
	if m.Field == Unknown || !known {
		return maybe
	}
	if m.Mask != nil {
		if len(m.Mask) > len(value) {
			return maybe
		}
		value = slices.Clone(value[:len(m.Mask)])
		for i := range value {
			value[i] &= m.Mask[i]
		}
	}
	found := slices.ContainsFunc(m.Values, func(v []byte) bool { return bytes.HasPrefix(value, v) })
	if found != m.Negate {
		return yes
	}
	return no
}
