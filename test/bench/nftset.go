package main

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/google/nftables"
	mdnetlink "github.com/mdlayher/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/slash32/slash32/pkg/marks"
	"github.com/slash32/slash32/pkg/state"
)

const (
	manyElements = 60_000
	libraryChunk = 1_000 // what one SetAddElements takes
	libraryTable = "library"
	libraryBytes = 16 << 20

	rowElements    = "60,000 elements, the set there"
	rowElementsNew = "60,000 elements, with the tables"
)

// library is google/nftables with a table of its own that has a set like our guard.
type library struct {
	space netns.NsHandle
	conn  *nftables.Conn
	set   *nftables.Set
}

func newLibrary(space netns.NsHandle, opts ...nftables.ConnOption) (*library, error) {
	conn, err := nftables.New(append(opts, nftables.WithNetNSFd(int(space)))...)
	if err != nil {
		return nil, fmt.Errorf("open nftables socket: %w", err)
	}
	l := &library{space: space, conn: conn}
	table := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: libraryTable})
	l.set = &nftables.Set{
		Table: table, Name: state.SetGuard4, Concatenation: true,
		KeyType: nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeIPAddr),
	}
	if err := conn.AddSet(l.set, nil); err != nil {
		return nil, fmt.Errorf("add a set: %w", err)
	}
	if err := conn.Flush(); err != nil {
		return nil, fmt.Errorf("add a table with a set: %w", err)
	}
	return l, nil
}

// add adds elements, so many with each call, in one transaction.
func (l *library) add(elems []nftables.SetElement, chunk int) error {
	for len(elems) > 0 {
		n := min(chunk, len(elems))
		if err := l.conn.SetAddElements(l.set, elems[:n]); err != nil {
			return err
		}
		elems = elems[n:]
	}
	return l.conn.Flush()
}

func (l *library) remove() error {
	l.conn.DelTable(l.set.Table)
	return l.conn.Flush()
}

func buffers() nftables.ConnOption {
	return nftables.WithSockOptions(
		func(c *mdnetlink.Conn) error { return c.SetReadBuffer(libraryBytes) },
		func(c *mdnetlink.Conn) error { return c.SetWriteBuffer(libraryBytes) })
}

// setTable measures many elements of one set: ours, the library, and raw netlink.
// Each time all are read back and compared.
func setTable(ctx context.Context, rounds int) (*book, error) {
	k := newBook("nftables: " + "60,000 elements of ifname . ipv4_addr, each read back (ms, medians)")
	h, err := newHost(ctx, 1)
	if err != nil {
		return nil, err
	}
	defer h.close()
	none := desired(0, 1, 1, h.facts)
	if err := h.as(ctx, none); err != nil {
		return nil, err
	}
	if err := h.openRaw(); err != nil {
		return nil, err
	}
	add := state.New()
	theirs := make([]nftables.SetElement, 0, manyElements)
	expected := map[string]bool{}
	for i := range manyElements {
		e := state.Elem{
			Set: state.SetGuard4, Link: fmt.Sprintf("s32-many%d", i%1000),
			Addr: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 9, byte(i >> 8), byte(i)}), 32),
		}
		add.Elems[e] = struct{}{}
		key := make([]byte, unix.IFNAMSIZ+4)
		copy(key, e.Link)
		copy(key[unix.IFNAMSIZ:], e.Addr.Addr().AsSlice())
		theirs = append(theirs, nftables.SetElement{Key: key})
		expected[string(key)] = true
	}
	want := plus(none, add)
	changes, anew := state.Diff(none, want), state.Diff(state.New(), onlyTable(want))
	objects := objectsOf(add)
	for e := range none.Elems {
		if e.Set == state.SetGuard4 {
			key := make([]byte, unix.IFNAMSIZ+4)
			copy(key, e.Link)
			copy(key[unix.IFNAMSIZ:], e.Addr.Addr().AsSlice())
			expected[string(key)] = true
		}
	}
	own := len(expected) - manyElements
	if err := libraryLimits(k, h.space, theirs); err != nil {
		return nil, err
	}
	for range rounds {
		ms, err := timed(func() error { _, err := h.k.Apply(ctx, changes); return err })
		if err != nil {
			return nil, fmt.Errorf("add elements: %w", err)
		}
		k.add(rowElements, "ms", ours.name, ms)
		if err := readBack(h.space, marks.NftTable, expected, len(expected)); err != nil {
			return nil, err
		}
		if err := h.clear(objects); err != nil {
			return nil, err
		}

		ms, err = timed(func() error { return h.raw.add(objects) })
		if err != nil {
			return nil, err
		}
		k.add(rowElements, "ms", "raw netlink", ms)
		if err := readBack(h.space, marks.NftTable, expected, len(expected)); err != nil {
			return nil, err
		}
		if err := h.clear(objects); err != nil {
			return nil, err
		}

		l, err := newLibrary(h.space, buffers())
		if err != nil {
			return nil, err
		}
		ms, err = timed(func() error { return l.add(theirs, libraryChunk) })
		if err != nil {
			return nil, fmt.Errorf("add elements by google/nftables: %w", err)
		}
		k.add(rowElements, "ms", "google/nftables", ms)
		if err := readBack(h.space, libraryTable, expected, len(expected)-own); err != nil {
			return nil, err
		}
		if err := l.remove(); err != nil {
			return nil, err
		}

		// All in one transaction, as a table that was flushed comes back.
		ms, err = timed(func() error { _, err := h.k.Apply(ctx, anew); return err })
		if err != nil {
			return nil, fmt.Errorf("make the tables anew: %w", err)
		}
		k.add(rowElementsNew, "ms", ours.name, ms)
		if err := readBack(h.space, marks.NftTable, expected, len(expected)); err != nil {
			return nil, err
		}
		if err := h.clear(objects); err != nil {
			return nil, err
		}
		if err := h.check(ctx); err != nil {
			return nil, err
		}
	}
	return k, nil
}

