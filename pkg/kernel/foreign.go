package kernel

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/slash32/slash32/pkg/firewall"
	"github.com/slash32/slash32/pkg/marks"
)

// Bounds of what is read of other programs' tables.
const (
	maxForeignRules = 20_000
	maxForeignElems = 4_096
)

// What golang.org/x/sys/unix lacks of linux/netfilter/nf_tables_compat.h.
const (
	exprName, exprData   = 1, 2     // NFTA_EXPR_NAME, NFTA_EXPR_DATA
	xtName, xtInfo       = 1, 3     // NFTA_MATCH_NAME, _INFO and those of a target
	xtRevision           = 2        // NFTA_MATCH_REV
	elemFlags, elemUntil = 3, 10    // NFTA_SET_ELEM_FLAGS, NFTA_SET_ELEM_KEY_END
	verdictCode          = 1        // NFTA_VERDICT_CODE
	verdictChain         = 2        // NFTA_VERDICT_CHAIN
	dataVerdict          = 2        // NFTA_DATA_VERDICT
	ruleUserdata         = 7        // NFTA_RULE_USERDATA
	udataComment         = 0        // NFTNL_UDATA_RULE_COMMENT
	xtConntrackState     = 1        // XT_CONNTRACK_STATE
	xtPhysdevBridged     = 1 << 2   // XT_PHYSDEV_OP_BRIDGED
	setFlagInterval      = 0x4      // NFT_SET_INTERVAL
	setFlagAnonymous     = 0x1      // NFT_SET_ANONYMOUS
	groupSource          = 1        // XT_DEVGROUP_MATCH_SRC
	groupSourceNot       = 1 << 1   // XT_DEVGROUP_INVERT_SRC
	groupDest            = 1 << 2   // XT_DEVGROUP_MATCH_DST
	groupDestNot         = 1 << 3   // XT_DEVGROUP_INVERT_DST
	conntrackFlags       = 146      // offset of match_flags in xt_conntrack_mtinfo1 to 3
	physdevFlags         = 4*16 + 0 // offset of invert in xt_physdev_info
)

// foreignTable names a table of another program's.
type foreignTable struct {
	family byte
	name   string
}

// Forwarding reads the chains that forwarded packets meet in tables that are not
// ours, with the rules as far as they can be understood. It takes CAP_NET_ADMIN.
func (k *Kernel) Forwarding(ctx context.Context) (firewall.Ruleset, error) {
	for range generationTries {
		before, err := k.generation()
		if err != nil {
			return firewall.Ruleset{}, fmt.Errorf("read generation of the nftables ruleset: %w", err)
		}
		s, err := k.forwarding(ctx)
		if err != nil {
			return firewall.Ruleset{}, fmt.Errorf("read the forward chains of other programs: %w", err)
		}
		if after, err := k.generation(); err == nil && before == after {
			return s, nil
		}
	}
	return firewall.Ruleset{}, fmt.Errorf("read the forward chains of other programs: the ruleset changed each of %d times", generationTries)
}

func (k *Kernel) forwarding(ctx context.Context) (firewall.Ruleset, error) {
	var s firewall.Ruleset
	var tables []foreignTable
	err := k.nft.dump(ctx, foreignMessage(unix.NFT_MSG_GETCHAIN, unix.AF_UNSPEC), func() { s.Chains, tables = nil, nil }, func(_ uint16, b []byte) {
		c, ok := parseChain(b)
		if !ok {
			return
		}
		s.Chains = append(s.Chains, c)
		if t := (foreignTable{b[0], c.Table}); c.Forward && !slices.Contains(tables, t) {
			tables = append(tables, t)
		}
	})
	if err != nil {
		return s, err
	}
	s.Chains = slices.DeleteFunc(s.Chains, func(c firewall.Chain) bool {
		return !slices.ContainsFunc(tables, func(t foreignTable) bool { return familyName(t.family) == c.Family && t.name == c.Table })
	})
	for _, t := range tables {
		if err := k.foreignRules(ctx, t, &s); err != nil {
			return s, err
		}
	}
	return s, nil
}

func foreignMessage(typ uint16, family byte) message {
	return newMessage(unix.NFNL_SUBSYS_NFTABLES<<8|typ, 0, []byte{family, unix.NFNETLINK_V0, 0, 0})
}

func familyName(family byte) string {
	switch family {
	case unix.NFPROTO_IPV4:
		return "ip"
	case unix.NFPROTO_IPV6:
		return "ip6"
	case unix.NFPROTO_INET:
		return "inet"
	}
	return ""
}

