package spool_test

import (
	"context"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/slash32/slash32/pkg/responder"
	"github.com/slash32/slash32/pkg/spool"
)

func open(t *testing.T) *spool.Spool {
	t.Helper()
	s, err := spool.Open(spool.Dirs{Run: filepath.Join(t.TempDir(), "run")})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func decl(n byte, phase spool.Phase) spool.Declaration {
	return spool.Declaration{
		Version: spool.DeclarationVersion, UUID: uuid.UUID{15: n}, Name: "web", Generation: 3, Phase: phase,
		At: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Bridges: []string{"s32-web"}, XML: "<domain/>",
	}
}

func TestDirsFromEnv(t *testing.T) {
	env := map[string]string{"SLASH32_RUN_DIR": "/x/run"}
	got := spool.DirsFromEnv(func(k string) string { return env[k] })
	want := spool.Dirs{Config: "/etc/slash32", Run: "/x/run", State: "/var/lib/slash32"}
	if got != want {
		t.Fatalf("got %+v, want %+v", got, want)
	}
}

func TestDeclarationsRoundTrip(t *testing.T) {
	s := open(t)
	a, b := decl(2, spool.Preparing), decl(1, spool.Released)
	for _, d := range []spool.Declaration{a, b} {
		if err := s.WriteDeclaration(d); err != nil {
			t.Fatal(err)
		}
	}
	got, bad, err := s.Declarations()
	if err != nil || bad != nil {
		t.Fatal(err, bad)
	}
	if d := cmp.Diff([]spool.Declaration{b, a}, got); d != "" {
		t.Error(d)
	}
	if err := s.Remove(a.UUID); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Declaration(a.UUID); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after Remove: %v", err)
	}
	if err := s.Remove(a.UUID); err != nil {
		t.Errorf("a second Remove: %v", err)
	}
}

// A torn or foreign file is set aside and named; the others are still read.
func TestBadDeclarationIsSetAside(t *testing.T) {
	for name, content := range map[string]string{
		"torn":          `{"version":1,"uuid":"00000000-0000-0000-0000-0000000000`,
		"empty":         "",
		"version":       `{"version":9,"uuid":"00000000-0000-0000-0000-000000000001","phase":"started"}`,
		"other VM":      `{"version":1,"uuid":"00000000-0000-0000-0000-000000000009","phase":"started"}`,
		"phase":         `{"version":1,"uuid":"00000000-0000-0000-0000-000000000001","phase":"flying"}`,
		"unknown field": `{"version":1,"uuid":"00000000-0000-0000-0000-000000000001","phase":"started","x":1}`,
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			good := decl(2, spool.Started)
			if err := s.WriteDeclaration(good); err != nil {
				t.Fatal(err)
			}
			id := uuid.UUID{15: 1}
			if err := os.MkdirAll(s.VMDir(id), 0o755); err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(s.VMDir(id), "declaration.json")
			if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			got, bad, err := s.Declarations()
			if err != nil || len(got) != 1 || got[0].UUID != good.UUID {
				t.Fatalf("got %v, %v", got, err)
			}
			if len(bad) != 1 || !strings.Contains(bad[0].Error(), "set aside as "+file+".bad") {
				t.Fatalf("bad: %v", bad)
			}
			if _, bad, _ = s.Declarations(); bad != nil {
				t.Errorf("named twice: %v", bad)
			}
		})
	}
}

func TestWriteBindingOnlyWhenItDiffers(t *testing.T) {
	s := open(t)
	id := uuid.UUID{15: 1}
	b := responder.Binding{Version: 1, Name: "web", NICs: []responder.NIC{{Bridge: "s32-web", V4: responder.V4{Addr: netip.MustParseAddr("192.0.2.7")}}}}
	for i, want := range []bool{true, false} {
		changed, err := s.WriteBinding(id, b)
		if err != nil || changed != want {
			t.Fatalf("write %d: changed %v, %v", i, changed, err)
		}
	}
	b.NICs[0].MTU = 1400
	if changed, err := s.WriteBinding(id, b); err != nil || !changed {
		t.Fatal(changed, err)
	}
	got, err := s.Binding(id)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(b, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); d != "" {
		t.Error(d)
	}
	fi, err := os.Stat(s.BindingFile(id))
	if err != nil || fi.Mode().Perm() != 0o644 {
		t.Errorf("mode %v, %v", fi.Mode(), err)
	}
}