// onlyTable is what s has in nftables.
func onlyTable(s state.State) state.State {
	out := state.New()
	out.Skeleton, out.Elems = s.Skeleton, s.Elems
	return out
}

func timed(f func() error) (ms float64, err error) {
	begin := time.Now()
	err = f()
	return float64(time.Since(begin).Microseconds()) / 1e3, err
}

// readBack reads the set by the library, whoever wrote it, and compares every
// element. While its hash table still grows the kernel lists some elements twice and
// others not at all: it is asked again until all are there.
func readBack(space netns.NsHandle, table string, expected map[string]bool, n int) error {
	conn, err := nftables.New(nftables.WithNetNSFd(int(space)))
	if err != nil {
		return fmt.Errorf("open nftables socket: %w", err)
	}
	set, err := conn.GetSetByName(&nftables.Table{Family: nftables.TableFamilyINet, Name: table}, state.SetGuard4)
	if err != nil {
		return fmt.Errorf("read set %s of table %s: %w", state.SetGuard4, table, err)
	}
	for deadline := time.Now().Add(20 * time.Second); ; {
		got, err := conn.GetSetElements(set)
		if err != nil {
			return fmt.Errorf("read the elements of set %s of table %s: %w", state.SetGuard4, table, err)
		}
		seen := map[string]bool{}
		for _, e := range got {
			if !expected[string(e.Key)] {
				return fmt.Errorf("table %s has the element %x, which nobody added", table, e.Key)
			}
			seen[string(e.Key)] = true
		}
		if len(seen) == n && len(got) == n {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("table %s has %d elements of %d", table, len(seen), n)
		}
	}
}

// libraryLimits notes what the library says without its workarounds.
func libraryLimits(k *book, space netns.NsHandle, elems []nftables.SetElement) error {
	for _, c := range []struct {
		how   string
		chunk int
		opts  []nftables.ConnOption
	}{
		{"with one SetAddElements", len(elems), []nftables.ConnOption{buffers()}},
		{"with its default buffers", libraryChunk, nil},
	} {
		l, err := newLibrary(space, c.opts...)
		if err != nil {
			return err
		}
		err = l.add(elems, c.chunk)
		k.notes = append(k.notes, fmt.Sprintf("google/nftables %s: %v", c.how, err))
		if err := l.remove(); err != nil {
			return fmt.Errorf("remove the table of google/nftables: %w", err)
		}
	}
	k.notes = append(k.notes, fmt.Sprintf("google/nftables as measured: buffers of %d MiB, %d elements per call, one transaction", libraryBytes>>20, libraryChunk))
	return nil
}
