package kernel

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/slash32/slash32/pkg/marks"
	"github.com/slash32/slash32/pkg/state"
	"github.com/slash32/slash32/pkg/traffic"
)

const (
	// Damaged is the Skeleton of a table that is there but not as we made it.
	Damaged = "damaged"

	// fingerprintHex is the length of a fingerprint in a chain's name.
	fingerprintHex = 16

	// elemsPerLink is about how many elements a VM has, to make room for them.
	elemsPerLink = 24
	elemBytes    = 64 // and how long one is in a message

	// generationTries bounds how often the table is read again because somebody
	// changed the ruleset meanwhile.
	generationTries = 20

	dataValue   = 1  // NFTA_DATA_VALUE
	elemKeyEnd  = 10 // NFTA_SET_ELEM_KEY_END
	elemExprs   = 11 // NFTA_SET_ELEM_EXPRESSIONS
	counterByte = 1  // NFTA_COUNTER_BYTES
	counterPkts = 2  // NFTA_COUNTER_PACKETS
	genID       = 1  // NFTA_GEN_ID
	chainFlags  = 10 // NFTA_CHAIN_FLAGS
)

// skeleton reads the version of the table, and no element.
func (r *reader) skeleton(ctx context.Context) error {
	return r.table(ctx, func(context.Context) (map[state.Elem]struct{}, error) {
		return map[state.Elem]struct{}{}, nil
	})
}

// nft reads the table with its elements.
func (r *reader) nft(ctx context.Context) error { return r.table(ctx, r.elems) }

// table reads the table, all of it of one generation of the ruleset.
func (r *reader) table(ctx context.Context, read func(context.Context) (map[state.Elem]struct{}, error)) error {
	for range generationTries {
		before, err := r.k.generation()
		if err != nil {
			return fmt.Errorf("read generation of the nftables ruleset: %w", err)
		}
		skeleton, err := r.k.skeleton(ctx)
		if err != nil {
			return fmt.Errorf("read table %s: %w", marks.NftTable, err)
		}
		elems := map[state.Elem]struct{}{}
		if skeleton != "" {
			if elems, err = read(ctx); err != nil {
				return err
			}
		}
		after, err := r.k.generation()
		if err != nil {
			return fmt.Errorf("read generation of the nftables ruleset: %w", err)
		}
		if before == after {
			r.state.Skeleton, r.state.Elems = skeleton, elems
			return nil
		}
	}
	return fmt.Errorf("read table %s: the ruleset changed each of %d times", marks.NftTable, generationTries)
}

// elems reads the elements: all, or those of the links of the scope, which for
// masquerading are those with the addresses behind them. Of a set that has nothing
// but links, only theirs are asked for then.
func (r *reader) elems(ctx context.Context) (map[state.Elem]struct{}, error) {
	all := state.State{Routes: r.state.Routes}
	if r.scoped() {
		all.Elems = map[state.Elem]struct{}{}
	} else {
		all.Elems = make(map[state.Elem]struct{}, elemsPerLink*len(r.links))
	}
	var got []state.Elem // of one set
	for _, s := range sets() {
		got = got[:0]
		read := func() error {
			return r.k.dumpElems(ctx, s, func() { got = got[:0] }, func(e state.Elem, _ traffic.Count) { got = append(got, e) })
		}
		if r.scoped() && s.byLink() {
			read = func() error {
				for link := range r.only {
					err := r.k.getElem(s, link, func(e state.Elem, _ traffic.Count) { got = append(got, e) })
					if err != nil && !errors.Is(err, unix.ENOENT) {
						return err
					}
				}
				return nil
			}
		}
		if err := read(); err != nil && !errors.Is(err, unix.ENOENT) { // a set that is gone: the skeleton is damaged
			return nil, fmt.Errorf("read set %s of table %s: %w", s.name, marks.NftTable, err)
		}
		for _, e := range got {
			all.Elems[e] = struct{}{}
		}
	}
	if !r.scoped() {
		return all.Elems, nil
	}
	links := make([]string, 0, len(r.only))
	for n := range r.only {
		links = append(links, n)
	}
	return state.Only(all, links...).Elems, nil
}

// generation is the number of the ruleset's last change.
func (k *Kernel) generation() (uint32, error) {
	m := newMessage(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETGEN, 0, []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, 0})
	var gen uint32
	err := k.nft.get(m, func(_ uint16, b []byte) {
		nftAttrs(b, func(typ uint16, d []byte) {
			if typ == genID {
				gen = netU32(d)
			}
		})
	})
	return gen, err
}

// nftAttrs calls f for the attributes behind the nfgenmsg.
func nftAttrs(b []byte, f func(typ uint16, data []byte)) {
	if len(b) >= 4 {
		attrs(b[4:], f)
	}
}