func TestLockExcludesAndObeysItsContext(t *testing.T) {
	s := open(t)
	unlock, err := s.Lock(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if _, err := s.Lock(ctx); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "held by another") {
		t.Fatalf("a second lock: %v", err)
	}
	unlock()
	again, err := s.Lock(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	again()
	// A wiped run directory must not stop the agent.
	if err := os.RemoveAll(s.Run); err != nil {
		t.Fatal(err)
	}
	again, err = s.Lock(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	again()
}

func TestClaimants(t *testing.T) {
	s := open(t)
	web, mail := decl(1, spool.Started), decl(2, spool.Preparing)
	web.Addrs = []netip.Addr{netip.MustParseAddr("203.0.113.42"), netip.MustParseAddr("2001:db8::1")}
	mail.Bridges = []string{"s32-mail"}
	mail.Prefixes = []netip.Prefix{netip.MustParsePrefix("2001:db8:a0::/60")}
	mail.XML = `<address ip="203.0.113.42"/>` // text is no claim
	for _, d := range []spool.Declaration{web, mail} {
		if err := s.WriteDeclaration(d); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		addr, bridge, prefix string
		self                 uuid.UUID
		want                 []spool.Declaration
	}{
		{addr: "2001:db8:a0:7::7", want: []spool.Declaration{mail}},
		{addr: "2001:db8:b0::7"},
		{addr: "192.0.2.1", prefix: "2001:db8::/64", want: []spool.Declaration{web}},
		{addr: "192.0.2.1", prefix: "2001:db8::/40", want: []spool.Declaration{web, mail}},
		{addr: "192.0.2.1", prefix: "2001:db8:a0:7::/64", want: []spool.Declaration{mail}},
		{addr: "192.0.2.1", prefix: "2001:db8:a1::/64"},
		{addr: "203.0.113.42", want: []spool.Declaration{web}},
		{addr: "2001:db8:0::1", want: []spool.Declaration{web}},
		{addr: "203.0.113.4"},
		{addr: "203.0.113.42", self: web.UUID},
		{addr: "192.0.2.1", bridge: "s32-mail", want: []spool.Declaration{mail}},
	} {
		claims := spool.Claims{Addrs: []netip.Addr{netip.MustParseAddr(c.addr)}, Bridges: []string{c.bridge}}
		if c.prefix != "" {
			claims.Prefixes = []netip.Prefix{netip.MustParsePrefix(c.prefix)}
		}
		got, err := s.Claimants(c.self, claims)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(c.want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); d != "" {
			t.Errorf("%+v: %s", c, d)
		}
	}
}

func TestLive(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, c := range []struct {
		phase  spool.Phase
		age    time.Duration
		listed bool
		want   bool
	}{
		{spool.Preparing, time.Second, false, true},
		{spool.Preparing, spool.PrepareDeadline + time.Second, false, false},
		{spool.Preparing, spool.PrepareDeadline + time.Second, true, true},
		{spool.Preparing, -spool.PrepareDeadline - time.Hour, false, false}, // the clock was set back
		{spool.Started, time.Hour, false, true},
		{spool.Stopped, 0, true, false},
		{spool.Released, 0, true, false},
	} {
		d := spool.Declaration{Phase: c.phase, At: at}
		if got := d.Live(at.Add(c.age), c.listed); got != c.want {
			t.Errorf("%s, %v old, listed %v: live %v, want %v", c.phase, c.age, c.listed, got, c.want)
		}
	}
}

func FuzzDeclaration(f *testing.F) {
	f.Add([]byte(`{"version":1,"uuid":"00000000-0000-0000-0000-000000000001","name":"a","generation":1,"phase":"started","at":"2026-01-02T03:04:05Z","bridges":["b"],"xml":"<domain/>"}`))
	f.Add([]byte(`{"version":1`))
	f.Add([]byte(`null`))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := spool.Open(spool.Dirs{Run: dir})
		if err != nil {
			t.Fatal(err)
		}
		id := uuid.UUID{15: 1}
		if err := os.MkdirAll(s.VMDir(id), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(s.VMDir(id), "declaration.json"), b, 0o600); err != nil {
			t.Fatal(err)
		}
		d, err := s.Declaration(id)
		if err == nil && d.UUID != id {
			t.Fatalf("accepted %q as VM %s", b, id)
		}
	})
}