// parseChain reads a chain of a family that forwards IP and of a table that is
// not ours.
func parseChain(b []byte) (c firewall.Chain, ok bool) {
	if len(b) < 4 || familyName(b[0]) == "" {
		return c, false
	}
	c.Family = familyName(b[0])
	c.Table, c.Name = names(b)
	if c.Family == "inet" && c.Table == marks.NftTable {
		return c, false
	}
	nftAttrs(b, func(typ uint16, d []byte) {
		switch typ {
		case unix.NFTA_CHAIN_POLICY:
			c.Drop = netU32(d) == 0 // NF_DROP
		case unix.NFTA_CHAIN_HOOK:
			attrs(d, func(typ uint16, d []byte) {
				switch typ {
				case unix.NFTA_HOOK_HOOKNUM:
					c.Forward = netU32(d) == hookForward
				case unix.NFTA_HOOK_PRIORITY:
					c.Priority = int32(netU32(d))
				}
			})
		}
	})
	return c, true
}

// foreignRules reads the rules of one table into the chains of s.
func (k *Kernel) foreignRules(ctx context.Context, t foreignTable, s *firewall.Ruleset) error {
	at := map[string]*firewall.Chain{}
	for i := range s.Chains {
		if c := &s.Chains[i]; c.Family == familyName(t.family) && c.Table == t.name {
			at[c.Name] = c
		}
	}
	elems := map[string][]firewall.Case{} // by set; nil: not understood
	var raw [][]byte
	get := foreignMessage(unix.NFT_MSG_GETRULE, t.family).str(unix.NFTA_RULE_TABLE, t.name)
	err := k.nft.dump(ctx, get, func() { raw = nil }, func(_ uint16, b []byte) {
		if len(raw) < maxForeignRules {
			raw = append(raw, slices.Clone(b))
		} else {
			s.Partial = true
		}
	})
	if err != nil {
		return err
	}
	for _, b := range raw {
		var failed error
		chain, r := parseForeignRule(b, func(set string) []firewall.Case {
			if list, known := elems[set]; known {
				return list
			}
			list, err := k.foreignSet(ctx, t, set)
			failed = errors.Join(failed, err)
			elems[set] = list
			return list
		})
		if failed != nil {
			return failed
		}
		if c := at[chain]; c != nil {
			c.Rules = append(c.Rules, r)
		}
	}
	return nil
}

// foreignSet reads the elements of a set or verdict map; nil when it is one of
// intervals or larger than is read.
func (k *Kernel) foreignSet(ctx context.Context, t foreignTable, name string) ([]firewall.Case, error) {
	m := foreignMessage(unix.NFT_MSG_GETSETELEM, t.family).
		str(unix.NFTA_SET_ELEM_LIST_TABLE, t.name).
		str(unix.NFTA_SET_ELEM_LIST_SET, name)
	var list []firewall.Case
	odd := false
	err := k.nft.dump(ctx, m, func() { list, odd = []firewall.Case{}, false }, func(_ uint16, b []byte) {
		nftAttrs(b, func(typ uint16, d []byte) {
			if typ != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
				return
			}
			attrs(d, func(_ uint16, d []byte) {
				c, ok := parseCase(d)
				odd = odd || !ok || len(list) == maxForeignElems
				if !odd {
					list = append(list, c)
				}
			})
		})
	})
	if errors.Is(err, unix.ENOENT) || odd {
		return nil, nil
	}
	return list, err
}

func parseCase(b []byte) (c firewall.Case, ok bool) {
	ok = true
	attrs(b, func(typ uint16, d []byte) {
		switch typ {
		case unix.NFTA_SET_ELEM_KEY:
			attrs(d, func(typ uint16, d []byte) {
				if typ == dataValue {
					c.Key = slices.Clone(d)
				}
			})
		case unix.NFTA_SET_ELEM_DATA:
			c.Verdict, c.Chain = parseVerdict(d)
		case elemFlags:
			ok = ok && netU32(d) == 0 // the end of an interval, or whatever no other element is
		case elemUntil:
			ok = false
		}
	})
	return c, ok && c.Key != nil
}

func parseVerdict(b []byte) (v firewall.Verdict, chain string) {
	attrs(b, func(typ uint16, d []byte) {
		if typ != dataVerdict {
			return
		}
		attrs(d, func(typ uint16, d []byte) {
			switch typ {
			case verdictCode:
				v = verdictOf(int32(netU32(d)))
			case verdictChain:
				chain = cString(d)
			}
		})
	})
	return v, chain
}

func verdictOf(code int32) firewall.Verdict {
	switch {
	case code&0xff == 0 && code >= 0: // NF_DROP
		return firewall.Drop
	case code == policyAccept:
		return firewall.Accept
	case code == unix.NFT_JUMP:
		return firewall.Jump
	case code == unix.NFT_GOTO:
		return firewall.Goto
	case code == unix.NFT_RETURN:
		return firewall.Return
	case code == unix.NFT_CONTINUE:
		return ""
	}
	return firewall.Other
}