// skeleton names the version of the tables: "" when the one of family inet is not
// there, Damaged when they are not as they were when we made them. When we make it, the last thing is an
// empty chain whose name is the version and a fingerprint of all that the kernel
// lists then.
func (k *Kernel) skeleton(ctx context.Context) (string, error) {
	marker, print, err := k.fingerprint(ctx)
	if errors.Is(err, unix.ENOENT) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	version, ok := strings.CutSuffix(marker, "_"+print)
	if !ok || version == "" {
		return Damaged, nil
	}
	return version, nil
}

// fingerprint hashes tables, sets, chains and rules as the kernel lists them,
// and finds the chain that marks them as complete. The error is unix.ENOENT when
// there is no table of family inet.
func (k *Kernel) fingerprint(ctx context.Context) (marker, print string, err error) {
	h := sha256.New()
	for _, f := range families {
		list, name, err := k.tableList(ctx, f)
		if f != families[0] && errors.Is(err, unix.ENOENT) {
			continue // the marker is not of what is left
		}
		if err != nil {
			return "", "", err
		}
		if name != "" {
			marker = name
		}
		writeAll(h, list)
	}
	return marker, hex.EncodeToString(h.Sum(nil))[:fingerprintHex], nil
}

// tableList lists what counts of the table of one family, and the chain that is
// the marker, if it has it.
func (k *Kernel) tableList(ctx context.Context, family byte) (list []string, marker string, err error) {
	err = k.nft.get(familyMessage(family, unix.NFT_MSG_GETTABLE, 0), func(_ uint16, b []byte) {
		list = append(list, hashed(b, unix.NFTA_TABLE_NAME, unix.NFTA_TABLE_FLAGS))
	})
	if err != nil {
		return nil, "", err
	}
	// Other tables' chains and sets come along: the kernel filters only rules.
	kinds := []struct {
		get  uint16
		keep []uint16
	}{
		{unix.NFT_MSG_GETCHAIN, []uint16{unix.NFTA_CHAIN_NAME, unix.NFTA_CHAIN_HOOK, unix.NFTA_CHAIN_POLICY, unix.NFTA_CHAIN_TYPE, chainFlags}},
		{unix.NFT_MSG_GETSET, []uint16{unix.NFTA_SET_NAME, unix.NFTA_SET_FLAGS, unix.NFTA_SET_KEY_TYPE, unix.NFTA_SET_KEY_LEN, unix.NFTA_SET_DATA_TYPE, unix.NFTA_SET_DATA_LEN, setExpr, setExpressions}},
		{unix.NFT_MSG_GETRULE, []uint16{unix.NFTA_RULE_CHAIN, unix.NFTA_RULE_EXPRESSIONS}},
	}
	for _, kind := range kinds {
		var got []string
		var name string
		err := k.nft.dump(ctx, familyMessage(family, kind.get, 0), func() { got, name = nil, "" }, func(_ uint16, b []byte) {
			table, chain := names(b)
			switch {
			case len(b) < 4 || b[0] != family || table != marks.NftTable:
			case kind.get == unix.NFT_MSG_GETCHAIN && isMarker(chain):
				name = chain
			default:
				got = append(got, hashed(b, kind.keep...))
			}
		})
		if err != nil {
			return nil, "", err
		}
		if kind.get != unix.NFT_MSG_GETRULE { // the order of rules counts
			slices.Sort(got)
		}
		if name != "" {
			marker = name
		}
		list = append(list, got...)
	}
	return list, marker, nil
}

func writeAll(h hash.Hash, list []string) {
	for _, s := range list {
		h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(s))))
		h.Write([]byte(s))
	}
}

// hashed is what counts of one object: some attributes, in the kernel's order.
func hashed(b []byte, keep ...uint16) string {
	var s []byte
	nftAttrs(b, func(typ uint16, d []byte) {
		if slices.Contains(keep, typ) {
			s = binary.BigEndian.AppendUint16(s, typ)
			s = binary.BigEndian.AppendUint32(s, uint32(len(d)))
			s = append(s, d...)
		}
	})
	return string(s)
}

// named reads what consists of a name and data: an expression, or an extension of
// iptables.
func named(b []byte, nameType, dataType uint16) (name string, data []byte) {
	attrs(b, func(typ uint16, d []byte) {
		switch typ {
		case nameType:
			name = cString(d)
		case dataType:
			data = d
		}
	})
	return name, data
}

// names reads the table's name and a chain's: attributes 1 and 3 of a chain.
func names(b []byte) (table, chain string) {
	nftAttrs(b, func(typ uint16, d []byte) {
		switch typ {
		case unix.NFTA_CHAIN_TABLE:
			table = cString(d)
		case unix.NFTA_CHAIN_NAME:
			chain = cString(d)
		}
	})
	return table, chain
}

// isMarker tells a marker's name, like v1_5f3a2b1c_0123456789abcdef, from the
// names of our chains.
func isMarker(chain string) bool {
	i := strings.LastIndexByte(chain, '_')
	if i < 0 || len(chain)-i-1 != fingerprintHex {
		return false
	}
	_, err := hex.DecodeString(chain[i+1:])
	return err == nil
}
