package spool

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"

	"github.com/slash32/slash32/pkg/config"
	"github.com/slash32/slash32/pkg/marks"
)

const tablesVersion = 1

// tablesFile says which routing table a network with "table: auto" has.
type tablesFile struct {
	Version int                     `json:"version"`
	Tables  map[string]config.Table `json:"tables"` // by network
}

// TablesFile is where allocated routing tables are kept.
func (d Dirs) TablesFile() string { return filepath.Join(d.State, "tables.json") }

// Tables is c with the tables that its networks with "table: auto" have, or are
// to have; nothing is written.
func (d Dirs) Tables(c config.Config) (config.Config, error) {
	if !asksForTables(c) {
		return c, nil
	}
	kept, err := d.readTables()
	if err != nil {
		return c, err
	}
	got, _, err := allocate(c, kept, config.Reader{}.TableNames())
	return withTables(c, got), err
}

// AllocateTables is c with the tables that its networks with "table: auto" have;
// those that have none yet get one, and it is on the disk when this returns. It
// takes the lock for that, and only for that.
func (s *Spool) AllocateTables(ctx context.Context, c config.Config) (config.Config, error) {
	if !asksForTables(c) {
		return c, nil
	}
	kept, err := s.readTables()
	if err != nil {
		return c, err
	}
	got, changed, err := allocate(c, kept, config.Reader{}.TableNames())
	if err != nil || !changed {
		return withTables(c, got), err
	}
	unlock, err := s.Lock(ctx)
	if err != nil {
		return c, err
	}
	defer unlock()
	if kept, err = s.readTables(); err != nil { // another process may have been first
		return c, err
	}
	if got, changed, err = allocate(c, kept, config.Reader{}.TableNames()); err != nil || !changed {
		return withTables(c, got), err
	}
	b, err := json.MarshalIndent(tablesFile{tablesVersion, got}, "", "  ")
	if err == nil {
		err = s.keep(s.TablesFile(), append(b, '\n'))
	}
	if err != nil {
		return c, fmt.Errorf("keep the allocated routing tables: %w. Fix: see to the disk of %s", err, s.State)
	}
	return withTables(c, got), nil
}

func asksForTables(c config.Config) bool {
	for _, n := range c.Networks {
		if n.Table == config.TableAuto {
			return true
		}
	}
	return false
}

// readTables reads what is kept. A file that cannot be read is an error and stays:
// with other tables, the VMs that run would be without routes for a moment.
func (d Dirs) readTables() (map[string]config.Table, error) {
	b, err := readSmall(d.TablesFile())
	if errors.Is(err, fs.ErrNotExist) {
		return map[string]config.Table{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the allocated routing tables: %w", err)
	}
	var f tablesFile
	err = json.Unmarshal(b, &f)
	if err == nil && f.Version != tablesVersion {
		err = fmt.Errorf("version %d, this program knows %d", f.Version, tablesVersion)
	}
	seen := map[config.Table]string{}
	for _, name := range slices.Sorted(maps.Keys(f.Tables)) {
		t := f.Tables[name]
		switch {
		case err != nil:
		case t < marks.TableFirst || t >= marks.TableFirst+marks.TableCount:
			err = fmt.Errorf("table %d of network %q is not from %d to %d", t, name, marks.TableFirst, marks.TableFirst+marks.TableCount-1)
		case seen[t] != "":
			err = fmt.Errorf("networks %q and %q have table %d", seen[t], name, t)
		}
		seen[t] = name
	}
	if err != nil {
		return nil, fmt.Errorf("read the allocated routing tables: %s: %w. Fix: restore it, or remove it and restart slash32d: the tables are then allocated anew", d.TablesFile(), err)
	}
	if f.Tables == nil {
		f.Tables = map[string]config.Table{}
	}
	return f.Tables, nil
}

// allocate gives every network with "table: auto" a table: the one that it had,
// else a free one, else that of a network that the configuration has no more.
func allocate(c config.Config, kept map[string]config.Table, named map[config.Table]string) (got map[string]config.Table, changed bool, err error) {
	got = maps.Clone(kept)
	given := map[config.Table]bool{} // by the configuration, so that nobody else may have it
	for _, n := range c.Networks {
		given[n.Table] = true
	}
	taken := map[config.Table]string{}
	for _, name := range slices.Sorted(maps.Keys(got)) {
		if given[got[name]] {
			delete(got, name)
			changed = true
			continue
		}
		taken[got[name]] = name
	}
	for _, name := range slices.Sorted(maps.Keys(c.Networks)) {
		if _, has := got[name]; has || c.Networks[name].Table != config.TableAuto {
			continue
		}
		free, idle := config.Table(0), config.Table(0)
		for t := config.Table(marks.TableFirst); t < marks.TableFirst+marks.TableCount; t++ {
			owner, has := taken[t]
			switch {
			case given[t]:
			case !has && named[t] == "" && free == 0:
				free = t
			case has && c.Networks[owner].Table != config.TableAuto && idle == 0:
				idle = t
			}
		}
		switch {
		case free != 0:
		case idle != 0:
			delete(got, taken[idle])
			free = idle
		default:
			return got, changed, fmt.Errorf("allocate a routing table for network %s: all from %d to %d are in use. Fix: give networks numbers (table: 90)", name, marks.TableFirst, marks.TableFirst+marks.TableCount-1)
		}
		got[name], taken[free], changed = free, name, true
	}
	return got, changed, nil
}

func withTables(c config.Config, tables map[string]config.Table) config.Config {
	c.Networks = maps.Clone(c.Networks)
	for name, n := range c.Networks {
		if t, ok := tables[name]; ok && n.Table == config.TableAuto {
			n.Table = t
			c.Networks[name] = n
		}
	}
	return c
}
