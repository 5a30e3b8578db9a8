package lease_test

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/slash32/slash32/pkg/lease"
	"github.com/slash32/slash32/pkg/mac"
)

var byValue = cmp.Options{
	cmp.Comparer(func(x, y netip.Addr) bool { return x == y }),
	cmp.Comparer(func(x, y netip.Prefix) bool { return x == y }),
}

func state(seq uint64) lease.State {
	a := netip.MustParseAddr
	return lease.State{Seq: seq, NICs: []lease.NIC{
		{MAC: mac.MustParse("52:54:00:ab:cd:01"), Profile: "classic", Booting: 1<<64 - 1, Booted: 7,
			V4:       lease.V4{Addr: a("10.20.0.7"), Bits: 24, Server: a("10.9.0.11"), From: a("10.9.0.12"), Expires: 1_800_000_000},
			V6:       []lease.V6{{a("2001:db8::7"), 1_800_000_001}, {a("2001:db8::8"), 1_800_000_002}},
			Prefixes: []lease.Prefix{{netip.MustParsePrefix("2001:db8:f000::/56"), a("fe80::7"), 7, 1_800_000_003}, {}}},
		{MAC: mac.MustParse("52:54:00:ab:cd:02")},
		{MAC: mac.MustParse("52:54:00:ab:cd:03"), V4: lease.V4{Addr: a("10.20.0.8")}},
	}}
}

func slot(t testing.TB, s lease.State) []byte {
	t.Helper()
	b, err := lease.AppendSlot(nil, s)
	if err != nil {
		t.Fatal(err)
	}
	if len(b) != lease.SlotSize {
		t.Fatalf("a slot of %d bytes", len(b))
	}
	return b
}

func TestSlots(t *testing.T) {
	old, new := slot(t, state(4)), slot(t, state(5))
	torn := slices.Clone(new)
	copy(torn[200:], make([]byte, 100))
	blank := make([]byte, lease.SlotSize)
	for _, c := range []struct {
		name string
		file []byte
		want uint64 // 0: an error
		err  error
	}{
		{"first", new, 5, nil},
		{"both", slices.Concat(old, new), 5, nil},
		{"both, the other way", slices.Concat(new, old), 5, nil},
		{"the newer one is torn", slices.Concat(old, torn), 4, nil},
		{"only the second", slices.Concat(blank, new), 5, nil},
		{"the second is cut", slices.Concat(old, new[:100]), 4, nil},
		{"empty", nil, 0, lease.ErrEmpty},
		{"blank", slices.Concat(blank, blank), 0, lease.ErrEmpty},
		{"torn alone", torn, 0, nil},
		{"not a slot", []byte("hello"), 0, nil},
		{"longer than a file", slices.Concat(old, old, new), 4, nil},
	} {
		got, err := lease.Decode(c.file)
		if (err == nil) != (c.want != 0) || c.err != nil && !errors.Is(err, c.err) || c.err == nil && errors.Is(err, lease.ErrEmpty) {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if c.want == 0 {
			continue
		}
		if d := cmp.Diff(state(c.want), got, byValue); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, d)
		}
	}
}

func TestTooLong(t *testing.T) {
	s := state(1)
	for range 200 {
		s.NICs = append(s.NICs, s.NICs[0])
	}
	if b, err := lease.AppendSlot([]byte("x"), s); err == nil || string(b) != "x" {
		t.Errorf("%v, %d bytes", err, len(b))
	}
}

func TestAppendSlotAllocatesNothing(t *testing.T) {
	b, s := make([]byte, 0, lease.SlotSize), state(1)
	s.NICs = s.NICs[2:] // a MAC's text is all that is allocated
	if n := testing.AllocsPerRun(20, func() { _, _ = lease.AppendSlot(b, s) }); n > 1 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzDecode: what can be read can be written and read again, whoever wrote it.
func FuzzDecode(f *testing.F) {
	f.Add(slices.Concat(slot(f, state(4)), slot(f, state(5))))
	f.Add([]byte(`12345678 {"seq":1}`))
	f.Add(bytes.TrimSpace(slot(f, state(4))[9:]))
	f.Add([]byte(`{"seq":1,"nics":[{"mac":"52:54:00:ab:cd:01","profile":"\"x","v6":[{"addr":"fe80::1%\"","expires":1}]}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		sealed := fmt.Appendf(nil, "%08x %s", crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)), b)
		for _, b := range [][]byte{b, sealed} {
			s, err := lease.Decode(b)
			if err != nil {
				continue
			}
			again, err := lease.AppendSlot(nil, s)
			if err != nil {
				continue // more than a slot holds
			}
			if got, err := lease.Decode(again); err != nil || got.Seq != s.Seq || len(got.NICs) != len(s.NICs) {
				t.Errorf("%+v is written as %s: %v", s, bytes.TrimSpace(again), err)
			}
		}
	})
}
