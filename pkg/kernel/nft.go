package kernel

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/slash32/slash32/pkg/mac"
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

// dumpElems reads the elements of one set and what each counted.
func (k *Kernel) dumpElems(ctx context.Context, s set, start func(), f func(e state.Elem, c traffic.Count)) error {
	m := familyMessage(s.family, unix.NFT_MSG_GETSETELEM, 0).str(unix.NFTA_SET_ELEM_LIST_SET, s.name)
	return k.nft.dump(ctx, m, start, func(_ uint16, b []byte) { parseElems(s, b, f) })
}

// getElem reads the element of one link in a set that has nothing but links. The
// error is unix.ENOENT when there is none.
func (k *Kernel) getElem(s set, link string, f func(e state.Elem, c traffic.Count)) error {
	m := elemsMessage(unix.NFT_MSG_GETSETELEM, []state.Elem{{Set: s.name, Link: link}})
	return k.nft.get(m, func(_ uint16, b []byte) { parseElems(s, b, f) })
}

// parseElems reads one message about elements of a set.
func parseElems(s set, b []byte, f func(e state.Elem, c traffic.Count)) {
	nftAttrs(b, func(typ uint16, list []byte) {
		if typ != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
			return
		}
		attrs(list, func(_ uint16, d []byte) {
			if e, c, ok := parseElem(s, d); ok {
				f(e, c)
			}
		})
	})
}

func parseElem(s set, b []byte) (e state.Elem, c traffic.Count, ok bool) {
	e.Set = cmp.Or(s.holds, s.name)
	var from, to []byte
	attrs(b, func(typ uint16, d []byte) {
		switch typ {
		case unix.NFTA_SET_ELEM_KEY:
			attrs(d, func(typ uint16, key []byte) {
				if typ == dataValue {
					from = key
					ok = s.ranges || parseKey(&e, s, key)
				}
			})
		case elemKeyEnd:
			attrs(d, func(typ uint16, key []byte) {
				if typ == dataValue {
					to = key
				}
			})
		case unix.NFTA_SET_ELEM_FLAGS:
			e.End = netU32(d)&unix.NFT_SET_ELEM_INTERVAL_END != 0
		case unix.NFTA_SET_ELEM_DATA:
			attrs(d, func(typ uint16, v []byte) {
				if typ == dataValue {
					parseValue(&e, v)
				}
			})
		case unix.NFTA_SET_ELEM_EXPR:
			c = counted1(d)
		case elemExprs:
			attrs(d, func(_ uint16, d []byte) {
				if s.limited && e.Limit == 0 {
					e.Limit = parseLimit(d)
				}
				if n := counted1(d); n.Packets != 0 {
					c = n
				}
			})
		}
	})
	if s.ranges {
		ok = parseRange(&e, s.key, from, to)
	}
	return e, c, ok
}

// parseRange reads a key of prefixes from its first and its last address. What is
// not a prefix, which we never set, is the first address alone: no planned element
// is like that.
func parseRange(e *state.Elem, key []datatype, from, to []byte) bool {
	for _, t := range key {
		length := int(t.length)
		if len(from) < length || len(to) < length {
			return false
		}
		switch {
		case t == typeIfname():
			e.Link = cString(from[:length])
		case !e.Addr.IsValid():
			e.Addr = prefixOver(from[:length], to[:length])
		default:
			e.Peer = prefixOver(from[:length], to[:length])
		}
		from, to = from[length:], to[length:]
	}
	return true
}

// prefixOver is the prefix with this first and this last address.
func prefixOver(from, to []byte) netip.Prefix {
	first, _ := netip.AddrFromSlice(from)
	last, _ := netip.AddrFromSlice(to)
	for bits := range first.BitLen() {
		if p := netip.PrefixFrom(first, bits); p.Masked() == p && lastOf(p) == last {
			return p
		}
	}
	return netip.PrefixFrom(first, first.BitLen())
}

// lastOf is the last address of a prefix.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := range b {
		if free := 8*(i+1) - p.Bits(); free >= 8 {
			b[i] = 0xff
		} else if free > 0 {
			b[i] |= 1<<free - 1
		}
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// rangeKeys are the first and the last key of an element of prefixes, nil for
// others.
func rangeKeys(e state.Elem) (first, last []byte) {
	switch e.Set {
	case state.SetMasqNet4, state.SetMasqNet6, state.SetSNATNet4, state.SetSNATNet6, state.SetInside4, state.SetInside6:
	default:
		return nil, nil
	}
	if e.Link != "" {
		first = append(first, make([]byte, unix.IFNAMSIZ)...)
		copy(first[:unix.IFNAMSIZ-1], e.Link)
		last = append(last, first...)
	}
	for _, p := range []netip.Prefix{e.Addr, e.Peer} {
		if p.IsValid() {
			first = append(first, p.Masked().Addr().AsSlice()...)
			last = append(last, lastOf(p.Masked()).AsSlice()...)
		}
	}
	return first, last
}

