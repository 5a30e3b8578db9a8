package kernel

import (
	"cmp"
	"context"
	"encoding/binary"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/slash32/slash32/pkg/mac"
	"github.com/slash32/slash32/pkg/state"
	"github.com/slash32/slash32/pkg/traffic"
)

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
			c = countOf(d)
		case elemExprs:
			attrs(d, func(_ uint16, d []byte) {
				if s.limited && e.Limit == 0 {
					e.Limit = parseLimit(d)
				}
				if n := countOf(d); n.Packets != 0 {
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
		if p := netip.PrefixFrom(first, bits); p.Masked() == p && state.Last(p) == last {
			return p
		}
	}
	return netip.PrefixFrom(first, first.BitLen())
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
			last = append(last, state.Last(p.Masked()).AsSlice()...)
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

// countOf reads one expression: what it counted, if it is a counter.
func countOf(b []byte) (c traffic.Count) {
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
