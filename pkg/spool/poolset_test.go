package spool_test

import (
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/slash32/slash32/pkg/config"
	"github.com/slash32/slash32/pkg/intent"
	"github.com/slash32/slash32/pkg/mac"
)

func pooled(from config.Pool6) (config.Config, intent.VM) {
	c := config.Default()
	n := c.Networks[config.DefaultNetwork]
	n.Pool6 = from
	c.Networks[config.DefaultNetwork] = n
	vm := intent.VM{UUID: uuid.UUID{15: 1}, Name: "web1", NICs: []intent.NIC{{
		MAC: mac.Addr{0x52, 0x54, 0, 0, 0, 1}, Network: n, Auto6: true, Prefixes: []intent.Prefix{{Mode: "slaac", Auto: 64}},
	}}}
	return c, vm
}

// TestPoolSet: what a preview shows is what a VM gets, and a preview writes nothing.
func TestPoolSet(t *testing.T) {
	s := openState(t)
	now := time.Now()
	c, vm := pooled(config.Pool6{Prefix: netip.MustParsePrefix("2001:db8:1::/56")})
	preview, errs := s.PreviewPools(c, now)
	seen, ps := preview.Resolve(vm)
	if len(errs)+len(ps) > 0 || len(seen.NICs[0].Addrs6) != 1 || seen.NICs[0].Prefixes[0].Net.String() != "2001:db8:1:1::/64" {
		t.Fatal(errs, ps, seen)
	}
	if len(vm.NICs[0].Addrs6) > 0 || vm.NICs[0].Prefixes[0].Net.IsValid() {
		t.Errorf("what was asked was changed: %+v", vm.NICs[0])
	}
	if entries, err := os.ReadDir(s.State); err == nil && len(entries) > 0 {
		t.Errorf("the preview wrote %v", entries)
	}
	set, errs := s.OpenPools(c, now)
	got, ps := set.Resolve(vm)
	if err := set.Save(); err != nil || len(errs)+len(ps) > 0 {
		t.Fatal(err, errs, ps)
	}
	if got.NICs[0].Addrs6[0] != seen.NICs[0].Addrs6[0] || got.NICs[0].Prefixes[0].Net != seen.NICs[0].Prefixes[0].Net {
		t.Errorf("got %+v, the preview was %+v", got.NICs[0], seen.NICs[0])
	}
	if bases := set.Bases()[config.DefaultNetwork]; len(bases) != 1 || !set.Ends().IsZero() {
		t.Errorf("bases %v end at %v", bases, set.Ends())
	}
	set.Sweep(nil)
	if again, _ := s.OpenPools(c, now); again.Bases() == nil {
		t.Error("no bases")
	}
}

// TestUniqueLocal: the prefix is made once; a broken file is named and kept.
func TestUniqueLocal(t *testing.T) {
	s := openState(t)
	c, vm := pooled(config.Pool6{ULA: true})
	base := func() netip.Prefix {
		set, errs := s.OpenPools(c, time.Now())
		if len(errs) > 0 {
			t.Fatal(errs)
		}
		if err := set.Save(); err != nil {
			t.Fatal(err)
		}
		p, _ := set.Current(config.DefaultNetwork)
		return p
	}
	first := base()
	if !first.IsValid() || first.Bits() != 48 || !first.Addr().IsPrivate() || base() != first {
		t.Errorf("made %v, then %v", first, base())
	}
	if err := os.Remove(s.PoolFile(config.DefaultNetwork)); err != nil {
		t.Fatal(err)
	}
	if base() != first {
		t.Error("another was made")
	}
	for _, bad := range []string{"", "fe80::/64", "x"} {
		path := s.PoolFile(config.DefaultNetwork)
		if err := os.WriteFile(path[:len(path)-len("json")]+"ula", []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		set, errs := s.OpenPools(c, time.Now())
		if len(errs) != 1 {
			t.Errorf("%q: %v", bad, errs)
		}
		if got, _ := set.Resolve(vm); len(got.NICs[0].Addrs6) != 1 { // of the base in the pool's file
			t.Errorf("%q: %+v", bad, got.NICs[0])
		}
	}
}
