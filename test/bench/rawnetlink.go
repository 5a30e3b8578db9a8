package main

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/slash32/slash32/pkg/marks"
	"github.com/slash32/slash32/pkg/state"
)

// What the peer sends at a time. Only the last request of a batch asks for an
// answer; those that fail answer unasked.
const (
	rawRouteBatch = 1 << 20
	rawSetBytes   = 60_000 // an attribute's length is 16 bits
	// Elements in one transaction. More are slower: the kernel has no time to make
	// room in its hash tables meanwhile.
	rawTransaction = 8_000
	rawBuffer      = 64 << 20

	setElemList = unix.NFTA_SET_ELEM_LIST_ELEMENTS | unix.NLA_F_NESTED
	listElem    = unix.NFTA_LIST_ELEM | unix.NLA_F_NESTED
	setElemKey  = unix.NFTA_SET_ELEM_KEY | unix.NLA_F_NESTED
	setElemData = unix.NFTA_SET_ELEM_DATA | unix.NLA_F_NESTED
	dataValue   = 1 // NFTA_DATA_VALUE
)

// objects are a state's routes, neighbours and elements, in the order in which
// they are written.
type objects struct {
	routes []state.Route
	neighs []state.Neigh
	elems  []state.Elem
}

func (o objects) count() int { return len(o.routes) + len(o.neighs) + len(o.elems) }

func objectsOf(s state.State) objects {
	o := objects{routes: slices.Collect(maps.Keys(s.Routes)), elems: slices.Collect(maps.Keys(s.Elems))}
	for k, m := range s.Neighs {
		o.neighs = append(o.neighs, state.Neigh{NeighKey: k, MAC: m})
	}
	slices.SortFunc(o.routes, func(a, b state.Route) int { return a.Dst.Compare(b.Dst) })
	slices.SortFunc(o.neighs, func(a, b state.Neigh) int { return a.IP.Compare(b.IP) })
	slices.SortFunc(o.elems, func(a, b state.Elem) int {
		return cmp.Or(cmp.Compare(a.Set, b.Set), cmp.Compare(a.Link, b.Link), a.Addr.Compare(b.Addr))
	})
	return o
}

// rawPeer programs the same objects by plain netlink: no read, no comparison, no
// answer to each request.
type rawPeer struct {
	rt, nft int
	seq     uint32
	buf     []byte
	answer  []byte
	index   map[string]uint32
}

func newRawPeer(index map[string]uint32) (*rawPeer, error) {
	p := &rawPeer{rt: -1, nft: -1, index: index, answer: make([]byte, 64<<10)}
	for _, s := range []struct {
		fd    *int
		proto int
	}{{&p.rt, unix.NETLINK_ROUTE}, {&p.nft, unix.NETLINK_NETFILTER}} {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, s.proto)
		if err != nil {
			p.close()
			return nil, fmt.Errorf("open netlink socket: %w", err)
		}
		*s.fd = fd
		err = errors.Join(
			unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}),
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, rawBuffer),
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, rawBuffer),
			unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1))
		if err != nil {
			p.close()
			return nil, fmt.Errorf("prepare netlink socket: %w", err)
		}
	}
	return p, nil
}

func (p *rawPeer) close() {
	for _, fd := range []int{p.rt, p.nft} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}

// add writes all objects, remove deletes them.
func (p *rawPeer) add(o objects) error {
	if err := p.elements(unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE, o.elems); err != nil {
		return fmt.Errorf("add elements by raw netlink: %w", err)
	}
	err := p.each(len(o.neighs), func(i int) { p.neigh(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, o.neighs[i]) })
	if err == nil {
		err = p.each(len(o.routes), func(i int) { p.route(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, o.routes[i]) })
	}
	if err != nil {
		return fmt.Errorf("add routes and neighbours by raw netlink: %w", err)
	}
	return nil
}

func (p *rawPeer) remove(o objects) error {
	err := p.each(len(o.routes), func(i int) { p.route(unix.RTM_DELROUTE, 0, o.routes[i]) })
	if err == nil {
		err = p.each(len(o.neighs), func(i int) { p.neigh(unix.RTM_DELNEIGH, 0, o.neighs[i]) })
	}
	if err == nil {
		err = p.elements(unix.NFT_MSG_DELSETELEM, 0, o.elems)
	}
	if err != nil {
		return fmt.Errorf("remove by raw netlink: %w", err)
	}
	return nil
}

// each sends n requests that encode appends, in as few sends as the batch allows.
func (p *rawPeer) each(n int, encode func(i int)) error {
	p.buf = p.buf[:0]
	for i := range n {
		at := len(p.buf)
		encode(i)
		if i == n-1 || len(p.buf) > rawRouteBatch {
			flags := binary.NativeEndian.Uint16(p.buf[at+6:])
			binary.NativeEndian.PutUint16(p.buf[at+6:], flags|unix.NLM_F_ACK)
			if err := p.flush(p.rt, p.seq, p.seq); err != nil {
				return err
			}
		}
	}
	return nil
}