// parseKey reads a key, field by field. Bits of a prefix beyond the length of its
// set, which we never set, are kept: no planned element is like that.
func parseKey(e *state.Elem, s set, key []byte) bool {
	for i, t := range s.key {
		n := int(t.length+3) &^ 3
		if len(s.key) == 1 {
			n = int(t.length)
		}
		if len(key) < n {
			return false
		}
		switch t {
		case typeIfname():
			e.Link = cString(key[:n])
		case typeIPv4(), typeIPv6():
			a, _ := netip.AddrFromSlice(key[:n])
			e.Addr = netip.PrefixFrom(a, cmp.Or(s.bits, a.BitLen()))
		case typeEther():
			// Two that differ are none of ours: the zero one.
			if m := mac.Addr(key[:len(e.MAC)]); i == 1 || m == e.MAC {
				e.MAC = m
			} else {
				e.MAC = mac.Addr{}
			}
		case typeProto():
			e.Proto = key[0]
		case typeService():
			e.Port = binary.BigEndian.Uint16(key)
		}
		key = key[n:]
	}
	return true
}

// counted1 reads one expression: what it counted, if it is a counter.
func counted1(b []byte) (c traffic.Count) {
	attrs(b, func(typ uint16, d []byte) {
		if typ != unix.NFTA_EXPR_DATA {
			return
		}
		attrs(d, func(typ uint16, d []byte) {
			switch {
			case len(d) != 8:
			case typ == counterPkts:
				c.Packets = binary.BigEndian.Uint64(d)
			case typ == counterByte:
				c.Bytes = binary.BigEndian.Uint64(d)
			}
		})
	})
	return c
}

// elemKey is the key of an element as the kernel has it: each field padded to
// four bytes.
func elemKey(e state.Elem) []byte {
	key := make([]byte, 0, 3*unix.IFNAMSIZ)
	if e.Link != "" {
		key = key[:unix.IFNAMSIZ]
		copy(key[:unix.IFNAMSIZ-1], e.Link)
	}
	if e.Set == state.SetARP {
		key = append(append(key, e.MAC[:]...), 0, 0)
	}
	if e.Set == state.SetGuardMAC || e.Set == state.SetARP {
		key = append(append(key, e.MAC[:]...), 0, 0)
	}
	if e.Addr.IsValid() {
		key = append(key, e.Addr.Addr().AsSlice()...)
	}
	if e.Set == state.SetItself {
		key = append(key, key...)
	}
	if e.Proto != 0 {
		key = append(key, e.Proto, 0, 0, 0)
		key = append(key, padded(e.Port)...)
	}
	return key
}

// elemsMessage adds or deletes elements of one set.
func elemsMessage(typ uint16, elems []state.Elem) message {
	flags := uint16(0)
	if typ == unix.NFT_MSG_NEWSETELEM {
		flags = unix.NLM_F_CREATE
	}
	m := familyMessage(familyOf(elems[0]), typ, flags).str(unix.NFTA_SET_ELEM_LIST_SET, setOf(elems[0]))
	m = slices.Grow(m, elemBytes*len(elems))
	return m.nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS, func(m message) message {
		for _, e := range elems {
			m = m.nest(unix.NFTA_LIST_ELEM, func(m message) message {
				first, last := rangeKeys(e)
				if first == nil {
					first = elemKey(e)
				}
				m = m.nest(unix.NFTA_SET_ELEM_KEY, func(m message) message { return m.attr(dataValue, first) })
				if last != nil {
					m = m.nest(elemKeyEnd, func(m message) message { return m.attr(dataValue, last) })
				}
				if e.End {
					m = m.be32(unix.NFTA_SET_ELEM_FLAGS, unix.NFT_SET_ELEM_INTERVAL_END)
				}
				if e.Limit != 0 && typ == unix.NFT_MSG_NEWSETELEM {
					m = m.limit(elemExprs, e.Limit)
				}
				if v := valueBytes(e); v != nil && typ == unix.NFT_MSG_NEWSETELEM {
					m = m.nest(unix.NFTA_SET_ELEM_DATA, func(m message) message { return m.attr(dataValue, v) })
				}
				return m
			})
		}
		return m
	})
}
