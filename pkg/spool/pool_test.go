package spool_test

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/slash32/slash32/pkg/pool"
)

func TestPool(t *testing.T) {
	s := openState(t)
	if p, err := s.Pool("lan"); err != nil || len(p.Bases) > 0 {
		t.Errorf("without a file: %+v, %v", p, err)
	}
	if names, err := s.Pools(); err != nil || names != nil {
		t.Errorf("without a directory: %v, %v", names, err)
	}
	var want pool.Pool
	if _, err := want.Renumber(netip.MustParsePrefix("2001:db8::/56"), time.Time{}, time.Time{}, time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	byValue := cmp.Comparer(func(x, y netip.Prefix) bool { return x == y })
	names := []string{"", "..", "../../etc/passwd", "a b", "lan", "wörld\x00"}
	for _, n := range names {
		if err := s.WritePool(n, want); err != nil {
			t.Fatal(err)
		}
		if d, err := filepath.Rel(filepath.Join(s.State, "pools"), s.PoolFile(n)); err != nil || strings.ContainsRune(d, '/') {
			t.Errorf("%q is kept in %s", n, s.PoolFile(n))
		}
		got, err := s.Pool(n)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, got, byValue); d != "" {
			t.Error(d)
		}
	}
	for _, stray := range []string{"x.bad", "%6can.json", "%.json"} {
		if err := os.WriteFile(filepath.Join(s.State, "pools", stray), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := s.Pools(); err != nil || cmp.Diff(names, got) != "" {
		t.Errorf("%q, %v", got, err)
	}
	if err := s.WritePool(strings.Repeat("x", 300), want); err == nil {
		t.Error("a name of 300 bytes")
	}
	if err := s.WritePool("lan", pool.Pool{Bases: make([]pool.Base, 1)}); err == nil {
		t.Error("a pool that could not be read again")
	}
	if err := os.WriteFile(s.PoolFile("lan"), []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	aside := strings.TrimSuffix(s.PoolFile("lan"), ".json") + ".bad"
	if p, err := s.Pool("lan"); err == nil || len(p.Bases) > 0 || !strings.Contains(err.Error(), aside) || !strings.Contains(err.Error(), `"lan"`) {
		t.Errorf("a broken file: %+v, %v", p, err)
	}
	if b, err := os.ReadFile(aside); err != nil || string(b) != "torn" {
		t.Errorf("set aside: %q, %v", b, err)
	}
	if _, err := s.Pool("lan"); err != nil {
		t.Error(err)
	}
	if err := s.RemovePool("lan"); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(aside); err == nil {
		t.Errorf("%s is left", aside)
	}
	if got := s.UpstreamFile("../eth0"); got != filepath.Join(s.State, "upstream", "..%2Feth0.json") {
		t.Error(got)
	}
	if got, err := s.Upstreams(); err != nil || len(got) != 0 {
		t.Errorf("%q, %v", got, err)
	}
	for _, path := range []string{s.UpstreamFile("wan0"), s.UpstreamFile("../eth0"), s.UpstreamFile("wan0") + ".bad"} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := s.Upstreams(); err != nil || !slices.Equal(got, []string{"../eth0", "wan0"}) {
		t.Errorf("%q, %v", got, err)
	}
}
