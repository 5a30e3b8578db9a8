package kernel

import (
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/slash32/slash32/pkg/state"
)

// What golang.org/x/sys/unix lacks of linux/netfilter/nf_tables.h.
const (
	setExpressions = 18    // NFTA_SET_EXPRESSIONS
	setFlagExpr    = 0x100 // NFT_SET_EXPR
	connlimitExpr  = "connlimit"
	connlimitCount = 1    // NFTA_CONNLIMIT_COUNT
	connlimitFlags = 2    // NFTA_CONNLIMIT_FLAGS
	connlimitOver  = 1    // NFT_CONNLIMIT_F_INV
	priorityMangle = -150 // NF_IP_PRI_MANGLE: behind connection tracking
	templateLimit  = 1    // of a set: its elements have their own
)

// tracking are the sets that say what is tracked, and how much of it.
func tracking() []set {
	return []set{
		{name: state.SetNoTrack, key: []datatype{typeIfname()}},
		{name: state.SetNoTrackUplink, key: []datatype{typeIfname()}},
		{name: state.SetLimitFrom, key: []datatype{typeIfname()}, limited: true},
		{name: state.SetLimitTo, key: []datatype{typeIfname()}, limited: true},
	}
}

// untracked are the rules by which packets between a guest and an uplink, or two
// guests, that nothing is translated for are not tracked. What is to or from the
// host itself is, and what another interface is part of: else one direction of it
// would be. They stand behind the mark, which decides the route.
func untracked() [][]expr.Any {
	out := part{&expr.Fib{Register: 1, FlagDADDR: true, FlagMARK: true, ResultOIFNAME: true}}
	no := part{&expr.Notrack{}}
	return [][]expr.Any{
		rule(iifname(), lookup(state.SetNoTrack), out, lookup(state.SetNoTrack), no),
		rule(iifname(), lookup(state.SetNoTrack), out, lookup(state.SetNoTrackUplink), no),
		rule(iifname(), lookup(state.SetNoTrackUplink), out, lookup(state.SetNoTrack), no),
	}
}

// limiting are the chains that refuse a guest's connections beyond its limit: those
// that it begins, and by another count those that begin elsewhere. The element that
// is found counts, and ends the rule as long as there are not too many.
func limiting() []chain {
	begins := ctState(expr.CtStateBitNEW)
	return []chain{
		{name: "limit_from", kind: "filter", hook: hookPrerouting, priority: priorityMangle, rules: [][]expr.Any{
			rule(fromGuest(), begins, iifname(), lookup(state.SetLimitFrom), verdict(expr.VerdictDrop, "")),
		}},
		{name: "limit_to", kind: "filter", hook: hookForward, priority: priorityMangle, rules: [][]expr.Any{
			rule(begins, oifname(), lookup(state.SetLimitTo), verdict(expr.VerdictDrop, "")),
		}},
	}
}

// expression writes one expression of a set or an element.
func (m message) expression(typ uint16, name string, data func(message) message) message {
	return m.nest(typ, func(m message) message {
		m = m.str(unix.NFTA_EXPR_NAME, name)
		if data != nil {
			m = m.nest(unix.NFTA_EXPR_DATA, data)
		}
		return m
	})
}

// limit writes the expressions of an element that counts connections and, by a
// counter, the packets that were refused.
func (m message) limit(typ uint16, connections uint32) message {
	return m.nest(typ, func(m message) message {
		return m.expression(unix.NFTA_LIST_ELEM, connlimitExpr, func(m message) message {
			return m.be32(connlimitCount, connections).be32(connlimitFlags, connlimitOver)
		}).expression(unix.NFTA_LIST_ELEM, counterExpr, nil)
	})
}

// parseLimit reads how many connections an element allows; 0 where it is another
// kind of expression.
func parseLimit(b []byte) (connections uint32) {
	name, data := named(b, unix.NFTA_EXPR_NAME, unix.NFTA_EXPR_DATA)
	if name != connlimitExpr {
		return 0
	}
	attrs(data, func(typ uint16, d []byte) {
		if typ == connlimitCount && len(d) == 4 {
			connections = netU32(d)
		}
	})
	return connections
}
