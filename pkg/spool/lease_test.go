package spool_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/slash32/slash32/pkg/lease"
	"github.com/slash32/slash32/pkg/responder"
	"github.com/slash32/slash32/pkg/spool"
)

func openState(t *testing.T) *spool.Spool {
	t.Helper()
	s, err := spool.Open(spool.Dirs{Run: filepath.Join(t.TempDir(), "run"), State: filepath.Join(t.TempDir(), "state")})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

var keeps = responder.Binding{NICs: []responder.NIC{{Relay: &responder.Relay{}}}}

func TestEnsureLease(t *testing.T) {
	s, id := openState(t), uuid.UUID{15: 1}
	for name, c := range map[string]struct {
		binding responder.Binding
		want    bool
	}{
		"relayed":  {keeps, true},
		"once":     {responder.Binding{NICs: []responder.NIC{{}, {V4: responder.V4{Boots: []responder.Boot{{Once: true}}}}}}, true},
		"delegate": {responder.Binding{NICs: []responder.NIC{{V6: responder.V6{Prefixes: responder.Prefixes{{Mode: responder.ModeSLAAC}, {Mode: responder.ModeDelegate}}}}}}, true},
		"slaac":    {responder.Binding{NICs: []responder.NIC{{V6: responder.V6{Prefixes: responder.Prefixes{{Mode: responder.ModeSLAAC}}}}}}, false},
		"boots":    {responder.Binding{NICs: []responder.NIC{{V4: responder.V4{Boots: []responder.Boot{{}}}}}}, false},
		"ordinary": {responder.Binding{NICs: []responder.NIC{{}}}, false},
	} {
		if err := s.EnsureLease(id, c.binding); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(s.LeaseFile(id))
		if (err == nil) != c.want {
			t.Errorf("%s: the file is there: %v", name, err == nil)
		}
		if err == nil && (info.Mode() != 0o600 || info.Size() != lease.FileSize || info.Sys().(*syscall.Stat_t).Blocks*512 < lease.FileSize) {
			t.Errorf("%s: mode %v, %d bytes, %d blocks", name, info.Mode(), info.Size(), info.Sys().(*syscall.Stat_t).Blocks)
		}
		if err := s.RemoveLease(id); err != nil {
			t.Error(err)
		}
	}
	if info, err := os.Stat(filepath.Dir(s.LeaseFile(id))); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the directory: %v, %v", info, err)
	}
	// What a responder has written stays.
	if err := s.EnsureLease(id, keeps); err != nil {
		t.Fatal(err)
	}
	slot, err := lease.AppendSlot(nil, lease.State{Seq: 7})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.LeaseFile(id), slot, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.EnsureLease(id, keeps); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Lease(id); err != nil || got.Seq != 7 {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestLease(t *testing.T) {
	s, id := openState(t), uuid.UUID{15: 1}
	if got, err := s.Lease(id); err != nil || got.Seq != 0 {
		t.Errorf("without a file: %+v, %v", got, err)
	}
	if err := s.EnsureLease(id, keeps); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Lease(id); err != nil || got.Seq != 0 {
		t.Errorf("an empty file: %+v, %v", got, err)
	}
	// A file that is no use is set aside, the first one.
	for _, text := range []string{"torn", "torn again"} {
		if err := os.WriteFile(s.LeaseFile(id), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		bad := strings.TrimSuffix(s.LeaseFile(id), ".json") + ".bad"
		if _, err := s.Lease(id); err == nil || !strings.Contains(err.Error(), bad) {
			t.Errorf("%s: %v", text, err)
		}
		if b, err := os.ReadFile(bad); err != nil || string(b) != "torn" {
			t.Errorf("set aside: %q, %v", b, err)
		}
	}
	for _, stray := range []string{"x.json", "00000000-0000-0000-0000-000000000009", "{00000000-0000-0000-0000-000000000009}.json"} {
		if err := os.WriteFile(filepath.Join(filepath.Dir(s.LeaseFile(id)), stray), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ids, err := s.Leases()
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]uuid.UUID{id}, ids); d != "" {
		t.Error(d)
	}
	if err := s.RemoveLease(id); err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob(filepath.Join(filepath.Dir(s.LeaseFile(id)), id.String()+".*"))
	if err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	if ids, err := openState(t).Leases(); err != nil || ids != nil {
		t.Errorf("without a directory: %v, %v", ids, err)
	}
}
