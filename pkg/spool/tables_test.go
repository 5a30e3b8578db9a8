package spool_test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/slash32/slash32/pkg/config"
	"github.com/slash32/slash32/pkg/marks"
	"github.com/slash32/slash32/pkg/spool"
)

// withNetworks is a configuration with networks that have tables; 0 is auto.
func withNetworks(tables map[string]config.Table) config.Config {
	c := config.Default()
	for name, t := range tables {
		if t == 0 {
			t = config.TableAuto
		}
		c.Networks[name] = config.Network{Name: name, Table: t}
	}
	return c
}

func tablesOf(c config.Config) map[string]config.Table {
	got := map[string]config.Table{}
	for name, n := range c.Networks {
		got[name] = n.Table
	}
	delete(got, config.DefaultNetwork)
	return got
}

func TestTables(t *testing.T) {
	s := openState(t)
	ctx := context.Background()
	for _, step := range []struct {
		name     string
		networks map[string]config.Table
		want     map[string]config.Table
	}{
		{"no file for none", map[string]config.Table{"a": 90}, map[string]config.Table{"a": 90}},
		{"by name", map[string]config.Table{"b": 0, "a": 0, "n": 90}, map[string]config.Table{"a": 3200, "b": 3201, "n": 90}},
		{"the same again", map[string]config.Table{"b": 0, "a": 0}, map[string]config.Table{"a": 3200, "b": 3201}},
		{"a new one moves none", map[string]config.Table{"0": 0, "b": 0}, map[string]config.Table{"0": 3202, "b": 3201}},
		{"one that was away", map[string]config.Table{"a": 0}, map[string]config.Table{"a": 3200}},
		{"one that the configuration gives to another", map[string]config.Table{"a": 0, "x": 3200}, map[string]config.Table{"a": 3203, "x": 3200}},
	} {
		c := withNetworks(step.networks)
		would, err := s.Dirs.Tables(c)
		if err != nil {
			t.Fatal(err)
		}
		got, err := s.AllocateTables(ctx, c)
		if err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		if d := cmp.Diff(step.want, tablesOf(got)); d != "" {
			t.Errorf("%s (-want +got):\n%s", step.name, d)
		}
		if d := cmp.Diff(tablesOf(got), tablesOf(would)); d != "" {
			t.Errorf("%s: the preview differs:\n%s", step.name, d)
		}
		if _, err := os.Stat(s.TablesFile()); step.name == "no file for none" && err == nil {
			t.Error("a file without anything to keep")
		}
		// What is configured is left as it was.
		for name := range step.networks {
			if step.networks[name] == 0 && c.Networks[name].Table != config.TableAuto {
				t.Errorf("%s: network %s of the argument has changed", step.name, name)
			}
		}
	}
}

// TestTablesFull: networks that are no more give theirs when none is free.
func TestTablesFull(t *testing.T) {
	s := openState(t)
	ctx := context.Background()
	most := map[string]config.Table{}
	for i := range marks.TableCount {
		most[fmt.Sprintf("n%03d", i)] = 0
	}
	if _, err := s.AllocateTables(ctx, withNetworks(most)); err != nil {
		t.Fatal(err)
	}
	most["x"] = 0
	if _, err := s.AllocateTables(ctx, withNetworks(most)); err == nil || !strings.Contains(err.Error(), "network x: all from 3200 to 3455 are in use. Fix: ") {
		t.Errorf("one too many: %v", err)
	}
	delete(most, "n007")
	got, err := s.AllocateTables(ctx, withNetworks(most))
	if err != nil || got.Networks["x"].Table != 3207 || got.Networks["n255"].Table != 3455 {
		t.Errorf("x has %d, n255 %d, %v", got.Networks["x"].Table, got.Networks["n255"].Table, err)
	}
}

// TestTablesTogether: of several that allocate at the same time all get the same.
func TestTablesTogether(t *testing.T) {
	s := openState(t)
	var mu sync.Mutex
	all := map[string]map[config.Table]bool{}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			other, err := spool.Open(s.Dirs)
			if err != nil {
				t.Error(err)
				return
			}
			c, err := other.AllocateTables(context.Background(), withNetworks(map[string]config.Table{"shared": 0, fmt.Sprintf("n%d", i): 0}))
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			for name, table := range tablesOf(c) {
				if all[name] == nil {
					all[name] = map[config.Table]bool{}
				}
				all[name][table] = true
			}
		})
	}
	wg.Wait()
	seen := map[config.Table]string{}
	for name, tables := range all {
		if len(tables) != 1 {
			t.Errorf("network %s has %v", name, tables)
		}
		for table := range tables {
			if seen[table] != "" {
				t.Errorf("networks %s and %s have table %d", seen[table], name, table)
			}
			seen[table] = name
		}
	}
}

func TestTablesBroken(t *testing.T) {
	s := openState(t)
	c := withNetworks(map[string]config.Table{"a": 0})
	if err := os.MkdirAll(s.State, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{
		"torn", `{"version": 2, "tables": {}}`, `{"version": 1, "tables": {"a": 254}}`,
		`{"version": 1, "tables": {"a": 3200, "b": 3200}}`, `{"version": 1, "tables": {"a": -1}}`, "[]", "",
	} {
		if err := os.WriteFile(s.TablesFile(), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := s.AllocateTables(context.Background(), c); err == nil || !strings.Contains(err.Error(), "tables.json: ") || !strings.Contains(err.Error(), "Fix: ") {
			t.Errorf("%q: %v", text, err)
		}
		if b, err := os.ReadFile(s.TablesFile()); err != nil || string(b) != text {
			t.Errorf("%q: the file is now %q, %v", text, b, err)
		}
	}
}