// flush sends what is in the buffer and waits for the answer to the request with
// one of two numbers.
func (p *rawPeer) flush(fd int, first, last uint32) error {
	if err := unix.Sendto(fd, p.buf, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	p.buf = p.buf[:0]
	var failed error
	for {
		n, _, err := unix.Recvfrom(fd, p.answer, 0)
		if err != nil {
			return err
		}
		for b := p.answer[:n]; len(b) >= unix.NLMSG_HDRLEN+4; {
			l := int(binary.NativeEndian.Uint32(b))
			seq := binary.NativeEndian.Uint32(b[8:])
			if binary.NativeEndian.Uint16(b[4:]) == unix.NLMSG_ERROR {
				if errno := int32(binary.NativeEndian.Uint32(b[16:])); errno != 0 && failed == nil {
					failed = unix.Errno(-errno)
				}
				if seq == last || seq == first {
					return failed
				}
			}
			b = b[min((l+3)&^3, len(b)):]
		}
	}
}

// begin starts a request and returns where; end fills in its length.
func (p *rawPeer) begin(typ, flags uint16, fixed ...byte) int {
	at := len(p.buf)
	p.seq++
	p.buf = binary.NativeEndian.AppendUint32(p.buf, 0)
	p.buf = binary.NativeEndian.AppendUint16(p.buf, typ)
	p.buf = binary.NativeEndian.AppendUint16(p.buf, unix.NLM_F_REQUEST|flags)
	p.buf = binary.NativeEndian.AppendUint32(p.buf, p.seq)
	p.buf = binary.NativeEndian.AppendUint32(p.buf, 0)
	p.buf = append(p.buf, fixed...)
	return at
}

func (p *rawPeer) end(at int) { binary.NativeEndian.PutUint32(p.buf[at:], uint32(len(p.buf)-at)) }

func (p *rawPeer) attr(typ uint16, data ...byte) {
	p.buf = binary.NativeEndian.AppendUint16(p.buf, uint16(4+len(data)))
	p.buf = binary.NativeEndian.AppendUint16(p.buf, typ)
	p.buf = append(p.buf, data...)
	for len(p.buf)%4 != 0 {
		p.buf = append(p.buf, 0)
	}
}

func (p *rawPeer) attr32(typ uint16, v uint32) {
	var b [4]byte
	binary.NativeEndian.PutUint32(b[:], v)
	p.attr(typ, b[:]...)
}

// attrAddr appends an address.
func (p *rawPeer) attrAddr(typ uint16, a netip.Addr) {
	if a.Is4() {
		b := a.As4()
		p.attr(typ, b[:]...)
		return
	}
	b := a.As16()
	p.attr(typ, b[:]...)
}

func (p *rawPeer) nest(typ uint16) int {
	at := len(p.buf)
	p.attr(typ)
	return at
}

func (p *rawPeer) endNest(at int) {
	binary.NativeEndian.PutUint16(p.buf[at:], uint16(len(p.buf)-at))
}

func addressFamily(a netip.Addr) byte {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func (p *rawPeer) route(typ, flags uint16, r state.Route) {
	scope := byte(unix.RT_SCOPE_UNIVERSE)
	if r.Dst.Addr().Is4() && !r.Via.IsValid() {
		scope = unix.RT_SCOPE_LINK
	}
	at := p.begin(typ, flags, addressFamily(r.Dst.Addr()), byte(r.Dst.Bits()), 0, 0, unix.RT_TABLE_UNSPEC, marks.RouteProtocol, scope, unix.RTN_UNICAST, 0, 0, 0, 0)
	p.attrAddr(unix.RTA_DST, r.Dst.Addr())
	p.attr32(unix.RTA_TABLE, r.Table)
	p.attr32(unix.RTA_PRIORITY, r.Metric)
	p.attr32(unix.RTA_OIF, p.index[r.Link])
	if r.Via.IsValid() {
		p.attrAddr(unix.RTA_GATEWAY, r.Via)
	}
	p.end(at)
}

func (p *rawPeer) neigh(typ, flags uint16, n state.Neigh) {
	var fixed [unix.SizeofNdMsg]byte
	fixed[0] = addressFamily(n.IP)
	binary.NativeEndian.PutUint32(fixed[4:], p.index[n.Link])
	fixed[8] = unix.NUD_PERMANENT
	at := p.begin(typ, flags, fixed[:]...)
	p.attrAddr(unix.NDA_DST, n.IP)
	p.attr(unix.NDA_LLADDR, n.MAC[:]...)
	p.end(at)
}

// elements sends elements in large transactions.
func (p *rawPeer) elements(typ, flags uint16, elems []state.Elem) error {
	for len(elems) > 0 {
		n := min(rawTransaction, len(elems))
		if err := p.transaction(typ, flags, elems[:n]); err != nil {
			return err
		}
		elems = elems[n:]
	}
	return nil
}

func (p *rawPeer) transaction(typ, flags uint16, elems []state.Elem) error {
	p.buf = p.buf[:0]
	p.end(p.begin(unix.NFNL_MSG_BATCH_BEGIN, 0, unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, unix.NFNL_SUBSYS_NFTABLES))
	first, at := p.seq, 0
	for len(elems) > 0 {
		at = len(p.buf)
		elems = elems[p.elementMessage(unix.NFNL_SUBSYS_NFTABLES<<8|typ, flags, elems):]
	}
	binary.NativeEndian.PutUint16(p.buf[at+6:], unix.NLM_F_REQUEST|unix.NLM_F_ACK|flags)
	last := p.seq
	p.end(p.begin(unix.NFNL_MSG_BATCH_END, 0, unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, unix.NFNL_SUBSYS_NFTABLES))
	return p.flush(p.nft, first, last)
}

// elementMessage appends one message with the elements of the first one's set, as
// many as it holds, and returns how many.
func (p *rawPeer) elementMessage(typ, flags uint16, elems []state.Elem) (n int) {
	set := elems[0].Set
	family := byte(unix.NFPROTO_INET)
	if set == state.SetARP || set == state.SetSpoofARP {
		family = unix.NFPROTO_ARP
	}
	at := p.begin(typ, flags, family, unix.NFNETLINK_V0, 0, 0)
	p.attr(unix.NFTA_SET_ELEM_LIST_TABLE, append([]byte(marks.NftTable), 0)...)
	p.attr(unix.NFTA_SET_ELEM_LIST_SET, append([]byte(set), 0)...)
	list := p.nest(setElemList)
	for _, e := range elems {
		if e.Set != set || len(p.buf)-list > rawSetBytes {
			break
		}
		var key [64]byte
		k := key[:0]
		if e.Link != "" {
			k = key[:unix.IFNAMSIZ]
			copy(k, e.Link)
		}
		if set == state.SetARP {
			k = append(append(k, e.MAC[:]...), 0, 0)
		}
		if set == state.SetARP || set == state.SetGuardMAC {
			k = append(append(k, e.MAC[:]...), 0, 0)
		}
		if a := e.Addr.Addr(); a.Is4() {
			b := a.As4()
			k = append(k, b[:]...)
		} else if a.Is6() {
			b := a.As16()
			k = append(k, b[:]...)
		}
		one := p.nest(listElem)
		nest := p.nest(setElemKey)
		p.attr(dataValue, k...)
		p.endNest(nest)
		if e.Mark != 0 {
			nest = p.nest(setElemData)
			p.attr32(dataValue, e.Mark)
			p.endNest(nest)
		}
		p.endNest(one)
		n++
	}
	p.endNest(list)
	p.end(at)
	return n
}

// dump reads everything that a resync reads and looks at none of it.
func (p *rawPeer) dump(sets []string) error {
	for _, m := range []struct {
		typ   uint16
		fixed []byte
	}{
		{unix.RTM_GETLINK, make([]byte, unix.SizeofIfInfomsg)},
		{unix.RTM_GETADDR, make([]byte, unix.SizeofIfAddrmsg)},
		{unix.RTM_GETNEIGH, make([]byte, unix.SizeofNdMsg)},
		{unix.RTM_GETROUTE, []byte{0: unix.AF_INET, 11: 0}},
		{unix.RTM_GETROUTE, []byte{0: unix.AF_INET6, 11: 0}},
	} {
		p.buf = p.buf[:0]
		at := p.begin(m.typ, unix.NLM_F_DUMP, m.fixed...)
		if m.typ == unix.RTM_GETLINK {
			p.attr32(unix.IFLA_EXT_MASK, 8) // RTEXT_FILTER_SKIP_STATS
		}
		p.end(at)
		if err := p.drain(p.rt); err != nil {
			return fmt.Errorf("dump by raw netlink: %w", err)
		}
	}
	for _, set := range sets {
		family := byte(unix.NFPROTO_INET)
		if set == state.SetARP || set == state.SetSpoofARP {
			family = unix.NFPROTO_ARP
		}
		p.buf = p.buf[:0]
		at := p.begin(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETSETELEM, unix.NLM_F_DUMP, family, unix.NFNETLINK_V0, 0, 0)
		p.attr(unix.NFTA_SET_ELEM_LIST_TABLE, append([]byte(marks.NftTable), 0)...)
		p.attr(unix.NFTA_SET_ELEM_LIST_SET, append([]byte(set), 0)...)
		p.end(at)
		if err := p.drain(p.nft); err != nil {
			return fmt.Errorf("dump set %s by raw netlink: %w", set, err)
		}
	}
	return nil
}

func (p *rawPeer) drain(fd int) error {
	if err := unix.Sendto(fd, p.buf, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	for {
		n, _, err := unix.Recvfrom(fd, p.answer, 0)
		if err != nil {
			return err
		}
		for b := p.answer[:n]; len(b) >= unix.NLMSG_HDRLEN; {
			switch binary.NativeEndian.Uint16(b[4:]) {
			case unix.NLMSG_DONE:
				return nil
			case unix.NLMSG_ERROR:
				return unix.Errno(-int32(binary.NativeEndian.Uint32(b[16:])))
			}
			l := int(binary.NativeEndian.Uint32(b))
			if l < unix.NLMSG_HDRLEN {
				return unix.EBADMSG
			}
			b = b[min((l+3)&^3, len(b)):]
		}
	}
}
